"""The recipe that all estimators train by: one architecture and one schedule for every table.

The settings were chosen on other data than those of the benchmarks of tables.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from tinyvae.core.random import Stream, derive_seed, epoch_order, forked_rng
from tinyvae.encoders import GaussianEncoder
from tinyvae.likelihoods import MaskedLikelihood, MixedLikelihood
from tinyvae.models import VAE
from tinyvae.networks import MLP
from tinyvae.objectives import ELBO, IWAE
from tinyvae.priors import AutoregressivePrior
from tinyvae.schedules import Linear
from tinyvae.training import EarlyStopping, History, Optimization, Trainer

HIDDEN = (256, 256)
MAX_LATENT = 32
FEW_ROWS = 500  # below it, a prior of many parameters follows the noise
UPDATES, MIN_STEPS = 2000, 20  # of the warm-up and of the training each; of an epoch at least
FIRST_BETA = 0.1
NUM_SAMPLES = 5  # one sample leaves weak dependences between columns unused
UPDATES_PER_ROW = 8  # with few rows, at most
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

    A warm-up maximizes the ELBO while the weight of the KL rises from 0.1 to 1: without it, a
    model with an autoregressive prior would ignore the latent. Then the importance-weighted bound
    is maximized at a learning rate that falls to zero. With fewer than 500 rows the prior is
    N(0, I), and there is no warm-up. Training hides entries of some rows, so that the posterior
    also fits rows with missing values.

    Args:
        columns: Likelihood of the columns.
        x: Rows ``(N, D)``. NaN is missing.
        latent_dim: Number of latent dimensions.
        hidden: Widths of the hidden layers of the encoder and, reversed, of the decoder.
        max_epochs: Number of epochs, of which half are the warm-up. None chooses it by the number
            of rows; an epoch of few rows then passes over them several times.
        early_stopping: True to hold out the rows of :func:`split_rows` and to keep the weights of
            the epoch after the warm-up that fits them best.
        validation_fraction: Share of the rows that are held out, at most 10,000 rows.
        seed: Seed of the weights and of the run.
        device: Device of the training.
        verbose: True to report progress.

    Returns:
        The model, and the history after the warm-up.
    """
    has_few_rows, held_out = len(x) < FEW_ROWS, None
    vae = compose_vae(
        columns, x.shape[1], latent_dim=latent_dim, hidden=hidden, simple=has_few_rows, seed=seed
    )
    updates = min(UPDATES, UPDATES_PER_ROW * len(x))
    if early_stopping:
        train, validation = split_rows(len(x), validation_fraction, seed)
        x, held_out = x[train], x[validation]
    vae.init_output_bias(x)
    batch_size = min(len(x), choose_batch_size(len(x)))
    if max_epochs is None:
        x = x.repeat(math.ceil(MIN_STEPS / (len(x) // batch_size)), 1)
        epochs = math.ceil(updates / (len(x) // batch_size))
        warm_up = 0 if has_few_rows else epochs
    else:
        warm_up = 0 if has_few_rows else max_epochs // 2
        epochs = max_epochs - warm_up
    has_parameters = any(True for _ in columns.parameters())
    optimization = Optimization(
        2e-3,
        optimizer=partial(AdamW, fused=True),
        learning_rates={"likelihood": 1e-2} if has_parameters else {},
        clip_norm=10.0,
    )
    share_of_rows = 0.5 if bool(torch.isnan(x).any()) else 0.2
    transform = partial(hide_entries, share_of_rows=share_of_rows)
    options: dict[str, Any] = {"batch_size": batch_size, "drop_last": True, "transform": transform}
    settings: dict[str, Any] = {"seed": seed, "device": device, "progress": verbose}
    if warm_up:
        objective = ELBO(beta=Linear(FIRST_BETA, 1.0, fraction=1.0))
        Trainer(vae, objective, optimization, **settings).fit(x, epochs=warm_up, **options)
    stopping = EarlyStopping("validation/iwae_nats", patience=epochs)
    trainer = Trainer(
        vae,
        IWAE(NUM_SAMPLES),
        replace(optimization, schedule="cosine"),
        callbacks=[stopping] if early_stopping else [],
        **settings,
    )
    history = trainer.fit(x, held_out, epochs=epochs, **options)
    return vae.cpu(), history


def compose_vae(
    columns: MixedLikelihood,
    width: int,
    *,
    latent_dim: int | Literal["auto"],
    hidden: Sequence[int] | Literal["auto"],
    simple: bool,
    seed: int,
) -> VAE:
    """Return an untrained VAE of rows ``(D,)``, with the prior N(0, I) if it is to be simple."""
    size = max(2, min(MAX_LATENT, width // 2 + 1)) if latent_dim == "auto" else latent_dim
    widths = HIDDEN if hidden == "auto" else tuple(hidden)
    with forked_rng(torch.device("cpu"), derive_seed(seed, Stream.ORDER)):
        likelihood = MaskedLikelihood(columns, show_mask=True)
        network = MLP(likelihood.input_shape((width,)), widths, activation=nn.SiLU)
        decoder = MLP(size, widths[::-1], activation=nn.SiLU)
        prior = None if simple or size < 2 else AutoregressivePrior(size)
        encoder = GaussianEncoder(network, size)
        return VAE(encoder, decoder, likelihood, prior, data_shape=(width,))


def choose_batch_size(num_rows: int) -> int:
    """Return the number of rows of an update."""
    return 64 if num_rows < 5_000 else 128 if num_rows < 50_000 else 256


def hide_entries(x: Tensor, generator: torch.Generator, share_of_rows: float) -> Tensor:
    """Return rows ``(B, D)`` with random entries removed in a share of the rows, on average."""
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
