r"""Weights of a loss that a constraint sets.

.. math:: \min_\theta D(\theta) \ \text{ subject to } \ R(\theta) \le r, \qquad
    \mathcal{L} = D + \lambda (R - r)
"""

import math

import torch
from torch import Tensor

from tinyvae.schedules import LossWeight

LARGEST_EXCESS = 10.0  # nats, so that a bad start moves the multiplier slowly
LEAST, MOST = 1e-6, 1e6  # of the multiplier, if no model fulfills the constraint


class LagrangeMultiplier(LossWeight):
    r"""Weight that makes its term of an :class:`~tinyvae.ELBO` reach a target.

    As ``beta`` it limits the rate, KL(q(z given x) || p(z)) <= ``target``. As ``likelihood_weight``
    it demands a reconstruction, E log p(x given z) >= ``target``. Every training step moves it by
    the amount :math:`c`, in nats per datum, by which a batch exceeds the constraint:

    .. math:: \log \lambda \leftarrow \log \lambda + \eta c, \qquad -10 \le c \le 10

    So it rises until the constraint holds, and falls while there is room. At the end it is the
    weight with which the same model trained without a constraint would reach the target. It is part
    of the objective's ``state_dict``, so that a resumed run continues it.

    Args:
        target: Rate or log-likelihood :math:`r`, nats per datum. The log-likelihood of a density
            may be positive.
        step_size: Relative change :math:`\eta` per step and nat. Oscillations call for a smaller
            one.
        start: First value of the multiplier.

    Attributes:
        value: Current value, ``()``, float64 unless the module is converted, or moved to a device
            that may lack it.

    References:
        Rezende, Viola (2018). Taming VAEs. arXiv:1810.00597, algorithm 1, without the moving
        average: small steps average the noise of batches, too.

    Example:
        >>> objective = ELBO(beta=LagrangeMultiplier(10.0))
        >>> objective
        ELBO(beta=LagrangeMultiplier(10), num_samples=1, kl='auto')
        >>> _ = objective(vae, Batch(x))  # the rate is below 10 nats
        >>> bool(objective.beta.value < 1)
        True
    """

    def __init__(self, target: float, *, step_size: float = 1e-3, start: float = 1.0) -> None:
        super().__init__()
        if not (math.isfinite(target) and step_size > 0 and LEAST <= start <= MOST):
            raise ValueError(
                "LagrangeMultiplier expects a finite target, step_size > 0 and a start in "
                f"[{LEAST:g}, {MOST:g}], got {target}, {step_size} and {start}"
            )
        self.target, self.step_size = float(target), step_size
        self.register_buffer("value", torch.tensor(start, dtype=torch.float64))

    @property
    def changes(self) -> bool:
        """True."""
        return True

    def type_as(self, tensor: Tensor) -> Tensor:
        """Return a copy of the value in the dtype of ``tensor``."""
        # A step changes the value before the backward pass reads the copy.
        return self.value.to(tensor.dtype, copy=True)

    def move(self, excess: Tensor) -> None:
        """Move the value by the nats ``excess``, 0-d, by which the constraint is exceeded."""
        with torch.no_grad():
            step = self.step_size * excess.to(self.value.dtype).clamp(
                -LARGEST_EXCESS, LARGEST_EXCESS
            )
            self.value.mul_(step.exp()).clamp_(LEAST, MOST)

    def __repr__(self) -> str:
        return f"LagrangeMultiplier({self.target:g})"
