"""Values that occur again and again, at which a density has no upper bound."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tinyvae.core.data import spread_rows
from tinyvae.core.warnings import warn
from tinyvae.likelihoods.parameters import Learned, PositiveParameter, Predicted

MIN_EXAMPLES = 32  # fewer do not show whether values occur again
MAX_EXAMPLES, MAX_DIMENSIONS = 500, 200  # from which shares are computed
MASSES = (
    "DiscretizedLogisticLikelihood(num_levels) of the integer levels, BernoulliLikelihood with "
    "transform=tinyvae.datasets.DynamicBinarization() of values in [0, 1], or noise in the "
    "integer levels, transform=tinyvae.datasets.Dequantization(num_levels)"
)


def find_repeats(x: Tensor) -> str:
    """Return a description of values of ``x`` ``(N, *E)`` that occur again in their dimension.

    It is empty if they are few: less than half of the observed values, and no dimension of which
    half of the values are equal. Fewer than :data:`MIN_EXAMPLES` examples do not show it.
    """
    if len(x) < MIN_EXAMPLES:
        return ""
    rows = spread_rows(x, MAX_EXAMPLES).flatten(1)
    rows = rows[:, :: -(-rows.shape[1] // MAX_DIMENSIONS)].sort(0).values
    same = rows[1:] == rows[:-1]  # false for NaN
    again = torch.zeros_like(rows, dtype=torch.bool)
    again[1:] |= same
    again[:-1] |= same
    share, half = _share(again, rows), len(rows) // 2
    if share >= 0.5:
        return f"{rounded(share)} of the values that occur again in their dimension"
    has_mode = bool((rows[half:] == rows[: len(rows) - half]).any())
    return "a dimension of which half of the values are equal" if has_mode else ""


def share_at(x: Tensor, *values: float) -> float:
    """Return the share of observed values of ``x`` that equal one of ``values``.

    It is computed from a part of the examples.
    """
    x = spread_rows(x, MAX_EXAMPLES)
    hits = torch.zeros_like(x, dtype=torch.bool)
    for value in values:
        hits |= x == value
    return _share(hits, x)


def share_at_ends(x: Tensor) -> float:
    """Return the share of observed values that are the least or the largest one.

    It is 0 for fewer than :data:`MIN_EXAMPLES` examples.
    """
    observed = spread_rows(x, MAX_EXAMPLES)
    observed = observed[~torch.isnan(observed)]
    if len(x) < MIN_EXAMPLES or not len(observed):
        return 0.0
    least, most = torch.aminmax(observed)
    return int(((observed == least) | (observed == most)).sum()) / len(observed)


def has_constant_group(x: Tensor, shape: Sequence[int]) -> bool:
    """Return True if all dimensions that share an entry of ``shape`` are constant in ``x``.

    ``shape`` broadcasts over one datum of ``x`` ``(N, *E)``.
    """
    if len(x) < MIN_EXAMPLES:
        return False
    if len(x) > MAX_EXAMPLES and not has_constant_group(spread_rows(x, MAX_EXAMPLES), shape):
        return False
    missing = torch.isnan(x)
    least, most = x.masked_fill(missing, torch.inf), x.masked_fill(missing, -torch.inf)
    is_constant = least.amin(0) == most.amax(0)  # (*E), false without observed values
    sizes = (1,) * (is_constant.dim() - len(shape)) + tuple(shape)
    shared = [dim for dim, size in enumerate(sizes) if size == 1]
    return bool((is_constant.all(dim=tuple(shared)) if shared else is_constant).any())


def warn_of_repeats(name: str, scale: PositiveParameter | None, x: Tensor) -> None:
    """Warn if values of ``x`` occur again, so that the density ``name`` grows as a scale shrinks.

    ``scale`` is the parameter that may shrink. A fixed one does not, and one that all dimensions
    share cannot, unless all are constant.
    """
    if isinstance(scale, Predicted) and (repeats := find_repeats(x)):
        warn_of_unbounded_density(
            f"{name} predicts scales of data with {repeats}",
            f"use {MASSES}, or one scale, 'learned'",
        )
    elif isinstance(scale, Learned) and has_constant_group(x, scale.shape):
        warn_of_unbounded_density(
            f"{name} learns a scale of constant dimensions",
            "leave constant dimensions out, or learn one scale for all dimensions, 'learned'",
        )


def warn_of_ends(name: str, x: Tensor) -> None:
    """Warn if many values of ``x`` in (0, 1) are the least one, near 0, or the largest, near 1."""
    edge = spread_rows(x, MAX_EXAMPLES)
    edge = (edge < 0.01) | (edge > 0.99)
    if edge.any() and (share := share_at_ends(x)) >= 0.1:
        warn_of_unbounded_density(
            f"{name} got {rounded(share)} of the values at one number next to an end of its "
            "interval",
            f"use {MASSES}, or give the ends masses, HurdleLikelihood({name}(), at=(0.0, 1.0))",
        )


def warn_of_unbounded_density(problem: str, remedy: str) -> None:
    """Warn about values at which a density is unbounded."""
    warn(
        f"{problem}, where its density is unbounded: training raises the density of these values "
        f"without limit and neglects the others. To model them, {remedy}"
    )


def rounded(share: float) -> str:
    """Return a share as tens of percent, so that the batches of one data set give one text."""
    return f"about {10 * round(10 * share)}%"


def _share(hits: Tensor, x: Tensor) -> float:
    return int(hits.sum()) / max(1, int((~torch.isnan(x)).sum()))
