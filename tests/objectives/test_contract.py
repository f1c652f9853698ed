"""The contract of an objective, for every bound and every regularizer."""

import copy

import pytest
import torch
from helpers.cases import for_each
from torch import nn

from tinyvae import ELBO, IWAE, MLP, VAE, Batch, GaussianEncoder, GaussianLikelihood
from tinyvae.core import ObjectiveOutput
from tinyvae.objectives import (
    CIWAE,
    PIWAE,
    TVO,
    AdversarialPriorRegularizer,
    AdversarialTotalCorrelationRegularizer,
    DIPRegularizer,
    GradientPenaltyRegularizer,
    LatentL2Regularizer,
    MMDRegularizer,
    MultiplyIWAE,
    RenyiBound,
    TotalCorrelationRegularizer,
    VAEGANRegularizer,
    VariationalBound,
    WeightL2Regularizer,
)
from tinyvae.schedules import Cosine, Linear
from tinyvae.testing import ContractError, check_objective

pytestmark = pytest.mark.usefixtures("float64")

DATA, LATENT = 5, 2
RAMP = Linear(0.2, 1.0, steps=8)


class CubicMean(VariationalBound):
    """A bound with the default derivatives."""

    metric = "cubic"

    def value(self, log_weight):
        centered = log_weight - log_weight.mean(0)
        return log_weight.mean(0) + 0.001 * torch.tanh(centered).pow(2).mean(0)


def discriminator():
    return MLP(LATENT, hidden=(8,), out_shape=1, activation=nn.Tanh)


def features():
    return MLP(DATA, hidden=(8,), activation=nn.Tanh)


BOUNDS = {
    "elbo": lambda: ELBO(),
    "elbo sampled": lambda: ELBO(num_samples=2, kl="sample"),
    "elbo stl": lambda: ELBO(num_samples=2, estimator="stl"),
    "elbo dreg": lambda: ELBO(estimator="dreg"),
    "beta": lambda: ELBO(RAMP, likelihood_weight=0.7),
    "beta of each": lambda: ELBO({"z": RAMP}, capacity={"z": 1.0}),
    "capacity": lambda: ELBO(3.0, capacity=RAMP),
    "free bits": lambda: ELBO(free_bits=0.1),
    "free bits per layer": lambda: ELBO(free_bits=RAMP, free_bits_per="layer"),
    "iwae": lambda: IWAE(3),
    "iwae stl": lambda: IWAE(3, estimator="stl"),
    "iwae dreg": lambda: IWAE(3, estimator="dreg"),
    "iwae beta": lambda: IWAE(3, beta=RAMP),
    "multiply": lambda: MultiplyIWAE(2, num_bounds=2, estimator="dreg"),
    "partial": lambda: PIWAE(2, num_bounds=2),
    "partial dreg": lambda: PIWAE(2, num_bounds=2, estimator="dreg"),
    "ciwae": lambda: CIWAE(3, elbo_weight=RAMP, estimator="dreg"),
    "renyi": lambda: RenyiBound(3, alpha=Cosine(0.9, 0.1, fraction=0.5)),
    "renyi negative": lambda: RenyiBound(3, alpha=-1.0),
    "renyi dreg": lambda: RenyiBound(3, alpha=2.0, estimator="dreg"),
    "tvo": lambda: TVO(3, num_partitions=3, smallest=RAMP, estimator="dreg"),
    "default derivatives": lambda: CubicMean(3, estimator="dreg"),
}
REGULARIZERS = {
    "latent l2": lambda: LatentL2Regularizer(RAMP),
    "weight l2": lambda: WeightL2Regularizer(RAMP),
    "gradient penalty": lambda: GradientPenaltyRegularizer(0.3),
    "dip": lambda: DIPRegularizer(RAMP, diagonal=3.0),
    "dip total": lambda: DIPRegularizer(1.7, covariance="total"),
    "mmd": lambda: MMDRegularizer(RAMP),
    "total correlation": lambda: TotalCorrelationRegularizer(
        RAMP, dataset_size=40, mutual_information=0.4, dimension_kl=RAMP
    ),
    "adversarial tc": lambda: AdversarialTotalCorrelationRegularizer(discriminator(), weight=RAMP),
    "adversarial prior": lambda: AdversarialPriorRegularizer(discriminator(), weight=1.7),
    "vae-gan": lambda: VAEGANRegularizer(features(), num_features=8, weight=RAMP, similarity=0.3),
}


def small_vae():
    encoder = GaussianEncoder(MLP(DATA, hidden=(6,), activation=nn.Tanh), LATENT)
    decoder = MLP(LATENT, hidden=(6,), out_shape=DATA, activation=nn.Tanh)
    return VAE(encoder, decoder, GaussianLikelihood(0.4))


def batch():
    return Batch(torch.randn(7, DATA))


@pytest.mark.parametrize("name", BOUNDS)
def test_bound_keeps_the_contract(name):
    check_objective(BOUNDS[name](), small_vae(), batch())


@pytest.mark.parametrize("bound", ["elbo", "partial dreg"])
@pytest.mark.parametrize("name", REGULARIZERS)
def test_regularizer_keeps_the_contract(name, bound):
    objective = BOUNDS[bound]() + REGULARIZERS[name]()
    assert not objective.is_bound(small_vae())
    check_objective(objective, small_vae(), batch())


@pytest.mark.slow
@for_each("name", [*BOUNDS, *REGULARIZERS])
def test_objective_needs_no_float64(apple, name):
    objective = BOUNDS[name]() if name in BOUNDS else ELBO() + REGULARIZERS[name]()
    vae, data = small_vae(), torch.randn(7, DATA)
    twins = copy.deepcopy((objective, vae))
    losses = []
    for (each, model), device in (((objective, vae), "cpu"), (twins, "mps")):
        each.to(device)
        each.set_step(3, 10)
        torch.manual_seed(1)
        torch.mps.manual_seed(1)
        output = each(model.to(device), Batch(data.to(device)))
        sum(output.losses.values()).backward()
        losses.append(torch.stack([loss.detach().cpu() for loss in output.losses.values()]))
    torch.testing.assert_close(*losses)
    for parameter, other in zip(vae.parameters(), twins[1].parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad.cpu(), rtol=1e-4, atol=1e-5)


def test_bounds_are_three_levels_below_module():
    for make in BOUNDS.values():
        assert type(make()).__mro__.index(nn.Module) == 3


class Faulty(ELBO):
    """An ELBO whose loss and metrics are changed."""

    def __init__(self, change):
        super().__init__(num_samples=2)
        self.change = change

    def forward(self, model, batch):
        output = super().forward(model, batch)
        losses, metrics = self.change(output.losses["model"], output.metrics, len(batch))
        return ObjectiveOutput(losses, metrics)


def with_loss(change):
    return lambda loss, metrics, _size: ({"model": change(loss)}, metrics)


def with_metric(name, change):
    return lambda loss, metrics, _size: ({"model": loss}, metrics | {name: change(loss)})


FAULTS = {
    "is nan": with_loss(lambda loss: loss * torch.nan),
    r"has shape \(1,\)": with_loss(lambda loss: loss[None]),
    "expected a loss for each": lambda loss, metrics, _size: (
        {"model": loss, "critic": loss},
        metrics,
    ),
    "not detached": with_metric("loss", lambda loss: loss + 0),
    "lacks its unit": with_metric("kl", lambda loss: loss.detach()),
    "does not reach its parameters": with_loss(lambda loss: loss.detach() + 0 * loss),
    "loss model of a float32 model is": with_loss(lambda loss: loss.double()),
    "set couples_batch": lambda loss, metrics, size: ({"model": loss * size}, metrics),
    "at the exact posterior: expected .*, the log evidence": with_loss(lambda loss: loss + 0.5),
}


@for_each("message", FAULTS)
def test_check_objective_finds_a_fault(message):
    with pytest.raises(ContractError, match=message):
        check_objective(Faulty(FAULTS[message]), small_vae(), batch())


def test_check_objective_finds_ignored_weights():
    class Unweighted(ELBO):
        def forward(self, model, batch):
            return super().forward(model, Batch(batch.x))

    data = batch()
    data.x[:3] *= 3
    with pytest.raises(ContractError, match=r"examples of weight 0 change .* batch.mean\(values\)"):
        check_objective(Unweighted(), small_vae(), data)


def test_check_objective_finds_a_bound_above_the_evidence():
    class Above(VariationalBound):
        metric = "above"

        def value(self, log_weight):
            return log_weight.amax(0) + (log_weight.amax(0) - log_weight.amin(0))

    with pytest.raises(ContractError, match="expected a bound below"):
        check_objective(Above(5), small_vae(), batch())


def test_check_objective_finds_a_check_with_side_effects():
    class Drawing(ELBO):
        def check(self, model, batch):
            torch.randn(1)
            return super().check(model, batch)

    with pytest.raises(ContractError, match="check changes random state"):
        check_objective(Drawing(), small_vae(), batch())


def test_check_objective_finds_leaking_gradients():
    class Leaky(AdversarialPriorRegularizer):
        def discriminator_loss(self, batch, first, second):
            loss, accuracy = super().discriminator_loss(batch, first, second)
            return loss + second.square().mean(), accuracy

    with pytest.raises(ContractError, match="loss discriminator has gradients in the model's"):
        check_objective(ELBO() + Leaky(discriminator()), small_vae(), batch())


def test_check_objective_leaves_no_trace():
    objective, vae, data = ELBO(RAMP), small_vae(), batch()
    rng_state, before = torch.get_rng_state(), copy.deepcopy(vae.state_dict())
    check_objective(objective, vae, data)
    assert torch.equal(torch.get_rng_state(), rng_state)
    assert objective.beta.value.item() == 0.2
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
