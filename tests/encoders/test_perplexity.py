"""The perplexity of codes over the data, whatever the batches are."""

import pytest
import torch
from helpers.cases import for_each
from helpers.codebooks import binary
from torch import nn

from tinyvae import (
    ELBO,
    VAE,
    Batch,
    BernoulliLikelihood,
    Callback,
    Checkpoint,
    GaussianEncoder,
    Trainer,
)
from tinyvae.encoders import JointEncoder, VectorQuantizedEncoder
from tinyvae.objectives import LatentL2Regularizer
from tinyvae.priors import CodePrior, JointPrior, StandardNormal
from tinyvae.training import Optimization, Speed

CODES, DATA = 16, 6


def encoder(num_quantizers=1, decay=None):
    torch.manual_seed(0)
    options = {"num_codes": CODES, "latent_dim": (2, 3), "num_quantizers": num_quantizers}
    return VectorQuantizedEncoder(nn.Linear(DATA, 8), features=8, decay=decay, **options)


def make_vae(num_quantizers=1, decay=None):
    prior = CodePrior(CODES, latent_dim=(2, 3), num_quantizers=num_quantizers)
    decoder = nn.Sequential(nn.Flatten(), nn.Linear(6, DATA))
    return VAE(encoder(num_quantizers, decay), decoder, BernoulliLikelihood(), prior)


def joint_vae():
    parts = {"style": GaussianEncoder(nn.Linear(DATA, 4), 2, features=4), "codes": encoder()}
    prior = JointPrior({"style": StandardNormal(2), "codes": CodePrior(CODES, latent_dim=(2, 3))})
    decoder = nn.Linear(8, DATA)
    return VAE(JointEncoder(parts), decoder, BernoulliLikelihood(), prior)


def perplexities(codes):
    """Return the perplexity of the codes ``(N, Q, S)`` of each level."""
    counts = [torch.bincount(level.flatten(), minlength=CODES) for level in codes.unbind(1)]
    return [torch.distributions.Categorical(c.double()).entropy().exp().item() for c in counts]


def fit(vae, x, batch_size, objective=None, *, validation=None, **options):
    settings = {"optimization": Optimization(0.0), "progress": False, "device": "cpu", **options}
    trainer = Trainer(vae, objective or ELBO(), **settings)
    return trainer.fit(x, validation, epochs=1, batch_size=batch_size)


@for_each("batch_size", [1, 8, 37, 100])
@for_each("num_quantizers", [1, 2])
def test_perplexity_of_the_history_is_that_of_the_data(batch_size, num_quantizers):
    vae, x = make_vae(num_quantizers).double(), binary(37, DATA).double()
    vae.encoder.restart_below = 0.0
    history = fit(vae, x, batch_size, ELBO() + LatentL2Regularizer(0.0), validation=x[:20])
    with torch.no_grad():
        codes = vae.eval().encode(x).codes.reshape(37, num_quantizers, 3)
    names = ["z_perplexity"] if num_quantizers == 1 else ["z_perplexity_1", "z_perplexity_2"]
    for part, rows in (("train", codes), ("validation", codes[:20])):
        found = [history[f"{part}/{name}"][0] for name in names]
        assert found == pytest.approx(perplexities(rows), rel=1e-12)


def test_perplexity_of_a_part_of_the_latent():
    vae, x = joint_vae(), binary(37, DATA)
    vae.encoder.encoders["codes"].restart_below = 0.0
    history = fit(vae, x, 4)
    with torch.no_grad():
        posterior = vae.eval().encode(x)
    assert list(posterior.shares) == ["codes_perplexity"]
    codes = posterior.parts["codes"].codes.reshape(37, 1, 3)
    assert history["train/codes_perplexity"] == pytest.approx(perplexities(codes), rel=1e-5)


def test_perplexity_of_one_pass_is_that_of_the_batch():
    vae, x = make_vae(), binary(8, DATA)
    output = ELBO()(vae.eval(), Batch(x))
    codes = vae.encode(x).codes.reshape(8, 1, 3)
    assert output.metrics["z_perplexity"].item() == pytest.approx(perplexities(codes)[0], rel=1e-5)
    assert output.shares["z_perplexity"].sum().item() == pytest.approx(1, rel=1e-6)


class StopAt(Callback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, state, output):
        if state.step == self.step:
            state.stop("enough", resumable=True)


@for_each("step", [2, 5])  # within the epoch, and after its last batch
def test_perplexity_continues_from_a_checkpoint(tmp_path, step):
    x = binary(37, DATA)
    expected = fit(make_vae(), x, 8)["train/z_perplexity"]
    folder = tmp_path / str(step)
    fit(make_vae(), x, 8, callbacks=[Checkpoint(folder), StopAt(step)])
    vae = make_vae()
    trainer = Trainer(
        vae, ELBO(), Optimization(0.0), progress=False, device="cpu", callbacks=[Checkpoint(folder)]
    )
    resumed = trainer.fit(x, epochs=1, batch_size=8, resume="auto")
    assert resumed["train/z_perplexity"] == expected
    assert 2 < expected[0] < CODES


@pytest.mark.slow
def test_perplexity_of_a_compiled_pass():
    x = binary(32, DATA)
    plain, compiled = (
        fit(make_vae(decay=0.99), x, 8, speed=Speed(compile=compile_))["train/z_perplexity"]
        for compile_ in (False, True)
    )
    assert compiled == pytest.approx(plain, rel=1e-5)
    assert compiled[0] > 2
