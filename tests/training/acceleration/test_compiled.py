"""Compiled passes: the same run to rounding, or a warning and the plain run.

A compilation takes seconds, so only few tests compile. The others run the traced graph without a
compiler (the fixture ``traced``).
"""

import copy
import gc
import importlib
import random
import shutil
import subprocess
import sys
import warnings
import weakref
from functools import partial

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
    make_linear,
    make_vae,
    rows,
    run,
    same,
)
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR

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
)
from tinyvae.core import ObjectiveOutput
from tinyvae.objectives import AdversarialTotalCorrelationRegularizer
from tinyvae.schedules import Linear
from tinyvae.training.step import Gradients

pytestmark = pytest.mark.slow

COMPILED = Speed(compile=True)
FALLING = Optimization(
    learning_rate=0.02,
    scheduler=lambda optimizer: ExponentialLR(optimizer, 0.8),
    scheduler_interval="step",
)
CLOSE = 1e-5  # of a step's weights, by their norm
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler was found"
)


def make(decoder=None, *layers, width=4):
    """Return a VAE with ``decoder`` and with ``layers`` between the encoder's linear ones."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, width), *layers, nn.ReLU(), nn.Linear(width, width))
    encoder = GaussianEncoder(network, latent_dim=2, features=width)
    decoder = MLP(2, hidden=(8,), out_shape=4) if decoder is None else decoder()
    return VAE(encoder, decoder, BernoulliLikelihood())


def far(first, second):
    """Return the largest relative distance between two copies of weights."""
    return max(
        float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-3))
        for a, b in zip(first.values(), second.values(), strict=True)
    )


def assert_close(compiled, plain):
    """Assert that two runs with a Recorder agree after every step and in their histories."""
    first, second = (trainer.callbacks[0].weights for trainer in (compiled, plain))
    assert len(first) == len(second) > STEPS
    for step, (a, b) in enumerate(zip(first, second, strict=True)):
        assert far(a, b) <= CLOSE * max(step, 1), step
    for a, b in zip(rows(compiled.history), rows(plain.history), strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-6)


def pair(make_model, make_objective=ELBO, speed=COMPILED, **options):
    """Return the compiled and the plain run, with the weights after every step."""

    def trained(speed):
        callbacks = [Recorder(), *options.get("callbacks", ())]
        settings = {**options, "callbacks": callbacks, "speed": speed}
        return run(make_model(), make_objective(), **settings)

    return trained(speed), trained(Speed())


class PlainSteps(Callback):
    """Return the sizes of the batches that were computed without the graph."""

    def __init__(self, monkeypatch):
        self.sizes, plain = [], Gradients.__call__

        def spy(gradients, batch):
            self.sizes.append(len(batch))
            return plain(gradients, batch)

        monkeypatch.setattr(Gradients, "__call__", spy)

    def on_fit_start(self, trainer):
        self.sizes.clear()


@pytest.fixture
def traced(monkeypatch):
    """Run the traced graph without a compiler."""
    graphs = []

    def keep(graph, inputs, options):
        graphs.append(options)
        return graph

    monkeypatch.setattr(torch._inductor, "compile", keep)
    return graphs


# The same run ------------------------------------------------------------------------------------


def global_state():
    return {
        "noise": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),  # noqa: NPY002
        "validation": torch.distributions.Distribution._validate_args,
        "threads": torch.get_num_threads(),
        "products": torch.get_float32_matmul_precision(),
        "gradients": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warnings": list(warnings.filters),
        "collector": (gc.isenabled(), gc.get_threshold()),
    }


@pytest.fixture(scope="module")
def warmed_up():
    """Return a compiled run with warm-up and falling rates, the plain run, and all records."""
    graphs = []

    def trained(speed):
        model = make_vae()
        model.decoder.eval()
        objective = ELBO(beta=Linear(0.0, 1.0, steps=7))
        options = {"validation": DATA, "optimization": FALLING, "speed": speed}
        torch.manual_seed(5)
        before = global_state()
        trainer = run(model, objective, callbacks=[Recorder()], **options)
        return trainer, before, global_state()

    plain, *_ = trained(Speed())
    importlib.import_module(
        "tinyvae.training.acceleration.compiled"
    )  # sympy, in torch, filters its warnings
    with pytest.MonkeyPatch.context() as monkeypatch:
        compile_ = torch._inductor.compile

        def count(graph, inputs, options):
            graphs.append(options)
            return compile_(graph, inputs, options)

        monkeypatch.setattr(torch._inductor, "compile", count)
        compiled, *state = trained(COMPILED)
    return {"compiled": compiled, "plain": plain, "graphs": graphs, "state": state}


@needs_compiler
def test_compile_gives_the_plain_run_to_rounding(warmed_up):
    compiled, plain = warmed_up["compiled"], warmed_up["plain"]
    assert "; compiled" in compiled.state.plan.headline
    assert "compiled" not in plain.state.plan.headline
    assert_close(compiled, plain)
    assert compiled.history["learning_rate"] == plain.history["learning_rate"]
    assert far(compiled.callbacks[0].weights[-1], compiled.callbacks[0].weights[0]) > 0.05
    assert compiled.objective.beta.value == plain.objective.beta.value == 1.0


@needs_compiler
def test_compile_is_not_repeated_for_new_rates_and_weights(warmed_up):
    assert len(warmed_up["graphs"]) == 1
    trainer = warmed_up["compiled"]
    example = Batch(DATA[:BATCH_SIZE], index=torch.arange(BATCH_SIZE))
    for beta in (0.25, 0.5):
        trainer.objective.beta.value.fill_(beta)
        output = trainer._train_step.compute_gradients(example)
        kl = output.metrics["kl_nats"]
        expected = beta * kl - output.metrics["log_likelihood_nats"]
        torch.testing.assert_close(output.losses["model"], expected)
    for parameter in trainer.model.parameters():
        parameter.grad = None


@needs_compiler
def test_compile_leaves_no_trace(warmed_up):
    before, after = warmed_up["state"]
    assert before == after
    for trainer in (warmed_up["compiled"], warmed_up["plain"]):
        assert all(p.grad is None for p in trainer.model.parameters())
        assert all(type(t) in (torch.Tensor, nn.Parameter) for t in trainer.model.parameters())
    modes = [[m.training for m in warmed_up[n].model.modules()] for n in ("compiled", "plain")]
    assert modes[0] == modes[1]
    assert not any(modes[0])  # fit ends in evaluation mode


@needs_compiler
def test_compile_frees_the_model_with_its_trainer():
    trainer = run(make_linear(), LeastSquares(), speed=COMPILED)
    assert "; compiled" in trainer.state.plan.headline
    kept = weakref.ref(trainer.model)
    del trainer
    gc.collect()
    assert kept() is None


@needs_compiler
def test_compile_supports_dropout_and_running_statistics():
    # A unit that dropout kept in every example has a bias gradient of rounding errors only, which
    # Adam would scale up to a full step.
    descent = Optimization(0.05, optimizer=lambda parameters: torch.optim.SGD(parameters))
    compiled, plain = pair(
        lambda: make(None, nn.Dropout(0.3), nn.BatchNorm1d(4)), optimization=descent
    )
    assert "; compiled" in compiled.state.plan.headline
    assert_close(compiled, plain)
    norms = [t.model.encoder.network[2] for t in (compiled, plain)]
    assert [int(n.num_batches_tracked) for n in norms] == [2 * STEPS, 2 * STEPS]
    assert norms[0].running_mean.abs().max() > 1e-2
    torch.testing.assert_close(norms[0].running_mean, norms[1].running_mean)
    torch.testing.assert_close(norms[0].running_var, norms[1].running_var)


def adversarial():
    torch.manual_seed(3)
    return ELBO() + AdversarialTotalCorrelationRegularizer(MLP(2, (16,), 1), weight=2.0)


@needs_compiler
def test_compile_supports_parameter_groups():
    compiled, plain = pair(make_vae, adversarial)
    assert "; compiled" in compiled.state.plan.headline
    assert list(compiled.state.optimizers) == list(plain.state.optimizers)
    assert len(compiled.state.optimizers) == 2
    assert_close(compiled, plain)
    states = [t.objective.state_dict() for t in (compiled, plain)]
    assert far(*states) <= CLOSE * 2 * STEPS
    assert far(states[0], adversarial().state_dict()) > 1e-3


@needs_compiler
def test_compile_supports_doubly_reparameterized_gradients():
    compiled, plain = pair(make_vae, lambda: IWAE(5, estimator="dreg"))
    assert "; compiled" in compiled.state.plan.headline
    assert_close(compiled, plain)


# Traces -----------------------------------------------------------------------------------------


def test_compile_traces_once_and_runs_short_batches_plainly(traced, monkeypatch):
    steps = PlainSteps(monkeypatch)
    trainer = run(make_vae(), ELBO(), speed=COMPILED, callbacks=[steps], epochs=3)
    assert len(traced) == 1  # nothing was compiled twice
    assert "; compiled" in trainer.state.plan.headline
    assert steps.sizes == [BATCH_SIZE, *[37 % BATCH_SIZE] * 3]  # torch's Adam makes the first one


def frozen_encoder():
    model = make_vae()
    model.encoder.requires_grad_(False)
    return model


def tied():
    model = make()
    model.encoder.network[-1].weight = model.encoder.network[0].weight
    return model


def renormalized():
    torch.manual_seed(0)
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(2, 4))
    return make(lambda: nn.Sequential(MLP(2, (4,), 2), layer))


def with_an_unused_parameter():
    model = make_vae()
    model.decoder.unused = nn.Parameter(torch.ones(3))
    return model


class MaskedLikelihood(nn.Module):
    """Decoder with a buffer of zeros and minus infinity."""

    def __init__(self):
        super().__init__()
        self.out_shape = (4,)
        self.network = MLP(2, hidden=(8,), out_shape=4)
        self.register_buffer("mask", torch.tensor([0.0, float("-inf")]))

    def forward(self, z):
        return self.network(z) * torch.softmax(self.mask, 0)[0]


MODELS = {
    "plain": make_vae,
    "dropout": lambda: make_vae(dropout=0.3),
    "float64": lambda: make_vae().double(),
    "frozen": frozen_encoder,
    "tied": tied,
    "unused": with_an_unused_parameter,
    "normalized": lambda: make(None, nn.BatchNorm1d(4)),
    "spectral": renormalized,
    "infinite buffer": lambda: make(MaskedLikelihood),
}


@pytest.mark.parametrize("name", MODELS)
def test_compile_traces_models_exactly(traced, name):
    # A larger eps than usual: Adam would make steps of gradients that are zero up to rounding.
    adam = partial(torch.optim.Adam, lr=0.02, eps=1e-4, fused=True)
    compiled, plain = pair(MODELS[name], optimization=Optimization(optimizer=adam, clip_norm=1.0))
    assert "; compiled" in compiled.state.plan.headline
    assert len(traced) == 1  # nothing was compiled twice
    assert_close(compiled, plain)


OBJECTIVES = {
    "warm-up": lambda: ELBO(beta=Linear(0.0, 1.0, steps=7)),
    "draws": lambda: ELBO(num_samples=3),
    "iwae": lambda: IWAE(5),
    "dreg": lambda: IWAE(5, estimator="dreg"),
    "groups": adversarial,
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_compile_traces_objectives_exactly(traced, name):
    compiled, plain = pair(make_vae, OBJECTIVES[name])
    assert "; compiled" in compiled.state.plan.headline
    assert len(traced) == 1  # nothing was compiled twice
    assert_close(compiled, plain)


def test_compile_keeps_frozen_parts_fixed(traced):
    trainer = run(frozen_encoder(), ELBO(), speed=COMPILED)
    assert "; compiled" in trainer.state.plan.headline
    assert same(trainer.model.encoder, make_vae().encoder)
    assert not same(trainer.model.decoder, make_vae().decoder)
    assert all(p.grad is None for p in trainer.model.parameters())


def test_compile_traces_again_after_a_change(traced):
    def trained(speed):
        trainer = run(make_vae(), ELBO(), speed=speed)
        trainer.model.encoder.requires_grad_(False)
        trainer.fit(DATA, epochs=1, batch_size=2 * BATCH_SIZE)
        return trainer

    compiled, plain = trained(COMPILED), trained(Speed())
    assert len(traced) == 2
    assert far(compiled.model.state_dict(), plain.model.state_dict()) <= CLOSE * 3 * STEPS


def test_compile_does_not_tie_copies_of_the_model(traced):
    trainer = run(make_vae(), ELBO(), speed=COMPILED)
    before = make_vae()
    before.load_state_dict(trainer.model.state_dict())
    copied = copy.deepcopy(trainer.model)
    run(copied, ELBO(), speed=COMPILED)
    assert same(trainer.model, before)
    assert not same(copied, before)


# What cannot be compiled -------------------------------------------------------------------------


class Decoder(nn.Module):
    """Decoder with a side effect in training mode."""

    def __init__(self):
        super().__init__()
        self.out_shape = (4,)
        self.network = MLP(2, hidden=(8,), out_shape=4)
        self.register_buffer("count", torch.tensor(100_000.0))
        self.table = None

    def forward(self, z):
        logits = self.network(z)
        return self.peculiar(z, logits) if self.training else logits


class Branches(Decoder):
    def peculiar(self, z, logits):
        return logits if z.sum() > 0 else 2 * logits


class PythonNoise(Decoder):
    def peculiar(self, z, logits):
        return logits * (1 + random.random())


class RarePythonNoise(Decoder):
    def peculiar(self, z, logits):
        return 3 * logits if random.random() < 0.1 else logits


class NumpyNoise(Decoder):
    def peculiar(self, z, logits):
        return 3 * logits if np.random.rand() < 0.1 else logits  # noqa: NPY002


class Replaces(Decoder):
    """Decoder that replaces its count. At 100,000 a step changes it by less than the tolerance."""

    def peculiar(self, z, logits):
        self.count = self.count + 1
        return logits * (self.count / self.count)


class Remembers(Decoder):
    """Decoder that makes a table in its first pass."""

    def peculiar(self, z, logits):
        if self.table is None:
            self.table = torch.linspace(0.5, 1.5, 4)
        return logits * self.table


class SeedsPython(Callback):
    def on_fit_start(self, trainer):
        random.seed(4)
        np.random.seed(4)  # noqa: NPY002


def fallen_back(make_model, match, **options):
    """Assert one warning with the reason and the plain run, and return the warning."""
    options = {"callbacks": [SeedsPython()], "epochs": 4, **options}
    with pytest.warns(UserWarning, match=match) as record:
        compiled = run(make_model(), ELBO(), speed=COMPILED, **options)
    assert [str(w.message)[:50] for w in record] == [str(record[0].message)[:50]]
    assert str(record[0].message).startswith("Speed(compile=True): this run is not compiled, ")
    assert "; not compiled" in compiled.state.plan.headline
    plain = run(make_model(), ELBO(), **options)
    assert same(compiled.model, plain.model)
    assert rows(compiled.history) == rows(plain.history)
    assert all(p.grad is None for p in compiled.model.parameters())
    return record[0]


def test_compile_falls_back_for_a_branch_on_data(traced):
    fallen_back(lambda: make(Branches), "data-dependent")
    assert not traced


@pytest.mark.parametrize("decoder", [PythonNoise, RarePythonNoise, NumpyNoise])
def test_compile_falls_back_for_noise_of_python_and_numpy(traced, decoder):
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    fallen_back(lambda: make(decoder), "this run is not compiled", epochs=12)


def test_compile_falls_back_for_a_replaced_buffer(traced):
    fallen_back(lambda: make(Replaces), "this run is not compiled")


@pytest.mark.parametrize("count", [0.0, 100_000.0])
def test_compile_never_loses_a_replaced_buffer(traced, count):
    def model():
        result = make(Replaces)
        result.decoder.count.fill_(count)
        return result

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = run(model(), ELBO(), speed=COMPILED)
    assert trainer.model.decoder.count == count + 2 * STEPS


def test_compile_keeps_a_lazily_made_table_a_tensor(traced):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = run(make(Remembers), ELBO(), speed=COMPILED)
    plain = run(make(Remembers), ELBO())
    assert type(trainer.model.decoder.table) is torch.Tensor
    assert far(trainer.model.state_dict(), plain.model.state_dict()) <= CLOSE * 2 * STEPS


def test_compile_respects_gradient_hooks(traced):
    def trained(speed):
        model, scale = make_vae(), [1.0]
        for parameter in model.parameters():
            parameter.register_hook(lambda gradient: gradient * scale[0])
        last = After(3, lambda _trainer: scale.__setitem__(0, 0.0))
        optimization = Optimization(optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
        options = {"callbacks": [last], "speed": speed, "optimization": optimization}
        return run(model, ELBO(), **options)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = trained(COMPILED)
    assert far(compiled.model.state_dict(), trained(Speed()).model.state_dict()) <= CLOSE * STEPS


@pytest.mark.parametrize("message", ["no compiler\nwas found", ""])
def test_compile_falls_back_if_the_compiler_fails(monkeypatch, message):
    def fail(graph, inputs, options):
        raise RuntimeError(*([message] if message else []))

    monkeypatch.setattr(torch._inductor, "compile", fail)
    warning = fallen_back(make_vae, "RuntimeError")
    assert "\n" not in str(warning.message)
    assert ("no compiler" in str(warning.message)) == bool(message)


def test_compile_falls_back_if_the_graph_fails(monkeypatch):
    def compiled(graph, inputs, options):
        def fail(*inputs):
            raise OSError("no such library")

        return fail

    monkeypatch.setattr(torch._inductor, "compile", compiled)
    fallen_back(lambda: make(None, nn.BatchNorm1d(4)), "OSError: no such library")


def wrong_metric(inputs, results):
    results[-1] = 1.01 * results[-1]


def wrong_gradient(inputs, results):
    results[2] = 1.01 * results[2]


def no_gradient(inputs, results):
    results[0] = None


def wrong_weight(inputs, results):
    inputs[0].data[0] += 0.1


def wrong_moment(inputs, results):
    inputs[-2].mul_(1.01)


ADAM, SGD = Optimization(), Optimization(optimizer=partial(torch.optim.SGD, lr=0.1))
FAULTS = [
    *((SGD, fault) for fault in (wrong_metric, wrong_gradient, no_gradient)),
    *((ADAM, fault) for fault in (wrong_metric, wrong_weight, wrong_moment)),
]


@pytest.mark.parametrize(("optimization", "fault"), FAULTS)
def test_compile_falls_back_if_the_graph_gives_other_numbers(monkeypatch, optimization, fault):
    def compiled(graph, inputs, options):
        def run(*inputs):
            results = list(graph(*inputs))
            fault(inputs, results)
            return results

        return run

    monkeypatch.setattr(torch._inductor, "compile", compiled)
    fallen_back(make_vae, "other losses, gradients or buffers", optimization=optimization)


def test_compile_falls_back_if_the_graph_repeats_its_noise(monkeypatch):
    def compiled(graph, inputs, options):
        state = torch.get_rng_state()

        def run(*inputs):
            torch.set_rng_state(state)
            return graph(*inputs)

        return run

    monkeypatch.setattr(torch._inductor, "compile", compiled)
    fallen_back(make_vae, "other losses, gradients or buffers")


def test_compile_falls_back_if_the_graph_skips_running_statistics(monkeypatch):
    def compiled(graph, inputs, options):
        def run(*inputs):
            return graph(*(tensor.clone() for tensor in inputs))

        return run

    monkeypatch.setattr(torch._inductor, "compile", compiled)
    fallen_back(lambda: make(None, nn.BatchNorm1d(4)), "other losses, gradients or buffers")


def test_compile_passes_on_an_interrupt(monkeypatch):
    def interrupt(graph, inputs, options):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch._inductor, "compile", interrupt)
    model, before = make_vae(), make_vae()
    state = global_state()
    with pytest.raises(KeyboardInterrupt):
        run(model, ELBO(), speed=COMPILED)
    assert state == global_state()
    assert same(model, before)
    assert all(p.grad is None for p in model.parameters())


def test_compile_warning_points_to_fit(monkeypatch):
    def fail(graph, inputs, options):
        raise RuntimeError("planted")

    monkeypatch.setattr(torch._inductor, "compile", fail)
    warning = fallen_back(make_vae, "planted")
    assert warning.filename == run.__code__.co_filename


class Undifferentiable(Objective):
    """Objective whose loss depends on no parameter."""

    def forward(self, model, batch):
        return ObjectiveOutput({"model": batch.x.mean()}, {})


def test_compile_raises_errors_of_the_pass(traced):
    def trained(speed):
        return run(make_linear(), Undifferentiable(), speed=speed)

    with pytest.raises(RuntimeError) as plain:
        trained(Speed())
    with (
        pytest.raises(RuntimeError) as compiled,
        pytest.warns(UserWarning, match="this run is not compiled"),
    ):
        trained(COMPILED)
    assert str(compiled.value) == str(plain.value)


# What it costs those who do not ask for it -------------------------------------------------------


def test_compile_off_does_not_import_the_compiler():
    # torch's optimizers import most of its compiler.
    code = """
import sys
import torch

def compiler():
    names = ("torch._dynamo", "torch._inductor", "torch.fx.experimental", "tinyvae.training.comp")
    return {name for name in sys.modules if name.startswith(names)}

before = compiler()
import tinyvae as tv
print(compiler() == before, "torch._dynamo" in before)
weight = torch.nn.Parameter(torch.ones(3))
weight.grad = torch.ones(3)
torch.optim.Adam([weight], fused=True).step()
before = compiler()
for speed in (None, tv.Speed(matmul="fast", precision="bfloat16")):
    encoder = tv.GaussianEncoder(tv.MLP(4, (), 8), latent_dim=2, features=8)
    vae = tv.VAE(encoder, tv.MLP(2, (8,), 4), tv.BernoulliLikelihood())
    x = torch.bernoulli(torch.full((8, 4), 0.5))
    tv.Trainer(vae, tv.ELBO(), device="cpu", progress=False, speed=speed).fit(x, x, epochs=1)
print(sorted(compiler() - before))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout == "True False\n[]\n"
