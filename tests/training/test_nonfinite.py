"""The guard against values that are not finite, which checks each step at once or later.

Fused optimizers on the CPU read the flag of :class:`NonFiniteGuard` as those on a GPU do.
"""

import contextlib
import gc
import itertools
import math
import os
import re
from pathlib import Path

import pytest
import torch
from helpers.cases import for_each
from helpers.training import (
    DATA,
    STEPS,
    Corner,
    LeastSquares,
    Recorder,
    make_linear,
    make_vae,
    rows,
    run,
    same,
)
from torch import nn
from torch.optim import SGD, Adadelta, Adagrad, Adam, AdamW, RAdam, RMSprop

import tinyvae.training.step
from tinyvae import (
    ELBO,
    MLP,
    VAE,
    Batch,
    Callback,
    Checkpoint,
    GaussianEncoder,
    GaussianLikelihood,
    Objective,
    Optimization,
    Trainer,
)
from tinyvae.core import ObjectiveOutput
from tinyvae.errors import NonFiniteError
from tinyvae.likelihoods import (
    DiscretizedLogisticLikelihood,
    MaskedLikelihood,
    PoissonLikelihood,
    StandardizedLikelihood,
)
from tinyvae.networks import ConcatContext
from tinyvae.objectives import AdversarialTotalCorrelationRegularizer, DIPRegularizer
from tinyvae.training.nonfinite import NonFiniteGuard
from tinyvae.training.step import clip_gradients

IS_SOAK = os.environ.get("HYPOTHESIS_PROFILE") == "soak"


@pytest.fixture
def deferred(monkeypatch):
    """Make the Trainer check losses later, as on a GPU. Return the list of its guards."""
    guards = []

    def make_guard(*arguments):
        guards.append(NonFiniteGuard(*arguments, waits=False))
        return guards[-1]

    monkeypatch.setattr(tinyvae.training.step, "NonFiniteGuard", make_guard)
    return guards


class Breaks(LeastSquares):
    """A loss that is NaN at one step, counted from 1."""

    def __init__(self, step, value=float("nan")):
        super().__init__()
        self.step, self.value, self.calls = step, value, 0

    def forward(self, model, batch):
        self.calls += 1
        output = super().forward(model, batch)
        bad = self.value if self.calls == self.step else 0.0
        return ObjectiveOutput({"model": output.losses["model"] + bad}, output.metrics)


class Groups(Objective):
    """Two layers, each with its own loss. The loss of ``bad`` is infinite at one step."""

    def __init__(self, bad=None, step=0):
        super().__init__()
        self.bad, self.step, self.calls = bad, step, 0

    def parameter_groups(self, model):
        return {"first": list(model[0].parameters()), "second": list(model[1].parameters())}

    def forward(self, model, batch):
        self.calls += 1
        out = model(batch.x)
        losses = {"first": (out - batch.x).square().mean(), "second": (out + batch.x).abs().mean()}
        if self.calls == self.step:
            losses[self.bad] = losses[self.bad] * float("inf")
        return ObjectiveOutput(losses, {"size": out.abs().mean().detach()})


class Moments(Callback):
    """Copies weights and the optimizers' state after every step."""

    def __init__(self):
        self.seen = []

    def on_step_end(self, state, output):
        weights = [p.detach().clone() for p in state.model.parameters()]
        moments = [
            state[name].clone()
            for optimizer in state.optimizers.values()
            for state in optimizer.state.values()
            for name in sorted(state)
        ]
        self.seen.append(weights + moments)


def make_two():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))


def equal(first, second):
    return len(first) == len(second) and all(map(torch.equal, first, second))


# Deferred checks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("step", [1, 2, STEPS + 3, 2 * STEPS])
def test_deferred_guard_takes_no_update_from_the_bad_step_on(deferred, step, value):
    moments, plain = Moments(), Moments()
    model = make_linear()
    with pytest.raises(NonFiniteError, match=rf"^step {step} \(epoch") as error:
        run(model, Breaks(step, value), callbacks=[moments])
    assert f"loss = {value}" in str(error.value)
    assert "error_nats" not in str(error.value)
    run(make_linear(), LeastSquares(), callbacks=[plain])
    end = STEPS * math.ceil(step / STEPS)
    assert len(moments.seen) == end
    for seen, expected in zip(moments.seen[: step - 1], plain.seen, strict=False):
        assert equal(seen, expected)
    if step > 1:
        for seen in moments.seen[step - 1 :]:
            assert equal(seen, plain.seen[step - 2])
    else:
        assert equal(moments.seen[-1][:2], list(make_linear().parameters()))
    assert not equal(plain.seen[-1], moments.seen[-1])


@pytest.mark.parametrize("step", [1, STEPS + 2])
def test_deferred_guard_names_a_gradient(deferred, step):
    plain = Moments()
    model = make_linear()
    with pytest.raises(NonFiniteError, match=rf"^step {step} .*: gradient of weight = nan"):
        run(model, Corner(step))
    run(make_linear(), LeastSquares(), callbacks=[plain])
    expected = plain.seen[step - 2][:2] if step > 1 else list(make_linear().parameters())
    assert equal(list(model.parameters()), expected)


@pytest.mark.parametrize("optimizer", [Adam, AdamW, SGD])
def test_deferred_guard_makes_fused_optimizers_skip_updates(deferred, optimizer):
    def factory(parameters):
        options = {"momentum": 0.9} if optimizer is SGD else {"weight_decay": 0.1}
        return optimizer(parameters, lr=0.01, fused=True, **options)

    moments, plain = Moments(), Moments()
    options = {"optimization": Optimization(optimizer=factory), "epochs": 1}
    with pytest.raises(NonFiniteError, match=r"^step 3 \(epoch 1\)"):
        run(make_linear(), Breaks(3), callbacks=[moments], **options)
    run(make_linear(), LeastSquares(), callbacks=[plain], **options)
    assert equal(moments.seen[-1], plain.seen[1])
    assert not deferred[0].waits


@pytest.mark.parametrize("bad", ["first", "second"])
def test_deferred_guard_stops_every_group_after_a_bad_loss(deferred, bad):
    moments, plain = Moments(), Moments()
    with pytest.raises(NonFiniteError, match=rf"^step 4 \(epoch 1\): loss_{bad} = inf\. "):
        run(make_two(), Groups(bad, step=4), callbacks=[moments])
    run(make_two(), Groups(), callbacks=[plain])
    assert equal(moments.seen[2], plain.seen[2])
    assert equal(moments.seen[-1], plain.seen[2])


def test_deferred_guard_raises_after_an_interval_at_the_latest(deferred):
    model, objective = make_linear(), Breaks(3)
    trainer = Trainer(model, objective, device="cpu", progress=False)
    with pytest.raises(NonFiniteError, match=r"^step 3 \(epoch 1\)"):
        trainer.fit(DATA.repeat(8, 1), epochs=1, batch_size=2)
    assert objective.calls == NonFiniteGuard.INTERVAL
    assert deferred[0].INTERVAL < 37 * 4


def test_deferred_guard_names_a_step_of_a_later_interval(deferred):
    step = 2 * NonFiniteGuard.INTERVAL + 5
    objective = Breaks(step)
    with pytest.raises(NonFiniteError, match=rf"^step {step} \(epoch 1\)"):
        run(make_linear(), objective, DATA.repeat(8, 1), fit={"batch_size": 2})
    assert objective.calls == 148  # of the epoch


def test_deferred_guard_names_the_first_of_many_bad_steps(deferred):
    class BreaksForGood(Breaks):
        def forward(self, model, batch):
            self.step = max(self.step, self.calls + 1)
            return super().forward(model, batch)

    with pytest.raises(NonFiniteError, match=r"^step 3 \(epoch 1\)"):
        run(make_linear(), BreaksForGood(3))


def test_deferred_guard_keeps_the_history_before_the_bad_step(deferred):
    trainer = Trainer(make_linear(), Breaks(STEPS + 2), device="cpu", progress=False)
    with pytest.raises(NonFiniteError, match=rf"^step {STEPS + 2} \(epoch 2\)"):
        trainer.fit(DATA, epochs=3, batch_size=8)
    plain = run(make_linear(), LeastSquares(), epochs=1)
    assert rows(trainer.history) == rows(plain.history)
    assert trainer.history.stop_reason.startswith("NonFiniteError: step 7")


def test_deferred_guard_allows_another_fit_after_the_error(deferred):
    model = make_linear()
    trainer = Trainer(model, Breaks(2), device="cpu", progress=False)
    with pytest.raises(NonFiniteError):
        trainer.fit(DATA, epochs=1, batch_size=8)
    before = [p.detach().clone() for p in model.parameters()]
    trainer.fit(DATA, epochs=1, batch_size=8)
    assert not equal(before, list(model.parameters()))
    assert len(deferred) == 2


def test_deferred_guard_leaves_no_flag_in_the_optimizers(deferred):
    model = make_linear()
    trainer = Trainer(model, Breaks(2), device="cpu", progress=False)
    with pytest.raises(NonFiniteError):
        trainer.fit(DATA, epochs=1, batch_size=8)
    before = [p.detach().clone() for p in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    (optimizer,) = trainer.state.optimizers.values()
    optimizer.step()
    assert not equal(before, list(model.parameters()))


def test_deferred_guard_does_not_change_a_finite_run(deferred):
    def adversarial():
        torch.manual_seed(3)
        return ELBO() + AdversarialTotalCorrelationRegularizer(MLP(2, (16,), 1), weight=2.0)

    for objective in (ELBO, adversarial):
        callbacks = [Recorder(), Recorder()]
        options = {"validation": DATA, "epochs": 3}
        later = run(make_vae(), objective(), callbacks=callbacks[:1], **options)
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(tinyvae.training.step, "NonFiniteGuard", NonFiniteGuard)
            plain = run(make_vae(), objective(), callbacks=callbacks[1:], **options)
        assert all(map(same, callbacks[0].weights, callbacks[1].weights))
        assert rows(later.history) == rows(plain.history)
    assert len(deferred) == 2
    assert not any(guard.waits for guard in deferred)


class LossyMetric(LeastSquares):
    """A metric that is always NaN, and whose name begins like that of a loss."""

    def forward(self, model, batch):
        loss = super().forward(model, batch).losses["model"]
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls == 3:
            loss = loss * float("nan")
        return ObjectiveOutput({"model": loss}, {"lossy_pixels": torch.tensor(float("nan"))})


def test_guard_ignores_a_metric_with_the_name_of_a_loss(deferred):
    with pytest.raises(NonFiniteError, match=r"^step 3 \(epoch 1\)"):
        run(make_linear(), LossyMetric())


def test_guard_accepts_metrics_that_are_nan(deferred):
    class NanMetric(LeastSquares):
        def forward(self, model, batch):
            losses = super().forward(model, batch).losses
            return ObjectiveOutput(losses, {"ratio": torch.tensor(float("nan"))})

    trainer = run(make_linear(), NanMetric())
    assert same(trainer.model, run(make_linear(), LeastSquares()).model)
    assert all(map(math.isnan, trainer.history["train/ratio"]))


def test_guard_leaves_metrics_that_are_not_tensors_to_the_history(deferred):
    class FloatMetric(LeastSquares):
        def forward(self, model, batch):
            return ObjectiveOutput(super().forward(model, batch).losses, {"ratio": 1.0})

    with pytest.raises(TypeError, match=r"must be 0-d tensors, got 1\.0 for 'ratio'"):
        run(make_linear(), FloatMetric())


# Immediate checks --------------------------------------------------------------------------------


def test_guard_waits_on_a_cpu():
    optimizers = {"model": Adam(make_linear().parameters(), fused=True)}
    assert NonFiniteGuard(optimizers).waits
    assert NonFiniteGuard(optimizers, waits=True).waits
    assert not NonFiniteGuard(optimizers, waits=False).waits


def test_guard_waits_on_a_device_unless_all_optimizers_are_fused(monkeypatch):
    for fused, obeys, waits in (
        ((True,), True, False),
        ((True,), False, True),
        ((False,), True, True),
        ((True, None), True, True),
    ):
        monkeypatch.setattr("tinyvae.training.nonfinite.obeys_found_inf", lambda _, o=obeys: o)
        optimizers = {}
        for index, value in enumerate(fused):
            parameter = nn.Parameter(torch.ones(2, device="meta"))
            optimizers[str(index)] = SGD([parameter], lr=0.1)
            optimizers[str(index)].param_groups[0]["fused"] = value
        assert NonFiniteGuard(optimizers).waits is waits


def test_guard_that_waits_does_not_take_the_bad_step():
    objective, model = Breaks(STEPS + 3), make_linear()
    recorder = Recorder()
    with pytest.raises(NonFiniteError, match=rf"^step {STEPS + 3} \(epoch 2\): loss = nan\. "):
        run(model, objective, callbacks=[recorder])
    assert objective.calls == STEPS + 3
    assert len(recorder.weights) == STEPS + 3
    assert same(model, recorder.weights[-1])


# Gradients whose squares overflow ----------------------------------------------------------------


class Steep(LeastSquares):
    """A finite loss whose slope in the first weight is huge at one step."""

    def __init__(self, step, slope=1e21):
        super().__init__()
        self.bad_step, self.slope = step, slope

    def set_step(self, step, total_steps):
        self.is_bad = step + 1 == self.bad_step

    def forward(self, model, batch):
        output = super().forward(model, batch)
        slope = self.slope if self.is_bad else 0.0
        weight = model.weight[0, 0]
        huge = slope * (weight - weight.detach())
        return ObjectiveOutput({"model": output.losses["model"] + huge}, output.metrics)


SQUARING = (Adam, AdamW, Adagrad, Adadelta, RMSprop, RAdam)


@pytest.mark.parametrize("optimizer", SQUARING)
@pytest.mark.parametrize("step", [1, STEPS + 2])
def test_gradient_whose_square_overflows_is_refused_at_its_step(optimizer, step):
    recorder, plain = Recorder(), Recorder()
    options = {"optimization": Optimization(optimizer=optimizer)}
    message = (
        rf"^step {step} .*: gradient of weight = 1e\+21, whose square overflows torch\.float32"
    )
    with pytest.raises(NonFiniteError, match=rf"{message}\. .*clip_norm"):
        run(model := make_linear(), Steep(step), callbacks=[recorder], **options)
    run(make_linear(), LeastSquares(), callbacks=[plain], **options)
    assert same(model, plain.weights[step - 1])


def test_deferred_guard_refuses_a_gradient_whose_square_overflows(deferred):
    moments, plain = Moments(), Moments()
    with pytest.raises(NonFiniteError, match=r"^step 3 .* weight = 1e\+21, whose square overflows"):
        run(make_linear(), Steep(3), callbacks=[moments])
    run(make_linear(), LeastSquares(), callbacks=[plain])
    assert equal(moments.seen[-1], plain.seen[1])


@pytest.mark.parametrize(
    ("dtype", "largest"),
    [(torch.float64, 1.3e154), (torch.bfloat16, 1.8e19), (torch.float16, 250.0)],
)
def test_largest_gradient_depends_on_the_dtype(dtype, largest):
    def make():
        return make_linear().to(dtype)

    run(make(), Steep(2, largest))
    with pytest.raises(NonFiniteError, match=rf"^step 2 .* weight = .* square overflows {dtype}"):
        run(make(), Steep(2, 1.1 * largest))
    # An update without squares may be as large as the dtype allows.
    still = Optimization(optimizer=lambda p: SGD(p, lr=0.0, momentum=0.9))
    run(make(), Steep(2, 1.1 * largest), optimization=still)


@pytest.mark.parametrize("waits", [True, False])
def test_clipping_scales_a_gradient_whose_square_overflows(waits, request):
    if not waits:
        request.getfixturevalue("deferred")
    moments = Moments()
    trainer = run(
        make_linear(), Steep(3), callbacks=[moments], optimization=Optimization(clip_norm=2.0)
    )
    assert trainer.step == 2 * STEPS
    (optimizer,) = trainer.state.optimizers.values()
    assert all(t.isfinite().all() for s in optimizer.state.values() for t in s.values())
    first, second = (seen[2] for seen in moments.seen[1:3])  # exp_avg of the weight
    gradient = (second - 0.9 * first) / 0.1
    expected = torch.zeros(4, 4)
    expected[0, 0] = 2.0
    assert torch.allclose(gradient, expected, atol=1e-5)


@for_each("scale", [1e-3, 1.0, 1e18, 1e25, 1e37])
def test_clip_gradients_equals_float64(scale):
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in ((3, 4), (5,), ())]
    for parameter in parameters:
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)
    exact = [p.grad.double() for p in parameters]
    norm = math.sqrt(sum(g.square().sum().item() for g in exact))
    clip_gradients([*parameters, nn.Parameter(torch.zeros(2))], max_norm=0.5)
    for parameter, gradient in zip(parameters, exact, strict=True):
        expected = gradient * min(1.0, 0.5 / norm)
        assert torch.allclose(parameter.grad.double(), expected, rtol=1e-5)


def test_clip_gradients_equals_torch_if_no_square_overflows():
    first, second = make_linear(), make_linear()
    for model in (first, second):
        LeastSquares()(model, Batch(DATA)).losses["model"].backward()
    nn.utils.clip_grad_norm_(first.parameters(), 0.1)
    clip_gradients(list(second.parameters()), 0.1)
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(a.grad, b.grad) for a, b in pairs)


# State of the optimizer --------------------------------------------------------------------------


class Overflows(SGD):
    """SGD with a state that overflows at one step, although all gradients are finite."""

    def __init__(self, parameters, step):
        super().__init__(parameters, lr=0.01)
        self.param_groups[0]["bad_step"] = step

    def step(self):
        (group,) = self.param_groups
        for parameter in group["params"]:
            calls = self.state[parameter].get("calls", 0) + 1
            scale = torch.tensor(math.inf if calls >= group["bad_step"] else 1.0)
            self.state[parameter] = {"scales": [torch.ones(2), scale], "calls": calls}
        return super().step()


@pytest.mark.parametrize("every_steps", [None, 2])
def test_optimizer_state_that_overflows_is_named_and_never_saved(every_steps, tmp_path):
    optimization = Optimization(optimizer=lambda p: Overflows(p, STEPS + 3))
    steps = STEPS + 3 if every_steps else 2 * STEPS  # the next checkpoint, or the end of the epoch

    checkpoint = Checkpoint(tmp_path, every_steps=every_steps, keep=9)
    trainer = Trainer(
        make_linear(), LeastSquares(), optimization, callbacks=[checkpoint], device="cpu",
        progress=False,
    )  # fmt: skip
    message = rf"^step {steps} \(epoch 2\): optimizer 'model', weight: scales = inf after finite"
    with pytest.raises(NonFiniteError, match=message):
        trainer.fit(DATA, epochs=2, batch_size=8)
    saved = sorted(int(file.stem.split("-")[1]) for file in tmp_path.glob("step-*"))
    assert saved == ([0, 2, 4, 6] if every_steps else [0])


def test_sum_of_squares_that_overflows_is_named():
    class Slope(LeastSquares):
        def forward(self, model, batch):
            loss = super().forward(model, batch).losses["model"]
            return ObjectiveOutput({"model": loss + 7e18 * model.weight.mul(2).sum()}, {})

    adagrad = Optimization(optimizer=lambda p: Adagrad(p, lr=1e-6))
    with pytest.raises(NonFiniteError, match=r"^step 5 .*optimizer 'model', weight: sum = inf"):
        run(make_linear(), Slope(), optimization=adagrad)


# Likely causes -----------------------------------------------------------------------------------


def gaussian_vae(likelihood=None):
    torch.manual_seed(0)
    likelihood = GaussianLikelihood(1.0) if likelihood is None else likelihood
    return VAE.from_shapes(4, latent_dim=2, likelihood=likelihood)


NORMAL = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))


@for_each(("scale", "offset"), [(100.0, 0.0), (1e4, 0.0), (1e25, 0.0), (1.0, 1e4), (50.0, 128.0)])
@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.filterwarnings("ignore:training may diverge")
def test_fit_names_the_scale_of_the_data(scale, offset, waits, request):
    if not waits:
        request.getfixturevalue("deferred")
    x = scale * NORMAL + offset
    low, high = x.double().aminmax()
    numbers = (
        f"GaussianLikelihood got x with mean {x.double().mean():.4g}, standard deviation "
        f"{x.double().std(correction=0):.4g}, minimum {low:.4g} and maximum {high:.4g}, "
    )
    message = re.escape(numbers) + ".*StandardizedLikelihood"
    options = {"epochs": 1, "fit": {"batch_size": len(x)}}
    with pytest.raises(NonFiniteError, match=message):
        run(gaussian_vae(), NanLoss(), x, **options)
    with (
        pytest.warns(UserWarning, match=f"training may diverge: {message}"),
        contextlib.suppress(NonFiniteError),
    ):
        run(gaussian_vae(), ELBO(), x, **options)


def test_fit_warns_of_the_scale_of_sorted_data():
    x = torch.cat([NORMAL.repeat(32, 1), 1000 * NORMAL])
    with (
        pytest.warns(UserWarning, match="training may diverge: GaussianLikelihood got x with mean"),
        contextlib.suppress(NonFiniteError),
    ):
        run(gaussian_vae(), ELBO(), x, epochs=1)


@for_each(("weight", "kind"), [(1.0, UserWarning), (1e36, ValueError)])
def test_fit_names_the_scale_of_the_data_with_a_regularizer(weight, kind):
    with pytest.raises(kind, match="GaussianLikelihood got x with mean"):
        run(gaussian_vae(), ELBO() + DIPRegularizer(weight), 100 * NORMAL)


class NanLoss(ELBO):
    """A loss that is NaN."""

    def forward(self, model, batch):
        output = super().forward(model, batch)
        return ObjectiveOutput({"model": output.losses["model"] * math.nan}, output.metrics)


def test_fit_names_the_scale_of_the_context():
    torch.manual_seed(0)
    encoder = GaussianEncoder(ConcatContext(MLP(5, (8,)), context_dim=1), latent_dim=2)
    decoder = ConcatContext(MLP(3, (8,), out_shape=4), context_dim=1)
    vae = VAE(encoder, decoder, GaussianLikelihood(1.0))
    data, fit = (NORMAL, 1e4 + NORMAL[:, :1]), {"batch": lambda pair: Batch(*pair)}
    with pytest.raises(UserWarning, match=r"VAE got a context with mean 1e\+04, .*standardize"):
        run(vae, ELBO(), data, fit=fit)


def test_fit_accepts_data_whose_encoder_input_is_of_about_one():
    counts = (1e4 * NORMAL.abs()).round()
    offset = StandardizedLikelihood(GaussianLikelihood(1.0), mean=1e4, std=100.0)
    masked = torch.where(NORMAL > 1, -999.0, NORMAL)
    for likelihood, x, fit in (
        (PoissonLikelihood(), counts, {}),
        (offset, 1e4 + 100 * NORMAL, {}),
        (DiscretizedLogisticLikelihood(256), (64 * NORMAL.abs()).round().clamp(max=255), {}),
        (
            MaskedLikelihood(GaussianLikelihood(1.0)),
            masked,
            {"batch": lambda x: Batch(x, mask=x > -999)},
        ),
    ):
        run(gaussian_vae(likelihood), ELBO(), x, epochs=1, fit=fit)  # warnings are errors


def test_error_names_a_rate_that_is_too_large():
    with pytest.raises(NonFiniteError, match=r"step [2-9].*Lower the learning rate, now 1e\+06, "):
        run(gaussian_vae(), ELBO(), NORMAL, optimization=Optimization(1e6))


def test_error_at_the_first_step_does_not_blame_the_rate():
    with pytest.raises(NonFiniteError, match=r"step 1 .*learning rate is not the cause: look at"):
        run(gaussian_vae(), NanLoss(), NORMAL)


def test_error_names_a_slope_that_is_infinite():
    with pytest.raises(NonFiniteError, match=r"losses are finite: look for .* sqrt at 0"):
        run(make_linear(), Corner(2))


def test_error_names_a_context_that_is_not_finite():
    class Weighted(LeastSquares):
        def forward(self, model, batch):
            losses = super().forward(model, batch).losses
            return ObjectiveOutput({"model": losses["model"] * batch.context.sum()}, {})

    context = torch.ones(len(DATA), 1)
    context[3] = torch.nan
    with pytest.raises(NonFiniteError, match="The context has values that are not finite"):
        run(
            make_linear(), Weighted(), (DATA, context),
            fit={"batch": lambda pair: Batch(*pair)},
        )  # fmt: skip


def test_error_names_float16():
    with pytest.raises(NonFiniteError, match=r"computes in float16, .* model\.float\(\)"):
        run(gaussian_vae().half(), NanLoss(), NORMAL)


# Resources ---------------------------------------------------------------------------------------


def resident_memory():
    """Return the resident memory of this process in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class Residue(Callback):
    """Counts tensors and bytes that are alive at some steps."""

    def __init__(self, *steps):
        self.steps, self.tensors, self.bytes = steps, [], []

    def on_step_end(self, state, output):
        if state.step in self.steps:
            gc.collect()
            kinds = map(type, gc.get_objects())  # isinstance() makes some objects warn
            self.tensors.append(sum(issubclass(kind, torch.Tensor) for kind in kinds))
            self.bytes.append(resident_memory())


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc to read memory")
@pytest.mark.parametrize("waits", [True, False])
def test_train_step_releases_tensors_and_memory(monkeypatch, waits):
    monkeypatch.setattr(
        tinyvae.training.step, "NonFiniteGuard", lambda *args: NonFiniteGuard(*args, waits=waits)
    )
    # Complete intervals of NonFiniteGuard and of RunningMean: a leak shows in each of them.
    length = 10_240 if IS_SOAK else 320
    steps = [128 + length * n for n in range(4)]
    residue = Residue(*steps)
    trainer = Trainer(make_vae(), ELBO(), callbacks=[residue], device="cpu", progress=False)
    trainer.fit(DATA.repeat(-(-4 * steps[-1] // 37), 1), epochs=1, batch_size=4)
    assert len(residue.tensors) == 4
    # Tensors of earlier tests may be freed here, but the count must not grow.
    assert residue.tensors == sorted(residue.tensors, reverse=True)
    assert min(b - a for a, b in itertools.pairwise(residue.bytes)) <= 2 * 2**20
