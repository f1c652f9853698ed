"""Files of every release stay readable: a model, a checkpoint, and the expected results.

``tests/data`` has three files per release. ``python tests/training/checkpoints/test_old_files.py``
writes those of the current release. Existing files are never overwritten.
"""

import json
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import pytest
import torch

import tinyvae
from tinyvae import (
    ELBO,
    MLP,
    VAE,
    BernoulliLikelihood,
    Checkpoint,
    EarlyStopping,
    GaussianEncoder,
    Optimization,
    Trainer,
)
from tinyvae.schedules import Linear

DATA = Path(__file__).parents[2] / "data"
VERSIONS = sorted(file.stem.removeprefix("expected-") for file in DATA.glob("expected-*.json"))
EPOCHS, BATCH_SIZE, STEP = 3, 8, 5  # an epoch has 4 steps
MAX_BYTES = 24_000


def make_model():
    torch.manual_seed(0)
    encoder = GaussianEncoder(MLP(4, (6,), 6), latent_dim=2, features=6)
    return VAE(encoder, MLP(2, (6,), 4), BernoulliLikelihood())


def make_trainer(*callbacks):
    objective = ELBO(beta=Linear(0.0, 1.0, fraction=0.8))
    optimization = Optimization(
        0.02, scheduler=lambda o, total: torch.optim.lr_scheduler.CosineAnnealingLR(o, total)
    )
    callbacks = [*callbacks, EarlyStopping("train/elbo_nats", patience=9)]
    options = {"callbacks": callbacks, "device": "cpu", "progress": False}
    return Trainer(make_model(), objective, optimization, **options)


def fit(trainer, x, **options):
    with warnings.catch_warnings():
        # Another release of torch is another mode.
        warnings.filterwarnings("ignore", "the run continues, but not bitwise")
        warnings.filterwarnings("ignore", "the checkpoint has state for callbacks")
        trainer.fit(x, epochs=EPOCHS, batch_size=BATCH_SIZE, **options)
    return trainer


@torch.no_grad()
def results(model, x):
    """Return what a model computes from data without random numbers."""
    posterior = model.eval().encoder(x)
    return {"mean": posterior.mean.tolist(), "reconstruction": model.reconstruct(x).tolist()}


def columns(trainer):
    columns = trainer.history.to_dict()["epochs"]
    return {name: column for name, column in columns.items() if name != "time_seconds"}


@pytest.fixture(params=VERSIONS)
def release(request):
    """The files of a release."""
    expected = json.loads((DATA / f"expected-{request.param}.json").read_text())
    files = (DATA / f"{name}-{request.param}.safetensors" for name in ("model", "checkpoint"))
    return *files, expected, torch.tensor(expected["x"])


def assert_close(actual, expected, tolerance):
    assert actual.keys() == expected.keys()
    for name in actual:
        torch.testing.assert_close(
            torch.tensor(actual[name]), torch.tensor(expected[name]), rtol=tolerance, atol=tolerance
        )


def test_old_files_include_this_release():
    assert tinyvae._version.__version__ in VERSIONS


def test_old_files_are_small(release):
    assert all(0 < file.stat().st_size <= MAX_BYTES for file in release[:2])


def test_old_model_is_loaded(release):
    model, _, expected, x = release
    assert_close(results(VAE.load(model), x), expected["model"], 1e-5)


def test_old_checkpoint_is_loaded_as_a_model(release):
    _, checkpoint, expected, x = release
    assert_close(results(VAE.load(checkpoint), x), expected["checkpoint"], 1e-5)


def test_old_checkpoint_is_resumed_to_the_end(release):
    _, checkpoint, expected, x = release
    trainer = fit(make_trainer(), x, resume=checkpoint)
    assert trainer.step == expected["steps"]
    assert trainer.history["epoch"] == list(range(1, EPOCHS + 1))
    assert_close(columns(trainer), expected["history"], 1e-4)
    assert_close(results(trainer.model, x), expected["end"], 1e-4)


def test_old_run_has_the_same_results_from_its_start(release):
    *_, expected, x = release
    trainer = fit(make_trainer(), x)
    assert_close(columns(trainer), expected["history"], 1e-4)
    assert_close(results(trainer.model, x), expected["end"], 1e-4)
    assert expected["checkpoint"] != expected["end"] == expected["model"]


# Writing of new files ----------------------------------------------------------------------------


def write():
    """Write the files of the current release."""
    generator = torch.Generator().manual_seed(1)
    x = (torch.rand(29, 4, generator=generator) < 0.4).float()
    expected = DATA / f"expected-{tinyvae._version.__version__}.json"
    if expected.exists():
        sys.exit(f"{expected} exists already")
    model, checkpoint = (
        DATA / f"{name}-{tinyvae._version.__version__}.safetensors"
        for name in ("model", "checkpoint")
    )
    DATA.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        trainer = fit(make_trainer(Checkpoint(folder, every_steps=1, keep=99)), x)
        shutil.copy(Path(folder, "model.safetensors"), model)
        shutil.copy(Path(folder, f"step-{STEP:08d}.safetensors"), checkpoint)
    results_of_run = {
        "x": x.tolist(),
        "steps": trainer.step,
        "history": columns(trainer),
        "model": results(VAE.load(model), x),
        "checkpoint": results(VAE.load(checkpoint), x),
        "end": results(trainer.model, x),
    }
    expected.write_text(json.dumps(results_of_run, indent=1) + "\n")


if __name__ == "__main__":
    write()
