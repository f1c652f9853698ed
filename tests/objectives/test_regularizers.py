"""Regularizers: each agrees with its definition and can be added to any bound."""

import itertools
import math
import re

import numpy as np
import pytest
import torch
from helpers.cases import for_each
from helpers.oracles import TwoLayers
from torch import nn

from tinyvae import (
    ELBO,
    IWAE,
    MLP,
    VAE,
    Batch,
    BernoulliLikelihood,
    BottomUpVAE,
    GaussianEncoder,
    GaussianLikelihood,
    LadderVAE,
    Optimization,
    StandardNormal,
    Trainer,
    TwoLevelVAE,
)
from tinyvae.encoders import (
    CategoricalEncoder,
    DeterministicEncoder,
    FlowEncoder,
    FullGaussianEncoder,
    JointEncoder,
    LowRankGaussianEncoder,
)
from tinyvae.flows import Flow
from tinyvae.networks import ConcatContext
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
    RegularizedObjective,
    Regularizer,
    RegularizerOutput,
    RenyiBound,
    TotalCorrelationRegularizer,
    VAEGANRegularizer,
    WeightL2Regularizer,
)
from tinyvae.objectives.regularizers.moments import (
    _mean_covariance,
    gaussian_kernel,
    inverse_multiquadratic_kernel,
)
from tinyvae.objectives.regularizers.total_correlation import aggregate_log_weights
from tinyvae.priors import CategoricalPrior, JointPrior
from tinyvae.schedules import Linear, ScheduledWeight

pytestmark = pytest.mark.usefixtures("float64")

DATA, LATENT, SIZE = 5, 2, 40


def small_vae(encoder=GaussianEncoder, **options):
    network = MLP(DATA, hidden=(6,), activation=nn.Tanh)
    decoder = MLP(LATENT, hidden=(6,), out_shape=DATA, activation=nn.Tanh)
    return VAE(encoder(network, LATENT, **options), decoder, GaussianLikelihood(0.4))


def spatial_vae():
    encoder = GaussianEncoder(MLP(DATA, hidden=(6,), activation=nn.Tanh), (2, 2, 3))
    return VAE(encoder, MLP((2, 2, 3), hidden=(6,), out_shape=DATA), GaussianLikelihood(0.4))


def conditional_vae():
    encoder = GaussianEncoder(ConcatContext(MLP(DATA + 3, hidden=(6,)), context_dim=3), LATENT)
    decoder = MLP(LATENT + 3, hidden=(6,), out_shape=DATA, activation=nn.Tanh)
    return VAE(encoder, ConcatContext(decoder, context_dim=3), GaussianLikelihood(0.4))


def ladder_vae(cls=LadderVAE, top=LATENT):
    below = 6 if cls is LadderVAE else LATENT
    return cls(
        encoders=[GaussianEncoder(MLP(DATA, (6,)), LATENT), GaussianEncoder(MLP(below, (6,)), top)],
        generators=[GaussianEncoder(MLP(top, (6,)), LATENT)],
        decoder=MLP(LATENT, (6,), out_shape=DATA),
        likelihood=GaussianLikelihood(0.4),
    )


def bottom_up_vae():
    return ladder_vae(BottomUpVAE)


def two_level_vae():
    bottom = GaussianEncoder(ConcatContext(MLP(DATA + 2, (6,)), context_dim=2), 3)
    top, generator = GaussianEncoder(MLP(DATA, (6,)), 2), GaussianEncoder(MLP(2, (6,)), 3)
    return TwoLevelVAE(
        top,
        bottom=bottom,
        generator=generator,
        decoder=MLP(5, (6,), DATA),
        likelihood=GaussianLikelihood(0.4),
    )


def joint_vae():
    encoders = {
        "kind": CategoricalEncoder(MLP(DATA, hidden=(6,)), 3, temperature=None),
        "style": GaussianEncoder(MLP(DATA, hidden=(6,)), LATENT),
    }
    prior = JointPrior({"kind": CategoricalPrior(3), "style": StandardNormal(LATENT)})
    decoder = MLP(3 + LATENT, hidden=(6,), out_shape=DATA)
    return VAE(JointEncoder(encoders), decoder, GaussianLikelihood(0.4), prior)


def discriminator(size=LATENT):
    return MLP(size, hidden=(8,), out_shape=1, activation=nn.Tanh)


REGULARIZERS = {
    "latent l2": lambda w, **o: LatentL2Regularizer(w, **o),
    "weight l2": lambda w, **_: WeightL2Regularizer(w),
    "gradient penalty": lambda w, **_: GradientPenaltyRegularizer(w),
    "dip": lambda w, **o: DIPRegularizer(w, diagonal=3.0, **o),
    "dip total": lambda w, **o: DIPRegularizer(w, covariance="total", **o),
    "mmd": lambda w, **o: MMDRegularizer(w, **o),
    "total correlation": lambda w, **o: TotalCorrelationRegularizer(
        w,
        dataset_size=SIZE,
        mutual_information=0.4 * w,
        dimension_kl=0.7 * w,
        **o,
    ),
    "adversarial tc": lambda w, **o: AdversarialTotalCorrelationRegularizer(
        discriminator(),
        weight=w,
        **o,
    ),
    "adversarial prior": lambda w, **o: AdversarialPriorRegularizer(discriminator(), weight=w, **o),
    "adversarial data": lambda w, **_: VAEGANRegularizer(
        MLP(DATA, hidden=(8,), activation=nn.Tanh),
        num_features=8,
        weight=w,
        similarity=0.3,
    ),
}
METRICS = {
    "latent l2": {"latent_l2"},
    "weight l2": {"decoder_l2"},
    "gradient penalty": {"gradient_penalty"},
    "dip": {"dip"},
    "dip total": {"dip"},
    "mmd": {"mmd"},
    "total correlation": {
        "mutual_information_nats",
        "total_correlation_nats",
        "dimension_kl_nats",
    },
    "adversarial tc": {"adversarial_total_correlation_nats", "discriminator_accuracy"},
    "adversarial prior": {"adversarial_prior", "discriminator_accuracy"},
    "adversarial data": {"adversarial_data", "feature_distance", "discriminator_accuracy"},
}
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


def penalty_of(regularizer, vae, x, num_samples=1):
    record = vae(x, num_samples=num_samples)
    return record, regularizer(vae, Batch(x), record)


def gradients(loss, module):
    return torch.autograd.grad(
        loss, list(module.parameters()), retain_graph=True, materialize_grads=True
    )


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


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


def test_dip_is_precise_under_autocast():
    vae, x = small_vae(FullGaussianEncoder).float(), torch.randn(7, DATA).float()
    record = vae(x)
    for regularizer in (DIPRegularizer(1.0), DIPRegularizer(1.0, covariance="total")):
        values = []
        for cast in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=cast):
                values.append(regularizer(vae, Batch(x), record).loss)
        assert values[0].dtype == values[1].dtype
        assert torch.equal(*values)


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
    with pytest.raises(ValueError, match=r"metrics of different names, got \['dip', 'dip'\]"):
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


def test_l2_regularizers_agree_with_numpy():
    vae, x = small_vae(), torch.randn(7, DATA)
    record, penalty = penalty_of(LatentL2Regularizer(0.3), vae, x, 3)
    z = record.latents[0].z.detach().numpy()
    expected = np.mean([[0.5 * (row**2).sum() for row in draw] for draw in z])
    assert penalty.metrics["latent_l2"].item() == pytest.approx(expected, rel=1e-14)
    assert penalty.loss.item() == pytest.approx(0.3 * expected, rel=1e-14)
    for part in ("decoder", "encoder.network", "encoder"):
        _, penalty = penalty_of(WeightL2Regularizer(0.3, part=part), vae, x)
        arrays = [p.detach().numpy() for p in vae.get_submodule(part).parameters()]
        expected = sum((array**2).sum() for array in arrays)
        name = part.replace(".", "_") + "_l2"
        assert penalty.metrics[name].item() == pytest.approx(expected, rel=1e-14)
        assert penalty.loss.item() == pytest.approx(0.3 * expected, rel=1e-14)


def test_weight_l2_refuses_unknown_parts():
    batch = Batch(torch.randn(7, DATA))
    with pytest.raises(ValueError, match=r"one of \['encoder', .*'decoder'.* got 'decoders'"):
        (ELBO() + WeightL2Regularizer(1.0, part="decoders")).check(small_vae(), batch)
    with pytest.raises(ValueError, match="'prior', which has no parameters"):
        (ELBO() + WeightL2Regularizer(1.0, part="prior")).check(small_vae(), batch)


def assert_mean_slope(vae, x, mean_of):
    """Compare with |J|_F^2, the mean of |J'v|^2, whose variance is 2 |J J'|_F^2."""
    points = vae.encode(x).mean.detach()
    jacobian = torch.stack([torch.autograd.functional.jacobian(mean_of, z) for z in points])
    gram = jacobian @ jacobian.mT
    expected = gram.diagonal(dim1=-2, dim2=-1).sum(-1).mean().item()
    rows = 40_000
    _, penalty = penalty_of(GradientPenaltyRegularizer(1.0), vae, x.repeat(rows // len(x), 1))
    error = math.sqrt(2 * gram.square().sum((-2, -1)).mean().item() / rows)
    assert abs(penalty.loss.item() - expected) < 4 * error
    assert error < 0.03 * expected


def test_gradient_penalty_of_a_linear_decoder():
    vae = small_vae(DeterministicEncoder)
    vae.decoder = MLP(LATENT, hidden=(), out_shape=DATA)
    weight = vae.decoder.layers[0].weight.detach()
    assert_mean_slope(vae, torch.randn(4, DATA), lambda z: weight @ z)


def test_gradient_penalty_uses_the_mean_of_the_likelihood():
    """The Jacobian is that of the probabilities, not of the logits."""
    vae = small_vae(DeterministicEncoder)
    vae.likelihood = BernoulliLikelihood()
    with torch.no_grad():
        vae.decoder.layers[2].weight *= 4
    assert_mean_slope(vae, torch.eye(DATA), lambda z: vae.decoder(z[None])[0].sigmoid())


def test_gradient_penalty_differentiates_in_the_latent():
    """Data divided by three and weights times three give the same latents and penalty."""
    vae, x = small_vae(DeterministicEncoder), torch.randn(7, DATA)
    values = []
    for scale in (1.0, 3.0):
        with torch.no_grad():
            vae.encoder.network.layers[0].weight *= scale
        batch = Batch(x / scale)
        torch.manual_seed(3)
        output = (ELBO() + GradientPenaltyRegularizer(1.0))(vae, batch)
        values.append(output.metrics["gradient_penalty"])
        assert not batch.x.requires_grad
        assert batch.x.grad is None
    torch.testing.assert_close(*values, rtol=1e-12, atol=0)


@for_each("with_context", [False, True])
def test_gradient_penalty_in_validation_and_with_frozen_encoder(with_context):
    vae = conditional_vae() if with_context else small_vae()
    batch = Batch(torch.randn(7, DATA), torch.randn(7, 3) if with_context else None)
    objective = ELBO(num_samples=3) + GradientPenaltyRegularizer(1.0)

    def penalty():
        torch.manual_seed(3)
        record = vae(batch.x, batch.context, num_samples=3)
        return objective.regularizers[0](vae, batch, record).loss

    training = penalty()
    expected = gradients(training, vae.decoder)
    with torch.no_grad():
        validation = penalty()
    torch.testing.assert_close(validation, training, rtol=1e-13, atol=0)
    assert not validation.requires_grad
    vae.encoder.requires_grad_(False)
    frozen = penalty()
    torch.testing.assert_close(frozen, training, rtol=1e-13, atol=0)
    assert_same(gradients(frozen, vae.decoder), expected)
    assert any(g.abs().max() > 1e-3 for g in expected)


# Covariance ---------------------------------------------------------------------------------------


@for_each("size", [2, 3, 11])
def test_dip_agrees_with_numpy(size):
    vae, x = small_vae(), torch.randn(size, DATA)
    record, penalty = penalty_of(DIPRegularizer(0.3, diagonal=4.0), vae, x, 3)
    normal = record.latents[0].posterior.base
    covariance = np.cov(normal.mean.detach().numpy().T)
    own = np.diag(np.exp(2 * normal.log_std.detach().numpy()).mean(0))
    _, total = penalty_of(DIPRegularizer(0.3, diagonal=4.0, covariance="total"), vae, x, 3)
    for found, c in ((penalty, covariance), (total, covariance + own)):
        expected = 4 * ((np.diag(c) - 1) ** 2).sum() + 2 * c[0, 1] ** 2
        assert found.metrics["dip"].item() == pytest.approx(expected, rel=1e-12)
        assert found.loss.item() == pytest.approx(0.3 * expected, rel=1e-12)


POSTERIORS = {
    "diagonal": lambda: small_vae(),
    "full": lambda: small_vae(FullGaussianEncoder),
    "low rank": lambda: small_vae(LowRankGaussianEncoder, rank=1),
    "points": lambda: small_vae(DeterministicEncoder),
}


@for_each("name", ["diagonal", "full", "low rank"])
def test_mean_covariance_agrees_with_samples(name):
    posterior = POSTERIORS[name]().encode(torch.randn(3, DATA))
    with torch.no_grad():
        centered = posterior.sample((100_000,)) - posterior.mean
        products = (centered.unsqueeze(-1) * centered.unsqueeze(-2)).mean(1)  # (S, D, D)
        error = products.std(0) / math.sqrt(len(products))
        assert ((_mean_covariance(posterior) - products.mean(0)).abs() < 4 * error).all()
        assert (error < 0.02).all()


def test_dip_total_refuses_other_posteriors():
    batch = Batch(torch.randn(7, DATA))
    vae = POSTERIORS["points"]()
    (ELBO(0.0) + DIPRegularizer(1.0)).check(vae, batch)
    with pytest.raises(ValueError, match=r"expects Gaussian posteriors, got Delta.*: use 'means'"):
        (ELBO(0.0) + DIPRegularizer(1.0, covariance="total")).check(vae, batch)


@for_each("covariance", ["means", "total"])
@for_each("estimator", ["pathwise", "stl"])
def test_dip_gradient_reaches_the_encoder(covariance, estimator):
    vae, x = small_vae(), torch.randn(9, DATA)
    bound = ELBO(0.0, likelihood_weight=0.0, estimator=estimator)
    found = gradients(
        (bound + DIPRegularizer(1.0, covariance=covariance))(vae, Batch(x)).losses["model"], vae
    )
    normal = vae.encode(x).base
    c = torch.cov(normal.mean.T)
    c = c + (2 * normal.log_std).exp().mean(0).diag() * (covariance == "total")
    assert_same(found, gradients((c - torch.eye(LATENT)).square().sum(), vae))
    assert found[0].abs().max() > 1e-3


@for_each("name", ["dip", "dip total"])
def test_dip_ignores_the_order_of_the_batch(name):
    """The loss does not depend on the order, and is zero for whitened means."""
    vae, x = small_vae(), torch.randn(9, DATA)
    regularizer = REGULARIZERS[name](1.0)
    values = [penalty_of(regularizer, vae, data)[1].loss for data in (x, x[torch.randperm(9)])]
    torch.testing.assert_close(*values, rtol=1e-12, atol=0)
    encoder = DeterministicEncoder(nn.Identity(), DATA, features=DATA)
    with torch.no_grad():
        encoder.head.weight.copy_(torch.eye(DATA))
        encoder.head.bias.fill_(3.0)
    vae = VAE(encoder, MLP(DATA, hidden=(), out_shape=DATA), GaussianLikelihood())
    x = torch.randn(9, DATA)
    x = torch.linalg.qr(x - x.mean(0)).Q * math.sqrt(8)
    _, penalty = penalty_of(DIPRegularizer(1.0), vae, x)
    assert penalty.loss.item() == pytest.approx(0.0, abs=1e-24)


# Maximum mean discrepancy -------------------------------------------------------------------------

KERNELS = {
    "imq": (inverse_multiquadratic_kernel, lambda d: 1 / (1 + d)),
    "gaussian": (gaussian_kernel, lambda d: math.exp(-d)),
    "your own": (lambda squared: (1 + squared) ** -0.5, lambda d: 1 / math.sqrt(1 + d)),
}


def direct_mmd(z, y, kernel, scales):
    """Return the MMD of samples ``(B, D)`` from its definition."""
    size, dim = z.shape

    def k(a, b):
        return sum(kernel(((a - b) ** 2).sum() / (2 * dim * s)) for s in scales)

    pairs = [(i, j) for i in range(size) for j in range(size)]
    within = sum(k(z[i], z[j]) + k(y[i], y[j]) for i, j in pairs if i != j)
    return within / (size * (size - 1)) - 2 * sum(k(z[i], y[j]) for i, j in pairs) / size**2


@for_each("kernel", KERNELS)
@for_each("scales", [(1.0,), (0.1, 2.0, 7.0)])
@for_each("num_samples", [1, 2])
def test_mmd_agrees_with_the_double_sum(kernel, scales, num_samples):
    vae, x = small_vae(), torch.randn(6, DATA)
    function, formula = KERNELS[kernel]
    record = vae(x, num_samples=num_samples)
    torch.manual_seed(5)
    penalty = MMDRegularizer(0.3, kernel=function, scales=scales)(vae, Batch(x), record)
    torch.manual_seed(5)
    y = vae.prior().sample((num_samples, 6)).numpy()
    z = record.latents[0].z.detach().numpy()
    expected = np.mean([direct_mmd(z[k], y[k], formula, scales) for k in range(num_samples)])
    assert penalty.metrics["mmd"].item() == pytest.approx(expected, rel=1e-12)
    assert penalty.loss.item() == pytest.approx(0.3 * expected, rel=1e-12)


def test_mmd_default_scales_are_those_of_wae():
    """The kernel is k(a, b) = C / (C + |a - b|^2) with C = 2 D s."""
    vae, x = small_vae(), torch.randn(6, DATA)
    record = vae(x)
    torch.manual_seed(5)
    found = MMDRegularizer(1.0)(vae, Batch(x), record).loss.item()
    torch.manual_seed(5)
    y = vae.prior().sample((1, 6)).numpy()[0]
    z = record.latents[0].z.detach().numpy()[0]
    constants = [2 * LATENT * s for s in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)]
    expected = sum(
        direct_mmd(z, y, lambda d, c=c: c / (c + 2 * LATENT * d), [1.0]) for c in constants
    )
    assert found == pytest.approx(expected, rel=1e-12)


def gaussian_mmd(mean, std, dim, scale):
    """Return the MMD of N(mean, std^2 I) and N(0, I) with the kernel exp(-|a - b|^2 / (2 D s))."""
    h = dim * scale

    def expected_kernel(square, variance):
        return (1 + variance / h) ** (-dim / 2) * math.exp(-square / (2 * (h + variance)))

    cross = expected_kernel(dim * mean**2, 1 + std**2)
    return expected_kernel(0, 2 * std**2) + expected_kernel(0, 2) - 2 * cross


@for_each(("mean", "std"), [(0.0, 1.0), (0.7, 1.0), (0.4, 0.5)])
def test_mmd_is_unbiased(mean, std):
    vae = small_vae()
    with torch.no_grad():
        vae.encoder.head.weight.zero_()
        vae.encoder.head.bias.copy_(torch.tensor([mean, mean, math.log(std), math.log(std)]))
        regularizer, x = (
            MMDRegularizer(1.0, kernel=gaussian_kernel, scales=(0.6,)),
            torch.zeros(4, DATA),
        )
        values = [penalty_of(regularizer, vae, x, 50)[1].loss for _ in range(400)]
    values = torch.stack(values)
    error = values.std().item() / math.sqrt(len(values))
    assert abs(values.mean().item() - gaussian_mmd(mean, std, LATENT, 0.6)) < 4 * error
    assert error < 2e-3


def test_mmd_samples_the_prior_of_each_example():
    """A prior per example is sampled once per example, a common prior for all of them."""
    vae, x = small_vae(), torch.randn(6, DATA)
    record = vae(x, num_samples=3)
    (term,) = record.latents

    class Fixed:
        def __init__(self, batch_shape):
            self.batch_shape = torch.Size(batch_shape)

        def sample(self, shape):
            return term.z.detach().clone().expand(*shape, *self.batch_shape, LATENT)

    for shape in ((), (6,)):
        own = type(term)("z", term.z, term.posterior, Fixed(shape))
        same = type(record)((own,), record.likelihood, record.log_px)
        direct = direct_mmd(*[term.z[0].detach().numpy()] * 2, lambda d: math.exp(-d), [1.0])
        found = MMDRegularizer(1.0, kernel=gaussian_kernel, scales=(1.0,))(
            vae, Batch(x), same
        ).loss.item()
        each = [
            direct_mmd(*[z.detach().numpy()] * 2, lambda d: math.exp(-d), [1.0]) for z in term.z
        ]
        assert each[0] == direct
        assert found == pytest.approx(np.mean(each), rel=1e-12)


# Total correlation --------------------------------------------------------------------------------


def numpy_terms(record, size, sampling):
    """Return the three terms by loops over samples, examples and dimensions."""
    (term,) = record.latents
    z, log_p = term.z.detach().numpy(), term.log_p.detach().numpy()
    mean = term.posterior.base.mean.detach().numpy()
    std = np.exp(term.posterior.base.log_std.detach().numpy())
    num_samples, batch, dim = z.shape
    values = np.zeros((num_samples, batch, 3))
    for k, i in itertools.product(range(num_samples), range(batch)):
        density = np.zeros((batch, dim))
        weight = np.zeros(batch)
        for j in range(batch):
            if sampling == "weighted":
                weight[j] = 1 / (size * batch)
            else:
                weight[j] = 1 / size if i == j else (size - 1) / size / (batch - 1)
            for d in range(dim):
                square = ((z[k, i, d] - mean[j, d]) / std[j, d]) ** 2
                density[j, d] = math.exp(-square / 2) / std[j, d] / math.sqrt(2 * math.pi)
        q = sum(weight[j] * density[j].prod() for j in range(batch))
        product = math.prod(
            sum(weight[j] * density[j, d] for j in range(batch)) for d in range(dim)
        )
        values[k, i] = (
            math.log(density[i].prod() / q),
            math.log(q / product),
            math.log(product) - log_p[k, i],
        )
    return values.mean((0, 1))


@for_each("sampling", ["stratified", "weighted"])
@for_each("num_samples", [1, 3])
def test_total_correlation_agrees_with_numpy(sampling, num_samples):
    vae, x = small_vae(), 2 * torch.randn(7, DATA)
    options = {"mutual_information": 0.3, "dimension_kl": 0.7, "sampling": sampling}
    record, penalty = penalty_of(
        TotalCorrelationRegularizer(1.9, dataset_size=SIZE, **options), vae, x, num_samples
    )
    expected = numpy_terms(record, SIZE, sampling)
    names = ("mutual_information_nats", "total_correlation_nats", "dimension_kl_nats")
    for name, value in zip(names, expected, strict=True):
        assert penalty.metrics[name].item() == pytest.approx(value, rel=1e-12, abs=1e-12)
    total = expected @ np.array([0.3, 1.9, 0.7])
    assert penalty.loss.item() == pytest.approx(total, rel=1e-12)


@for_each("sampling", ["stratified", "weighted"])
@for_each("num_samples", [1, 3])
def test_total_correlation_terms_sum_to_the_kl(sampling, num_samples):
    vae, batch = small_vae(), Batch(torch.randn(7, DATA))
    ones = TotalCorrelationRegularizer(
        1.0,
        dataset_size=SIZE,
        mutual_information=1.0,
        dimension_kl=1.0,
        sampling=sampling,
    )
    record, penalty = penalty_of(ones, vae, batch.x, num_samples)
    (term,) = record.latents
    expected = (term.log_q - term.log_p).mean()
    torch.testing.assert_close(sum(penalty.metrics.values()), expected, rtol=0, atol=1e-12)
    losses = []
    for objective in (
        ELBO(0.0, num_samples=num_samples) + ones,
        ELBO(kl="sample", num_samples=num_samples),
    ):
        torch.manual_seed(3)
        losses.append(objective(vae, batch).losses["model"])
    torch.testing.assert_close(*losses, rtol=1e-13, atol=0)
    assert_same(*(gradients(loss, vae) for loss in losses))


@for_each("size", [1, 2, 3, 6])
def test_aggregate_log_weights_stratified_are_unbiased(size):
    """The mean over all batches with the example of z, at any position, is the density."""
    num = 6
    posterior = small_vae().encode(2 * torch.randn(num, DATA))
    z = posterior.sample()[2]
    density = posterior.log_prob(z).exp()  # (N,)
    others = [n for n in range(num) if n != 2]
    weights = aggregate_log_weights(num, "stratified", torch.empty(size, size)).exp()
    for place in range(size):
        estimates = []
        for rest in itertools.combinations(others, size - 1):
            batch = list(rest)
            batch.insert(place, 2)
            estimates.append((weights[place] * density[batch]).sum())
        mean = torch.stack(estimates).mean()
        if size > 1:
            torch.testing.assert_close(mean, density.mean(), rtol=1e-12, atol=0)
            assert weights[place].sum().item() == pytest.approx(1.0, rel=1e-13)
        assert weights[place, place].item() == pytest.approx(1 / num, rel=1e-13)


def test_aggregate_log_weights_weighted():
    weights = aggregate_log_weights(100, "weighted", torch.empty(5, 5))
    torch.testing.assert_close(weights, torch.full((5, 5), math.log(1 / 500)), rtol=1e-14, atol=0)


def test_total_correlation_of_all_data_is_exact():
    vae, x = small_vae(), 2 * torch.randn(6, DATA)
    record, penalty = penalty_of(TotalCorrelationRegularizer(1.0, dataset_size=6), vae, x, 3)
    (term,) = record.latents
    posterior = term.posterior
    log_q = posterior.log_prob(term.z.unsqueeze(2)).exp().mean(2).log()
    each = posterior.elementwise_log_prob(term.z.unsqueeze(2)).exp().mean(2).log().sum(-1)
    found = penalty.metrics
    for name, value in {
        "mutual_information_nats": term.log_q - log_q,
        "total_correlation_nats": log_q - each,
        "dimension_kl_nats": each - term.log_p,
    }.items():
        torch.testing.assert_close(found[name], value.mean(), rtol=1e-12, atol=1e-12)


def test_total_correlation_of_independent_dimensions_is_zero():
    """Means on a grid and equal widths make q(z) a product."""
    vae = small_vae(DeterministicEncoder)
    vae.encoder = GaussianEncoder(nn.Identity(), LATENT, features=LATENT)
    with torch.no_grad():
        vae.encoder.head.weight.copy_(torch.eye(4)[:, :LATENT])
        vae.encoder.head.bias.copy_(torch.tensor([0.0, 0.0, -0.5, -0.5]))
    grid = torch.cartesian_prod(torch.linspace(-2, 2, 4), torch.linspace(-1, 3, 5))
    vae.decoder = MLP(LATENT, hidden=(), out_shape=LATENT)
    _, penalty = penalty_of(TotalCorrelationRegularizer(1.0, dataset_size=len(grid)), vae, grid, 3)
    assert penalty.loss.item() == pytest.approx(0.0, abs=1e-13)
    tilted = grid.clone()
    tilted[:, 1] += grid[:, 0]
    _, penalty = penalty_of(
        TotalCorrelationRegularizer(1.0, dataset_size=len(grid)), vae, tilted, 3
    )
    assert penalty.loss.item() > 0.1


def test_total_correlation_refuses_large_batches_and_dependent_dimensions():
    batch = Batch(torch.randn(7, DATA))
    with pytest.raises(
        ValueError, match="at most dataset_size=6 examples, got 7: set dataset_size"
    ):
        (ELBO() + TotalCorrelationRegularizer(1.0, dataset_size=6))(small_vae(), batch)
    objective = ELBO() + TotalCorrelationRegularizer(1.0, dataset_size=SIZE)
    remedy = re.compile(
        "TotalCorrelationRegularizer expects posteriors with independent dimensions, got an error: "
        "FullNormal"
    )
    with pytest.raises(ValueError, match=remedy):
        objective.check(small_vae(FullGaussianEncoder), batch)


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
