"""Checks that the parts of a model fit together."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tinyvae.core.random import forked_rng
from tinyvae.core.warnings import warn
from tinyvae.distributions import Distribution
from tinyvae.encoders import Encoder
from tinyvae.errors import PosteriorError
from tinyvae.likelihoods import Likelihood
from tinyvae.models.output import LatentTerm
from tinyvae.priors import Prior

T = TypeVar("T")

DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

# The prior to recommend for each support.
PRIORS = {
    "reals": "StandardNormal",
    "the unit sphere": "SphereUniformPrior",
    "the simplex": "GumbelSoftmaxPrior",
    "one-hot values": "CategoricalPrior",
    "codes": "CodePrior",
}


def require_part(owner: str, value: object, cls: type, name: str, remedy: str) -> None:
    """Raise unless the argument ``name`` of ``owner`` is a ``cls`` with a shape of its latents."""
    kind = f"an {cls.__name__}" if cls is Encoder else f"a {cls.__name__}"
    if isinstance(value, type) and issubclass(value, cls):
        raise TypeError(
            f"{owner} expects as {name} {kind}, got the class {value.__name__}: make an object of "
            f"it, {value.__name__}(...)"
        )
    if not isinstance(value, cls):
        raise TypeError(
            f"{owner} expects as {name} {kind}, got an instance of {type(value).__name__}: {remedy}"
        )
    if isinstance(value, Encoder | Prior) and getattr(value, "latent_shape", None) is None:
        raise TypeError(
            f"{owner} expects as {name} {kind} with a latent_shape, got {type(value).__name__} "
            "without one: set self.latent_shape = torch.Size((latent_dim,)) in its constructor"
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


def refuse_dropout(parts: Iterable[nn.Module]) -> None:
    """Raise if a part would drop other units in a second pass."""
    layers = (layer for part in parts for layer in part.modules())
    if any(isinstance(m, DROPOUT) and m.training and m.p for m in layers):
        raise ValueError(
            "freeze_posterior scores draws in a second pass, in which dropout would drop other "
            "units: use estimator='pathwise', or dropout in the decoder only"
        )


def check_prior(make_prior: Callable[[], Distribution]) -> None:
    """Raise an error that names the prior if it cannot be made."""
    try:
        make_prior()
    except NotImplementedError:  # by torch, for an operation that the device lacks
        raise
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"the prior fails for this context and encoder: {error}") from error


def require_distribution(output: object, event_ndim: int) -> Distribution:
    """Return an encoder's output. Raise, with the remedy, unless it is a Distribution."""
    if isinstance(output, Distribution):
        return output
    got = "a tensor" if isinstance(output, Tensor) else describe_output(output)
    raise PosteriorError(
        f"an encoder must return a Distribution, q(z given x), got {got}: "
        f"{_advise_posterior(output, event_ndim)}"
    )


def check_posterior(output: object, latent_shape: torch.Size, batch_size: int) -> None:
    """Raise, with the remedy, unless an encoder's output is a posterior of the latent."""
    event_ndim = len(latent_shape)
    posterior = require_distribution(output, event_ndim)
    batch_fits = posterior.batch_shape[-1:] == (batch_size,) and len(posterior.batch_shape) <= 2
    if posterior.event_shape != latent_shape or not batch_fits:
        shape = posterior.batch_shape + posterior.event_shape
        is_elementwise = shape == (batch_size, *latent_shape)
        raise PosteriorError(
            f"the encoder's posterior must have batch_shape {(batch_size,)} and event_shape "
            f"latent_shape = {tuple(latent_shape)}, got {posterior}"
            + (f": return Independent(posterior, {event_ndim})" if is_elementwise else "")
        )


def _advise_posterior(output: object, event_ndim: int) -> str:
    wrapped = "wrap its network as GaussianEncoder(network, latent_dim)"
    if isinstance(output, torch.distributions.Distribution):
        is_elementwise = not output.event_shape
        q = f"torch.distributions.Independent(q, {event_ndim})" if is_elementwise else "q"
        return f"return TorchDistribution({q}) of tinyvae.distributions"
    if isinstance(output, Tensor):
        return f"{wrapped}, or return Delta(z, {event_ndim}) for a point without noise"
    return (
        f"return Independent(Normal(mean, log_std), {event_ndim}) of tinyvae.distributions, where "
        f"log_std is half the log variance, or {wrapped}, which computes both"
    )


def check_params(
    owner: str, likelihood: Likelihood, output: object, data_shape: Sequence[int] | None
) -> Tensor:
    """Return a decoder's output. Raise, with the remedy, unless it has the shape of parameters.

    Without a ``data_shape`` only its type is checked.
    """
    expected = None if data_shape is None else likelihood.param_shape(data_shape)
    if isinstance(output, Tensor) and (expected is None or output.shape[1:] == expected):
        return output
    unknown = f"({likelihood.num_params}, *E)" if likelihood.num_params > 1 else "E"
    shape = unknown if expected is None else str(tuple(expected))
    data = "" if data_shape is None else f" on data of shape {tuple(data_shape)}"
    raise ValueError(
        f"{likelihood}{data} needs a decoder that returns {shape} per example, got "
        f"{describe_output(output)}: {_advise_params(owner, likelihood, output, data_shape)}"
    )


def _advise_params(
    owner: str, likelihood: Likelihood, output: object, data_shape: Sequence[int] | None
) -> str:
    count = likelihood.num_params
    names = "mean, log_scale" if count == 2 else "first, ..., last"
    stack = (
        f"its {count} parameters along the first axis, in the order of the class's docstring, such "
        f"as torch.stack(({names}), 1)" + ", where log_scale is half a log variance" * (count == 2)
    )
    if isinstance(output, (Distribution, torch.distributions.Distribution)):
        return "return its parameters; the likelihood makes the distribution"
    if not isinstance(output, Tensor) or data_shape is None:
        if count == 1:
            return (
                "return one tensor, the likelihood's only parameter. If the decoder also predicts "
                "a scale, give a likelihood that reads it, such as GaussianLikelihood('predicted')"
            )
        return f"return one tensor with {stack}"
    expected, got = likelihood.param_shape(data_shape), output.shape[1:]
    if len(got) > 1 and got == (*expected[1:], expected[0]):
        return "put parameters, then channels first, output.movedim(-1, 1)"
    if got.numel() == expected.numel():
        return f"return output.reshape(-1, {', '.join(map(str, expected))})"
    shape = f"give it out_shape={tuple(expected)}"
    if count > 1 and got == data_shape:
        return f"{shape}, or return {stack}"
    return f"{shape}, or build {owner} with data_shape={tuple(data_shape)}"


def require_densities(
    likelihood: Likelihood, distribution: Distribution, z: Tensor, latent_shape: torch.Size
) -> Distribution:
    """Return p(x given z). Raise unless it has one density for each of ``z`` ``(*S, *L)``."""
    expected = z.shape[: z.dim() - len(latent_shape)]
    if distribution.batch_shape != expected:
        raise ValueError(
            f"{type(likelihood).__name__} expects a distribution of batch_shape {tuple(expected)}, "
            f"got batch_shape {tuple(distribution.batch_shape)} and event_shape "
            f"{tuple(distribution.event_shape)}: return a scalar distribution of each element from "
            "elementwise, without Independent, because the library sums over the dimensions"
        )
    return distribution


def describe_output(output: object) -> str:
    """Return the shape of a part's output per example, or its type if it is not a tensor."""
    match output:
        case Tensor():
            return str(tuple(output.shape[1:]))
        case tuple() | list():
            parts = ", ".join(type(part).__name__ for part in output[:3])
            return f"a {type(output).__name__} of {len(output)} ({parts})"
        case dict():
            return f"a dict of {', '.join(map(repr, list(output)[:3]))}"
        case torch.distributions.Distribution():
            return f"a torch.distributions.{type(output).__name__}"
    return f"a {type(output).__name__}"


def call_part(
    role: str, value: Tensor, call: Callable[[], T], advise: Callable[[Exception], str]
) -> T:
    """Call a part. Errors name the part and its input ``value``, and end with the advice."""
    try:
        return call()
    except (PosteriorError, torch.OutOfMemoryError, NotImplementedError):
        raise  # the last one by torch, for an operation that the device lacks
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        advice = advise(error)
        raise ValueError(
            f"the {role} does not accept a batch of shape {tuple(value.shape)} and {value.dtype}: "
            f"{error}{advice and f' ({advice})'}"
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


def advise_part(part: nn.Module, value: Tensor, context: Tensor | None, error: Exception) -> str:
    """Return a hint why a part does not accept ``value`` ``(N, ...)`` and the context."""
    if isinstance(error, TypeError):
        if context is None:
            return "does it need a context? give context="
        return "does it take the context as its second argument?"
    first = next((layer for layer in part.modules() if isinstance(layer, LAYERS)), None)
    if not isinstance(error, RuntimeError):
        return ""
    if context is not None and context.dim() == 1 and value.dim() > 1:
        return (
            f"the context is {tuple(context.shape)} of {context.dtype}: give rows, for classes "
            "torch.nn.functional.one_hot(labels).float()"
        )
    if first is None:
        return ""
    flattens = isinstance(first, nn.Linear) and value[0].numel() == first.in_features
    needs_flatten = flattens and value.shape[-1] != value[0].numel()
    return f"its first layer is {first}" + ", put nn.Flatten() before it" * needs_flatten
