"""Checks that the parts of a model fit together."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tinyvae.core.random import forked_rng
from tinyvae.core.warnings import warn
from tinyvae.distributions import Distribution
from tinyvae.encoders import Encoder
from tinyvae.errors import PosteriorError
from tinyvae.models.output import LatentTerm
from tinyvae.priors import Prior

# The prior to recommend for each support.
PRIORS = {
    "reals": "StandardNormal",
    "the unit sphere": "SphereUniformPrior",
    "the simplex": "GumbelSoftmaxPrior",
    "one-hot values": "CategoricalPrior",
    "codes": "CodePrior",
}


def require_part(owner: str, value: object, cls: type, name: str, remedy: str) -> None:
    """Raise unless the argument ``name`` of ``owner`` is a ``cls``."""
    if not isinstance(value, cls):
        raise TypeError(
            f"{owner} expects as {name} a {cls.__name__}, got a {type(value).__name__}: {remedy}"
        )


def require_latent_shape(owner: str, part: str, encoder: Encoder, prior: Encoder | Prior) -> None:
    """Raise unless a prior, or a generator, has the latent shape of its encoder."""
    if prior.latent_shape != encoder.latent_shape:
        raise ValueError(
            f"{owner} expects {part} over the encoder's latents {tuple(encoder.latent_shape)}, "
            f"got one over {tuple(prior.latent_shape)}"
        )


def check_supports(terms: tuple[LatentTerm, ...]) -> None:
    """Raise if posterior and prior have different supports, so that log q - log p is undefined."""
    for term in terms:
        q, p = term.posterior, term.prior
        if q.support != p.support:
            raise ValueError(
                f"the posterior of latent {term.name!r} is over {q.support}, its prior over "
                f"{p.support}: give a prior over {q.support}, such as "
                f"{PRIORS.get(q.support, 'another')}"
            )


def check_prior(make_prior: Callable[[], Distribution]) -> None:
    """Raise an error that names the prior if it cannot be made."""
    try:
        make_prior()
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"the prior fails for this context and encoder: {error}") from error


def describe_output(output: object) -> str:
    """Return the shape of a decoder's output per example, or its type if it is not a tensor."""
    return str(tuple(output.shape[1:])) if isinstance(output, Tensor) else type(output).__name__


def call_part(role: str, value: Tensor, call: Callable[[], Any]) -> Any:
    """Call a part. Errors name the part and its input."""
    try:
        return call()
    except PosteriorError:
        raise
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise ValueError(
            f"the {role} does not accept a batch of shape {tuple(value.shape)} and {value.dtype}"
            f" (is its in_shape {tuple(value.shape[1:])}, does it take the context?): {error}"
        ) from error


def mixes_rows(decode: Callable[[Tensor], Any], rows: Tensor) -> bool:
    """Return True, with a warning, if a decoder's output for a row depends on the other rows.

    Each of ``rows`` ``(B, *L)`` is decoded again next to copies of itself, with the same noise.
    """

    def decoded(batch: Tensor) -> Tensor:
        with forked_rng(rows.device, 0):
            output: Tensor = decode(batch)
        return output

    together = decoded(rows)
    alone = torch.stack([decoded(row.expand_as(rows))[i] for i, row in enumerate(rows)])
    rounding = 1e-5 * together.nan_to_num().abs().max().item()
    if torch.allclose(together, alone, rtol=0.0, atol=rounding, equal_nan=True):
        return False
    warn(
        "the decoder's output for an example depends on the other examples of its batch, also in "
        "evaluation mode, so reported values are no bound on log p(x). Layers such as nn.LSTM and "
        "nn.TransformerEncoder expect the batch in dimension 1 unless batch_first=True"
    )
    return True
