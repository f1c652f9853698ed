"""Exceptions of the library.

Each is a :class:`TinyVAEError` and also the built-in exception with the same meaning::

    TinyVAEError
    ├── CheckpointError      RuntimeError
    ├── CompressionError     ValueError
    ├── ContractError        AssertionError (in tinyvae.testing)
    ├── DataWorkerError      RuntimeError
    ├── NoClosedFormError    NotImplementedError
    ├── NonFiniteError       ArithmeticError
    └── PosteriorError       TypeError, ValueError

A wrong argument raises a plain ``TypeError`` or ``ValueError``.
"""


class TinyVAEError(Exception):
    """Base class of the library's own errors."""


class CheckpointError(TinyVAEError, RuntimeError):
    """Damaged, hostile, foreign or newer file. Nothing was loaded.

    A file may determine parts of the message. So each of its lines is cleaned by :func:`printable`.

    Args:
        lines: Lines of the message.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__(*map(printable, lines))

    def __str__(self) -> str:
        return "\n".join(self.args)


class CompressionError(TinyVAEError, ValueError):
    """Data that cannot be compressed, or a damaged or foreign compressed file."""


class DataWorkerError(TinyVAEError, RuntimeError):
    """Death of a process that reads data."""


class NoClosedFormError(TinyVAEError, NotImplementedError):
    """Kullback-Leibler divergence without a closed form. Estimate it by samples."""


class NonFiniteError(TinyVAEError, ArithmeticError):
    """NaN or infinity in losses, gradients, weights, buffers or the state of an optimizer.

    A step with such losses or gradients was not taken.
    """


class PosteriorError(TinyVAEError, TypeError, ValueError):
    """Wrong return value of an encoder, other than the posterior that it declares."""


def printable(text: str) -> str:
    r"""Return a text as one line of at most 1,000 characters, without codes for the terminal.

    Example:
        >>> printable("the\nname \x1b[2J")
        'the name ?[2J'
    """
    if len(text) > 1000:
        text = f"{text[:700]} ... {text[-295:]}"  # the remedy is at the end
    text = "".join(" " if character.isspace() else character for character in text)
    return "".join(character if character.isprintable() else "?" for character in text)
