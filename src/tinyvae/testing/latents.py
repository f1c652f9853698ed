"""Contracts of an encoder and of a prior."""

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tinyvae.core.random import forked_rng
from tinyvae.distributions import (
    Distribution,
    Independent,
    JointDistribution,
    Laplace,
    Normal,
    OneHotCategorical,
    SphereUniform,
    has_closed_form,
    kl_divergence,
    log_prob_of_draws,
)
from tinyvae.encoders import Encoder
from tinyvae.priors import Prior
from tinyvae.testing.contract import (
    cast,
    perturbed,
    rebuilt,
    require,
    require_close,
    require_gradients,
    require_slope,
)
from tinyvae.testing.distributions import (
    check_agreement,
    check_moments,
    check_precision,
    check_shapes,
    check_values,
)

BATCH = 5

Rows = slice | Tensor


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
    """Raise if an encoder breaks its contract.

    The checks are: shapes for batches of 1 and 5 and several draws; float32 against float64;
    permuted and chunked batches; draws of two examples, which share no noise; gradients of
    ``log_prob`` in the value and in every parameter, against finite differences; draws with
    gradients in every parameter if ``has_rsample`` is True, and without gradients otherwise; mean
    and point estimate; a description that builds an equal encoder; closed forms of the KL
    divergence to ``prior`` and to standard distributions, against draws. Parameters that no density
    depends on (of a point, of codes, of latents that are partly discrete) may get their gradients
    from draws or ``losses``.

    The first example's posterior is checked for a total mass of one and draws that agree with
    ``log_prob``: by importance sampling for up to 3 dimensions, in R^D, in a simplex or on a
    sphere; for :class:`~tinyvae.distributions.Independent` element by element; for
    :class:`~tinyvae.distributions.JointDistribution` part by part; for discrete latents by the
    values drawn.

    The checks do not cover the agreement of draws and density in more dimensions and on other
    surfaces, pathwise gradients of draws, and training mode.

    The checks use a copy in evaluation mode. The global random state does not change.

    Args:
        encoder: The encoder.
        inputs: At least 5 inputs, ``(N, *E)``.
        context: Condition of the encoder, ``(N, ...)``, if it reads one.
        prior: Prior for which the KL divergence is also checked.
        spread: Standard deviation of noise that is added to the parameters, divided by the square
            root of the number of inputs of a weight. Weights that start at zero would hide faults.
        num_draws: Number of draws that are compared with ``log_prob``.
        seed: Seed of noise and draws.

    Raises:
        ContractError: If it breaks the contract. The message names the first fault.

    Example:
        >>> from tinyvae.testing import check_encoder
        >>> encoder = GaussianEncoder(MLP(4, hidden=(8,)), latent_dim=2)
        >>> check_encoder(encoder, torch.randn(5, 4))
        >>> class Elementwise(Encoder):
        ...     latent_shape = torch.Size((2,))
        ...     def forward(self, x, context=None):
        ...         return Normal(x[:, :2], x[:, 2:])
        >>> check_encoder(Elementwise(), torch.randn(5, 4))
        Traceback (most recent call last):
            ...
        tinyvae.testing.contract.ContractError: expected batch_shape (5,) and event_shape (2,), ...
    """
    _require_rows("inputs", inputs)
    _require_rows("context", context)
    with forked_rng(torch.device("cpu"), seed):
        _run(_Case(perturbed(encoder, spread), inputs, context, prior, None, num_draws))


def check_prior(
    prior: Prior,
    context: Tensor | None = None,
    *,
    encoder: Encoder | None = None,
    spread: float = 0.25,
    num_draws: int = 10_000,
    seed: int = 0,
) -> None:
    """Raise if a prior breaks its contract.

    See :func:`check_encoder` for the checks. A prior that reads no context has ``batch_shape``
    ``()``, also if it gets a context.

    Args:
        prior: The prior.
        context: Condition of the prior, at least 5 rows, if it reads one.
        encoder: The VAE's encoder, for a prior that consists of posteriors.
        spread: See :func:`check_encoder`.
        num_draws: See :func:`check_encoder`.
        seed: See :func:`check_encoder`.

    Raises:
        ContractError: If it breaks the contract. The message names the first fault.

    Example:
        >>> from tinyvae.testing import check_prior
        >>> check_prior(MixturePrior(2, num_components=3))
        >>> class Loud(Prior):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.latent_shape = torch.Size((2,))
        ...         self.prior = StandardNormal(2)
        ...     def forward(self, context=None, *, encoder=None):
        ...         p = self.prior(context)
        ...         p.sample = lambda shape=(): 2 * type(p).sample(p, shape)
        ...         return p
        >>> check_prior(Loud())
        Traceback (most recent call last):
            ...
        tinyvae.testing.contract.ContractError: sample() does not agree with log_prob along ...
    """
    _require_rows("context", context)
    with forked_rng(torch.device("cpu"), seed):
        _run(_Case(perturbed(prior, spread), None, context, None, encoder, num_draws))


def _require_rows(name: str, value: Tensor | None) -> None:
    if value is not None and len(value) < BATCH:
        raise ValueError(f"the check expects at least {BATCH} rows of {name}, got {len(value)}")


@dataclass(frozen=True)
class _Case:
    """Encoder or prior, in float64, with the arguments of its calls."""

    part: Encoder | Prior
    inputs: Tensor | None  # of an encoder
    context: Tensor | None
    prior: Prior | None  # of an encoder
    encoder: Encoder | None  # of a prior
    num_draws: int

    def make(
        self,
        rows: Rows = slice(BATCH),
        part: Encoder | Prior | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> Distribution:
        """Return the distribution of some rows of the batch."""
        part = self.part if part is None else part
        context = None if self.context is None else cast(self.context[:BATCH][rows], dtype)
        p: Distribution
        if self.inputs is not None:
            inputs = cast(self.inputs[:BATCH][rows], dtype)
            p = part(inputs) if context is None else part(inputs, context)
        else:
            encoder = copy.deepcopy(self.encoder)
            if encoder is not None:
                encoder = encoder.float().to(dtype).eval()
            p = part(context, encoder=encoder)
        return p

    def values(self) -> Tensor:
        """Return draws for each row of the batch, ``(B, *L)``."""
        with torch.no_grad():
            p = self.make()
            return p.sample(() if p.batch_shape else (BATCH,)).clone()

    def batch_shapes(self, size: int) -> tuple[tuple[int, ...], ...]:
        """Return the batch shapes that are allowed."""
        if self.inputs is not None:
            return ((size,),)
        return ((),) if self.context is None else ((size,), ())


def _run(case: _Case) -> None:
    _check_types(case)
    for size in (BATCH, 1):
        check_shapes(case.make(slice(size)), case.batch_shapes(size), case.part.latent_shape)
    with torch.no_grad():
        check_values(case.make())
        _check_batches(case)
        narrow = case.make(part=copy.deepcopy(case.part).float(), dtype=torch.float32)
        check_precision(narrow, case.make(), 1e-3)
    _check_gradients(case)
    with torch.no_grad():
        _check_description(case)
        check_moments(case.make(), case.num_draws)
        check_agreement(case.make(slice(1)), case.num_draws)
        _check_divergences(case)


def _check_types(case: _Case) -> None:
    shape = getattr(case.part, "latent_shape", None)
    require(
        isinstance(shape, torch.Size),
        f"latent_shape: expected a torch.Size, got {shape!r}: set it in the constructor",
    )
    p = case.make()
    is_distribution = isinstance(p, Distribution)
    require(is_distribution, f"forward: expected a Distribution, got a {type(p).__name__}")
    if isinstance(case.part, Encoder):
        require(
            case.part.is_density == p.is_density,
            f"is_density: the encoder's is {case.part.is_density}, its posterior's {p.is_density}",
        )


def _check_batches(case: _Case) -> None:
    """Raise unless rows are independent of each other."""
    z, order = case.values(), torch.randperm(BATCH)
    parts = [slice(0, 2), slice(2, BATCH)]
    p, permuted = case.make(), case.make(order)
    chunks = [case.make(part) for part in parts]
    if p.batch_shape:
        center, what = p.point_estimate(), "point_estimate() of a"
        require_close(permuted.point_estimate(), center[order], f"{what} permuted batch")
        joined = torch.cat([chunk.point_estimate() for chunk in chunks])
        require_close(joined, center, f"{what} batch in two chunks")
    if p.is_density:
        log_prob = p.log_prob(z)
        moved = permuted.log_prob(z[order])
        require_close(moved, log_prob[order], "log_prob of a permuted batch", 1e-8)
        pairs = zip(chunks, parts, strict=True)
        joined = torch.cat([chunk.log_prob(z[part]) for chunk, part in pairs])
        require_close(joined, log_prob, "log_prob of a batch in two chunks", 1e-8)


def _check_gradients(case: _Case) -> None:
    p, z = case.make(), case.values()
    names = [name for name, parameter in case.part.named_parameters() if parameter.requires_grad]
    draws = p.sample(() if p.batch_shape else (BATCH,))
    log_prob = p.log_prob(z)
    trained = [("log_prob", log_prob)]
    if p.has_rsample:
        weight = torch.randn_like(draws)  # the sum of a draw's elements may be constant
        by_draws = [("sample()", draws * weight), ("losses", _losses(p))]
        require_gradients(case.part, names, by_draws)
        no_gradient = p.is_discrete is not False and not log_prob.requires_grad
        if no_gradient or p.is_discrete is None or not p.is_density:
            trained += by_draws
    else:
        require(not draws.requires_grad, "sample(): draws have a gradient, has_rsample is False")
    require_gradients(case.part, names, trained)
    if log_prob.requires_grad and p.is_discrete is not None:
        parameters = [case.part.get_parameter(name) for name in names]
        require_slope(lambda: case.make().log_prob(z).sum(), parameters, "the parameters")
    if p.is_density and p.is_discrete is False:
        value = z.requires_grad_()
        require_slope(lambda: case.make().log_prob(value).sum(), [value], "the value")


def _losses(p: Distribution) -> Tensor:
    """Return the sum of a distribution's losses, and those of the parts of a joint distribution."""
    losses = [loss.sum() for loss in p.losses.values()]
    if isinstance(p, JointDistribution):
        losses += [_losses(part) for part in p.parts.values()]
    return sum(losses, torch.zeros(()))


def _check_description(case: _Case) -> None:
    z, got, expected = case.values(), case.make(part=rebuilt(case.part)), case.make()
    same = torch.equal(got.log_prob(z), expected.log_prob(z))
    require(
        same and torch.equal(got.point_estimate(), expected.point_estimate()),
        "config(): the rebuilt part, with the same state_dict, has another log_prob: is an "
        "argument missing, or a buffer not saved?",
    )


def _check_divergences(case: _Case) -> None:
    if case.inputs is None:
        return
    q = case.make()
    _check_kl(q, _standard(q), case.num_draws)
    if case.prior is not None:
        prior = copy.deepcopy(case.prior).double().eval()
        context = None if case.context is None else cast(case.context[:BATCH], torch.float64)
        _check_kl(q, [prior(context, encoder=case.part)], case.num_draws)


def _standard(q: Distribution) -> list[Distribution]:
    """Return standard distributions on the latents of q. Some have a closed form."""
    zero = torch.zeros(q.event_shape, dtype=torch.float64)
    standard = [Independent(family(zero, zero), zero.dim()) for family in (Normal, Laplace)]
    return [*standard, SphereUniform(zero), OneHotCategorical(zero, zero.dim())]


def _check_kl(q: Distribution, priors: list[Distribution], num_draws: int) -> None:
    """Raise unless closed forms of the KL divergence, if there are any, agree with draws."""
    if isinstance(q, JointDistribution):
        for name, part in q.parts.items():
            matching = [p.parts[name] for p in priors if isinstance(p, JointDistribution)]
            _check_kl(part, matching or _standard(part), num_draws)
        return
    for p in priors:
        if not has_closed_form(q, p):
            continue
        kl, z = kl_divergence(q, p), q.sample((num_draws,))
        require((kl >= 0).all(), f"KL to {p}: expected >= 0, got {kl.tolist()}")
        ratio = q.log_prob(z.clone()) - log_prob_of_draws(q, p, z)
        got, error = ratio.mean(0), ratio.std(0) / math.sqrt(num_draws)
        off = (got - kl).abs() > 4 * error + 1e-8 * (1 + kl)
        require(
            not off.any(),
            f"KL to {p}: the closed form says {kl.tolist()}, but log q - log p at draws "
            f"{got.tolist()} (error {error.tolist()})",
        )
