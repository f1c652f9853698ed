"""Codecs: arrays of symbols, pushed to and popped from a stack."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tinyvae.compression.stack import Array, Stack, families
from tinyvae.errors import CompressionError

MISSING = -1  # symbol of a missing value
_MASS_BITS = 22
_POSTERIOR_BITS = 16
_EXCESS_BITS = 62


class Codec(ABC):
    """A distribution of integer symbols ``(B, *S)``."""

    @abstractmethod
    def push(self, stack: Stack, symbols: Array) -> None:
        """Push symbols."""

    @abstractmethod
    def pop(self, stack: Stack, observed: Array | None = None) -> Array:
        """Pop symbols. Those that are not ``observed`` are not on the stack."""


class Table(Codec):
    r"""Masses of a finite alphabet, rounded to multiples of :math:`2^{-22}`.

    Each symbol gets at least one multiple, so that an impossible one can be coded, too.

    Args:
        log_masses: ``(B, *S, A)``, nats.
        has_escape: True if the last symbol stands for all larger ones. The excess of a larger one
            is coded by its number of bits, and these.

    Raises:
        CompressionError: By ``push``, if a symbol is not in the alphabet.
    """

    def __init__(self, log_masses: Tensor, *, has_escape: bool = False) -> None:
        masses = torch.nan_to_num(log_masses.exp(), nan=0.0) * 2**_MASS_BITS
        rounded = masses.round_().clamp_(min=1.0).numpy()  # integers, which floats add exactly
        self.shape, self.has_escape = rounded.shape[:-1], has_escape
        self._rows = rounded.reshape(-1, rounded.shape[-1])

    def push(self, stack: Stack, symbols: Array) -> None:
        """Push symbols of the alphabet, without missing ones."""
        is_observed = symbols.reshape(-1) != MISSING
        flat, last = symbols.reshape(-1)[is_observed], self._rows.shape[1] - 1
        if flat.size and (flat.min() < 0 or (flat.max() > last and not self.has_escape)):
            raise CompressionError(
                f"compress expects values from 0 to {last}, got {flat.min()} to {flat.max()}: "
                "check the data, or choose a likelihood of such values"
            )
        if self.has_escape:
            _push_numbers(stack, flat[flat >= last] - last)
        if last:
            stack.push(np.minimum(flat, last), *self._model(is_observed))

    def pop(self, stack: Stack, observed: Array | None = None) -> Array:
        """Pop symbols of the alphabet."""
        is_observed = np.ones(len(self._rows), bool) if observed is None else observed.reshape(-1)
        symbols = np.full(len(self._rows), MISSING, np.int64)
        last = self._rows.shape[1] - 1
        symbols[is_observed] = 0
        if last and is_observed.any():
            symbols[is_observed] = stack.pop(*self._model(is_observed))
        if self.has_escape:
            is_large = symbols == last
            symbols[is_large] += _pop_numbers(stack, int(is_large.sum()))
        return symbols.reshape(self.shape)

    def _model(self, is_observed: Array) -> tuple[object, Array]:
        rows = self._rows[is_observed]
        if rows.shape[1] == 2:
            return families.Bernoulli(perfect=False), rows[:, 1] / rows.sum(1)
        return families.Categorical(perfect=False), rows


def _push_numbers(stack: Stack, numbers: Array) -> None:
    """Push numbers from 0 to 2^62 - 2: their bits in chunks, then how many there are."""
    shifted = numbers.astype(np.int64) + 1
    widths = np.frexp(shifted.astype(np.float64))[1].astype(np.int64) - 1
    widths -= (shifted >> widths) == 0  # rounded up to a power of two
    rest = shifted - (np.int64(1) << widths)
    for low in range(0, _EXCESS_BITS, 16):
        stack.push((rest >> low)[widths > low] & 0xFFFF, *_chunk(widths, low))
    stack.push(widths, families.Uniform(_EXCESS_BITS))


def _pop_numbers(stack: Stack, count: int) -> Array:
    if not count:
        return np.zeros(0, np.int64)
    widths = stack.pop(families.Uniform(_EXCESS_BITS), count).astype(np.int64)
    rest = np.zeros(count, np.int64)
    for low in reversed(range(0, _EXCESS_BITS, 16)):
        if (widths > low).any():
            rest[widths > low] |= stack.pop(*_chunk(widths, low)).astype(np.int64) << low
    return (np.int64(1) << widths) + rest - 1


def _chunk(widths: Array, low: int) -> tuple[object, Array]:
    """Return the model of the up to 16 bits from ``low`` of the numbers that have these."""
    return families.Uniform(), (1 << np.minimum(widths[widths > low] - low, 16)).astype(np.int32)


@dataclass(frozen=True)
class Columns(Codec):
    """Columns of a table: codecs by the positions of their columns."""

    blocks: Sequence[tuple[Array, Codec]]

    def push(self, stack: Stack, symbols: Array) -> None:
        """Push the symbols of every block, the last one first."""
        for positions, codec in reversed(self.blocks):
            codec.push(stack, symbols[:, positions])

    def pop(self, stack: Stack, observed: Array | None = None) -> Array:
        """Pop the symbols of every block."""
        parts = [
            codec.pop(stack, None if observed is None else observed[:, positions])
            for positions, codec in self.blocks
        ]
        order = np.argsort(np.concatenate([positions for positions, _ in self.blocks]))
        return np.concatenate(parts, 1)[:, order]


@dataclass(frozen=True)
class Masked(Codec):
    """A codec of observed values, preceded by the mask.

    Args:
        base: Codec of the values.
        mask: Codec of the mask, 1 if a value is observed.
    """

    base: Codec
    mask: Codec

    def push(self, stack: Stack, symbols: Array) -> None:
        """Push the observed values, then the mask."""
        self.base.push(stack, symbols)
        self.mask.push(stack, (symbols != MISSING).astype(np.int64))

    def pop(self, stack: Stack, observed: Array | None = None) -> Array:
        """Pop the mask, then the observed values."""
        return self.base.pop(stack, self.mask.pop(stack) == 1)


@dataclass(frozen=True)
class Certain(Codec):
    """Symbols that are known, which takes no bits."""

    symbols: Array

    def push(self, stack: Stack, symbols: Array) -> None:
        """Push nothing.

        Raises:
            CompressionError: If the symbols are others.
        """
        if not np.array_equal(symbols, self.symbols):
            raise _impossible("codes")

    def pop(self, stack: Stack, observed: Array | None = None) -> Array:
        """Return the symbols."""
        return self.symbols


@dataclass(frozen=True)
class Grid:
    r"""Multiples of a step, in place of the real numbers: bins around :math:`k\, 2^{-e}`.

    Args:
        exponent: :math:`e`.
        highest: Largest :math:`|k|`. The outermost bins are unbounded.
    """

    exponent: int
    highest: int

    @property
    def step(self) -> float:
        """Width of a bin."""
        return float(2.0**-self.exponent)


@dataclass(frozen=True)
class GaussianPrior(Codec):
    """Masses of the bins of a grid under normal distributions, each at least 2^-24.

    Args:
        mean: ``(B, *S)``.
        std: ``(B, *S)``.
        grid: Bins.
    """

    mean: Array
    std: Array
    grid: Grid

    def push(self, stack: Stack, symbols: Array) -> None:
        """Push the numbers of bins."""
        stack.push(symbols, *self._model())

    def pop(self, stack: Stack, observed: Array | None = None) -> Array:
        """Pop the numbers of bins."""
        return stack.pop(*self._model()).astype(np.int64).reshape(self.mean.shape)

    def _model(self) -> tuple[object, Array, Array]:
        mean, std = (part.reshape(-1) / self.grid.step for part in (self.mean, self.std))
        return families.QuantizedGaussian(-self.grid.highest, self.grid.highest), mean, std


@dataclass(frozen=True)
class GaussianPosterior(Codec):
    r"""Masses of the bins of a grid under normal distributions, rounded to multiples of 2^-16.

    Bins far from the mean have mass zero and are never drawn, in contrast to
    :class:`GaussianPrior`, which must be able to code every bin.

    A pop takes 16 bits :math:`u`, finds the bin whose interval :math:`[a, b)` of the distribution
    function contains them, and pushes :math:`u - a`, uniform on the interval.

    Args:
        mean: ``(B, *S)``.
        std: ``(B, *S)``.
        grid: Bins.
    """

    mean: Tensor
    std: Tensor
    grid: Grid

    def push(self, stack: Stack, symbols: Array) -> None:
        """Push the numbers of bins.

        Raises:
            CompressionError: If a bin has mass zero.
        """
        start, size = self._intervals(torch.from_numpy(symbols))
        if (size <= 0).any():
            raise _impossible("latents")
        is_wide, rest = size > 1, np.zeros_like(start)
        if is_wide.any():
            rest[is_wide] = stack.pop(families.Uniform(), size[is_wide])
        stack.push(start + rest, families.Uniform(2**_POSTERIOR_BITS))

    def pop(self, stack: Stack, observed: Array | None = None) -> Array:
        """Pop the numbers of bins."""
        bits = stack.pop(families.Uniform(2**_POSTERIOR_BITS), self.mean.numel())
        u = torch.from_numpy(bits.astype(np.int64)).reshape(self.mean.shape)
        quantile = torch.special.ndtri((u + 0.5) / 2**_POSTERIOR_BITS)
        bins = ((self.mean + self.std * quantile) / self.grid.step).round()
        highest = self.grid.highest
        bins = bins.clamp(-highest, highest).long()
        while (shift := (self._cdf(bins + 1) <= u).long() - (self._cdf(bins) > u).long()).any():
            bins += shift
        start, size = self._intervals(bins)
        is_wide = size > 1
        stack.push((bits - start)[is_wide], families.Uniform(), size[is_wide])
        drawn: Array = bins.numpy()
        return drawn

    def _cdf(self, bins: Tensor) -> Tensor:
        """Return the distribution function at the lower ends of bins, in multiples of 2^-16."""
        ends = (bins - 0.5) * self.grid.step
        cdf = torch.special.ndtr((ends - self.mean) / self.std) * 2**_POSTERIOR_BITS
        rounded: Tensor = cdf.round().long()
        rounded = rounded.masked_fill(bins <= -self.grid.highest, 0)
        return rounded.masked_fill(bins > self.grid.highest, 2**_POSTERIOR_BITS)

    def _intervals(self, bins: Tensor) -> tuple[Array, Array]:
        """Return the starts and the sizes of the bins' intervals, flat."""
        start = self._cdf(bins).flatten().numpy().astype(np.int32)
        end = self._cdf(bins + 1).flatten().numpy().astype(np.int32)
        return start, end - start


def _impossible(what: str) -> CompressionError:
    return CompressionError(
        f"decompress expects {what} that the encoder could have drawn, got others: the file is "
        "damaged, or its networks were computed on another kind of machine"
    )
