r"""Mechanisms that make values missing: p(mask given x, z).

With a mechanism, a datum is the pair of the observed values and the mask s (1 if missing):

.. math:: p(x_{\text{obs}}, s \mid z) = \int p(x \mid z)\, p(s \mid x, z)\, dx_{\text{mis}}
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyvae.core.configurable import Configurable
from tinyvae.core.keywords import suggest_keywords
from tinyvae.core.module_state import ExactBuffers
from tinyvae.distributions import (
    Distribution,
    Independent,
    LogisticChance,
    MaskedDistribution,
    RowMaskedDistribution,
    RowsGivenMask,
    SelfMaskedDistribution,
)
from tinyvae.likelihoods.parameters import check_broadcast, compact_repr


class Mechanism(Configurable, nn.Module, ABC):
    """A module that makes p(observed values, mask given z) of p(x given z).

    Attributes:
        num_params: Number of log odds per entry that the decoder emits for the mechanism, 0 or 1.
    """

    num_params: int = 0

    @abstractmethod
    def forward(
        self, base: MaskedDistribution, event_ndim: int, log_odds: Tensor | None
    ) -> Distribution:
        """Return p(observed values, mask given z).

        Args:
            base: Distribution of each entry, ``(..., *E)``.
            event_ndim: Number of dimensions of ``E``.
            log_odds: Log odds of a missing value that the decoder emits, ``(..., *E)``, if
                ``num_params`` is 1.
        """

    @abstractmethod
    def conditional(self, p: Distribution, x: Tensor) -> Distribution:
        """Return p(x given z, observed values, mask). Only its missing entries count.

        Args:
            p: Value of :meth:`forward`.
            x: Data ``(B, *E)``, NaN at missing entries.
        """

    @abstractmethod
    def check_shape(self, data_shape: Sequence[int]) -> None:
        """Raise unless the mechanism fits data of one datum's shape."""

    def __repr__(self) -> str:
        return compact_repr(self)


@suggest_keywords
class SelfMasking(ExactBuffers, Mechanism):
    r"""A value is missing with a chance that depends on the value itself.

    .. math:: p(x_i \text{ is missing} \mid x, z) =
        \sigma\big(w_i \tfrac{x_i - m_i}{s_i} + a_i\big)

    The weights :math:`w` and the intercepts :math:`a` are learned. Given z, entries are
    independent, so each missing value is integrated out
    (:func:`~tinyvae.distributions.quadrature`; exactly, for classes). The reference draws it
    instead, which gives a lower bound with more noise.

    Self-masking is identified only by assumptions: the family of x, and the logistic form. Give the
    ``sign`` if you know it. Classes enter by their index, which suits binary and ordered ones.

    Args:
        shape: Shape of weights and intercepts, which broadcasts over one datum: ``(D,)`` for one
            per column.
        sign: 1 if large values are missing more often, -1 if small ones are, 0 if the value does
            not matter, None if it is unknown. One for all, or one per column.
        mean: :math:`m`, one number or numbers of ``shape``.
        std: :math:`s > 0`, in the same way.
        missing_rate: Chance of a missing value at the mean, before training, in the same way.
        intercept: ``"learned"``, or ``"predicted"`` by the decoder in addition: the chance then
            depends on z, and so on the other values, too.

    References:
        Ipsen, Mattei, Frellsen (2021). not-MIWAE: Deep Generative Modelling with Missing not at
        Random Data. arXiv:2006.12871, section 3.

    Example:
        >>> mechanism = SelfMasking((3,), sign=1)
        >>> masked = MaskedLikelihood(GaussianLikelihood(), show_mask=True, mechanism=mechanism)
        >>> vae = VAE.from_shapes(3, latent_dim=2, likelihood=masked)
        >>> vae(torch.tensor([[1.0, torch.nan, 3.0]])).log_px.shape
        torch.Size([1, 1])
    """

    center: Tensor
    scale: Tensor
    signs: Tensor
    is_free: Tensor

    def __init__(
        self,
        shape: Sequence[int] = (),
        *,
        sign: int | Sequence[int | None] | None = None,
        mean: float | Sequence[Any] = 0.0,
        std: float | Sequence[Any] = 1.0,
        missing_rate: float | Sequence[Any] = 0.5,
        intercept: Literal["learned", "predicted"] = "learned",
    ) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.sign = sign if sign is None or isinstance(sign, int) else tuple(sign)
        self.mean, self.std, self.missing_rate = (
            np.asarray(numbers, dtype=np.float64).tolist() for numbers in (mean, std, missing_rate)
        )
        self.intercept = intercept
        if intercept not in ("learned", "predicted"):
            raise ValueError(
                f"SelfMasking expects intercept 'learned' or 'predicted', got {intercept!r}"
            )
        self.num_params = int(intercept == "predicted")
        self.register_constant("center", self._numbers("mean", mean))
        self.register_constant("scale", self._numbers("std", std, least=0.0))
        rate = torch.tensor(self._numbers("missing_rate", missing_rate, least=0.0, most=1.0))
        self.bias = nn.Parameter(torch.logit(rate.to(torch.get_default_dtype())))
        # A free weight starts at zero, and the softplus of the others at 0.1.
        signs = np.broadcast_to(np.array(sign, dtype=object), self.shape)
        if not all(value in (None, -1, 0, 1) for value in signs.flat):
            raise ValueError(f"SelfMasking expects sign 1, -1, 0 or None, got {sign}")
        is_free = torch.tensor([value is None for value in signs.flat]).reshape(self.shape)
        self.weight = nn.Parameter(torch.where(is_free, 0.0, -2.25))
        self.register_buffer("is_free", is_free, persistent=False)
        known = torch.tensor([value or 0 for value in signs.flat]).reshape(self.shape)
        self.register_buffer("signs", known, persistent=False)

    def _numbers(
        self, name: str, value: Any, *, least: float = -np.inf, most: float = np.inf
    ) -> Any:
        numbers = np.asarray(value, dtype=np.float64)
        if not ((least < numbers) & (numbers < most)).all():
            raise ValueError(
                f"SelfMasking expects a {name} between {least:g} and {most:g}, got {value}"
            )
        return np.broadcast_to(numbers, self.shape).tolist()

    @classmethod
    def from_data(
        cls,
        x: Tensor,
        *,
        sign: int | Sequence[int | None] | None = None,
        intercept: Literal["learned", "predicted"] = "learned",
    ) -> "SelfMasking":
        """Return a mechanism with the units and the share of missing values of each entry of x.

        Args:
            x: Data ``(N, *E)``, NaN at missing entries.
            sign: See :class:`SelfMasking`.
            intercept: See :class:`SelfMasking`.

        Example:
            >>> x = torch.tensor([[1.0, 30.0], [2.0, torch.nan], [6.0, 10.0]])
            >>> SelfMasking.from_data(x).mean
            [3.0, 20.0]
        """
        mean, std = observed_units(x)
        rate = (torch.isnan(x).sum(0).double() + 0.5) / (len(x) + 1)
        return cls(
            x.shape[1:],
            sign=sign,
            mean=mean,
            std=std,
            missing_rate=rate.tolist(),
            intercept=intercept,
        )

    @property
    def slope(self) -> Tensor:
        """Weights :math:`w` of standardized values, of ``shape``."""
        return torch.where(self.is_free, self.weight, self.signs * F.softplus(self.weight))

    def chance(self, log_odds: Tensor | None = None) -> LogisticChance:
        """Return the chance of a missing value given x."""
        intercept = self.bias if log_odds is None else self.bias + log_odds
        return LogisticChance(self.slope / self.scale, intercept, self.center)

    def forward(
        self, base: MaskedDistribution, event_ndim: int, log_odds: Tensor | None
    ) -> Distribution:
        """Return independent entries, each of which is observed or missing."""
        chance = self.chance(log_odds)
        entries = SelfMaskedDistribution(base.base, base.inside, chance)
        return Independent(entries, event_ndim)

    def conditional(self, p: Distribution, x: Tensor) -> Distribution:
        """Return p(x given z and that it is missing), whatever the other entries are."""
        if not isinstance(p, Independent) or not isinstance(p.base, SelfMaskedDistribution):
            raise TypeError(f"{self} expects a distribution that it made, got {p}")
        return Independent(p.base.missing(), p.event_ndim)

    def check_shape(self, data_shape: Sequence[int]) -> None:
        """Raise unless weights broadcast over one datum."""
        check_broadcast(self, self.shape, data_shape)


@suggest_keywords
class RowMasking(ExactBuffers, Mechanism):
    r"""A value is missing with a chance that depends on the whole row, by a network.

    .. math:: p(x_i \text{ is missing} \mid x) = \sigma\big(f_i\big(\tfrac{x - m}{s}\big)\big)

    Missing values are drawn from p(x given z) in each pass, with gradients, as in the reference. So
    log p(x given z) of a pass is a random estimate, and bounds contain it. This needs a likelihood
    whose draws carry gradients: Gaussian, Laplace, log-normal, also standardized.
    :class:`SelfMasking` takes any, without draws.

    Args:
        network: Module from rows ``(N, *E)`` to log odds ``(N, *E)``. ``MLP(D, (), D)`` is linear.
        mean: :math:`m`, one number or numbers that broadcast over one datum.
        std: :math:`s > 0`, in the same way.

    References:
        Ipsen, Mattei, Frellsen (2021). not-MIWAE. arXiv:2006.12871, section 3.

    Example:
        >>> mechanism = RowMasking(MLP(3, (), 3))
        >>> masked = MaskedLikelihood(GaussianLikelihood(), show_mask=True, mechanism=mechanism)
        >>> vae = VAE.from_shapes(3, latent_dim=2, likelihood=masked)
        >>> vae(torch.tensor([[1.0, torch.nan, 3.0]]), num_samples=20).log_px.shape
        torch.Size([20, 1])
    """

    center: Tensor
    scale: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        mean: float | Sequence[Any] = 0.0,
        std: float | Sequence[Any] = 1.0,
    ) -> None:
        super().__init__()
        if not isinstance(network, nn.Module):
            raise TypeError(
                f"RowMasking expects a module from rows to log odds, got {network!r:.80}: give "
                "MLP(D, (), D) for a linear one"
            )
        self.network = network
        self.mean, self.std = (np.asarray(numbers, np.float64).tolist() for numbers in (mean, std))
        self.register_constant("center", self.mean)
        self.register_constant("scale", self.std)

    @classmethod
    def from_data(cls, network: nn.Module, x: Tensor) -> "RowMasking":
        """Return a mechanism with the units of the observed entries of x ``(N, *E)``."""
        mean, std = observed_units(x)
        return cls(network, mean=mean, std=std)

    def log_odds(self, x: Tensor, event_ndim: int) -> Tensor:
        """Return the log odds of missing values of complete rows ``(*S, *E)``."""
        standardized = (x - self.center) / self.scale
        rows = standardized.reshape(-1, *x.shape[x.dim() - event_ndim :])
        log_odds: Tensor = self.network(rows)
        if log_odds.shape != rows.shape:
            raise ValueError(
                f"RowMasking expects a network that returns log odds {tuple(rows.shape)}, got "
                f"{tuple(log_odds.shape)}: give it one output per entry"
            )
        return log_odds.reshape(x.shape)

    def forward(
        self, base: MaskedDistribution, event_ndim: int, log_odds: Tensor | None
    ) -> Distribution:
        """Return the distribution of observed entries and mask."""
        function = partial(self.log_odds, event_ndim=event_ndim)
        return RowMaskedDistribution(base.base, base.inside, function, event_ndim)

    def conditional(self, p: Distribution, x: Tensor) -> Distribution:
        """Return p(x given z, observed values, mask), by weighted proposals."""
        if not isinstance(p, RowMaskedDistribution):
            raise TypeError(f"{self} expects a distribution that it made, got {p}")
        return RowsGivenMask(p, x)

    def check_shape(self, data_shape: Sequence[int]) -> None:
        """Raise unless mean and std broadcast over one datum."""
        for shape in (self.center.shape, self.scale.shape):
            check_broadcast(self, shape, data_shape)


def observed_units(x: Tensor) -> tuple[Any, Any]:
    """Return mean and std of the observed entries of x ``(N, *E)``, as numbers; 0 and 1 if none."""
    x = x.double()
    mean = torch.nanmean(x, 0).nan_to_num()
    variance = torch.nanmean((x - mean).square(), 0).nan_to_num()
    return mean.tolist(), torch.where(variance > 0, variance.sqrt(), 1.0).tolist()
