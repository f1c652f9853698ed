r"""Distributions and their closed-form divergences.

Every conditional density of a model is a :class:`Distribution`. A scalar family (:class:`Normal`,
:class:`Bernoulli`) treats every element of its parameters as a batch; :class:`Independent` turns
the last dimensions into one event by summing log densities over them. Shapes follow
``torch.distributions``: a value is ``(*S, *batch, *event)`` and its log density ``(*S, *batch)``.

Log densities include their constants and are in nats. ``torch.distributions`` itself enters only
through :class:`TorchDistribution`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "Bernoulli",
    "Distribution",
    "Independent",
    "NoClosedForm",
    "Normal",
    "TorchDistribution",
    "has_closed_form",
    "kl_divergence",
]


class NoClosedForm(NotImplementedError):
    """The Kullback-Leibler divergence of this pair has no closed form here: estimate it."""


class Distribution(ABC):
    """A (batch of) probability distribution(s).

    Attributes:
        batch_shape: Shape of the batch of distributions.
        event_shape: Shape of one draw.
        has_rsample: Whether draws carry gradients to the parameters (reparameterisation).
        is_density: Whether ``log_prob`` is the logarithm of a normalised density or mass.
    """

    batch_shape: torch.Size
    event_shape: torch.Size
    has_rsample: bool = True
    is_density: bool = True

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """Expected value, ``(*batch, *event)``."""

    @abstractmethod
    def log_prob(self, value: Tensor) -> Tensor:
        """Log density or mass of ``value`` ``(*S, *batch, *event)``, as ``(*S, *batch)``, nats."""

    @abstractmethod
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw ``(*sample_shape, *batch, *event)``, with gradients where ``has_rsample``."""

    def __repr__(self) -> str:
        batch, event = tuple(self.batch_shape), tuple(self.event_shape)
        return f"{type(self).__name__}(batch_shape={batch}, event_shape={event})"


class Normal(Distribution):
    r"""Normal distribution of each element, by its mean and the logarithm of its scale.

    .. math:: \log p(x) = -\tfrac12 \big((x - \mu) e^{-\log\sigma}\big)^2 - \log\sigma
        - \tfrac12 \log 2\pi

    Args:
        mean: :math:`\mu`, any shape.
        log_std: :math:`\log\sigma`, broadcastable with ``mean``.

    Example:
        >>> Normal(torch.zeros(3), torch.zeros(3)).log_prob(torch.zeros(3))
        tensor([-0.9189, -0.9189, -0.9189])
    """

    def __init__(self, mean: Tensor, log_std: Tensor) -> None:
        self._mean = mean
        self.log_std = log_std
        # torch.broadcast_shapes is Python code, as slow as ten small tensor operations.
        same = mean.shape == log_std.shape
        self.batch_shape = mean.shape if same else torch.broadcast_shapes(mean.shape, log_std.shape)
        self.event_shape = torch.Size()

    @property
    def mean(self) -> Tensor:
        """Expected value, ``(*batch)``."""
        return self._mean.expand(self.batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of each element, nats."""
        standardised = (value - self._mean) * torch.exp(-self.log_std)
        return -0.5 * standardised.square() - self.log_std - 0.5 * math.log(2 * math.pi)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw by reparameterisation, mean + std * noise."""
        shape = torch.Size(sample_shape) + self.batch_shape
        noise = torch.randn(shape, dtype=self._mean.dtype, device=self._mean.device)
        return self._mean + torch.exp(self.log_std) * noise


class Bernoulli(Distribution):
    r"""Bernoulli distribution of each element, by its logits.

    .. math:: \log p(x) = x \ell - \log(1 + e^\ell)

    Computed from logits, so that it is exact in the tails: logits of -200 and a one give -200.

    Args:
        logits: :math:`\ell`, log odds of a one, any shape.

    Example:
        >>> Bernoulli(torch.tensor([0.0, -200.0])).log_prob(torch.ones(2))
        tensor([  -0.6931, -200.0000])
    """

    has_rsample = False

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        self.batch_shape = logits.shape
        self.event_shape = torch.Size()

    @property
    def mean(self) -> Tensor:
        """Probability of a one, ``(*batch)``."""
        return torch.sigmoid(self.logits)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log mass of each element, nats."""
        # Beyond 40, log(1 + exp(l)) is l to the last digit of float64; torch's own 20 is not.
        return value * self.logits - F.softplus(self.logits, threshold=40)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw zeros and ones, without gradients."""
        shape = torch.Size(sample_shape) + self.batch_shape
        return torch.bernoulli(self.mean.detach().expand(shape))


class Independent(Distribution):
    """The last ``event_ndim`` batch dimensions of ``base`` as one event of independent elements.

    Args:
        base: A distribution whose ``batch_shape`` ends in the event.
        event_ndim: Number of its batch dimensions that become event dimensions.

    Example:
        >>> Independent(Normal(torch.zeros(5, 2), torch.zeros(5, 2)), 1)
        Independent(Normal, batch_shape=(5,), event_shape=(2,))
    """

    def __init__(self, base: Distribution, event_ndim: int) -> None:
        split = len(base.batch_shape) - event_ndim
        if split < 0:
            raise ValueError(
                f"Independent expects at least {event_ndim} batch dimensions, "
                f"got {base}: lower event_ndim"
            )
        self.base = base
        self.event_ndim = event_ndim
        self.batch_shape = base.batch_shape[:split]
        self.event_shape = base.batch_shape[split:] + base.event_shape
        self.has_rsample = base.has_rsample
        self.is_density = base.is_density

    @property
    def mean(self) -> Tensor:
        """Expected value, ``(*batch, *event)``."""
        return self.base.mean

    def log_prob(self, value: Tensor) -> Tensor:
        """Sum of the elements' log densities, nats."""
        if value.shape[value.dim() - len(self.event_shape) :] != self.event_shape:
            raise ValueError(
                f"log_prob expects values that end in the event shape {tuple(self.event_shape)}, "
                f"got {tuple(value.shape)}"
            )
        return sum_last(self.base.log_prob(value), self.event_ndim)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw every element."""
        return self.base.sample(sample_shape)

    def __repr__(self) -> str:
        return super().__repr__().replace("(", f"({type(self.base).__name__}, ", 1)


class TorchDistribution(Distribution):
    """A ``torch.distributions`` object as a :class:`Distribution`.

    Build the wrapped one with ``validate_args=False``: torch's validation is slow, and refuses
    values on the border of a support with a message that names no remedy.

    Args:
        base: The ``torch.distributions`` object.

    Example:
        >>> laplace = torch.distributions.Laplace(torch.zeros(3), 1.0, validate_args=False)
        >>> TorchDistribution(laplace).log_prob(torch.zeros(3))
        tensor([-0.6931, -0.6931, -0.6931])
    """

    def __init__(self, base: torch.distributions.Distribution) -> None:
        self.base = base
        self.batch_shape = base.batch_shape
        self.event_shape = base.event_shape
        self.has_rsample = base.has_rsample

    @property
    def mean(self) -> Tensor:
        """Expected value, where torch has it."""
        return self.base.mean

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density or mass, nats."""
        log_prob: Tensor = self.base.log_prob(value)
        return log_prob

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw, with gradients where torch reparameterises."""
        draw = self.base.rsample if self.has_rsample else self.base.sample
        return draw(torch.Size(sample_shape))


def sum_last(values: Tensor, ndim: int) -> Tensor:
    """Sum over the last ``ndim`` dimensions; ``ndim = 0`` changes nothing."""
    return values.flatten(-ndim).sum(-1) if ndim else values


def _kl_normal_normal(q: Normal, p: Normal) -> Tensor:
    # expm1(2 r) - 2 r with r = log(std_q / std_p) keeps the digits that s^2 - 1 - log s^2 loses
    # near r = 0, where the plain form turns negative in float32.
    log_ratio = q.log_std - p.log_std
    distance = (q.mean - p.mean) * torch.exp(-p.log_std)
    return 0.5 * (torch.expm1(2 * log_ratio) - 2 * log_ratio + distance.square())


_CLOSED_FORMS: dict[tuple[type, type], Callable[[Any, Any], Tensor]] = {
    (Normal, Normal): _kl_normal_normal,
}


def has_closed_form(q: Distribution, p: Distribution) -> bool:
    """Whether :func:`kl_divergence` knows this pair."""
    if isinstance(q, Independent) and isinstance(p, Independent):
        return q.event_shape == p.event_shape and has_closed_form(q.base, p.base)
    return (type(q), type(p)) in _CLOSED_FORMS


def kl_divergence(q: Distribution, p: Distribution, *, per_dim: bool = False) -> Tensor:
    r"""Kullback-Leibler divergence in closed form.

    .. math:: \mathrm{KL}(q \,\|\, p) = \mathbb{E}_{q(z)} [\log q(z) - \log p(z)] \ge 0

    Args:
        q: The distribution under which the expectation is taken.
        p: The other one.
        per_dim: Keep the event dimensions instead of summing over them.

    Returns:
        ``(*batch)``, or ``(*batch, *event)`` with ``per_dim``, nats.

    Raises:
        NoClosedForm: If the pair is not in the table.

    References:
        Kingma, Welling (2014). Auto-Encoding Variational Bayes. arXiv:1312.6114, appendix B.

    Example:
        >>> q = Independent(Normal(torch.ones(2, 3), torch.zeros(2, 3)), 1)
        >>> p = Independent(Normal(torch.zeros(3), torch.zeros(3)), 1)
        >>> kl_divergence(q, p)
        tensor([1.5000, 1.5000])
    """
    if not has_closed_form(q, p):
        raise NoClosedForm(
            f"no closed form of KL({q} || {p}): use a sampled estimate (kl='sample' or 'auto')"
        )
    if isinstance(q, Independent) and isinstance(p, Independent):
        terms = kl_divergence(q.base, p.base)
        return terms if per_dim else sum_last(terms, q.event_ndim)
    return _CLOSED_FORMS[type(q), type(p)](q, p)
