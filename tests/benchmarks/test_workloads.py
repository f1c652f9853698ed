"""Fast paths agree with plain ones on every workload of the benchmarks."""

import shutil
import sys
from pathlib import Path

import pytest
import torch

from tinyvae import ELBO, IWAE, Batch, Speed, Trainer, log_marginal
from tinyvae.distributions import bernoulli_sum
from tinyvae.training.acceleration.compiled import CompiledGradients
from tinyvae.training.step import Gradients

ROOT = Path(__file__).parents[2]
NEVER = 1 << 62


@pytest.fixture(scope="module")
def benchmarks():
    """Import the modules of benchmarks/, which is not a package."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import workloads
        from competitors import layers, tinyvae_trainer

        yield workloads, tinyvae_trainer, layers
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


NAMES = ["w1-32", "w1-128", "w2", "w3-1", "w3-50", "w4"]


def make(benchmarks, name):
    """Return the gradients and a batch of a workload."""
    workloads, trainer, _ = benchmarks
    workload = workloads.WORKLOADS[name]
    torch.manual_seed(0)
    vae = trainer.build(workload)
    objective = ELBO() if workload.num_samples == 1 else IWAE(workload.num_samples)
    images = torch.from_numpy(workloads.images(workload, workload.batch_size))
    x = (images > 127).float() if workload.gray else images
    return Gradients(vae, objective, objective.parameter_groups(vae)), Batch(x)


def loss_and_gradients(differentiate, gradients, batch):
    """Return loss, metrics and gradients on fixed noise."""
    torch.manual_seed(1)
    output = differentiate(batch)
    parameters = gradients.groups["model"]
    grads = [p.grad.clone() for p in parameters]
    for parameter in parameters:
        parameter.grad = None
    return [output.losses["model"].detach(), *output.metrics.values(), *grads]


def assert_near(left, right, bound):
    for a, b in zip(left, right, strict=True):
        assert torch.linalg.vector_norm(a - b) <= bound * torch.linalg.vector_norm(b)


def test_workloads_are_in_the_table(benchmarks):
    workloads, _, _ = benchmarks
    assert list(workloads.WORKLOADS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_workload_models_have_the_layers_of_competitors(benchmarks, name):
    workloads, trainer, layers = benchmarks
    workload = workloads.WORKLOADS[name]
    vae = trainer.build(workload)
    for part, plain in ((vae.encoder, layers.encoder), (vae.decoder, layers.decoder)):
        shapes = [p.shape for p in part.parameters()]
        assert shapes == [p.shape for p in plain(workload).parameters()]


@pytest.mark.parametrize("name", NAMES)
def test_bernoulli_sum_in_chunks_equals_the_sum(benchmarks, name, monkeypatch):
    gradients, batch = make(benchmarks, name)
    monkeypatch.setattr(bernoulli_sum, "PIECE", NEVER)
    plain = loss_and_gradients(gradients, gradients, batch)
    monkeypatch.setattr(bernoulli_sum, "PIECE", 10_000)
    assert_near(loss_and_gradients(gradients, gradients, batch), plain, 2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_log_marginal_with_chunks_equals_the_plain_one(benchmarks, name, monkeypatch):
    gradients, batch = make(benchmarks, name)
    vae, x = gradients.model, batch.x[:3].float()
    fast = log_marginal(vae, x, num_samples=2000)
    monkeypatch.setattr(bernoulli_sum, "PIECE", NEVER)
    plain = log_marginal(vae, x, num_samples=2000)
    assert (fast - plain).abs().max() < 2e-4
    exact = log_marginal(vae.double(), x.double(), num_samples=2000)
    assert exact.dtype == torch.float64


needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler was found"
)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("name", NAMES)
def test_compiled_pass_equals_the_plain_pass(benchmarks, name):
    gradients, batch = make(benchmarks, name)
    compiled = CompiledGradients(gradients, batch)
    plain, fast = (loss_and_gradients(d, gradients, batch) for d in (gradients, compiled))
    # The weights of IWAE are exponentials of log weights and inherit their rounding.
    rounding = 2 * torch.finfo(torch.float32).eps * float(plain[0].abs())
    assert_near(fast, plain, rounding if name == "w3-50" else 1e-5)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("name", NAMES)
def test_compiled_updates_equal_the_plain_ones(benchmarks, name):
    weights = []
    for speed in (Speed(compile=True), Speed()):
        gradients, batch = make(benchmarks, name)
        vae, objective = gradients.model, gradients.objective
        before = [p.detach().clone() for p in vae.parameters()]
        trainer = Trainer(vae, objective, speed=speed, progress=False)
        trainer.fit(batch.x, epochs=3, batch_size=len(batch))
        assert ("; compiled" in trainer.state.plan.headline) is speed.compile
        weights.append([p.detach() for p in vae.parameters()])
    assert_near(*weights, 1e-5)
    assert all(not torch.equal(a, b) for a, b in zip(weights[0], before, strict=True))
