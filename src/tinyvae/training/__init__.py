"""Training: a loop that knows objectives and batches, and no particular model."""

from tinyvae.training.callbacks import Callback, EarlyStopping
from tinyvae.training.checkpoint import Checkpoint
from tinyvae.training.finite import NonFiniteError
from tinyvae.training.history import History
from tinyvae.training.optimization import Optimization
from tinyvae.training.seeds import Stream, derive_seed, epoch_order
from tinyvae.training.speed import Speed
from tinyvae.training.trainer import Trainer

__all__ = [
    "Callback",
    "Checkpoint",
    "EarlyStopping",
    "History",
    "NonFiniteError",
    "Optimization",
    "Speed",
    "Stream",
    "Trainer",
    "derive_seed",
    "epoch_order",
]
