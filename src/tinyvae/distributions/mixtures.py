"""Mixtures, and distributions with additional mass at zero or at other points."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tinyvae.distributions.base import Distribution, pooled, unsqueeze_last
from tinyvae.distributions.special import gumbel_race, limited


class Mixture(Distribution):
    r"""Mixture over one batch dimension of ``components``.

    .. math:: p(x) = \textstyle\sum_m \pi_m \, p_m(x)

    Args:
        logits: :math:`\log\pi` up to a constant, with the batch shape of the components.
        components: Distributions of the components.
        dim: Batch dimension of the components, a negative number.

    Example:
        >>> apart = Normal(torch.tensor([-9.0, 9.0]), torch.zeros(2))
        >>> Mixture(torch.zeros(2), apart).log_prob(torch.tensor(9.0))  # -log(2 pi) / 2 - log 2
        tensor(-1.6121)
    """

    has_rsample = False

    def __init__(self, logits: Tensor, components: Distribution, dim: int = -1) -> None:
        self.log_weights = logits.expand(components.batch_shape).log_softmax(dim)
        self.components = components
        self.dim = dim
        self._value_dim = dim - len(components.event_shape)
        self.batch_shape = self.log_weights.select(dim, 0).shape
        self.event_shape = components.event_shape
        self.is_density = components.is_density
        self.is_discrete = components.is_discrete
        self.support = components.support

    @property
    def mean(self) -> Tensor:
        """Expected value, ``(*batch, *event)``."""
        return self._mixed(self.components.mean)

    @property
    def variance(self) -> Tensor:
        """Variance of each element, ``(*batch, *event)``: within the components and between."""
        between = (self.components.mean - self.mean.unsqueeze(self._value_dim)).square()
        return self._mixed(self.components.variance + between)

    def point_estimate(self, weights: Tensor | None = None) -> Tensor:
        """Return the weighted sum of the components' point estimates."""
        return pooled(self._mixed(self.components.point_estimate()), weights)

    def _mixed(self, values: Tensor) -> Tensor:
        weights = unsqueeze_last(self.log_weights.exp(), len(self.event_shape))
        # Zero times an infinite mean would be NaN.
        return torch.where(weights > 0, weights * values, 0.0).sum(self._value_dim)

    def log_form(self) -> Distribution:
        """Return the mixture of the components' log forms."""
        form = self.components.log_form()
        return self if form is self.components else Mixture(self.log_weights, form, self.dim)

    def value_of(self, point: Tensor) -> Tensor:
        """Return the values of points of the components."""
        return self.components.value_of(point)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density or mass, nats."""
        each = self.components.log_prob(value.unsqueeze(self._value_dim))
        total = torch.logsumexp(self.log_weights + each, self.dim)
        # Rounding may exceed a mass of one.
        return limited(total, most=0.0) if self.is_discrete else total

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw without gradients: a component, then a value from it."""
        with torch.no_grad():
            draws = self.components.sample(sample_shape)
            chosen = gumbel_race(self.log_weights, sample_shape).argmin(self.dim, keepdim=True)
            index = unsqueeze_last(chosen, len(self.event_shape))
            size = [*index.shape[: index.dim() - len(self.event_shape)], *self.event_shape]
            return draws.gather(self._value_dim, index.expand(size)).squeeze(self._value_dim)


class ZeroInflated(Distribution):
    r"""Counts of ``base`` with additional zeros.

    .. math:: p(x) = \pi \, [x = 0] + (1 - \pi) \, p_{\text{base}}(x)

    Args:
        base: Scalar distribution of counts.
        logits: Log odds of an additional zero, :math:`\log \tfrac{\pi}{1 - \pi}`, with the batch
            shape of ``base``.

    Example:
        >>> ZeroInflated(Poisson(torch.zeros(1)), torch.zeros(1)).mean
        tensor([0.5000])
    """

    has_rsample = False
    is_discrete = True

    def __init__(self, base: Distribution, logits: Tensor) -> None:
        self.base, self.logits = base, logits
        self.batch_shape = base.batch_shape
        self.event_shape = base.event_shape
        self.is_density = base.is_density

    @property
    def mean(self) -> Tensor:
        """Expected count, ``(*batch)``."""
        share = torch.sigmoid(-self.logits)
        return torch.where(share > 0, share * self.base.mean, 0.0)  # the mean may be infinite

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log mass of each element, nats."""
        counted = F.logsigmoid(-self.logits) + self.base.log_prob(value)
        is_zero = value == 0
        zero = torch.logaddexp(F.logsigmoid(self.logits), counted.where(is_zero, 0.0))
        zero = limited(zero, most=0.0)  # rounding may exceed a mass of one
        return torch.where(is_zero, zero, counted)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw counts without gradients."""
        with torch.no_grad():
            draws = self.base.sample(sample_shape)
            kept = torch.bernoulli(torch.sigmoid(-self.logits).expand(draws.shape))
            return draws.masked_fill(kept == 0, 0.0)


class Hurdle(Distribution):
    r"""Masses at some points, and the density of ``base`` at all other values.

    .. math:: p(x) = \begin{cases} \pi_v & x = v \\ \pi_0 \, p_{\text{base}}(x) & \text{otherwise}
        \end{cases}, \qquad \pi = \mathrm{softmax}(\ell_1, \dots, \ell_P, 0)

    Draws of ``base`` differ from the points with probability one, so the total mass is one.

    Args:
        base: Scalar distribution with a density.
        logits: :math:`\ell`, ``(..., P, *E)``: log odds of each point over the density, along
            ``dim``.
        points: ``(P, *E)``, or a shape that broadcasts with it. The points of an element differ.
        dim: Batch dimension of the points in ``logits``, a negative number.
        inside: A value in the support of ``base``, broadcastable with ``E``. It replaces the points
            before the density is computed, so that their gradients are finite.

    Raises:
        TypeError: If ``base`` has masses.

    Example:
        >>> p = Hurdle(LogNormal(torch.zeros(1), torch.zeros(1)), torch.zeros(1, 1),
        ...            points=torch.zeros(1, 1), dim=-2, inside=torch.ones(()))
        >>> p.log_prob(torch.tensor([[0.0], [1.0]]))  # log(1/2), and log(1/2) - log(2 pi) / 2
        tensor([[-0.6931],
                [-1.6121]])
    """

    has_rsample = False
    is_discrete = None

    def __init__(
        self, base: Distribution, logits: Tensor, points: Tensor, dim: int, inside: Tensor
    ) -> None:
        if base.is_discrete is not False:
            raise TypeError(
                f"Hurdle expects a density next to its points, got {base}: use ZeroInflated for "
                "counts"
            )
        self.base, self.points, self.dim, self.inside = base, points, dim, inside
        rest = torch.zeros_like(logits.narrow(dim, 0, 1))
        self.log_weights = torch.cat([logits, rest], dim).log_softmax(dim)  # (..., P + 1, *E)
        self.batch_shape = self.log_weights.select(dim, 0).shape
        self.is_density = base.is_density

    @property
    def mean(self) -> Tensor:
        """Expected value, ``(*batch)``."""
        return self._mixed(self.base.mean)

    def point_estimate(self, weights: Tensor | None = None) -> Tensor:
        """Return the mean, with the point estimate of ``base`` in place of its mean.

        It lies between the points and the density if both are likely.
        """
        return pooled(self._mixed(self.base.point_estimate()), weights)

    def _mixed(self, center: Tensor) -> Tensor:
        shares = self.log_weights.exp()
        masses, rest = shares.narrow(self.dim, 0, len(self.points)), shares.select(self.dim, -1)
        # Zero times an infinite mean would be NaN.
        return (masses * self.points).sum(self.dim) + torch.where(rest > 0, rest * center, 0.0)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log mass of a point, and the log density of any other value, nats."""
        hits = equals_points(value.unsqueeze(self.dim), self.points)  # (..., P, *E)
        is_point = hits.any(self.dim)
        log_masses = self.log_weights.narrow(self.dim, 0, len(self.points))
        log_mass = torch.where(hits, log_masses, 0.0).sum(self.dim)
        log_density = self.base.log_prob(torch.where(is_point, self.inside, value))
        return torch.where(is_point, log_mass, self.log_weights.select(self.dim, -1) + log_density)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw without gradients: a point or the density, then a value from the density."""
        with torch.no_grad():
            draws = self.base.sample(sample_shape)
            chosen = gumbel_race(self.log_weights, sample_shape).argmin(self.dim)
            for index, point in enumerate(self.points):
                draws = torch.where(chosen == index, point, draws)
            return draws


def equals_points(value: Tensor, points: Tensor) -> Tensor:
    """Return a boolean tensor, true where a value is a point, exactly or rounded to float32."""
    return (value == points) | (value == points.float())
