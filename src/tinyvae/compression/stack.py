"""A stack of bits: asymmetric numeral systems over arrays of symbols."""

import hashlib
from typing import Any, TypeAlias

import constriction
import numpy as np

from tinyvae.errors import CompressionError

Array: TypeAlias = np.ndarray[Any, Any]
families = constriction.stream.model


class Stack:
    """Symbols that were pushed with a model are popped with the same model, in reverse order.

    A push adds about -log2 p bits, a pop takes as many away. So the pop of a symbol from a
    distribution is a draw from it, and the push of this symbol returns the bits that it took.

    Args:
        words: Words of 32 bits, of which the last one is not zero.

    Attributes:
        lowest: Number of words at the lowest level of the stack so far.

    References:
        Duda (2009). Asymmetric numeral systems. arXiv:0902.0271. Bamler (2022). Understanding
        entropy coding with asymmetric numeral systems (ANS). arXiv:2201.01741.

    Example:
        >>> stack, coin = Stack(initial_words(4)), families.Bernoulli(0.25, perfect=False)
        >>> stack.push(np.array([0, 1, 1]), coin)
        >>> stack.pop(coin, 3), len(stack.words())
        (array([0, 1, 1], dtype=int32), 4)
    """

    def __init__(self, words: Array) -> None:
        self._coder = constriction.stream.stack.AnsCoder(np.ascontiguousarray(words, np.uint32))
        self.lowest = len(words)

    def push(self, symbols: Array, model: Any, *params: Array) -> None:
        """Push an array of symbols, the last one first, with one model or one per symbol."""
        if symbols.size:
            flat = np.ascontiguousarray(symbols.reshape(-1), np.int32)
            self._coder.encode_reverse(flat, model, *params)

    def pop(self, model: Any, *params: Any) -> Array:
        """Pop an array of symbols: as many as there are parameters, or a number of them.

        Raises:
            CompressionError: If the stack is empty.
        """
        symbols: Array = self._coder.decode(model, *params)
        self.lowest = min(self.lowest, self._coder.num_words())
        if self.lowest < 2:
            raise CompressionError(
                "decompress expects enough bits for all examples, got too few: the file is damaged"
            )
        return symbols

    def words(self) -> Array:
        """Return the words of the stack, the lowest one first."""
        words: Array = self._coder.get_compressed()
        return words


def initial_words(count: int) -> Array:
    """Return the initial bits: the first words of a fixed random sequence, in reverse order.

    The top of the stack is the end of the array, so that unused words are at its start.
    """
    stream = hashlib.shake_256(b"tinyvae.compression").digest(4 * count)
    words = np.frombuffer(stream, "<u4").astype(np.uint32)
    return words[::-1] | np.uint32(1)  # a stack must not end in zero
