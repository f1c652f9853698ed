"""Search for hyper-parameters by Optuna, with pruning. Run again, it continues."""

import optuna
import torch

from tinyvae import ELBO, VAE, BernoulliLikelihood, Callback, Optimization, Trainer

NUM_TRIALS = 8


class Pruning(Callback):
    """End the run of a trial that looks worse than the others."""

    def __init__(self, trial, column="validation/elbo_nats"):
        self.trial, self.column = trial, column

    def on_epoch_end(self, state, row):
        self.trial.report(row[self.column], int(row["epoch"]))
        if self.trial.should_prune():
            state.stop("Optuna prunes the trial")


def train(trial):
    torch.manual_seed(0)
    latent_dim = trial.suggest_int("latent_dim", 1, 8)
    learning_rate = trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True)
    x = (torch.rand(512, 16) < torch.rand(512, 1)).float()
    vae = VAE.from_shapes(16, latent_dim=latent_dim, likelihood=BernoulliLikelihood())
    trainer = Trainer(
        vae,
        ELBO(),
        Optimization(learning_rate=learning_rate),
        callbacks=[Pruning(trial)],
        progress=False,
    )
    history = trainer.fit(x[:400], x[400:], epochs=10)
    if history.stop_reason is not None:
        raise optuna.TrialPruned
    return history["validation/elbo_nats"][-1]


study = optuna.create_study(
    study_name="vae",
    storage="sqlite:///optuna.db",
    direction="maximize",
    sampler=optuna.samplers.TPESampler(seed=0),
    pruner=optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=2),
    load_if_exists=True,  # a search that was killed continues
)
for trial in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):  # of a killed process
    study.enqueue_trial(trial.params)
    study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
done = study.get_trials(states=[optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED])
study.optimize(train, n_trials=max(0, NUM_TRIALS - len(done)))
