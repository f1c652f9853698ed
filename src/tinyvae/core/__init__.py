"""What models and the Trainer share: batches, objectives, random numbers, the state of modules."""

from tinyvae.core.objective import Batch as Batch
from tinyvae.core.objective import Objective as Objective
from tinyvae.core.objective import ObjectiveOutput as ObjectiveOutput
