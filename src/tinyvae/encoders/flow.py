"""Normalizing flows as posteriors."""

from torch import Tensor

from tinyvae.encoders.base import Encoder, NetworkEncoder
from tinyvae.flows.base import NormalizingFlow, Transformed


def check_flow(owner: str, flow: object) -> None:
    """Raise unless an argument is a flow."""
    if not isinstance(flow, NormalizingFlow):
        raise TypeError(f"{owner} expects a flow such as Flow(dim), got a {type(flow).__name__}")


class FlowEncoder(Encoder):
    """A flow that transforms the posterior of another encoder.

    The flow is initially the identity. The posterior is then that of the other encoder.

    Args:
        encoder: Encoder of vectors, such as :class:`~tinyvae.GaussianEncoder`.
        flow: A :class:`~tinyvae.flows.Flow`, a :class:`~tinyvae.flows.PlanarFlow` or another flow
            over the dimensions of the latent. A flow with a ``context_dim`` reads the features of
            the encoder's network, and ``context_dim`` is their number.

    Example:
        >>> gaussian = GaussianEncoder(MLP(4, hidden=(8,)), latent_dim=2)
        >>> FlowEncoder(gaussian, Flow(2, context_dim=8))(torch.zeros(5, 4))
        Transformed(batch_shape=(5,), event_shape=(2,))
    """

    def __init__(self, encoder: NetworkEncoder, flow: NormalizingFlow) -> None:
        super().__init__()
        check_flow("FlowEncoder", flow)
        if not isinstance(encoder, NetworkEncoder) or tuple(encoder.latent_shape) != (flow.dim,):
            raise ValueError(
                f"FlowEncoder expects an encoder of vectors of {flow.dim}, such as "
                f"GaussianEncoder(network, {flow.dim}), got {encoder!r:.200}"
            )
        if flow.context_dim not in (0, encoder.features):
            raise ValueError(
                f"FlowEncoder expects a flow with context_dim={encoder.features}, the number of "
                f"features of the network, or 0, got context_dim={flow.context_dim}"
            )
        self.encoder, self.flow = encoder, flow
        self.latent_shape = encoder.latent_shape
        self.is_density = encoder.is_density

    def forward(self, x: Tensor, context: Tensor | None = None) -> Transformed:
        """Return q(z given x)."""
        features = self.encoder.encode(x, context)
        base = self.encoder.posterior(features)
        condition = features.flatten(1).to(base.mean.dtype) if self.flow.context_dim else None
        if base.support != "reals" or base.is_discrete or not base.is_density:
            raise TypeError(
                f"FlowEncoder expects an encoder whose posteriors are densities on R^D, got {base}"
            )
        return Transformed(base, self.flow(condition))
