"""The contract of a likelihood."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tinyvae.core.random import forked_rng
from tinyvae.distributions import Distribution
from tinyvae.errors import CheckpointError
from tinyvae.likelihoods import Likelihood, MaskedLikelihood
from tinyvae.models.serialization import build_part, describe_part
from tinyvae.testing.contract import ContractError, require, require_close
from tinyvae.testing.marginals import Marginal, Rows, chi_squared

BATCH = 5
LEAST_P_VALUE = 1e-4


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
    """Hold a likelihood against its contract.

    Shapes for 1 and 3 draws and a batch of 1; float32 against float64; permute_dims, chunked and
    strided batches; gradients (``torch.autograd.gradcheck``) in the decoder's and the likelihood's
    own parameters; mass or density that sums or integrates to one; draws that agree with
    ``log_prob`` and ``mean``; a support that holds the draws and refuses NaN; missing entries that
    count nothing under :class:`~tinyvae.likelihoods.MaskedLikelihood`, which refuses one that is not ``separable``; a
    description from which an equal likelihood is built. One that says that it is no density owes no
    mass, and its draws owe ``log_prob`` nothing. Evaluated on a copy, in evaluation mode; global
    random state is left as found.

    Args:
        likelihood: The likelihood.
        data_shape: Shape ``E`` of one datum. Small: every dimension is integrated over.
        context: What it is conditioned on, if it reads one, with at least 5 rows.
        values: All possible data ``(V, *E)``, for a likelihood whose dimensions depend on each
            other: their masses are summed instead.
        spread: Standard deviation of the decoder's output that is tried. Smaller, where a density
            has more of its mass at an edge than floating-point numbers can tell from it.
        num_draws: Draws that are compared with ``log_prob``.
        seed: Seed of parameters and draws.

    Raises:
        ContractError: If it breaks the contract, with the first thing that is wrong.

    Example:
        >>> from tinyvae.testing import check_likelihood
        >>> check_likelihood(GaussianLikelihood("predicted"))
        >>> class Sloppy(GaussianLikelihood):
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
            values,
            spread,
            num_draws,
        )
        for check in _CHECKS:
            check(case)


@dataclass(frozen=True)
class _Case:
    likelihood: Likelihood
    data_shape: torch.Size
    context: Tensor | None
    values: Tensor | None
    spread: float
    num_draws: int

    def params(self, *batch: int) -> Tensor:
        shape = (*batch, *self.likelihood.param_shape(self.data_shape))
        return self.spread * torch.randn(shape, dtype=torch.float64)

    def make(
        self,
        params: Tensor,
        likelihood: Likelihood | None = None,
        rows: slice | Tensor = slice(None),
    ) -> Distribution:
        likelihood = self.likelihood if likelihood is None else likelihood
        context = None if self.context is None else self.context[rows]
        distribution: Distribution = likelihood(params, len(self.data_shape), context)
        return distribution

    def single(self) -> Distribution:
        """One distribution, ``batch_shape = (1,)``, without gradients."""
        with torch.no_grad():
            return self.make(self.params(1), rows=slice(1))


def _check_shapes(case: _Case) -> None:
    for draws, batch in ((1, BATCH), (3, BATCH), (3, 1)):
        p = case.make(case.params(draws, batch), rows=slice(batch))
        require(
            (p.batch_shape, p.event_shape) == ((draws, batch), case.data_shape),
            f"expected batch_shape {(draws, batch)} and event_shape {tuple(case.data_shape)}, "
            f"got {p}",
        )
        require(
            case.likelihood.is_density == p.is_density,
            f"is_density: the likelihood's is {case.likelihood.is_density}, of what it returns "
            f"{p.is_density}",
        )
        x = p.sample()[0]
        for name, value in (
            ("sample()", p.sample()),
            ("mean", p.mean),
            ("point_estimate()", p.point_estimate()),
        ):
            expected = torch.Size((draws, batch, *case.data_shape))
            require(
                value.shape == expected,
                f"{name}: expected shape {tuple(expected)}, got {tuple(value.shape)}",
            )
        log_prob = p.log_prob(x)
        require(
            log_prob.shape == (draws, batch),
            f"log_prob: expected shape {(draws, batch)}, got {tuple(log_prob.shape)}",
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
        isinstance(case.likelihood, MaskedLikelihood), "in_support: NaN has no density, got true"
    )


def _check_encoder_input(case: _Case) -> None:
    x = case.make(case.params(BATCH)).sample()
    fed = case.likelihood.encoder_input(x)
    expected = (BATCH, *case.likelihood.input_shape(case.data_shape))
    require(
        fed.shape == expected,
        f"encoder_input: expected (B, *input_shape) = {expected}, got {tuple(fed.shape)}",
    )
    require(torch.isfinite(fed).all(), "encoder_input: of the likelihood's draws not finite")


def _check_batches(case: _Case) -> None:
    params = case.params(2, BATCH)
    x = case.make(params).sample()[0]
    whole = case.make(params).log_prob(x)
    order = torch.randperm(BATCH)
    permute_dims = case.make(params[:, order], rows=order).log_prob(x[order])
    require_close(permute_dims, whole[:, order], "log_prob of a permute_dims batch")
    parts = [slice(0, 2), slice(2, BATCH)]
    chunks = [case.make(params[:, part], rows=part).log_prob(x[part]) for part in parts]
    require_close(torch.cat(chunks, 1), whole, "log_prob of a batch in two chunks")
    strided = params.transpose(0, -1).contiguous().transpose(0, -1)
    x_strided = x.transpose(0, -1).contiguous().transpose(0, -1)
    require_close(case.make(strided).log_prob(x_strided), whole, "log_prob of strided tensors")


def _check_precision(case: _Case) -> None:
    params = case.params(2, BATCH).float()
    p = case.make(params, copy.deepcopy(case.likelihood).float())
    x = p.sample()[0]
    exact = case.make(params.double()).log_prob(x.double())
    for name, value in (("log_prob", p.log_prob(x)), ("sample()", p.sample()), ("mean", p.mean)):
        require(value.dtype == torch.float32, f"{name}: expected float32, got {value.dtype}")
    require_close(p.log_prob(x), exact, "log_prob in float32", 1e-5)


def _check_gradients(case: _Case) -> None:
    params = case.params(2, BATCH).requires_grad_()
    x = case.make(params.detach()).sample()[0]
    names = [name for name, p in case.likelihood.named_parameters() if p.requires_grad]
    own = [case.likelihood.get_parameter(name).detach().requires_grad_() for name in names]

    def log_prob(params: Tensor, *own: Tensor) -> Tensor:
        state = dict(zip(names, own, strict=True))
        arguments = (params, len(case.data_shape), case.context)
        p: Distribution = torch.func.functional_call(case.likelihood, state, arguments)
        return p.log_prob(x)

    try:
        torch.autograd.gradcheck(log_prob, (params, *own))
    except RuntimeError as error:
        raise ContractError(f"log_prob: gradients disagree with differences: {error}") from error
    log_prob(params, *own).sum().backward()
    for name, tensor in zip(["the decoder's output", *names], [params, *own], strict=True):
        reached = tensor.grad is not None and bool((tensor.grad != 0).any())
        require(reached, f"log_prob: no gradient reaches {name}")


def _check_description(case: _Case) -> None:
    classes = {type(module) for module in case.likelihood.modules()}
    try:
        twin = build_part(describe_part(case.likelihood), classes).double().eval()
    except (CheckpointError, TypeError) as error:
        raise ContractError(f"config(): a file cannot describe it: {error}") from error
    twin.load_state_dict(case.likelihood.state_dict())
    params = case.params(2, BATCH)
    x = case.make(params).sample()[0]
    same = torch.equal(case.make(params, twin).log_prob(x), case.make(params).log_prob(x))
    require(same, "config(): the likelihood that it builds has another log_prob")
    require(repr(twin) == repr(case.likelihood), f"repr: {case.likelihood} comes back as {twin}")


def _check_missing(case: _Case) -> None:
    if case.values is not None or case.likelihood.couples_batch or not case.likelihood.separable:
        return
    params = case.params(1, BATCH).requires_grad_()
    masked = MaskedLikelihood(case.likelihood).double().eval()
    x = case.make(params.detach()).sample()[0]
    flat = x.flatten(1)
    whole = case.make(params, masked).log_prob(x)
    flat[:, 0] = math.nan
    seen = case.make(params, masked).log_prob(flat.reshape(x.shape))
    flat[:] = math.nan
    none = case.make(params, masked).log_prob(flat.reshape(x.shape))
    require(
        (none == 0).all(),
        "MaskedLikelihood: log_prob of nothing should be 0: is `inside` in support?",
    )
    (gradient,) = torch.autograd.grad((whole - seen).sum(), params)
    require(
        torch.isfinite(gradient).all(), "MaskedLikelihood: a gradient is not finite: see `inside`"
    )


def _check_mass(case: _Case) -> None:
    """The product of the dimensions' total masses, or the sum over all values, is one."""
    if not case.likelihood.is_density:
        return
    p = case.single()
    if case.values is not None:
        log_total = torch.logsumexp(p.log_prob(case.values.double().unsqueeze(1)), 0).item()
        total = math.exp(log_total)
    else:
        rows = Rows.around_center(p, case.likelihood, case.num_draws)
        logs = [Marginal.of(i, rows).log_total for i in range(case.data_shape.numel())]
        total = math.exp(rows.log_reference.item() + sum(logs))
    require(abs(total - 1) < 1e-5, f"total mass: expected 1, got {total:.7g}")


def _check_draws(case: _Case) -> None:
    if not case.likelihood.is_density:
        return
    p = case.single()
    if case.values is not None:
        _check_enumerated_draws(case, p)
        return
    rows = Rows.around_center(p, case.likelihood, case.num_draws)
    threshold = LEAST_P_VALUE / case.data_shape.numel()
    for i in range(case.data_shape.numel()):
        draws = rows.draws[:, i].contiguous()
        p_value = Marginal.of(i, rows).p_value(draws)
        require(
            p_value > threshold,
            f"sample() does not agree with log_prob in dimension {i}: p = {p_value:.1e}",
        )
    _check_mean(rows.draws, p.mean.flatten())


def _check_enumerated_draws(case: _Case, p: Distribution) -> None:
    values = case.values.double()  # type: ignore[union-attr]
    draws = p.sample((case.num_draws,))[:, 0]
    hits = (draws.flatten(1).unsqueeze(1) == values.flatten(1)).all(2)  # (N, V)
    expected = p.log_prob(values.unsqueeze(1))[:, 0].exp() * case.num_draws
    p_value = chi_squared(hits.sum(0).double(), expected)
    require(p_value > LEAST_P_VALUE, f"sample() does not agree with log_prob: p = {p_value:.1e}")
    _check_mean(draws.flatten(1), p.mean.flatten())


def _check_mean(draws: Tensor, mean: Tensor) -> None:
    error = draws.std(0) / math.sqrt(len(draws))
    off = (draws.mean(0) - mean).abs() > 5 * error + 1e-12
    require(
        not (off & torch.isfinite(mean)).any(),
        f"mean: {mean.tolist()}, but draws have {draws.mean(0).tolist()} (error {error.tolist()})",
    )


_CHECKS: tuple[Callable[[_Case], None], ...] = (
    _check_shapes,
    _check_support,
    _check_encoder_input,
    _check_batches,
    _check_precision,
    _check_gradients,
    _check_description,
    _check_missing,
    _check_mass,
    _check_draws,
)
