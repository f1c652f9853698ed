"""Distributions of bits, classes and levels, with integer values in floating-point tensors."""

import math
from abc import ABC
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tinyvae.distributions.base import Distribution, joint_shape, pooled
from tinyvae.distributions.bernoulli_sum import is_transformed, summed_log_mass
from tinyvae.distributions.special import gumbel_race, limited


class Bernoulli(Distribution):
    r"""Bernoulli distribution of each element, by its logits.

    .. math:: \log p(x) = x \ell - \log(1 + e^\ell)

    Logits make it exact in the tails: a one at a logit of -200 gives -200. With an infinite
    logit one value has mass one and the other zero.

    Args:
        logits: :math:`\ell`, log odds of a one, any shape.

    Example:
        >>> Bernoulli(torch.tensor([0.0, -200.0])).log_prob(torch.ones(2))
        tensor([  -0.6931, -200.0000])
    """

    has_rsample = False
    is_discrete = True

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        self.batch_shape = logits.shape

    @property
    def mean(self) -> Tensor:
        """Probability of a one, ``(*batch)``."""
        return torch.sigmoid(self.logits)

    @property
    def variance(self) -> Tensor:
        """Variance, ``(*batch)``."""
        return torch.sigmoid(self.logits) * torch.sigmoid(-self.logits)

    def entropy(self) -> Tensor:
        """Return the entropy of each element, nats."""
        size = self.logits.abs().clamp(max=torch.finfo(self.logits.dtype).max)
        return F.softplus(-size) + size * torch.sigmoid(-size)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log mass of each element, nats."""
        # Above 40, log(1 + exp(l)) equals l in float64. Above torch's default of 20, it does not.
        each = value * self.logits - F.softplus(self.logits, threshold=40)
        can_branch = self.logits.device.type == "cpu" and not is_transformed()
        if can_branch and not each.detach().sum().isnan():
            return each
        # Zero times an infinite logit is NaN, in value and gradient.
        is_certain = self.logits.isinf()
        logits = self.logits.masked_fill(is_certain, 0.0)
        each = value * logits - F.softplus(logits, threshold=40)
        certain = torch.where(value == (self.logits > 0), 0.0, -math.inf)
        return torch.where(is_certain, certain.to(each.dtype), each)

    def summed_log_prob(self, value: Tensor, ndim: int) -> Tensor:
        """Return the sum of log masses over the last ``ndim`` batch dimensions, nats."""
        total = None
        is_overridden = type(self).log_prob is not Bernoulli.log_prob
        if not is_overridden and ndim and value.dim() >= ndim and self.logits.dim() > ndim:
            total = summed_log_mass(self.logits.flatten(-ndim), value.flatten(-ndim))
        if total is None or total.isnan().any():  # perhaps zero times an infinite logit
            return super().summed_log_prob(value, ndim)
        return total

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw zeros and ones without gradients."""
        shape = self._shape(sample_shape)
        return torch.bernoulli(self.mean.detach().expand(shape))


class Categorical(Distribution):
    r"""Categorical distribution of each element, by logits along one dimension.

    .. math:: \log p(x) = \ell_x - \log \textstyle\sum_c e^{\ell_c}

    Args:
        logits: :math:`\ell`, any shape with the ``C`` classes along ``dim``.
        dim: Dimension of the classes, negative.
        ordered: True if the classes are levels of a quantity. :meth:`point_estimate` is then their
            mean, and otherwise the most probable class.

    Shape:
        value: class indices, the logits' shape without ``dim``.

    Example:
        >>> Categorical(torch.zeros(5, 4)).log_prob(torch.zeros(5))[0]  # -log 4
        tensor(-1.3863)
    """

    has_rsample = False
    is_discrete = True

    def __init__(self, logits: Tensor, dim: int = -1, *, ordered: bool = False) -> None:
        self.logits = logits
        self.dim = dim
        self.ordered = ordered
        self.batch_shape = logits.select(dim, 0).shape

    @property
    def mean(self) -> Tensor:
        """Expected class index, ``(*batch)``. It has a meaning only if the classes are ordered."""
        return (self._probs * self._classes).sum(self.dim)

    @property
    def _probs(self) -> Tensor:
        return self.logits.softmax(self.dim)

    @property
    def _classes(self) -> Tensor:
        classes = torch.arange(self.logits.shape[self.dim], device=self.logits.device)
        return classes.to(self.logits.dtype).reshape(-1, *[1] * (-self.dim - 1))

    def point_estimate(self, weights: Tensor | None = None) -> Tensor:
        """Return the mean of ordered classes, otherwise the most probable class."""
        if self.ordered:
            return pooled(self.mean, weights)
        weights = None if weights is None else weights.unsqueeze(self.dim)
        return pooled(self._probs, weights).argmax(self.dim).to(self.logits.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log mass of each element, nats."""
        shape = torch.broadcast_shapes(value.shape, self.batch_shape)
        index = value.long().expand(shape).unsqueeze(self.dim)
        sizes = list(index.shape)
        sizes[self.dim] = self.logits.shape[self.dim]
        chosen = self.logits.expand(sizes).gather(self.dim, index)
        return chosen.squeeze(self.dim) - self.logits.logsumexp(self.dim)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw class indices without gradients."""
        arrivals = gumbel_race(self.logits.detach(), sample_shape)
        return arrivals.argmin(self.dim).to(self.logits.dtype)


class OneHotDistribution(Distribution, ABC):
    """Base class of categorical distributions of one-hot values.

    Args:
        logits: ``(*batch, C, *E)``.
        event_ndim: Number of dimensions of ``(C, *E)``.
    """

    is_discrete = True
    support = "one-hot values"

    def __init__(self, logits: Tensor, event_ndim: int) -> None:
        self.logits = logits
        self.dim = -event_ndim
        self.batch_shape = logits.shape[: self.dim]
        self.event_shape = logits.shape[self.dim :]

    @property
    def mean(self) -> Tensor:
        """Probabilities, ``(*batch, C, *E)``."""
        return self.logits.softmax(self.dim)

    def point_estimate(self, weights: Tensor | None = None) -> Tensor:
        """Return the most probable class, one-hot."""
        probs = pooled(self.mean, weights)
        winner = probs.argmax(self.dim, keepdim=True)
        return torch.zeros_like(probs).scatter_(self.dim, winner, 1.0)

    @property
    def variance(self) -> Tensor:
        """Variance of each coordinate, ``(*batch, C, *E)``."""
        return self.mean * (1 - self.mean)

    def entropy(self) -> Tensor:
        """Return the entropy, summed over the event, nats."""
        log_probs = self.logits.log_softmax(self.dim)
        # Zero times minus infinity would be NaN, and entr(0) has an infinite slope.
        finite = log_probs.masked_fill(log_probs == -math.inf, 0.0)
        return -(log_probs.exp() * finite).flatten(self.dim).sum(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log mass, summed over the event, nats."""
        log_probs = self.logits.log_softmax(self.dim)
        is_ruled_out = log_probs == -math.inf  # zero times minus infinity would be NaN
        log_prob = (value * log_probs.masked_fill(is_ruled_out, 0.0)).flatten(self.dim).sum(-1)
        is_impossible = (is_ruled_out & (value != 0)).flatten(self.dim).any(-1)
        return log_prob.masked_fill(is_impossible, -math.inf)


class OneHotCategorical(OneHotDistribution):
    """Categorical distribution of one-hot values, by logits along the first event dimension.

    Args:
        logits: ``(*batch, C, *E)``. Minus infinity rules a class out: its mass is zero.
        event_ndim: Number of dimensions of ``(C, *E)``. The ``C`` classes are those of one
            variable. The variables at the positions ``E`` are independent.

    Shape:
        value: ``(..., C, *E)``; ``log_prob``: ``(...)``.

    Example:
        >>> OneHotCategorical(torch.zeros(4), 1).log_prob(torch.eye(4))
        tensor([-1.3863, -1.3863, -1.3863, -1.3863])
    """

    has_rsample = False

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw one-hot values without gradients."""
        arrivals = gumbel_race(self.logits.detach(), sample_shape)
        winner = arrivals.argmin(self.dim, keepdim=True)
        return torch.zeros_like(arrivals).scatter_(self.dim, winner, 1.0)


class DiscretizedLogistic(Distribution):
    r"""Logistic distribution of each element, rounded to levels, with unbounded edge bins.

    .. math:: p(k) = F\Big(\frac{y_k + h - \mu}{s}\Big) - F\Big(\frac{y_k - h - \mu}{s}\Big),
        \qquad y_k = \frac{2k}{L - 1} - 1, \quad h = \frac{1}{L - 1}

    where :math:`F` is the logistic sigmoid. The lowest and the highest bin extend to infinity, so
    that the masses sum to one. The mass between bounds :math:`a < b` is computed as
    :math:`F(b)\, F(-a)\, (1 - e^{a - b})`, without a difference that loses digits.

    Args:
        mean: :math:`\mu`, any shape, in units in which the levels lie in [-1, 1].
        log_scale: :math:`\log s`, broadcastable with ``mean``. Beyond -79 and 79 (638 in float64)
            it counts as that.
        num_levels: :math:`L`, at least 2: values are 0 to L - 1.

    References:
        Salimans, Karpathy, Chen, Kingma (2017). PixelCNN++. arXiv:1701.05517.

    Example:
        >>> p = DiscretizedLogistic(torch.zeros(1), torch.zeros(1), num_levels=2)
        >>> p.log_prob(torch.tensor([[0.0], [1.0]]))
        tensor([[-0.6931],
                [-0.6931]])
    """

    has_rsample = False
    is_discrete = True

    def __init__(self, mean: Tensor, log_scale: Tensor, num_levels: int) -> None:
        # Neither the scale nor its inverse overflows: at an edge, zero times it is zero.
        most = 0.9 * math.log(torch.finfo(log_scale.dtype).max)
        self.location, self.log_scale = mean, limited(log_scale, least=-most, most=most)
        self.num_levels = num_levels
        self.batch_shape = joint_shape(mean, log_scale)

    @property
    def mean(self) -> Tensor:
        """Expected level, ``(*batch)``: the sum over levels k of P(x > k)."""
        expected = self.location.new_zeros(self.batch_shape)
        for level in range(self.num_levels - 1):
            edge = (2 * level + 2 - self.num_levels) / (self.num_levels - 1)
            expected = expected + torch.sigmoid(self._standardized(edge))
        return expected

    def _standardized(self, edge: Tensor | float) -> Tensor:
        return (self.location - edge) * torch.exp(-self.log_scale)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log mass of each element, nats."""
        last = self.num_levels - 1
        value = value.to(self.location.dtype)
        above = F.logsigmoid(-self._standardized((2 * value + 1 - last) / last))
        below = F.logsigmoid(self._standardized((2 * value - 1 - last) / last))
        width = 2 / last * torch.exp(-self.log_scale)
        inner = torch.log(-torch.expm1(-width))
        edges = torch.where(value < last, above, 0.0) + torch.where(value > 0, below, 0.0)
        return edges + torch.where((value > 0) & (value < last), inner, 0.0)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw levels without gradients: rounded logistic draws."""
        shape = self._shape(sample_shape)
        with torch.no_grad():
            uniform = torch.rand(shape, dtype=self.location.dtype, device=self.location.device)
            noise = torch.logit(uniform, eps=torch.finfo(uniform.dtype).eps / 2)  # 0 is infinite
            draw = self.location + torch.exp(self.log_scale) * noise
            last = self.num_levels - 1
            return torch.round((draw + 1) * (last / 2)).clamp(0, last)
