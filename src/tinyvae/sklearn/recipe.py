"""The recipe that all estimators train by: one architecture and one schedule for every table.

The settings were chosen on other data than those of the benchmarks of tables.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Literal, TypeAlias

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

PriorName: TypeAlias = Literal["normal", "autoregressive"]

HIDDEN = (128, 128)
MAX_LATENT = 32
NUM_SAMPLES = 5  # one sample leaves weak dependences between columns unused
UPDATES, MIN_EPOCHS = 2500, 5  # at most and at least, before the learning rate decays
PATIENCE = 500  # updates
DECAY = 0.25  # length of the decay, as a share of the updates before it
MAX_HELD_OUT = 10_000  # rows
MOST_HIDDEN = 0.5  # largest share of the entries of a row that training hides

# With an autoregressive prior, which is as flexible as it is easy to ignore the latent.
ANNEALED_HIDDEN = (256, 256)
ANNEALED_UPDATES = 4000
FIRST_BETA = 0.1


def fit_vae(
    columns: MixedLikelihood,
    x: Tensor,
    *,
    prior: PriorName = "normal",
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

    With the prior N(0, I), the learning rate is constant until the bound of held-out rows no longer
    rises, and then decays. With an autoregressive prior, the weight of the KL rises to 1 over the
    first half of the run. Without that, the model would ignore the latent. Training hides entries
    of some rows, so that the posterior also fits rows with missing values.

    Args:
        columns: Likelihood of the columns.
        x: Rows ``(N, D)``. NaN is missing.
        prior: ``"normal"`` for scores and imputation, ``"autoregressive"`` for synthetic rows.
        latent_dim: Number of latent dimensions.
        hidden: Widths of the hidden layers of the encoder and, reversed, of the decoder.
        max_epochs: Largest number of epochs. None chooses it by the number of rows.
        early_stopping: True to hold out the rows of :func:`split_rows` and to keep the weights of
            the best epoch.
        validation_fraction: Share of the rows that are held out, at most 10,000 rows.
        seed: Seed of the weights and of the run.
        device: Device of the training.
        verbose: True to report progress.
    """
    width, held_out = x.shape[1], None
    vae = compose_vae(columns, width, prior, latent_dim=latent_dim, hidden=hidden, seed=seed)
    if early_stopping:
        train, validation = split_rows(len(x), validation_fraction, seed)
        x, held_out = x[train], x[validation]
    vae.init_output_bias(x)
    is_annealed = prior == "autoregressive"
    batch_size = min(len(x), choose_batch_size(len(x)))
    steps = len(x) // batch_size  # of an epoch
    updates = ANNEALED_UPDATES if is_annealed else UPDATES
    epochs = max(MIN_EPOCHS, math.ceil(updates / steps))
    if max_epochs is not None:
        epochs = min(epochs, max_epochs if is_annealed else max(1, round(max_epochs / (1 + DECAY))))
    objective = (
        ELBO(beta=Linear(FIRST_BETA, 1.0, fraction=0.5)) if is_annealed else IWAE(NUM_SAMPLES)
    )
    patience = epochs if is_annealed else max(2, math.ceil(PATIENCE / steps))
    stopping = EarlyStopping(
        f"validation/{'elbo' if is_annealed else 'iwae'}_nats", patience=patience
    )
    has_parameters = any(True for _ in columns.parameters())
    optimization = Optimization(
        2e-3 if is_annealed else 3e-3,
        optimizer=partial(AdamW, fused=True),
        learning_rates={"likelihood": 1e-2} if has_parameters else {},
        schedule="cosine" if is_annealed else "constant",
        clip_norm=10.0,
    )
    trainer = Trainer(
        vae,
        objective,
        optimization,
        callbacks=[stopping] if early_stopping else [],
        seed=seed,
        device=device,
        progress=verbose,
    )
    share_of_rows = 0.5 if bool(torch.isnan(x).any()) else 0.2
    fit = partial(
        trainer.fit,
        x,
        held_out,
        batch_size=batch_size,
        drop_last=True,
        transform=partial(hide_entries, share_of_rows=share_of_rows),
    )
    history = fit(epochs=epochs)
    decay = 0 if is_annealed else math.ceil(DECAY * len(history))
    if max_epochs is not None:
        decay = min(decay, max_epochs - len(history))
    if decay > 0:
        trainer.optimization = replace(optimization, schedule="cosine")
        history = fit(epochs=decay)
    return vae.cpu(), history


def compose_vae(
    columns: MixedLikelihood,
    width: int,
    prior: PriorName = "normal",
    *,
    latent_dim: int | Literal["auto"],
    hidden: Sequence[int] | Literal["auto"],
    seed: int,
) -> VAE:
    """Return an untrained VAE of rows ``(D,)``."""
    size = max(2, min(MAX_LATENT, width // 2 + 1)) if latent_dim == "auto" else latent_dim
    default = ANNEALED_HIDDEN if prior == "autoregressive" else HIDDEN
    widths = default if hidden == "auto" else tuple(hidden)
    with forked_rng(torch.device("cpu"), derive_seed(seed, Stream.ORDER)):
        likelihood = MaskedLikelihood(columns, show_mask=True)
        network = MLP(likelihood.input_shape((width,)), widths, activation=nn.SiLU)
        decoder = MLP(size, widths[::-1], activation=nn.SiLU)
        density = AutoregressivePrior(size) if prior == "autoregressive" else None
        encoder = GaussianEncoder(network, size)
        return VAE(encoder, decoder, likelihood, density, data_shape=(width,))


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
