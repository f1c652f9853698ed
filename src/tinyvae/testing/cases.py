"""What is checked of an encoder or a prior, one after another."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

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
from tinyvae.testing.agreement import check_agreement, check_moments
from tinyvae.testing.contract import require, require_close
from tinyvae.testing.modules import cast, require_gradients, require_slope, twin_of

BATCH = 5

Rows = slice | Tensor


@dataclass(frozen=True)
class Case:
    """An encoder or a prior, in float64, and what it is called with."""

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
        made: Distribution
        if self.inputs is not None:
            inputs = cast(self.inputs[:BATCH][rows], dtype)
            made = part(inputs) if context is None else part(inputs, context)
        else:
            encoder = copy.deepcopy(self.encoder)
            if encoder is not None:
                encoder = encoder.float().to(dtype).eval()
            made = part(context, encoder=encoder)
        return made

    def values(self) -> Tensor:
        """Draws for each of the batch, ``(B, *L)``."""
        with torch.no_grad():
            p = self.make()
            return p.sample(() if p.batch_shape else (BATCH,)).clone()

    def batches(self, size: int) -> tuple[tuple[int, ...], ...]:
        """Batch shapes that are expected."""
        if self.inputs is not None:
            return ((size,),)
        return ((),) if self.context is None else ((size,), ())


def _check_kind(case: Case) -> None:
    shape = getattr(case.part, "latent_shape", None)
    require(
        isinstance(shape, torch.Size),
        f"latent_shape: expected a torch.Size, got {shape!r}: set it in the constructor",
    )
    p = case.make()
    require(
        isinstance(p, Distribution),
        f"forward: expected a Distribution, got a {type(p).__name__}",
    )
    if isinstance(case.part, Encoder):
        require(
            case.part.is_density == p.is_density,
            f"is_density: the encoder's is {case.part.is_density}, its posterior's {p.is_density}",
        )


def _check_shapes(case: Case) -> None:
    latent_shape = tuple(case.part.latent_shape)
    for size in (BATCH, 1):
        p = case.make(slice(size))
        batch, expected = tuple(p.batch_shape), case.batches(size)
        require(
            batch in expected and tuple(p.event_shape) == latent_shape,
            f"expected batch_shape {' or '.join(map(str, expected))} and event_shape "
            f"{latent_shape}, got {p}",
        )
        for name, value, before in (
            ("mean", p.mean, ()),
            ("point_estimate()", p.point_estimate(), ()),
            ("sample()", p.sample(), ()),
            ("sample((1,))", p.sample((1,)), (1,)),
            ("sample((3,))", p.sample((3,)), (3,)),
        ):
            _require_shape(name, value, (*before, *batch, *latent_shape))
        for draws in ((), (1,), (3,)):
            value = p.sample(() if batch else (size,)).expand(*draws, size, *latent_shape)
            _require_shape("log_prob", p.log_prob(value.clone()), (*draws, size))


def _require_shape(name: str, value: Tensor, expected: tuple[int, ...]) -> None:
    got = tuple(value.shape)
    require(got == expected, f"{name}: expected shape {expected}, got {got}")


def _check_values(case: Case) -> None:
    with torch.no_grad():
        p = case.make()
        z = p.sample(() if p.batch_shape else (BATCH,))
        latest = p.log_prob(z)
        for name, log_prob in (
            ("its own draws", latest),
            ("point_estimate()", p.log_prob(p.point_estimate())),
        ):
            finite = torch.isfinite(log_prob).all() or not p.is_density
            require(finite, f"log_prob: expected finite numbers of {name}, got {log_prob.tolist()}")
        if p.is_density:
            require_close(p.log_prob(z.clone()), latest, "log_prob of a copied draw", 1e-8)


def _check_batches(case: Case) -> None:
    z, order = case.values(), torch.randperm(BATCH)
    parts = [slice(0, 2), slice(2, BATCH)]
    with torch.no_grad():
        whole, permute_dims = case.make(), case.make(order)
        chunks = [case.make(part) for part in parts]
        if whole.batch_shape:
            moved, center = permute_dims.point_estimate(), whole.point_estimate()
            require_close(moved, center[order], "point_estimate() of a permute_dims batch")
            parted = torch.cat([chunk.point_estimate() for chunk in chunks])
            require_close(parted, center, "point_estimate() of a batch in two chunks")
        if whole.is_density:
            log_prob = whole.log_prob(z)
            moved = permute_dims.log_prob(z[order])
            require_close(moved, log_prob[order], "log_prob of a permute_dims batch", 1e-8)
            pairs = zip(chunks, parts, strict=True)
            parted = torch.cat([chunk.log_prob(z[part]) for chunk, part in pairs])
            require_close(parted, log_prob, "log_prob of a batch in two chunks", 1e-8)


def _check_precision(case: Case) -> None:
    with torch.no_grad():
        narrow = case.make(part=copy.deepcopy(case.part).float(), dtype=torch.float32)
        z = narrow.sample(() if narrow.batch_shape else (BATCH,)).clone()
        wide = case.make()
        log_prob, exact = narrow.log_prob(z), wide.log_prob(z.double())
        for p, dtype in ((narrow, torch.float32), (wide, torch.float64)):
            named = {"mean": p.mean, "point_estimate()": p.point_estimate(), "sample()": p.sample()}
            for name, value in named.items():
                require(value.dtype == dtype, f"{name}: expected {dtype}, got {value.dtype}")
        for value, dtype in ((log_prob, torch.float32), (exact, torch.float64)):
            require(value.dtype == dtype, f"log_prob: expected {dtype}, got {value.dtype}")
        require_close(
            narrow.point_estimate(), wide.point_estimate(), "point_estimate() in float32", 1e-3
        )
        if wide.is_density:
            require_close(log_prob, exact, "log_prob in float32", 1e-3)


def _check_gradients(case: Case) -> None:
    p, z = case.make(), case.values()
    names = [name for name, parameter in case.part.named_parameters() if parameter.requires_grad]
    draws, log_prob = p.sample(), p.log_prob(z)
    trained = [("log_prob", log_prob)]
    if p.has_rsample:
        weight = torch.randn_like(draws)  # the sum of a draw's elements may be constant
        by_draws = [("sample()", draws * weight), ("losses", _losses(p))]
        require_gradients(case.part, names, by_draws)
        has_none = p.is_discrete is not False and not log_prob.requires_grad
        if has_none or p.is_discrete is None or not p.is_density:
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
    """Sum of what training has to add, also of the parts of a joint distribution."""
    own = [loss.sum() for loss in p.losses.values()]
    if isinstance(p, JointDistribution):
        own += [_losses(part) for part in p.parts.values()]
    return sum(own, torch.zeros(()))


def _check_description(case: Case) -> None:
    twin = twin_of(case.part)
    with torch.no_grad():
        z = case.values()
        got, expected = case.make(part=twin), case.make()
        same = torch.equal(got.log_prob(z), expected.log_prob(z))
        same &= torch.equal(got.point_estimate(), expected.point_estimate())
    require(
        same,
        "config(): what it builds, with the same state_dict, has another log_prob: is an argument "
        "missing, or a buffer not saved?",
    )


def _check_moments(case: Case) -> None:
    with torch.no_grad():
        check_moments(case.make(), case.num_draws)


def _check_agreement(case: Case) -> None:
    with torch.no_grad():
        check_agreement(case.make(slice(1)), case.num_draws)


def _check_divergences(case: Case) -> None:
    if case.inputs is None:
        return
    with torch.no_grad():
        q = case.make()
        _check_kl(q, _standard(q), case.num_draws)
        if case.prior is not None:
            prior = copy.deepcopy(case.prior).double().eval()
            context = None if case.context is None else cast(case.context[:BATCH], torch.float64)
            p = prior(context, encoder=case.part)
            _check_kl(q, [p], case.num_draws)


def _standard(q: Distribution) -> list[Distribution]:
    """Standard distributions on the latents of q, of which some have a closed form."""
    zero = torch.zeros(q.event_shape, dtype=torch.float64)
    standard = [Independent(family(zero, zero), zero.dim()) for family in (Normal, Laplace)]
    return [*standard, SphereUniform(zero), OneHotCategorical(zero, zero.dim())]


def _check_kl(q: Distribution, priors: list[Distribution], num_draws: int) -> None:
    if isinstance(q, JointDistribution):
        for name, part in q.parts.items():
            given = [p.parts[name] for p in priors if isinstance(p, JointDistribution)]
            _check_kl(part, given or _standard(part), num_draws)
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


CHECKS: tuple[Callable[[Case], None], ...] = (
    _check_kind,
    _check_shapes,
    _check_values,
    _check_batches,
    _check_precision,
    _check_gradients,
    _check_description,
    _check_moments,
    _check_agreement,
    _check_divergences,
)
