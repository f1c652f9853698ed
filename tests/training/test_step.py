"""The training step: the only code that changes weights, and the parameters of each loss."""

import inspect
import sys
from pathlib import Path

import pytest
import torch
from helpers.training import (
    BATCH_SIZE,
    DATA,
    STEPS,
    Adversarial,
    LeastSquares,
    make_linear,
    make_vae,
    run,
    same,
)
from torch.optim import SGD
from torch.optim.lr_scheduler import ExponentialLR

import tinyvae
from tinyvae import ELBO, Batch, Callback, Optimization, Trainer
from tinyvae.core import ObjectiveOutput
from tinyvae.core.random import epoch_order
from tinyvae.training.plan import RunPlan
from tinyvae.training.state import TrainState
from tinyvae.training.step import Gradients, TrainStep

PACKAGE = str(Path(tinyvae.__file__).parent)


def test_fit_calls_the_objective_within_six_frames():
    class Inspects(LeastSquares):
        def forward(self, model, batch):
            names, frame = ["forward"], sys._getframe().f_back
            while frame is not None:
                if frame.f_code.co_filename.startswith(PACKAGE):
                    names.append(frame.f_code.co_name)
                if frame.f_code is inspect.unwrap(Trainer.fit).__code__:
                    break
                frame = frame.f_back
            if model.training:
                stacks.append(names)
            return super().forward(model, batch)

    stacks = []
    run(make_linear(), Inspects(), DATA, DATA)
    assert len(stacks) == 2 * STEPS
    for names in stacks:
        assert names[-1] == "fit"
        assert len(names) <= 6, names


class Versions(Callback):
    """Copies the weights on both sides of each step, and wherever callbacks run."""

    def __init__(self, monkeypatch):
        self.log = []
        step = TrainStep.__call__

        def spy(train_step, batch):
            self.note("before", train_step.state)
            output = step(train_step, batch)
            self.note("after", train_step.state)
            return output

        monkeypatch.setattr(TrainStep, "__call__", spy)

    def note(self, event, state):
        parameters = [*state.model.parameters(), *state.objective.parameters()]
        self.log.append((event, [(p._version, p.detach().clone()) for p in parameters]))

    def on_fit_start(self, state):
        self.note("start", state)

    def on_step_end(self, state, output):
        self.note("step", state)

    def on_epoch_end(self, state, row):
        self.note("epoch", state)

    def on_fit_end(self, state):
        self.note("end", state)

    def changes(self):
        """Return the pairs of successive events between which a weight changed."""
        changed = []
        for (event, old), (next_event, new) in zip(self.log, self.log[1:], strict=False):
            pairs = zip(old, new, strict=True)
            if not all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in pairs):
                changed.append((event, next_event))
        return changed


class Nudges(Callback):
    """Adds nothing to a weight at the end of an epoch, which raises its version."""

    def on_epoch_end(self, state, row):
        with torch.no_grad():
            next(state.model.parameters()).add_(0.0)


def test_train_step_alone_changes_weights(monkeypatch):
    optimization = Optimization(clip_norm=1.0, scheduler=lambda o: ExponentialLR(o, 0.5))
    for make, objective, nudges in (
        (make_vae, ELBO, []),
        (make_linear, Adversarial, []),
        (make_linear, LeastSquares, [Nudges()]),
    ):
        with monkeypatch.context() as patch:
            versions = Versions(patch)
            options = {"optimization": optimization, "callbacks": [*nudges, versions]}
            run(make(), objective(), DATA, DATA, **options)
        changes = versions.changes()
        assert changes.count(("before", "after")) == 2 * STEPS
        others = [change for change in changes if change != ("before", "after")]
        assert others == [("step", "epoch")] * 2 if nudges else others == []


def make_step(objective, optimization):
    """Return a TrainStep of a linear model outside a Trainer."""
    state = TrainState(make_linear(), objective, torch.device("cpu"))
    state.plan = RunPlan(0, 1, 1, schedule_steps=10)
    state.make_optimizers(optimization)
    state.schedulers = optimization.make_schedulers(
        state.optimizers,
        epochs=1,
        steps_per_epoch=10,
        has_validation=False,
        objective=objective,
    )
    return TrainStep(state, optimization, Gradients(state.model, objective, state.groups))


def test_train_step_makes_one_update_and_leaves_no_gradient():
    sgd = Optimization(
        optimizer=lambda p: SGD(p, lr=0.1),
        scheduler=lambda o: ExponentialLR(o, 0.5),
        scheduler_interval="step",
    )
    step, batch = make_step(LeastSquares(), sgd), Batch(DATA[:BATCH_SIZE])
    model = make_linear()
    optimizer = SGD(model.parameters(), lr=0.1)
    for rate in (0.1, 0.05):
        loss = LeastSquares()(model, batch).losses["model"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        assert torch.equal(step(batch).losses["model"], loss)
        assert same(step.state.model, model)
        assert all(p.grad is None for p in step.state.model.parameters())
    assert step.state.step == 0  # the Trainer counts


def test_gradients_expects_a_loss_for_each_group():
    model = make_linear()
    gradients = Gradients(model, LeastSquares(), {"critic": list(model.parameters())})
    with pytest.raises(ValueError, match=r"groups \['critic'\], expected a loss .* \['model'\]"):
        gradients(Batch(DATA[:BATCH_SIZE]))


# Parameter groups --------------------------------------------------------------------------------


SGD_01 = Optimization(optimizer=lambda parameters: SGD(parameters, lr=0.1))


def test_parameter_groups_are_trained_by_their_own_loss():
    model, objective = make_linear(), Adversarial()
    for epoch in range(2):
        for index in epoch_order(len(DATA), 0, epoch).split(BATCH_SIZE):
            losses = objective(model, Batch(DATA[index])).losses
            model_parameters = list(model.parameters())
            critic_parameters = list(objective.critic.parameters())
            gradients = [
                *torch.autograd.grad(losses["model"], model_parameters, retain_graph=True),
                *torch.autograd.grad(losses["discriminator"], critic_parameters),
            ]
            with torch.no_grad():
                for p, g in zip(model_parameters + critic_parameters, gradients, strict=True):
                    p.add_(g, alpha=-0.1)

    trainer = run(make_linear(), Adversarial(), optimization=SGD_01)
    assert same(trainer.model, model)
    assert same(trainer.objective.critic, objective.critic)


def test_parameter_groups_have_columns_in_the_history():
    per_group = {
        "model": lambda p: SGD(p, lr=0.1),
        "discriminator": lambda p: SGD(p, lr=0.2),
    }
    trainer = run(make_linear(), Adversarial(), optimization=Optimization(optimizer=per_group))
    assert {"train/loss_model", "train/loss_discriminator"} < trainer.history.epochs[0].keys()
    assert trainer.history["learning_rate/model"] == [0.1, 0.1]
    assert trainer.history["learning_rate/discriminator"] == [0.2, 0.2]


def test_parameter_groups_need_a_loss_each():
    class OneLoss(Adversarial):
        def forward(self, model, batch):
            return ObjectiveOutput({"model": super().forward(model, batch).losses["model"]}, {})

    model = make_linear()
    with pytest.raises(ValueError, match=r"groups \['model', 'discriminator'\].*got \['model'\]"):
        run(model, OneLoss())
    assert same(model, make_linear())


def test_parameter_groups_may_not_share_a_parameter():
    class Twice(LeastSquares):
        def parameter_groups(self, model):
            return {"one": model.parameters(), "two": model.parameters()}

    with pytest.raises(ValueError, match="share 2 parameters"):
        run(make_linear(), Twice())


def test_parameter_groups_may_be_generators():
    class Lazy(LeastSquares):
        def parameter_groups(self, model):
            return {"model": model.parameters()}

    optimization = Optimization(clip_norm=1e-3)
    lazy = run(make_linear(), Lazy(), optimization=optimization)
    assert same(lazy.model, run(make_linear(), LeastSquares(), optimization=optimization).model)


def test_fit_leaves_no_gradients():
    class Part(LeastSquares):
        def parameter_groups(self, model):
            return {"model": [model.weight]}

    model = make_linear()
    run(model, Part())
    assert all(parameter.grad is None for parameter in model.parameters())
