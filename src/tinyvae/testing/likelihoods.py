"""Contract of a likelihood."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tinyvae.core.random import forked_rng
from tinyvae.distributions import Distribution
from tinyvae.likelihoods import Likelihood, MaskedLikelihood
from tinyvae.testing.contract import (
    ContractError,
    rebuilt,
    require,
    require_close,
    require_gradcheck,
    require_shape,
)
from tinyvae.testing.distributions import check_distribution, check_shapes

BATCH = 5


def check_likelihood(
    likelihood: Likelihood,
    data_shape: Sequence[int] = (3,),
    *,
    context: Tensor | None = None,
    values: Tensor | None = None,
    spread: float = 1.0,
    num_draws: int = 4000,
    seed: int = 0,
) -> None:
    """Raise if a likelihood breaks its contract.

    The checks are: shapes for 1 and 3 draws and a batch of 1; permuted, chunked and strided
    batches; dtypes and shapes of the encoder's input; a support that contains draws and rejects
    NaN; gradients in the decoder's output and in the likelihood's parameters; a description that
    builds an equal likelihood; missing entries under
    :class:`~tinyvae.likelihoods.MaskedLikelihood`, which contribute neither log density nor
    gradient, if ``factorizes`` is True; and :func:`check_distribution` for one datum, which covers
    total mass, mean, draws and float32. If ``is_density`` is False, mass and draws are not checked
    against ``log_prob``.

    The checks use a copy in evaluation mode. The global random state does not change.

    Args:
        likelihood: The likelihood.
        data_shape: Shape ``E`` of one datum. Keep it small: each dimension costs an integral.
        context: Condition of the likelihood, at least 5 rows, if it reads one.
        values: All possible data ``(V, *E)``, for a likelihood whose dimensions depend on each
            other. Their masses are summed instead.
        spread: Standard deviation of the decoder's output. Choose it smaller if a density has much
            of its mass so close to an edge that floating-point numbers cannot resolve it.
        num_draws: Number of draws that are compared with ``log_prob``.
        seed: Seed of parameters and draws.

    Raises:
        ContractError: If it breaks the contract. The message names the first fault.

    Example:
        >>> from tinyvae.testing import check_likelihood
        >>> check_likelihood(GaussianLikelihood("predicted"))
        >>> class Sloppy(Likelihood):
        ...     def elementwise(self, mean):
        ...         return Normal(mean, torch.zeros_like(mean))
        ...     def in_support(self, x):
        ...         return x > 0
        >>> check_likelihood(Sloppy())
        Traceback (most recent call last):
            ...
        tinyvae.testing.contract.ContractError: check_support refuses the likelihood's own...
    """
    with forked_rng(torch.device("cpu"), seed):
        case = _Case(
            copy.deepcopy(likelihood).double().eval(),
            torch.Size(data_shape),
            None if context is None else context[:BATCH],
            spread,
        )
        _check_shapes(case)
        _check_support(case)
        _check_encoder_input(case)
        _check_batches(case)
        _check_gradients(case)
        _check_description(case)
        if values is None and not likelihood.couples_batch and likelihood.factorizes:
            _check_missing(case)
        narrow = copy.deepcopy(case.likelihood).float()

        def make(params: Tensor) -> Distribution:
            return case.make(params, narrow if params.dtype == torch.float32 else None, slice(1))

        support = case.likelihood.in_support
        check_distribution(
            make, case.params(1), in_support=support, values=values, num_draws=num_draws, seed=seed
        )


@dataclass(frozen=True)
class _Case:
    likelihood: Likelihood
    data_shape: torch.Size
    context: Tensor | None
    spread: float

    def params(self, *batch: int) -> Tensor:
        """Return a random decoder output."""
        shape = (*batch, *self.likelihood.param_shape(self.data_shape))
        return self.spread * torch.randn(shape, dtype=torch.float64)

    def make(
        self,
        params: Tensor,
        likelihood: Likelihood | None = None,
        rows: slice | Tensor = slice(None),
    ) -> Distribution:
        """Return p(x given z) for some rows of the context."""
        likelihood = self.likelihood if likelihood is None else likelihood
        context = None if self.context is None else self.context[rows]
        distribution: Distribution = likelihood(params, len(self.data_shape), context)
        return distribution


def _check_shapes(case: _Case) -> None:
    for batch in ((1, BATCH), (3, BATCH), (3, 1)):
        p = case.make(case.params(*batch), rows=slice(batch[1]))
        check_shapes(p, (batch,), case.data_shape)
        require_shape("log_prob", p.log_prob(p.sample()[0]), batch)  # one x for several z
        require(
            case.likelihood.is_density == p.is_density,
            f"is_density: the likelihood's is {case.likelihood.is_density}, that of its "
            f"distribution {p.is_density}",
        )


def _check_support(case: _Case) -> None:
    x = case.make(case.params(BATCH)).sample()
    try:
        case.likelihood.check_support(x)
    except (TypeError, ValueError) as error:
        raise ContractError(f"check_support refuses the likelihood's own draws: {error}") from error
    x.flatten()[0] = math.nan
    try:
        Likelihood.check_support(case.likelihood, x)
    except ValueError:
        return
    require(
        isinstance(case.likelihood, MaskedLikelihood),
        "in_support: expected false for NaN, got true",
    )


def _check_encoder_input(case: _Case) -> None:
    x = case.make(case.params(BATCH)).sample()
    inputs = case.likelihood.encoder_input(x)
    expected = (BATCH, *case.likelihood.input_shape(case.data_shape))
    require_shape("encoder_input (input_shape)", inputs, expected)
    require(torch.isfinite(inputs).all(), "encoder_input: expected finite numbers for draws")
    dtype = copy.deepcopy(case.likelihood).float().encoder_input(x.float()).dtype
    require(dtype == torch.float32, f"encoder_input: expected torch.float32, got {dtype}")


def _check_batches(case: _Case) -> None:
    params = case.params(2, BATCH)
    x = case.make(params).sample()[0]
    log_prob = case.make(params).log_prob(x)
    order = torch.randperm(BATCH)
    permuted = case.make(params[:, order], rows=order).log_prob(x[order])
    require_close(permuted, log_prob[:, order], "log_prob of a permuted batch")
    parts = [slice(0, 2), slice(2, BATCH)]
    chunks = [case.make(params[:, part], rows=part).log_prob(x[part]) for part in parts]
    require_close(torch.cat(chunks, 1), log_prob, "log_prob of a batch in two chunks")
    strided = params.transpose(0, -1).contiguous().transpose(0, -1)
    x_strided = x.transpose(0, -1).contiguous().transpose(0, -1)
    require_close(case.make(strided).log_prob(x_strided), log_prob, "log_prob of strided tensors")


def _check_gradients(case: _Case) -> None:
    params = case.params(1, BATCH)
    x = case.make(params).sample()[0]
    # Without noise, a distance from a decoded image is zero, and so is its gradient.
    params = torch.cat([params, params + 0.1 * torch.randn_like(params)]).requires_grad_()
    names = [name for name, p in case.likelihood.named_parameters() if p.requires_grad]
    learned = [case.likelihood.get_parameter(name).detach().requires_grad_() for name in names]

    def log_prob(params: Tensor, *learned: Tensor) -> Tensor:
        state = dict(zip(names, learned, strict=True))
        arguments = (params, len(case.data_shape), case.context)
        p: Distribution = torch.func.functional_call(case.likelihood, state, arguments)
        return p.log_prob(x)

    require_gradcheck(log_prob, (params, *learned))
    log_prob(params, *learned).sum().backward()
    for name, tensor in zip(["the decoder's output", *names], [params, *learned], strict=True):
        reached = tensor.grad is not None and bool((tensor.grad != 0).any())
        require(reached, f"log_prob: no gradient reaches {name}")


def _check_description(case: _Case) -> None:
    twin = rebuilt(case.likelihood)
    params = case.params(2, BATCH)
    p, q = case.make(params), case.make(params, twin)
    x = p.sample()[0]
    same = torch.equal(q.log_prob(x), p.log_prob(x)) and torch.equal(q.mean, p.mean)
    same &= torch.equal(twin.encoder_input(x), case.likelihood.encoder_input(x))
    require(same, "config(): the rebuilt likelihood has another log_prob, mean or encoder_input")


def _check_missing(case: _Case) -> None:
    params = case.params(1, BATCH).requires_grad_()
    masked = MaskedLikelihood(case.likelihood).double().eval()
    x = case.make(params.detach()).sample()[0]
    flat = x.flatten(1)
    log_prob = case.make(params, masked).log_prob(x)
    flat[:, 0] = math.nan
    log_prob_of_rest = case.make(params, masked).log_prob(flat.reshape(x.shape))
    flat[:] = math.nan
    log_prob_of_none = case.make(params, masked).log_prob(flat.reshape(x.shape))
    require(
        (log_prob_of_none == 0).all(),
        "MaskedLikelihood: expected a log_prob of 0 if all entries are missing: is `fill_value` in "
        "the support?",
    )
    (gradient,) = torch.autograd.grad((log_prob - log_prob_of_rest).sum(), params)
    require(
        torch.isfinite(gradient).all(),
        "MaskedLikelihood: a gradient is not finite: see `fill_value`",
    )
