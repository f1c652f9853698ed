"""What does not fit together, and what to do about it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tinyvae.distributions import Distribution
from tinyvae.errors import PosteriorError
from tinyvae.models.output import LatentTerm

# Latents (K, B, *L) from a posterior over latents of a shape, whose batch shape is (B,) or (K, B),
# with their log density (K, B) if drawing yields it.
Draw = Callable[[torch.Size, Distribution], tuple[Tensor, Tensor | None]]
# The prior to recommend for each space.
PRIORS = {
    "reals": "StandardNormal",
    "the unit sphere": "SphereUniformPrior",
    "the simplex": "GumbelSoftmaxPrior",
    "one-hot values": "CategoricalPrior",
    "codes": "CodePrior",
}


def expect(owner: str, value: object, cls: type, name: str, remedy: str) -> None:
    """Raise unless a part is of its kind."""
    if not isinstance(value, cls):
        raise TypeError(
            f"{owner} expects as {name} a {cls.__name__}, got a {type(value).__name__}: {remedy}"
        )


def check_supports(terms: tuple[LatentTerm, ...]) -> None:
    """Raise where log q - log p would compare densities with respect to different measures."""
    for term in terms:
        q, p = term.posterior, term.prior
        if q.support != p.support:
            raise ValueError(
                f"the posterior of latent {term.name!r} is over {q.support}, its prior over "
                f"{p.support}: give a prior of its kind, such as {PRIORS.get(q.support, 'another')}"
            )


def check_prior(call: Callable[[], Distribution]) -> None:
    """Raise, and say that it is the prior, where one cannot be made."""
    try:
        call()
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"the prior cannot be made of context and encoder: {error}") from error


def point_estimate(_: torch.Size, posterior: Distribution) -> tuple[Tensor, None]:
    """One latent per example, ``(1, B, *L)``."""
    value = posterior.point_estimate()
    return value if len(posterior.batch_shape) == 2 else value.unsqueeze(0), None


def checked_point_estimate(batch: int) -> Draw:
    """As :func:`point_estimate`, of what is found to be a posterior of so many examples."""

    def draw(latent_shape: torch.Size, posterior: object) -> tuple[Tensor, None]:
        if not isinstance(posterior, Distribution):
            raise PosteriorError(
                f"an encoder must return a Distribution, q(z given x), got a "
                f"{type(posterior).__name__}: wrap its network as GaussianEncoder(network, "
                "latent_dim), or return Independent(Normal(mean, log_std), 1)"
            )
        fits = posterior.event_shape == latent_shape
        if not fits or tuple(posterior.batch_shape) not in ((batch,), (1, batch)):
            raise PosteriorError(
                f"the encoder's posterior should have batch_shape {(batch,)} and event_shape "
                f"latent_shape = {tuple(latent_shape)}, got {posterior}"
            )
        return point_estimate(latent_shape, posterior)

    return draw


def shape_of(value: object) -> str:
    """Shape per example of what a decoder returned, or its type if that is no tensor."""
    return str(tuple(value.shape[1:])) if isinstance(value, Tensor) else type(value).__name__


def attempt(role: str, value: Tensor, call: Any) -> Any:
    """Call a part; say which one failed on what."""
    try:
        return call()
    except PosteriorError:
        raise
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise ValueError(
            f"the {role} does not accept a batch of shape {tuple(value.shape)} and {value.dtype}"
            f" (is its in_shape {tuple(value.shape[1:])}, does it take the context?): {error}"
        ) from error
