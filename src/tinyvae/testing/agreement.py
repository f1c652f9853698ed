r"""Total mass of latents, and draws that follow their density.

A proposal r with heavy tails is laid around draws, and p is held against it:

.. math:: \mathbb{E}_r \big[ p(z) / r(z) \big] = 1

The same weights say how much of p lies in a bin, which must be the share of draws that do.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tinyvae.distributions import Distribution, Independent, JointDistribution
from tinyvae.testing.contract import require
from tinyvae.testing.marginals import chi_squared

LEAST_P_VALUE = 1e-4
MOST_DIMS = 3
NUM_BINS = 20
NUM_KERNELS = 128
NEIGHBOR = 12  # whose distance is a kernel's width
SHARES = {5: 0.8, 1: 0.2}  # of Student's t by degrees of freedom; one are Cauchy's tails
NUM_POINTS = 40  # of each kernel
SMALL_ERROR = 0.015  # larger ones, of few large weights, are uncertain themselves

LogDensity = Callable[[Tensor], Tensor]


def check_moments(p: Distribution, num_draws: int) -> None:
    """Hold the mean against that of draws, and draws of two examples against each other."""
    draws = p.sample((num_draws,)).flatten(1 + len(p.batch_shape))  # (N, *batch, D)
    mean = p.mean.flatten(len(p.batch_shape))
    got, error = draws.mean(0), draws.std(0) / math.sqrt(num_draws)
    off = (got - mean).abs() > 5 * error + 1e-10 * (1 + mean.abs())
    require(
        not (off & ~mean.isnan()).any(),
        f"mean: {mean.tolist()}, but draws have {got.tolist()} (error {error.tolist()})",
    )
    if len(p.batch_shape) == 1 and p.batch_shape[0] > 1:
        for i in range(draws.shape[-1]):
            _require_uncorrelated(draws[:, :2, i], "sample(): noise of two examples")


def check_agreement(p: Distribution, num_draws: int) -> None:
    """Hold ``log_prob`` against a total mass of one, and draws against ``log_prob``.

    Args:
        p: Distribution with ``batch_shape`` ``()`` or ``(1,)``.
        num_draws: Number of draws.
    """
    draws = p.sample((num_draws,))
    _check(p, draws.reshape(num_draws, *p.event_shape), "")


def _check(p: Distribution, draws: Tensor, of: str) -> None:
    if isinstance(p, JointDistribution):
        for name, values in p.split(draws).items():
            _check(p.parts[name], values, f" of latent {name!r}")
    elif p.is_density and p.is_discrete:
        _check_masses(p, draws, of)
    elif p.is_density and p.is_discrete is False:
        log_reference, weighted = _weighted(p, draws)
        if weighted:
            _check_total(log_reference, weighted, of)
        for w in weighted:
            _check_draws(w, of)
        if isinstance(p, Independent):
            flat = draws.flatten(1)
            for i in range(1, flat.shape[1]):
                _require_uncorrelated(flat[:, i - 1 : i + 1], f"sample(): elements{of}")


def _check_masses(p: Distribution, draws: Tensor, of: str) -> None:
    """Enumerate by draws: what was seen has the masses that it was seen with."""
    values, counts = draws.flatten(1).unique(dim=0, return_counts=True)
    masses = _rows(p)(values.reshape(-1, *p.event_shape)).exp()
    total, num_draws = masses.sum().item(), len(draws)
    # Unseen mass: what was seen once estimates it (Good 1953).
    once = int((counts == 1).sum())
    unseen = (once + 5 * math.sqrt(once + 1) + 10) / num_draws
    require(
        1 - unseen <= total <= 1 + 1e-9,
        f"total mass{of}: expected 1, got {total:.7g} of the {len(values)} values drawn",
    )
    masses = torch.cat([masses, torch.tensor([max(0.0, 1 - total)])])
    observed = torch.cat([counts.double(), torch.zeros(1)])
    p_value = chi_squared(observed, masses * num_draws)
    require(
        p_value > LEAST_P_VALUE, f"sample() does not agree with log_prob{of}: p = {p_value:.1e}"
    )


@dataclass(frozen=True)
class _Weighted:
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
    def doubt(self) -> float:
        """Factor on squared errors of what the weights say."""
        plain = float((self.shares - 1 / len(self.points)).square().sum())
        return max(1.0, plain / SMALL_ERROR**2)

    @property
    def variance(self) -> float:
        """Squared relative error of the total mass."""
        return self.doubt * float((self.shares - 1 / len(self.points)).square().sum())


def _weighted(p: Distribution, draws: Tensor) -> tuple[float, list[_Weighted]]:
    """In all dimensions at once, or of independent elements one by one from a reference.

    Returns:
        Log density of the reference, which the others are relative to, and the weighted points.
    """
    log_density, flat = _rows(p), draws.flatten(1)
    if flat.shape[1] > 1 and bool(((flat.square().sum(1) - 1).abs() < 1e-6).all()):
        return 0.0, [_on_sphere(log_density, draws)]
    if len(draws[0]) > 1 and bool(((draws.sum(1) - 1).abs() < 1e-6).all()):
        flat, log_density = _off_simplex(draws, log_density)
    elif isinstance(p, Independent) and not p.base.event_shape:
        reference = draws[:1]
        base = log_density(reference)
        each = [
            _around(flat[:, i : i + 1], _element(log_density, reference, i))
            for i in range(flat.shape[1])
        ]
        return base.item(), each
    else:
        event_shape, log_rows = p.event_shape, log_density
        log_density = lambda y: log_rows(y.reshape(-1, *event_shape))  # noqa: E731
    if flat.shape[1] > MOST_DIMS or _is_flat(flat):
        return 0.0, []
    return 0.0, [_around(flat, log_density)]


def _is_flat(draws: Tensor) -> bool:
    """Whether draws lie in a hyperplane, on which densities are something else."""
    dim = draws.shape[1]
    correlations = draws.T.corrcoef().reshape(dim, dim)
    return int(torch.linalg.matrix_rank(correlations, hermitian=True, rtol=1e-10)) < dim


def _rows(p: Distribution) -> LogDensity:
    """Log density of rows ``(n, *L)``; NaN, where a formula knows none, is minus infinity."""

    def log_density(rows: Tensor) -> Tensor:
        value = rows.unsqueeze(1) if p.batch_shape else rows
        return p.log_prob(value).reshape(len(rows)).nan_to_num(-math.inf, math.inf, -math.inf)

    return log_density


def _element(log_density: LogDensity, reference: Tensor, i: int) -> LogDensity:
    """Log density of element i ``(n, 1)``, the others being the reference's, over its own."""

    def ratio(y: Tensor) -> Tensor:
        rows = reference.expand(len(y), *reference.shape[1:]).clone()
        rows.flatten(1)[:, i] = y[:, 0]
        return log_density(rows) - log_density(reference)

    return ratio


def _off_simplex(draws: Tensor, log_density: LogDensity) -> tuple[Tensor, LogDensity]:
    """Log ratios to the last class, which are free, and their log density."""
    shape = (-1, draws.shape[1] - 1, *draws.shape[2:])
    ratios = (draws[:, :-1].log() - draws[:, -1:].log()).flatten(1)

    def of_ratios(y: Tensor) -> Tensor:
        ratio = y.reshape(shape)
        log_x = torch.cat([ratio, torch.zeros_like(ratio[:, :1])], 1).log_softmax(1)
        return log_density(log_x.exp()) + log_x.flatten(1).sum(1)

    return ratios, of_ratios


def _on_sphere(log_density: LogDensity, draws: Tensor) -> _Weighted:
    """Points of the uniform distribution on the sphere."""
    flat, shape = draws.flatten(1), draws.shape[1:]
    num_points, dim = 2 * NUM_POINTS * NUM_KERNELS, flat.shape[1]
    points = F.normalize(torch.randn(num_points, dim, dtype=draws.dtype), dim=1)
    log_area = math.log(2) + 0.5 * dim * math.log(math.pi) - math.lgamma(0.5 * dim)
    return _Weighted(flat, points, log_density(points.reshape(-1, *shape)) + log_area)


def _around(draws: Tensor, log_density: LogDensity) -> _Weighted:
    """Points around draws; around more of them where a few points have most of the weight."""
    first = _of_kernels(draws, log_density, NUM_KERNELS)
    return first if first.doubt == 1 else _of_kernels(draws, log_density, 4 * NUM_KERNELS)


def _of_kernels(draws: Tensor, log_density: LogDensity, num_kernels: int) -> _Weighted:
    """Points of kernels at draws, each as wide as its neighbors are far."""
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
    return _Weighted(draws, points, log_density(points) - log_r + scale.log().sum())


def _log_kernels(points: Tensor, centers: Tensor, width: Tensor) -> Tensor:
    """Log density of the mixture of kernels, ``(n,)``."""
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


def _check_total(log_reference: float, weighted: list[_Weighted], of: str) -> None:
    total = math.exp(min(700.0, log_reference + sum(w.log_total for w in weighted)))
    error = total * math.sqrt(sum(w.variance for w in weighted))
    require(
        abs(total - 1) <= 5 * error + 1e-6,
        f"total mass{of}: expected 1, got {total:.4g} (error {error:.1g})",
    )


def _check_draws(w: _Weighted, of: str) -> None:
    """Chi-squared tests in bins, along each axis and some other directions."""
    dim = w.draws.shape[1]
    others = torch.randn(4 if dim > 1 else 0, dim, dtype=w.draws.dtype) / w.draws.std(0)
    for direction in torch.cat([torch.eye(dim, dtype=w.draws.dtype), others]):
        p_value = _p_value(w.draws @ direction, w.points @ direction, w)
        require(
            p_value > LEAST_P_VALUE / dim,
            f"sample() does not agree with log_prob{of} along {direction.tolist()}: "
            f"p = {p_value:.1e}",
        )


def _p_value(draws: Tensor, points: Tensor, w: _Weighted) -> float:
    order, shares = points.argsort(), w.shares
    edges = torch.linspace(0, 1, NUM_BINS + 1, dtype=draws.dtype)[1:-1]
    at = torch.searchsorted(shares[order].cumsum(0), edges).clamp(max=len(points) - 1)
    cuts = points[order][at]
    inside = F.one_hot(torch.bucketize(points, cuts), NUM_BINS).to(draws.dtype)  # (n, bins)
    expected = shares @ inside
    uncertain = w.doubt * (shares.square() @ (inside - expected).square())  # of `expected`
    observed = torch.bincount(torch.bucketize(draws, cuts), minlength=NUM_BINS) / len(draws)
    spread = (expected / len(draws) + uncertain).clamp(min=1e-300)
    statistic = ((observed - expected).square() / spread).sum()
    return float(torch.special.gammaincc(statistic.new_tensor(0.5 * (NUM_BINS - 1)), statistic / 2))


def _require_uncorrelated(pairs: Tensor, what: str) -> None:
    """Raise if the columns of ``(N, 2)`` hang together."""
    if bool((pairs.std(0) > 1e-12).all()):
        correlation = float(pairs.T.corrcoef()[0, 1])
        most = 6 / math.sqrt(len(pairs))
        require(
            abs(correlation) <= most,
            f"{what}: correlated by {correlation:.2g}, expected at most {most:.2g}",
        )
