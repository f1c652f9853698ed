"""Likelihood of ordered levels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tinyvae.distributions import Ordinal
from tinyvae.likelihoods.base import Likelihood, smoothed_mean
from tinyvae.likelihoods.discrete import is_level
from tinyvae.likelihoods.parameters import check_broadcast


class OrdinalLikelihood(Likelihood):
    r"""Ordered levels, such as grades, given as indices: cumulative logits with learned thresholds.

    .. math:: P(x_i \leq k \mid z) = \sigma(\theta_{ik} - \eta_i(z)), \qquad
        \theta_{i0} < \theta_{i1} < \dots

    The decoder emits one location :math:`\eta_i`. All data share the thresholds, which place the
    levels on its scale: the distances between levels are learned. Reconstructions are expected
    levels. The encoder reads the index scaled to [-1, 1].

    Args:
        num_levels: Number of levels ``L``, at least 2. Data are 0 to L - 1, of any dtype.
        shape: Shape of each threshold, broadcast over one datum: ``()`` for one set of thresholds,
            ``(D,)`` for one set per column.
        frequencies: Frequencies of the levels at a location of zero, from which training starts,
            ``(L,)`` or ``(L, *shape)``, such as the shares of the levels in the data. None is equal
            frequencies.

    Shape:
        params (location): ``(..., *E)``; x: ``(..., *E)``.

    References:
        McCullagh (1980). Regression Models for Ordinal Data. Journal of the Royal Statistical
        Society B 42. Nazabal, Olmos, Ghahramani, Valera (2020). Handling incomplete heterogeneous
        data using VAEs. arXiv:1807.03653, section 2.2.

    Example:
        >>> p = OrdinalLikelihood(4)(torch.zeros(2), event_ndim=1)
        >>> p.elementwise_log_prob(torch.tensor([0.0, 3.0]))  # log(1/4)
        tensor([-1.3863, -1.3863], grad_fn=<AddBackward0>)
        >>> OrdinalLikelihood(5, shape=(8,)).param_shape((8,))
        torch.Size([8])
    """

    takes_integers = True
    draws_integers = True

    def __init__(
        self,
        num_levels: int,
        *,
        shape: Sequence[int] = (),
        frequencies: Sequence[Any] | None = None,
    ) -> None:
        super().__init__()
        if num_levels < 2:
            raise ValueError(f"OrdinalLikelihood expects num_levels >= 2, got {num_levels}")
        self.num_levels, self.shape = num_levels, tuple(shape)
        self.frequencies = None if frequencies is None else np.asarray(frequencies).tolist()
        self.support = f"integers 0 to {num_levels - 1}"
        self.hint = "pass level indices, not scaled levels, or change num_levels"
        thresholds = _thresholds(num_levels, frequencies)  # (L - 1,) or (L - 1, *shape)
        rows = np.concatenate([thresholds[:1], np.log(np.diff(thresholds, axis=0).clip(min=1e-9))])
        start = torch.from_numpy(rows).to(torch.get_default_dtype())
        start = start.reshape(len(rows), *[1] * (1 + len(self.shape) - rows.ndim), *rows.shape[1:])
        start = start.expand(len(rows), *self.shape)
        # The lowest threshold, and the logarithms of the distances to the next ones.
        self.raw = nn.Parameter(start.clone(memory_format=torch.contiguous_format))

    def elementwise(self, *params: Tensor) -> Ordinal:
        """Return distributions of levels around the locations."""
        return Ordinal(params[0], self.raw[0], self.raw[1:])

    def encoder_input(self, x: Tensor) -> Tensor:
        """Return levels scaled to [-1, 1]."""
        return 2 * x / (self.num_levels - 1) - 1

    def params_for_mean(self, x: Tensor) -> Tensor:
        """Return the locations of the smoothed mean level, found by bisection."""
        mean = smoothed_mean(x / (self.num_levels - 1)) * (self.num_levels - 1)
        low, high = torch.full_like(mean, -1000.0), torch.full_like(mean, 1000.0)
        with torch.no_grad():
            for _ in range(60):
                middle = (low + high) / 2
                below = self.elementwise(middle).mean < mean
                low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def in_support(self, x: Tensor) -> Tensor:
        """Return true for each entry that is a level index."""
        return is_level(x, self.num_levels)

    def check_parameters(self, data_shape: Sequence[int]) -> None:
        """Raise unless the thresholds broadcast over one datum."""
        check_broadcast(self, self.shape, data_shape)


def _thresholds(num_levels: int, frequencies: Sequence[Any] | None) -> "np.ndarray[Any, Any]":
    """Return the thresholds of levels with these frequencies at a location of zero."""
    shares = np.asarray([1.0] * num_levels if frequencies is None else frequencies, np.float64)
    if (
        shares.ndim == 0
        or len(shares) != num_levels
        or not (np.isfinite(shares) & (shares > 0)).all()
    ):
        raise ValueError(
            f"OrdinalLikelihood expects {num_levels} finite frequencies > 0, got {frequencies}: "
            "add one half to each count"
        )
    below = np.cumsum(shares, 0)[:-1]
    above = np.cumsum(shares[::-1], 0)[-2::-1]
    return np.log(below) - np.log(above)
