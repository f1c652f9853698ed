"""Exceptions of the library.

Each is a :class:`TinyVAEError` and also the built-in exception with the same meaning::

    TinyVAEError
    ├── CheckpointError      RuntimeError
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
    """Damaged, hostile, foreign or newer file. Nothing was loaded."""


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
