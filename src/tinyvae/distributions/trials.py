"""Distributions of the outcomes of a number of trials."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tinyvae.distributions.base import Distribution, joint_shape
from tinyvae.distributions.bounded import log_gamma_draw
from tinyvae.distributions.special import gamma_residual, limited

# The exponential of this log concentration is practically infinite, and its square fits in float32.
_LOG_HUGE = 40.0


class BetaBinomial(Distribution):
    r"""Beta-binomial distribution of each element: hits in ``n`` trials of a beta-distributed rate.

    .. math:: p(k) = \binom{n}{k} \frac{B(k + \alpha, n - k + \beta)}{B(\alpha, \beta)}, \qquad
        \alpha = \mu \kappa, \quad \beta = (1 - \mu) \kappa

    The variance is :math:`n \mu (1 - \mu) (n + \kappa) / (1 + \kappa)`. The limit
    :math:`\kappa \to \infty` is binomial. The log mass is computed as

    .. math:: -n \mathrm{KL}(k / n \,\|\, \rho) - \kappa \mathrm{KL}(\mu \,\|\, \rho) + r, \qquad
        \rho = (k + \alpha) / (n + \kappa)

    with divergences between two outcomes and a small residual r (Loader 2000), so that many trials
    stay accurate in float32.

    Args:
        logits: Log odds of the mean rate, :math:`\log \tfrac{\mu}{1 - \mu}`, any shape.
        log_concentration: :math:`\log\kappa`, broadcastable with ``logits``, limited to -40 to 40.
        num_trials: :math:`n \geq 1`, broadcastable.

    Example:
        >>> p = BetaBinomial(torch.zeros(1), torch.tensor(2.0).log(), torch.tensor(3.0))
        >>> p.log_prob(torch.arange(4.0)[:, None]).exp().flatten()  # uniform
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """

    has_rsample = False
    is_discrete = True

    def __init__(self, logits: Tensor, log_concentration: Tensor, num_trials: Tensor) -> None:
        self.logits, self.num_trials = logits, num_trials
        self.log_concentration = limited(log_concentration, least=-_LOG_HUGE, most=_LOG_HUGE)
        self.batch_shape = joint_shape(logits, log_concentration, num_trials)

    @property
    def mean(self) -> Tensor:
        """Expected number of hits, ``(*batch)``."""
        return (self.num_trials * torch.sigmoid(self.logits)).expand(self.batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log mass of each element, nats."""
        hits, n = value.to(self.logits.dtype), self.num_trials
        misses, log_kappa = n - hits, self.log_concentration
        kappa, log_n = torch.exp(log_kappa), torch.log(n)
        log_total = torch.log(n + kappa)
        mean, rest = torch.sigmoid(self.logits), torch.sigmoid(-self.logits)
        log_mean, log_rest = F.logsigmoid(self.logits), F.logsigmoid(-self.logits)
        # The same terms of hits and of misses.
        (some_hits, log_hits, log_a, residual_a), (some_misses, log_misses, log_b, residual_b) = (
            _with_prior(count, kappa * share, log_share + log_kappa)
            for count, share, log_share in ((hits, mean, log_mean), (misses, rest, log_rest))
        )
        shift = torch.where(mean > 0.5, misses / n - rest, mean - hits / n) / (n + kappa)
        fit = n * (
            _minus_excess(hits / n, log_hits - log_n, log_a - log_total, kappa * shift)
            + _minus_excess(misses / n, log_misses - log_n, log_b - log_total, -kappa * shift)
        ) + kappa * (
            _minus_excess(mean, log_mean, log_a - log_total, -n * shift)
            + _minus_excess(rest, log_rest, log_b - log_total, n * shift)
        )
        ways = log_n - log_hits - log_misses + gamma_residual(n, log_n)
        ways = ways - gamma_residual(some_hits, log_hits) - gamma_residual(some_misses, log_misses)
        ways = torch.where((hits > 0) & (misses > 0), ways, 0.0)
        constant = residual_a + residual_b - gamma_residual(n + kappa, log_total)
        log_prob = fit + ways + constant + gamma_residual(kappa, log_kappa)
        return limited(log_prob, most=0.0)  # rounding may exceed a mass of one

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw numbers of hits without gradients: binomial with a beta draw as rate."""
        shape = self._shape(sample_shape)
        with torch.no_grad():
            kappa = torch.exp(self.log_concentration)
            alpha, beta = (
                (kappa * torch.sigmoid(logits)).expand(shape)
                for logits in (self.logits, -self.logits)
            )
            rate = torch.sigmoid(log_gamma_draw(alpha) - log_gamma_draw(beta))
            return torch.binomial(self.num_trials.to(rate.dtype).expand(shape), rate)


def _with_prior(
    count: Tensor, prior: Tensor, log_prior: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return terms of a count and the count expected before it.

    They are the count, raised to at least one, its logarithm, the logarithm of the sum of both, and
    the change of the residual of the log-gamma function from ``prior`` to the sum.
    """
    some = count.masked_fill(count < 1, 1.0)
    log_sum = torch.where(count > 0, torch.log(some + prior), log_prior)
    change = gamma_residual(count + prior, log_sum) - gamma_residual(prior, log_prior)
    return some, torch.log(some), log_sum, torch.where(count > 0, change, 0.0)


def _minus_excess(rate: Tensor, log_rate: Tensor, log_other: Tensor, change: Tensor) -> Tensor:
    """Return p log(q / p) - (q - p) <= 0 of rates p and q = p + change.

    Near p the linear parts cancel exactly and are omitted. The sum over all outcomes is minus
    KL(p || q).
    """
    near = change.abs() < 0.5 * rate
    ratio = torch.where(near, change, 0.0) / torch.where(near, rate, 1.0)
    close = rate * (torch.log1p(ratio) - ratio)
    return torch.where(near, close, rate * (log_other - log_rate) - change)


class Multinomial(Distribution):
    r"""Multinomial distribution of counts along the first event dimension, given their total.

    .. math:: \log p(x) = \log n! + \textstyle\sum_c \big(x_c \log \pi_c - \log x_c!\big), \qquad
        n = \textstyle\sum_c x_c

    The log mass of any total is that given this total, so the masses of each total sum to one. It
    is a sum of deviances and small residuals (Loader 2000).

    Args:
        logits: :math:`\log\pi` up to a constant, ``(*batch, C, *E)``.
        event_ndim: Number of dimensions of ``(C, *E)``. The positions ``E`` are independent.
        num_trials: Total of draws and of the mean.

    Shape:
        value: ``(..., C, *E)``; ``log_prob``: ``(...)``.

    Example:
        >>> p = Multinomial(torch.zeros(3), 1, num_trials=2)
        >>> p.log_prob(torch.tensor([[2.0, 0.0, 0.0], [1.0, 1.0, 0.0]])).exp()
        tensor([0.1111, 0.2222])
    """

    has_rsample = False
    is_discrete = True
    support = "counts"

    def __init__(self, logits: Tensor, event_ndim: int, num_trials: int) -> None:
        self.dim, self.num_trials = -event_ndim, num_trials
        self.log_probs = logits.log_softmax(self.dim)
        self.batch_shape = logits.shape[: self.dim]
        self.event_shape = logits.shape[self.dim :]

    @property
    def mean(self) -> Tensor:
        """Expected counts of ``num_trials``, ``(*batch, C, *E)``."""
        return self.num_trials * self.log_probs.exp()

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log mass given the total, summed over the event, nats."""
        value = value.to(self.log_probs.dtype)
        is_seen, total = value > 0, value.sum(self.dim, keepdim=True)
        some, count = total.clamp(min=1.0), value.masked_fill(~is_seen, 1.0)
        log_some, log_count = torch.log(some), torch.log(count)
        log_ratio = torch.where(is_seen, self.log_probs + log_some - log_count, 0.0)
        deviance = count * (torch.expm1(log_ratio) - log_ratio)
        seen = deviance + log_count + gamma_residual(count, log_count)
        unseen = total * self.log_probs.exp()
        each = torch.where(is_seen, seen, unseen).sum(self.dim, keepdim=True)
        log_prob = log_some + gamma_residual(some, log_some) - each
        return torch.where(total > 0, log_prob, 0.0).flatten(self.dim).sum(-1)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw counts without gradients: binomial counts of each class among the remaining ones."""
        shape = self._shape(sample_shape)
        with torch.no_grad():
            log_rest = self.log_probs.flip(self.dim).logcumsumexp(self.dim).flip(self.dim)
            shares = (self.log_probs - log_rest).exp().clamp(max=1.0).expand(shape)
            remaining, counts = torch.full_like(shares.select(self.dim, 0), self.num_trials), []
            for share in shares.unbind(self.dim)[:-1]:
                counts.append(torch.binomial(remaining, share.contiguous()))
                remaining = remaining - counts[-1]
            return torch.stack([*counts, remaining], self.dim)
