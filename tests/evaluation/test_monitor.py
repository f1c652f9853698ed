"""Evaluation during training."""

import pytest
import torch

from tinyvae import ELBO, MLP, VAE, BernoulliLikelihood, GaussianEncoder, Trainer, evaluate
from tinyvae.evaluation import EvaluationMonitor
from tinyvae.schedules import Linear


def make(latent_dim=2):
    torch.manual_seed(0)
    encoder = GaussianEncoder(MLP(4, (8,)), latent_dim)
    return VAE(encoder, MLP(latent_dim, (8,), out_shape=4), BernoulliLikelihood())


def data(num=60):
    return torch.rand(num, 4, generator=torch.Generator().manual_seed(1)).round()


def test_monitor_reports_what_evaluate_does_and_leaves_the_run_unchanged():
    x, monitor, vae, other = data(), EvaluationMonitor(data(30), every_epochs=3), make(), make()
    with torch.no_grad():
        for model in (vae, other):
            model.encoder.head.weight.mul_(10)  # active from the start
    history = Trainer(vae, ELBO(), callbacks=[monitor], progress=False).fit(x, epochs=6)
    plain = Trainer(other, ELBO(), progress=False).fit(x, epochs=6)
    assert history["train/loss"] == plain["train/loss"]
    assert sorted(monitor.reports) == [3, 6]
    report = evaluate(vae, data(30), elbo_samples=8, importance_samples=None)
    assert monitor.reports[6] == report
    assert history["evaluation/elbo_nats"][5] == report.elbo.mean
    assert history["evaluation/elbo_nats"][4] is None
    assert history["evaluation/z_active_units"][5] == report.latents["z"].activity.count


def test_monitor_warns_once_of_a_collapse_after_the_warm_up():
    vae, monitor = make(12), EvaluationMonitor(data())
    vae.encoder.requires_grad_(False)
    with torch.no_grad():
        vae.encoder.head.weight.zero_()
    objective = ELBO(Linear(0.0, 1.0, steps=4))  # one step per epoch
    trainer = Trainer(vae, objective, callbacks=[monitor], progress=False)
    with pytest.warns(UserWarning, match="posterior collapse") as caught:
        trainer.fit(data(), epochs=8)
    assert len(caught) == 1
    message = str(caught[0].message)
    assert message.startswith("after epoch 5: posterior collapse: 0 of 12 dimensions active in z")


def test_monitor_refuses_no_epochs():
    with pytest.raises(ValueError, match="every_epochs >= 1, got 0"):
        EvaluationMonitor(data(), every_epochs=0)
