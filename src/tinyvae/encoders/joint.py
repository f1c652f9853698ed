"""Encoders of several independent latents."""

from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn

from tinyvae.distributions import JointDistribution
from tinyvae.encoders.base import Encoder
from tinyvae.networks.base import within_range


def by_name(
    owner: str, parts: Mapping[str, Any] | Sequence[tuple[str, Any]], cls: type
) -> dict[str, Any]:
    """Return parts by name, or raise unless the names are different and valid for modules."""
    pairs = list(parts.items()) if isinstance(parts, Mapping) else list(parts)
    if not pairs or not all(
        isinstance(pair, (tuple, list)) and len(pair) == 2 and isinstance(pair[1], cls)
        for pair in pairs
    ):
        raise TypeError(
            f"{owner} expects {cls.__name__.lower()}s by name, got {parts!r:.200}: "
            f"{owner}({{name: {cls.__name__.lower()}, ...}})"
        )
    names = [name for name, _ in pairs]
    reserved = set(dir(nn.ModuleDict()))
    if len(set(names)) < len(names) or any(
        not isinstance(name, str) or not name.isidentifier() or name in reserved for name in names
    ):
        raise ValueError(
            f"{owner} expects different names that are Python identifiers and not methods of a "
            f"dictionary, got {names}"
        )
    return dict(pairs)


class JointEncoder(Encoder):
    """Independent posteriors of several latents, such as a continuous and a discrete one.

    The decoder reads the latents as one vector, flattened and concatenated. Each latent is a term
    of the model's output, with its own KL. The prior is a :class:`~tinyvae.priors.JointPrior` with
    the same names.

    Args:
        encoders: Encoders by name, or pairs of a name and an encoder.
        network: Module whose output all encoders read, instead of x and the context.

    Example:
        >>> style = GaussianEncoder(MLP(8, hidden=(8,)), latent_dim=2)
        >>> kind = CategoricalEncoder(MLP(8, hidden=(8,)), num_classes=10)
        >>> encoder = JointEncoder({"style": style, "kind": kind}, network=MLP(4, hidden=(8,)))
        >>> encoder(torch.zeros(5, 4))
        JointDistribution(batch_shape=(5,), event_shape=(12,))
    """

    def __init__(
        self,
        encoders: Mapping[str, Encoder] | Sequence[tuple[str, Encoder]],
        *,
        network: nn.Module | None = None,
    ) -> None:
        super().__init__()
        named = by_name("JointEncoder", encoders, Encoder)
        if not isinstance(network, (nn.Module, NoneType)):
            raise TypeError(f"JointEncoder expects a network, got a {type(network).__name__}")
        self.network = network
        self.encoders = nn.ModuleDict(named)
        width = sum(encoder.latent_shape.numel() for encoder in named.values())
        self.latent_shape = torch.Size((width,))
        self.is_density = all(encoder.is_density for encoder in named.values())

    def forward(self, x: Tensor, context: Tensor | None = None) -> JointDistribution:
        """Return q(z given x)."""
        if self.network is not None:
            x, context = self.network(*within_range(self, x, context)), None
        return JointDistribution(
            {name: encoder(x, context) for name, encoder in self.encoders.items()}
        )

    def config(self) -> dict[str, Any]:
        """Return the arguments that build an equal encoder."""
        return {"encoders": list(self.encoders.items()), "network": self.network}
