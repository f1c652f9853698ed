r"""Planar and radial flows, with Jacobian determinants in linear time.

With the symbols of :class:`PlanarFlow` and :math:`a = w^\top z + b`, the planar map stretches space
along w by :math:`1 + w^\top \hat u \tanh' a`. With the symbols of :class:`RadialFlow`,
:math:`x = \|z - z_0\| / \alpha` and :math:`k = \hat\beta / \alpha`, the radial map stretches space
by :math:`1 + k / (1 + x)^2` in the direction away from :math:`z_0`, and by :math:`1 + k / (1 + x)`
across. The maps are invertible if :math:`w^\top \hat u \geq -1` and :math:`k \geq -1`. The inverse
is a root in one dimension.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from tinyvae.distributions.special import autocast_disabled
from tinyvae.flows.base import Bijection, NormalizingFlow, check_sizes, check_weights

# Least stretch of a direction by one transform, so that the inverse stays accurate.
LEAST_STRETCH = 1e-3
_Layer: TypeAlias = "_Planar | _Radial"


class _Composed:
    """A composition of transforms, or its inverse."""

    def __init__(self, layers: Sequence[_Layer], *, is_inverse: bool = False) -> None:
        self.layers, self.is_inverse = layers, is_inverse

    def __call__(self, value: Tensor, /) -> Tensor:
        return self.call_and_ladj(value)[0]

    def call_and_ladj(self, value: Tensor, /) -> tuple[Tensor, Tensor]:
        total = value.new_zeros(())
        for layer in reversed(self.layers) if self.is_inverse else self.layers:
            apply = layer.inverse_and_ladj if self.is_inverse else layer.forward_and_ladj
            value, log_det = apply(value)
            total = total + log_det
        return value, total

    @property
    def inv(self) -> Bijection:
        return _Composed(self.layers, is_inverse=not self.is_inverse)


class _LayeredFlow(NormalizingFlow):
    """A flow whose transforms have P parameters each, free or affine in the context."""

    def __init__(self, dim: int, *, context_dim: int = 0, transforms: int = 8) -> None:
        super().__init__()
        name = type(self).__name__
        check_sizes(name, dim, context_dim, transforms)
        check_weights(name, transforms * (2 * dim + 1) * (1 + context_dim))
        self.dim, self.context_dim, self.transforms = dim, context_dim, transforms
        self.offset = nn.Parameter(self._initial())  # (T, P)
        self.context_map: nn.Linear | None = None
        if context_dim:
            self.context_map = nn.Linear(context_dim, self.offset.numel(), bias=False)
            nn.init.zeros_(self.context_map.weight)

    @abstractmethod
    def _initial(self) -> Tensor:
        """Return parameters ``(T, P)`` of the identity."""

    @abstractmethod
    def _layers(self, params: Tensor) -> list[_Layer]:
        """Return the transforms for parameters ``(*batch, T, P)``."""

    def forward(self, context: Tensor | None = None) -> Bijection:
        """Return the bijection given the context ``(*batch, context_dim)``."""
        num_values = 0 if context is None else context.shape[-1]
        if num_values != self.context_dim:
            raise ValueError(
                f"{type(self).__name__} expects a context of {self.context_dim} values, got "
                f"{num_values}: give context_dim={num_values}"
            )
        if context is None or self.context_map is None:
            # A copy, so that an optimizer step does not change the bijection.
            return _Composed(self._layers(self.offset.clone()))
        with autocast_disabled(context):
            shifts = self.context_map(context).unflatten(-1, self.offset.shape)
        return _Composed(self._layers(self.offset + shifts))

    def extra_repr(self) -> str:
        """Return the sizes, for ``repr``."""
        context = f", context_dim={self.context_dim}" if self.context_dim else ""
        return f"{self.dim}{context}, transforms={self.transforms}"


class PlanarFlow(_LayeredFlow):
    r"""Transforms that push the two sides of a hyperplane in opposite directions.

    .. math:: f(z) = z + \hat u \tanh(w^\top z + b), \qquad
        \log |\det J| = \log\big(1 + w^\top \hat u \, (1 - \tanh^2(w^\top z + b))\big)

    The part of u along w is replaced such that :math:`w^\top \hat u = m(w^\top u)`, which makes f
    invertible. Here :math:`m(x) = (1 - \epsilon) \log(e^{-1} + (1 - e^{-1}) e^x)` with
    :math:`\epsilon = 10^{-3}`: the paper's :math:`\log(1 + e^x) - 1`, shifted so that u = 0 is the
    identity, and bounded below by :math:`-1 + \epsilon`, so that the inverse is accurate. The
    inverse solves :math:`a + w^\top \hat u \tanh a = c` by Newton's method, from a side from which
    it is monotonic. A fixed number of steps is enough for :math:`w^\top \hat u` up to
    :math:`10^6`.

    Args:
        dim: Number of dimensions :math:`D`.
        context_dim: Number of values of the context. u, w and b are affine functions of it, and
            free parameters without a context.
        transforms: Number of transforms, initially the identity.

    Shape:
        context: ``(*batch, context_dim)``; vectors: ``(..., *batch, D)``.

    References:
        Rezende, Mohamed (2015). Variational Inference with Normalizing Flows. arXiv:1505.05770,
        section 4.1 and appendix A.1.

    Example:
        >>> encoder = GaussianEncoder(MLP(4, hidden=(8,)), latent_dim=2)
        >>> FlowEncoder(encoder, PlanarFlow(2, context_dim=8))(torch.zeros(5, 4))
        Transformed(batch_shape=(5,), event_shape=(2,))
        >>> bijection, z = PlanarFlow(2)(), torch.ones(5, 2)
        >>> bool(torch.allclose(bijection.inv(bijection(z)), z))
        True
    """

    def _initial(self) -> Tensor:
        direction = torch.randn(self.transforms, self.dim) / math.sqrt(self.dim)
        offset = torch.randn(self.transforms, 1)
        return torch.cat([torch.zeros_like(direction), direction, offset], dim=-1)

    def _layers(self, params: Tensor) -> list[_Layer]:
        u, w, b = params.split([self.dim, self.dim, 1], dim=-1)
        along = (w * u).sum(-1, keepdim=True)
        excess = _excess(along)
        square = w.square().sum(-1, keepdim=True).clamp(min=torch.finfo(w.dtype).tiny)
        u = u + (excess - along) / square * w
        each = (t.unbind(-2) for t in (u, w, b, excess))
        return [_Planar(*values) for values in zip(*each, strict=True)]


class _Planar:
    """A planar transform: u and w are ``(*batch, D)``; b and excess = w'u are ``(*batch, 1)``."""

    def __init__(self, u: Tensor, w: Tensor, b: Tensor, excess: Tensor) -> None:
        self.u, self.w = u, w
        self.b, self.excess = b.squeeze(-1), excess.squeeze(-1)

    def forward_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        push, log_det = self._push((self.w * z).sum(-1) + self.b)
        return z + push, log_det

    def inverse_and_ladj(self, value: Tensor) -> tuple[Tensor, Tensor]:
        a = _planar_root((self.w * value).sum(-1) + self.b, self.excess)
        push, log_det = self._push(a)
        return value - push, -log_det

    def _push(self, a: Tensor) -> tuple[Tensor, Tensor]:
        tanh = a.tanh()
        return self.u * tanh.unsqueeze(-1), torch.log1p(self.excess * (1 - tanh.square()))


class RadialFlow(_LayeredFlow):
    r"""Transforms that push vectors away from a point or toward it.

    .. math:: f(z) = z + \frac{\hat\beta}{\alpha + r} (z - z_0), \quad r = \|z - z_0\|, \qquad
        \log |\det J| = (D - 1) \log\Big(1 + \frac{\hat\beta}{\alpha + r}\Big)
        + \log\Big(1 + \frac{\alpha \hat\beta}{(\alpha + r)^2}\Big)

    The parameters are the point :math:`z_0` and two numbers, which give
    :math:`\alpha = 1 + m(\cdot) > 0` and :math:`\hat\beta = \alpha\, m(\cdot) > -\alpha` with m as
    in :class:`PlanarFlow`, so that f is invertible. If both numbers are zero, f is the
    identity. The inverse solves a quadratic equation.

    Args:
        dim: Number of dimensions :math:`D`.
        context_dim: Number of values of the context. The point and the two numbers are affine
            functions of it, and free parameters without a context.
        transforms: Number of transforms, initially the identity.

    Shape:
        context: ``(*batch, context_dim)``; vectors: ``(..., *batch, D)``.

    References:
        Rezende, Mohamed (2015). Variational Inference with Normalizing Flows. arXiv:1505.05770,
        section 4.1 and appendix A.2.

    Example:
        >>> bijection, z = RadialFlow(2)(), torch.ones(5, 2)
        >>> bool(torch.allclose(bijection.inv(bijection(z)), z))
        True
    """

    def _initial(self) -> Tensor:
        point = torch.randn(self.transforms, self.dim)
        return torch.cat([point, torch.zeros(self.transforms, 2)], dim=-1)

    def _layers(self, params: Tensor) -> list[_Layer]:
        point, raw = params.split([self.dim, 2], dim=-1)
        alpha, excess = _excess(raw).unbind(-1)
        each = (point.unbind(-2), (1 + alpha).unbind(-1), excess.unbind(-1))
        return [_Radial(*values) for values in zip(*each, strict=True)]


class _Radial:
    """A radial transform: point ``(*batch, D)``; alpha and excess = beta / alpha, ``(*batch)``."""

    def __init__(self, point: Tensor, alpha: Tensor, excess: Tensor) -> None:
        self.point, self.alpha, self.excess = point, alpha, excess

    def forward_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        away = z - self.point
        across, log_det = self._stretch(torch.linalg.vector_norm(away, dim=-1) / self.alpha)
        return z + away * across.unsqueeze(-1), log_det

    def inverse_and_ladj(self, value: Tensor) -> tuple[Tensor, Tensor]:
        away = value - self.point
        x = _radial_root(torch.linalg.vector_norm(away, dim=-1) / self.alpha, self.excess)
        across, log_det = self._stretch(x)
        return self.point + away / (1 + across).unsqueeze(-1), -log_det

    def _stretch(self, x: Tensor) -> tuple[Tensor, Tensor]:
        across = self.excess / (1 + x)
        along = across / (1 + x)
        dim = self.point.shape[-1]
        return across, (dim - 1) * torch.log1p(across) + torch.log1p(along)


def _excess(x: Tensor) -> Tensor:
    """Return m(x), which increases, exceeds LEAST_STRETCH - 1, and is exactly 0 at 0."""
    below = torch.log1p((1 - math.exp(-1)) * torch.expm1(x.where(x < 0, 0.0)))
    above = x + torch.log1p(math.exp(-1) * torch.expm1(-x.where(x >= 0, 0.0)))
    return (1 - LEAST_STRETCH) * torch.where(x < 0, below, above)


def _planar_root(c: Tensor, k: Tensor) -> Tensor:
    """Return the root a of a + k tanh(a) = c, with derivatives up to third order.

    For c > 0 the left side is concave (k > 0) or convex in a > 0, so that Newton's method is
    monotonic from below or from above. The start follows from |tanh a| < 1 and |tanh a| <= |a|.
    """
    size, fixed = c.detach().abs(), k.detach()
    start = size - fixed, size / (1 + fixed)
    a = torch.where(fixed > 0, torch.maximum(*start), torch.minimum(*start))
    for _ in range(14):
        a = _newton(a, size, fixed)
    # One more step does not change the value, and doubles the order of correct derivatives.
    return _newton(_newton(torch.copysign(a, c.detach()), c, k), c, k)


def _newton(a: Tensor, c: Tensor, k: Tensor) -> Tensor:
    tanh = a.tanh()
    return a - (a + k * tanh - c) / (1 + k * (1 - tanh.square()))


def _radial_root(y: Tensor, k: Tensor) -> Tensor:
    """Return the root x >= 0 of x + k x / (1 + x) = y, without cancellation."""
    p = y - 1 - k  # x^2 = p x + y
    root = (p.square() + 4 * y).sqrt()
    left, right = p.where(p < 0, 0.0), p.where(p >= 0, 0.0)
    return torch.where(p < 0, 2 * y / (root - left), (right + root) / 2)
