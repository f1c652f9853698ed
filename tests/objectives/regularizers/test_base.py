"""Regularizers: each agrees with its definition and can be added to any bound."""

import math

import pytest
import torch
from helpers.cases import for_each
from helpers.oracles import TwoLayers
from helpers.regularizers import (
    DATA,
    LATENT,
    METRICS,
    REGULARIZERS,
    SIZE,
    assert_same,
    bottom_up_vae,
    discriminator,
    gradients,
    joint_vae,
    ladder_vae,
    penalty_of,
    small_vae,
    spatial_vae,
    two_level_vae,
)
from torch import nn

from tinyvae import (
    ELBO,
    IWAE,
    MLP,
    VAE,
    Batch,
    GaussianEncoder,
    GaussianLikelihood,
    Optimization,
    Trainer,
)
from tinyvae.encoders import (
    CategoricalEncoder,
    DeterministicEncoder,
    FlowEncoder,
)
from tinyvae.flows import Flow
from tinyvae.objectives import (
    CIWAE,
    PIWAE,
    TVO,
    AdversarialPriorRegularizer,
    DIPRegularizer,
    LatentL2Regularizer,
    MMDRegularizer,
    RegularizedObjective,
    Regularizer,
    RegularizerOutput,
    RenyiBound,
    TotalCorrelationRegularizer,
    VAEGANRegularizer,
    WeightL2Regularizer,
)
from tinyvae.priors import CategoricalPrior
from tinyvae.schedules import Linear, ScheduledWeight

pytestmark = pytest.mark.usefixtures("float64")


COUPLES = {"dip", "dip total", "mmd", "total correlation", "adversarial tc"}
READS_DRAWS = {"latent l2", "mmd", "total correlation", "adversarial tc", "adversarial prior"}
OF_DECODER = {"gradient penalty", "adversarial data"}
SINGLE = {"latent l2", "weight l2", "gradient penalty", "dip", "dip total", "mmd", "adversarial tc"}

BOUNDS = {
    "elbo": lambda: ELBO(),
    "elbo stl": lambda: ELBO(num_samples=3, estimator="stl"),
    "iwae": lambda: IWAE(3),
    "iwae stl": lambda: IWAE(3, estimator="stl"),
    "iwae dreg": lambda: IWAE(3, estimator="dreg"),
    "piwae": lambda: PIWAE(2, num_bounds=2),
    "ciwae": lambda: CIWAE(3),
    "renyi": lambda: RenyiBound(3, alpha=0.5),
    "tvo": lambda: TVO(3),
}


# Added to a bound ---------------------------------------------------------------------------------


@for_each("bound", BOUNDS)
def test_regularizers_add_to_every_loss(bound):
    for name, make in REGULARIZERS.items():
        vae, batch = small_vae(), Batch(torch.randn(7, DATA))
        regularizer = make(1.7)
        objective = BOUNDS[bound]() + regularizer
        torch.manual_seed(3)
        output = objective(vae, batch)
        torch.manual_seed(3)
        model_output, alone = objective.bound.forward_with_output(vae, batch)
        penalty = regularizer(vae, batch, model_output)
        groups = {} if regularizer.group is None else {"discriminator": penalty.adversary}
        assert output.losses.keys() == alone.losses.keys() | groups.keys()
        added = gradients(penalty.loss, vae)
        for group, loss in alone.losses.items():
            expected = loss + penalty.loss
            torch.testing.assert_close(output.losses[group], expected, rtol=1e-14, atol=0)
            both = [a + b for a, b in zip(gradients(loss, vae), added, strict=True)]
            assert_same(gradients(output.losses[group], vae), both)
        if groups:
            assert torch.equal(output.losses["discriminator"], groups["discriminator"])
        assert output.metrics.keys() == alone.metrics.keys() | METRICS[name]
        if name in SINGLE:
            (metric,) = METRICS[name] - {"discriminator_accuracy"}
            expected = 1.7 * penalty.metrics[metric]
            torch.testing.assert_close(penalty.loss, expected, rtol=1e-14, atol=0)


def test_regularizers_share_one_pass():
    vae, calls = small_vae(), []
    for part in ("encoder", "decoder"):
        vae.get_submodule(part).register_forward_hook(lambda *_, part=part: calls.append(part))
    vae.register_forward_hook(lambda *_: calls.append("model"))
    for name, make in REGULARIZERS.items():
        calls.clear()
        (ELBO() + make(1.0))(vae, Batch(torch.randn(7, DATA)))
        second = ["decoder"] if name == "adversarial data" else []
        assert sorted(calls) == sorted(["decoder", "encoder", "model", *second]), name


def test_regularizers_describe_themselves():
    vae, batch = small_vae(), Batch(torch.randn(7, DATA))
    options = {
        "total correlation": ", mutual_information=0.6, dimension_kl=1.05",
        "adversarial data": ", similarity=0.3",
    }
    for name, make in REGULARIZERS.items():
        objective = ELBO() + make(1.5)
        added = f"{type(objective.regularizers[0]).__name__}(1.5{options.get(name, '')})"
        assert repr(objective) == f"ELBO(beta=1, num_samples=1, kl='auto') + {added}"
        description = f"ELBO, beta 1, 1 draw, analytic KL + {added}: not a bound on log p(x)"
        assert objective.check(vae, batch) == description
        assert not objective.is_bound(vae)
        assert objective.couples_batch is (name in COUPLES)
        assert (ELBO(free_bits=0.1) + make(1.5)).couples_batch


def test_regularizers_are_added_in_order():
    objective = (
        ELBO()
        + LatentL2Regularizer(0.1)
        + WeightL2Regularizer(Linear(0.0, 1e-4, steps=9))
        + MMDRegularizer(2.0)
    )
    expected = (
        "LatentL2Regularizer(0.1) + WeightL2Regularizer(Linear(0, 0.0001, steps=9)) + "
        "MMDRegularizer(2)"
    )
    assert repr(objective) == f"ELBO(beta=1, num_samples=1, kl='auto') + {expected}"
    assert isinstance(objective, RegularizedObjective)
    vae, batch = small_vae(), Batch(torch.randn(7, DATA))
    objective.set_step(9, None)
    torch.manual_seed(3)
    output = objective(vae, batch)
    parts = output.metrics
    total = -parts["elbo_nats"] + 0.1 * parts["latent_l2"] + 1e-4 * parts["decoder_l2"]
    torch.testing.assert_close(output.losses["model"], total + 2 * parts["mmd"])


def test_regularizer_weights_follow_schedules():
    vae, batch = small_vae(), Batch(torch.randn(7, DATA))
    for make in REGULARIZERS.values():
        regularizer = make(1.0)
        regularizer.weight = ScheduledWeight(Linear(0.0, 2.0, steps=10))
        objective = ELBO() + regularizer
        (message,) = objective.unfinished_schedules(5, 100)
        assert message.startswith(f"{type(regularizer).__name__}'s weight reaches its last value")
        assert not objective.unfinished_schedules(10, 100)
        losses = []
        for step in (0, 5, 10):
            objective.set_step(step, 100)
            torch.manual_seed(3)
            losses.append(objective(vae, batch).losses["model"])
        assert losses[1] - losses[0] != 0
        torch.testing.assert_close(losses[2] - losses[1], losses[1] - losses[0])


def test_regularizer_weights_are_all_scheduled():
    ramp = Linear(0.0, 2.0, steps=10)
    tc = TotalCorrelationRegularizer(
        1.0, dataset_size=SIZE, mutual_information=ramp, dimension_kl=ramp
    )
    data = VAEGANRegularizer(MLP(DATA, (8,)), num_features=8, similarity=ramp)
    objective = ELBO() + tc + data
    objective.set_step(5, None)
    assert [w.value.item() for w in (tc.mutual_information, tc.dimension_kl, data.similarity)] == [
        1.0
    ] * 3
    assert len(objective.unfinished_schedules(5, None)) == 3


@for_each("name", sorted(REGULARIZERS.keys() - OF_DECODER))
def test_regularizer_of_one_of_several_latents(name):
    vae, x = joint_vae(), torch.randn(7, DATA)
    objective = ELBO(num_samples=2) + REGULARIZERS[name](1.7, latent="style")
    objective.check(vae, Batch(x))
    (regularizer,) = objective.regularizers
    torch.manual_seed(3)
    output = objective(vae, Batch(x))
    torch.manual_seed(3)
    record, _ = objective.bound.forward_with_output(vae, Batch(x))
    (style,) = (term for term in record.latents if term.name == "style")
    regularizer.latent = None
    alone = regularizer(vae, Batch(x), type(record)((style,), record.likelihood, record.log_px))
    for metric, value in alone.metrics.items():
        prefix = "" if metric in ("decoder_l2", "discriminator_accuracy") else "style_"
        assert torch.equal(output.metrics[prefix + metric], value)


def test_regularizer_expects_a_latent_name():
    vae, batch = joint_vae(), Batch(torch.randn(7, DATA))
    for objective in (
        ELBO(num_samples=2) + MMDRegularizer(1.0),
        ELBO(num_samples=2) + MMDRegularizer(1.0, latent="z"),
    ):
        with pytest.raises(ValueError, match=r"expects latent= one of \['kind', 'style'\]"):
            objective.check(vae, batch)


@for_each("name", sorted(REGULARIZERS.keys() - {"weight l2"}))
def test_regularizer_refuses_other_latents(name):
    batch = Batch(torch.randn(7, DATA))
    objective = ELBO(num_samples=2) + REGULARIZERS[name](1.0, latent="kind")
    if name in READS_DRAWS:
        with pytest.raises(ValueError, match="'kind', whose samples carry no gradients"):
            objective.check(joint_vae(), batch)
    if name in ("mmd", "adversarial prior"):
        objective = ELBO() + REGULARIZERS[name](1.0, latent="z1")
        with pytest.raises(
            ValueError, match="'z1', which is given the layers above: choose the top layer"
        ):
            objective.check(ladder_vae(), batch)
        (ELBO() + REGULARIZERS[name](1.0, latent="z2")).check(ladder_vae(), batch)
    if name in ("dip", "dip total", "total correlation"):
        objective = ELBO() + REGULARIZERS[name](1.0, latent="z1")
        with pytest.raises(ValueError, match=r"given the data only.*'z1'.*that is sampled first"):
            objective.check(ladder_vae(), batch)
        objective = ELBO() + REGULARIZERS[name](1.0, latent="z2")
        objective.check(ladder_vae(), batch)
        metrics = objective(ladder_vae(), batch).metrics
        assert {f"z2_{metric}" for metric in METRICS[name]} <= metrics.keys()


@for_each("name", sorted(OF_DECODER))
@for_each("model", [joint_vae, two_level_vae, ladder_vae, bottom_up_vae])
def test_decoder_regularizers_fit_every_model(name, model):
    vae, batch = model(), Batch(torch.randn(7, DATA))
    objective = ELBO(num_samples=2) + REGULARIZERS[name](1.0)
    objective.check(vae, batch)
    record = vae(batch.x, num_samples=2)
    assert record.z.shape == (2, 7, *vae.latent_shape)
    assert torch.equal(vae.decode(record.z).mean, record.likelihood.mean)
    loss = objective(vae, batch).losses["model"]
    loss.backward()
    assert all(p.grad.abs().sum() > 0 for p in vae.decoder.parameters() if p.dim() > 1)


@for_each("name", sorted(OF_DECODER))
def test_decoder_regularizers_refuse_models_without_decoder(name):
    objective = ELBO() + REGULARIZERS[name](1.0)
    with pytest.raises(TypeError, match="expects a model with a decoder, got a TwoLayers"):
        objective(TwoLayers(top_down=True), Batch(torch.randn(3, 4)))


@for_each("name", REGULARIZERS)
def test_regularizer_of_a_batch_of_one(name):
    vae = small_vae()
    _, penalty = penalty_of(REGULARIZERS[name](1.0), vae, torch.randn(1, DATA), 3)
    assert penalty.loss.isfinite()
    if name in ("dip", "dip total", "mmd"):
        assert penalty.loss.item() == 0.0
        assert not any(g.any() for g in gradients(penalty.loss, vae))


@for_each("name", sorted(READS_DRAWS | {"dip", "dip total"}))
def test_regularizer_flattens_latents(name):
    """Regularizers that do not read the decoder flatten maps."""
    vae, x = spatial_vae(), torch.randn(7, DATA)
    torch.manual_seed(3)
    record = vae(x, num_samples=2)
    flat = VAE(
        GaussianEncoder(vae.encoder.network, 12),
        MLP(12, hidden=(6,), out_shape=DATA),
        GaussianLikelihood(0.4),
    )
    flat.encoder.head = vae.encoder.head
    torch.manual_seed(3)
    flat_record = flat(x, num_samples=2)
    regularizer = REGULARIZERS[name](1.0)
    if regularizer.group:
        regularizer.discriminator = nn.Sequential(nn.Flatten(), discriminator(12))
    values = []
    for model, own in ((vae, record), (flat, flat_record)):
        torch.manual_seed(4)
        values.append(regularizer(model, Batch(x), own).loss)
    torch.testing.assert_close(*values, rtol=1e-13, atol=0)


def test_regularizers_under_autocast_give_float32():
    vae, batch = small_vae().float(), Batch(torch.randn(7, DATA).float())
    for make in REGULARIZERS.values():
        objective = (ELBO() + make(0.3)).to(torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            losses = objective(vae, batch).losses
        assert {loss.dtype for loss in losses.values()} == {torch.float32}
        vae.zero_grad()
        losses["model"].backward()
        assert vae.encoder.head.weight.grad.dtype == torch.float32


# Checks and errors --------------------------------------------------------------------------------


def test_check_keeps_batch_statistics():
    vae, x = small_vae(), torch.randn(7, DATA)
    vae.decoder.layers.insert(1, nn.BatchNorm1d(6))
    for name, make in REGULARIZERS.items():
        objective = ELBO() + make(1.0)
        for regularizer in objective.regularizers:
            if name == "adversarial data":
                regularizer.discriminator.insert(2, nn.BatchNorm1d(8))
            elif regularizer.group is not None:
                regularizer.discriminator.layers.insert(1, nn.BatchNorm1d(8))
        before = {n: v.clone() for n, v in (vae.state_dict() | objective.state_dict()).items()}
        objective.check(vae, Batch(x))
        after = vae.state_dict() | objective.state_dict()
        assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_check_refuses_regularizers_without_finite_loss():
    encoder = CategoricalEncoder(MLP(DATA), 3, temperature=None)
    vae = VAE(encoder, MLP((3, 1), out_shape=DATA), GaussianLikelihood(), CategoricalPrior(3))
    batch = Batch(torch.randn(7, DATA))
    with pytest.raises(ValueError, match="MMDRegularizer expects a reparameterized posterior"):
        (ELBO(num_samples=2) + MMDRegularizer(1.0)).check(vae, batch)
    (ELBO(num_samples=2) + DIPRegularizer(1.0)).check(vae, batch)  # means carry gradients

    flow = FlowEncoder(small_vae().encoder, Flow(LATENT, context_dim=6))
    vae = VAE(flow, MLP(LATENT, out_shape=DATA), GaussianLikelihood())
    with pytest.raises(
        ValueError, match=r"DIPRegularizer\(1\) expects a finite loss .* got nan.*Transformed"
    ):
        (ELBO() + DIPRegularizer(1.0)).check(vae, batch)  # the mean of a flow is unknown
    (ELBO() + MMDRegularizer(1.0)).check(vae, batch)

    def broken(squared):
        return 1 / squared

    with pytest.raises(ValueError, match=r"MMDRegularizer\(1\) expects a finite loss .* got nan"):
        (ELBO() + MMDRegularizer(1.0, kernel=broken)).check(small_vae(), batch)


def test_regularized_objective_refuses_other_terms():
    with pytest.raises(TypeError, match="unsupported operand"):
        ELBO() + ELBO()
    with pytest.raises(TypeError, match="unsupported operand"):
        IWAE(3) + LatentL2Regularizer(1.0) + 3.0
    with pytest.raises(TypeError, match=r"expects a Regularizer such as MMD.*, got 3.0"):
        RegularizedObjective(ELBO(), (3.0,))
    twice = ELBO() + DIPRegularizer(1.0) + DIPRegularizer(2.0, covariance="total")
    with pytest.raises(ValueError, match=r"different names, got \['batch_dip', 'batch_dip'\]"):
        twice.check(small_vae(), Batch(torch.randn(7, DATA)))
    with pytest.raises(TypeError, match="ELBO expects a VAE"):
        (ELBO() + MMDRegularizer(1.0)).check(nn.Linear(2, 2), Batch(torch.randn(7, DATA)))


@for_each(
    ("make", "message"),
    [
        (lambda: DIPRegularizer(1.0, covariance="full"), "'means' or 'total', got 'full'"),
        (lambda: MMDRegularizer(1.0, scales=()), r"scales > 0, got \(\)"),
        (lambda: MMDRegularizer(1.0, scales=(1.0, 0.0)), r"scales > 0, got \(1.0, 0.0\)"),
        (lambda: TotalCorrelationRegularizer(1.0, dataset_size=0), "dataset_size >= 1, got 0"),
        (
            lambda: TotalCorrelationRegularizer(1.0, dataset_size=9, sampling="mss"),
            "'weighted', got 'mss'",
        ),
    ],
)
def test_regularizer_refuses_invalid_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_custom_regularizer():
    class Sparsity(Regularizer):
        couples_batch = False

        def forward(self, model, batch, record):
            value = self.term(record).z.abs().sum(-1).mean()
            return RegularizerOutput(self.weighted(value), self.reported(sparsity=value))

    vae, batch = small_vae(), Batch(torch.randn(7, DATA))
    objective = ELBO() + Sparsity(0.5)
    assert objective.check(vae, batch).endswith("+ Sparsity(0.5): not a bound on log p(x)")
    torch.manual_seed(3)
    output = objective(vae, batch)
    torch.manual_seed(3)
    expected = vae(batch.x).latents[0].z.abs().sum(-1).mean()
    torch.testing.assert_close(output.metrics["sparsity"], expected)


# Training -----------------------------------------------------------------------------------------


def every_regularizer():
    objective = PIWAE(2, num_bounds=2)
    for name in sorted(REGULARIZERS.keys() - {"dip total"}):
        regularizer = REGULARIZERS[name](0.1)
        if regularizer.group is not None:
            regularizer.group = name.replace(" ", "_")
        objective = objective + regularizer
    return objective


def test_trainer_trains_with_all_regularizers():
    torch.manual_seed(1)
    vae, objective, x = small_vae(), every_regularizer(), torch.randn(9, DATA)
    before = [p.detach().clone() for p in (*vae.parameters(), *objective.parameters())]
    trainer = Trainer(vae, objective, Optimization(1e-3), progress=False, device="cpu")
    history = trainer.fit(x, epochs=1, batch_size=4, validation=torch.randn(5, DATA))
    (row,) = history.epochs
    for name in METRICS:
        for metric in METRICS[name] - {"discriminator_accuracy"}:
            assert math.isfinite(row[f"train/{metric}"])
            assert math.isfinite(row[f"validation/{metric}"])
    groups = {"posterior", "generative", "adversarial_data", "adversarial_prior", "adversarial_tc"}
    assert {n.removeprefix("train/loss_") for n in row if n.startswith("train/loss")} == groups
    after = [*vae.parameters(), *objective.parameters()]
    assert all((a != b).any() for a, b in zip(before, after, strict=True))


def test_trainer_steps_on_the_regularized_loss():
    x = torch.randn(8, DATA)
    torch.manual_seed(1)
    vae = small_vae(DeterministicEncoder)
    torch.manual_seed(1)
    other = small_vae(DeterministicEncoder)
    optimization = Optimization(0.1, optimizer=torch.optim.SGD)
    objective = (
        ELBO(0.0) + LatentL2Regularizer(0.5) + WeightL2Regularizer(0.2) + DIPRegularizer(0.3)
    )
    Trainer(vae, objective, optimization, progress=False, device="cpu").fit(
        x, epochs=1, batch_size=8
    )
    z = other.encode(x).mean
    covariance = torch.cov(z.T)
    loss = -other.decode(z).log_prob(x).mean() + 0.25 * (z**2).sum(1).mean()
    loss = loss + 0.2 * sum((p**2).sum() for p in other.decoder.parameters())
    loss = loss + 0.3 * (covariance - torch.eye(LATENT)).square().sum()
    loss.backward()
    for moved, start in zip(vae.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(moved, start - 0.1 * start.grad, rtol=1e-12, atol=1e-12)


# Derivatives --------------------------------------------------------------------------------------


class Alone(nn.Module):
    """The loss of a regularizer with fixed noise."""

    def __init__(self, vae, regularizer):
        super().__init__()
        self.vae, self.regularizer = vae, regularizer

    def forward(self, x):
        torch.manual_seed(7)
        record = self.vae(x, num_samples=2)
        return self.regularizer(self.vae, Batch(x), record).loss


@for_each("name", sorted(k for k in REGULARIZERS if "adversarial" not in k))
def test_regularizer_gradcheck(name):
    """Gradients in encoder and decoder agree with differences."""
    torch.manual_seed(1)
    encoder = GaussianEncoder(MLP(3, hidden=(4,), activation=nn.Tanh), LATENT)
    decoder = MLP(LATENT, hidden=(4,), out_shape=3, activation=nn.Tanh)
    module = Alone(VAE(encoder, decoder, GaussianLikelihood(0.4)), REGULARIZERS[name](1.3))
    parameters = {n: p.detach().requires_grad_() for n, p in module.named_parameters()}
    x = torch.randn(4, 3)

    def loss(*values):
        named = dict(zip(parameters, values, strict=True))
        return torch.func.functional_call(module, named, (x,))

    assert torch.autograd.gradcheck(loss, tuple(parameters.values()))
    grads = torch.autograd.grad(
        loss(*parameters.values()), list(parameters.values()), allow_unused=True
    )
    reached = {n for n, g in zip(parameters, grads, strict=True) if g is not None and g.any()}
    of_encoder = {n for n in parameters if "encoder" in n}
    if name == "weight l2":
        assert reached == parameters.keys() - of_encoder
    elif name == "gradient penalty":  # the Jacobian does not depend on the last bias
        assert reached == parameters.keys() - {"vae.decoder.layers.2.bias"}
    else:
        assert reached == of_encoder


# Penalties ----------------------------------------------------------------------------------------


# Covariance ---------------------------------------------------------------------------------------


# Maximum mean discrepancy -------------------------------------------------------------------------

# Total correlation --------------------------------------------------------------------------------


def test_regularizers_of_one_kind_have_separate_schedules():
    slow, fast = (MMDRegularizer(Linear(0.0, 1.0, steps=n), latent="style") for n in (50, 5))
    objective = (
        ELBO(num_samples=2)
        + slow
        + AdversarialPriorRegularizer(discriminator(), weight=fast.weight.schedule, latent="style")
    )
    assert objective.unfinished_schedules(10, 100) == [
        "MMDRegularizer's weight reaches its last value after 50 steps, the run ends after 10"
    ]
    objective.set_step(5, None)
    metrics = objective(joint_vae(), Batch(torch.randn(7, DATA))).metrics
    assert metrics["style_MMDRegularizer_weight"].item() == pytest.approx(0.1)
    assert metrics["style_AdversarialPriorRegularizer_weight"].item() == 1.0
    both = ELBO() + slow + MMDRegularizer(fast.weight.schedule)
    assert len(both.unfinished_schedules(4, None)) == 2
