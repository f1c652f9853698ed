"""Contract of an objective: losses, gradients, metrics, bounds and schedules."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tinyvae.core.objective import Batch, Objective, ObjectiveOutput
from tinyvae.core.random import forked_rng, rng_state, seed_rng, set_rng_state
from tinyvae.encoders import GaussianEncoder
from tinyvae.likelihoods import GaussianLikelihood
from tinyvae.models import VAE
from tinyvae.schedules import ScheduledWeight
from tinyvae.testing.contract import require, require_close

IN_NATS = ("elbo", "iwae", "log_likelihood", "log_weight", "kl", "bound")
NUM_SEEDS = 100
STANDARD_ERRORS = 5.0


def check_objective(
    objective: Objective, model: nn.Module, batch: Batch, *, exact: bool = True, seed: int = 0
) -> None:
    """Raise if an objective breaks its contract.

    The checks are: one finite 0-d loss per parameter group; metrics that are detached, finite, 0-d
    and have their unit in their name; a loss that is the mean over examples, by their weights,
    unless ``couples_batch`` is True; float32 against float64; gradients that reach each group and
    never go from a loss of the model to the objective's own parameters or back; a ``check`` that
    changes nothing; schedules that are set, saved and loaded; ``repr`` and ``copy.deepcopy``.

    If ``is_bound`` is True for a linear-Gaussian model, the expectation of the bound is compared
    with the exact log evidence: equal at the exact posterior, smaller at other posteriors.

    The checks use copies. The global random state does not change.

    Args:
        objective: The objective.
        model: A model that fits the objective, in float64.
        batch: At least four examples in float64.
        exact: True to compare with the exact evidence. Set False if the objective cannot use a
            model with one Gaussian latent ``"z"`` of two dimensions and data ``(5,)``.
        seed: Seed of the random numbers.

    Raises:
        ContractError: If it breaks the contract. The message names the first fault.

    Example:
        >>> check_objective(IWAE(3), vae.double(), Batch(x.double()))
    """
    name = type(objective).__name__
    require(len(batch) >= 4, f"check_objective expects at least 4 examples, got {len(batch)}")
    objective, model = copy.deepcopy(objective), copy.deepcopy(model)
    with forked_rng(batch.x.device, seed):
        _check_no_trace(name, objective, model, batch)
        objective.set_step(0, 10)
        _check_output(name, objective, model, batch)
        _check_gradients(name, objective, model, batch)
        _check_dtypes(name, objective, model, batch, seed)
        if not objective.couples_batch:
            _check_mean(name, objective, model, batch)
            _check_weight(name, objective, model, batch)
        if exact:
            _check_bound(name, objective)
        _check_schedules(name, objective, model, batch, seed)
        require(" object at 0x" not in repr(objective), f"{name}: repr shows an address")
        same = repr(copy.deepcopy(objective)) == repr(objective)
        require(same, f"{name}: a copy has another repr")


def _check_no_trace(name: str, objective: Objective, model: nn.Module, batch: Batch) -> None:
    """Raise if ``check`` changes weights, buffers, modes, gradients or random state."""
    model.train()
    objective.train()
    modules = nn.ModuleList([model, objective])
    state = {key: value.clone() for key, value in modules.state_dict().items()}
    rng_state = torch.get_rng_state()
    description = objective.check(model, batch)
    require(isinstance(description, str) and description != "", f"{name}: check describes nothing")
    require(torch.equal(torch.get_rng_state(), rng_state), f"{name}: check changes random state")
    for key, value in modules.state_dict().items():
        require(torch.equal(value, state[key]), f"{name}: check changes {key}")
    require(all(m.training for m in modules.modules()), f"{name}: check changes the mode")
    no_grads = all(p.grad is None for p in modules.parameters())
    require(no_grads, f"{name}: check leaves gradients")


def _check_output(name: str, objective: Objective, model: nn.Module, batch: Batch) -> None:
    """Raise unless losses and metrics are finite scalars with proper names."""
    groups = objective.parameter_groups(model)
    with torch.no_grad():
        validation: ObjectiveOutput = objective(model, batch)
    output: ObjectiveOutput = objective(model, batch)
    for result in (output, validation):
        require(
            result.losses.keys() == groups.keys(),
            f"{name}: expected a loss for each of {list(groups)}, got {list(result.losses)}",
        )
        for key, value in (*result.losses.items(), *result.metrics.items()):
            require(value.shape == (), f"{name}: {key} has shape {tuple(value.shape)}, expected ()")
            require(value.isfinite(), f"{name}: {key} is {value.item()}")
    weights = {key.rpartition(".")[2] for key, _ in _scheduled_weights(objective)}
    for key, value in output.metrics.items():
        require(not value.requires_grad, f"{name}: metric {key} is not detached")
        in_nats = any(word in key.split("_") or key.startswith(word) for word in IN_NATS)
        is_weight = any(key.endswith(weight) for weight in weights)
        has_unit = key.endswith("_nats") or is_weight or not in_nats
        require(has_unit, f"{name}: metric {key} lacks its unit, _nats")


def _check_gradients(name: str, objective: Objective, model: nn.Module, batch: Batch) -> None:
    """Raise unless each loss reaches its group, and model and objective train separately."""
    groups = objective.parameter_groups(model)
    parameters = [p for group in groups.values() for p in group]
    require(len({id(p) for p in parameters}) == len(parameters), f"{name}: groups share parameters")
    owned_by_objective = {id(p) for p in objective.parameters()}
    losses = objective(model, batch).losses
    for key, loss in losses.items():
        gradients = torch.autograd.grad(
            loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        by_id = {id(p): g for p, g in zip(parameters, gradients, strict=True)}
        of_group = [by_id[id(p)] for p in groups[key]]
        require(all(g.isfinite().all() for g in of_group), f"{name}: loss {key} has bad gradients")
        require(any(g.any() for g in of_group), f"{name}: loss {key} does not reach its parameters")
        is_of_objective = id(groups[key][0]) in owned_by_objective
        others = [p for p in parameters if (id(p) in owned_by_objective) != is_of_objective]
        leaks = any(by_id[id(p)].any() for p in others)
        other = "model's" if is_of_objective else "objective's"
        require(not leaks, f"{name}: loss {key} has gradients in the {other} parameters")


class _Float32Noise(TorchDispatchMode):
    """Mode that draws float64 random numbers as float32 ones of the same seed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        if kwargs.get("dtype") is torch.float64:
            return func(*args, **{**kwargs, "dtype": torch.float32}).double()
        if not args or not isinstance(args[0], Tensor) or args[0].dtype != torch.float64:
            return func(*args, **kwargs)
        result = func(args[0].float(), *args[1:], **kwargs)
        if func._schema.is_mutable:
            return args[0].copy_(result)
        return result.double() if result.is_floating_point() else result


def _check_dtypes(
    name: str, objective: Objective, model: nn.Module, batch: Batch, seed: int
) -> None:
    """Raise unless float32 and float64 give the same losses, in their own dtype."""
    single = (copy.deepcopy(objective).float(), copy.deepcopy(model).float())
    context = batch.context
    if context is not None and context.is_floating_point():
        context = context.float()
    x = batch.x.float() if batch.x.is_floating_point() else batch.x
    seed_rng(batch.x.device, seed)
    got = single[0](single[1], replace(batch, x=x, context=context)).losses
    seed_rng(batch.x.device, seed)
    with _Float32Noise():
        expected = objective(model, batch).losses
    for key, loss in expected.items():
        require(
            loss.dtype == torch.float64, f"{name}: loss {key} of a float64 model is {loss.dtype}"
        )
        dtype = got[key].dtype
        require(dtype == torch.float32, f"{name}: loss {key} of a float32 model is {dtype}")
        require_close(got[key], loss, f"{name}: float32 loss {key}", tolerance=1e-4)


def _check_mean(name: str, objective: Objective, model: nn.Module, batch: Batch) -> None:
    """Raise unless the expected loss of a batch is the mean of those of its parts."""
    size = len(batch)
    first = batch.first(size // 3)
    second = batch.part(slice(len(first), None))

    def difference() -> Tensor:
        loss, a, b = (objective(model, part).losses for part in (batch, first, second))
        shares = (len(first) / size, len(second) / size)
        return torch.stack([loss[n] - (shares[0] * a[n] + shares[1] * b[n]) for n in loss])

    mean, error = _mean_and_error(difference)
    excess = (mean.abs() - STANDARD_ERRORS * error).max().item()
    require(
        excess <= 1e-9,
        f"{name}: the loss of a batch differs from the mean of its parts by {mean.tolist()}: set "
        "couples_batch",
    )


def _check_weight(name: str, objective: Objective, model: nn.Module, batch: Batch) -> None:
    """Raise unless examples of weight 0 have no effect on the expected loss."""
    num, device = len(batch) // 2, batch.x.device
    weight = torch.ones(len(batch), dtype=batch.x.dtype, device=device)
    weight[:num] = 0
    batch = replace(batch, weight=weight)
    other = replace(batch, x=torch.cat([batch.x[-num:], batch.x[num:]]))

    def difference() -> Tensor:
        noise = rng_state(device)
        loss = objective(model, batch).losses
        set_rng_state(device, noise)
        expected = objective(model, other).losses
        return torch.stack([loss[n] - expected[n] for n in loss])

    mean, error = _mean_and_error(difference)
    excess = (mean.abs() - STANDARD_ERRORS * error).max().item()
    require(
        excess <= 1e-9,
        f"{name}: examples of weight 0 change the loss by {mean.tolist()}: take means over the "
        "examples by batch.mean(values)",
    )


def _mean_and_error(sample: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """Return the mean of independent samples, and its standard error."""
    with torch.no_grad():
        values = torch.stack([sample() for _ in range(NUM_SEEDS)])
    return values.mean(0), values.std(0) / NUM_SEEDS**0.5


def _linear_gaussian(
    shift: float = 0.0, scale: float = 1.0
) -> tuple[VAE, Callable[[Tensor], Tensor]]:
    """Return a linear-Gaussian VAE in float64, and its exact log evidence.

    z ~ N(0, I), x given z ~ N(W z, 0.7^2 I), with orthogonal columns of W, so that the posterior is
    diagonal. ``shift`` is added to its mean, and ``scale`` multiplies its standard deviation. The
    default posterior is exact.
    """
    std = 0.7
    weight = torch.linalg.qr(torch.randn(5, 2, dtype=torch.float64)).Q * 1.3
    precision = 1 + weight.square().sum(0) / std**2
    gain = weight.T / (std**2 * precision[:, None])  # (2, 5)
    encoder = GaussianEncoder(nn.Identity(), 2, features=5).double()
    decoder = nn.Linear(2, 5).double()
    with torch.no_grad():
        log_std = -0.5 * precision.log() + torch.tensor(scale).log()
        head_weight, head_bias = encoder.head.parameters()
        head_weight.copy_(torch.cat([gain, torch.zeros_like(gain)]))
        head_bias.copy_(torch.cat([torch.full_like(log_std, shift), log_std]))
        decoder.weight.copy_(weight)
        decoder.bias.zero_()
    covariance = weight @ weight.T + std**2 * torch.eye(5, dtype=torch.float64)
    mean = torch.zeros(5, dtype=torch.float64)
    evidence = torch.distributions.MultivariateNormal(mean, covariance)
    return VAE(encoder, decoder, GaussianLikelihood(std)).double(), evidence.log_prob


def _check_bound(name: str, objective: Objective) -> None:
    """Raise unless a bound is the log evidence at the exact posterior, and below it elsewhere."""
    x = torch.randn(16, 5, dtype=torch.float64)
    for shift, scale in ((0.0, 1.0), (0.5, 1.0), (0.0, 0.6), (-0.3, 1.5)):
        vae, log_evidence = _linear_gaussian(shift, scale)
        if not objective.is_bound(vae):
            return
        expected = log_evidence(x).mean()

        def bounds(vae: VAE = vae) -> Tensor:
            return -torch.stack([*objective(vae, Batch(x)).losses.values()])

        mean, error = _mean_and_error(bounds)
        excess, tolerance = mean - expected, STANDARD_ERRORS * error + 1e-9
        got = f"{expected:.6f}, the log evidence, got {mean.tolist()}"
        if (shift, scale) == (0.0, 1.0):
            is_exact = (excess.abs() <= tolerance).all()
            require(is_exact, f"{name} at the exact posterior: expected {got}")
        else:
            require((excess < tolerance).all(), f"{name}: expected a bound below {got}")


def _scheduled_weights(objective: Objective) -> Iterator[tuple[str, ScheduledWeight]]:
    for name, module in objective.named_modules():
        if isinstance(module, ScheduledWeight):
            yield name, module


def _check_schedules(
    name: str, objective: Objective, model: nn.Module, batch: Batch, seed: int
) -> None:
    """Raise unless weights follow their schedules and a state dict restores them."""
    objective.reset_schedules()
    objective.set_step(3, 10)
    for key, weight in _scheduled_weights(objective):
        expected = torch.tensor(weight.schedule(3, 10), dtype=weight.value.dtype)
        require_close(weight.value, expected, f"{name}: weight {key} at step 3 of 10")
    restored = copy.deepcopy(objective)
    restored.set_step(9, 10)
    restored.load_state_dict(objective.state_dict())
    losses = []
    for part in (objective, restored):
        seed_rng(batch.x.device, seed)
        losses.append(part.eval()(model, batch).losses)
    for key, loss in losses[0].items():
        require_close(losses[1][key], loss, f"{name}: loss {key} after load_state_dict")
