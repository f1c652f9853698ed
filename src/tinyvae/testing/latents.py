"""The contracts of encoders and priors."""

import torch
from torch import Tensor

from tinyvae.core.random import forked_rng
from tinyvae.encoders import Encoder
from tinyvae.priors import Prior
from tinyvae.testing.cases import BATCH, CHECKS, Case
from tinyvae.testing.modules import perturbed


def check_encoder(
    encoder: Encoder,
    inputs: Tensor,
    context: Tensor | None = None,
    *,
    prior: Prior | None = None,
    spread: float = 0.25,
    num_draws: int = 10_000,
    seed: int = 0,
) -> None:
    """Hold an encoder against its contract.

    Checked: shapes for batches of 1 and 5 and for 1 and 3 draws; float32 against float64; permute_dims
    and chunked batches, and that two examples share no noise; gradients of ``log_prob`` in the
    value and in every parameter, against differences; draws that carry gradients into every
    parameter, or none, as ``has_rsample`` says; mean and center; a description from which an equal
    encoder is built. A parameter that no density depends on is trained by draws or ``losses``: of a
    point, of codes, and of what is discrete in part. Closed forms of the KL divergence, to
    ``prior`` and to the standard distributions, against draws.

    Total mass, and draws against ``log_prob``, are checked of the first example's posterior: by
    importance sampling for up to 3 dimensions, in R^D, in a simplex or on a sphere; of an
    :class:`~tinyvae.distributions.Independent` element by element; of a :class:`~tinyvae.JointDistribution` part by part; of
    discrete latents by the values drawn.

    Not checked: density and draws against each other in more dimensions and on other surfaces, that
    the gradient of draws is the right one, and training mode.

    It is done to a copy in evaluation mode; global random state is left as found.

    Args:
        encoder: The encoder.
        inputs: At least 5 of what it is fed, ``(N, *E)``.
        context: What it is conditioned on, ``(N, ...)``, if it reads one.
        prior: Prior whose KL divergences are checked too.
        spread: Standard deviation of the noise that parameters get first, divided by the square
            root of the number of inputs of weights: those that start at zero hide faults.
        num_draws: Draws that are compared with ``log_prob``.
        seed: Seed of noise and draws.

    Raises:
        ContractError: If it breaks the contract, with the first thing that is wrong.

    Example:
        >>> from tinyvae.testing import check_encoder
        >>> encoder = GaussianEncoder(MLP(4, hidden=(8,)), latent_dim=2)
        >>> check_encoder(encoder, torch.randn(5, 4))
        >>> class Sloppy(GaussianEncoder):
        ...     def posterior(self, features):
        ...         return Independent(Normal(*self.location_and_scale(features)), 0)
        >>> check_encoder(Sloppy(MLP(4), latent_dim=2), torch.randn(5, 4))
        Traceback (most recent call last):
            ...
        tinyvae.testing.contract.ContractError: expected batch_shape (5,) and event_shape (2,), ...
    """
    _require_rows("inputs", inputs)
    _require_rows("context", context)
    with forked_rng(torch.device("cpu"), seed):
        case = Case(perturbed(encoder, spread), inputs, context, prior, None, num_draws)
        for check in CHECKS:
            check(case)


def check_prior(
    prior: Prior,
    context: Tensor | None = None,
    *,
    encoder: Encoder | None = None,
    spread: float = 0.25,
    num_draws: int = 10_000,
    seed: int = 0,
) -> None:
    """Hold a prior against its contract.

    As :func:`check_encoder`. A prior that reads no context has ``batch_shape`` ``()``, with a
    context also.

    Args:
        prior: The prior.
        context: What it is conditioned on, at least 5 rows, if it reads one.
        encoder: The VAE's encoder, for a prior that is made of posteriors.
        spread: As of :func:`check_encoder`.
        num_draws: As of :func:`check_encoder`.
        seed: As of :func:`check_encoder`.

    Raises:
        ContractError: If it breaks the contract, with the first thing that is wrong.

    Example:
        >>> from tinyvae.testing import check_prior
        >>> check_prior(MixturePrior(2, num_components=3))
        >>> class Loud(StandardNormal):
        ...     def forward(self, context=None, *, encoder=None):
        ...         p = super().forward(context)
        ...         p.sample = lambda shape=(): 2 * Independent.sample(p, shape)
        ...         return p
        >>> check_prior(Loud(2))
        Traceback (most recent call last):
            ...
        tinyvae.testing.contract.ContractError: sample() does not agree with log_prob along ...
    """
    _require_rows("context", context)
    with forked_rng(torch.device("cpu"), seed):
        case = Case(perturbed(prior, spread), None, context, None, encoder, num_draws)
        for check in CHECKS:
            check(case)


def _require_rows(name: str, value: Tensor | None) -> None:
    if value is not None and len(value) < BATCH:
        raise ValueError(f"expected {name} of at least {BATCH} rows, got {len(value)}: give more")
