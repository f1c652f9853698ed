r"""Likelihood that scores images by a distance.

.. math:: \log p(x \mid z) \;\to\; -w\, d\big(x, \hat x(z)\big)

The normalizer of :math:`e^{-w d}` is unknown, so this is no density, and no objective with it is a
bound.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tinyvae.distributions import Distribution
from tinyvae.distributions.base import check_event
from tinyvae.likelihoods.base import Likelihood, smoothed_mean
from tinyvae.likelihoods.distances import Distance
from tinyvae.likelihoods.parameters import check_positive


class PerceptualLikelihood(Likelihood):
    r"""A distance between the data and the decoded image, instead of a log density.

    .. math:: \log p(x \mid z) \;\to\; -w\, d\big(x, \hat x(z)\big), \qquad
        \hat x = a + (b - a)\, \mathrm{sigmoid}(\text{decoder}(z))

    Reports say "not a bound". There is no noise: mean and draws are the decoded image. Data lie in
    :math:`[a, b]`, and a sigmoid keeps the decoded image there.

    Args:
        distance: Module that maps ``(N, *E)`` and ``(N, *E)`` to ``(N,)``, such as
            :class:`~tinyvae.likelihoods.MultiScaleSSIM` or
            :class:`~tinyvae.likelihoods.FeatureDistance`. Its parameters are frozen and it stays in
            evaluation mode, because a distance that the model could train would shrink to zero.
        weight: Cost of a distance of one, nats. It sets the balance between the distance and the
            KL. For MS-SSIM, which is at most about 1, start with the number of pixels.
        bounds: :math:`(a, b)`. None accepts any finite data and leaves the decoder's output as it
            is.

    Shape:
        params: ``(..., *E)``; x: ``(..., *E)``.

    References:
        Snell, Ridgeway, Liao, Roads, Mozer, Zemel (2017). Learning to generate images with
        perceptual similarity metrics. arXiv:1511.06409.

    Example:
        >>> ssim = MultiScaleSSIM(channels=1, window=5, scales=1)
        >>> p = PerceptualLikelihood(ssim, weight=64.0)(torch.zeros(5, 1, 8, 8), event_ndim=3)
        >>> p.log_prob(torch.ones(5, 1, 8, 8))  # of the gray image of 0.5
        tensor([-12.7990, -12.7990, -12.7990, -12.7990, -12.7990])
        >>> p.is_density
        False
    """

    is_density = False
    factorizes = False
    alternative = "a distance of images has no terms of single pixels, use GaussianLikelihood()"

    def __init__(
        self,
        distance: nn.Module,
        *,
        weight: float = 1.0,
        bounds: tuple[float, float] | None = (0.0, 1.0),
    ) -> None:
        super().__init__()
        if not isinstance(distance, nn.Module):
            raise TypeError(
                "PerceptualLikelihood expects a module (x, y) -> (N,), such as "
                f"MultiScaleSSIM(channels=1), got a {type(distance).__name__}"
            )
        check_positive("PerceptualLikelihood", "weight", weight)
        self.distance = distance.requires_grad_(False).eval()
        self.weight = weight
        self.has_location = bounds is None
        self.bounds = None if bounds is None else (float(bounds[0]), float(bounds[1]))
        if self.bounds is not None:
            low, high = self.bounds
            if not -math.inf < low < high < math.inf:
                raise ValueError(
                    "PerceptualLikelihood expects finite bounds (low, high), low < high, got "
                    f"{bounds}"
                )
            self.support = f"numbers in [{low:g}, {high:g}]"
            self.hint = "divide gray levels by their maximum, or set bounds=(low, high)"
            self.fill_value = (low + high) / 2

    def forward(
        self, params: Tensor, event_ndim: int, context: Tensor | None = None
    ) -> Distribution:
        """Return a point at the decoded image, which scores data by their distance from it."""
        if self.bounds is not None:
            low, high = self.bounds
            params = low + (high - low) * torch.sigmoid(params)
        return _Decoded(params, event_ndim, self)

    def score(self, x: Tensor, decoded: Tensor) -> Tensor:
        """Return minus the weighted distance of each pair of ``(N, *E)``, as ``(N,)``."""
        distance = self.distance(x, decoded)
        if not isinstance(distance, Tensor) or distance.shape != x.shape[:1]:
            got = tuple(distance.shape) if isinstance(distance, Tensor) else type(distance).__name__
            raise ValueError(
                f"{self} expects a distance of shape (N,) = ({len(x)},), got {got}: sum or average "
                "over all dimensions but the first"
            )
        return -self.weight * distance

    def train(self, mode: bool = True) -> "PerceptualLikelihood":
        """Set the mode. The distance stays in evaluation mode."""
        super().train(mode)
        self.distance.eval()
        return self

    def params_for_mean(self, x: Tensor) -> Tensor:
        """Return parameters that decode to the mean, or with bounds to the smoothed mean."""
        if self.bounds is None:
            return super().params_for_mean(x)
        low, high = self.bounds
        return torch.logit(smoothed_mean((x - low) / (high - low)))

    def in_support(self, x: Tensor) -> Tensor:
        """Return true for each entry that is finite and within the bounds."""
        if self.bounds is None:
            return torch.isfinite(x)
        low, high = self.bounds
        return (x >= low) & (x <= high)

    def check_parameters(self, data_shape: Sequence[int]) -> None:
        """Raise unless the distance accepts data of this shape."""
        if isinstance(self.distance, Distance):
            self.distance.check_shape(data_shape)


class _Decoded(Distribution):
    """A point at the decoded image, which scores data by their distance from it."""

    is_density = False

    def __init__(self, image: Tensor, event_ndim: int, likelihood: PerceptualLikelihood) -> None:
        split = image.dim() - event_ndim
        self.image = image
        self.batch_shape, self.event_shape = image.shape[:split], image.shape[split:]
        self.likelihood = likelihood

    @property
    def mean(self) -> Tensor:
        """Decoded image, ``(*batch, *event)``."""
        return self.image

    def log_prob(self, value: Tensor) -> Tensor:
        """Return minus the weighted distance, ``(*S, *batch)``."""
        check_event(value, self.event_shape)
        x, image = torch.broadcast_tensors(value, self.image)
        batch = x.shape[: x.dim() - len(self.event_shape)]
        rows = [t.reshape(-1, *self.event_shape) for t in (x, image)]
        return self.likelihood.score(*rows).reshape(batch)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Return copies of the image, with gradients."""
        copies = self.image.expand(self._shape(sample_shape))
        return copies.clone()  # callers may write to draws, and a view would change the image
