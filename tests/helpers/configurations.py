"""Runs that are killed and resumed: one row per kind of data, model, optimization and folder."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, get_worker_info

from tinyvae import (
    ELBO,
    IWAE,
    MLP,
    VAE,
    Batch,
    BernoulliLikelihood,
    Callback,
    EarlyStopping,
    GaussianEncoder,
    GaussianLikelihood,
    Objective,
    Optimization,
    Speed,
    VampPrior,
)
from tinyvae.datasets import DynamicBinarization
from tinyvae.encoders import VectorQuantizedEncoder
from tinyvae.flows import Flow
from tinyvae.likelihoods import MaskedLikelihood
from tinyvae.objectives import AdversarialTotalCorrelationRegularizer
from tinyvae.priors import CodePrior, FlowPrior
from tinyvae.schedules import Linear

BATCH_SIZE = 16
EXAMPLES = 155  # the last of 10 batches is smaller
WIDTH = 16
EPOCHS = 3


@dataclass
class Configuration:
    """Arguments of a run, as options of ``Trainer``, ``Checkpoint`` and ``fit``.

    ``ignored`` holds patterns of warnings that the run may raise.
    """

    train: Any
    model: nn.Module
    objective: Objective = field(default_factory=ELBO)
    optimization: Optimization = field(default_factory=lambda: Optimization(0.01))
    callbacks: list[Callback] = field(default_factory=list)
    validation: Any = field(default_factory=lambda: make_data(5)[:32])
    trainer: dict[str, Any] = field(default_factory=dict)
    checkpoint: dict[str, Any] = field(default_factory=dict)
    fit: dict[str, Any] = field(default_factory=lambda: {"epochs": EPOCHS})
    ignored: tuple[str, ...] = ()


# Data --------------------------------------------------------------------------------------------


def make_data(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(EXAMPLES, WIDTH, generator=generator) < 0.4).float()


def with_gaps(x):
    return torch.where(make_data(2) > 0, torch.nan, x)


def flip(row):
    """Flip pixels by torch's default generator."""
    return (row - (torch.rand(WIDTH) < 0.1).float()).abs()


class Noisy(Dataset):
    """Items that draw."""

    def __init__(self):
        self.data = make_data()

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return flip(self.data[index])


class Stream(IterableDataset):
    """Items that draw, without a length. Each worker reads its share."""

    def __init__(self):
        self.data = make_data()

    def __iter__(self):
        worker = get_worker_info()
        start, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        yield from map(flip, self.data[start::step])


class SizedStream(Stream):
    """The same stream with its length. The last batch of each worker is an additional one."""

    def __len__(self):
        return len(self.data)


def make_loader(data, **options):
    generator = torch.Generator().manual_seed(3)
    return DataLoader(data, BATCH_SIZE, generator=generator, **options)


class Draws(Callback):
    """A callback with a state that draws."""

    def __init__(self):
        self.total = 0.0

    def on_step_end(self, state, output):
        self.total += torch.rand(()).item()

    def on_epoch_end(self, state, row):
        row["total"] = self.total

    def state_dict(self):
        return {"total": self.total}

    def load_state_dict(self, saved):
        self.total = saved["total"]


# Models ------------------------------------------------------------------------------------------


def make_vae(likelihood=None, prior=None):
    encoder = GaussianEncoder(MLP(WIDTH, (32,)), latent_dim=2)
    return VAE(encoder, MLP(2, (32,), WIDTH), likelihood or BernoulliLikelihood(), prior)


def make_normalized():
    network = nn.Sequential(nn.Linear(WIDTH, 32), nn.BatchNorm1d(32), nn.Dropout(0.2), nn.ReLU())
    encoder = GaussianEncoder(network, latent_dim=2, features=32)
    return VAE(encoder, MLP(2, (32,), WIDTH), BernoulliLikelihood())


def make_quantized():
    network = MLP(WIDTH, (32,))
    encoder = VectorQuantizedEncoder(network, num_codes=8, latent_dim=(2, 4), decay=0.9)
    prior = CodePrior(8, latent_dim=(2, 4))
    return VAE(encoder, MLP((2, 4), (32,), WIDTH), BernoulliLikelihood(), prior)


def make_masked():
    likelihood = MaskedLikelihood(GaussianLikelihood(), show_mask=True)
    encoder = GaussianEncoder(MLP(2 * WIDTH, (32,)), latent_dim=2)
    return VAE(encoder, MLP(2, (32,), WIDTH), likelihood)


def make_vamp():
    encoder = GaussianEncoder(MLP(WIDTH, (32,)), latent_dim=2)
    prior = VampPrior.from_data(encoder, make_data(), num_components=3)
    return VAE(encoder, MLP(2, (32,), WIDTH), BernoulliLikelihood(), prior)


class WithContext(nn.Module):
    """A network that also reads the context."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, context):
        return self.network(torch.cat([x, context.expand(*x.shape[:-1], -1)], -1))


def make_conditional():
    encoder = GaussianEncoder(WithContext(MLP(WIDTH + 3, (32,))), latent_dim=2, features=32)
    return VAE(encoder, WithContext(MLP(2 + 3, (32,), WIDTH)), BernoulliLikelihood())


def adversary():
    return AdversarialTotalCorrelationRegularizer(MLP(2, (8,), 1), weight=2.0)


# Runs --------------------------------------------------------------------------------------------

CONFIGURATIONS = {
    # Data
    "tensors": lambda: Configuration(
        0.8 * make_data() + 0.1,
        make_vae(),
        validation=make_data(5)[:32],
        fit={"epochs": EPOCHS, "transform": DynamicBinarization()},
    ),
    "Dataset": lambda: Configuration(Noisy(), make_vae()),
    "Dataset, workers": lambda: Configuration(
        Noisy(), make_vae(), fit={"epochs": EPOCHS, "workers": 2}
    ),
    "DataLoader": lambda: Configuration(make_loader(Noisy(), shuffle=True), make_vae()),
    "DataLoader, workers": lambda: Configuration(
        make_loader(Noisy(), shuffle=True, num_workers=2), make_vae()
    ),
    "DataLoader, persistent workers": lambda: Configuration(
        make_loader(
            TensorDataset(make_data()), shuffle=True, num_workers=2, persistent_workers=True
        ),
        make_vae(),
    ),
    "DataLoader, persistent workers that draw": lambda: Configuration(
        make_loader(Noisy(), shuffle=True, num_workers=2, persistent_workers=True), make_vae()
    ),
    "stream": lambda: Configuration(Stream(), make_vae()),
    "stream, workers": lambda: Configuration(
        Stream(), make_vae(), fit={"epochs": EPOCHS, "workers": 2}
    ),
    "DataLoader, stream": lambda: Configuration(make_loader(Stream(), num_workers=2), make_vae()),
    "DataLoader, sized stream": lambda: Configuration(
        make_loader(SizedStream(), num_workers=3),
        make_vae(),
        checkpoint={"every_steps": 1},
        ignored=("Length of IterableDataset", "the training data have 12 batches"),
    ),
    "context": lambda: Configuration(
        (make_data(), torch.eye(3)[torch.arange(EXAMPLES) % 3]),
        make_conditional(),
        validation=(make_data(5)[:32], torch.eye(3)[torch.arange(32) % 3]),
        fit={"epochs": EPOCHS, "batch": lambda pair: Batch(x=pair[0], context=pair[1])},
    ),
    "missing values": lambda: Configuration(with_gaps(make_data()), make_masked()),
    "float64": lambda: Configuration(
        make_data().double(), make_vae().double(), validation=make_data(5)[:32].double()
    ),
    # Models and objectives
    "batch normalization": lambda: Configuration(make_data(), make_normalized()),
    "codebook": lambda: Configuration(make_data(), make_quantized()),
    "pseudo-inputs": lambda: Configuration(make_data(), make_vamp()),
    "flow": lambda: Configuration(
        make_data(), make_vae(prior=FlowPrior(Flow(2))), IWAE(num_samples=3)
    ),
    "adversary": lambda: Configuration(make_data(), make_vae(), ELBO() + adversary()),
    "warm-up": lambda: Configuration(
        make_data(), make_vae(), ELBO(beta=Linear(0.0, 1.0, fraction=0.7))
    ),
    # Optimization
    "schedule": lambda: Configuration(
        make_data(),
        make_vae(),
        optimization=Optimization(0.01, schedule="cosine", warmup_steps=5, clip_norm=1.0),
    ),
    "scheduler per step": lambda: Configuration(
        make_data(),
        make_vae(),
        optimization=Optimization(
            0.01,
            scheduler=lambda optimizer, total: OneCycleLR(optimizer, 0.1, total),
            scheduler_interval="step",
        ),
    ),
    "scheduler per epoch": lambda: Configuration(
        make_data(),
        make_vae(),
        optimization=Optimization(
            optimizer=lambda parameters: SGD(parameters, lr=0.1, momentum=0.9),
            scheduler=lambda optimizer: StepLR(optimizer, 2),
        ),
    ),
    "plateau": lambda: Configuration(
        make_data(),
        make_vae(),
        optimization=Optimization(
            0.05, scheduler=lambda optimizer: ReduceLROnPlateau(optimizer, patience=0)
        ),
    ),
    # Callbacks, speed and the folder
    "early stopping": lambda: Configuration(
        make_data(),
        make_vae(),
        optimization=Optimization(0.3),
        callbacks=[EarlyStopping("train/elbo_nats", patience=1)],
    ),
    "callback that draws": lambda: Configuration(make_data(), make_vae(), callbacks=[Draws()]),
    "records": lambda: Configuration(make_data(), make_vae(), trainer={"record_every": 1}),
    "compiled": lambda: Configuration(
        make_data(), make_vae(), trainer={"speed": Speed(compile=True)}
    ),
    "best": lambda: Configuration(
        make_data(), make_vae(), checkpoint={"monitor": "validation/elbo_nats"}
    ),
    "keep one": lambda: Configuration(
        make_data(), make_vae(), checkpoint={"keep": 1, "every_steps": 1}
    ),
    "no pause": lambda: Configuration(make_data(), make_vae(), checkpoint={"every_minutes": 0}),
}
QUICK = ("DataLoader, workers", "codebook", "early stopping")  # not only in the soak
