"""Normalizing flow as a prior."""

import torch
from torch import Tensor

from tinyvae.distributions import Independent, Normal
from tinyvae.encoders.flow import _expect_flow
from tinyvae.flows.base import NormalizingFlow, Transformed
from tinyvae.priors.base import PosteriorOf, Prior


class FlowPrior(Prior):
    """A flow of N(0, I), fast where densities are asked for, as training does; at first N(0, I).

    Args:
        flow: :class:`~tinyvae.flows.Flow` or another one. One with ``context_dim`` is conditioned on the
            context ``(B, C)``.

    Example:
        >>> FlowPrior(Flow(2))()
        Transformed(batch_shape=(), event_shape=(2,))
    """

    zero: Tensor

    def __init__(self, flow: NormalizingFlow) -> None:
        super().__init__()
        _expect_flow("FlowPrior", flow)
        self.flow = flow
        self.latent_shape = torch.Size((flow.dim,))
        self.register_buffer("zero", torch.zeros(()), persistent=False)

    def forward(
        self, context: Tensor | None = None, *, encoder: PosteriorOf | None = None
    ) -> Transformed:
        """Return the prior, given the context where the flow reads one."""
        condition, batch = None, torch.Size()
        if self.flow.context_dim:
            if context is None:
                raise ValueError("FlowPrior with context_dim got no context: give it, context=")
            if not context.is_floating_point():
                raise TypeError(
                    f"FlowPrior expects a context (B, {self.flow.context_dim}) of floating-point "
                    f"numbers, got {context.dtype}: one-hot rows for classes"
                )
            condition = context.flatten(1)
            batch = condition.shape[:1]
        zero = self.zero.expand(*batch, *self.latent_shape)
        return Transformed(Independent(Normal(zero, zero), 1), self.flow(condition).inv)
