r"""Planar and radial flows: bijections whose Jacobian's determinant takes linear time.

.. math:: f(z) = z + \hat u \tanh(w^\top z + b), \qquad
    f(z) = z + \frac{\hat\beta}{\alpha + \|z - z_0\|} (z - z_0)

With :math:`a = w^\top z + b` the one stretches space along w by
:math:`1 + w^\top \hat u \tanh' a`. With :math:`x = \|z - z_0\| / \alpha` the other stretches it by
:math:`1 + k / (1 + x)^2` away from :math:`z_0`, where :math:`k = \hat\beta / \alpha`, and by
:math:`1 + k / (1 + x)` across. Both are invertible where :math:`w^\top \hat u \geq -1` and
:math:`k \geq -1`, by a root in one dimension.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tinyvae.distributions.special import autocast_disabled
from tinyvae.flows.base import Bijection, NormalizingFlow, check_sizes, check_weights

# No direction is squeezed by more than this, in one transform: the way back keeps its digits.
LEAST_STRETCH = 1e-3


class _Layer(ABC):
    """One transform and the way back, each with its log determinant."""

    @abstractmethod
    def there(self, z: Tensor) -> tuple[Tensor, Tensor]: ...

    @abstractmethod
    def back(self, value: Tensor) -> tuple[Tensor, Tensor]: ...


class _Composed:
    """One transform after another, or the way back through all of them."""

    def __init__(self, layers: Sequence[_Layer], *, backwards: bool = False) -> None:
        self.layers, self.backwards = layers, backwards

    def __call__(self, value: Tensor, /) -> Tensor:
        return self.call_and_ladj(value)[0]

    def call_and_ladj(self, value: Tensor, /) -> tuple[Tensor, Tensor]:
        total = value.new_zeros(())
        for layer in reversed(self.layers) if self.backwards else self.layers:
            value, log_det = (layer.back if self.backwards else layer.there)(value)
            total = total + log_det
        return value, total

    @property
    def inv(self) -> Bijection:
        return _Composed(self.layers, backwards=not self.backwards)


class _LayeredFlow(NormalizingFlow):
    """A flow whose transforms have P numbers each, free or affine in the context."""

    def __init__(self, dim: int, *, context_dim: int = 0, transforms: int = 8) -> None:
        super().__init__()
        name = type(self).__name__
        check_sizes(name, dim, context_dim, transforms)
        check_weights(name, transforms * (2 * dim + 1) * (1 + context_dim))
        self.dim, self.context_dim, self.transforms = dim, context_dim, transforms
        self.offset = nn.Parameter(self._initial())  # (T, P)
        self.of_context: nn.Linear | None = None
        if context_dim:
            self.of_context = nn.Linear(context_dim, self.offset.numel(), bias=False)
            nn.init.zeros_(self.of_context.weight)

    @abstractmethod
    def _initial(self) -> Tensor:
        """Numbers ``(T, P)`` of the identity."""

    @abstractmethod
    def _layers(self, numbers: Tensor) -> list[_Layer]:
        """Transforms of ``(*batch, T, P)`` numbers."""

    def forward(self, context: Tensor | None = None) -> Bijection:
        """Return the bijection given the context ``(*batch, context_dim)``."""
        found = 0 if context is None else context.shape[-1]
        if found != self.context_dim:
            raise ValueError(
                f"{type(self).__name__} with context_dim={self.context_dim} got a context of "
                f"{found} values: give it as many"
            )
        if context is None or self.of_context is None:
            # A copy: the bijection stays what it is when an optimizer steps.
            return _Composed(self._layers(self.offset.clone()))
        with autocast_disabled(context):
            shifts = self.of_context(context).unflatten(-1, self.offset.shape)
        return _Composed(self._layers(self.offset + shifts))

    def extra_repr(self) -> str:
        """Sizes, for ``repr``."""
        context = f", context_dim={self.context_dim}" if self.context_dim else ""
        return f"{self.dim}{context}, transforms={self.transforms}"


class PlanarFlow(_LayeredFlow):
    r"""Transforms that push vectors along a direction, by their side of a hyperplane.

    .. math:: f(z) = z + \hat u \tanh(w^\top z + b), \qquad
        \log |\det J| = \log\big(1 + w^\top \hat u \, (1 - \tanh^2(w^\top z + b))\big)

    Of u, w and b the part of u along w is changed to :math:`w^\top \hat u = m(w^\top u)`, so that
    f is invertible. Here :math:`m(x) = (1 - \epsilon) \log(e^{-1} + (1 - e^{-1}) e^x)`, which is
    the paper's :math:`\log(1 + e^x) - 1` shifted such that u = 0 is the identity, and above
    :math:`-1 + \epsilon`, :math:`\epsilon = 10^{-3}`, such that floats can undo it. The way back
    solves :math:`a + w^\top \hat u \tanh a = c` by Newton's method, from a side from which it is
    monotonic: a fixed number of steps, enough for :math:`w^\top \hat u` up to :math:`10^6`.

    Args:
        dim: Number of dimensions :math:`D`.
        context_dim: Number of values that u, w and b are computed from, each an affine function of
            them; without, they are free parameters.
        transforms: Number of transforms, one after another, the identity at first.

    Shape:
        context: ``(*batch, context_dim)``; what is mapped: ``(..., *batch, D)``.

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
        place = torch.randn(self.transforms, 1)
        return torch.cat([torch.zeros_like(direction), direction, place], dim=-1)

    def _layers(self, numbers: Tensor) -> list[_Layer]:
        u, w, b = numbers.split([self.dim, self.dim, 1], dim=-1)
        along = (w * u).sum(-1, keepdim=True)
        excess = _excess(along)
        square = w.square().sum(-1, keepdim=True).clamp(min=torch.finfo(w.dtype).tiny)
        u = u + (excess - along) / square * w
        each = (t.unbind(-2) for t in (u, w, b, excess))
        return [_Planar(*these) for these in zip(*each, strict=True)]


class _Planar(_Layer):
    """Push along u, ``(*batch, D)``; b and excess = w'u are ``(*batch, 1)``."""

    def __init__(self, u: Tensor, w: Tensor, b: Tensor, excess: Tensor) -> None:
        self.u, self.w = u, w
        self.b, self.excess = b.squeeze(-1), excess.squeeze(-1)

    def there(self, z: Tensor) -> tuple[Tensor, Tensor]:
        push, log_det = self._push((self.w * z).sum(-1) + self.b)
        return z + push, log_det

    def back(self, value: Tensor) -> tuple[Tensor, Tensor]:
        a = _planar_root((self.w * value).sum(-1) + self.b, self.excess)
        push, log_det = self._push(a)
        return value - push, -log_det

    def _push(self, a: Tensor) -> tuple[Tensor, Tensor]:
        tanh = a.tanh()
        return self.u * tanh.unsqueeze(-1), torch.log1p(self.excess * (1 - tanh.square()))


class RadialFlow(_LayeredFlow):
    r"""Transforms that push vectors away from a point, or towards it.

    .. math:: f(z) = z + \frac{\hat\beta}{\alpha + r} (z - z_0), \quad r = \|z - z_0\|, \qquad
        \log |\det J| = (D - 1) \log\Big(1 + \frac{\hat\beta}{\alpha + r}\Big)
        + \log\Big(1 + \frac{\alpha \hat\beta}{(\alpha + r)^2}\Big)

    The point is :math:`z_0`. Of two further numbers, :math:`\alpha = 1 + m(\cdot) > 0` and
    :math:`\hat\beta = \alpha\, m(\cdot) > -\alpha`, so that f is invertible, with m of
    :class:`PlanarFlow`: two zeros are the identity. The way back solves a quadratic equation.

    Args:
        dim: Number of dimensions :math:`D`.
        context_dim: Number of values that the point and the two numbers are computed from, each an
            affine function of them; without, they are free parameters.
        transforms: Number of transforms, one after another, the identity at first.

    Shape:
        context: ``(*batch, context_dim)``; what is mapped: ``(..., *batch, D)``.

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

    def _layers(self, numbers: Tensor) -> list[_Layer]:
        point, raw = numbers.split([self.dim, 2], dim=-1)
        alpha, excess = _excess(raw).unbind(-1)
        each = (point.unbind(-2), (1 + alpha).unbind(-1), excess.unbind(-1))
        return [_Radial(*these) for these in zip(*each, strict=True)]


class _Radial(_Layer):
    """Push away from a point ``(*batch, D)``; alpha and excess = beta / alpha are ``(*batch)``."""

    def __init__(self, point: Tensor, alpha: Tensor, excess: Tensor) -> None:
        self.point, self.alpha, self.excess = point, alpha, excess

    def there(self, z: Tensor) -> tuple[Tensor, Tensor]:
        away = z - self.point
        across, log_det = self._stretch(torch.linalg.vector_norm(away, dim=-1) / self.alpha)
        return z + away * across.unsqueeze(-1), log_det

    def back(self, value: Tensor) -> tuple[Tensor, Tensor]:
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
    """Increasing m(x) > LEAST_STRETCH - 1 with m(0) = 0, exactly."""
    below = torch.log1p((1 - math.exp(-1)) * torch.expm1(x.clamp(max=0)))
    above = x + torch.log1p(math.exp(-1) * torch.expm1(-x.clamp(min=0)))
    return (1 - LEAST_STRETCH) * torch.where(x < 0, below, above)


def _planar_root(c: Tensor, k: Tensor) -> Tensor:
    """The root a of a + k tanh(a) = c, with derivatives to third order.

    For c > 0 the left side is concave (k > 0) or convex in a > 0: Newton's method is monotonic from
    below or from above. |tanh a| is below 1 and |a|, hence the start.
    """
    size, fixed = c.detach().abs(), k.detach()
    start = size - fixed, size / (1 + fixed)
    a = torch.where(fixed > 0, torch.maximum(*start), torch.minimum(*start))
    for _ in range(14):
        a = _newton(a, size, fixed)
    # Each further step is of no account to the value, and doubles the order of what derivatives
    # it gets right.
    return _newton(_newton(torch.copysign(a, c.detach()), c, k), c, k)


def _newton(a: Tensor, c: Tensor, k: Tensor) -> Tensor:
    tanh = a.tanh()
    return a - (a + k * tanh - c) / (1 + k * (1 - tanh.square()))


def _radial_root(y: Tensor, k: Tensor) -> Tensor:
    """The root x >= 0 of x + k x / (1 + x) = y, in the form of it that does not cancel."""
    p = y - 1 - k  # x^2 = p x + y
    root = (p.square() + 4 * y).sqrt()
    return torch.where(p < 0, 2 * y / (root - p.clamp(max=0)), (p.clamp(min=0) + root) / 2)
