"""The recipe that all estimators train by: one architecture and one schedule for every table."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from tinyvae.core.random import Stream, derive_seed, epoch_order, forked_rng
from tinyvae.encoders import GaussianEncoder
from tinyvae.likelihoods import MaskedLikelihood, MixedLikelihood
from tinyvae.models import VAE
from tinyvae.networks import MLP
from tinyvae.objectives import IWAE
from tinyvae.training import EarlyStopping, History, Optimization, Trainer

HIDDEN = (128, 128)
MAX_LATENT = 32
UPDATES, MIN_EPOCHS = 3000, 4
NUM_SAMPLES = 5


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
    """Return a VAE that is fitted to the rows of a table, on the CPU, and the history of the fit.

    Args:
        columns: Likelihood of the columns.
        x: Rows ``(N, D)``. NaN is missing.
        latent_dim: Number of latent dimensions.
        hidden: Widths of the hidden layers of the encoder and, reversed, of the decoder.
        max_epochs: Number of epochs. None chooses it by the number of rows.
        early_stopping: True to hold out the rows of :func:`split_rows` and to keep the weights of
            the best epoch.
        validation_fraction: Share of the rows that are held out.
        seed: Seed of the weights and of the run.
        device: Device of the training.
        verbose: True to report progress.
    """
    width = x.shape[1]
    latent_dim = min(MAX_LATENT, width // 2 + 1) if latent_dim == "auto" else latent_dim
    widths = HIDDEN if hidden == "auto" else tuple(hidden)
    with forked_rng(torch.device("cpu"), derive_seed(seed, Stream.ORDER)):
        likelihood = MaskedLikelihood(columns)
        network = MLP(likelihood.input_shape((width,)), widths, activation=nn.SiLU)
        decoder = MLP(latent_dim, widths[::-1], activation=nn.SiLU)
        encoder = GaussianEncoder(network, latent_dim)
        vae = VAE(encoder, decoder, likelihood, data_shape=(width,))
    train, validation = split_rows(len(x), validation_fraction, seed)
    x, held_out = (x[train], x[validation]) if early_stopping else (x, None)
    vae.init_output_bias(x)
    batch_size = min(len(x), 64 if len(x) < 10_000 else 256)
    epochs = max(MIN_EPOCHS, math.ceil(UPDATES / math.ceil(len(x) / batch_size)))
    trainer = Trainer(
        vae,
        IWAE(NUM_SAMPLES),
        Optimization(3e-3, schedule="cosine"),
        callbacks=[EarlyStopping(patience=max(10, epochs // 10))] if early_stopping else [],
        seed=seed,
        device=device,
        progress=verbose,
    )
    epochs = epochs if max_epochs is None else max_epochs
    history = trainer.fit(x, held_out, epochs=epochs, batch_size=batch_size)
    return vae.cpu(), history


def split_rows(num_rows: int, validation_fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return the indices of the rows to train on and of those to hold out, both at least one.

    Example:
        >>> train, held_out = split_rows(20, 0.1, seed=0)
        >>> len(train), len(held_out)
        (18, 2)
    """
    num_held_out = min(max(1, round(validation_fraction * num_rows)), num_rows - 1)
    order = epoch_order(num_rows, seed, epoch=0)
    return order[num_held_out:].sort().values, order[:num_held_out].sort().values
