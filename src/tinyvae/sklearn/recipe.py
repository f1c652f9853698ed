"""The recipe that all estimators train by: one architecture and one schedule for every table.

The defaults were chosen on other data than those of the benchmarks, see ``benchmarks/tabular``.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from tinyvae.core.random import Stream, derive_seed, epoch_order, forked_rng
from tinyvae.encoders import GaussianEncoder
from tinyvae.likelihoods import MaskedLikelihood, MixedLikelihood
from tinyvae.models import VAE
from tinyvae.networks import MLP
from tinyvae.objectives import IWAE
from tinyvae.training import EarlyStopping, History, Optimization, Trainer

HIDDEN = (128, 128)
MAX_LATENT = 32
NUM_SAMPLES = 5  # one sample leaves weak dependences between columns unused
UPDATES, MIN_EPOCHS = 2500, 5  # at most and at least, before the learning rate decays
PATIENCE = 500  # updates
DECAY = 0.25  # length of the decay, as a share of the updates before it
MAX_HELD_OUT = 10_000  # rows
MOST_HIDDEN = 0.5  # largest share of the entries of a row that training hides


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

    The learning rate is constant until the bound of held-out rows no longer rises, and then decays.
    Training hides entries of some rows, so that the posterior also fits rows with missing values.

    Args:
        columns: Likelihood of the columns.
        x: Rows ``(N, D)``. NaN is missing.
        latent_dim: Number of latent dimensions.
        hidden: Widths of the hidden layers of the encoder and, reversed, of the decoder.
        max_epochs: Largest number of epochs. None chooses it by the number of rows.
        early_stopping: True to hold out the rows of :func:`split_rows` and to keep the weights of
            the best epoch.
        validation_fraction: Share of the rows that are held out.
        seed: Seed of the weights and of the run.
        device: Device of the training.
        verbose: True to report progress.
    """
    vae = compose_vae(columns, x.shape[1], latent_dim=latent_dim, hidden=hidden, seed=seed)
    held_out = None
    if early_stopping:
        train, validation = split_rows(len(x), validation_fraction, seed)
        x, held_out = x[train], x[validation]
    vae.init_output_bias(x)
    batch_size = min(len(x), choose_batch_size(len(x)))
    steps = len(x) // batch_size  # of an epoch
    epochs = max(MIN_EPOCHS, math.ceil(UPDATES / steps))
    if max_epochs is not None:
        epochs = min(epochs, max(1, round(max_epochs / (1 + DECAY))))
    patience = max(2, math.ceil(PATIENCE / steps))
    has_parameters = any(True for _ in columns.parameters())
    optimization = Optimization(
        3e-3,
        optimizer=partial(AdamW, fused=True),
        learning_rates={"likelihood": 1e-2} if has_parameters else {},
        clip_norm=10.0,
    )
    stopping = EarlyStopping("validation/iwae_nats", patience=patience)
    trainer = Trainer(
        vae,
        IWAE(NUM_SAMPLES),
        optimization,
        callbacks=[stopping] if early_stopping else [],
        seed=seed,
        device=device,
        progress=verbose,
    )
    fit = partial(trainer.fit, x, held_out, batch_size=batch_size, drop_last=True)
    hide = partial(hide_entries, share_of_rows=0.5 if bool(torch.isnan(x).any()) else 0.2)
    history = fit(epochs=epochs, transform=hide)
    decay = math.ceil(DECAY * len(history))
    if max_epochs is not None:
        decay = min(decay, max_epochs - len(history))
    if decay > 0:
        trainer.optimization = replace(optimization, schedule="cosine")
        history = fit(epochs=decay, transform=hide)
    return vae.cpu(), history


def compose_vae(
    columns: MixedLikelihood,
    width: int,
    *,
    latent_dim: int | Literal["auto"],
    hidden: Sequence[int] | Literal["auto"],
    seed: int,
) -> VAE:
    """Return an untrained VAE of rows ``(D,)``."""
    size = max(2, min(MAX_LATENT, width // 2 + 1)) if latent_dim == "auto" else latent_dim
    widths = HIDDEN if hidden == "auto" else tuple(hidden)
    with forked_rng(torch.device("cpu"), derive_seed(seed, Stream.ORDER)):
        likelihood = MaskedLikelihood(columns, show_mask=True)
        network = MLP(likelihood.input_shape((width,)), widths, activation=nn.SiLU)
        decoder = MLP(size, widths[::-1], activation=nn.SiLU)
        encoder = GaussianEncoder(network, size)
        return VAE(encoder, decoder, likelihood, data_shape=(width,))


def choose_batch_size(num_rows: int) -> int:
    """Return the number of rows of an update."""
    return 64 if num_rows < 5_000 else 128 if num_rows < 50_000 else 256


def hide_entries(x: Tensor, generator: torch.Generator, share_of_rows: float) -> Tensor:
    """Return rows ``(B, D)`` of which some, a share on average, miss random entries."""
    draw = partial(torch.rand, generator=generator, device=x.device, dtype=x.dtype)
    chosen = draw((len(x), 1)) < share_of_rows
    return x.masked_fill(draw(x.shape) < MOST_HIDDEN * draw((len(x), 1)) * chosen, math.nan)


def split_rows(num_rows: int, validation_fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return the indices of the rows to train on and of those to hold out, both at least one.

    Example:
        >>> train, held_out = split_rows(20, 0.1, seed=0)
        >>> len(train), len(held_out)
        (18, 2)
    """
    num_held_out = min(max(1, round(validation_fraction * num_rows)), num_rows - 1, MAX_HELD_OUT)
    order = epoch_order(num_rows, seed, epoch=0)
    return order[num_held_out:].sort().values, order[:num_held_out].sort().values
