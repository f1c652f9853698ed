"""Normalizing flows as priors."""

import torch
from torch import Tensor

from tinyvae.distributions import Independent, Normal
from tinyvae.encoders.flow import check_flow
from tinyvae.flows.base import NormalizingFlow, Transformed
from tinyvae.priors.base import PosteriorOf, Prior


class FlowPrior(Prior):
    """N(0, I), transformed by the inverse of a flow; initially N(0, I).

    The density needs the flow itself, not its inverse, so that training is fast.

    Args:
        flow: A :class:`~tinyvae.flows.NormalizingFlow`. If it has a ``context_dim``, its context is
            the context ``(B, C)`` of the prior.

    Example:
        >>> FlowPrior(Flow(2))()
        Transformed(batch_shape=(), event_shape=(2,))
    """

    zero: Tensor

    def __init__(self, flow: NormalizingFlow) -> None:
        super().__init__()
        check_flow("FlowPrior", flow)
        self.flow = flow
        self.latent_shape = torch.Size((flow.dim,))
        self.register_buffer("zero", torch.zeros(()), persistent=False)

    def forward(
        self, context: Tensor | None = None, *, encoder: PosteriorOf | None = None
    ) -> Transformed:
        """Return the prior, given the context if the flow reads one."""
        condition, batch = None, torch.Size()
        if self.flow.context_dim:
            if context is None:
                raise ValueError(
                    f"FlowPrior expects a context (B, {self.flow.context_dim}), got None: give "
                    "context="
                )
            if not context.is_floating_point():
                raise TypeError(
                    f"FlowPrior expects a context (B, {self.flow.context_dim}) of floating-point "
                    f"numbers, got {context.dtype}: give one-hot rows for classes"
                )
            condition = context.flatten(1)
            batch = condition.shape[:1]
        zero = self.zero.expand(*batch, *self.latent_shape)
        return Transformed(Independent(Normal(zero, zero), 1), self.flow(condition).inv)
