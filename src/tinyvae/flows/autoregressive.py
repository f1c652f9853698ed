"""Autoregressive flows from zuko, which ``pip install 'tinyvae[flows]'`` installs."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tinyvae.flows.base import Bijection, NormalizingFlow, check_sizes, check_weights


def _zuko() -> Any:
    """Import zuko, and restore torch's validation, which the import disables for the process."""
    previous = torch.distributions.Distribution._validate_args
    try:
        import zuko
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Flow expects zuko, which is not installed: pip install 'tinyvae[flows]'"
        ) from error
    finally:
        torch.distributions.Distribution.set_default_validate_args(previous)
    return zuko


class Flow(NormalizingFlow):
    r"""A sequence of autoregressive bijections of vectors, initially the identity.

    Each bijection maps dimension i by a monotonic function whose parameters depend on the
    dimensions before i and on the context. Every second bijection reverses the order.

    Args:
        dim: Number of dimensions :math:`D`.
        context_dim: Number of values of the context.
        transforms: Number of bijections.
        hidden: Widths of the hidden layers of each bijection.
        kind: ``"spline"`` for rational-quadratic splines on [-5, 5] with the identity outside, or
            ``"affine"``.
        coupling: True if each bijection changes only the second half of the dimensions, given the
            first half. This is less flexible, but the inverse is as fast as the forward map;
            otherwise it takes D passes.

    References:
        Kingma et al. (2016). Improving Variational Inference with Inverse Autoregressive Flow.
        arXiv:1606.04934. Durkan, Bekasov, Murray, Papamakarios (2019). Neural Spline Flows.
        arXiv:1906.04032. Rozet et al., zuko, doi:10.5281/zenodo.7625672.

    Example:
        >>> bijection = Flow(2, transforms=2)()
        >>> bool(torch.allclose(bijection(torch.ones(5, 2)), torch.ones(5, 2)))
        True
    """

    def __init__(
        self,
        dim: int,
        *,
        context_dim: int = 0,
        transforms: int = 3,
        hidden: Sequence[int] = (64, 64),
        kind: Literal["spline", "affine"] = "spline",
        coupling: bool = False,
    ) -> None:
        super().__init__()
        check_sizes("Flow", dim, context_dim, transforms)
        if min(hidden, default=1) < 1:
            raise ValueError(f"Flow expects hidden widths >= 1, got {tuple(hidden)}")
        if kind not in ("spline", "affine"):
            raise ValueError(f"Flow expects kind 'spline' or 'affine', got {kind!r}")
        self.dim, self.context_dim, self.kind = dim, context_dim, kind
        self.hidden, self.coupling = tuple(hidden), coupling
        widths = (dim + context_dim, *self.hidden, 23 * dim)  # 23 parameters of a spline of 8 bins
        mask_size = widths[0] * widths[-1]
        check_weights("Flow", transforms * (sum(a * b for a, b in pairwise(widths)) + mask_size))
        zuko, passes = _zuko(), 2 if coupling else None
        make = zuko.flows.NSF if kind == "spline" else zuko.flows.MAF
        with torch.device("cpu"):  # zuko reads values of its masks, which a meta device lacks
            flow = make(
                dim, context_dim, transforms=transforms, hidden_features=self.hidden, passes=passes
            )
        self.transforms = nn.ModuleList(flow.transform.transforms).to(torch.get_default_device())
        self._compose = zuko.transforms.ComposedTransform
        for transform in self.transforms:
            _start_at_identity(transform)

    def forward(self, context: Tensor | None = None) -> Bijection:
        """Return the bijection given the context ``(*batch, context_dim)``."""
        bijection: Bijection = self._compose(*(transform(context) for transform in self.transforms))
        return bijection

    def config(self) -> dict[str, Any]:
        """Return the arguments that build an equal flow."""
        return super().config() | {"transforms": len(self.transforms)}


def _start_at_identity(transform: nn.Module) -> None:
    """Zero the layer that computes the monotonic functions, which makes them the identity."""
    linear = [module for module in transform.modules() if isinstance(module, nn.Linear)]
    last = linear[-1] if linear else transform  # in one dimension there is no network
    for parameter in last.parameters():
        nn.init.zeros_(parameter)
