"""Contract of a distribution."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tinyvae.core.random import forked_rng
from tinyvae.distributions import Distribution, Independent, JointDistribution
from tinyvae.testing.contract import (
    cast,
    require,
    require_close,
    require_gradcheck,
    require_shape,
)
from tinyvae.testing.statistics import (
    Elements,
    Marginal,
    Support,
    Weighted,
    chi_squared,
    log_density_of,
    require_uncorrelated,
    weighted_points,
)

LEAST_P_VALUE = 1e-4


def check_distribution(
    make: Callable[..., Distribution],
    *params: Tensor,
    in_support: Support | None = None,
    values: Tensor | None = None,
    num_draws: int = 4000,
    seed: int = 0,
) -> None:
    """Raise if a distribution breaks its contract.

    The checks are: shapes of draws, means and densities; finite densities of draws, which are in
    the support; ``elementwise_log_prob``, which sums to ``log_prob``; float32 against float64;
    gradients of ``log_prob`` against finite differences (``torch.autograd.gradcheck``); the mean
    against draws; a total mass of one; draws against ``log_prob``; and, for reparameterized draws
    of a density, pathwise gradients against score-function gradients.

    The total mass and the draws are checked if ``is_density`` is True. With ``in_support``,
    quadrature integrates (or sums) over one element at a time, which assumes that elements are
    independent. With ``values``, all masses are summed. Otherwise importance sampling covers the
    elements of :class:`~tinyvae.distributions.Independent`, and vectors of up to 3 dimensions in
    R^D, in a simplex or on a sphere. The global random state does not change.

    Args:
        make: Function from parameters to the distribution. It must accept parameters in float32 and
            float64, and with leading dimensions that become leading batch dimensions.
        params: Parameters of a scalar family with one or more batch dimensions, or of one
            distribution (``batch_shape`` ``()`` or ``(1,)``) of vectors.
        in_support: Function that returns True for each entry of ``(n, *event)`` in the support.
            Without it, ``log_prob`` must be NaN or minus infinity outside the support.
        values: All possible values ``(V, *event)``.
        num_draws: Number of draws.
        seed: Seed of the draws.

    Raises:
        ContractError: If it breaks the contract. The message names the first fault.

    Example:
        >>> from tinyvae.testing import check_distribution
        >>> check_distribution(Normal, torch.randn(3), torch.randn(3))
        >>> class Unnormalized(Distribution):
        ...     def __init__(self, rate):
        ...         self.rate, self.batch_shape = rate, rate.shape
        ...     @property
        ...     def mean(self):
        ...         return 1 / self.rate
        ...     def log_prob(self, value):
        ...         return -self.rate * value + torch.where(value > 0, 0.0, -torch.inf)
        ...     def sample(self, sample_shape=()):
        ...         return self.rate.new_empty(self._shape(sample_shape)).exponential_() / self.rate
        >>> check_distribution(Unnormalized, torch.full((1,), 3.0))
        Traceback (most recent call last):
            ...
        tinyvae.testing.contract.ContractError: total mass: expected 1, got 0.3...
    """
    params = tuple(p.double() if p.is_floating_point() else p for p in params)
    with forked_rng(torch.device("cpu"), seed):
        scalar = make(*params)
        num_dims = 0 if scalar.event_shape else len(scalar.batch_shape)

        def event(*params: Tensor) -> Distribution:
            p = make(*params)
            return Independent(p, num_dims) if num_dims else p

        with torch.no_grad():
            p = event(*params)
            if not p.event_shape or p.batch_shape.numel() != 1:
                raise ValueError(
                    "check_distribution expects a scalar family with batch dimensions or one "
                    f"distribution of vectors, got {p}: change the shape of the parameters"
                )
            check_shapes(scalar, (tuple(scalar.batch_shape),), scalar.event_shape)
            check_values(p, in_support)
            narrow = event(*(x.float() if x.is_floating_point() else x for x in params))
            check_precision(narrow, event(*map(cast, params)))
        _check_gradients(event, params)
        with torch.no_grad():
            check_agreement(p, num_draws, in_support, values)
            check_moments(p, num_draws)
        _check_rsample(event, params, num_draws)


def check_shapes(
    p: Distribution, batch_shapes: tuple[tuple[int, ...], ...], event_shape: torch.Size
) -> None:
    """Raise unless a distribution and its methods have one of the batch shapes."""
    batch, event = tuple(p.batch_shape), tuple(p.event_shape)
    require(
        batch in batch_shapes and event == tuple(event_shape),
        f"expected batch_shape {' or '.join(map(str, batch_shapes))} and event_shape "
        f"{tuple(event_shape)}, got {p}",
    )
    require_shape("mean", p.mean, (*batch, *event))
    require_shape("point_estimate()", p.point_estimate(), (*batch, *event))
    for leading in ((), (1,), (3,), (3, 2)):
        draws = p.sample(leading)
        require_shape(f"sample({leading})", draws, (*leading, *batch, *event))
        require_shape("log_prob", p.log_prob(draws.clone()), (*leading, *batch))


def check_values(p: Distribution, in_support: Support | None = None) -> None:
    """Raise unless draws have finite densities and are in the support."""
    z = p.sample()
    log_prob = p.log_prob(z)
    center = p.log_prob(p.point_estimate())
    for name, value in (("its own draws", log_prob), ("point_estimate()", center)):
        finite = torch.isfinite(value).all() or not p.is_density
        require(finite, f"log_prob: expected finite numbers for {name}, got {value.tolist()}")
    if in_support is not None:
        supported = in_support(z.reshape(-1, *p.event_shape)).all()
        require(supported, f"in_support: expected true for draws, got false among {z.tolist()}")
    if p.is_density:
        require_close(p.log_prob(z.clone()), log_prob, "log_prob of a copied draw", 1e-8)
    try:
        each = p.elementwise_log_prob(z)
    except TypeError:
        return  # the elements are not independent
    total = each.flatten(len(p.batch_shape)).sum(-1)
    require_close(total, log_prob, "sum of elementwise_log_prob", 1e-8)


def check_precision(narrow: Distribution, wide: Distribution, tolerance: float = 1e-5) -> None:
    """Raise unless float32 and float64 agree."""
    z = narrow.sample().clone()
    log_prob, exact = narrow.log_prob(z), wide.log_prob(z.double())
    for p, value, dtype in ((narrow, log_prob, torch.float32), (wide, exact, torch.float64)):
        named = {
            "mean": p.mean,
            "point_estimate()": p.point_estimate(),
            "sample()": p.sample(),
            "log_prob": value,
        }
        for name, tensor in named.items():
            require(tensor.dtype == dtype, f"{name}: expected {dtype}, got {tensor.dtype}")
    require_close(
        narrow.point_estimate(), wide.point_estimate(), "point_estimate() in float32", tolerance
    )
    if wide.is_density:
        require_close(log_prob, exact, "log_prob in float32", tolerance)


def check_moments(p: Distribution, num_draws: int) -> None:
    """Raise unless draws agree with the mean, and draws of two examples are uncorrelated."""
    draws = p.sample((num_draws,)).flatten(1 + len(p.batch_shape))  # (N, *batch, D)
    mean = p.mean.flatten(len(p.batch_shape))
    got, error = draws.mean(0), draws.std(0) / math.sqrt(num_draws)
    off = (got - mean).abs() > 5 * error + 1e-10 * (1 + mean.abs())
    require(
        not (off & torch.isfinite(mean)).any(),
        f"mean: {mean.tolist()}, but draws have {got.tolist()} (error {error.tolist()})",
    )
    if len(p.batch_shape) == 1 and p.batch_shape[0] > 1:
        for i in range(draws.shape[-1]):
            require_uncorrelated(draws[:, :2, i], "sample(): noise of two examples")


def check_agreement(
    p: Distribution, num_draws: int, in_support: Support | None = None, values: Tensor | None = None
) -> None:
    """Raise unless the total mass is one and draws agree with ``log_prob``.

    See :func:`check_distribution` for the arguments. ``p`` has ``batch_shape`` ``()`` or ``(1,)``.
    """
    draws = p.sample((num_draws,)).reshape(num_draws, *p.event_shape)
    if not p.is_density:
        return
    if values is not None:
        _check_all_masses(p, draws, values)
    elif in_support is not None:
        _check_elements(p, draws, in_support)
    else:
        _check_draws(p, draws, "")


def _check_gradients(make: Callable[..., Distribution], params: tuple[Tensor, ...]) -> None:
    """Raise unless gradients of ``log_prob`` in the parameters agree with finite differences."""
    with torch.no_grad():
        x = make(*params).sample()
    params = tuple(p.detach().requires_grad_(p.is_floating_point()) for p in params)
    if not make(*params).log_prob(x).requires_grad:
        return
    require_gradcheck(lambda *params: make(*params).log_prob(x), params)


def _check_rsample(
    make: Callable[..., Distribution], params: tuple[Tensor, ...], num_draws: int
) -> None:
    """Raise unless pathwise and score-function gradients of E[f(x)] agree, for a bounded f."""
    p = make(*params)
    has_density = p.is_density and p.is_discrete is False
    if not (p.has_rsample and has_density) or p.is_partly_reparameterized:
        return
    leaves = [
        x.detach().expand(num_draws, *x.shape).clone().requires_grad_(x.is_floating_point())
        for x in params
    ]  # one copy per draw, so that gradients come per draw
    p = make(*leaves)
    draws = p.sample()
    flat = draws.flatten(1)
    center, spread = flat.detach().median(0).values, flat.detach().std(0)
    weights = torch.randn_like(center)
    values = torch.tanh(((flat - center) / spread) @ weights)  # (N,)
    inputs = [leaf for leaf in leaves if leaf.requires_grad]
    pathwise: Sequence[Tensor | None] = [None] * len(inputs)
    if values.requires_grad:
        pathwise = torch.autograd.grad(values.sum(), inputs, allow_unused=True, retain_graph=True)
    centered = (values - values.mean()).detach()
    log_prob = p.log_prob(draws.detach()).reshape(num_draws)
    score = torch.autograd.grad((centered * log_prob).sum(), inputs, allow_unused=True)
    for index, (a, b) in enumerate(zip(pathwise, score, strict=True)):
        difference = (0 if a is None else a) - (0 if b is None else b)
        if not isinstance(difference, Tensor):
            continue
        error = difference.std(0) / math.sqrt(num_draws)
        off = difference.mean(0).abs() > 5 * error + 1e-10
        require(
            not off.any(),
            f"sample(): gradients in parameter {index} differ from those of log_prob by "
            f"{difference.mean(0).tolist()} (error {error.tolist()})",
        )


def _check_all_masses(p: Distribution, draws: Tensor, values: Tensor) -> None:
    """Raise unless the masses of all values sum to one and agree with the shares of draws."""
    values = values.double()
    masses = log_density_of(p)(values).exp()
    total = masses.sum().item()
    require(abs(total - 1) < 1e-5, f"total mass: expected 1, got {total:.7g}")
    hits = (draws.flatten(1).unsqueeze(1) == values.flatten(1)).all(2)  # (N, V)
    p_value = chi_squared(hits.sum(0).double(), masses * len(draws))
    require(p_value > LEAST_P_VALUE, f"sample() does not agree with log_prob: p = {p_value:.1e}")


def _check_elements(p: Distribution, draws: Tensor, in_support: Support) -> None:
    """Raise unless the integral over each element agrees with one, with the mean and with draws."""
    flat = draws.flatten(1)
    integers = (flat == flat.round()).all(0)
    reference = torch.where(integers, flat.median(0).values, p.point_estimate().flatten())
    reference = reference.reshape(p.event_shape)
    elements = Elements(log_density_of(p), flat, reference, may_have_points=p.is_discrete is None)
    marginals = [Marginal.of(i, elements, in_support) for i in range(flat.shape[1])]
    log_total = elements.log_reference + sum(m.log_total for m in marginals)
    total = math.exp(log_total) if log_total < 700 else math.inf
    require(abs(total - 1) < 1e-5, f"total mass: expected 1, got {total:.7g}")
    for i, (marginal, mean) in enumerate(zip(marginals, p.mean.flatten().tolist(), strict=True)):
        p_value = marginal.p_value(flat[:, i])
        require(
            p_value > LEAST_P_VALUE / len(marginals),
            f"sample() does not agree with log_prob in dimension {i}: p = {p_value:.1e}",
        )
        require(
            abs(marginal.mean - mean) <= 1e-3 * (1 + abs(mean)) or not math.isfinite(mean),
            f"mean: {mean} in dimension {i}, but log_prob has {marginal.mean}",
        )


def _check_draws(p: Distribution, draws: Tensor, of: str) -> None:
    """Raise unless total mass and draws agree, by importance sampling or by the drawn values."""
    if isinstance(p, JointDistribution):
        for name, values in p.split(draws).items():
            _check_draws(p.parts[name], values, f" of latent {name!r}")
    elif p.is_density and p.is_discrete:
        _check_drawn_masses(p, draws, of)
    elif p.is_density and p.is_discrete is False:
        log_reference, weighted = weighted_points(p, draws)
        if weighted:
            log_total = log_reference + sum(w.log_total for w in weighted)
            total = math.exp(min(700.0, log_total))
            error = total * math.sqrt(sum(w.variance for w in weighted))
            require(
                abs(total - 1) <= 5 * error + 1e-6,
                f"total mass{of}: expected 1, got {total:.4g} (error {error:.1g})",
            )
        for w in weighted:
            _check_directions(w, of)
        if isinstance(p, Independent):
            flat = draws.flatten(1)
            for i in range(1, flat.shape[1]):
                require_uncorrelated(flat[:, i - 1 : i + 1], f"sample(): elements{of}")


def _check_drawn_masses(p: Distribution, draws: Tensor, of: str) -> None:
    """Raise unless the masses of the drawn values agree with their shares of the draws."""
    values, counts = draws.flatten(1).unique(dim=0, return_counts=True)
    masses = log_density_of(p)(values.reshape(-1, *p.event_shape)).exp()
    total, num_draws = masses.sum().item(), len(draws)
    # The number of values drawn once estimates the mass of the others (Good 1953).
    once = int((counts == 1).sum())
    unseen = (once + 5 * math.sqrt(once + 1) + 10) / num_draws
    require(
        1 - unseen <= total <= 1 + 1e-9,
        f"total mass{of}: expected 1, got {total:.7g} of the {len(values)} values drawn",
    )
    masses = torch.cat([masses, torch.tensor([max(0.0, 1 - total)])])
    observed = torch.cat([counts.double(), torch.zeros(1)])
    p_value = chi_squared(observed, masses * num_draws)
    disagreement = f"sample() does not agree with log_prob{of}: p = {p_value:.1e}"
    require(p_value > LEAST_P_VALUE, disagreement)


def _check_directions(w: Weighted, of: str) -> None:
    """Raise unless draws agree with weighted points along each axis and some other directions."""
    dim = w.draws.shape[1]
    others = torch.randn(4 if dim > 1 else 0, dim, dtype=w.draws.dtype) / w.draws.std(0)
    for direction in torch.cat([torch.eye(dim, dtype=w.draws.dtype), others]):
        p_value = w.p_value(direction)
        require(
            p_value > LEAST_P_VALUE / dim,
            f"sample() does not agree with log_prob{of} along {direction.tolist()}: "
            f"p = {p_value:.1e}",
        )
