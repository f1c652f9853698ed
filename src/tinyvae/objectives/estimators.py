r"""Gradient estimators: what is differentiated, where what is reported is a bound.

A bound is a function :math:`F` of the log weights :math:`\ell_k = \log w_k` of one example's draws.
With :math:`v_k = \partial F / \partial \ell_k` and
:math:`c_k = \partial^2 F / \partial \ell_k^2`, where :math:`z_k` is reparameterized,

.. math:: \nabla_\phi\, \mathbb{E} F
    = \mathbb{E} \sum_k v_k \Big(\frac{\partial \ell_k}{\partial z_k} \nabla_\phi z_k
        - \nabla_\phi \log q_\phi(z_k \mid x)\Big)
    = \mathbb{E} \sum_k (v_k - c_k) \frac{\partial \ell_k}{\partial z_k} \nabla_\phi z_k,

first pathwise, then doubly reparameterized (DReG): the score, in the second term, is
reparameterized once more. "Sticking the landing" (STL) leaves the score out, which is unbiased
where :math:`v_k` is constant, as for the ELBO. Of draws without a reparameterization the gradient
is

.. math:: \mathbb{E} \sum_k (F - F_{-k}) \nabla_\phi \log q_\phi(z_k \mid x)
    + v_k \nabla_\phi \ell_k,

where the baseline :math:`F_{-k}` is known from the other draws: their bound, or the bound of all
draws with :math:`\ell_k` replaced by the mean of the others (VIMCO).

References:
    Roeder, Wu, Duvenaud (2017). Sticking the Landing. arXiv:1703.09194.
    Tucker, Lawson, Gu, Maddison (2019). Doubly Reparameterized Gradient Estimators for Monte Carlo
    Objectives. arXiv:1810.04152, eq. 8.
    Mnih, Rezende (2016). Variational Inference for Monte Carlo Objectives. arXiv:1602.06725,
    section 2.6.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Literal

import torch
from torch import Tensor

from tinyvae.models.output import LatentTerm, VAEOutput

Estimator = Literal["pathwise", "stl", "dreg"]
Baseline = Literal["vimco", "leave_one_out"]
Value = Callable[[Tensor], Tensor]


def terms_without_rsample(record: VAEOutput) -> list[LatentTerm]:
    """Latents whose draws carry no gradients.

    Raises:
        ValueError: If a latent's draws carry some in a part of them.
    """
    terms = [term for term in record.latents if not term.posterior.has_rsample]
    for term in terms:
        if term.posterior.is_partly_reparameterized:
            raise ValueError(
                f"a part of latent {term.name!r} is reparameterized and a part is not, in one "
                "layer of several: give these layers of their own, or one VAE with a JointEncoder"
            )
    return terms


@dataclass(frozen=True)
class LogWeights:
    """Terms of the log weights of one pass, ``(K, B)`` each.

    Attributes:
        log_px: log p(x given z).
        kls: log q - log p of each latent.
        log_q: log q of the latents that are not reparameterized, None where there are none.
    """

    log_px: Tensor
    kls: list[Tensor]
    log_q: Tensor | None

    @classmethod
    def of(cls, record: VAEOutput) -> "LogWeights":
        """Read them off a record."""
        names = [term.name for term in terms_without_rsample(record)]
        kls, own = [], []
        for term in record.latents:
            log_q = term.log_q
            kls.append(log_q - term.log_p)
            if term.name in names:
                own.append(log_q)
        return cls(record.log_px, kls, reduce(torch.add, own) if own else None)

    @property
    def kl(self) -> Tensor:
        """Log q - log p, summed over the latents."""
        return reduce(torch.add, self.kls)


def score_surrogate(value: Value, log_weight: Tensor, log_q: Tensor, baseline: Baseline) -> Tensor:
    """What has the gradient of draws that are not reparameterized, ``(..., B)``.

    Args:
        value: The bound, a function of log weights ``(K, ..., B)``.
        log_weight: Log weights.
        log_q: Their draws' log mass, with gradients.
        baseline: What the bound is compared with.
    """
    log_weight, num = log_weight.detach(), len(log_weight)
    if num < 2:
        raise ValueError(
            "draws that are not reparameterized are compared with each other: num_samples >= 2"
        )
    baselines = [value(_without(log_weight, k, baseline)) for k in range(num)]
    signal = value(log_weight) - torch.stack(baselines)  # (K, ..., B)
    return (signal * log_q).sum(0)


def _without(log_weight: Tensor, k: int, baseline: Baseline) -> Tensor:
    """Log weights that do not know draw ``k``."""
    others = torch.cat([log_weight[:k], log_weight[k + 1 :]])
    if baseline == "leave_one_out":
        return others
    return torch.cat([others, others.mean(0, keepdim=True)])


def path_surrogate(value: Tensor, record: VAEOutput) -> Tensor:
    r"""What has the gradient of ``value``, 0-d, that passes through reparameterized draws alone.

    Where a draw hangs on others, what passes through these is told from what passes through it:
    with :math:`d z_m / d z_l` the total derivative of a later draw, the part of its own is
    :math:`p_l = d v / d z_l - \sum_{m > l} (d z_m / d z_l)^\top p_m`.
    """
    place = {id(draw): place for place, draw in enumerate(record.draws)}
    terms = sorted(record.latents, key=lambda term: place.get(id(term.z), 0))
    draws = [term.z for term in terms if term.posterior.has_rsample and term.z.requires_grad]
    if not draws:
        return value.new_zeros(())
    parts = list(torch.autograd.grad(value, draws, retain_graph=True))
    for at in reversed(range(len(draws) - 1)):
        (through,) = torch.autograd.grad(
            draws[at + 1 :], draws[at], parts[at + 1 :], retain_graph=True, allow_unused=True
        )
        parts[at] = parts[at] if through is None else parts[at] - through
    surrogates = [(part * draw).sum() for part, draw in zip(parts, draws, strict=True)]
    return torch.stack(surrogates).sum()
