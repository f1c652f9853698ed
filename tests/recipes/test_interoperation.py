"""Models inside the tools of others work, or the error names the remedy."""

import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad

from tinyvae import ELBO, VAE, Batch, BernoulliLikelihood, Trainer, evaluate

RECIPES = Path(__file__).parents[2] / "docs" / "recipes"
X = (torch.rand(64, 6, generator=torch.Generator().manual_seed(0)) > 0.5).float()


@pytest.fixture
def vae():
    return VAE.from_shapes(6, latent_dim=2, likelihood=BernoulliLikelihood())


def same_draws(call):
    torch.manual_seed(1)
    return call()


# Wrappers -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_model_computes_the_same(vae, tmp_path):
    compiled = torch.compile(vae, backend="aot_eager")
    expected = same_draws(lambda: vae(X))
    got = same_draws(lambda: compiled(X))
    torch.testing.assert_close(got.log_px, expected.log_px)
    torch.testing.assert_close(compiled.reconstruct(X), vae.reconstruct(X))
    compiled.save(tmp_path / "vae.safetensors")
    loaded = VAE.load(tmp_path / "vae.safetensors")
    assert torch.equal(loaded.reconstruct(X), vae.reconstruct(X))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_trainer_refuses_a_wrapper_with_the_remedy(vae, wrap):
    trainer = Trainer(wrap(vae), ELBO(), progress=False)
    with pytest.raises(TypeError, match=r"ELBO expects a VAE, got a .*: give it the model itself"):
        trainer.fit(X, epochs=1)


def test_data_parallel_computes_the_same(vae):
    wrapped = nn.DataParallel(vae)
    expected = same_draws(lambda: vae(X))
    assert torch.equal(same_draws(lambda: wrapped(X)).log_px, expected.log_px)
    with pytest.raises(TypeError, match="got a DataParallel: give it the model itself"):
        evaluate(wrapped, X, progress=False)


def test_functional_call_gives_the_gradients_of_backward(vae):
    objective = ELBO()
    parameters = {name: p.detach() for name, p in vae.named_parameters()}

    def loss(parameters):
        def model(*inputs, **options):
            return functional_call(vae, parameters, inputs, options)

        return objective(model, Batch(X)).losses["model"]

    gradients = same_draws(lambda: grad(loss)(parameters))
    same_draws(lambda: objective(vae, Batch(X))).losses["model"].backward()
    for name, parameter in vae.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad)


# Layers -------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_quantized_model_evaluates_but_neither_trains_nor_saves(vae, tmp_path):
    quantized = torch.ao.quantization.quantize_dynamic(vae.eval(), {nn.Linear})
    error = (quantized.reconstruct(X) - vae.reconstruct(X)).abs().max()
    assert 0 < error < 0.02
    difference = (
        evaluate(quantized, X, progress=False).elbo.mean
        - evaluate(vae, X, progress=False).elbo.mean
    )
    assert abs(difference) < 0.05
    assert quantized.sample(3).shape == (3, 6)
    with pytest.raises(ValueError, match="no parameter to train"):
        Trainer(quantized, ELBO(), progress=False).fit(X, epochs=1)
    with pytest.raises(TypeError, match="save the state_dict"):
        quantized.save(tmp_path / "vae.safetensors")


class LoRALinear(nn.Module):
    def __init__(self, base, rank=2):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    @property
    def weight(self):
        return self.base.weight + self.up.weight @ self.down.weight

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


def test_lora_layers_train_alone_and_merge(vae, tmp_path):
    names = [name for name, layer in vae.named_modules() if isinstance(layer, nn.Linear)]
    before = vae.reconstruct(X)
    for name in names:
        vae.set_submodule(name, LoRALinear(vae.get_submodule(name)))
    assert torch.equal(vae.reconstruct(X), before)
    frozen = {n: p.clone() for n, p in vae.named_parameters() if not p.requires_grad}
    history = Trainer(vae, ELBO(), progress=False).fit(X, epochs=20, batch_size=16)
    assert history["train/loss"][-1] < history["train/loss"][0]
    parameters = dict(vae.named_parameters())
    assert len(frozen) == 2 * len(names)
    assert all(torch.equal(parameters[name], value) for name, value in frozen.items())
    with pytest.raises(TypeError, match="save the state_dict"):
        vae.save(tmp_path / "vae.safetensors")

    adapted = vae.reconstruct(X)
    for name in names:
        layer = vae.get_submodule(name)
        layer.base.weight.data = layer.weight.detach()
        vae.set_submodule(name, layer.base)
    torch.testing.assert_close(vae.reconstruct(X), adapted)
    vae.save(tmp_path / "vae.safetensors")


# Recipes ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("recipe", "package"),
    [("lightning_module", "lightning"), ("accelerate_loop", "accelerate")],
)
def test_recipe_trains_a_model(recipe, package, tmp_path, monkeypatch):
    pytest.importorskip(package, exc_type=ImportError)
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path(str(RECIPES / f"{recipe}.py"))
    x, trained = names["x"], names["report"].elbo.mean
    torch.manual_seed(0)
    untrained = VAE.from_shapes(16, latent_dim=2, likelihood=BernoulliLikelihood())
    assert trained > evaluate(untrained, x, progress=False).elbo.mean + 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_recipe_merges_adapters_of_peft(tmp_path, monkeypatch):
    pytest.importorskip("peft", exc_type=ImportError)
    monkeypatch.chdir(tmp_path)
    vae = runpy.run_path(str(RECIPES / "lora.py"))["vae"]
    loaded = VAE.load(tmp_path / "merged.safetensors")
    x = torch.zeros(3, 16)
    assert torch.equal(loaded.reconstruct(x), vae.reconstruct(x))


KILLED = """
import os, runpy, signal, sys
from tinyvae import Trainer

fit, count = Trainer.fit, 0

def counted(*args, **options):
    global count
    count += 1
    if count == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return fit(*args, **options)

Trainer.fit = counted
runpy.run_path(sys.argv[1])
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_search_continues_after_a_kill(tmp_path, monkeypatch):
    optuna = pytest.importorskip("optuna")
    monkeypatch.chdir(tmp_path)
    recipe = str(RECIPES / "optuna_search.py")
    child = subprocess.run([sys.executable, "-c", KILLED, recipe], env=os.environ, cwd=tmp_path)
    assert child.returncode == -signal.SIGKILL
    killed = optuna.load_study(study_name="vae", storage="sqlite:///optuna.db").trials[3]
    study = runpy.run_path(recipe)["study"]
    states = [trial.state.name for trial in study.trials]
    assert states[3] == "FAIL"
    assert states.count("COMPLETE") + states.count("PRUNED") == 8
    assert "PRUNED" in states
    assert study.trials[4].params == killed.params
    pruned = study.get_trials(states=[optuna.trial.TrialState.PRUNED])
    assert all(len(trial.intermediate_values) < 10 for trial in pruned)
