"""Lagrange multipliers against the exact optimum of linear Gaussian models."""

import math

import pytest
import torch
from helpers.cases import for_each
from torch import nn

from tinyvae import (
    ELBO,
    MLP,
    VAE,
    Batch,
    Checkpoint,
    GaussianEncoder,
    GaussianLikelihood,
    Optimization,
    Trainer,
    evaluate,
)
from tinyvae.encoders import CategoricalEncoder
from tinyvae.objectives import LagrangeMultiplier
from tinyvae.priors import CategoricalPrior

pytestmark = pytest.mark.usefixtures("float64")

VARIANCES = torch.tensor([4.0, 2.0, 0.5, 0.25])
NOISE = 0.5  # variance of the decoder


def data():
    """Data whose covariance is exactly the diagonal matrix of VARIANCES."""
    x = torch.randn(400, 4)
    basis, _ = torch.linalg.qr(x - x.mean(0))
    return math.sqrt(400) * basis * VARIANCES.sqrt()


def linear_vae():
    encoder = GaussianEncoder(nn.Identity(), 2, features=4)
    return VAE(encoder, MLP(2, hidden=(), out_shape=4), GaussianLikelihood(math.sqrt(NOISE)))


def train(objective, epochs=1500):
    x, vae = data(), linear_vae()
    optimization = Optimization(learning_rate=1e-2)
    trainer = Trainer(vae, objective, optimization=optimization, device="cpu", progress=False)
    trainer.fit(x, epochs=epochs, batch_size=400)
    return evaluate(vae, x, elbo_samples=200, importance_samples=None)


def optimal_rate(beta):
    """KL of the optimum of a linear VAE whose two units are active, nats."""
    return 0.5 * (VARIANCES[:2] / (beta * NOISE)).log().sum().item()


def optimal_log_likelihood(beta):
    """E log p(x given z) of the same optimum: each active unit leaves the variance beta NOISE."""
    errors = 2 * beta * NOISE + VARIANCES[2:].sum().item()
    return -0.5 * errors / NOISE - 2 * math.log(2 * math.pi * NOISE)


@pytest.mark.slow
def test_multiplier_of_the_rate_reaches_target_and_optimal_weight():
    objective = ELBO(LagrangeMultiplier(optimal_rate(2.5), step_size=5e-3), num_samples=4)
    report = train(objective)
    assert report.kl.mean == pytest.approx(optimal_rate(2.5), abs=0.03)
    assert objective.beta.value.item() == pytest.approx(2.5, rel=0.03)


@pytest.mark.slow
def test_multiplier_of_the_log_likelihood_reaches_target_and_optimal_weight():
    target = optimal_log_likelihood(2.0)
    weight = LagrangeMultiplier(target, step_size=5e-3)
    report = train(ELBO(likelihood_weight=weight, num_samples=4))
    assert report.log_likelihood.mean == pytest.approx(target, abs=0.03)
    assert weight.value.item() == pytest.approx(0.5, rel=0.03)


@for_each(
    "excess, factor",
    [(2.0, math.exp(0.02)), (-3.0, math.exp(-0.03)), (1e5, math.exp(0.1)), (0.0, 1.0)],
)
def test_multiplier_moves_by_the_excess(excess, factor):
    multiplier = LagrangeMultiplier(5.0, step_size=0.01, start=2.0)
    multiplier.move(torch.tensor(excess))
    assert multiplier.value.item() == pytest.approx(2.0 * factor)


def test_multiplier_stays_finite_if_no_model_fulfills_the_constraint():
    multiplier = LagrangeMultiplier(5.0, step_size=10.0)
    for sign in (1, -1):
        for _ in range(10):
            multiplier.move(torch.tensor(sign * 100.0))
        assert 0 < multiplier.value.item() < math.inf


def test_multiplier_moves_in_training_only_and_after_the_loss():
    vae, x = linear_vae(), torch.randn(8, 4)
    objective = ELBO(LagrangeMultiplier(100.0, start=3.0))
    torch.manual_seed(1)
    output = objective(vae, Batch(x))
    moved = objective.beta.value.clone()
    torch.manual_seed(1)
    expected = ELBO(3.0)(vae, Batch(x)).losses["model"]
    assert torch.equal(output.losses["model"], expected)
    output.losses["model"].backward()
    assert moved < 3.0
    assert output.metrics["beta"] == moved
    with torch.no_grad():
        objective(vae, Batch(x))
    objective.eval()(vae, Batch(x))
    assert torch.equal(objective.beta.value, moved)


def test_multiplier_weights_the_score_function_gradient_by_its_value_before_the_step():
    encoder = CategoricalEncoder(MLP(4, (5,)), num_classes=3, temperature=None)
    vae = VAE(encoder, MLP((3, 1), (5,), out_shape=4), GaussianLikelihood(), CategoricalPrior(3))
    gradients = []
    for beta in (3.0, LagrangeMultiplier(100.0, start=3.0, step_size=0.1)):
        torch.manual_seed(2)
        vae.zero_grad()
        ELBO(beta, num_samples=3)(vae, Batch(torch.ones(5, 4))).losses["model"].backward()
        gradients.append([p.grad.clone() for p in vae.parameters()])
    torch.testing.assert_close(*gradients)


def test_elbo_with_a_multiplier_is_no_bound_and_says_its_target():
    vae, x = linear_vae(), torch.randn(8, 4)
    objective = ELBO(LagrangeMultiplier(10.0), likelihood_weight=LagrangeMultiplier(-3.0))
    assert not objective.is_bound(vae)
    assert "beta LagrangeMultiplier(10)" in objective.check(vae, Batch(x))
    assert "likelihood weight LagrangeMultiplier(-3)" in objective.check(vae, Batch(x))
    assert objective.changing_weights() == ["beta", "likelihood_weight"]


@pytest.mark.filterwarnings("ignore:the run was begun for 3 epochs")
def test_multiplier_continues_bitwise_in_a_resumed_run(tmp_path):
    def fit(path, epochs):
        torch.manual_seed(0)
        vae, objective = linear_vae(), ELBO(LagrangeMultiplier(2.0))
        trainer = Trainer(
            vae, objective, device="cpu", progress=False, callbacks=[Checkpoint(tmp_path / path)]
        )
        x = torch.arange(256.0).reshape(64, 4).cos()
        trainer.fit(x, epochs=epochs, batch_size=16, resume="auto")
        return objective.beta.value, vae.state_dict(), trainer.history["train/beta"]

    fit("resumed", 3)
    resumed, complete = fit("resumed", 6), fit("complete", 6)
    assert torch.equal(resumed[0], complete[0])
    assert resumed[0] != 1.0
    assert all(torch.equal(v, complete[1][name]) for name, v in resumed[1].items())
    assert resumed[2] == complete[2]


@for_each("options", [{"target": math.inf}, {"step_size": 0.0}, {"start": 0.0}])
def test_multiplier_refuses_arguments(options):
    with pytest.raises(ValueError, match="LagrangeMultiplier expects a finite target"):
        LagrangeMultiplier(**{"target": 1.0} | options)
