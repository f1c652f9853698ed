"""Data on a stack: codecs of likelihoods that are masses."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tinyvae.compression.codecs import MISSING, Codec, Columns, Masked, Table
from tinyvae.compression.stack import Array
from tinyvae.distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    Independent,
    MaskedDistribution,
    OneHotDistribution,
    TabularDistribution,
)

_LARGEST_ALPHABET = 2**12
_ELEMENTS_AT_ONCE = 2**20


@dataclass(frozen=True)
class DataSummary:
    """Summary of the data in the header of a file, for each column or for all dimensions at once.

    Attributes:
        highest: Largest value. Masses of larger ones are left out.
        missing: Number of missing values.
        num_values: Number of values, with missing ones.
    """

    highest: Sequence[int]
    missing: Sequence[int]
    num_values: int

    @classmethod
    def of(cls, x: Tensor, *, by_column: bool) -> "DataSummary":
        """Return the summary of data ``(N, *E)``."""
        rows = x if by_column else x.reshape(-1, 1)
        is_missing = torch.isnan(rows)
        highest = torch.where(is_missing, 0.0, rows).amax(0)
        return cls([int(v) for v in highest], [int(n) for n in is_missing.sum(0)], len(rows))


def data_codec(p: Distribution, summary: DataSummary) -> Codec:
    """Return the codec of data under p(x given z), of batch shape ``(1, B)``.

    Raises:
        TypeError: If the likelihood is not a mass of independent elements.
    """
    base = _observed(p)
    codec: Codec
    if isinstance(base, TabularDistribution):
        blocks = []
        for block, positions in zip(base.blocks, base.positions, strict=True):
            columns = positions.numpy()
            highest = max(summary.highest[column] for column in columns)
            blocks.append((columns, _table(block, highest)))
        codec = Columns(blocks)
    else:
        codec = _table(base, max(summary.highest))
    if not any(summary.missing):
        return codec
    shape = (*p.batch_shape[1:], *p.event_shape)
    missing = torch.tensor(summary.missing, dtype=torch.float64) / summary.num_values
    chances = torch.stack([missing, 1 - missing], -1).expand(*shape, 2)
    return Masked(codec, Table(chances.log()))


def symbols_of(p: Distribution, x: Tensor) -> Array:
    """Return the symbols of data ``(B, *E)``: integers, -1 at missing entries.

    Raises:
        ValueError: If the data have no mass.
    """
    if isinstance(p, OneHotDistribution):
        symbols = x.argmax(p.dim)
        is_valid = bool((F.one_hot(symbols, x.shape[p.dim]).movedim(-1, p.dim) == x).all())
    else:
        filled = torch.nan_to_num(x, nan=float(MISSING))
        symbols = filled.long()
        is_valid = bool(((symbols == filled) & ((symbols >= 0) | torch.isnan(x))).all())
    if not is_valid:
        kind = "one-hot rows" if isinstance(p, OneHotDistribution) else "integers of at least 0"
        raise ValueError(
            f"compress expects {kind} for {p}, got other values: binarize gray levels, or use a "
            "likelihood of levels such as DiscretizedLogisticLikelihood"
        )
    return symbols.numpy()


def values_of(p: Distribution, symbols: Array) -> Tensor:
    """Return the data ``(B, *E)`` that symbols stand for, in float64."""
    index = torch.from_numpy(symbols)
    if isinstance(p, OneHotDistribution):
        return F.one_hot(index, p.event_shape[0]).movedim(-1, p.dim).double()
    return index.double().masked_fill(index == MISSING, torch.nan)


def is_table(p: Distribution) -> bool:
    """Return True if p(x given z) is that of columns with different likelihoods."""
    return isinstance(_observed(p), TabularDistribution)


def largest_alphabet(p: Distribution, summary: DataSummary) -> int:
    """Return the largest number of masses of one element."""
    if isinstance(p, OneHotDistribution):
        return 1  # the classes are among the elements
    elements = _observed(p)
    classes = elements.logits.shape[elements.dim] if isinstance(elements, Categorical) else 0
    return max(classes, min(max(summary.highest) + 1, _LARGEST_ALPHABET))


def _observed(p: Distribution) -> Distribution:
    """Return the distributions of observed elements, or refuse."""
    elements = p.base if isinstance(p, Independent) else p
    if isinstance(elements, OneHotDistribution):
        return elements
    if not (isinstance(p, Independent) and p.is_discrete is True and not elements.event_shape):
        raise TypeError(
            f"compress expects a likelihood that is a product of masses, got {p}: a density has no "
            "finite number of bits. Round the data, and use DiscretizedLogisticLikelihood, "
            "CategoricalLikelihood or OrdinalLikelihood for levels, BernoulliLikelihood for bits, "
            "or PoissonLikelihood or NegativeBinomialLikelihood for counts"
        )
    return elements.base if isinstance(elements, MaskedDistribution) else elements


def _table(p: Distribution, highest: int) -> Table:
    """Return the table of the masses of each element of a scalar family or of one-hot values."""
    if isinstance(p, Bernoulli):
        logits = p.logits
        return Table(torch.stack([F.logsigmoid(-logits), F.logsigmoid(logits)], -1).squeeze(0))
    if isinstance(p, (Categorical, OneHotDistribution)):
        return Table(p.logits.log_softmax(p.dim).movedim(p.dim, -1).squeeze(0))
    size = min(highest + 1, _LARGEST_ALPHABET)
    has_escape = highest + 1 > size
    values = torch.arange(size, dtype=torch.float64).reshape(-1, *[1] * len(p.batch_shape))
    parts = values.split(max(1, _ELEMENTS_AT_ONCE // p.batch_shape.numel()))
    log_masses = torch.cat([p.log_prob(part.expand(-1, *p.batch_shape)) for part in parts])
    if has_escape:  # the last symbol stands for all others
        rest = 1 - log_masses[:-1].exp().sum(0, keepdim=True)
        log_masses[-1:] = torch.log(rest.clamp(min=torch.finfo(torch.float64).tiny))
    return Table(log_masses.movedim(0, -1).squeeze(0), has_escape=has_escape)
