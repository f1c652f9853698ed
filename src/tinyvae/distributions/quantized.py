"""Latents out of a codebook: a posterior on one code, and a prior over all."""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tinyvae.distributions.base import Distribution, pooled
from tinyvae.distributions.multivariate import Delta

__all__ = ["Codes", "Quantized", "nearest"]


def nearest(rows: Tensor, codebook: Tensor, *, exact: bool = False) -> Tensor:
    """Index of the code nearest to each of ``rows`` ``(..., C)``, as ``(...)``.

    Args:
        rows: Vectors.
        codebook: Codes ``(J, C)``.
        exact: Take differences, instead of the faster squares and products.
    """
    mode = "donot_use_mm_for_euclid_dist" if exact else "use_mm_for_euclid_dist"
    flat = rows.reshape(-1, rows.shape[-1])
    return torch.cdist(flat, codebook, compute_mode=mode).argmin(-1).reshape(rows.shape[:-1])


class Quantized(Delta):
    """A code for certain: mass one on it.

    Args:
        value: The codes' vectors ``(B, C, *S)``, through which gradients may pass.
        codes: Their indices ``(B, *S)``.
        losses: As of :class:`Distribution`.
        metrics: As of :class:`Distribution`.
        learn: Called at the first draw: what a codebook learns of the codes' use.
    """

    is_density = True
    is_discrete = True
    space = "codes"

    def __init__(
        self,
        value: Tensor,
        codes: Tensor,
        losses: Mapping[str, Tensor],
        metrics: Mapping[str, Tensor],
        learn: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(value, value.dim() - 1)
        self.codes, self.losses, self.metrics = codes, losses, metrics
        self._learn = learn

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """The code, again and again, with gradients."""
        if self._learn is not None:
            self._learn()
            self._learn = None
        return super().sample(sample_shape)


class Codes(Distribution):
    """Independent codes at every position, by logits.

    Args:
        logits: ``(J, *S)``.
        codebook: ``(J, C)``.

    Shape:
        value: ``(..., C, *S)``; what is no code has mass zero.

    Example:
        >>> prior = Codes(torch.zeros(4, 7, 7), torch.randn(4, 2))
        >>> prior.log_prob(prior.sample((5,)))[0]  # -49 log(4)
        tensor(-67.9284)
    """

    has_rsample = False
    is_discrete = True
    space = "codes"

    def __init__(self, logits: Tensor, codebook: Tensor) -> None:
        self.logits, self.codebook = logits, codebook
        self.batch_shape = torch.Size()
        self.event_shape = torch.Size((codebook.shape[1], *logits.shape[1:]))

    @property
    def log_probs(self) -> Tensor:
        """Log masses ``(J, *S)``."""
        return self.logits.log_softmax(0)

    @property
    def mean(self) -> Tensor:
        """Expected vectors, ``(C, *S)``."""
        mean: Tensor = torch.tensordot(self.codebook.T, self.log_probs.exp(), dims=1)
        return mean

    def center(self, weights: Tensor | None = None) -> Tensor:
        """Vectors of the most probable codes."""
        return pooled(self._vectors(self.logits.argmax(0)), weights)

    def log_mass(self, codes: Tensor) -> Tensor:
        """Log mass of codes by their indices ``(..., *S)``, nats."""
        log_probs = self.log_probs.expand(
            *codes.shape[: codes.dim() - self._ndim], *self.logits.shape
        )
        dim = codes.dim() - self._ndim
        chosen = log_probs.gather(dim, codes.unsqueeze(dim)).squeeze(dim)
        log_mass: Tensor = chosen.flatten(dim).sum(-1) if self._ndim else chosen
        return log_mass

    @property
    def _ndim(self) -> int:
        """Dimensions of the positions."""
        return self.logits.dim() - 1

    def log_prob(self, value: Tensor) -> Tensor:
        """Log mass of codes by their vectors, nats."""
        vectors = value.movedim(-self._ndim - 1, -1)
        codes = nearest(vectors, self.codebook, exact=True)
        hit = (F.embedding(codes, self.codebook) == vectors).all(-1)
        if self._ndim:
            hit = hit.flatten(-self._ndim).all(-1)
        return self.log_mass(codes).masked_fill(~hit, -torch.inf)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw codes, as vectors without gradients."""
        with torch.no_grad():
            probs = self.log_probs.exp().reshape(len(self.logits), -1).T  # (S, J)
            count = torch.Size(sample_shape).numel()
            draws = torch.multinomial(probs, max(count, 1), replacement=True).T[:count]
            return self._vectors(draws.reshape((*sample_shape, *self.logits.shape[1:])))

    def _vectors(self, codes: Tensor) -> Tensor:
        return F.embedding(codes, self.codebook).movedim(-1, -self._ndim - 1)
