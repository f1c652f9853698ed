"""What the user gives to a model: data, latents and contexts of any kind and shape."""

import re

import numpy as np
import pytest
import torch
from helpers.cases import for_each
from torch import nn

from tinyvae import (
    ELBO,
    IWAE,
    MLP,
    VAE,
    Batch,
    BernoulliLikelihood,
    ConvNet,
    GaussianEncoder,
    GaussianLikelihood,
    Trainer,
    TransposedConvNet,
)
from tinyvae.core.objective import checked_data
from tinyvae.evaluation import active_units, evaluate, impute, log_marginal
from tinyvae.likelihoods import CategoricalLikelihood, LogNormalLikelihood, MaskedLikelihood
from tinyvae.models import BottomUpVAE, TwoLevelVAE, summary
from tinyvae.networks import ConcatContext
from tinyvae.objectives import LatentL2Regularizer


def vae(shape=(4,), likelihood=None):
    likelihood = BernoulliLikelihood() if likelihood is None else likelihood
    return VAE.from_shapes(shape, latent_dim=2, likelihood=likelihood)


def image_vae():
    encoder = GaussianEncoder(ConvNet((3, 8, 6), channels=(2,)), 2)
    return VAE(encoder, TransposedConvNet(2, channels=(2,)), BernoulliLikelihood())


# Everything that takes x from the user. name: function of a model and x
TAKES_DATA = {
    "model": lambda m, x: m(x),
    "model with draws": lambda m, x: m(x, num_samples=3, frozen_posterior=True),
    "encode": lambda m, x: m.encode(x),
    "reconstruct": lambda m, x: m.reconstruct(x),
    "check": lambda m, x: m.check(x),
    "init_output_bias": lambda m, x: m.init_output_bias(x),
    "terms": lambda m, x: ELBO().terms(m, Batch(x)),
    "objective": lambda m, x: IWAE(2)(m, Batch(x)),
    "regularized": lambda m, x: (ELBO() + LatentL2Regularizer(1.0))(m, Batch(x)),
    "objective.check": lambda m, x: ELBO().check(m, Batch(x)),
    "fit": lambda m, x: Trainer(m, ELBO(), device="cpu", progress=False).fit(x, epochs=1),
    "log_marginal": lambda m, x: log_marginal(m, x, num_samples=2),
    "evaluate": lambda m, x: evaluate(m, x, elbo_samples=2, importance_samples=2),
    "active_units": lambda m, x: active_units(m, x),
    "impute": lambda m, x: impute(m, x, num_samples=2),
}
OUTSIDE = {
    "gray levels": (
        BernoulliLikelihood,
        lambda x: 16 * x,
        r"expects values in \[0, 1\], got 0\.\.16",
    ),
    "NaN": (GaussianLikelihood, lambda x: x.log() * 0, "got NaN in 6 of 6 examples"),
    "negative": (LogNormalLikelihood, lambda x: -x, "LogNormalLikelihood expects"),
    "classes": (
        lambda: CategoricalLikelihood(3),
        lambda x: x + 2.5,
        "CategoricalLikelihood expects",
    ),
    "masked": (
        lambda: MaskedLikelihood(BernoulliLikelihood()),
        lambda x: torch.where(x == 0, torch.nan, 16.0),
        r"expects values in \[0, 1\], got",
    ),
}


@pytest.mark.parametrize("mode", [True, False])
@for_each("name", OUTSIDE)
def test_data_outside_the_support_are_refused_wherever_they_enter(mode, name):
    make, change, message = OUTSIDE[name]
    x = torch.eye(4)[[0, 1, 2, 3, 0, 1]]
    for take in TAKES_DATA.values():
        with pytest.raises(ValueError, match=message):
            take(vae(likelihood=make()).train(mode), change(x))


def test_checked_data_are_not_checked_again(monkeypatch):
    """A training step does not pay for the checks."""

    def count(self, x):
        checks.append(len(x))
        return original(self, x)

    original, checks, model = BernoulliLikelihood.check_support, [], vae()
    monkeypatch.setattr(BernoulliLikelihood, "check_support", count)
    x = torch.eye(4).repeat(5, 1)
    Trainer(model, ELBO(), device="cpu", progress=False).fit(x, x[:4], epochs=3, batch_size=5)
    assert checks == [20, 4]
    with checked_data():
        model(x)
    assert checks == [20, 4]
    log_marginal(model, x, num_samples=3)
    assert checks == [20, 4, 20]
    model(x)
    assert checks == [20, 4, 20, 20]


def test_summary_needs_no_data_in_the_support():
    assert "total" in summary(vae(likelihood=LogNormalLikelihood()))


# Kinds of data ------------------------------------------------------------------------------------

NUMBERS = {
    "float64": lambda x: x.double(),
    "array": lambda x: x.numpy(),
    "array of float64": lambda x: x.double().numpy(),
    "array of integers": lambda x: x.long().numpy(),
    "booleans": lambda x: x.bool(),
    "read-only": lambda x: np.broadcast_to(x.numpy(), x.shape),
    "reversed": lambda x: x.numpy()[::-1][::-1],
    "lists": lambda x: x.tolist(),
}


@for_each("kind", NUMBERS)
def test_methods_take_numbers_of_any_kind(kind):
    model, x = vae(), torch.eye(4)
    data = NUMBERS[kind](x)
    assert torch.equal(model.encode(data).mean, model.encode(x).mean)
    assert torch.equal(model.reconstruct(data), model.reconstruct(x))
    assert model(data, frozen_posterior=True).likelihood.mean.shape == (1, 4, 4)


def test_objective_takes_numbers_of_another_dtype():
    batch = Batch(torch.eye(4, dtype=torch.float64))
    for estimator in ("pathwise", "stl", "dreg"):
        assert IWAE(2, estimator=estimator)(vae(), batch).losses["model"].dtype == torch.float32


def test_methods_take_a_table():
    pandas = pytest.importorskip("pandas")
    model, x = vae(), torch.eye(4)
    assert torch.equal(model.encode(pandas.DataFrame(x.numpy())).mean, model.encode(x).mean)


def test_masked_array_is_missing_where_it_is_masked():
    model = vae(likelihood=MaskedLikelihood(BernoulliLikelihood()))
    x = np.ma.masked_array(np.eye(4, dtype=np.float32), mask=np.eye(4))
    assert torch.equal(model.encode(x).mean, model.encode(torch.eye(4), mask=1 - np.eye(4)).mean)


def test_decode_and_sample_take_arrays():
    network = ConcatContext(MLP(2 + 3, out_shape=4), context_dim=3)
    encoder = GaussianEncoder(ConcatContext(MLP(4 + 3), context_dim=3), 2)
    model, context = VAE(encoder, network, BernoulliLikelihood()), np.eye(3)
    z = np.ones((3, 2))
    expected = model.decode(torch.ones(3, 2), torch.eye(3)).mean
    assert torch.equal(model.decode(z, context).mean, expected)
    assert model.sample(5, context).shape == (5, 3, 4)


@for_each("data", ["text", None, [[1.0], [1.0, 2.0]], np.array(["a"]), nn.Linear(2, 2)])
def test_methods_refuse_what_is_no_number(data):
    with pytest.raises(TypeError, match=r"VAE expects .* got (a|None|dtype)"):
        vae().encode(data)


# Shapes -------------------------------------------------------------------------------------------

SHAPES = {
    (3, 8, 6): "got (3, 8, 6): add the batch axis, x.unsqueeze(0)",
    (5, 8, 6, 3): "got (5, 8, 6, 3): put the channels first, x.movedim(-1, 1)",
    (5, 144): "got (5, 144): give x.reshape(-1, 3, 8, 6), or build VAE with data_shape=(144,)",
    (144,): "with B >= 1, got (144,): give x.reshape(1, 3, 8, 6) for one example",
    (5, 1, 3, 8, 6): "drop the channel axis, x.squeeze(1)",
    (5, 3, 8, 7): "give examples of shape (3, 8, 6), or build VAE with data_shape=(3, 8, 7) and",
    (0, 3, 8, 6): "got (0, 3, 8, 6): give at least one example",
}


@for_each("shape", SHAPES)
def test_data_of_another_shape_are_refused_wherever_they_enter(shape):
    message = re.escape(SHAPES[shape])
    for name in ("model", "encode", "reconstruct", "check", "init_output_bias", "terms"):
        with pytest.raises(ValueError, match=rf"x of shape \(B, 3, 8, 6\).*{message}"):
            TAKES_DATA[name](image_vae(), torch.zeros(shape))


def test_shape_errors_name_the_axis_that_is_missing():
    with pytest.raises(ValueError, match=r"add the channel axis, x.unsqueeze\(1\)"):
        vae((1, 8, 8)).encode(torch.zeros(5, 8, 8))
    with pytest.raises(
        ValueError, match=r"give x.flatten\(1\), or build VAE with data_shape=\(2, 2\)"
    ):
        vae().encode(torch.zeros(5, 2, 2))
    with pytest.raises(ValueError, match=r"\(B, 4\) with B >= 1, got \(4,\): add the batch axis"):
        vae().encode(torch.zeros(4))


def foreign_vae():
    encoder = GaussianEncoder(nn.Sequential(nn.Linear(4, 5)), 2, features=5)
    return VAE(
        encoder, nn.Sequential(nn.Linear(2, 4), nn.Unflatten(1, (1, 2, 2))), BernoulliLikelihood()
    )


def test_shape_errors_of_foreign_networks_name_their_first_layer():
    with pytest.raises(
        ValueError, match=r"batch of shape \(5, 3\) .*first layer is Linear\(in_features=4,"
    ):
        foreign_vae()(torch.zeros(5, 3))
    with pytest.raises(ValueError, match=r"Linear\(in_features=4.*, put nn.Flatten\(\) before it"):
        foreign_vae()(torch.zeros(5, 1, 2, 2))


def test_later_batch_of_another_shape_names_both_shapes():
    batches = [torch.zeros(2, 4), torch.zeros(2, 3)]
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    message = r"counted from example 2: VAE expects x of shape \(B, 4\), got \(2, 3\)"
    with pytest.raises(ValueError, match=message):
        Trainer(vae(), ELBO(), device="cpu", progress=False).fit(loader, epochs=1)


@for_each("shape", [(5, 3), (3,), (4, 2, 1)])
def test_decode_names_the_shape_of_latents(shape):
    message = rf"VAE.decode expects latents of shape \(..., 2\), got {re.escape(str(shape))}"
    with pytest.raises(ValueError, match=message):
        vae().decode(torch.zeros(shape))


def test_decode_refuses_integers():
    with pytest.raises(TypeError, match=r"floating-point latents, got torch\.int64"):
        vae().decode(torch.zeros(5, 2, dtype=torch.long))


@for_each("count", [0, -1, 2.0, "3"])
def test_number_of_draws_is_an_integer(count):
    for draw in (vae().sample, lambda n: vae()(torch.zeros(1, 4), num_samples=n)):
        with pytest.raises(ValueError, match=f"expects an integer num_samples >= 1, got {count!r}"):
            draw(count)


def test_objectives_name_the_batch_that_they_expect():
    for compute in (ELBO(), ELBO().terms):
        with pytest.raises(TypeError, match=r"ELBO expects a Batch, got a Tensor: give Batch\(x\)"):
            compute(vae(), torch.eye(4))


def test_missing_and_unexpected_contexts_are_named():
    class Reading(nn.Linear):
        def forward(self, x, context):
            return super().forward(x + context)

    decoder = MLP(2, out_shape=4)
    model = VAE(GaussianEncoder(Reading(4, 4), 2, features=4), decoder, BernoulliLikelihood())
    with pytest.raises(ValueError, match=r"\(does it need a context\? give context=\)"):
        model.encode(torch.eye(4))
    with pytest.raises(ValueError, match=r"\(does it take the context as its second argument\?\)"):
        vae().encode(torch.eye(4), torch.eye(4))
    with pytest.raises(ValueError, match=r"one row of context per example, got \(3, 4\) for 4"):
        model.encode(torch.eye(4), torch.zeros(3, 4))


def test_memory_errors_keep_their_type():
    class Large(nn.Linear):
        def forward(self, x):
            raise torch.OutOfMemoryError("planted")

    encoder = GaussianEncoder(Large(4, 4), 2, features=4)
    with pytest.raises(torch.OutOfMemoryError, match="planted"):
        VAE(encoder, MLP(2, out_shape=4), BernoulliLikelihood()).encode(torch.eye(4))


def test_layers_that_return_no_posterior_are_named():
    gaussian = GaussianEncoder(MLP(4), 3)
    upper = GaussianEncoder(MLP(3), 3)
    layered = BottomUpVAE(
        [gaussian, upper], [GaussianEncoder(MLP(3), 3)], MLP(3), BernoulliLikelihood()
    )
    bottom = GaussianEncoder(ConcatContext(MLP(7), context_dim=3), 3)
    parts = {"bottom": bottom, "generator": upper, "decoder": MLP(6)}
    both = TwoLevelVAE(gaussian, **parts, likelihood=BernoulliLikelihood(), data_shape=(4,))
    for part, model in ((upper, layered), (bottom, both)):
        part.forward = lambda x, *_: (x, x)
        with pytest.raises(TypeError, match=r"got a tuple of 2 .*: return Independent"):
            model(torch.eye(4))
