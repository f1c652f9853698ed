"""Optional fast paths: rejected options, decisions of probes, and bitwise equality elsewhere.

The speed of a path depends on the machine, so most tests replace the results of the probes.
"""

import random

import numpy as np
import pytest
import torch
from helpers.training import (
    BATCH_SIZE,
    DATA,
    STEPS,
    After,
    LeastSquares,
    Recorder,
    Unsized,
    make_linear,
    make_vae,
    raises,
    rows,
    run,
    same,
)
from torch import nn
from torch.optim import Adam
from torch.utils.data import DataLoader, Dataset

from tinyvae import (
    ELBO,
    IWAE,
    MLP,
    VAE,
    Batch,
    BernoulliLikelihood,
    Callback,
    GaussianEncoder,
    Objective,
    Optimization,
    Speed,
    Trainer,
)
from tinyvae.core import ObjectiveOutput
from tinyvae.training.acceleration import options as module
from tinyvae.training.acceleration.options import ResolvedSpeed, matmul_route
from tinyvae.training.data.factory import open_data
from tinyvae.training.data.sources import BatchTransform
from tinyvae.training.step import Gradients, without_trace

FAST = Speed(matmul="fast")
HALF = Speed(precision="bfloat16")
CPU = torch.device("cpu")
has_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN"
)


def setting():
    """Return the current setting of matrix products."""
    return torch.backends.mkldnn.matmul.fp32_precision


@pytest.fixture
def probes(monkeypatch):
    """Make all probes succeed, and return their calls."""
    asked = []

    def faster(fast, plain):
        asked.append("time")
        plain()
        fast()
        return True

    def error(rows, n_in, n_out):
        asked.append((rows, n_in, n_out))
        assert setting() == module.ONEDNN
        return 1e-6

    monkeypatch.setattr(module, "_faster", faster)
    monkeypatch.setattr(module, "_error", error)
    return asked


def make_normalized():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.BatchNorm1d(8), nn.ReLU())
    encoder = GaussianEncoder(network, latent_dim=2, features=8)
    return VAE(encoder, MLP(2, hidden=(8,), out_shape=4), BernoulliLikelihood())


# Arguments ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"compile": "yes"}, TypeError, "expects compile as True or False, got 'yes'"),
        ({"compile": 1}, TypeError, "expects compile as True or False, got 1"),
        ({"matmul": "slow"}, ValueError, r"matmul as one of \('default', 'fast'\), got 'slow'"),
        ({"matmul": True}, ValueError, "expects matmul as one of"),
        ({"precision": "fp8"}, ValueError, r"precision as one of .*, got 'fp8'"),
        ({"precision": torch.bfloat16}, ValueError, "expects precision as one of"),
    ],
)
def test_speed_rejects_unknown_options(options, error, match):
    with pytest.raises(error, match=match):
        Speed(**options)


@pytest.mark.parametrize("speed", [object(), "fast", True, Speed])
def test_trainer_rejects_other_types_as_speed(speed):
    with pytest.raises(TypeError, match=r"Trainer expects a Speed\(compile=\.\.\., matmul=.*got "):
        Trainer(make_linear(), LeastSquares(), speed=speed, device="cpu")


def test_speed_default_probes_nothing(monkeypatch):
    monkeypatch.setattr(module, "_faster", None)
    monkeypatch.setattr(module, "_error", None)
    for speed in (None, Speed()):
        trainer = run(make_vae(), ELBO(), speed=speed)
        assert trainer.speed == Speed()
        assert trainer.resolved_speed == ResolvedSpeed("default", "float32")
        words = ("compiled", "matrix products", "networks in")
        assert not any(word in trainer.state.plan.headline for word in words)


# Matrix products ----------------------------------------------------------------------------------


class Watch(Callback):
    """Callback that records the setting at every event of a run."""

    def __init__(self):
        self.seen = []

    def on_fit_start(self, trainer):
        self.seen.append(setting())

    def on_step_end(self, trainer, output):
        self.seen.append(setting())

    on_fit_end = on_fit_start


@has_onednn
@pytest.mark.parametrize(
    ("error", "chosen"), [(0.0, "onednn"), (1e-6, "onednn"), (1.1e-6, "default"), (1e-3, "default")]
)
def test_matmul_fast_is_used_if_exact(probes, monkeypatch, error, chosen):
    monkeypatch.setattr(module, "_error", lambda *_shape: error)
    found, watch = setting(), Watch()
    trainer = run(make_vae(), ELBO(), speed=FAST, callbacks=[watch])
    assert trainer.resolved_speed == ResolvedSpeed(chosen, "float32")
    assert set(watch.seen) == {"bf16" if chosen == "onednn" else found}
    assert len(watch.seen) == 2 + 2 * STEPS
    assert setting() == found != "bf16"
    told = {"onednn": "oneDNN", "default": "the default library, oneDNN is not faster"}[chosen]
    assert trainer.state.plan.headline.endswith(f"; matrix products by {told}")
    assert "\n" not in trainer.state.plan.headline


@has_onednn
def test_matmul_probe_covers_the_shape_of_every_layer(probes):
    run(make_vae(), ELBO(), speed=FAST)
    shapes = {(m.in_features, m.out_features) for m in make_vae().modules() if type(m) is nn.Linear}
    probed = {(rows, *s) for rows in (BATCH_SIZE, module.MANY_ROWS) for s in shapes}
    assert {shape for shape in probes if shape != "time"} == probed
    assert len(shapes) > 2


@has_onednn
def test_matmul_probe_declines_for_one_inexact_layer(probes, monkeypatch):
    monkeypatch.setattr(module, "_error", lambda _rows, _n_in, n_out: 1e-4 * (n_out == 4))
    assert run(make_vae(), ELBO(), speed=FAST).resolved_speed == ResolvedSpeed()


@has_onednn
def test_matmul_probe_declines_a_slower_library(probes, monkeypatch):
    monkeypatch.setattr(module, "_faster", lambda _fast, _plain: False)
    trainer = run(make_vae(), ELBO(), speed=FAST)
    assert trainer.resolved_speed == ResolvedSpeed()
    assert "the default library" in trainer.state.plan.headline


@has_onednn
def test_matmul_probe_times_whole_steps(probes, monkeypatch):
    seen, plain = [], Gradients.__call__

    def spy(gradients, batch):
        seen.append((setting(), len(batch)))
        return plain(gradients, batch)

    monkeypatch.setattr(Gradients, "__call__", spy)
    found = setting()
    run(make_vae(), ELBO(), speed=FAST, epochs=1)
    assert seen[:2] == [(found, BATCH_SIZE), ("bf16", BATCH_SIZE)]
    assert {route for route, _ in seen[2:]} == {"bf16"}


def test_matmul_probe_measures_the_error_of_a_layer(monkeypatch):
    assert 0 < module._error(128, 300, 50) < module.FLOAT32_EXACT
    with torch.autocast("cpu", torch.bfloat16):
        assert 1e-3 < module._error(128, 300, 50) < 1e-2
    shapes = []

    def distance(product, exact):
        shapes.append(tuple(product.shape))
        assert exact.dtype == torch.float64
        return float(len(shapes))

    monkeypatch.setattr(module, "_distance", distance)
    state = torch.get_rng_state()
    assert module._error(128, 300, 50) == 3  # the largest, forward and backward
    assert shapes == [(128, 50), (128, 300), (300, 50)]
    assert torch.equal(state, torch.get_rng_state())


@has_onednn
@pytest.mark.parametrize("exception", [RuntimeError("planted"), KeyboardInterrupt()])
def test_matmul_setting_is_restored_after_an_error(probes, exception):
    found = setting()
    seen = []
    callbacks = [After(2, lambda _: seen.append(setting())), After(3, raises(exception))]
    with pytest.raises(type(exception)):
        run(make_vae(), ELBO(), speed=FAST, callbacks=callbacks)
    assert seen == ["bf16"]
    assert setting() == found


@has_onednn
@pytest.mark.parametrize("exception", [RuntimeError("planted"), KeyboardInterrupt()])
@pytest.mark.parametrize("probe", ["_error", "_faster"])
def test_matmul_setting_is_restored_after_a_failed_probe(probes, monkeypatch, exception, probe):
    def fail(*arguments):
        raise exception

    monkeypatch.setattr(module, probe, fail)
    found, model = setting(), make_vae()
    with pytest.raises(type(exception)):
        run(model, ELBO(), speed=FAST)
    assert setting() == found
    assert same(model, make_vae())


@has_onednn
def test_trainer_probes_once(probes):
    trainer = run(make_vae(), ELBO(), speed=FAST)
    asked, watch = list(probes), Watch()
    assert asked.count("time") == 1
    trainer.callbacks.append(watch)
    trainer.fit(DATA, epochs=1, batch_size=BATCH_SIZE)
    assert probes == asked
    assert trainer.resolved_speed == ResolvedSpeed("onednn", "float32")
    assert set(watch.seen) == {"bf16"}
    assert "matrix products by oneDNN" in trainer.state.plan.headline


@pytest.fixture
def _legacy():
    """Restore torch's older setting after the test."""
    found = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(found)


@has_onednn
@pytest.mark.usefixtures("_legacy")
@pytest.mark.parametrize("legacy", ["highest", "high", "medium"])
def test_matmul_setting_keeps_the_older_setting(probes, legacy):
    torch.set_float32_matmul_precision(legacy)
    found, inside = setting(), []
    trainer = run(
        make_vae(), ELBO(), speed=FAST, callbacks=[After(2, lambda _: inside.append(setting()))]
    )
    assert trainer.resolved_speed.matmul == "onednn"
    assert inside == ["bf16"]
    assert setting() == found
    assert torch.get_float32_matmul_precision() == legacy
    torch.set_float32_matmul_precision("highest")
    assert torch.get_float32_matmul_precision() == "highest"


def test_matmul_route_default_changes_nothing():
    found = setting()
    with matmul_route("default"):
        assert setting() == found
    assert setting() == found


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(0.5))

    def forward(self, x):
        return self.factor * x


def test_matmul_probe_declines_without_linear_layers(probes):
    trainer = run(Scale(), LeastSquares(), speed=FAST)
    assert trainer.resolved_speed == ResolvedSpeed()
    assert probes == []


def test_matmul_probe_declines_without_onednn(probes, monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert run(make_vae(), ELBO(), speed=FAST).resolved_speed == ResolvedSpeed()
    assert probes == []


@has_onednn
def test_matmul_fast_gives_the_plain_run_to_rounding(monkeypatch):
    monkeypatch.setattr(module, "_faster", lambda _fast, _plain: True)
    fast, plain = Recorder(), Recorder()
    trainer = run(make_vae(), IWAE(5), speed=FAST, callbacks=[fast])
    run(make_vae(), IWAE(5), callbacks=[plain])
    if trainer.resolved_speed == ResolvedSpeed():
        pytest.skip("oneDNN's products are not exact on this machine")
    for step, (first, second) in enumerate(zip(fast.weights, plain.weights, strict=True)):
        for name in first:
            distance = torch.linalg.norm(first[name] - second[name])
            assert distance <= 1e-5 * max(step, 1) * torch.linalg.norm(second[name]) + 1e-7


# No trace ----------------------------------------------------------------------------------------

DECLINED = {"matmul": FAST, "precision": HALF, "both": Speed(matmul="fast", precision="bfloat16")}


@pytest.fixture
def declining(monkeypatch):
    """Make probes run both functions, and decline."""
    timed = []

    def slower(fast, plain):
        for _ in range(3):
            fast()
            plain()
        timed.append(True)
        return False

    monkeypatch.setattr(module, "_faster", slower)
    monkeypatch.setattr(module, "_error", lambda *_shape: 0.0)
    return timed


@pytest.mark.parametrize("speed", DECLINED.values(), ids=DECLINED)
def test_speed_declined_is_the_plain_run_bitwise(declining, speed):
    def trained(speed):
        model, recorder = make_normalized(), Recorder()
        model.decoder.eval()
        state, python = torch.get_rng_state(), random.getstate()
        trainer = run(model, ELBO(), DATA, DATA, speed=speed, callbacks=[recorder])
        assert torch.equal(state, torch.get_rng_state())
        assert python == random.getstate()
        assert all(p.grad is None for p in model.parameters())
        return trainer, recorder.weights, [m.training for m in model.modules()]

    (fast, *first), (plain, *second) = trained(speed), trained(None)
    assert declining
    assert fast.resolved_speed == ResolvedSpeed()
    assert all(map(same, first[0], second[0]))
    assert first[1] == second[1]
    assert rows(fast.history) == rows(plain.history)
    batches = fast.model.encoder.network[2].num_batches_tracked
    assert batches == 2 * STEPS


def test_scratch_restores_everything():
    model, before = make_normalized(), make_normalized()
    gradients = Gradients(model, ELBO(), {"model": list(model.parameters())})
    state = torch.get_rng_state()
    with without_trace(gradients, CPU):
        gradients(Batch(DATA))
        assert not same(model, before)
        assert all(p.grad is not None for p in model.parameters())
    assert same(model, before)
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())


def test_probes_run_in_training_mode(declining, monkeypatch):
    modes, plain = [], Gradients.__call__

    def spy(gradients, batch):
        modes.append((gradients.model.training, gradients.objective.training))
        return plain(gradients, batch)

    monkeypatch.setattr(Gradients, "__call__", spy)
    run(make_vae().eval(), ELBO().eval(), speed=FAST)
    assert set(modes) == {(True, True)}
    assert len(modes) == 6 + 2 * STEPS


class Rows(Dataset):
    """Data set that records which rows were read."""

    def __init__(self):
        self.read = []

    def __len__(self):
        return len(DATA)

    def __getitem__(self, index):
        self.read.append(index)
        return DATA[index]


LOADERS = {
    "loader": lambda rows: DataLoader(rows, BATCH_SIZE),
    "shuffled": lambda rows: DataLoader(rows, BATCH_SIZE, shuffle=True),
    "dropping": lambda rows: DataLoader(rows, BATCH_SIZE, shuffle=True, drop_last=True),
    "dataset": lambda rows: rows,
}


class Examples(LeastSquares):
    """Objective that records its batches."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, model, batch):
        self.seen.append(batch.x)
        return super().forward(model, batch)


@pytest.mark.parametrize("name", LOADERS)
def test_probes_do_not_use_up_the_example(declining, name):
    def trained(speed):
        dataset, objective = Rows(), Examples()
        trainer = Trainer(make_linear(), objective, speed=speed, device="cpu", progress=False)
        trainer.callbacks.append(Clear())
        for _ in range(2):
            trainer.fit(LOADERS[name](dataset), epochs=2, batch_size=BATCH_SIZE)
        return trainer, dataset.read, objective.seen

    (fast, read, seen), (plain, *expected) = trained(FAST), trained(None)
    assert read == expected[0]
    assert len(read) == 4 * (32 if name == "dropping" else 37)
    # The second fit clears the batches of the first one.
    assert len(seen) == len(expected[1])
    assert all(map(torch.equal, seen, expected[1]))
    assert same(fast.model, plain.model)


class Clear(Callback):
    """Callback that clears the batches from before the first step."""

    def on_fit_start(self, trainer):
        trainer.objective.seen.clear()


def test_probes_do_not_use_up_data_without_a_length(declining):
    def trained(speed):
        objective = Examples()
        options = {"epochs": 1, "callbacks": [Clear()], "speed": speed}
        run(make_linear(), objective, DataLoader(Unsized(DATA), BATCH_SIZE), **options)
        return torch.cat(objective.seen)

    assert torch.equal(trained(FAST), DATA)
    assert torch.equal(trained(None), DATA)


def test_probes_do_not_change_transforms(declining):
    def flip(x, generator):
        return torch.where(torch.rand(x.shape, generator=generator) < 0.2, 1 - x, x)

    fit = {"transform": flip}
    fast, plain = (run(make_vae(), ELBO(), speed=speed, fit=fit) for speed in (FAST, None))
    assert same(fast.model, plain.model)


# Mixed precision ---------------------------------------------------------------------------------


@pytest.fixture
def halves(monkeypatch):
    monkeypatch.setattr(module, "half_is_faster", lambda _device, _dtype: True)


class Kinds(ELBO):
    """ELBO that records the dtypes of its values, by mode."""

    def __init__(self):
        super().__init__()
        self.kinds = {True: set(), False: set()}

    def forward(self, model, batch):
        output = super().forward(model, batch)
        record = self.sample(model, batch)
        values = [*output.losses.values(), *output.metrics.values()]
        values += [term.z for term in record.latents] + [term.log_q for term in record.latents]
        self.kinds[self.training] |= {value.dtype for value in values}
        return output


@pytest.mark.usefixtures("halves")
def test_bfloat16_applies_to_networks_only():
    model, objective, inside, gradients = make_vae(), Kinds(), {True: set(), False: set()}, set()

    def note(layer, inputs, output):
        inside[model.training].add(output.dtype)

    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(note)
    for parameter in model.parameters():
        parameter.register_hook(lambda gradient: gradients.add(gradient.dtype))
    trainer = Trainer(model, objective, speed=HALF, device="cpu", progress=False)
    # The check before the first step runs in full precision and in evaluation mode.
    trainer.fit(DATA, DATA, epochs=2, batch_size=BATCH_SIZE)
    assert trainer.resolved_speed == ResolvedSpeed("default", "bfloat16")
    assert trainer.state.plan.headline.endswith("; networks in bfloat16")
    assert inside == {True: {torch.bfloat16}, False: {torch.float32}}
    assert objective.kinds == {True: {torch.float32}, False: {torch.float32}}
    assert gradients == {torch.float32}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.usefixtures("halves")
def test_bfloat16_learns_as_well_as_float32():
    def losses(speed):
        options = {"epochs": 12, "optimization": Optimization(0.02), "speed": speed}
        return run(make_vae(), ELBO(), DATA, DATA, **options).history

    half, full = losses(HALF), losses(None)
    assert half["train/loss"] != full["train/loss"]
    assert half["train/loss"][-1] < 0.97 * half["train/loss"][0]
    for part in ("train/loss", "validation/loss"):
        assert half[part] == pytest.approx(full[part], rel=0.01)


@pytest.mark.usefixtures("halves")
def test_bfloat16_validates_in_full_precision():
    trainer = run(make_vae(), ELBO(), DATA, DATA, speed=HALF)
    # A plain epoch with learning rate 0 validates the same weights again.
    again = Trainer(trainer.model, ELBO(), Optimization(0.0), device="cpu", progress=False)
    again.fit(DATA, DATA, epochs=1, batch_size=BATCH_SIZE)
    assert again.history["validation/loss"][-1] == trainer.history["validation/loss"][-1]


@pytest.mark.parametrize("pays", [True, False])
def test_bfloat16_probe_times_a_cpu(monkeypatch, pays):
    products = []

    def faster(fast, plain):
        products.extend((fast().dtype, plain().dtype))
        return pays

    monkeypatch.setattr(module, "_faster", faster)
    state = torch.get_rng_state()
    assert module.half_is_faster(CPU, torch.bfloat16) is pays
    assert products == [torch.bfloat16, torch.float32]
    assert torch.equal(state, torch.get_rng_state())


def test_bfloat16_probe_declines_other_devices_than_cuda():
    assert not module.half_is_faster(torch.device("mps"), torch.bfloat16)


def test_faster_requires_more_than_noise(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])

    def work(seconds):
        def step():
            clock[0] += seconds

        return step

    assert module._faster(work(0.94), work(1.0))
    assert not module._faster(work(0.96), work(1.0))
    assert not module._faster(work(1.0), work(0.5))


# Layout of gradients -----------------------------------------------------------------------------


def make_two():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))


class TwoGroups(Objective):
    """Objective of two losses. The second one uses sums and transposes of its parameters."""

    def parameter_groups(self, model):
        return {"first": list(model[0].parameters()), "second": list(model[1].parameters())}

    def forward(self, model, batch):
        first = (model[0](batch.x) - batch.x).square().mean()
        weight, bias = model[1].weight, model[1].bias
        second = (weight.sum() - 1) * batch.x.mean() + (bias.sum() - 2).square()
        return ObjectiveOutput({"first": first, "second": second}, {})


class Strides(Callback):
    """Return the strides of the gradients that the optimizers receive."""

    def on_fit_start(self, trainer):
        self.seen, self.expected = [], [p.stride() for p in trainer.model.parameters()]
        for optimizer in trainer.optimizers.values():
            optimizer.register_step_pre_hook(self._note)

    def _note(self, optimizer, args, kwargs):
        for group in optimizer.param_groups:
            self.seen += [(p.stride(), p.grad.stride()) for p in group["params"]]


@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_have_the_strides_of_their_parameters(monkeypatch, compiled):
    monkeypatch.setattr(torch._inductor, "compile", lambda graph, *_inputs, **_options: graph)

    def trained(fused):
        optimization = Optimization(optimizer=lambda p: Adam(p, lr=0.1, fused=fused))
        strides = Strides()
        speed = Speed(compile=compiled)
        options = {"optimization": optimization, "callbacks": [strides], "speed": speed}
        trainer = run(make_two(), TwoGroups(), epochs=4, **options)
        assert ("; compiled" in trainer.state.plan.headline) is compiled
        return trainer.model, strides

    (fused, strides), (plain, _) = trained(fused=True), trained(fused=False)
    assert strides.seen
    assert all(parameter == gradient for parameter, gradient in strides.seen)
    for (name, first), second in zip(fused.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6, msg=name)


def test_gradients_of_a_loss_reach_its_group_only():
    model, objective = make_two(), Crossed()
    groups = objective.parameter_groups(model)
    Gradients(model, objective, groups)(Batch(DATA))
    output = objective(model, Batch(DATA))
    for name, group in groups.items():
        expected = torch.autograd.grad(output.losses[name], group, retain_graph=True)
        for parameter, gradient in zip(group, expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient)


class Crossed(TwoGroups):
    """Objective of two losses, each of both layers."""

    def forward(self, model, batch):
        out = model(batch.x)
        return ObjectiveOutput({"first": out.square().mean(), "second": (out - 1).abs().mean()}, {})


def test_gradients_leave_parameters_outside_groups():
    class FirstOnly(LeastSquares):
        def parameter_groups(self, model):
            return {"model": list(model[0].parameters())}

    model = make_two()
    run(model, FirstOnly())
    assert same(model[1], make_two()[1])
    assert not same(model[0], make_two()[0])
    assert all(p.grad is None for p in model.parameters())


# Zeros and ones as they are stored ---------------------------------------------------------------

INTEGERS = [torch.uint8, torch.bool, torch.int64]


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("objective", [ELBO, lambda: IWAE(3)], ids=["elbo", "iwae"])
def test_binary_data_of_any_dtype_give_the_same_run(dtype, objective):
    runs = [
        run(make_vae(dropout=0.2), objective(), data, data)
        for data in (DATA, DATA.to(dtype), DATA.to(dtype).numpy())
    ]
    for other in runs[1:]:
        assert same(runs[0].model, other.model)
        assert rows(runs[0].history) == rows(other.history)


def test_open_data_keeps_uint8():
    data = DATA.to(torch.uint8)
    feed = open_data(
        data, BatchTransform(CPU, torch.float32), batch_size=BATCH_SIZE, seed=0, shuffle=True
    )
    assert feed.data.data_ptr() == data.data_ptr()
    assert {batch.x.dtype for batch in feed.batches(0)} == {torch.uint8}


@pytest.mark.parametrize("dtype", [torch.float32, *INTEGERS])
@pytest.mark.parametrize("logit", [-3.0, 1.0, 30.0])
@pytest.mark.parametrize("grad", [True, False])
def test_bernoulli_log_prob_does_not_depend_on_dtype(dtype, logit, grad):
    x = DATA.to(dtype)
    with torch.set_grad_enabled(grad):
        p = BernoulliLikelihood()(torch.full((37, 4), logit, dtype=torch.float64), event_ndim=1)
        ones = DATA.double().sum(1)
        expected = ones * logit - 4 * np.logaddexp(0.0, logit)
        torch.testing.assert_close(p.log_prob(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("logit", [-19.0, 10.0, 19.0, 25.0])
def test_bernoulli_log_prob_is_finite_in_low_precision(dtype, logit):
    p = BernoulliLikelihood()(torch.full((1, 8), logit, dtype=dtype), event_ndim=1)
    for x in (torch.zeros(1, 8, dtype=dtype), torch.ones(1, 8, dtype=dtype)):
        expected = 8 * (x[0, 0].item() * logit - np.logaddexp(0.0, logit))
        with torch.no_grad():
            assert p.log_prob(x).item() == pytest.approx(expected, rel=2e-3, abs=1e-2)


def test_bernoulli_log_prob_of_no_examples():
    with torch.no_grad():
        p = BernoulliLikelihood()(torch.zeros(0, 4), event_ndim=1)
        assert p.log_prob(torch.zeros(0, 4)).shape == (0,)


def test_fit_rejects_gray_bytes_before_the_first_step():
    gray = (torch.arange(37 * 4) % 256).to(torch.uint8).view(37, 4)
    model = make_vae()
    match = (
        r"training data: BernoulliLikelihood expects values in \[0, 1\], got 0\.\.147.* binarize"
    )
    with pytest.raises(ValueError, match=match):
        run(model, ELBO(), gray)
    with pytest.raises(ValueError, match=r"^validation data: BernoulliLikelihood"):
        run(model, ELBO(), DATA, gray)
    assert same(model, make_vae())
