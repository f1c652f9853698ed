"""Common ground of models and the Trainer: batches, objectives, random numbers, module state."""

from tinyvae.core.objective import Batch as Batch
from tinyvae.core.objective import Objective as Objective
from tinyvae.core.objective import ObjectiveOutput as ObjectiveOutput
