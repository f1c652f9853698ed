"""Forged checkpoints of several runs: each is refused, or the run continues from it to its end.

A forged file has a correct digest. Its state, description, tensors and header hold anything.
"""

import collections
import os
import random

import pytest
import torch
from helpers.forgeries import assert_clean, bounded, forge
from helpers.training import BATCH_SIZE, DATA
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau
from torch.utils.data import DataLoader

from tinyvae import (
    ELBO,
    IWAE,
    MLP,
    VAE,
    BernoulliLikelihood,
    Callback,
    Checkpoint,
    EarlyStopping,
    GaussianEncoder,
    Optimization,
    Trainer,
    VampPrior,
)
from tinyvae.encoders import VectorQuantizedEncoder
from tinyvae.errors import CheckpointError, NonFiniteError
from tinyvae.objectives import AdversarialTotalCorrelationRegularizer
from tinyvae.priors import CodePrior
from tinyvae.schedules import Linear

IS_SOAK = os.environ.get("HYPOTHESIS_PROFILE") == "soak"
FORGERIES = 2_500 if IS_SOAK else 150
EPOCHS, STEP = 3, 7  # a checkpoint within the second epoch


class MeanWeights(Callback):
    """Callback with a state of tensors, tuples and integers as keys."""

    def on_fit_start(self, state):
        self.means = {i: p.detach().clone() for i, p in enumerate(state.model.parameters())}
        self.count = 0

    def on_step_end(self, state, output):
        self.count += 1
        for mean, weight in zip(self.means.values(), state.model.parameters(), strict=True):
            mean.lerp_(weight.detach(), 1 / self.count)

    def state_dict(self):
        return {"means": self.means, "count": (self.count,)}

    def check_state(self, state, saved):
        parameters, means = state.model.parameters(), saved["means"].values()
        kinds = [[(t.shape, t.dtype) for t in tensors] for tensors in (means, parameters)]
        (count,) = saved["count"]
        if kinds[0] != kinds[1] or not isinstance(count, int) or not 0 <= count < 2**31:
            raise ValueError("the means belong to another model")

    def load_state_dict(self, saved):
        self.means, (self.count,) = saved["means"], saved["count"]


def mlp_vae(*layers, prior=None):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), *layers, nn.ReLU())
    encoder = GaussianEncoder(network, latent_dim=2, features=8)
    return VAE(encoder, MLP(2, hidden=(8,), out_shape=4), BernoulliLikelihood(), prior)


def codes_vae():
    torch.manual_seed(0)
    encoder = VectorQuantizedEncoder(MLP(4, (8,)), num_codes=5, latent_dim=(2, 3))
    prior = CodePrior(5, latent_dim=(2, 3))
    return VAE(encoder, MLP((2, 3), (8,), out_shape=4), BernoulliLikelihood(), prior)


def cosine():
    objective = ELBO(beta=Linear(0.0, 1.0, fraction=0.8))
    callbacks = [EarlyStopping(patience=9)]
    return mlp_vae(), objective, Optimization(0.02, schedule="cosine"), callbacks


def plateau():
    optimization = Optimization(
        optimizer=lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
        scheduler=lambda o: ReduceLROnPlateau(o, mode="max", patience=0, threshold_mode="abs"),
        monitor="validation/elbo_nats",
    )
    vae = mlp_vae(nn.BatchNorm1d(8), nn.Dropout(0.3), prior=VampPrior(2, input_shape=4))
    return vae, IWAE(3), optimization, [MeanWeights()]


def adversarial():
    penalty = AdversarialTotalCorrelationRegularizer(MLP(2, (6,), 1), weight=2.0)
    optimization = Optimization(0.02, schedule="linear", warmup_steps=3, clip_norm=1.0)
    return mlp_vae(), ELBO() + penalty, optimization, [EarlyStopping("train/elbo_nats")]


def codes():
    optimization = Optimization(
        optimizer=lambda p: torch.optim.AdamW(p, lr=0.02, amsgrad=True),
        scheduler=lambda o, total: OneCycleLR(o, 0.1, total),
        scheduler_interval="step",
    )
    return codes_vae(), ELBO(), optimization, []


RUNS = {"cosine": cosine, "plateau": plateau, "adversarial": adversarial, "codes": codes}


def trainer_of(run, *more):
    model, objective, optimization, callbacks = RUNS[run]()
    callbacks = [*callbacks, *more]
    options = {"callbacks": callbacks, "progress": False, "device": "cpu", "record_every": 2}
    return Trainer(model, objective, optimization, **options)


def fit(run, trainer, **options):
    train = DATA
    if run == "plateau":
        generator = torch.Generator().manual_seed(3)
        train = DataLoader(DATA, BATCH_SIZE, shuffle=True, generator=generator, drop_last=True)
    return trainer.fit(train, DATA, epochs=EPOCHS, batch_size=BATCH_SIZE, **options)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A checkpoint of each run."""
    files = {}
    for run in RUNS:
        folder = tmp_path_factory.mktemp("run")
        fit(run, trainer_of(run, Checkpoint(folder, every_steps=1, every_minutes=None, keep=99)))
        files[run] = folder / f"step-{STEP:08d}.safetensors"
    return files


@pytest.mark.filterwarnings("ignore")
def test_resume_refuses_a_forged_checkpoint_or_continues_to_the_end(checkpoints, tmp_path):
    source, ends = random.Random(None if IS_SOAK else 0), collections.Counter()
    path = tmp_path / "forged"
    for _ in range(FORGERIES):
        run = source.choice(list(RUNS))
        path.unlink(missing_ok=True)
        path.write_bytes(forge(checkpoints[run], source))
        trainer = trainer_of(run)
        before = [tensor.clone() for tensor in trainer.model.state_dict().values()]
        with bounded(megabytes=1000, cpu_seconds=20):
            end = resume(run, trainer, path)
        ends[end] += 1
        if end == "refused":
            assert all(map(torch.equal, before, trainer.model.state_dict().values()))
    assert ends["ended"] > FORGERIES / 100


def resume(run, trainer, path):
    """Continue a run from a file, and return how it ended."""
    try:
        fit(run, trainer, resume=path)
    except CheckpointError as error:
        assert_clean(str(error), path)
        return "refused"
    except NonFiniteError:  # the numbers of a forged state may be any
        return "not finite"
    except ValueError as error:
        assert str(error).startswith("the checkpoint's run had")  # noqa: PT017 - any other fails
        return "another run"
    return "ended"
