import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import OneCycleLR, StepLR
from torch.optim.optimizer import register_optimizer_step_post_hook

from tinyvae.training.acceleration.fused_adam import DirectFusedAdam, make_step

SHAPES = [(5, 3), (5,), (2, 5), (), (4, 1)]
OPTIONS = [{}, {"weight_decay": 0.1, "maximize": True}, {"betas": (0.5, 0.7), "eps": 1e-3}]


def make(optimizer, dtype=torch.float32, **options):
    """Return parameters in two of torch's groups, and their optimizer."""
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in SHAPES]
    groups = [{"params": parameters[:3]}, {"params": parameters[3:], "lr": 3e-3}]
    return parameters, optimizer(groups, **{"lr": 1e-2, **options})


def give_gradients(parameters, step, missing=()):
    generator = torch.Generator().manual_seed(step)
    for index, parameter in enumerate(parameters):
        gradient = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        parameter.grad = None if index in missing else gradient


def assert_same(one, other):
    """Assert bitwise equal parameters and states."""
    for p, q in zip(one[0], other[0], strict=True):
        assert torch.equal(p, q)
        state, expected = one[1].state[p], other[1].state[q]
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], expected[name]) for name in expected)


def both(optimizer, between=lambda *_: None, steps=20, missing=None, **options):
    """Run torch's step and the direct one side by side, and return the direct run."""
    direct, plain = make(optimizer, **options), make(optimizer, **options)
    step_direct = make_step(direct[1])
    assert isinstance(step_direct, DirectFusedAdam)
    for step in range(steps):
        for run, advance in ((direct, step_direct), (plain, plain[1].step)):
            give_gradients(run[0], step, (missing or {}).get(step, ()))
            advance()
            between(step, run)
        assert_same(direct, plain)
    return direct


@pytest.mark.parametrize("optimizer", [Adam, AdamW])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fused_adam_equals_torch_bitwise(optimizer, options, dtype):
    both(partial(optimizer, fused=True), dtype=dtype, **options)


def test_fused_adam_calls_the_kernel_from_the_second_step_on(monkeypatch):
    parameters, optimizer = make(Adam, fused=True)
    step, taken = make_step(optimizer), []
    monkeypatch.setattr(optimizer, "_optimizer_step_code", lambda: taken.append(1))
    for count in range(5):
        give_gradients(parameters, count)
        step()
    assert len(taken) == 1
    assert all(optimizer.state[p]["step"] == 5 for p in parameters)


@pytest.mark.parametrize(
    "scheduler",
    [lambda o: StepLR(o, 3), lambda o: OneCycleLR(o, [0.1, 0.2], total_steps=30)],  # and momentum
)
def test_fused_adam_follows_schedulers(scheduler):
    schedulers = {}

    def between(_step, run):
        if run[1] in schedulers:
            schedulers[run[1]].step()
        else:
            schedulers[run[1]] = scheduler(run[1])

    both(partial(Adam, fused=True), between)


def test_fused_adam_skips_parameters_without_gradient():
    both(partial(Adam, fused=True), missing={0: (1,), 4: (0, 3), 9: range(5)})


def test_fused_adam_uses_a_loaded_state():
    def between(step, run):
        if step % 4 == 3:
            run[1].load_state_dict(copy.deepcopy(run[1].state_dict()))

    both(partial(Adam, fused=True), between)


def test_fused_adam_trains_an_added_group():
    def between(step, run):
        if step == 5:
            run[0].append(nn.Parameter(torch.ones(3)))
            run[1].add_param_group({"params": run[0][-1:]})

    both(partial(Adam, fused=True), between)


def test_fused_adam_counts_steps_of_torch():
    def between(step, run):
        if step in (3, 11):
            run[1].step()

    both(partial(Adam, fused=True), between)


@pytest.mark.parametrize("kind", ["pre", "post", "global"])
def test_fused_adam_calls_hooks(kind):
    parameters, optimizer = make(Adam, fused=True)
    step, called = make_step(optimizer), []

    def hook(*_):
        called.append(1)

    for count in range(4):
        give_gradients(parameters, count)
        if count == 2:
            handle = {
                "pre": optimizer.register_step_pre_hook,
                "post": optimizer.register_step_post_hook,
                "global": register_optimizer_step_post_hook,
            }[kind](hook)
        step()
    handle.remove()
    assert len(called) == 2


def test_fused_adam_obeys_found_inf():
    parameters, optimizer = make(Adam, fused=True)
    step = make_step(optimizer)
    for count in range(3):
        give_gradients(parameters, count)
        if count == 2:
            before = [p.detach().clone() for p in parameters]
            optimizer.found_inf = torch.ones(())
        step()
    assert all(map(torch.equal, before, parameters))


class OwnAdam(Adam):
    pass


@pytest.mark.parametrize(
    "optimizer",
    [
        SGD,
        Adam,  # not fused
        OwnAdam,
        partial(OwnAdam, fused=True),
        partial(Adam, fused=True, amsgrad=True),
        partial(Adam, foreach=True),
    ],
)
def test_make_step_returns_the_step_of_other_optimizers(optimizer):
    _, instance = make(optimizer)
    assert make_step(instance) == instance.step


def test_make_step_returns_the_step_for_mixed_dtypes():
    parameters = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2).double())]
    optimizer = Adam(parameters, fused=True)
    assert make_step(optimizer) == optimizer.step
