"""The recipe that all estimators train by: one architecture and one schedule for every table."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from tinyvae.core.random import forked_rng
from tinyvae.encoders import GaussianEncoder
from tinyvae.likelihoods import MaskedLikelihood, MixedLikelihood
from tinyvae.models import VAE
from tinyvae.networks import MLP
from tinyvae.objectives import IWAE
from tinyvae.training import EarlyStopping, History, Optimization, Trainer

UPDATES = 3000  # of a small table
MAX_UPDATES = 20_000
EPOCHS = 4  # of a large table, at least
NUM_SAMPLES = 5
HIDDEN = (128, 128)
MAX_LATENT = 32
MOST_HIDDEN = 0.5  # the largest share of a row's entries that training hides
EVALUATIONS = 30  # on validation data


def fit_vae(
    columns: MixedLikelihood,
    x: Tensor,
    *,
    latent_dim: int | Literal["auto"] = "auto",
    hidden: Sequence[int] | Literal["auto"] = "auto",
    max_epochs: int | None = None,
    early_stopping: bool = True,
    validation_fraction: float = 0.1,
    seed: int = 0,
    device: str = "auto",
    verbose: bool = False,
) -> tuple[VAE, History]:
    """Return a VAE of a table, fitted to its rows, and the history of the fit."""
    width = x.shape[1]
    latent_dim = min(MAX_LATENT, width // 2 + 1) if latent_dim == "auto" else latent_dim
    widths = HIDDEN if hidden == "auto" else tuple(hidden)
    with forked_rng(torch.device("cpu"), seed):
        likelihood = MaskedLikelihood(columns, show_mask=True)
        network = MLP(likelihood.input_shape((width,)), widths, activation=nn.SiLU)
        decoder = MLP(latent_dim, widths, activation=nn.SiLU)
        vae = VAE(GaussianEncoder(network, latent_dim), decoder, likelihood, data_shape=(width,))
    vae.init_output_bias(x)
    batch_size = min(len(x), 64 if len(x) < 10_000 else 256)
    steps = math.ceil(len(x) / batch_size)
    epochs = max(EPOCHS, math.ceil(UPDATES / steps))
    optimization = Optimization(
        3e-3,
        optimizer=partial(AdamW, fused=True, weight_decay=1e-4),
        learning_rates={"likelihood": 1e-2},
        schedule="cosine",
    )
    trainer = Trainer(
        vae, IWAE(NUM_SAMPLES), optimization, seed=seed, device=device, progress=verbose
    )
    epochs = epochs if max_epochs is None else min(epochs, max_epochs)
    history = trainer.fit(x, epochs=epochs, batch_size=batch_size, transform=hide_entries)
    return vae.cpu(), history


def hide_entries(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return rows of which half miss a random share of their entries, so that q copes with it."""
    draw = partial(torch.rand, generator=generator, device=x.device, dtype=x.dtype)
    share = MOST_HIDDEN * draw((len(x), 1)) * (draw((len(x), 1)) < 0.5)
    return x.masked_fill(draw(x.shape) < share, math.nan)
