"""Copies of buffers, such as running statistics, with which a step is undone."""

from typing import Any

import torch
from torch import Tensor, nn

from tinyvae.core.objective import Objective


class BufferBackup:
    """Copies of all buffers of model and objective as they were before a step.

    A buffer that the first step does not change is a constant: it is copied once, and again only
    after a write to it.

    Args:
        model: The model.
        objective: The objective.
    """

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        modules = (*model.named_modules(), *objective.named_modules(prefix="objective"))
        owners = [(f"{path}.{key}", m._buffers, key) for path, m in modules for key in m._buffers]
        self._names = [name.removeprefix(".") for name, _, _ in owners]
        self._owners = [(buffers, key) for _, buffers, key in owners]
        self._tensors: list[Tensor | None] = []  # the buffers themselves, before the step
        self._copies: list[Tensor | None] = []
        self._was_finite: list[bool] = []
        # Constants: index, owner, name, tensor, and version when it was copied.
        self._constants: list[tuple[int, dict[str, Tensor | None], str, Any, int]] = []
        self._changing = list(range(len(owners)))
        self._knows_constants = False

    def keep(self, flag: Tensor | None = None) -> None:
        """Copy the buffers before a step, unless ``flag``, a 0-d tensor, is not zero.

        The flag belongs to an earlier step. The host does not wait for it, unless a buffer has
        another shape than before.
        """
        if self._knows_constants and not self._changing and not self._written():
            return
        tensors = self._current()
        if not self._copies:
            self._copies = [None if t is None else t.clone() for t in tensors]
            self._was_finite = [_is_finite(tensor) for tensor in tensors]
        self._watch()
        self._tensors = tensors
        pairs: list[tuple[Tensor, Tensor]] = []
        for index in self._changing:
            tensor, copy = tensors[index], self._copies[index]
            if tensor is not None and copy is not None and _fits(copy, tensor):
                pairs.append((copy, tensor))
            elif flag is None or not flag.item():  # rare enough to wait for the device
                self._copies[index] = None if tensor is None else tensor.clone()
        with torch.no_grad():
            if pairs and flag is None:
                copies, originals = zip(*pairs, strict=True)
                torch._foreach_copy_(copies, originals)
            elif flag is not None:
                _copy_unless(flag != 0, pairs)

    def changed(self) -> dict[str, Tensor]:
        """Return the floating-point buffers that steps change, by name, after a forward pass.

        Those that were not finite before the first step are left out.
        """
        if not self._copies:  # no step yet
            return {}
        if not self._knows_constants:
            self._find_constants(self._current())
        self._watch()  # a step may be the first to write to a buffer
        changing = {}
        for index in self._changing:
            buffers, key = self._owners[index]
            tensor = buffers.get(key)
            if tensor is not None and _has_numbers(tensor) and self._was_finite[index]:
                changing[self._names[index]] = tensor
        return changing

    @torch.no_grad()
    def restore(self) -> None:
        """Restore the buffers of the last call of :meth:`keep` that copied them."""
        self._watch()
        for index in self._changing:
            buffers, key = self._owners[index]
            tensor, copy = self._tensors[index], self._copies[index]
            if buffers.get(key) is tensor and (tensor is None or _same(tensor, copy)):
                continue
            if tensor is not None and copy is not None and _fits(copy, tensor):
                if not torch.equal(tensor, copy):  # an expanded tensor cannot be written to
                    tensor.copy_(copy)
                buffers[key] = tensor
            else:
                buffers[key] = None if copy is None else copy.clone()

    def _current(self) -> list[Tensor | None]:
        return [buffers.get(key) for buffers, key in self._owners]

    def _find_constants(self, tensors: list[Tensor | None]) -> None:
        """Find the buffers that the first step left unchanged."""
        triples = zip(tensors, self._tensors, self._copies, strict=True)
        is_constant = [
            tensor is before and (tensor is None or _same(tensor, copy))
            for tensor, before, copy in triples
        ]
        self._changing = [index for index, constant in enumerate(is_constant) if not constant]
        self._constants = [
            (index, *self._owners[index], tensors[index], _version(tensors[index]))
            for index, constant in enumerate(is_constant)
            if constant
        ]
        self._knows_constants = True

    def _written(self) -> list[int]:
        """Return the constants that were replaced or written to."""
        return [
            index
            for index, buffers, key, tensor, version in self._constants
            if (version >= 0 and tensor._version != version) or buffers.get(key) is not tensor
        ]

    def _watch(self) -> None:
        """Treat constants that were written to as changing from now on."""
        if written := self._written():
            self._constants = [entry for entry in self._constants if entry[0] not in written]
            self._changing = sorted([*self._changing, *written])


def _version(tensor: Tensor | None) -> int:
    """Return the number of writes to a tensor, without those through ``.data``; -1 if unknown."""
    return -1 if tensor is None or tensor.is_inference() else tensor._version


def _same(tensor: Tensor, copy: Tensor | None) -> bool:
    """Return True if values are equal. Sparse tensors are compared by identity only."""
    return tensor.layout is not torch.strided or (copy is not None and torch.equal(tensor, copy))


def _has_numbers(tensor: Tensor) -> bool:
    is_floating = tensor.is_floating_point() or tensor.is_complex()
    return is_floating and tensor.layout is torch.strided


def _is_finite(tensor: Tensor | None) -> bool:
    return tensor is None or not _has_numbers(tensor) or bool(torch.isfinite(tensor).all())


def _fits(copy: Tensor, tensor: Tensor) -> bool:
    return (
        copy.shape == tensor.shape
        and copy.dtype == tensor.dtype
        and copy.device == tensor.device
        and tensor.layout is torch.strided
    )


def _copy_unless(flag: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> None:
    """Copy tensors where a flag is not set: with few kernels, as a device starts each slowly."""
    groups: dict[tuple[torch.device, torch.dtype], list[tuple[Tensor, Tensor]]] = {}
    for copy, tensor in pairs:
        groups.setdefault((copy.device, copy.dtype), []).append((copy, tensor))
    for (device, _), group in groups.items():
        copies, tensors = zip(*group, strict=True)
        before = torch.cat([copy.reshape(-1) for copy in copies])
        after = torch.cat([tensor.reshape(-1) for tensor in tensors])
        chosen = torch.where(flag.to(device), before, after)
        parts = chosen.split([copy.numel() for copy in copies])
        shaped = [part.view(copy.shape) for part, copy in zip(parts, copies, strict=True)]
        torch._foreach_copy_(copies, shaped)
