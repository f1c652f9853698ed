r"""Distances between images, and between features of a fixed network.

.. math:: d(x, y) = 1 - \operatorname{MS-SSIM}(x, y), \qquad
    d(x, y) = \tfrac12 \|f(x) - f(y)\|^2
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyvae.core.configurable import Configurable
from tinyvae.distributions.special import at_least_float32, limited
from tinyvae.likelihoods.parameters import check_positive, compact_repr

# Wang, Simoncelli, Bovik (2003), section 3.2: exponents from the finest to the coarsest scale.
EXPONENTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
# Wang et al. (2004), section III-B: constants of luminance and of contrast for a range of one.
K1, K2 = 0.01, 0.03
# Mean similarities below this value are replaced, see MultiScaleSSIM.
LOWEST_SIMILARITY = 0.01


class Distance(Configurable, nn.Module, ABC):
    """Distance between two batches of data, one number per pair."""

    @abstractmethod
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the distance of each pair of ``x`` and ``y``, both ``(N, *E)``, as ``(N,)``."""

    def check_shape(self, data_shape: Sequence[int]) -> None:
        """Raise, with a hint, unless the distance accepts data of ``data_shape``."""

    def __repr__(self) -> str:
        return compact_repr(self)


class MultiScaleSSIM(Distance):
    r"""One minus the structural similarity of images, over several scales.

    With means :math:`\mu`, variances and covariance :math:`\sigma` within a Gaussian window,

    .. math::
        l = \frac{2 \mu_x \mu_y + C_1}{\mu_x^2 + \mu_y^2 + C_1}, \qquad
        c = \frac{2 \sigma_{xy} + C_2}{\sigma_x^2 + \sigma_y^2 + C_2}, \qquad
        d = 1 - \overline{l_M c_M}^{\,\alpha_M} \prod_{j < M} \overline{c_j}^{\,\alpha_j}

    with :math:`C_1 = (0.01 L)^2` and :math:`C_2 = (0.03 L)^2`. Bars are means over all windows that
    lie within the image (no padding). Each scale halves the images by averaging 2 by 2 pixels. An
    odd last row or column is dropped. The exponents are the first ``scales`` of the paper's five,
    divided by their sum. Channels are compared one by one, and their distances are averaged. With
    one scale this is 1 - SSIM, in [0, 2]. With more scales it is in [0, 1].

    The mean contrast of opposite images is negative, so its power is undefined. A mean m below 0.01
    is replaced by :math:`0.01^2 / (0.02 - m)`, which has the same value and slope at 0.01, stays
    positive and keeps a gradient. The distance of equal images and its gradient are exactly zero.

    Args:
        channels: Number of channels ``C`` of the images.
        window: Side of the window, pixels.
        sigma: Standard deviation of the Gaussian window, pixels.
        scales: Number of scales ``M``, 1 to 5. The coarsest image must contain a window: with a
            window of 11 pixels, five scales need images of 176 pixels and two scales need 22.
        max_value: Range ``L`` of the values.

    Shape:
        x, y: ``(N, C, H, W)``; distance: ``(N,)``.

    References:
        Wang, Bovik, Sheikh, Simoncelli (2004). Image quality assessment: from error visibility to
        structural similarity. IEEE Transactions on Image Processing 13(4), eq. 6 to 16.
        Wang, Simoncelli, Bovik (2003). Multi-scale structural similarity for image quality
        assessment. Asilomar, eq. 7.

    Example:
        >>> x = torch.rand(5, 3, 28, 28)
        >>> distance = MultiScaleSSIM(channels=3, scales=2)
        >>> distance(x, x) == 0, distance(x, 1 - x).shape
        (tensor([True, True, True, True, True]), torch.Size([5]))
    """

    def __init__(
        self,
        channels: int,
        *,
        window: int = 11,
        sigma: float = 1.5,
        scales: int = 5,
        max_value: float = 1.0,
    ) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"MultiScaleSSIM expects channels >= 1, got {channels}")
        if window < 2:
            raise ValueError(f"MultiScaleSSIM expects a window of 2 pixels or more, got {window}")
        if not 1 <= scales <= len(EXPONENTS):
            raise ValueError(f"MultiScaleSSIM expects 1 to {len(EXPONENTS)} scales, got {scales}")
        check_positive("MultiScaleSSIM", "sigma", sigma)
        check_positive("MultiScaleSSIM", "max_value", max_value)
        self.channels, self.window, self.sigma = channels, window, sigma
        self.scales, self.max_value = scales, max_value

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the distance of each pair of images."""
        self.check_shape(x.shape[1:])
        total, difference = x + y, x - y
        exponents = EXPONENTS[: self.scales]
        log_similarity = x.new_zeros(())
        for scale, exponent in enumerate(exponents):
            if scale:
                total, difference = F.avg_pool2d(total, 2), F.avg_pool2d(difference, 2)
            luminance, contrast = self._dissimilarities(total, difference)  # (N, C, H', W')
            if scale == self.scales - 1:
                contrast = luminance + contrast - luminance * contrast  # 1 - l c
            loss = contrast.mean((-2, -1))  # (N, C)
            if self.scales == 1:
                return loss.mean(1)
            log_similarity = log_similarity + exponent / sum(exponents) * _log_similarity(loss)
        return -torch.expm1(log_similarity).mean(1)

    def _dissimilarities(self, total: Tensor, difference: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return one minus luminance and one minus contrast of each window.

        They are computed from the sum and the difference of the images, :math:`1 - c =
        \sigma_{x - y}^2 / (\sigma_x^2 + \sigma_y^2 + C_2)`, which is exactly zero for equal images
        and accurate for similar ones.
        """
        c1, c2 = (K1 * self.max_value) ** 2, (K2 * self.max_value) ** 2
        maps = torch.stack([total, difference, total.square(), difference.square()])
        mean_total, mean_difference, *squares = self._blurred(maps)
        square_total, square_difference = mean_total.square(), mean_difference.square()
        # Rounding may make a variance negative.
        total_variance = limited(squares[0] - square_total, least=0.0)
        variance = limited(squares[1] - square_difference, least=0.0)
        luminance = square_difference / ((square_total + square_difference) / 2 + c1)
        contrast = variance / ((total_variance + variance) / 2 + c2)
        return luminance, contrast

    def _blurred(self, maps: Tensor) -> Tensor:
        """Return Gaussian means over all windows, ``(..., H - w + 1, W - w + 1)``."""
        # Sums of shifted images. A convolution rounds to 10 bits on a GPU (TF32, cudnn's default)
        # or under autocast, and that error exceeds the variances.
        weights = self._weights()
        for dim in (-2, -1):
            size = maps.shape[dim] - self.window + 1
            blurred = weights[0] * maps.narrow(dim, 0, size)
            for offset, weight in enumerate(weights[1:], start=1):
                blurred = torch.add(blurred, maps.narrow(dim, offset, size), alpha=weight)
            maps = blurred
        return maps

    def _weights(self) -> list[float]:
        center = (self.window - 1) / 2
        steps = [(index - center) / self.sigma for index in range(self.window)]
        weights = [math.exp(-0.5 * step**2) for step in steps]
        total = sum(weights)
        return [weight / total for weight in weights]

    def check_shape(self, data_shape: Sequence[int]) -> None:
        """Raise unless images have the right channels and the coarsest contains a window."""
        shape = tuple(data_shape)
        if len(shape) != 3 or shape[0] != self.channels:
            raise ValueError(
                f"{self} expects images of shape (C, H, W) with C = {self.channels}, got {shape}: "
                "set channels=C"
            )
        side = min(shape[1:])
        coarsest = side >> (self.scales - 1)
        if coarsest >= self.window:
            return
        smallest = self.window << (self.scales - 1)
        options = [
            f"scales={scales}, window={min(self.window, side >> (scales - 1))}"
            for scales in range(self.scales, 0, -1)
            if side >> (scales - 1) >= 2
        ]
        raise ValueError(
            f"MultiScaleSSIM with {self.scales} scales and a window of {self.window} expects "
            f"images of at least {smallest} x {smallest}, got {shape[1]} x {shape[2]}: "
            + (f"use {' or '.join(options)}" if options else "use another distance")
        )


class FeatureDistance(Distance):
    r"""Half the squared distance between a fixed network's features of two images.

    .. math:: d(x, y) = \tfrac12 \textstyle\sum_i \big(\phi_i(x) - \phi_i(y)\big)^2

    The network is fixed: its parameters get ``requires_grad=False`` and it stays in evaluation mode
    in every mode of the model, so that neither its weights nor its running means change.

    Args:
        network: Module :math:`\phi` from ``(N, *E)`` to features ``(N, ...)``, or to a sequence of
            features, such as those of several layers. The sum is over all of them. For a mean over
            features, as in the paper, divide them in the module by the square root of their number.

    Shape:
        x, y: ``(N, *E)``; distance: ``(N,)``.

    References:
        Hou, Shen, Sun, Qiu (2017). Deep feature consistent variational autoencoder.
        arXiv:1610.00291, eq. 3.

    Example:
        >>> x = torch.zeros(2, 3)
        >>> FeatureDistance(torch.nn.Identity())(x, x + 1)  # 3 / 2
        tensor([1.5000, 1.5000])
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        if not isinstance(network, nn.Module):
            raise TypeError(f"FeatureDistance expects a module, got a {type(network).__name__}")
        self.network = network.requires_grad_(False).eval()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the distance of each pair."""
        pairs = zip(self._features(x), self._features(y), strict=True)
        each = [(a - b).square().flatten(1).sum(1) for a, b in pairs]
        return torch.stack(each).sum(0) / 2

    def _features(self, x: Tensor) -> list[Tensor]:
        output = self.network(x)
        features = [output] if isinstance(output, Tensor) else output
        return [at_least_float32(f) for f in features]

    def train(self, mode: bool = True) -> "FeatureDistance":
        """Set the mode. The network stays in evaluation mode."""
        super().train(mode)
        self.network.eval()
        return self


def _log_similarity(loss: Tensor) -> Tensor:
    """Return log m for m = 1 - loss, or log e^2 / (2 e - m) if m < e = ``LOWEST_SIMILARITY``."""
    clamped = loss.clamp(max=1 - LOWEST_SIMILARITY)
    return torch.log1p(-clamped) - torch.log1p((loss - clamped) / LOWEST_SIMILARITY)
