"""Factor of the loss with which gradients in float16 neither underflow nor overflow."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor


class LossScale:
    """Dynamic factor of the losses of a run in float16, a power of 2.

    Gradients are computed of the scaled loss, and divided by the scale afterwards. If one of them
    overflows, the update is skipped and the scale is halved. After ``INTERVAL`` updates without an
    overflow it is doubled.

    Attributes:
        value: The scale.
        num_updates: Number of updates since the scale has changed.

    References:
        Micikevicius et al. (2018). Mixed Precision Training. arXiv:1710.03740, section 3.2. Start
        and interval are those of ``torch.amp.GradScaler``.
    """

    START: ClassVar[float] = 2.0**16
    LARGEST: ClassVar[float] = 2.0**24
    INTERVAL: ClassVar[int] = 2000

    def __init__(self) -> None:
        self.value = self.START
        self.num_updates = 0

    def update(self, *, overflows: bool) -> None:
        """Move the scale after an update was made, or skipped because a gradient overflows."""
        self.num_updates = 0 if overflows else self.num_updates + 1
        if overflows:
            self.value /= 2
        elif self.num_updates == self.INTERVAL:
            self.num_updates = 0
            self.value = min(2 * self.value, self.LARGEST)

    def caused(self, losses: list[Tensor], gradients: list[Tensor]) -> bool:
        """Return True if gradients of finite losses overflow, and a smaller scale may help."""
        if self.value <= 1:
            return False
        fits = torch.stack(torch._foreach_norm(gradients, math.inf)).isfinite().all()
        finite = torch.stack([loss.detach() for loss in losses]).isfinite().all()
        return bool(finite & ~fits)

    def state_dict(self) -> dict[str, Any]:
        """Return the scale and the number of updates with it."""
        return {"value": self.value, "num_updates": self.num_updates}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore a :meth:`state_dict`, or the start if it is empty. Raise if it is not valid."""
        value, num = saved.get("value", self.START), saved.get("num_updates", 0)
        if not (isinstance(value, float) and 1 <= value <= self.LARGEST):
            raise ValueError(f"expected a scale in [1, {self.LARGEST:g}], got {value!r:.80}")
        if type(num) is not int or not 0 <= num < self.INTERVAL:
            raise ValueError(f"expected a number of updates, got {num!r:.80}")
        self.value, self.num_updates = value, num
