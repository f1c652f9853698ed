"""Whole runs on an emulated Apple device, which has no float64."""

import math
from contextlib import nullcontext

import pytest
import torch
from helpers import apple as emulation
from helpers.models import DIVERSE, combined
from helpers.training import After, raises, rows

from tinyvae import (
    ELBO,
    MLP,
    VAE,
    BernoulliLikelihood,
    Checkpoint,
    GaussianEncoder,
    GaussianLikelihood,
    Speed,
    Trainer,
    evaluate,
    impute,
    log_marginal,
)
from tinyvae.core.data import rounding_of
from tinyvae.datasets import DynamicBinarization
from tinyvae.encoders import PowerSphericalEncoder
from tinyvae.errors import NonFiniteError
from tinyvae.evaluation import active_units
from tinyvae.likelihoods import MaskedLikelihood
from tinyvae.objectives import DIPRegularizer
from tinyvae.priors import SphereUniformPrior
from tinyvae.schedules import Linear
from tinyvae.training.acceleration import compiled

DATA = (torch.rand(20, 4, generator=torch.Generator().manual_seed(0)) > 0.5).float()
QUIET = {"progress": False}


def make_vae(likelihood=None):
    torch.manual_seed(0)
    likelihood = BernoulliLikelihood() if likelihood is None else likelihood
    return VAE(GaussianEncoder(MLP(4, (8,)), 2), MLP(2, (8,), out_shape=4), likelihood)


def fitted(device="auto", callbacks=(), model=None, objective=None, **options):
    """Return a Trainer after one or more epochs, with validation."""
    model = make_vae() if model is None else model
    objective = ELBO(Linear(0.1, 1.0, steps=4)) if objective is None else objective
    trainer = Trainer(model, objective, callbacks=callbacks, device=device, **QUIET)
    trainer.fit(DATA, DATA, **{"epochs": 2, "batch_size": 8, **options})
    return trainer


def numbers(history):
    """Return the numbers of the history without the time."""
    return [[value for name, value in row.items() if name != "time_seconds"] for row in history]


def assert_same_run(trainer, expected):
    """Assert equal weights. Means over an epoch differ by the rounding of float32 products."""
    for value, other in zip(
        trainer.model.state_dict().values(), expected.model.state_dict().values(), strict=True
    ):
        assert torch.equal(value.cpu(), other.cpu())
    torch.testing.assert_close(
        torch.tensor(numbers(trainer.history.epochs)),
        torch.tensor(numbers(expected.history.epochs)),
        rtol=1e-6,
        atol=1e-7,
    )


def test_run_and_evaluation_on_an_apple_device_equal_those_on_a_cpu(apple, tmp_path):
    trainer, expected = fitted(), fitted("cpu")
    vae, reference = trainer.model, expected.model
    assert trainer.device.type == next(vae.parameters()).device.type == "mps"
    assert_same_run(trainer, expected)
    options = {"elbo_samples": 4, "importance_samples": 20, **QUIET}
    assert str(evaluate(vae, DATA, **options)) == str(evaluate(reference, DATA, **options))
    evidence = log_marginal(vae, DATA, num_samples=9, **QUIET)
    assert torch.equal(evidence.cpu(), log_marginal(reference, DATA, num_samples=9, **QUIET))
    variance = active_units(vae, DATA)["z"].variance
    assert torch.equal(variance, active_units(reference, DATA)["z"].variance)
    assert vae.sample(3).device.type == "mps"
    vae.save(tmp_path / "vae")
    loaded = VAE.load(tmp_path / "vae")
    assert torch.equal(loaded.reconstruct(DATA), vae.reconstruct(DATA).cpu())


@pytest.mark.parametrize("resumed", ["mps", "cpu"])
def test_run_from_an_apple_device_resumes(apple, tmp_path, resumed):
    through = fitted("mps")
    with pytest.raises(KeyboardInterrupt):
        fitted("mps", [Checkpoint(tmp_path), After(4, raises(KeyboardInterrupt()))])
    torch.mps.manual_seed(9)
    changes = pytest.warns(UserWarning, match="device") if resumed == "cpu" else nullcontext()
    with changes:
        trainer = fitted(resumed, [Checkpoint(tmp_path)], resume=tmp_path)
    assert_same_run(trainer, through)


def test_loss_that_is_not_finite_leaves_the_weights_on_an_apple_device(apple):
    class Broken(ELBO):
        def forward(self, model, batch):
            output = super().forward(model, batch)
            if torch.is_grad_enabled() and model.training:
                self.before = [p.tolist() for p in model.parameters()]
                self.calls = getattr(self, "calls", 0) + 1
                factor = math.nan if self.calls == 6 else 1.0
                output.losses["model"] = factor * output.losses["model"]
            return output

    objective, vae = Broken(), make_vae()
    with pytest.raises(NonFiniteError, match=r"step \d .*loss = nan"):
        fitted(model=vae, objective=objective, epochs=9)
    assert objective.calls == 6
    assert [p.tolist() for p in vae.parameters()] == objective.before


def test_compiled_pass_is_verified_on_an_apple_device(apple, monkeypatch):
    # torch's compiler does not know the emulation. The pass is the traced function itself.
    monkeypatch.setattr(compiled.CompiledGradients, "_compile", lambda _, run, *__, **___: run)
    trainer = Trainer(make_vae(), ELBO(), speed=Speed(compile=True), **QUIET)
    trainer.fit(DATA, epochs=1, batch_size=10)
    plain = Trainer(make_vae(), ELBO(), **QUIET)
    plain.fit(DATA, epochs=1, batch_size=10)
    assert rows(trainer.history) == rows(plain.history)


def test_objective_moves_to_an_apple_device(apple):
    objective = ELBO(0.1, free_bits=0.3) + DIPRegularizer(Linear(0.2, 1.0, steps=3), diagonal=0.7)
    exact = {name: buffer.item() for name, buffer in objective.named_buffers()}
    objective.set_step(0, 10)
    objective.to("mps")
    assert {buffer.dtype for buffer in objective.buffers()} == {torch.float32}
    objective.cpu().double()
    objective.set_step(0, 10)
    assert {name: buffer.item() for name, buffer in objective.named_buffers()} == exact


def test_imputation_of_float64_data_stays_exact_on_an_apple_device(apple):
    vae = make_vae(MaskedLikelihood(GaussianLikelihood())).to("mps")
    x = torch.randn(6, 4, dtype=torch.float64)
    mask = torch.rand(6, 4) > 0.3
    for options in ({}, {"num_imputations": 3}):
        completed = impute(vae, x, mask=mask, num_samples=20, **QUIET, **options)
        assert completed.dtype == torch.float64
        assert torch.equal(completed[..., mask], x[mask].expand(*completed.shape[:-2], -1))
    assert impute(vae, x.float().to("mps"), mask=mask, num_samples=20, **QUIET).is_mps


def test_sixteen_bit_levels_are_binarized_on_an_apple_device(apple):
    levels = torch.randint(2**16, (20, 4))
    vae = make_vae()
    trainer = Trainer(vae, ELBO(), **QUIET)
    trainer.fit(levels, epochs=1, transform=DynamicBinarization(max_value=2**16 - 1))
    assert trainer.step == 1


def test_data_outside_the_support_are_named_on_an_apple_device(apple):
    x = 7 * DATA.double()
    with pytest.raises(ValueError, match=r"values in \[0, 1\], got 0\.\.7, such as 7, in "):
        Trainer(make_vae(), ELBO(), **QUIET).fit(x, epochs=1)


def test_rounding_to_half_precision_is_measured_on_an_apple_device(apple):
    x = 3000 + torch.randn(50, 2)
    assert rounding_of(x.to("mps"), torch.float16) == rounding_of(x, torch.float16) > 0.1


def test_float64_model_gets_the_cpu(apple):
    vae = make_vae().double()
    assert fitted(model=vae).device.type == "cpu"
    with pytest.raises(TypeError, match="MPS framework doesn't support float64"):
        fitted("mps", model=vae)


def test_operation_that_the_device_lacks_is_named(apple, monkeypatch):
    monkeypatch.setattr(emulation, "MISSING", {torch.ops.aten._standard_gamma.default})
    encoder, decoder = PowerSphericalEncoder(MLP(4), 3), MLP(3, out_shape=4)
    vae = VAE(encoder, decoder, BernoulliLikelihood(), SphereUniformPrior(3))
    with pytest.raises(NotImplementedError, match=r"'aten\._standard_gamma.*MPS_FALLBACK=1"):
        fitted(model=vae)


@pytest.mark.slow
@pytest.mark.parametrize("name", DIVERSE)
def test_every_combination_runs_on_an_apple_device(apple, name):
    torch.manual_seed(0)
    vae = combined(name, torch.float32)
    trainer = fitted(model=vae, objective=ELBO(num_samples=2))
    assert all(math.isfinite(value) for value in trainer.history.epochs[-1].values())
    report = evaluate(vae, DATA, elbo_samples=4, importance_samples=20, **QUIET)
    assert math.isfinite(report.log_marginal.mean)
    assert active_units(vae, DATA, **QUIET)
    assert vae.sample(3).shape == (3, 4)
