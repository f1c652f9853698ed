"""Likelihood of numbers with masses at some values, such as amounts with zeros."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinyvae.core.keywords import suggest_keywords
from tinyvae.core.module_state import ExactBuffers
from tinyvae.distributions import Distribution, Hurdle
from tinyvae.distributions.mixtures import equals_points
from tinyvae.likelihoods.base import Likelihood
from tinyvae.likelihoods.parameters import check_broadcast
from tinyvae.likelihoods.wrappers import LikelihoodWrapper, check_factorizes


@suggest_keywords
class HurdleLikelihood(ExactBuffers, LikelihoodWrapper):
    r"""Masses at some values, and a density elsewhere: amounts with zeros, shares of 0 and 1.

    .. math:: p(x \mid z) = \prod_i \begin{cases} \pi_{iv}(z) & x_i = v \\
        \pi_{i0}(z)\, p(x_i \mid z) & \text{otherwise} \end{cases}, \qquad
        \pi_i = \mathrm{softmax}(\ell_{i1}, \dots, \ell_{iP}, 0)

    The wrapped likelihood never sees the points: they add nothing to its gradients. The encoder
    reads its input, zero at the points, and an indicator of each point, along the first dimension.
    Reconstructions are means, which lie between the points and the density if both are likely.
    Draws are exactly a point or a draw of the density. Log densities are masses at the points and
    depend on the units of the data elsewhere.

    Args:
        likelihood: Likelihood of all other values, with a density.
        at: The points, in units of the data: a number, ``P`` numbers, or ``P`` rows that broadcast
            over one datum, such as ``(P, D)`` for a table of ``D`` columns with points of their
            own. A value is a point if it equals it exactly, or after rounding it to float32.

    Shape:
        params: ``(..., P + Q, *E)``, first a logit per point, then the wrapped likelihood's ``Q``
        parameters; x: ``(..., *E)``.

    References:
        Cragg (1971). Some Statistical Models for Limited Dependent Variables with Application to
        the Demand for Durable Goods. Econometrica 39.

    Example:
        >>> gains = HurdleLikelihood(StandardizedLikelihood(LogNormalLikelihood(1.0), std=1e4))
        >>> p = gains(torch.zeros(2, 1), event_ndim=1)
        >>> p.log_prob(torch.zeros(1))  # log(1/2)
        tensor(-0.6931)
        >>> HurdleLikelihood(BetaLikelihood(), at=(0.0, 1.0)).param_shape((8,))
        torch.Size([3, 8])
    """

    points: Tensor

    def __init__(self, likelihood: Likelihood, at: float | Sequence[Any] = 0.0) -> None:
        check_factorizes(likelihood, "HurdleLikelihood")
        if likelihood.takes_integers or likelihood.has_point_masses:
            remedy = "give it all points, at=(0.0, 1.0)"
            if likelihood.takes_integers:
                remedy = "use ZeroInflatedLikelihood for counts with more zeros"
            raise TypeError(
                "HurdleLikelihood expects a likelihood with a density, got "
                f"{type(likelihood).__name__}: {remedy}"
            )
        super().__init__(likelihood)
        points = np.asarray(at, dtype=np.float64)
        rows = np.atleast_1d(points)  # (P, *S)
        ordered = np.sort(rows.astype(np.float32), 0)
        if not (rows.size and np.isfinite(rows).all() and (ordered[1:] != ordered[:-1]).all()):
            raise ValueError(
                f"HurdleLikelihood expects different finite points, got at={at}: give each once"
            )
        self.at = points.tolist()
        self.register_constant("points", rows.tolist())
        self.num_params = len(rows) + likelihood.num_params
        self.has_location, self.has_point_masses = False, True  # logits come first
        listed = [f"{point:g}" for point in np.unique(rows)]
        shown = ", ".join(listed if len(listed) < 6 else [*listed[:3], "..."])
        self.support = f"{likelihood.support}, or {'one of ' * (len(listed) > 1)}{shown}"

    def factors(
        self, params: Tensor, event_ndim: int, context: Tensor | None = None
    ) -> Distribution:
        """Return distributions with masses at the points."""
        dim, num_points = -event_ndim - 1, len(self.points)
        logits = params.narrow(dim, 0, num_points)
        rest = params.narrow(dim, num_points, self.likelihood.num_params)
        rest = rest.squeeze(dim) if self.likelihood.num_params == 1 else rest
        base = self.likelihood.factors(rest, event_ndim, context)
        return Hurdle(base, logits, self._points(event_ndim), dim, self._inside(self.points))

    def _points(self, event_ndim: int) -> Tensor:
        """Return the points ``(P, 1, ..., *S)``, with ``event_ndim`` dimensions after the first."""
        num_points, *shape = self.points.shape
        return self.points.reshape(num_points, *[1] * (event_ndim - len(shape)), *shape)

    def _inside(self, like: Tensor) -> Tensor:
        """Return a value in the support of the wrapped likelihood, in the dtype of ``like``."""
        value = self.likelihood.fill_value
        return value.to(like) if isinstance(value, Tensor) else like.new_full((), value)

    def _hits(self, x: Tensor) -> Tensor:
        """Return a boolean tensor ``(B, P, *E)``, true where ``x`` ``(B, *E)`` is a point."""
        return equals_points(x.unsqueeze(1), self._points(x.dim() - 1))

    def is_point(self, x: Tensor) -> Tensor:
        """Return a boolean tensor, true for each entry of ``x`` ``(B, *E)`` that is a point."""
        return self._hits(x).any(1)

    def _inner(self, x: Tensor) -> Tensor:
        """Return the data of the wrapped likelihood, in which points are missing."""
        return x.masked_fill(self.is_point(x), torch.nan)

    def input_shape(self, data_shape: Sequence[int]) -> torch.Size:
        """Return the encoder's input shape: ``1 + P`` times as long along the first dimension."""
        shape = self.likelihood.input_shape(data_shape)
        if shape != torch.Size(data_shape):
            raise ValueError(
                "HurdleLikelihood expects a likelihood whose encoder input has the shape of the "
                f"data, {tuple(data_shape)}, got {tuple(shape)}: use another likelihood"
            )
        return torch.Size(((1 + len(self.points)) * shape[0], *shape[1:]))

    def encoder_input(self, x: Tensor) -> Tensor:
        """Return the wrapped likelihood's input, zero at points, and an indicator per point."""
        hits = self._hits(x)  # (B, P, *E)
        is_point = hits.any(1)
        data = self.likelihood.encoder_input(torch.where(is_point, self._inside(x), x))
        indicators = torch.where(torch.isnan(x).unsqueeze(1), torch.nan, hits.to(x.dtype))
        return torch.cat([torch.where(is_point, 0.0, data), indicators.flatten(1, 2)], 1)

    def params_for_mean(self, x: Tensor) -> Tensor:
        """Return log odds of the points, and the likelihood's parameters for the other values.

        Half an example is added to the number at each point, and to that of the others.
        """
        hits = self._hits(x)
        others = ~(hits.any(1) | torch.isnan(x))
        logits = torch.log(hits.sum(0) + 0.5) - torch.log(others.sum(0) + 0.5)  # (P, *E)
        rest = self.likelihood.params_for_mean(self._inner(x))
        return torch.cat([logits.to(rest.dtype), rest.reshape(-1, *x.shape[1:])])

    def fits_outputs(self, index: int, low: float, high: float, x: Tensor) -> bool:
        """Return True if parameter ``index`` may stay within ``[low, high]``. A logit may not."""
        if index < len(self.points):
            return math.isinf(low) and math.isinf(high)
        return self.likelihood.fits_outputs(index - len(self.points), low, high, self._inner(x))

    def in_support(self, x: Tensor) -> Tensor:
        """Return true for each entry that is a point or in the support of the likelihood."""
        is_point = self.is_point(x)
        return is_point | self.likelihood.in_support(torch.where(is_point, self._inside(x), x))

    def check_support(self, x: Tensor) -> bool:
        """Raise unless every entry is a point or the wrapped likelihood can be fitted to it."""
        return Likelihood.check_support(self, x)

    def check_parameters(self, data_shape: Sequence[int]) -> None:
        """Raise unless the points and the wrapped parameters broadcast over one datum."""
        super().check_parameters(data_shape)
        check_broadcast(self, self.points.shape[1:], data_shape)
