"""Total masses and goodness of fit, one dimension of a datum at a time."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tinyvae.distributions import Distribution
from tinyvae.likelihoods import Likelihood


@dataclass(frozen=True)
class Rows:
    """Draws, and a datum around which one dimension is varied."""

    distribution: Distribution
    likelihood: Likelihood
    draws: Tensor  # (N, dims)
    reference: Tensor  # (*E)

    @classmethod
    def around_center(
        cls, distribution: Distribution, likelihood: Likelihood, num_draws: int
    ) -> "Rows":
        """Draw of a distribution of ``batch_shape = (1,)``, and vary around its center."""
        draws = distribution.sample((num_draws,))[:, 0].flatten(1)
        whole = (draws == draws.round()).all(0)
        reference = torch.where(
            whole, draws.median(0).values, distribution.point_estimate()[0].flatten()
        )
        return cls(distribution, likelihood, draws, reference.reshape(distribution.event_shape))

    @property
    def log_reference(self) -> Tensor:
        """Log density of the reference, ``(1,)``."""
        return self.distribution.log_prob(self.reference.unsqueeze(0))

    def log_ratio(self, dimension: int, values: Tensor) -> Tensor:
        """Log density at ``values`` of one dimension, over that of the reference."""
        rows = self._at(dimension, values)
        return self.distribution.log_prob(rows.unsqueeze(1))[:, 0] - self.log_reference

    def supports(self, dimension: int, values: Tensor) -> Tensor:
        """Whether each of ``values`` of one dimension has a density."""
        inside: Tensor = self.likelihood.in_support(self._at(dimension, values))
        return inside.flatten(1)[:, dimension]

    def _at(self, dimension: int, values: Tensor) -> Tensor:
        rows = self.reference.expand(len(values), *self.reference.shape).clone()
        rows.flatten(1)[:, dimension] = values
        return rows


@dataclass(frozen=True)
class Marginal:
    """Masses of one dimension, relative to the reference's density, in order of the values."""

    values: Tensor
    masses: Tensor

    @classmethod
    def of(cls, dimension: int, rows: Rows) -> "Marginal":
        """Sum a dimension that holds integers, integrate over another one."""
        draws = rows.draws[:, dimension]
        if (draws == draws.round()).all():
            last = 20 * draws.abs().max().item() + 2000
            values = torch.arange(-last, last + 1, dtype=torch.float64)
            values = values[rows.supports(dimension, values)]
            return cls(values, rows.log_ratio(dimension, values).exp())
        values, weights = _nodes(dimension, rows)
        inside = rows.supports(dimension, values)
        values, weights = values[inside], weights[inside]
        masses = rows.log_ratio(dimension, values).exp() * weights
        finite = torch.isfinite(masses)
        return cls(values[finite], masses[finite])

    @property
    def log_total(self) -> float:
        """Logarithm of the total mass over the reference's density."""
        return float(self.masses.sum().log())

    def p_value(self, draws: Tensor) -> float:
        """Chi-squared test of draws in 20 bins of about equal mass."""
        cumulated = self.masses.cumsum(0) / self.masses.sum()
        edges = torch.linspace(0, 1, 21, dtype=torch.float64)[1:-1]
        cuts = self.values[torch.searchsorted(cumulated, edges)].unique()
        bins = torch.bucketize(draws, cuts)
        observed = torch.bincount(bins, minlength=len(cuts) + 1).double()
        where = torch.bucketize(self.values, cuts)
        expected = torch.zeros_like(observed).index_add_(0, where, self.masses / self.masses.sum())
        return chi_squared(observed, expected * len(draws))


def _nodes(dimension: int, rows: Rows) -> tuple[Tensor, Tensor]:
    """Double-exponential quadrature on both sides of the reference (Takahasi, Mori 1974)."""
    center = rows.reference.flatten()[dimension].item()
    spread = float((rows.draws[:, dimension] - center).abs().median())
    t = torch.linspace(-4, 4, 8001, dtype=torch.float64)
    values, weights = [], []
    for sign in (-1.0, 1.0):
        length = _distance_to_edge(dimension, rows, center, sign)
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


def _distance_to_edge(dimension: int, rows: Rows, center: float, sign: float) -> float:
    """How far the support reaches from the center, by bisection."""

    def supports(distance: float) -> bool:
        value = torch.tensor([center + sign * distance], dtype=torch.float64)
        return bool(rows.supports(dimension, value))

    inside, outside = 0.0, 1e12
    if supports(outside):
        return math.inf
    while outside - inside > 1e-15 * outside:
        middle = (inside + outside) / 2
        if middle in (inside, outside):
            break
        inside, outside = (middle, outside) if supports(middle) else (inside, middle)
    return inside


def chi_squared(observed: Tensor, expected: Tensor) -> float:
    """p-value of counts; cells of fewer than five expected ones join the least other."""
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
