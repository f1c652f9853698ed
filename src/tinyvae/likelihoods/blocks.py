"""Blocks of columns that share a likelihood."""

from collections.abc import Sequence
from itertools import groupby

from tinyvae.likelihoods.base import Likelihood
from tinyvae.likelihoods.bounded import LogitNormalLikelihood
from tinyvae.likelihoods.columns import Column
from tinyvae.likelihoods.continuous import LogNormalLikelihood, StudentTLikelihood
from tinyvae.likelihoods.counts import NegativeBinomialLikelihood
from tinyvae.likelihoods.discrete import CategoricalLikelihood
from tinyvae.likelihoods.gaussian import GaussianLikelihood
from tinyvae.likelihoods.hurdle import HurdleLikelihood
from tinyvae.likelihoods.ordinal import OrdinalLikelihood
from tinyvae.likelihoods.parameters import Learned
from tinyvae.likelihoods.wrappers import MixtureLikelihood, StandardizedLikelihood


def group_columns(columns: Sequence[Column], custom: Sequence[str]) -> list[list[int]]:
    """Return the positions of the columns of each block.

    Columns of one kind share a block if they have equally many levels, components or points.
    Each column in ``custom`` is a block of its own.
    """

    def key(index: int) -> tuple[str, int, str]:
        column = columns[index]
        if column.name in custom:
            return ("own", index, "")
        if column.has_levels:
            return ("ordinal" if column.kind == "ordinal" else "category", len(column.levels), "")
        if column.kind == "date":
            return ("number", 0, "")
        size = column.num_components if column.kind == "modes" else len(column.points)
        return (column.kind, size, column.rest)

    ordered = sorted(range(len(columns)), key=key)
    return [list(group) for _, group in groupby(ordered, key)]


def build_block(columns: Sequence[Column]) -> Likelihood:
    """Return the likelihood that columns of one kind share."""
    first = columns[0]
    if first.kind == "ordinal":
        num_levels = len(first.levels)
        even = (1 / num_levels,) * num_levels
        rows = [column.frequencies or even for column in columns]
        frequencies = list(zip(*rows, strict=True))  # (L, D)
        return OrdinalLikelihood(num_levels, shape=(len(columns),), frequencies=frequencies)
    if first.has_levels:
        return CategoricalLikelihood(len(first.levels))
    learned = Learned((len(columns),), initial=[column.initial for column in columns])
    scales = [column.scale for column in columns]
    shifts = [column.shift for column in columns]
    if first.kind == "count":
        return NegativeBinomialLikelihood(learned, baseline=scales)
    if first.kind == "bounded":
        low, high = zip(*(column.bounds for column in columns), strict=True)
        return _with_points(LogitNormalLikelihood(learned, low=low, high=high), columns)
    kind = first.rest or first.kind
    if kind == "positive":
        density: Likelihood = StandardizedLikelihood(LogNormalLikelihood(learned), std=scales)
    elif kind == "heavy":
        df = Learned((len(columns),), initial=4.0, minimum=1.0)
        density = StandardizedLikelihood(
            StudentTLikelihood(learned, df=df), mean=shifts, std=scales
        )
    elif kind == "modes":
        mixture = MixtureLikelihood(
            GaussianLikelihood(learned), num_components=first.num_components
        )
        density = StandardizedLikelihood(mixture, mean=shifts, std=scales)
    else:
        density = StandardizedLikelihood(GaussianLikelihood(learned), mean=shifts, std=scales)
    return _with_points(density, columns)


def _with_points(likelihood: Likelihood, columns: Sequence[Column]) -> Likelihood:
    """Return a likelihood that has masses at the points of the columns, if they have points."""
    if not columns[0].points:
        return likelihood
    return HurdleLikelihood(
        likelihood, at=list(zip(*(column.points for column in columns), strict=True))
    )
