"""Copies of a run's state, which a thread writes while the run changes."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from tinyvae.io import encode_state

FINITE = ("model", "objective", "optimizers")


def copy_state(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], Any]:
    """Return copies of the tensors of a state on the CPU, and the JSON that names them."""
    tensors: dict[str, Tensor] = {}
    form = []
    for name, part in state.items():
        encoded, part_tensors = encode_state(part, name, finite=name in FINITE)
        form.append([name, encoded])
        for key, tensor in part_tensors.items():
            # Contiguous, so that the file is written without a second copy.
            tensors[key] = tensor.detach().to("cpu", copy=True).contiguous()
    return tensors, {"dict": form}


@contextmanager
def enough_memory(path: Path) -> Iterator[None]:
    """Replace an error about a lack of memory in the block by one that names the checkpoint."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "DefaultCPUAllocator" not in str(error):
            raise
        raise MemoryError(
            f"Checkpoint expects memory for one copy of the run's state, got none for {path}: "
            "earlier checkpoints are complete; free memory, or make the model or the batches "
            "smaller, and resume the run"
        ) from error
