"""The examples run from the command line."""

import json
import math
import runpy
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from tinyvae import MLP, VAE, BernoulliLikelihood, datasets

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Run the MNIST example in an empty folder, with a torchvision that fails, as on a new CPU."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "torchvision.py").write_text("raise RuntimeError('operator nms does not exist')")
    command = [sys.executable, EXAMPLES / "mnist_vae.py", "--epochs", "2"]
    environment = {"PYTHONPATH": str(folder), "PATH": "", "HOME": str(folder)}
    result = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout, folder / "runs" / "mnist_vae"


def test_mnist_example_runs_on_mnist_everywhere(short_run):
    assert short_run[0].splitlines()[0] == (
        "MNIST, 14 x 14 binary pixels: 10,000 training, 1,000 validation and 10,000 test images"
    )


def test_mnist_example_writes_figures_model_and_results(short_run):
    folder = short_run[1]
    names = {path.name for path in folder.iterdir()}
    figures = (
        "elbo_terms",
        "latent_means",
        "latent_walk",
        "reconstruction_term",
        "reconstructions",
        "samples",
    )
    expected = {f"mnist14_{name}.png" for name in figures}
    others = {"results.json", "mnist14_vae.safetensors", "mnist14_latent_page.html"}
    assert names == expected | others
    results = json.loads((folder / "results.json").read_text())
    assert results["num_train"] == 10_000
    test = results["test_1000"]
    assert test["elbo"]["nats"] < test["log_marginal"]["nats"] < 0


def test_mnist_example_saves_the_evaluated_model(short_run):
    from tinyvae import evaluate

    vae = VAE.load(short_run[1] / "mnist14_vae.safetensors")
    test = datasets.mnist14()[2].images.float()
    report = evaluate(vae, test[:1000], importance_samples=2, importance_examples=2)
    results = json.loads((short_run[1] / "results.json").read_text())
    assert report.elbo.mean == pytest.approx(results["test_1000"]["elbo"]["nats"], abs=1e-4)


def test_mnist_example_in_full_needs_the_files(tmp_path: Path):
    command = [sys.executable, EXAMPLES / "mnist_vae.py", "--size", "28"]
    (tmp_path / "torchvision.py").write_text("raise ImportError('none here')")
    environment = {"PYTHONPATH": str(tmp_path), "PATH": "", "HOME": str(tmp_path)}
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode != 0
    assert "MNIST/raw" in result.stderr
    assert not (tmp_path / "runs").exists()


def test_mnist_example_trains_convolutions_on_large_images(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    from mnist_images import MNISTImages
    from mnist_vae import DEFAULTS, build, train

    images = torch.randint(0, 256, (64, 1, 28, 28), dtype=torch.uint8)
    binarize = datasets.DynamicBinarization(255)
    labels = torch.zeros(64, dtype=torch.int64)
    data = MNISTImages("noise", images, images, images.float() / 255, labels, binarize)
    vae = build(images.shape[1:])
    settings = DEFAULTS[28] | {"epochs": 1, "seed": 0}
    history = train(vae, data, Namespace(**settings))
    assert math.isfinite(history["validation/elbo_nats"][-1])
    assert data.binary(images).unique().tolist() == [0, 1]


def test_published_quantity_exceeds_the_elbo_by_its_identity(monkeypatch: pytest.MonkeyPatch):
    """Check reported = ELBO(q~) + (D / 2) ln 2 - sum(s^2) / 4 for each image and draw."""
    monkeypatch.syspath_prepend(EXAMPLES)
    from published_reference import TwoDrawEncoder, published_quantity

    torch.manual_seed(0)
    shape = torch.Size((1, 8, 8))
    vae = VAE(TwoDrawEncoder(shape), MLP(8, out_shape=shape), BernoulliLikelihood()).double()
    x = datasets.threshold(datasets.digits().images[:20], 8).double()

    torch.manual_seed(1)
    reported = published_quantity(vae, x, num_samples=3)
    torch.manual_seed(1)
    output = vae(x, num_samples=3)
    (term,) = output.latents
    elbo = output.log_px.mean(0) - term.kl("analytic")

    _, std = vae.encoder.head(vae.encoder.network(x)).chunk(2, dim=1)
    gap = 4 * math.log(2) - std.square().sum(1) / 4
    torch.testing.assert_close(reported - elbo, gap, rtol=0, atol=1e-10)
    # z has the distribution of the mean of two draws from N(m, s^2).
    torch.testing.assert_close(term.posterior.base.log_std.exp() * math.sqrt(2), std.abs())


@pytest.mark.parametrize(
    ("name", "figures"),
    [
        ("bounds", ["gallery_bounds.png"]),
        ("compare_models", ["gallery_compare.png"]),
        ("collapse", ["gallery_collapse.png", "gallery_collapse_images.png"]),
        ("conditional_digits", ["gallery_conditional.png"]),
        ("discrete_latents", ["gallery_discrete.png"]),
        ("layers", ["gallery_layers.png", "gallery_layers_samples.png"]),
        ("vector_quantization", ["gallery_code_usage.png", "gallery_codes.png"]),
    ],
)
def test_gallery_example_runs(name, figures, tmp_path, monkeypatch, capsys):
    arguments = ["--epochs", "1", "--seeds", "1", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    monkeypatch.syspath_prepend(str(EXAMPLES))
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert sorted(path.name for path in tmp_path.iterdir()) == figures
    assert "nan" not in capsys.readouterr().out.split()


def test_tables_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tables", "--epochs", "1", "--output", str(tmp_path)])
    monkeypatch.syspath_prepend(str(EXAMPLES))
    runpy.run_path(str(EXAMPLES / "tables.py"), run_name="__main__")
    names = ("embedding", "filled", "scores", "synthetic")
    figures = {f"tables_{name}.png" for name in names}
    assert {path.name for path in tmp_path.iterdir()} == figures | {"customers.csv"}
    assert "identifier" in capsys.readouterr().out


def test_preemptible_example_ends_with_the_same_bytes(tmp_path, monkeypatch, capsys):
    arguments = ["--show", "--kills", "2", "--epochs", "15", "--output", str(tmp_path / "show")]
    monkeypatch.setattr(sys, "argv", ["preemptible", *arguments])
    monkeypatch.syspath_prepend(str(EXAMPLES))
    runpy.run_path(str(EXAMPLES / "preemptible.py"), run_name="__main__")
    assert "killed 2 times: the same bytes in model.safetensors" in capsys.readouterr().out
    assert (tmp_path / "show" / "gallery_preemptible.png").exists()
