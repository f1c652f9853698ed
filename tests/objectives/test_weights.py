"""Weights of examples: a weight of 2 is the same as a repeated example."""

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
    GaussianEncoder,
    GaussianLikelihood,
    Trainer,
    evaluate,
)
from tinyvae.encoders import CategoricalEncoder, DeterministicEncoder, VectorQuantizedEncoder
from tinyvae.likelihoods import OptimalGaussianLikelihood
from tinyvae.objectives import (
    CIWAE,
    PIWAE,
    TVO,
    AdversarialPriorRegularizer,
    GradientPenaltyRegularizer,
    LagrangeMultiplier,
    LatentL2Regularizer,
    MMDRegularizer,
    MultiplyIWAE,
    RenyiBound,
    VAEGANRegularizer,
    WeightL2Regularizer,
)
from tinyvae.priors import CodePrior

pytestmark = pytest.mark.usefixtures("float64")

WEIGHT = torch.tensor([2, 0, 3, 1, 5])
REPEATED = torch.arange(5).repeat_interleave(WEIGHT)  # 11 rows

OBJECTIVES = {
    "elbo": lambda: ELBO(num_samples=3),
    "elbo sampled stl": lambda: ELBO(num_samples=2, estimator="stl"),
    "capacity": lambda: ELBO(3.0, capacity=0.1),
    "free bits": lambda: ELBO(free_bits=0.1),
    "free bits per layer": lambda: ELBO(free_bits=0.1, free_bits_per="layer", num_samples=2),
    "constraint": lambda: ELBO(LagrangeMultiplier(0.1)),
    "iwae": lambda: IWAE(3),
    "iwae dreg": lambda: IWAE(3, estimator="dreg"),
    "multiply": lambda: MultiplyIWAE(2, num_bounds=2),
    "partial": lambda: PIWAE(2, num_bounds=2, estimator="dreg"),
    "ciwae": lambda: CIWAE(3),
    "renyi": lambda: RenyiBound(3, alpha=0.5),
    "tvo": lambda: TVO(3),
    "latent l2": lambda: ELBO(0.0) + LatentL2Regularizer(0.5),
    "weight l2": lambda: ELBO(0.0) + WeightL2Regularizer(0.1),
    "gradient penalty": lambda: ELBO() + GradientPenaltyRegularizer(0.5),
    "adversarial prior": lambda: ELBO() + AdversarialPriorRegularizer(seeded(2)),
    "vae-gan": lambda: ELBO() + VAEGANRegularizer(seeded(4, 7), num_features=7),
}


def seeded(in_size, out_size=1):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(in_size, out_size), nn.Tanh())


def quantized(network, latent_dim):
    return VectorQuantizedEncoder(network, num_codes=8, latent_dim=latent_dim)


def make_vae(encoder=GaussianEncoder, likelihood=GaussianLikelihood, latent_shape=2, **prior):
    torch.manual_seed(0)
    encoder = encoder(MLP(4, hidden=(6,)), 2)
    return VAE(encoder, MLP(latent_shape, (6,), out_shape=4), likelihood(), **prior)


def score_function(network, num_classes):
    return CategoricalEncoder(network, num_classes, temperature=None)


def data():
    return torch.empty(5, 4).normal_(generator=torch.Generator().manual_seed(2))


@pytest.fixture
def same_noise(monkeypatch):
    """Return a function that gives each of ``index`` the noise of its original example."""
    randn = torch.randn

    def inject(index):
        generator = torch.Generator().manual_seed(3)

        def noise(*size, dtype=None, device=None):
            shape = torch.Size(size[0] if isinstance(size[0], tuple) else size)
            dim = next(d for d, length in enumerate(shape) if length % len(index) == 0)
            grouped = [*shape[:dim], shape[dim] // len(index), 5, *shape[dim + 1 :]]
            values = randn(grouped, generator=generator, dtype=dtype)
            return values.index_select(dim + 1, index).reshape(shape)

        monkeypatch.setattr(torch, "randn", noise)
        monkeypatch.setattr(torch, "randn_like", lambda like: noise(like.shape, dtype=like.dtype))
        monkeypatch.setattr(
            torch.Tensor,
            "exponential_",
            lambda self: self.copy_(noise(self.shape, dtype=self.dtype).square()),
        )

    return inject


def losses_and_gradients(objective, model, batch):
    """Return losses, metrics and the gradients of each group."""
    output = objective(model.train(), batch)
    gradients = [
        gradient
        for name, group in objective.parameter_groups(model).items()
        for gradient in torch.autograd.grad(
            output.losses[name], group, retain_graph=True, materialize_grads=True
        )
    ]
    return output.losses, output.metrics, dict(enumerate(gradients))


def assert_repeated(make_objective, make_model, same_noise):
    x, results = data(), []
    batches = ((torch.arange(5), Batch(x, weight=WEIGHT)), (REPEATED, Batch(x[REPEATED])))
    for index, batch in batches:
        same_noise(index)
        objective = make_objective().train()
        objective.set_step(0, 10)
        parts = losses_and_gradients(objective, make_model(), batch)
        results.append([*parts, dict(objective.named_buffers())])
    for weighted, repeated in zip(*results, strict=True):
        assert weighted.keys() == repeated.keys()
        for name, value in weighted.items():
            torch.testing.assert_close(value, repeated[name], rtol=1e-12, atol=1e-12)


@for_each("make", OBJECTIVES.values())
def test_weight_repeats_an_example(make, same_noise):
    assert_repeated(make, make_vae, same_noise)


@for_each("make", [OBJECTIVES[name] for name in ("elbo", "iwae", "tvo", "free bits per layer")])
def test_weight_repeats_an_example_of_a_score_function(make, same_noise):
    assert_repeated(make, lambda: make_vae(score_function, latent_shape=(2, 1)), same_noise)


def test_weight_repeats_an_example_without_gradients(same_noise):
    x = data()
    same_noise(torch.arange(5))
    with torch.no_grad():
        weighted = IWAE(3)(make_vae(), Batch(x, weight=WEIGHT)).metrics
    same_noise(REPEATED)
    with torch.no_grad():
        repeated = IWAE(3)(make_vae(), Batch(x[REPEATED])).metrics
    for name, value in weighted.items():
        torch.testing.assert_close(value, repeated[name], rtol=1e-12, atol=1e-12)


def test_weight_of_one_changes_nothing_but_rounding():
    x, vae = data(), make_vae(DeterministicEncoder)
    objective = ELBO(0.0) + LatentL2Regularizer(0.1)
    plain = objective(vae, Batch(x)).losses["model"]
    for weight in (torch.ones(5), torch.full((5,), 7.0), torch.ones(5, dtype=torch.bool)):
        torch.testing.assert_close(objective(vae, Batch(x, weight=weight)).losses["model"], plain)


def test_weights_that_are_all_zero_give_a_zero_loss():
    vae = make_vae()
    loss = ELBO()(vae, Batch(data(), weight=torch.zeros(5))).losses["model"]
    assert loss.item() == 0
    loss.backward()
    assert all(p.grad.abs().sum() == 0 for p in vae.parameters() if p.grad is not None)


# Training -----------------------------------------------------------------------------------------


def pick(rows):
    return Batch(rows["x"], weight=rows["w"])


def autoencoder_and_objective():
    return make_vae(DeterministicEncoder), ELBO(0.0) + LatentL2Regularizer(0.1)


def test_fit_with_weights_equals_fit_with_repeated_rows():
    x = data()
    runs = []
    for train, batch in (({"x": x, "w": WEIGHT}, pick), (x[REPEATED], None)):
        trainer = Trainer(*autoencoder_and_objective(), device="cpu", progress=False)
        trainer.fit(train, train, epochs=3, batch_size=11, batch=batch)
        runs.append(trainer)
    weighted, repeated = runs
    for name, values in weighted.model.state_dict().items():
        torch.testing.assert_close(values, repeated.model.state_dict()[name], rtol=0, atol=1e-12)
    for part in ("train", "validation"):
        for column in (f"{part}/loss", f"{part}/latent_l2"):
            assert weighted.history[column] == pytest.approx(repeated.history[column], rel=1e-12)


def test_fit_weights_the_means_of_an_epoch_over_its_batches():
    x = data()
    trainer = Trainer(*autoencoder_and_objective(), device="cpu", progress=False)
    trainer.fit({"x": x, "w": WEIGHT / 4}, {"x": x, "w": WEIGHT / 4}, epochs=1, batch=pick)
    (expected,) = trainer.history["validation/loss"]
    again = Trainer(trainer.model, trainer.objective, device="cpu", progress=False)
    again.optimization = type(again.optimization)(learning_rate=0.0)
    again.fit(
        {"x": x, "w": WEIGHT / 4}, {"x": x, "w": WEIGHT / 4}, epochs=1, batch_size=2, batch=pick
    )
    for part in ("train", "validation"):
        assert again.history[f"{part}/loss"] == pytest.approx([expected], rel=1e-12)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.tensor([1.0, 2.0, -1.0, 1.0, 1.0]), "finite weights >= 0, got values from -1 to 2"),
        (torch.tensor([1.0, torch.nan, 1.0, 1.0, 1.0]), "finite weights >= 0"),
        (torch.tensor([1.0, torch.inf, 1.0, 1.0, 1.0]), "finite weights >= 0"),
        (torch.ones(5, 1), r"weight of shape \(5,\), one per example, got \(5, 1\)"),
    ],
)
def test_fit_refuses_wrong_weights(weight, message):
    trainer = Trainer(make_vae(), ELBO(), device="cpu", progress=False)
    for train, validation in ((weight, torch.ones(5)), (torch.ones(5), weight)):
        with pytest.raises(ValueError, match=message):
            trainer.fit(
                {"x": data(), "w": train}, {"x": data(), "w": validation}, epochs=1, batch=pick
            )
    assert trainer.step == 0


@pytest.mark.parametrize(
    ("model", "objective", "message"),
    [
        (make_vae, ELBO() + MMDRegularizer(1.0), "MMDRegularizer expects batches without weights"),
        (
            lambda: make_vae(likelihood=OptimalGaussianLikelihood),
            ELBO(),
            "ELBO expects batches without weights with OptimalGaussianLikelihood",
        ),
        (
            lambda: make_vae(quantized, prior=CodePrior(8, latent_dim=2)),
            ELBO(),
            "ELBO expects batches without weights with codebooks",
        ),
    ],
    ids=["regularizer", "likelihood", "codebook"],
)
def test_fit_refuses_weights_that_a_part_would_ignore(model, objective, message):
    trainer = Trainer(model(), objective, device="cpu", progress=False)
    with pytest.raises(ValueError, match=message):
        trainer.fit({"x": data(), "w": WEIGHT}, epochs=1, batch=pick)


def test_evaluate_refuses_weights():
    with pytest.raises(ValueError, match="evaluation expects data without weights"):
        evaluate(make_vae(), {"x": data(), "w": WEIGHT}, batch=pick)
