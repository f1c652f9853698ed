r"""Normalizing flows, of zuko: bijections with a Jacobian whose determinant is known.

.. math:: z = T(\epsilon \mid c), \qquad
    \log p(z) = \log p(\epsilon) - \log |\det \partial T / \partial \epsilon|

Needs the extra ``flows``: ``pip install 'tinyvae[flows]'``.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tinyvae.distributions import Distribution, Independent, Normal
from tinyvae.distributions.base import Latest
from tinyvae.distributions.special import full_precision
from tinyvae.encoders import Encoder, NetworkEncoder
from tinyvae.priors import PosteriorOf, Prior

__all__ = ["Flow", "FlowEncoder", "FlowPrior", "Transformed"]


# What a file may make a reader allocate before its weights have been compared.
MOST_WEIGHTS = 100_000_000
MOST_TRANSFORMS = 100


def _zuko() -> Any:
    """Import zuko, which switches torch's validation off process-wide, and put that back."""
    found = torch.distributions.Distribution._validate_args
    try:
        import zuko
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "flows are those of zuko, which is not installed: pip install 'tinyvae[flows]'"
        ) from error
    finally:
        torch.distributions.Distribution.set_default_validate_args(found)
    return zuko


class Flow(nn.Module):
    r"""Autoregressive bijections of vectors, one after another, the identity at first.

    Each maps dimension i by a monotonic function whose parameters are computed from the dimensions
    before it and from the context; every second one takes the dimensions in reverse.

    Args:
        dim: Number of dimensions :math:`D`.
        context_dim: Number of values that it is conditioned on.
        transforms: Number of bijections.
        hidden: Widths of the hidden layers of each.
        kind: ``"spline"``, rational-quadratic ones on [-5, 5], the identity outside; ``"affine"``.
        coupling: Whether only the second half of the dimensions is changed by each, given the first
            half: less flexible, but as fast backwards, where otherwise D passes are needed.

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
        if dim < 1 or context_dim < 0 or not 1 <= transforms <= MOST_TRANSFORMS:
            raise ValueError(
                f"Flow expects dim >= 1, context_dim >= 0 and 1 to {MOST_TRANSFORMS} transforms, "
                f"got {dim}, {context_dim} and {transforms}"
            )
        if min(hidden, default=1) < 1:
            raise ValueError(f"Flow expects hidden widths >= 1, got {tuple(hidden)}")
        if kind not in ("spline", "affine"):
            raise ValueError(f"Flow expects kind 'spline' or 'affine', got {kind!r}")
        self.dim, self.context_dim, self.kind = dim, context_dim, kind
        self.hidden, self.coupling = tuple(hidden), coupling
        widths = (dim + context_dim, *self.hidden, 23 * dim)  # 23 parameters of a spline of 8 bins
        sizes = [a * b for a, b in pairwise(widths)] + [widths[0] * widths[-1]]  # and who sees whom
        if transforms * sum(sizes) > MOST_WEIGHTS:
            raise ValueError(f"Flow expects at most {MOST_WEIGHTS:,} weights: make it smaller")
        zuko = _zuko()
        make = zuko.flows.NSF if kind == "spline" else zuko.flows.MAF
        with torch.device("cpu"):  # zuko computes with the masks, which a meta device cannot
            flow = make(
                dim,
                context_dim,
                transforms=transforms,
                hidden_features=self.hidden,
                passes=2 if coupling else None,
            )
        self.transforms = nn.ModuleList(flow.transform.transforms).to(torch.get_default_device())
        self._compose = zuko.transforms.ComposedTransform
        for transform in self.transforms:
            _start_at_identity(transform)

    def forward(self, context: Tensor | None = None) -> Any:
        """Return the bijection given the context ``(*batch, context_dim)``."""
        return self._compose(*(transform(context) for transform in self.transforms))

    def config(self) -> dict[str, Any]:
        """Arguments that build an equal flow."""
        return {
            "dim": self.dim,
            "context_dim": self.context_dim,
            "transforms": len(self.transforms),
            "hidden": self.hidden,
            "kind": self.kind,
            "coupling": self.coupling,
        }


def _start_at_identity(transform: nn.Module) -> None:
    """Zero what gives the parameters of the monotonic functions: all of them are the identity."""
    linear = [module for module in transform.modules() if isinstance(module, nn.Linear)]
    last = linear[-1] if linear else transform  # in one dimension there is no network
    for parameter in last.parameters():
        nn.init.zeros_(parameter)


class Transformed(Distribution):
    """The distribution of T(y), where ``base`` is that of y.

    The log density of its latest draw is known from the drawing, without the way back.

    Args:
        base: Distribution of vectors.
        transform: Bijection of them, as :class:`Flow` returns, or the ``inv`` of one.

    Example:
        >>> base = Independent(Normal(torch.zeros(2), torch.zeros(2)), 1)
        >>> Transformed(base, Flow(2)()).log_prob(torch.zeros(2)).detach()  # -log(2 pi)
        tensor(-1.8379)
    """

    def __init__(self, base: Distribution, transform: Any) -> None:
        self.base, self.transform = base, transform
        self.batch_shape, self.event_shape = base.batch_shape, base.event_shape
        self.has_rsample, self.is_density = base.has_rsample, base.is_density
        self.is_discrete, self.space = base.is_discrete, base.space
        self._latest = Latest[Tensor]()

    @property
    def mean(self) -> Tensor:
        """NaN: the expected value has no closed form."""
        return torch.full_like(self.base.mean, math.nan)

    def center(self, weights: Tensor | None = None) -> Tensor:
        """Where the center of the base is mapped to."""
        with full_precision(self.base.mean):
            center: Tensor = self.transform(self.base.center(weights))
        return center

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, nats."""
        if (known := self._latest.of(value)) is not None:
            return known
        with full_precision(value):
            y, log_det = self.transform.inv.call_and_ladj(value)
        log_prob: Tensor = self.base.log_prob(y) + log_det
        return log_prob

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw of the base, transformed."""
        y = self.base.sample(sample_shape)
        value: Tensor
        with full_precision(y):
            value, log_det = self.transform.call_and_ladj(y)
        self._latest.keep(value, self.base.log_prob(y) - log_det)
        return value


def _expect_flow(owner: str, flow: object) -> None:
    if not isinstance(flow, Flow):
        raise TypeError(f"{owner} expects a Flow(dim), got a {type(flow).__name__}")


class FlowEncoder(Encoder):
    """A flow on top of another encoder's posterior.

    At first the flow is the identity, so that the posterior is the other encoder's.

    Args:
        encoder: Encoder of vectors, such as :class:`~tinyvae.GaussianEncoder`.
        flow: A :class:`Flow` of the latent's dimensions. One with ``context_dim`` is conditioned on
            the features that the encoder's network gives, which must be as many.

    Shape:
        x: ``(B, *E)``; posterior: ``batch_shape (B,)``, ``event_shape (D,)``.

    Example:
        >>> gaussian = GaussianEncoder(MLP(4, hidden=(8,)), latent_dim=2)
        >>> FlowEncoder(gaussian, Flow(2, context_dim=8))(torch.zeros(5, 4))
        Transformed(batch_shape=(5,), event_shape=(2,))
    """

    def __init__(self, encoder: NetworkEncoder, flow: Flow) -> None:
        super().__init__()
        _expect_flow("FlowEncoder", flow)
        if not isinstance(encoder, NetworkEncoder) or tuple(encoder.latent_shape) != (flow.dim,):
            raise ValueError(
                f"FlowEncoder expects an encoder of vectors of {flow.dim}, such as "
                f"GaussianEncoder(network, {flow.dim}), got {encoder!r:.200}"
            )
        if flow.context_dim not in (0, encoder.features):
            raise ValueError(
                f"FlowEncoder expects a flow conditioned on the network's {encoder.features} "
                f"features or on none, got context_dim={flow.context_dim}"
            )
        self.encoder, self.flow = encoder, flow
        self.latent_shape = encoder.latent_shape
        self.is_density = encoder.is_density

    def forward(self, x: Tensor, context: Tensor | None = None) -> Transformed:
        """Return q(z given x)."""
        features = self.encoder.encode(x, context)
        base = self.encoder.posterior(features)
        condition = features.flatten(1).to(base.mean.dtype) if self.flow.context_dim else None
        if base.space != "reals" or base.is_discrete or not base.is_density:
            raise TypeError(
                f"FlowEncoder expects an encoder whose posteriors are densities on R^D, got {base}"
            )
        return Transformed(base, self.flow(condition))

    def config(self) -> dict[str, Any]:
        """Arguments that build an equal encoder."""
        return {"encoder": self.encoder, "flow": self.flow}


class FlowPrior(Prior):
    """A flow of N(0, I), fast where densities are asked for, as training does; at first N(0, I).

    Args:
        flow: A :class:`Flow`. One with ``context_dim`` is conditioned on the context ``(B, C)``.

    Example:
        >>> FlowPrior(Flow(2))()
        Transformed(batch_shape=(), event_shape=(2,))
    """

    zero: Tensor

    def __init__(self, flow: Flow) -> None:
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

    def config(self) -> dict[str, Any]:
        """Arguments that build an equal prior."""
        return {"flow": self.flow}
