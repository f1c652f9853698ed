"""Training: a loop that knows objectives and batches, and no particular model."""

from tinyvae.training.acceleration.allocator import tune_malloc as tune_malloc
from tinyvae.training.acceleration.options import Speed as Speed
from tinyvae.training.averaging import ExponentialMovingAverage as ExponentialMovingAverage
from tinyvae.training.averaging import StochasticWeightAverage as StochasticWeightAverage
from tinyvae.training.averaging import WeightAverage as WeightAverage
from tinyvae.training.callbacks import Callback as Callback
from tinyvae.training.checkpoints.checkpoint import Checkpoint as Checkpoint
from tinyvae.training.history import History as History
from tinyvae.training.monitoring import EarlyStopping as EarlyStopping
from tinyvae.training.optimization import Optimization as Optimization
from tinyvae.training.state import TrainState as TrainState
from tinyvae.training.trainer import Trainer as Trainer
