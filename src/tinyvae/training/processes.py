"""Several processes that train one model: their shares of the data, and what they exchange.

``torchrun`` starts the processes. Each computes the gradients of its share of a batch, and one
call per dtype and device sums them. DistributedDataParallel would overlap that sum with the
backward pass, but it cannot train several losses of one pass, and it averages processes, not
examples.
"""

import atexit
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tinyvae.core.random import Stream, derive_seed


@dataclass(frozen=True)
class Processes:
    """Processes of a run. All of them call the methods that exchange values, in the same order.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes. With one, nothing is exchanged.
    """

    rank: int = 0
    size: int = 1

    def share(self, num_examples: int) -> slice:
        """Return the consecutive examples of a batch that this process reads.

        Example:
            >>> [Processes(rank, 3).share(8) for rank in range(3)]
            [slice(0, 2, None), slice(2, 5, None), slice(5, 8, None)]
        """
        return slice(
            num_examples * self.rank // self.size, num_examples * (self.rank + 1) // self.size
        )

    def seed(self, seed: int, stream: Stream, epoch: int = 0, *indices: int) -> int:
        """Return :func:`~tinyvae.core.random.derive_seed`, but another one in each process.

        The first process has the seed of a run in one process.
        """
        rank = (self.rank,) if self.rank else ()
        return derive_seed(seed, stream, epoch, *indices, *rank)

    def mean(
        self, tensors: Sequence[Tensor], weight: float, flags: Sequence[bool]
    ) -> tuple[list[Tensor], float, list[bool]]:
        """Return the means of tensors, the total weight, and if any process raises each flag.

        Weight and flags are exchanged on the CPU, so that the host does not wait for a device, and
        with the tensors if those are on the CPU, too.

        Args:
            tensors: Tensors of the same shapes in all processes: means over this one's examples.
            weight: Total weight of these examples. With 0 its tensors do not count.
            flags: Flags of this process.
        """
        dtype = torch.promote_types(tensors[0].dtype, torch.float32)
        header = torch.tensor([weight, *map(float, flags)], dtype=dtype)
        every = [header, *tensors]
        kinds: dict[tuple[torch.dtype, torch.device], list[int]] = {}
        for index, tensor in enumerate(every):
            kinds.setdefault((tensor.dtype, tensor.device), []).append(index)
        sums = [torch.cat([every[i].reshape(-1) for i in indices]) for indices in kinds.values()]
        means = [sums[0][len(header) :], *sums[1:]]  # views without the header
        for part in means:
            part.mul_(weight) if weight else part.zero_()  # zero times NaN would be NaN
        with naming_lost_processes():
            for work in [dist.all_reduce(part, async_op=True) for part in sums]:
                work.wait()
        total, *counts = sums[0][: len(header)].tolist()
        for flat, part, indices in zip(sums, means, kinds.values(), strict=True):
            part.div_(total or 1.0)  # all weights may be 0
            pieces = flat.split([every[i].numel() for i in indices])
            for index, piece in zip(indices, pieces, strict=True):
                every[index] = piece.view(every[index].shape)
        return every[1:], total, [number > 0 for number in counts]

    def total(self, numbers: Sequence[float]) -> list[float]:
        """Return the sums of numbers over the processes."""
        return self._reduced(numbers, dist.ReduceOp.SUM)

    def any(self, flags: Sequence[bool]) -> list[bool]:
        """Return for each flag if any process raises it."""
        return [number > 0 for number in self.total([*map(float, flags)])]

    def differ(self, numbers: Sequence[float]) -> list[bool]:
        """Return for each number if the processes have different ones."""
        largest = self._reduced(numbers, dist.ReduceOp.MAX)
        smallest = self._reduced(numbers, dist.ReduceOp.MIN)
        return [most != least for most, least in zip(largest, smallest, strict=True)]

    def copy_from_first(self, *modules: nn.Module) -> None:
        """Give the modules of all processes the parameters and buffers of the first process."""
        if self.size == 1:
            return
        devices: dict[torch.device, list[Tensor]] = {}
        for module in modules:
            for tensor in (*module.parameters(), *module.buffers()):
                devices.setdefault(tensor.device, []).append(tensor.detach())
        for tensors in devices.values():
            pieces = [t.contiguous().reshape(-1).view(torch.uint8) for t in tensors]
            sizes, everything = [len(piece) for piece in pieces], torch.cat(pieces)
            with naming_lost_processes():
                dist.broadcast(everything, src=0)
            for tensor, piece in zip(tensors, everything.split(sizes), strict=True):
                tensor.copy_(piece.clone().view(tensor.dtype).view(tensor.shape))

    @contextmanager
    def leaving_together(self) -> Iterator[None]:
        """Wait for all processes at the end of the block, unless it raises."""
        yield
        self.total([0.0])

    def _reduced(self, numbers: Sequence[float], operation: dist.ReduceOp.RedOpType) -> list[float]:
        if self.size == 1:
            return list(numbers)
        values = torch.tensor(numbers, dtype=torch.float64)
        with naming_lost_processes():
            dist.all_reduce(values, operation)
        reduced: list[float] = values.tolist()
        return reduced


ONE_PROCESS = Processes()


def joined_processes(device: torch.device) -> Processes:
    """Return the processes of torch's process group, which is made if torchrun started them.

    It lives until the interpreter ends, so that a second call finds it.

    Raises:
        ValueError: If the group cannot exchange tensors on a CPU.
    """
    if not dist.is_available():
        return ONE_PROCESS
    if not dist.is_initialized():
        if not dist.is_torchelastic_launched() or int(os.environ["WORLD_SIZE"]) == 1:
            return ONE_PROCESS
        # An optimizer imports it. Imported later, it would keep the group, whose threads would then
        # end the interpreter by an error.
        import torch._dynamo  # noqa: F401

        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        store, rank, size = _store_of_this_start()
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
        atexit.register(dist.destroy_process_group)
    backends = dist.get_backend_config()
    if "cpu" not in backends:
        raise ValueError(
            f"fit expects a process group that also serves CPUs, got {backends!r}: use "
            "init_process_group('cpu:gloo,cuda:nccl'), or leave it to fit"
        )
    return Processes(dist.get_rank(), dist.get_world_size())


def _store_of_this_start() -> tuple[Any, int, int]:
    """Return torchrun's store, with keys of this start only, and the rank and number of processes.

    The store outlives the processes that torchrun restarts, so it still has the addresses of the
    dead ones. The first process therefore names the start, and confirms the name to each other one.
    """
    torch_distributed: Any = dist  # its type stubs lack these names
    prefixed, rendezvous = torch_distributed.PrefixStore, torch_distributed.rendezvous
    store, rank, size = next(rendezvous("env://"))
    name = uuid4().hex
    if rank == 0:
        store.set("start", name)
        for other in range(1, size):
            store.set(f"{name}/{store.get(f'{name}/{other}').decode()}", "")
        return prefixed(name, store), rank, size
    while True:
        start = store.get("start").decode()
        store.set(f"{start}/{rank}", name)
        with suppress(dist.DistStoreError):  # the first process of an earlier start does not answer
            store.wait([f"{start}/{name}"], timedelta(seconds=1))
            return prefixed(start, store), rank, size


@contextmanager
def naming_lost_processes() -> Iterator[None]:
    """Replace torch's error about a lost connection in the block by one that says where to look."""
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError(
            f"process {dist.get_rank()} expects all {dist.get_world_size()} processes to train, "
            "got no answer from another one: look for its error in the output, then start all "
            f"processes again ({error!s:.200})"
        ) from error
