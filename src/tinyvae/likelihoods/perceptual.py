r"""A distance of images in the place of log p(x given z).

.. math:: \log p(x \mid z) \;\to\; -w\, d\big(x, \hat x(z)\big)

:math:`e^{-w d}` has no known normalizer, so this is no density and no objective with it is a bound.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tinyvae.distributions import Delta, Distribution
from tinyvae.distributions.base import check_event
from tinyvae.likelihoods.base import Likelihood, smoothed_mean
from tinyvae.likelihoods.distances import Distance, check_positive


class PerceptualLikelihood(Likelihood):
    r"""A distance of the data from the decoded image, in the place of a log density.

    .. math:: \log p(x \mid z) \;\to\; -w\, d\big(x, \hat x(z)\big), \qquad
        \hat x = a + (b - a)\, \mathrm{sigmoid}(\text{decoder}(z))

    No report calls what is made of it a bound. There is no noise: a draw is the decoded image, as
    is the mean. Data range over :math:`[a, b]`, and a sigmoid keeps the decoded image there.

    Args:
        distance: Module that maps ``(N, *E)`` and ``(N, *E)`` to ``(N,)``:
            :class:`~tinyvae.likelihoods.MultiScaleSSIM`, :class:`~tinyvae.likelihoods.FeatureDistance`, or your own. It is
            fixed, as the network of a :class:`~tinyvae.likelihoods.FeatureDistance` is: a distance that the
            model could train would shrink to nothing.
        weight: What a distance of one costs, nats. The larger, the less the KL counts; of MS-SSIM,
            which is at most about 1, the number of pixels is a start.
        bounds: :math:`(a, b)`; None takes any finite data, and the decoder's output as it is.

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
    separable = False
    instead = "a distance of whole images has no terms of single pixels; take GaussianLikelihood()"

    def __init__(
        self,
        distance: nn.Module,
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
        self.bounds = None if bounds is None else _checked(bounds)
        if self.bounds is not None:
            low, high = self.bounds
            self.support = f"numbers in [{low:g}, {high:g}]"
            self.remedy = "divide gray levels by their maximum, or give it bounds=(low, high)"
            self.inside = (low + high) / 2

    def forward(
        self, params: Tensor, event_ndim: int, context: Tensor | None = None
    ) -> Distribution:
        """Turn ``(..., *E)`` into what scores data by their distance from it."""
        return _Decoded(self._decoded(params), event_ndim, self)

    def _decoded(self, params: Tensor) -> Tensor:
        if self.bounds is None:
            return params
        low, high = self.bounds
        return low + (high - low) * torch.sigmoid(params)

    def score(self, x: Tensor, decoded: Tensor) -> Tensor:
        """Minus the weighted distance of each pair of ``(N, *E)``, as ``(N,)``."""
        distance = self.distance(x, decoded)
        if not isinstance(distance, Tensor) or distance.shape != x.shape[:1]:
            got = tuple(distance.shape) if isinstance(distance, Tensor) else type(distance).__name__
            raise ValueError(
                f"{self} expects a distance of shape (N,) = ({len(x)},), got {got}: sum or average "
                "over all dimensions but the first"
            )
        return -self.weight * distance

    def train(self, mode: bool = True) -> "PerceptualLikelihood":
        """Set the mode; the distance stays in evaluation mode."""
        super().train(mode)
        self.distance.eval()
        return self

    def params_for_mean(self, x: Tensor) -> Tensor:
        """What decodes to the mean; with bounds, half a lower and half an upper one added."""
        if self.bounds is None:
            return super().params_for_mean(x)
        low, high = self.bounds
        return torch.logit(smoothed_mean((x - low) / (high - low)))

    def in_support(self, x: Tensor) -> Tensor:
        """Whether each entry is finite and within the bounds."""
        if self.bounds is None:
            return torch.isfinite(x)
        low, high = self.bounds
        return (x >= low) & (x <= high)

    def check_parameters(self, data_shape: Sequence[int]) -> None:
        """Raise unless the distance takes data of this shape."""
        if isinstance(self.distance, Distance):
            self.distance.check(data_shape)


class _Decoded(Delta):
    """An image that is always drawn, and scores others by their distance from it."""

    depends_on_parameters = True

    def __init__(self, image: Tensor, event_ndim: int, likelihood: PerceptualLikelihood) -> None:
        super().__init__(image, event_ndim)
        self.likelihood = likelihood

    def log_prob(self, value: Tensor) -> Tensor:
        """Minus the weighted distance, ``(*S, *batch)``."""
        check_event(value, self.event_shape)
        x, image = torch.broadcast_tensors(value, self.value)
        batch = x.shape[: x.dim() - len(self.event_shape)]
        rows = [t.reshape(-1, *self.event_shape) for t in (x, image)]
        return self.likelihood.score(*rows).reshape(batch)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """The image, again and again, with gradients."""
        return super().sample(sample_shape).clone()  # no view that others write to


def _checked(bounds: tuple[float, float]) -> tuple[float, float]:
    low, high = bounds
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"expected finite bounds (low, high), low < high, got {bounds}")
    return float(low), float(high)
