"""Likelihoods of zeros and ones, of classes, and of levels."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tinyvae.core.warnings import warn
from tinyvae.distributions import (
    Bernoulli,
    Categorical,
    DiscretizedLogistic,
    Distribution,
    OneHotCategorical,
)
from tinyvae.likelihoods.base import Likelihood, smoothed_mean
from tinyvae.likelihoods.parameters import PositiveLike, positive


class BernoulliLikelihood(Likelihood):
    r"""Zeros and ones, by the logits of a one.

    .. math:: p(x \mid z) = \prod_i \sigma(\ell_i)^{x_i} \sigma(-\ell_i)^{1 - x_i}

    Gray levels in (0, 1) are let through with a warning, as is the custom: their log-likelihood is
    no log probability of anything.

    Shape:
        params (logits): ``(..., *E)``; x: ``(..., *E)``.

    Example:
        >>> p = BernoulliLikelihood()(torch.zeros(5, 1, 2, 2), event_ndim=3)
        >>> p.log_prob(torch.ones(5, 1, 2, 2))[0]  # 4 log(1/2)
        tensor(-2.7726)
    """

    takes_integers = True
    support = "values in [0, 1]"
    remedy = (
        "binarize, as with tinyvae.datasets.threshold(x, level) or by fit's "
        "transform=tinyvae.datasets.DynamicBinarization(max_value), divide by the maximum and use "
        "ContinuousBernoulliLikelihood, or take levels as they are by CategoricalLikelihood(levels)"
    )

    def elementwise(self, *params: Tensor) -> Bernoulli:
        """Bernoulli distributions of the logits."""
        (logits,) = params
        return Bernoulli(logits)

    def params_for_mean(self, x: Tensor) -> Tensor:
        """Log odds of a one, half a one and half a zero added to those observed."""
        return torch.logit(smoothed_mean(x))

    def in_support(self, x: Tensor) -> Tensor:
        """Whether each entry lies in [0, 1]."""
        return (x >= 0) & (x <= 1)

    def check_support(self, x: Tensor) -> bool:
        """Raise outside [0, 1]; warn between 0 and 1, where no pixel has a probability."""
        super().check_support(x)
        binary = not bool(((x != 0) & (x != 1)).any())
        if not binary:
            warn(
                "BernoulliLikelihood got values between 0 and 1: they have no probability under "
                "it, so what is reported is no bound on log p(x). Binarize them, as with "
                "transform=tinyvae.datasets.DynamicBinarization(), or use "
                "ContinuousBernoulliLikelihood"
            )
        return binary


class CategoricalLikelihood(Likelihood):
    r"""Classes, or gray levels without a shape put upon them, by index.

    .. math:: \log p(x \mid z) = \sum_i \big( \ell_{i, x_i} - \log \textstyle\sum_c e^{\ell_{i, c}}
        \big)

    The encoder is fed one-hot rows along a new first dimension, or, of ordered classes, the index
    scaled to [-1, 1].

    Args:
        num_classes: Number of classes ``C``; data are 0 to C - 1, of any dtype.
        ordered: Whether the classes are levels of a quantity, such as gray, so that reconstructions
            are expected levels. Otherwise they are the most probable class.

    Shape:
        params (logits): ``(..., C, *E)``; x: ``(..., *E)``.

    Example:
        >>> gray = CategoricalLikelihood(256, ordered=True)
        >>> gray.param_shape((1, 28, 28)), gray.input_shape((1, 28, 28))
        (torch.Size([256, 1, 28, 28]), torch.Size([1, 28, 28]))
        >>> CategoricalLikelihood(21).input_shape((64, 64))
        torch.Size([21, 64, 64])
    """

    takes_integers = True

    def __init__(self, num_classes: int, *, ordered: bool = False) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"CategoricalLikelihood expects num_classes >= 2, got {num_classes}")
        self.num_classes = self.num_params = num_classes
        self.ordered = ordered
        self.support = f"integers 0 to {num_classes - 1}"
        self.remedy = "give class indices, not scaled levels; num_classes is their number"

    def scalars(
        self, params: Tensor, event_ndim: int, context: Tensor | None = None
    ) -> Distribution:
        """Categorical distributions of the logits ``(..., C, *E)``."""
        return Categorical(params, -event_ndim - 1, ordered=self.ordered)

    def input_shape(self, data_shape: Sequence[int]) -> torch.Size:
        """``(C, *E)``, or ``E`` of ordered classes."""
        return torch.Size(data_shape if self.ordered else (self.num_classes, *data_shape))

    def encoder_input(self, x: Tensor) -> Tensor:
        """One-hot rows, NaN where x is; of ordered classes, the index scaled to [-1, 1]."""
        if self.ordered:
            return 2 * x / (self.num_classes - 1) - 1
        classes = torch.arange(self.num_classes, device=x.device, dtype=x.dtype)
        rows = x.unsqueeze(1)  # (B, 1, *E)
        hits = (rows == classes.reshape(-1, *[1] * (x.dim() - 1))).to(x.dtype)
        return torch.where(torch.isnan(rows), rows, hits)

    def params_for_mean(self, x: Tensor) -> Tensor:
        """Log frequencies of the classes, ``(C, *E)``, one of each added."""
        classes = torch.arange(self.num_classes, device=x.device)
        counts = torch.stack([(x == label).sum(0) for label in classes])
        return torch.log((counts + 1) / (counts.sum(0) + self.num_classes)).to(x.dtype)

    def in_support(self, x: Tensor) -> Tensor:
        """Whether each entry is a class index."""
        return _is_level(x, self.num_classes)


class OneHotLikelihood(Likelihood):
    """Classes as one-hot data, along the first dimension of E.

    Shape:
        params (logits): ``(..., C, *E')``; x: ``(..., C, *E')``, one 1 along C.

    Example:
        >>> p = OneHotLikelihood()(torch.zeros(5, 4), event_ndim=1)
        >>> p.log_prob(torch.eye(4)[[0, 1, 2, 3, 0]])[0]  # -log 4
        tensor(-1.3863)
    """

    separable = False
    instead = "take CategoricalLikelihood, of class indices"
    support = "one-hot rows along the first dimension"
    remedy = "give one 1 and otherwise 0, or class indices to CategoricalLikelihood"

    def forward(
        self, params: Tensor, event_ndim: int, context: Tensor | None = None
    ) -> Distribution:
        """One-hot categorical distributions of the logits."""
        return OneHotCategorical(params, event_ndim)

    def params_for_mean(self, x: Tensor) -> Tensor:
        """Log frequencies of the classes, one of each added."""
        return torch.log((x.sum(0) + 1) / (len(x) + x.shape[1]))

    def in_support(self, x: Tensor) -> Tensor:
        """Whether each entry belongs to a one-hot row."""
        one_hot = ((x == 0) | (x == 1)).all(1, keepdim=True) & (x.sum(1, keepdim=True) == 1)
        return one_hot.expand(x.shape)


class DiscretizedLogisticLikelihood(Likelihood):
    r"""Levels 0 to L - 1 such as gray, as a rounded logistic variable with open edges.

    Masses are exact and sum to one; see :class:`~tinyvae.distributions.DiscretizedLogistic`. The
    decoder's mean is in units in which the levels lie in [-1, 1], and so is what the encoder is
    fed. A mixture of several is :class:`~tinyvae.likelihoods.MixtureLikelihood` of it.

    Args:
        num_levels: Number of levels ``L``; data are 0 to L - 1, of any dtype.
        scale: As ``std`` of :class:`~tinyvae.GaussianLikelihood`.

    Shape:
        params: ``(..., 2, *E)`` with mean and scale, or ``(..., *E)`` where the scale is not
        predicted; x: ``(..., *E)``.

    References:
        Salimans, Karpathy, Chen, Kingma (2017). PixelCNN++. arXiv:1701.05517.

    Example:
        >>> p = DiscretizedLogisticLikelihood(256)(torch.zeros(2, 784), event_ndim=1)
        >>> p.log_prob(torch.zeros(784)).shape
        torch.Size([])
        >>> MixtureLikelihood(DiscretizedLogisticLikelihood(256), 10).param_shape((3, 32, 32))
        torch.Size([30, 3, 32, 32])
    """

    takes_integers = True

    def __init__(self, num_levels: int, scale: PositiveLike = "predicted") -> None:
        super().__init__()
        if num_levels < 2:
            raise ValueError(
                f"DiscretizedLogisticLikelihood expects num_levels >= 2, got {num_levels}"
            )
        self.num_levels = num_levels
        self.scale = positive(scale, initial=0.2)
        self.num_params = 1 + self.scale.num_params
        self.support = f"integers 0 to {num_levels - 1}"
        self.remedy = "give levels as they are, not scaled; num_levels is their number"

    def elementwise(self, *params: Tensor) -> DiscretizedLogistic:
        """Discretized logistic distributions around the means."""
        mean, log_scale = params
        return DiscretizedLogistic(mean, log_scale, self.num_levels)

    def location(self, mean: Tensor) -> Tensor:
        """Mean level, scaled to [-1, 1]."""
        return self.encoder_input(mean)

    def encoder_input(self, x: Tensor) -> Tensor:
        """Levels scaled to [-1, 1]."""
        return 2 * x / (self.num_levels - 1) - 1

    def in_support(self, x: Tensor) -> Tensor:
        """Whether each entry is a level."""
        return _is_level(x, self.num_levels)


def _is_level(x: Tensor, num_levels: int) -> Tensor:
    inside = (x >= 0) & (x <= num_levels - 1)
    return inside & (x == x.round()) if x.is_floating_point() else inside
