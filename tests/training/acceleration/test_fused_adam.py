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
    """Parameters in two groups of torch's, and their optimizer."""
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in SHAPES]
    groups = [{"params": parameters[:3]}, {"params": parameters[3:], "lr": 3e-3}]
    return parameters, optimizer(groups, **{"lr": 1e-2, **options})


def give_gradients(parameters, step, missing=()):
    generator = torch.Generator().manual_seed(step)
    for place, parameter in enumerate(parameters):
        gradient = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        parameter.grad = None if place in missing else gradient


def assert_same(one, other):
    """Bitwise the same parameters and states."""
    for p, q in zip(one[0], other[0], strict=True):
        assert torch.equal(p, q)
        state, expected = one[1].state[p], other[1].state[q]
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], expected[name]) for name in expected)


def both(optimizer, between=lambda *_: None, steps=20, missing=None, **options):
    """Run torch's steps and the lean ones side by side; return the latter."""
    lean, plain = make(optimizer, **options), make(optimizer, **options)
    step_lean = make_step(lean[1])
    assert isinstance(step_lean, DirectFusedAdam)
    for step in range(steps):
        for made, advance in ((lean, step_lean), (plain, plain[1].step)):
            give_gradients(made[0], step, (missing or {}).get(step, ()))
            advance()
            between(step, made)
        assert_same(lean, plain)
    return lean


@pytest.mark.parametrize("optimizer", [Adam, AdamW])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_numbers_are_torchs_bitwise(optimizer, options, dtype):
    both(partial(optimizer, fused=True), dtype=dtype, **options)


def test_the_kernel_is_called_directly_from_the_second_step_on(monkeypatch):
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
def test_schedulers_are_followed(scheduler):
    schedulers = {}

    def between(_step, made):
        if made[1] in schedulers:
            schedulers[made[1]].step()
        else:
            schedulers[made[1]] = scheduler(made[1])

    both(partial(Adam, fused=True), between)


def test_missing_gradients_leave_their_parameters():
    both(partial(Adam, fused=True), missing={0: (1,), 4: (0, 3), 9: range(5)})


def test_a_state_that_is_loaded_is_used():
    def between(step, made):
        if step % 4 == 3:
            made[1].load_state_dict(copy.deepcopy(made[1].state_dict()))

    both(partial(Adam, fused=True), between)


def test_a_group_that_is_added_is_trained():
    def between(step, made):
        if step == 5:
            made[0].append(nn.Parameter(torch.ones(3)))
            made[1].add_param_group({"params": made[0][-1:]})

    both(partial(Adam, fused=True), between)


def test_torchs_own_steps_in_between_count():
    def between(step, made):
        if step in (3, 11):
            made[1].step()

    both(partial(Adam, fused=True), between)


@pytest.mark.parametrize("kind", ["pre", "post", "global"])
def test_hooks_are_called(kind):
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


def test_a_flag_is_heeded():
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
def test_others_are_left_alone(optimizer):
    _, made = make(optimizer)
    assert make_step(made) == made.step


def test_several_dtypes_are_left_to_torch():
    parameters = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2).double())]
    optimizer = Adam(parameters, fused=True)
    assert make_step(optimizer) == optimizer.step
