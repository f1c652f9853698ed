"""Interface of priors, priors without parameters, and combinations of parts."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from tinyvae.core.configurable import Configurable
from tinyvae.distributions import (
    Distribution,
    Independent,
    JointDistribution,
    Laplace,
    SphereUniform,
    StandardNormalDistribution,
)
from tinyvae.encoders import Encoder, JointEncoder
from tinyvae.encoders.base import latent_size, size_or_shape
from tinyvae.encoders.joint import by_name

# An encoder, or a function that returns a posterior: ``encoder(inputs, context)``.
PosteriorOf: TypeAlias = Callable[..., Distribution]


class Prior(Configurable, nn.Module, ABC):
    """A module whose ``forward`` returns p(z), or p(z given context).

    Attributes:
        latent_shape: Shape of one latent.
    """

    latent_shape: torch.Size

    @cached_property  # a subclass may also store it
    def latent_dim(self) -> int | tuple[int, ...]:
        """Number of latent dimensions, or the shape of a latent with several."""
        return size_or_shape(self.latent_shape)

    @abstractmethod
    def forward(self, context: Tensor | None = None, *, encoder: Any = None) -> Distribution:
        """Return the prior.

        Args:
            context: Context of the prior, ``(B, ...)``.
            encoder: The VAE's encoder, for priors that consist of posteriors or codes. A subclass
                may name the type that it needs.
        """

    def extra_repr(self) -> str:
        """Latent shape, for ``repr``."""
        return f"{tuple(self.latent_shape)}"


class _ConstantPrior(Prior):
    """A prior without parameters."""

    zero: Tensor

    def __init__(self, latent_dim: int | Sequence[int]) -> None:
        super().__init__()
        self.latent_shape = latent_size(latent_dim)
        # A buffer follows the module's device and dtype. Files do not need it.
        self.register_buffer("zero", torch.zeros(()), persistent=False)


class StandardNormal(_ConstantPrior):
    r"""Standard normal prior :math:`p(z) = \mathcal{N}(0, I)`.

    Args:
        latent_dim: Number of latent dimensions, or the shape of one latent.

    Example:
        >>> StandardNormal(2)().log_prob(torch.zeros(2))  # -log(2 pi)
        tensor(-1.8379)
    """

    def forward(
        self, context: Tensor | None = None, *, encoder: PosteriorOf | None = None
    ) -> Independent:
        """Return N(0, I) over one latent, independent of the context."""
        zero = self.zero.expand(self.latent_shape)
        return Independent(StandardNormalDistribution(zero), len(self.latent_shape))


class StandardLaplace(_ConstantPrior):
    """Prior of independent Laplace elements with mean 0 and scale 1.

    Args:
        latent_dim: Number of latent dimensions, or the shape of one latent.

    Example:
        >>> StandardLaplace(2)().log_prob(torch.zeros(2))  # -2 log 2
        tensor(-1.3863)
    """

    def forward(
        self, context: Tensor | None = None, *, encoder: PosteriorOf | None = None
    ) -> Independent:
        """Return the prior, independent of the context."""
        zero = self.zero.expand(self.latent_shape)
        return Independent(Laplace(zero, zero), len(self.latent_shape))


class SphereUniformPrior(_ConstantPrior):
    r"""Uniform prior on the unit sphere.

    Args:
        latent_dim: Number of coordinates :math:`D \ge 2`.

    References:
        Davidson, Falorsi, De Cao, Kipf, Tomczak (2018). Hyperspherical Variational Auto-Encoders.
        arXiv:1804.00891.

    Example:
        >>> SphereUniformPrior(2)().log_prob(torch.tensor([0.0, 1.0]))  # -log(2 pi)
        tensor(-1.8379)
    """

    def __init__(self, latent_dim: int | Sequence[int]) -> None:
        super().__init__(latent_dim)
        if len(self.latent_shape) != 1 or self.latent_shape[0] < 2:
            raise ValueError(
                "SphereUniformPrior expects a vector of 2 or more coordinates, got "
                f"{tuple(self.latent_shape)}: give latent_dim >= 2"
            )

    def forward(
        self, context: Tensor | None = None, *, encoder: PosteriorOf | None = None
    ) -> SphereUniform:
        """Return the uniform distribution, independent of the context."""
        return SphereUniform(self.zero.expand(self.latent_shape))


class ConditionalPrior(Prior):
    """Prior given the context, p(z given c): an encoder of c.

    Args:
        encoder: Encoder whose input is the context.

    Example:
        >>> prior = ConditionalPrior(GaussianEncoder(MLP(10, hidden=(32,)), latent_dim=2))
        >>> prior(torch.eye(10)[:3])
        Independent(Normal, batch_shape=(3,), event_shape=(2,))
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        if not isinstance(encoder, Encoder):
            raise TypeError(
                f"ConditionalPrior expects an encoder of the context, got a "
                f"{type(encoder).__name__}: wrap a network, GaussianEncoder(network, latent_dim)"
            )
        self.encoder = encoder
        self.latent_shape = encoder.latent_shape

    def forward(
        self, context: Tensor | None = None, *, encoder: PosteriorOf | None = None
    ) -> Distribution:
        """Return p(z given context), ``batch_shape = (B,)``."""
        if context is None:
            raise ValueError("ConditionalPrior expects a context, got None: give context=")
        prior: Distribution = self.encoder(context)
        return prior


class JointPrior(Prior):
    """Independent priors of several latents, for a :class:`~tinyvae.encoders.JointEncoder`.

    A prior that uses an encoder gets the encoder with the same name. The inputs of that encoder are
    the features of the common network, if there is one.

    Args:
        priors: Priors by name, or pairs of a name and a prior.

    Example:
        >>> JointPrior({"style": StandardNormal(2), "kind": CategoricalPrior(10)})()
        JointDistribution(batch_shape=(), event_shape=(12,))
    """

    def __init__(self, priors: Mapping[str, Prior] | Sequence[tuple[str, Prior]]) -> None:
        super().__init__()
        named = by_name("JointPrior", priors, Prior)
        self.priors = nn.ModuleDict(named)
        width = sum(prior.latent_shape.numel() for prior in named.values())
        self.latent_shape = torch.Size((width,))

    def forward(
        self, context: Tensor | None = None, *, encoder: PosteriorOf | None = None
    ) -> JointDistribution:
        """Return the joint distribution of the priors."""
        encoders = dict(encoder.encoders.items()) if isinstance(encoder, JointEncoder) else {}
        return JointDistribution(
            {
                name: prior(context, encoder=encoders.get(name))
                for name, prior in self.priors.items()
            }
        )

    def config(self) -> dict[str, Any]:
        """Return the arguments that build an equal prior."""
        return {"priors": list(self.priors.items())}
