r"""Walks through a latent space: traversals, interpolations and a map of two dimensions.

They take the decoder as a function of latent points ``(N, L)`` that returns images
``(N, C, H, W)``, such as ``lambda z: vae.decode(z).mean``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from tinyvae.plotting._style import Array
from tinyvae.plotting.images import Limits, image_grid, image_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Decode: TypeAlias = Callable[[Tensor], Array]


def traversals(
    decode: Decode,
    z: Tensor,
    *,
    dims: Sequence[int] | None = None,
    values: Sequence[float] = (-3, -2, -1, 0, 1, 2, 3),
    limits: Limits = (0.0, 1.0),
    title: str | None = None,
) -> Figure:
    """Draw decoded points that differ from ``z`` in one dimension, a row for each dimension.

    Args:
        decode: Function from latent points to images.
        z: Latent point, such as the mean of a posterior.
        dims: Dimensions, such as the active ones in the order of their KL. All by default.
        values: Values that replace the value of the dimension.
        limits: Values of black and white, see :func:`image_grid`.
        title: Title above the images.

    Shape:
        z: ``(L,)``; ``decode`` maps ``(N, L)`` to ``(N, C, H, W)``.

    Raises:
        ValueError: If a shape is invalid.

    Example:
        >>> decode = torch.nn.Sequential(torch.nn.Linear(2, 64), torch.nn.Unflatten(1, (1, 8, 8)))
        >>> figure = traversals(decode, torch.zeros(2), limits=(-5, 5))
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['dimension 0', 'dimension 1']
    """
    if z.dim() != 1:
        raise ValueError(
            f"traversals expects one latent point (L,), got {tuple(z.shape)}: pass z[0]"
        )
    rows = {}
    for dim in range(len(z)) if dims is None else dims:
        points = z.repeat(len(values), 1)
        points[:, dim] = torch.tensor(values).to(z)
        rows[f"dimension {dim}"] = _decoded(decode, points)
    return image_rows(rows, limits=limits, title=title)


def interpolations(
    decode: Decode,
    start: Tensor,
    end: Tensor,
    *,
    steps: int = 9,
    spherical: bool = False,
    limits: Limits = (0.0, 1.0),
    title: str | None = None,
) -> Figure:
    """Draw decoded points between pairs of latent points, a row for each pair.

    Args:
        decode: Function from latent points to images.
        start: Latent points at the left.
        end: Latent points at the right.
        steps: Points per row, with both ends.
        spherical: True walks along arcs, see :func:`interpolate`.
        limits: Values of black and white, see :func:`image_grid`.
        title: Title above the images.

    Shape:
        start, end: ``(N, L)``; ``decode`` maps ``(N, L)`` to ``(N, C, H, W)``.

    Raises:
        ValueError: If a shape is invalid.

    Example:
        >>> decode = torch.nn.Sequential(torch.nn.Linear(2, 64), torch.nn.Unflatten(1, (1, 8, 8)))
        >>> a, b = torch.zeros(3, 2), torch.ones(3, 2)
        >>> len(interpolations(decode, a, b, limits=(-5, 5)).axes[0].images)
        27
    """
    points = interpolate(start, end, steps=steps, spherical=spherical)  # (steps, N, L)
    images = _decoded(decode, points.transpose(0, 1).flatten(0, 1))
    return image_grid(images, columns=steps, limits=limits, title=title)


def interpolate(start: Tensor, end: Tensor, *, steps: int, spherical: bool = False) -> Tensor:
    r"""Return points between two points, in equal steps of :math:`t \in [0, 1]`.

    .. math:: (1 - t)\, a + t\, b \qquad\text{or}\qquad
        \frac{\sin((1 - t)\, \omega)}{\sin \omega}\, a + \frac{\sin(t\, \omega)}{\sin \omega}\, b

    with the angle :math:`\omega` between a and b. The middle of a line between two draws of
    N(0, I) is too close to the origin; arcs keep the typical distance.

    Args:
        start: Points a.
        end: Points b.
        steps: Number of points, with both ends.
        spherical: True returns the arc instead of the line. Opposite points have no unique arc, and
            equal directions have none: these pairs get the line.

    Shape:
        start, end: ``(N, L)``; result: ``(steps, N, L)``.

    Raises:
        ValueError: If the shapes differ or ``steps < 2``.

    References:
        White (2016). Sampling Generative Networks. arXiv:1609.04468, section 2.1.

    Example:
        >>> a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> interpolate(a, b, steps=3)[1], interpolate(a, b, steps=3, spherical=True)[1]
        (tensor([[0.5000, 0.5000]]), tensor([[0.7071, 0.7071]]))
    """
    if start.dim() != 2 or start.shape != end.shape or steps < 2:
        raise ValueError(
            f"interpolate expects start and end (N, L) and steps >= 2, got {tuple(start.shape)}, "
            f"{tuple(end.shape)} and {steps}: pass as many ends as starts"
        )
    t = torch.linspace(0, 1, steps).to(start).reshape(-1, 1, 1)
    line = torch.lerp(start, end, t)
    if not spherical:
        return line
    cosine = torch.cosine_similarity(start, end, dim=1).unsqueeze(1)  # (N, 1)
    angle = torch.acos(cosine.clamp(-1, 1))
    arc = (torch.sin((1 - t) * angle) * start + torch.sin(t * angle) * end) / torch.sin(angle)
    return torch.where(torch.sin(angle) > 1e-4, arc, line)


def latent_map(
    decode: Decode,
    *,
    size: int = 15,
    quantile: Callable[[Tensor], Tensor] = torch.special.ndtri,
    limits: Limits = (0.0, 1.0),
    title: str | None = None,
) -> Figure:
    r"""Draw the decoded points of a grid over a latent space of two dimensions.

    The grid has the quantiles :math:`F^{-1}\big((i + \tfrac12) / n\big)` of the prior in both
    dimensions, so that every image stands for the same probability. The first dimension is to the
    right and the second is up.

    Args:
        decode: Function from latent points to images.
        size: Points :math:`n` per dimension.
        quantile: Quantile function :math:`F^{-1}` of the prior in one dimension. N(0, 1) by
            default.
        limits: Values of black and white, see :func:`image_grid`.
        title: Title above the images.

    Shape:
        ``decode`` maps ``(N, 2)`` to ``(N, C, H, W)``.

    Raises:
        ValueError: If ``size < 1`` or the images are invalid.

    References:
        Kingma, Welling (2014). Auto-Encoding Variational Bayes. arXiv:1312.6114, figure 4.

    Example:
        >>> decode = torch.nn.Sequential(torch.nn.Linear(2, 64), torch.nn.Unflatten(1, (1, 8, 8)))
        >>> len(latent_map(decode, size=5, limits=(-5, 5)).axes[0].images)
        25
    """
    if size < 1:
        raise ValueError(f"latent_map expects size >= 1, got {size}")
    line = quantile((torch.arange(size) + 0.5) / size)
    points = torch.cartesian_prod(line.flip(0), line).flip(1)  # from the top left
    return image_grid(_decoded(decode, points), columns=size, limits=limits, title=title)


def _decoded(decode: Decode, points: Tensor) -> Array:
    with torch.no_grad():
        return decode(points)
