r"""Gradient estimators. The value of the loss is the bound; an estimator determines its gradient.

A bound is a function :math:`F` of the log weights :math:`\ell_k = \log w_k` of the samples of one
example. With :math:`v_k = \partial F / \partial \ell_k` and
:math:`c_k = \partial^2 F / \partial \ell_k^2`, for reparameterized :math:`z_k`,

.. math:: \nabla_\phi\, \mathbb{E} F
    = \mathbb{E} \sum_k v_k \Big(\frac{\partial \ell_k}{\partial z_k} \nabla_\phi z_k
        - \nabla_\phi \log q_\phi(z_k \mid x)\Big)
    = \mathbb{E} \sum_k (v_k - c_k) \frac{\partial \ell_k}{\partial z_k} \nabla_\phi z_k.

The first form is the pathwise gradient. The second is the doubly reparameterized one (DReG): it
reparameterizes the score, the second term of the first form, once more. "Sticking the landing"
(STL) drops the score, which is unbiased if :math:`v_k` is constant, as in the ELBO. For samples
without a reparameterization the gradient is

.. math:: \mathbb{E} \sum_k (F - F_{-k}) \nabla_\phi \log q_\phi(z_k \mid x)
    + v_k \nabla_\phi \ell_k.

The baseline :math:`F_{-k}` depends only on the other samples. It is their bound, or the bound of
all samples with :math:`\ell_k` replaced by the mean of the others (VIMCO).

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
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from tinyvae.core.objective import Batch
from tinyvae.models.output import LatentTerm, VAEOutput

Estimator = Literal["pathwise", "stl", "dreg"]
Baseline = Literal["vimco", "leave_one_out"]
BoundFunction = Callable[[Tensor], Tensor]
Result = TypeVar("Result")


def terms_without_rsample(output: VAEOutput) -> list[LatentTerm]:
    """Return the latents whose samples carry no gradients.

    Raises:
        ValueError: If the samples of a latent carry gradients in some of their dimensions only.
    """
    terms = [term for term in output.latents if not term.posterior.has_rsample]
    for term in terms:
        if term.posterior.is_partly_reparameterized:
            raise ValueError(
                f"a layer of several expects a latent that is reparameterized as a whole or not at "
                f"all, got {term.name!r} with both parts: give each part its own layer, or use one "
                "VAE with a JointEncoder"
            )
    return terms


@dataclass(frozen=True)
class LogWeights:
    """Terms of the log weights of one pass, ``(K, B)`` each.

    Attributes:
        log_px: log p(x given z).
        kls: log q - log p of each latent.
        log_q: log q of the latents that are not reparameterized; None if all are.
    """

    log_px: Tensor
    kls: list[Tensor]
    log_q: Tensor | None

    @classmethod
    def of(cls, output: VAEOutput) -> "LogWeights":
        """Return the terms of a pass."""
        names = [term.name for term in terms_without_rsample(output)]
        kls, log_qs = [], []
        for term in output.latents:
            log_q = term.log_q
            kls.append(log_q - term.log_p)
            if term.name in names:
                log_qs.append(log_q)
        return cls(output.log_px, kls, reduce(torch.add, log_qs) if log_qs else None)

    @property
    def kl(self) -> Tensor:
        """Sum over the latents of log q - log p."""
        return reduce(torch.add, self.kls)


def score_surrogate(
    value: BoundFunction, log_weight: Tensor, log_q: Tensor, baseline: Baseline
) -> Tensor:
    """Return a tensor ``(..., B)`` with the score-function gradient of samples without rsample.

    ``value`` is the bound, a function of log weights ``(K, ..., B)``. ``log_q`` is the log
    probability of their samples, with gradients.
    """
    log_weight, num = log_weight.detach(), len(log_weight)
    if num < 2:
        raise ValueError(
            f"samples that are not reparameterized are compared with each other, got {num}: use "
            "num_samples >= 2"
        )
    baselines = [value(_without(log_weight, k, baseline)) for k in range(num)]
    signal = value(log_weight) - torch.stack(baselines)  # (K, ..., B)
    return (signal * log_q).sum(0)


def _without(log_weight: Tensor, k: int, baseline: Baseline) -> Tensor:
    """Return log weights that do not depend on sample ``k``."""
    others = torch.cat([log_weight[:k], log_weight[k + 1 :]])
    if baseline == "leave_one_out":
        return others
    return torch.cat([others, others.mean(0, keepdim=True)])


def path_surrogate(value: Tensor, output: VAEOutput) -> Tensor:
    r"""Return a 0-d tensor with the gradient of ``value`` through reparameterized samples only.

    If a sample depends on earlier ones, its partial derivative is separated from the total one:
    with :math:`d z_m / d z_l` the total derivative of a later sample, the partial derivative is
    :math:`p_l = d v / d z_l - \sum_{m > l} (d z_m / d z_l)^\top p_m`.
    """
    order = {id(sample): index for index, sample in enumerate(output.draws)}
    reparameterized = [term for term in output.latents if term.posterior.has_rsample]
    points = [term.z if term.point is None else term.point for term in reparameterized]
    samples = sorted((p for p in points if p.requires_grad), key=lambda p: order.get(id(p), 0))
    if not samples:
        return value.new_zeros(())
    partials = list(torch.autograd.grad(value, samples, retain_graph=True))
    for index in reversed(range(len(samples) - 1)):
        later = slice(index + 1, None)
        (through_later,) = torch.autograd.grad(
            samples[later], samples[index], partials[later], retain_graph=True, allow_unused=True
        )
        if through_later is not None:
            partials[index] = partials[index] - through_later
    surrogates = [(part * z).sum() for part, z in zip(partials, samples, strict=True)]
    return torch.stack(surrogates).sum()


def run_eagerly(
    run: Callable[[nn.Module, Batch], Result], model: nn.Module, batch: Batch
) -> Result:
    """Run outside of ``torch.compile``, whose graphs hide a part of the path to the samples."""
    if model._compiled_call_impl is not None:
        raise ValueError(
            "an objective that computes gradients in a pass (estimator='dreg', "
            "GradientPenaltyRegularizer) expects a model that is not compiled, got a compiled "
            "one: compile its encoder and decoder"
        )
    run = torch.compiler.disable(run) if torch.compiler.is_compiling() else run
    return run(model, batch)
