r"""Statistics that compare a density with its total mass and its draws.

Elements of a datum that are independent are checked one at a time: along each element, the density
is integrated by quadrature (or summed over integers). Without a known support, and for several
dimensions at once, the integral uses importance sampling. A proposal r with heavy tails is placed
around draws of p:

.. math:: \mathbb{E}_r \big[ p(z) / r(z) \big] = 1

The weights also estimate the mass of p in each bin, which must agree with the share of draws there.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tinyvae.distributions import Distribution, Independent
from tinyvae.testing.contract import require

NUM_BINS = 20
NUM_KERNELS = 128
NEIGHBOR = 12  # the distance to this neighbor is the width of a kernel
SHARES = {5: 0.8, 1: 0.2}  # share of points by degrees of freedom; the second has Cauchy tails
NUM_POINTS = 40  # per kernel
MOST_DIMS = 3  # of importance sampling
SMALL_ERROR = 0.015  # above it a few large weights dominate, and error estimates are unreliable

LogDensity = Callable[[Tensor], Tensor]  # values (n, *event) -> (n,)
Support = Callable[[Tensor], Tensor]  # values (n, *event) -> bool (n, *event)


def log_density_of(p: Distribution) -> LogDensity:
    """Return the log density of values ``(n, *event)``, as ``(n,)``."""

    def log_density(values: Tensor) -> Tensor:
        return p.log_prob(values.unsqueeze(1) if p.batch_shape else values).reshape(len(values))

    return log_density


@dataclass(frozen=True)
class Elements:
    """Density along one element of a datum at a time, through a reference value."""

    log_density: LogDensity
    draws: Tensor  # (N, D)
    reference: Tensor  # (*event)
    may_have_points: bool = False  # next to a density

    @property
    def log_reference(self) -> float:
        """Log density of the reference."""
        return float(self.log_density(self.reference.unsqueeze(0)))

    def log_ratio(self, index: int, values: Tensor) -> Tensor:
        """Return log densities with one element replaced, minus that of the reference, ``(n,)``."""
        return self.log_density(self.varied(index, values)) - self.log_reference

    def varied(self, index: int, values: Tensor) -> Tensor:
        """Return the reference with one element replaced by each of ``values``, ``(n, *event)``."""
        rows = self.reference.expand(len(values), *self.reference.shape).clone()
        rows.flatten(1)[:, index] = values
        return rows


@dataclass(frozen=True)
class Marginal:
    """Masses of one element at sorted values, relative to the reference's density."""

    values: Tensor
    masses: Tensor

    @classmethod
    def of(cls, index: int, elements: Elements, in_support: Support) -> "Marginal":
        """Return the masses of integers if draws are integers, else those of quadrature nodes.

        Values that are drawn again have a mass of their own if the density may have such points.
        """
        draws = elements.draws[:, index]
        is_discrete = bool((draws == draws.round()).all())
        if is_discrete:
            last = 20 * draws.abs().max().item() + 2000
            values = torch.arange(-last, last + 1, dtype=torch.float64)
            weights = torch.ones_like(values)
        else:
            distinct, counts = draws.unique(return_counts=True)
            points = distinct[counts > 1] if elements.may_have_points else distinct[:0]
            smooth = draws[~torch.isin(draws, points)]
            values, weights = _nodes(index, elements, smooth, in_support)
            values, order = torch.cat([values, points]).sort()
            weights = torch.cat([weights, torch.ones_like(points)])[order]
        inside = in_support(elements.varied(index, values)).flatten(1)[:, index]
        values, weights = values[inside], weights[inside]
        masses = elements.log_ratio(index, values).exp() * weights
        kept = torch.isfinite(masses) | is_discrete
        return cls(values[kept], masses[kept])

    @property
    def log_total(self) -> float:
        """Logarithm of the total mass over the reference's density."""
        return float(self.masses.sum().log())

    @property
    def mean(self) -> float:
        """Expected value."""
        return float((self.values * self.masses).sum() / self.masses.sum())

    def p_value(self, draws: Tensor) -> float:
        """Return the p-value of a chi-squared test of draws, in bins of about equal mass."""
        cumulated = self.masses.cumsum(0) / self.masses.sum()
        edges = torch.linspace(0, 1, NUM_BINS + 1, dtype=torch.float64)[1:-1]
        cuts = self.values[torch.searchsorted(cumulated, edges)].unique()
        bins = torch.bucketize(draws.contiguous(), cuts)
        observed = torch.bincount(bins, minlength=len(cuts) + 1).double()
        shares = self.masses / self.masses.sum()
        expected = torch.zeros_like(observed)
        expected.index_add_(0, torch.bucketize(self.values, cuts), shares)
        return chi_squared(observed, expected * len(draws))


def _nodes(
    index: int, elements: Elements, draws: Tensor, in_support: Support
) -> tuple[Tensor, Tensor]:
    """Return nodes and weights of double-exponential quadrature (Takahasi, Mori 1974).

    It covers both sides of the reference separately. ``draws`` of the density set its width.
    """
    center = elements.reference.flatten()[index].item()
    spread = float((draws - center).abs().median())
    t = torch.linspace(-4, 4, 8001, dtype=torch.float64)
    values, weights = [], []
    for sign in (-1.0, 1.0):
        length = _distance_to_edge(index, elements, in_support, sign)
        inner = math.pi / 2 * torch.sinh(t)
        if math.isinf(length):
            distance = spread * torch.exp(inner)
            slope = distance
        else:
            distance = length * torch.sigmoid(2 * inner)
            slope = 2 * length * torch.sigmoid(2 * inner) * torch.sigmoid(-2 * inner)
        values.append(center + sign * distance)
        weights.append(slope * (math.pi / 2) * torch.cosh(t) * (t[1] - t[0]))
    value, weight = torch.cat(values), torch.cat(weights)
    order = value.argsort()
    return value[order], weight[order]


def _distance_to_edge(index: int, elements: Elements, in_support: Support, sign: float) -> float:
    """Return the distance from the reference to the edge of the support, by bisection."""
    center = elements.reference.flatten()[index].item()

    def is_supported(distance: float) -> bool:
        value = torch.tensor([center + sign * distance], dtype=torch.float64)
        return bool(in_support(elements.varied(index, value)).flatten(1)[0, index])

    inside, outside = 0.0, 1e12
    if is_supported(outside):
        return math.inf
    while outside - inside > 1e-15 * outside:
        middle = (inside + outside) / 2
        if middle in (inside, outside):
            break
        inside, outside = (middle, outside) if is_supported(middle) else (inside, middle)
    return inside


def chi_squared(observed: Tensor, expected: Tensor) -> float:
    """Return the p-value of counts. Cells that expect fewer than five counts are merged."""
    order = expected.argsort(descending=True)
    observed, expected = observed[order], expected[order]
    kept = max(1, int((expected >= 5).sum()))
    observed, expected = (
        torch.cat([cells[: kept - 1], cells[kept - 1 :].sum()[None]])
        for cells in (observed, expected)
    )
    statistic = ((observed - expected).square() / expected).sum()
    freedom = torch.tensor(max(1, len(observed) - 1), dtype=torch.float64)
    return float(torch.special.gammaincc(freedom / 2, statistic / 2))


@dataclass(frozen=True)
class Weighted:
    """Draws of p, and points of a proposal r with log p - log r."""

    draws: Tensor  # (N, D)
    points: Tensor  # (n, D)
    log_weights: Tensor  # (n,)

    @property
    def log_total(self) -> float:
        """Logarithm of the total mass."""
        return float(self.log_weights.logsumexp(0)) - math.log(len(self.points))

    @property
    def shares(self) -> Tensor:
        """Mass of each point, ``(n,)``."""
        return self.log_weights.softmax(0)

    @property
    def inflation(self) -> float:
        """Factor on squared error estimates. It exceeds 1 if a few large weights dominate."""
        return max(1.0, self._squared_error / SMALL_ERROR**2)

    @property
    def variance(self) -> float:
        """Squared relative error of the total mass."""
        return self.inflation * self._squared_error

    @property
    def _squared_error(self) -> float:
        return float((self.shares - 1 / len(self.points)).square().sum())

    def p_value(self, direction: Tensor) -> float:
        """Return the p-value of a chi-squared test of the draws along a direction ``(D,)``."""
        draws, points, shares = self.draws @ direction, self.points @ direction, self.shares
        order = points.argsort()
        edges = torch.linspace(0, 1, NUM_BINS + 1, dtype=draws.dtype)[1:-1]
        indices = torch.searchsorted(shares[order].cumsum(0), edges).clamp(max=len(points) - 1)
        cuts = points[order][indices]
        in_bin = F.one_hot(torch.bucketize(points, cuts), NUM_BINS).to(draws.dtype)  # (n, bins)
        expected = shares @ in_bin
        variance = self.inflation * (shares.square() @ (in_bin - expected).square())
        observed = torch.bincount(torch.bucketize(draws, cuts), minlength=NUM_BINS) / len(draws)
        spread = (expected / len(draws) + variance).clamp(min=1e-300)
        statistic = ((observed - expected).square() / spread).sum()
        freedom = statistic.new_tensor(NUM_BINS - 1)
        return float(torch.special.gammaincc(freedom / 2, statistic / 2))


def weighted_points(p: Distribution, draws: Tensor) -> tuple[float, list[Weighted]]:
    """Return weighted points in all dimensions at once, or per element if they are independent.

    Returns:
        Log density of the reference of the elements (or zero), and the weighted points.
    """
    density, flat, event_shape = log_density_of(p), draws.flatten(1), p.event_shape

    def of_rows(rows: Tensor) -> Tensor:
        values = density(rows.reshape(-1, *event_shape))
        return values.nan_to_num(-math.inf, math.inf, -math.inf)  # NaN: outside the support

    log_density: LogDensity = of_rows

    if flat.shape[1] > 1 and bool(((flat.square().sum(1) - 1).abs() < 1e-6).all()):
        return 0.0, [_on_sphere(draws, log_density)]
    if len(draws[0]) > 1 and bool(((draws.sum(1) - 1).abs() < 1e-6).all()):
        flat, log_density = _log_ratios(draws, log_density)
    elif isinstance(p, Independent) and not p.base.event_shape:
        elements = Elements(log_density, flat, draws[0])
        return elements.log_reference, [
            _around(flat[:, [i]], lambda y, i=i: elements.log_ratio(i, y[:, 0]))  # type: ignore[misc]
            for i in range(flat.shape[1])
        ]
    if flat.shape[1] > MOST_DIMS or _is_degenerate(flat):
        return 0.0, []
    return 0.0, [_around(flat, log_density)]


def _is_degenerate(draws: Tensor) -> bool:
    """Return True if draws lie in a hyperplane, where a density has another meaning."""
    dim = draws.shape[1]
    correlations = draws.T.corrcoef().reshape(dim, dim)
    return int(torch.linalg.matrix_rank(correlations, hermitian=True, rtol=1e-10)) < dim


def _log_ratios(draws: Tensor, log_density: LogDensity) -> tuple[Tensor, LogDensity]:
    """Return the unconstrained log ratios of classes to the last class, and their log density."""
    shape = (-1, draws.shape[1] - 1, *draws.shape[2:])
    ratios = (draws[:, :-1].log() - draws[:, -1:].log()).flatten(1)

    def of_ratios(y: Tensor) -> Tensor:
        ratio = y.reshape(shape)
        log_x = torch.cat([ratio, torch.zeros_like(ratio[:, :1])], 1).log_softmax(1)
        return log_density(log_x.exp()) + log_x.flatten(1).sum(1)

    return ratios, of_ratios


def _on_sphere(draws: Tensor, log_density: LogDensity) -> Weighted:
    """Return points of the uniform distribution on the sphere; draws are ``(N, *event)``."""
    flat, shape = draws.flatten(1), draws.shape[1:]
    num_points, dim = 2 * NUM_POINTS * NUM_KERNELS, flat.shape[1]
    points = F.normalize(torch.randn(num_points, dim, dtype=draws.dtype), dim=1)
    log_area = math.log(2) + 0.5 * dim * math.log(math.pi) - math.lgamma(0.5 * dim)
    return Weighted(flat, points, log_density(points.reshape(-1, *shape)) + log_area)


def _around(draws: Tensor, log_density: LogDensity) -> Weighted:
    """Return points around draws ``(N, D)``. Use more draws if a few points dominate."""
    first = _around_kernels(draws, log_density, NUM_KERNELS)
    return first if first.inflation == 1 else _around_kernels(draws, log_density, 4 * NUM_KERNELS)


def _around_kernels(draws: Tensor, log_density: LogDensity, num_kernels: int) -> Weighted:
    """Return points of kernels at draws, whose width is the distance to a neighbor."""
    scale = (draws - draws.median(0).values).abs().median(0).values  # (D,)
    centers = draws[:num_kernels] / scale
    width = torch.cdist(centers, centers).kthvalue(NEIGHBOR + 1, dim=1).values
    groups = []
    for freedom, share in SHARES.items():
        noise = torch.randn(int(share * NUM_POINTS), *centers.shape, dtype=draws.dtype)
        chi = torch.randn(*noise.shape[:2], freedom, dtype=draws.dtype).norm(dim=2, keepdim=True)
        steps = noise * math.sqrt(freedom) / chi
        groups.append((centers + width.unsqueeze(1) * steps).flatten(0, 1))
    points = torch.cat(groups)  # (n, D)
    log_r = torch.cat([_log_kernels(part, centers, width) for part in points.split(2048)])
    points = points * scale
    return Weighted(draws, points, log_density(points) - log_r + scale.log().sum())


def _log_kernels(points: Tensor, centers: Tensor, width: Tensor) -> Tensor:
    """Return the log density of the mixture of kernels, ``(n,)``."""
    dim, square = points.shape[1], (torch.cdist(points, centers) / width).square()  # (n, kernels)
    by_freedom = [
        math.log(share)
        + math.lgamma(0.5 * (freedom + dim))
        - math.lgamma(0.5 * freedom)
        - 0.5 * dim * math.log(freedom * math.pi)
        - 0.5 * (freedom + dim) * torch.log1p(square / freedom)
        for freedom, share in SHARES.items()
    ]
    each = torch.stack(by_freedom).logsumexp(0) - dim * width.log()
    return each.logsumexp(1) - math.log(len(centers))


def require_uncorrelated(pairs: Tensor, what: str) -> None:
    """Raise if the columns of ``(N, 2)`` are correlated."""
    if bool((pairs.std(0) > 1e-12).all()):
        correlation = float(pairs.T.corrcoef()[0, 1])
        most = 6 / math.sqrt(len(pairs))
        require(
            abs(correlation) <= most,
            f"{what}: correlated by {correlation:.2g}, expected at most {most:.2g}",
        )
