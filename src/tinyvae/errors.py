"""Errors that the library raises.

Each is a :class:`TinyVAEError`, and also the built-in exception whose meaning it shares::

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
    """A file is damaged, hostile, of another origin or of a newer version. Nothing was loaded."""


class DataWorkerError(TinyVAEError, RuntimeError):
    """A process that reads data has died."""


class NoClosedFormError(TinyVAEError, NotImplementedError):
    """The Kullback-Leibler divergence of this pair has no closed form. Estimate it by samples."""


class NonFiniteError(TinyVAEError, ArithmeticError):
    """A loss or a gradient was NaN or infinite and its step was not taken, or weights became so."""


class PosteriorError(TinyVAEError, TypeError, ValueError):
    """An encoder returned something other than the posterior that it promises."""
