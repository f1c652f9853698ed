"""Likelihoods of binary values, classes and levels."""

import math
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
from tinyvae.likelihoods.parameters import PositiveLike, as_positive


class BernoulliLikelihood(Likelihood):
    r"""Binary values, with the logits of a one as parameters.

    .. math:: p(x \mid z) = \prod_i \sigma(\ell_i)^{x_i} \sigma(-\ell_i)^{1 - x_i}

    Gray levels in (0, 1) are accepted with a warning, as is common practice. Their log-likelihood
    is not the log probability of an event.

    Shape:
        params (logits): ``(..., *E)``; x: ``(..., *E)``.

    Example:
        >>> p = BernoulliLikelihood()(torch.zeros(5, 1, 2, 2), event_ndim=3)
        >>> p.log_prob(torch.ones(5, 1, 2, 2))[0]  # 4 log(1/2)
        tensor(-2.7726)
    """

    takes_integers = True
    support = "values in [0, 1]"
    hint = (
        "binarize gray levels, as with fit's transform=tinyvae.datasets.DynamicBinarization("
        "max_value) or with tinyvae.datasets.threshold(x, level), or use "
        "DiscretizedLogisticLikelihood(num_levels) for integer levels 0 to num_levels - 1"
    )

    def elementwise(self, *params: Tensor) -> Bernoulli:
        """Return Bernoulli distributions with these logits."""
        return Bernoulli(*params)

    def params_for_mean(self, x: Tensor) -> Tensor:
        """Return the log odds of the smoothed mean."""
        return torch.logit(smoothed_mean(x))

    def in_support(self, x: Tensor) -> Tensor:
        """Return true for each entry in [0, 1]."""
        return (x >= 0) & (x <= 1)

    def check_support(self, x: Tensor) -> bool:
        """Raise for values outside [0, 1]. Warn about values strictly between 0 and 1."""
        super().check_support(x)
        binary = not bool(((x != 0) & (x != 1)).any())
        if not binary:
            warn(
                "BernoulliLikelihood got values between 0 and 1: they have no probability under "
                "it, so reported values are no bound on log p(x). Binarize them, as with "
                "transform=tinyvae.datasets.DynamicBinarization(), or use "
                "DiscretizedLogisticLikelihood(num_levels) of integer levels"
            )
        return binary


class CategoricalLikelihood(Likelihood):
    r"""Classes, or gray levels with one free probability each, given as indices.

    .. math:: \log p(x \mid z) = \sum_i \big( \ell_{i, x_i} - \log \textstyle\sum_c e^{\ell_{i, c}}
        \big)

    The encoder reads one-hot rows along a new first dimension or, for ordered classes, the index
    scaled to [-1, 1].

    Args:
        num_classes: Number of classes ``C``. Data are 0 to C - 1, of any dtype.
        ordered: True if the classes are levels of a quantity, such as gray. Reconstructions are
            then expected levels. Otherwise they are the most probable class.

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
    draws_integers = True

    def __init__(self, num_classes: int, *, ordered: bool = False) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"CategoricalLikelihood expects num_classes >= 2, got {num_classes}")
        self.num_classes = self.num_params = num_classes
        self.ordered = ordered
        self.centers_are_integers = not ordered
        self.support = f"integers 0 to {num_classes - 1}"
        self.hint = "pass class indices, not scaled levels, or change num_classes"

    def factors(
        self, params: Tensor, event_ndim: int, context: Tensor | None = None
    ) -> Distribution:
        """Return categorical distributions with logits ``(..., C, *E)``."""
        return Categorical(params, -event_ndim - 1, ordered=self.ordered)

    def input_shape(self, data_shape: Sequence[int]) -> torch.Size:
        """Return ``(C, *E)``, or ``E`` for ordered classes."""
        return torch.Size(data_shape if self.ordered else (self.num_classes, *data_shape))

    def encoder_input(self, x: Tensor) -> Tensor:
        """Return one-hot rows, or ordered classes scaled to [-1, 1]. NaN entries stay NaN."""
        if self.ordered:
            return 2 * x / (self.num_classes - 1) - 1
        classes = torch.arange(self.num_classes, device=x.device, dtype=x.dtype)
        rows = x.unsqueeze(1)  # (B, 1, *E)
        hits = (rows == classes.reshape(-1, *[1] * (x.dim() - 1))).to(x.dtype)
        return torch.where(torch.isnan(rows), rows, hits)

    def fits_outputs(self, index: int, low: float, high: float, x: Tensor) -> bool:
        """Return True if one bound is missing, because only differences of logits count."""
        return math.isinf(low) or math.isinf(high)

    def params_for_mean(self, x: Tensor) -> Tensor:
        """Return log frequencies of the classes, ``(C, *E)``, with one added to each count."""
        classes = torch.arange(self.num_classes, device=x.device)
        counts = torch.stack([(x == label).sum(0) for label in classes]).to(x.dtype)
        return torch.log((counts + 1) / (counts.sum(0) + self.num_classes))

    def in_support(self, x: Tensor) -> Tensor:
        """Return true for each entry that is a class index."""
        return is_level(x, self.num_classes)


class OneHotLikelihood(Likelihood):
    """Classes as one-hot data along the first dimension of E.

    Shape:
        params (logits): ``(..., C, *E')``; x: ``(..., C, *E')``, one 1 along C.

    Example:
        >>> p = OneHotLikelihood()(torch.zeros(5, 4), event_ndim=1)
        >>> p.log_prob(torch.eye(4)[[0, 1, 2, 3, 0]])[0]  # -log 4
        tensor(-1.3863)
    """

    factorizes = False
    alternative = "use CategoricalLikelihood with class indices"
    support = "one-hot rows along the first dimension"
    hint = "pass one 1 and otherwise 0, or class indices to CategoricalLikelihood"

    def forward(
        self, params: Tensor, event_ndim: int, context: Tensor | None = None
    ) -> Distribution:
        """Return one-hot categorical distributions with these logits."""
        return OneHotCategorical(params, event_ndim)

    def num_dims(self, x: Tensor) -> Tensor:
        """Return the number of one-hot rows of each example, ``(B,)``."""
        return super().num_dims(x[:, :1])

    def fits_outputs(self, index: int, low: float, high: float, x: Tensor) -> bool:
        """Return True if one bound is missing, because only differences of logits count."""
        return math.isinf(low) or math.isinf(high)

    def params_for_mean(self, x: Tensor) -> Tensor:
        """Return log frequencies of the classes, with one added to each count."""
        return torch.log((x.sum(0) + 1) / (len(x) + x.shape[1]))

    def in_support(self, x: Tensor) -> Tensor:
        """Return true for each entry of a one-hot row."""
        one_hot = ((x == 0) | (x == 1)).all(1, keepdim=True) & (x.sum(1, keepdim=True) == 1)
        return one_hot.expand(x.shape)


class DiscretizedLogisticLikelihood(Likelihood):
    r"""Levels 0 to L - 1, such as gray, as a rounded logistic variable with open edges.

    Masses are exact and sum to one; see :class:`~tinyvae.distributions.DiscretizedLogistic`. The
    decoder's mean and the encoder's input are in units in which the levels lie in [-1, 1]. For a
    mixture, use :class:`~tinyvae.likelihoods.MixtureLikelihood`.

    Args:
        num_levels: Number of levels ``L``. Data are 0 to L - 1, of any dtype.
        scale: Scale, given like ``std`` of :class:`~tinyvae.GaussianLikelihood`.

    Shape:
        params: ``(..., 2, *E)`` with mean and scale, or ``(..., *E)`` if the scale is not
        predicted; x: ``(..., *E)``.

    References:
        Salimans, Karpathy, Chen, Kingma (2017). PixelCNN++. arXiv:1701.05517.

    Example:
        >>> p = DiscretizedLogisticLikelihood(256)(torch.zeros(2, 784), event_ndim=1)
        >>> p.log_prob(torch.zeros(784)).shape
        torch.Size([])
        >>> levels = DiscretizedLogisticLikelihood(256)
        >>> MixtureLikelihood(levels, num_components=10).param_shape((3, 32, 32))
        torch.Size([30, 3, 32, 32])
    """

    has_location = True
    takes_integers = True
    draws_integers = True

    def __init__(self, num_levels: int, *, scale: PositiveLike = "predicted") -> None:
        super().__init__()
        if num_levels < 2:
            raise ValueError(
                f"DiscretizedLogisticLikelihood expects num_levels >= 2, got {num_levels}"
            )
        self.num_levels = num_levels
        self.scale = as_positive(scale, initial=0.2)
        self.num_params = 1 + self.scale.num_params
        self.support = f"integers 0 to {num_levels - 1}"
        self.hint = "pass integer levels, not scaled ones, or change num_levels"

    def elementwise(self, *params: Tensor) -> DiscretizedLogistic:
        """Return discretized logistic distributions around the means."""
        mean, log_scale = params
        return DiscretizedLogistic(mean, log_scale, self.num_levels)

    def param_for_mean(self, mean: Tensor) -> Tensor:
        """Return the mean level, scaled to [-1, 1]."""
        return self.encoder_input(mean)

    def encoder_input(self, x: Tensor) -> Tensor:
        """Return levels scaled to [-1, 1]."""
        return 2 * x / (self.num_levels - 1) - 1

    def in_support(self, x: Tensor) -> Tensor:
        """Return true for each entry that is a level."""
        return is_level(x, self.num_levels)


def is_level(x: Tensor, num_levels: int) -> Tensor:
    """Return a boolean tensor, true for each entry that is an integer 0 to num_levels - 1."""
    in_range = (x >= 0) & (x <= num_levels - 1)
    return in_range & (x == x.round()) if x.is_floating_point() else in_range
