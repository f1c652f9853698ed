"""Bounds as functions of log weights: values, derivatives, and order below log p(x)."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers.cases import for_each
from helpers.oracles import (
    TwoLayers,
    conjugate_normal,
    gauss_hermite,
    log_evidence,
    one_latent,
    random_linear_gaussian,
)
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
    Optimization,
    StandardNormal,
    Trainer,
    TwoLevelVAE,
    VampPrior,
)
from tinyvae.encoders import CategoricalEncoder, DeterministicEncoder, JointEncoder
from tinyvae.likelihoods import MaskedLikelihood
from tinyvae.networks import ConcatContext
from tinyvae.objectives import (
    CIWAE,
    PIWAE,
    TVO,
    GradientPenaltyRegularizer,
    MultiplyIWAE,
    RenyiBound,
    VariationalBound,
)
from tinyvae.priors import CategoricalPrior, JointPrior
from tinyvae.schedules import Linear, Schedule

pytestmark = pytest.mark.usefixtures("float64")

BOUNDS = {
    "iwae": lambda k: IWAE(k),
    "ciwae": lambda k: CIWAE(k, elbo_weight=0.3),
    "renyi .5": lambda k: RenyiBound(k, alpha=0.5),
    "renyi 2": lambda k: RenyiBound(k, alpha=2.0),
    "renyi -1": lambda k: RenyiBound(k, alpha=-1.0),
    "renyi 1": lambda k: RenyiBound(k, alpha=1.0),
    "tvo 1": lambda k: TVO(k, num_partitions=1),
    "tvo 2": lambda k: TVO(k, num_partitions=2, smallest=0.2),
    "tvo 5": lambda k: TVO(k, num_partitions=5, smallest=0.03),
}
LOWER = [name for name in BOUNDS if name != "renyi -1"]


def numpy_value(name, log_w):
    """Return the bound of log weights ``(K, B)`` from its definition."""
    w = np.exp(log_w)
    kind, _, number = name.partition(" ")
    if kind == "iwae":
        return np.log(w.mean(0))
    if kind == "ciwae":
        return 0.3 * log_w.mean(0) + 0.7 * np.log(w.mean(0))
    if name == "renyi 1":
        return log_w.mean(0)
    if kind == "renyi":
        return np.log((w ** (1 - float(number))).mean(0)) / (1 - float(number))
    points = {"1": [0, 1], "2": [0, 0.2, 1], "5": [0, *0.03 ** (np.arange(4, -1, -1) / 4)]}[number]
    total = 0.0
    for left, right in pairwise(points):
        share = w**left / (w**left).sum(0)
        total = total + (right - left) * (share * log_w).sum(0)
    return total


def numpy_log_weight(vae, x, num_samples):
    """Return log weights ``(K, B)`` of a small Gaussian VAE with the noise of seed 3."""
    parameters = {name: p.detach().numpy() for name, p in vae.named_parameters()}

    def linear(name, values):
        return values @ parameters[f"{name}.weight"].T + parameters[f"{name}.bias"]

    torch.manual_seed(3)
    noise = torch.randn(num_samples, len(x), 2).numpy()
    features = np.tanh(linear("encoder.network.layers.0", x.numpy()))
    mean, log_std = np.split(linear("encoder.head", features), 2, axis=1)
    z = mean + np.exp(log_std) * noise
    params = linear("decoder.layers.2", np.tanh(linear("decoder.layers.0", z)))
    log_px = -(((x.numpy() - params) / 0.4) ** 2) / 2 - np.log(0.4 * np.sqrt(2 * np.pi))
    return log_px.sum(2) + (noise**2 / 2 + log_std - z**2 / 2).sum(2)


def small_vae(data=5):
    encoder = GaussianEncoder(MLP(data, hidden=(6,), activation=nn.Tanh), 2)
    decoder = MLP(2, hidden=(6,), out_shape=data, activation=nn.Tanh)
    return VAE(encoder, decoder, GaussianLikelihood(0.4))


# Values -------------------------------------------------------------------------------------------


@for_each("name", BOUNDS)
@for_each("num_samples", [1, 4])
def test_bound_agrees_with_numpy(name, num_samples):
    vae, x = small_vae(), torch.randn(7, 5)
    log_w = numpy_log_weight(vae, x, num_samples)
    torch.manual_seed(3)
    bound = BOUNDS[name](num_samples)
    output = bound(vae, Batch(x))
    expected = numpy_value(name, log_w).mean()
    assert output.losses["model"].item() == pytest.approx(-expected, abs=1e-12 * abs(expected))
    metrics = {n: v.item() for n, v in output.metrics.items()}
    assert metrics[f"{bound.metric}_nats"] == pytest.approx(expected, rel=1e-12)
    assert metrics["elbo_nats"] == pytest.approx(log_w.mean(), rel=1e-12)
    assert metrics["log_likelihood_nats"] - metrics["kl_nats"] == pytest.approx(log_w.mean())
    assert not any(v.requires_grad for v in output.metrics.values())


@for_each("name", BOUNDS)
@for_each("num_samples", [1, 2, 100, 101, 5000])
def test_bound_of_equal_log_weights_is_their_value(name, num_samples):
    log_weight = torch.full((num_samples, 2), -1234.5)
    value = BOUNDS[name](num_samples).value(log_weight)
    torch.testing.assert_close(value, log_weight[0], rtol=1e-13, atol=0)


@for_each("name", BOUNDS)
def test_bound_built_in_float32_is_exact_for_a_float64_model(name):
    log_weight = 1e4 * torch.randn(4, 7)
    expected = BOUNDS[name](4).value(log_weight)
    torch.set_default_dtype(torch.float32)
    got = BOUNDS[name](4).value(log_weight)
    torch.testing.assert_close(got, expected, rtol=1e-14, atol=0)


def test_multiply_iwae_splits_the_samples():
    vae, x = small_vae(), torch.randn(7, 5)
    log_w = numpy_log_weight(vae, x, 12)
    torch.manual_seed(3)
    output = MultiplyIWAE(4, num_bounds=3)(vae, Batch(x))
    # (K, M, B): each bound takes every M-th sample.
    expected = np.log(np.exp(log_w).reshape(4, 3, 7).mean(0)).mean()
    assert output.losses["model"].item() == pytest.approx(-expected, rel=1e-12)
    assert output.metrics["multiply_iwae_nats"].item() == pytest.approx(expected, rel=1e-12)


def test_piwae_has_the_losses_of_both_bounds():
    vae, x = small_vae(), torch.randn(7, 5)
    log_w = numpy_log_weight(vae, x, 12)
    torch.manual_seed(3)
    output = PIWAE(4, num_bounds=3)(vae, Batch(x))
    multiply = np.log(np.exp(log_w).reshape(4, 3, 7).mean(0)).mean()
    whole = np.log(np.exp(log_w).mean(0)).mean()
    assert output.losses["posterior"].item() == pytest.approx(-multiply, rel=1e-12)
    assert output.losses["generative"].item() == pytest.approx(-whole, rel=1e-12)
    metrics = output.metrics
    assert metrics["iwae_nats"].item() == pytest.approx(whole, rel=1e-12)
    assert metrics["multiply_iwae_nats"].item() == pytest.approx(multiply, rel=1e-12)


def test_piwae_trains_each_group_on_its_bound():
    """The posterior is trained on the mean of M bounds, everything else on the one bound."""
    x, steps = torch.randn(16, 5), {}
    for name, objective in {
        "partial": PIWAE(3, num_bounds=4),
        "posterior": MultiplyIWAE(3, num_bounds=4),
        "generative": IWAE(12),
    }.items():
        torch.manual_seed(1)
        vae = small_vae()
        optimization = Optimization(0.1, optimizer=torch.optim.SGD)
        trainer = Trainer(vae, objective, optimization, progress=False, device="cpu")
        trainer.fit(x, epochs=1, batch_size=16)
        steps[name] = {n: p.detach().clone() for n, p in vae.named_parameters()}
    for name, value in steps["partial"].items():
        other = "posterior" if name.startswith("encoder") else "generative"
        torch.testing.assert_close(value, steps[other][name], rtol=1e-12, atol=1e-12)
    decoder = "decoder.layers.0.weight"
    assert (steps["posterior"][decoder] - steps["generative"][decoder]).abs().max() > 1e-4


def test_piwae_groups_share_no_parameter():
    encoder = GaussianEncoder(MLP(5, hidden=(6,)), 2)
    vae = VAE(
        encoder,
        MLP(2, out_shape=5),
        GaussianLikelihood(),
        VampPrior(2, input_shape=5, num_components=3),
    )
    groups = PIWAE(2, num_bounds=2).parameter_groups(vae)
    ids = [{id(p) for p in group} for group in groups.values()]
    assert ids[0] == {id(p) for p in encoder.parameters()}
    assert not ids[0] & ids[1]
    assert len(ids[0] | ids[1]) == len(list(vae.parameters()))


@for_each("name", BOUNDS)
def test_bound_terms_average_to_the_metrics(name):
    vae, x, bound = small_vae(), torch.randn(7, 5), BOUNDS[name](4)
    torch.manual_seed(3)
    metrics = bound(vae, Batch(x)).metrics
    torch.manual_seed(3)
    terms = bound.terms(vae, Batch(x))
    shapes = {"log_likelihood": (4, 7), "kl": (4, 7), "log_weight": (4, 7), bound.metric: (7,)}
    assert {name: tuple(term.shape) for name, term in terms.items()} == shapes
    means = {f"{name}_nats": term.mean() for name, term in terms.items()}
    means["elbo_nats"] = means.pop("log_weight_nats")
    for metric, value in means.items():
        torch.testing.assert_close(value, metrics[metric], rtol=1e-12, atol=1e-12)


# Derivatives --------------------------------------------------------------------------------------


@for_each("derivatives", [lambda b, w: b.derivatives(w), VariationalBound.derivatives])
@for_each("name", BOUNDS)
def test_bound_derivatives_agree_with_autograd(name, derivatives):
    """The closed forms of the bounds, and the default for a new bound."""
    bound = BOUNDS[name](4)
    log_weight = 2 * torch.randn(4, 3)
    slope, curvature = derivatives(bound, log_weight)
    for column in range(3):
        at = log_weight[:, column].clone()

        def value(v):
            return bound.value(v.unsqueeze(1)).squeeze()

        first = torch.autograd.functional.jacobian(value, at)
        second = torch.autograd.functional.hessian(value, at).diagonal()
        torch.testing.assert_close(slope[:, column], first, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(curvature[:, column], second, rtol=1e-10, atol=1e-12)


MORE = {
    "elbo": lambda k: ELBO(num_samples=k),
    "free bits": lambda k: ELBO(num_samples=k, free_bits=0.1),
    "capacity": lambda k: ELBO(2.0, num_samples=k, capacity=0.1),
    "multiply": lambda k: MultiplyIWAE(k, num_bounds=2),
    "beta": lambda k: IWAE(k, beta=0.5),
}


@for_each("name", [*BOUNDS, *MORE])
def test_bound_gradcheck(name):
    torch.manual_seed(1)
    vae, x = small_vae(3), torch.randn(4, 3)
    bound = (BOUNDS | MORE)[name](3)
    parameters = {n: p.detach().requires_grad_() for n, p in vae.named_parameters()}

    def loss(*values):
        torch.manual_seed(7)
        named = dict(zip(parameters, values, strict=True))

        def run(x, context, **options):
            return torch.func.functional_call(vae, named, (x, context), options)

        class Stand(nn.Module):
            def forward(self, *args, **options):
                return run(*args, **options)

        return bound(Stand(), Batch(x)).losses["model"]

    assert torch.autograd.gradcheck(loss, tuple(parameters.values()))


@for_each("alpha", [1 - 1e-3, 1 - 1e-7, 1 - 1e-12, 1 + 1e-9])
def test_renyi_is_precise_near_order_one(alpha):
    """F = mean + p/2 var + p^2/6 third moment + O(p^3), with p = 1 - alpha."""
    log_weight = torch.randn(50, 1)
    centered = log_weight - log_weight.mean(0)
    p = 1 - alpha
    moments = [(centered**n).mean(0) for n in (2, 3, 4)]
    fourth = moments[2] - 3 * moments[0] ** 2
    series = log_weight.mean(0) + p / 2 * moments[0] + p**2 / 6 * moments[1] + p**3 / 24 * fourth
    torch.testing.assert_close(
        RenyiBound(50, alpha=alpha).value(log_weight), series, rtol=0, atol=1e-11
    )


def test_bound_gradients_of_extreme_log_weights_are_finite():
    log_weight = torch.tensor([[-1e4], [0.0], [800.0]]).requires_grad_()
    for name, make in BOUNDS.items():
        (gradient,) = torch.autograd.grad(make(3).value(log_weight).sum(), log_weight)
        assert gradient.isfinite().all(), name


# Below log p(x) -----------------------------------------------------------------------------------


def test_iwae_has_the_published_values():
    """z ~ N(0, 1), x given z ~ N(z, 1), x = 1, q = N(0.4, 2/3), by quadrature over the samples."""
    vae = conjugate_normal().vae
    expected = {1: -1.5483377539, 2: -1.5287606841, 3: -1.5238475556}
    for num_samples, value in expected.items():
        grid, log_mass = gauss_hermite(40, num_samples)
        bound = IWAE(num_samples)
        z = 0.4 + math.sqrt(2 / 3) * grid.T.unsqueeze(-1)  # (K, n, 1)
        x = torch.ones(len(grid), 1)
        q, p = vae.encode(x), vae.prior()
        log_weight = vae.decode(z).log_prob(x) + p.log_prob(z) - q.log_prob(z)
        found = (log_mass.exp() * bound.value(log_weight)).sum().item()
        assert found == pytest.approx(value, abs=1e-9)


def expected_bound(bound, vae, x, num_samples, nodes=24):
    """Return E F(l_1, ..., l_K) of one example by quadrature over all samples."""
    q, dim = vae.encode(x), vae.latent_shape.numel()
    grid, log_mass = gauss_hermite(nodes, num_samples * dim)
    noise = grid.reshape(-1, num_samples, dim).movedim(1, 0)  # (K, n, D)
    z = q.mean + q.base.log_std.exp() * noise
    log_q = (-0.5 * noise**2 - q.base.log_std - 0.5 * math.log(2 * math.pi)).sum(-1)
    log_px = vae.decode(z).log_prob(x.expand(len(grid), -1))
    log_weight = log_px + vae.prior().log_prob(z) - log_q
    return (log_mass.exp() * bound.value(log_weight)).sum().item()


@for_each("name", LOWER)
def test_bound_lies_between_elbo_and_evidence(name):
    torch.manual_seed(2)
    encoder = GaussianEncoder(MLP(4, hidden=(5,)), 1)
    vae = VAE(encoder, MLP(1, hidden=(5,), out_shape=4), BernoulliLikelihood())
    with torch.no_grad():
        encoder.head.bias += torch.tensor([0.8, -0.3])
    for x in (torch.rand(3, 1, 4) > 0.5).to(torch.get_default_dtype()):
        with torch.no_grad():
            evidence = log_evidence(vae, x, 100).item()
            elbo = expected_bound(RenyiBound(1, alpha=1.0), vae, x, 1)
            values = [expected_bound(BOUNDS[name](k), vae, x, k) for k in (1, 2, 3)]
            iwae = [expected_bound(IWAE(k), vae, x, k) for k in (1, 2, 3)]
        assert values[0] == pytest.approx(
            elbo, abs=1e-10
        )  # with one sample all bounds are the ELBO
        assert all(v <= i + 1e-9 for v, i in zip(values, iwae, strict=True))
        if name != "renyi 2":  # its values decrease with K
            assert all(a < b + 1e-9 for a, b in pairwise(values))
            assert values[0] >= elbo - 1e-9
        assert max(values) < evidence


@for_each("name", ["iwae", "tvo 5", "renyi .5"])
def test_bound_of_two_latents_lies_below_evidence(name):
    vae, x = small_vae(3), torch.randn(2, 1, 3)
    with torch.no_grad():
        vae.encoder.head.bias += torch.tensor([0.5, -0.5, -0.7, -1.0])
        for row in x:
            evidence = log_evidence(vae, row, 80).item()
            one, two = (expected_bound(BOUNDS[name](k), vae, row, k, nodes=14) for k in (1, 2))
            assert one + 0.01 < two < evidence


def test_renyi_of_negative_order_exceeds_the_evidence():
    vae, x = one_latent(20_000, 0.4, 0.5 * math.log(2 / 3)), torch.ones(20_000, 1)
    bound = RenyiBound(50, alpha=-1.0)
    values = bound.terms(vae, Batch(x))["renyi"]
    error = values.std().item() / math.sqrt(len(values))
    assert values.mean().item() - 4 * error > -1.5155121235
    assert not bound.is_bound(vae)


@for_each("dim", [1, 2, 5])
def test_iwae_increases_with_samples(dim):
    """ELBO <= IWAE_2 <= IWAE_8 <= log p(x), by paired differences."""
    torch.manual_seed(4)
    model = random_linear_gaussian(6, dim)
    x = model.evidence.sample((4000,))
    vae = model.spoil_posterior()
    bounds = {k: IWAE(k).terms(vae, Batch(x))["iwae"] for k in (1, 2, 8)}
    evidence = model.evidence.log_prob(x)
    for lower, upper in pairwise([*bounds.values(), evidence]):
        difference = upper - lower
        assert difference.mean() > -4 * difference.std() / math.sqrt(len(x))
        assert difference.mean() > 0.005


@for_each("name", [*BOUNDS, "elbo", "elbo stl", "multiply", "partial"])
@for_each("estimator", ["pathwise", "stl", "dreg"])
def test_bound_at_exact_posterior_equals_evidence(name, estimator):
    model = random_linear_gaussian()
    x = model.evidence.sample((7,))
    expected = model.evidence.log_prob(x).mean()
    bound = {
        "elbo": lambda: ELBO(kl="sample", num_samples=3),
        "elbo stl": lambda: ELBO(num_samples=3, estimator="stl"),
        "multiply": lambda: MultiplyIWAE(3, num_bounds=2),
        "partial": lambda: PIWAE(3, num_bounds=2),
    }.get(name, lambda: BOUNDS[name](3))()
    if name != "elbo stl":
        bound.estimator = estimator
    output = bound(model.vae, Batch(x))
    for loss in output.losses.values():
        torch.testing.assert_close(-loss, expected, rtol=0, atol=1e-10)
    for metric, value in output.metrics.items():
        if metric not in ("log_likelihood_nats", "kl_nats"):
            torch.testing.assert_close(value, expected, rtol=0, atol=1e-10)


@for_each("top_down", [True, False])
@for_each("name", BOUNDS)
def test_bound_of_two_exact_layers_equals_evidence(name, top_down):
    model = TwoLayers(top_down=top_down)
    x = model.evidence.sample((5,))
    loss = BOUNDS[name](3)(model, Batch(x)).losses["model"]
    torch.testing.assert_close(-loss, model.evidence.log_prob(x).mean(), rtol=0, atol=1e-12)


def test_iwae_ignores_missing_values():
    """With missing data, IWAE is the bound of the observed entries."""
    vae = small_vae()
    vae.likelihood = MaskedLikelihood(vae.likelihood)
    x = torch.randn(7, 5)
    x[:, 3] = torch.nan
    log_weight = IWAE(4).terms(vae, Batch(x))
    assert log_weight["iwae"].isfinite().all()
    masked = IWAE(4).terms(vae, Batch(torch.randn(7, 5), mask=~torch.isnan(x)))
    assert masked["iwae"].shape == (7,)


# Is it a bound? -----------------------------------------------------------------------------------


class Odd(Schedule):
    """A custom schedule with an unknown range."""

    def __init__(self):
        super().__init__(steps=5, fraction=None)

    def value_at(self, step, length):
        return -3.0 + step

    def __repr__(self):
        return "Odd()"


@for_each(
    ("objective", "expected"),
    [
        (IWAE(5), True),
        (MultiplyIWAE(5, num_bounds=2), True),
        (PIWAE(5, num_bounds=2), True),
        (CIWAE(5), True),
        (TVO(5), True),
        (RenyiBound(5, alpha=0.5), True),
        (RenyiBound(5, alpha=0.0), True),
        (RenyiBound(5, alpha=7.0), True),
        (RenyiBound(5, alpha=-0.1), False),
        (RenyiBound(5, alpha=Linear(1.0, 0.0, steps=5)), True),
        (RenyiBound(5, alpha=Linear(1.0, -0.5, steps=5)), False),
        (RenyiBound(5, alpha=Odd()), False),
        (CIWAE(5, elbo_weight=Linear(1.0, 0.0, steps=5)), True),
        (CIWAE(5, elbo_weight=Odd()), False),
        (TVO(5, num_partitions=3, smallest=Linear(0.1, 0.3, steps=5)), True),
        (TVO(5, num_partitions=3, smallest=Linear(0.1, 1.0, steps=5)), True),
        (TVO(5, num_partitions=3, smallest=Odd()), False),
        (IWAE(5, beta=0.5), False),
        (IWAE(5, beta=Linear(0.0, 1.0, steps=5)), False),
        (ELBO(capacity=3.0), False),
        (ELBO(free_bits=0.1), False),
        (ELBO(likelihood_weight=0.5), False),
        (ELBO({"z": 1.0}), True),
        (ELBO({"z": 1.5}), False),
        (ELBO(estimator="stl"), True),
    ],
)
def test_is_bound(objective, expected):
    vae = small_vae()
    assert objective.is_bound(vae) is expected
    words = objective.check(vae, Batch(torch.randn(7, 5)))
    assert words.endswith("a lower bound on log p(x)" if expected else "not a bound on log p(x)")


@for_each("objective", [ELBO(), IWAE(3), TVO(3)])
def test_is_bound_is_false_without_a_density(objective):
    vae = VAE(DeterministicEncoder(MLP(5), 2), MLP(2, out_shape=5), GaussianLikelihood())
    assert not objective.is_bound(vae)


def test_check_describes_the_bound():
    vae, batch = small_vae(), Batch(torch.randn(7, 5))
    words = {
        IWAE(5, estimator="dreg"): "IWAE, 5 draws, DReG gradient: a lower bound on log p(x)",
        MultiplyIWAE(5, num_bounds=2): "MultiplyIWAE, 2 bounds of 5 draws: a lower",
        CIWAE(5, elbo_weight=0.1, beta=0.5): "CIWAE, elbo_weight 0.1, 5 draws, beta 0.5: not a",
        RenyiBound(5, alpha=0.5): "RenyiBound, alpha 0.5, 5 draws: a lower",
        TVO(1, num_partitions=3): "TVO, num_partitions 3, smallest 0.1, 1 draw: a lower",
        ELBO(2.0, capacity=3.0): "ELBO, beta 2, capacity 3, 1 draw, analytic KL: not a bound",
        ELBO(free_bits=0.5): "ELBO, beta 1, 0.5 free nats per dimension, 1 draw, analytic KL: not",
        ELBO(estimator="stl"): "ELBO, beta 1, 1 draw, sampled KL, STL gradient: a lower bound",
        ELBO({"z": 2.0}): "ELBO, beta 2 of z, 1 draw, analytic KL: not a bound",
    }
    for objective, text in words.items():
        assert objective.check(vae, batch).startswith(text)


# Errors -------------------------------------------------------------------------------------------


@for_each(
    ("make", "message"),
    [
        (lambda: IWAE(0), "IWAE expects num_samples >= 1, got 0"),
        (lambda: MultiplyIWAE(3, num_bounds=0), "num_bounds >= 1, got 0"),
        (lambda: IWAE(3, estimator="reinforce"), "'stl' or 'dreg', got 'reinforce'"),
        (lambda: IWAE(3, baseline="mean"), "'vimco' or 'leave_one_out', got 'mean'"),
        (lambda: CIWAE(3, elbo_weight=1.5), r"elbo_weight expects a value in \[0, 1\], got 1.5"),
        (lambda: RenyiBound(3, alpha=math.inf), "a finite weight, got inf"),
        (lambda: TVO(3, num_partitions=0), "num_partitions >= 1, got 0"),
        (lambda: TVO(3, smallest=1.5), r"smallest expects a value in \[0, 1\], got 1.5"),
        (lambda: TVO(3, smallest=Linear(-0.5, 0.5, steps=3)), r"in \[0, 1\], got Linear"),
        (
            lambda: CIWAE(3, elbo_weight=Linear(-3.0, 0.0, steps=3)),
            r"elbo_weight expects a value in \[0, 1\], got Linear",
        ),
        (lambda: IWAE(2.5), "num_samples >= 1, got 2.5"),
        (lambda: IWAE("5"), "num_samples >= 1, got '5'"),
        (lambda: ELBO(math.nan), "a finite weight, got nan"),
        (lambda: ELBO(free_bits=-1.0), "free_bits expects a value >= 0, got -1"),
        (
            lambda: ELBO(capacity=Linear(-1.0, 1.0, steps=3)),
            "capacity expects a value >= 0, got Linear",
        ),
        (lambda: ELBO(free_bits=1.0, free_bits_per=True), "got True"),
        (
            lambda: ELBO(free_bits=1.0, estimator="stl"),
            "with a capacity or free bits expects estimator",
        ),
        (
            lambda: ELBO(capacity=1.0, estimator="dreg"),
            "with a capacity or free bits expects estimator",
        ),
        (
            lambda: ELBO(kl="analytic", estimator="stl"),
            "expects kl 'auto' or 'sample', got 'analytic'",
        ),
        (lambda: ELBO(capacity=1.0, free_bits=1.0), "capacity or free_bits, got both"),
        (lambda: ELBO({"z": 1.0}, capacity=1.0), "a capacity for each latent, got 1.0"),
        (lambda: ELBO(free_bits=1.0, free_bits_per="pixel"), "got 'pixel'"),
        (lambda: ELBO(free_bits=1.0, free_bits_per=0), "got 0"),
    ],
)
def test_bound_refuses_invalid_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def categorical_vae(temperature=None):
    encoder = CategoricalEncoder(MLP(5), 3, temperature=temperature)
    return VAE(encoder, MLP((3, 1), out_shape=5), GaussianLikelihood(), CategoricalPrior(3))


def test_check_refuses_one_sample_without_rsample():
    batch = Batch(torch.randn(7, 5))
    for objective in (ELBO(), IWAE(1)):
        with pytest.raises(ValueError, match=r"num_samples >= 2 .*not reparameterized"):
            objective.check(categorical_vae(), batch)
    assert "a lower bound" in IWAE(2).check(categorical_vae(), batch)


@for_each("estimator", ["stl", "dreg"])
def test_check_refuses_stl_without_a_density(estimator):
    batch = Batch(torch.randn(7, 5))
    with pytest.raises(ValueError, match="expects posteriors with a density"):
        IWAE(2, estimator=estimator).check(categorical_vae(temperature=1.0), batch)
    points = VAE(DeterministicEncoder(MLP(5), 2), MLP(2, out_shape=5), GaussianLikelihood())
    with pytest.raises(ValueError, match="expects posteriors with a density"):
        IWAE(2, estimator=estimator).check(points, batch)


def test_models_without_second_pass_refuse_dreg_and_piwae():
    model = TwoLayers(top_down=True)
    with pytest.raises(NotImplementedError, match="use estimator='pathwise'"):
        IWAE(2, estimator="dreg")(model, Batch(torch.randn(3, 4)))
    with pytest.raises(NotImplementedError, match="parameters of its posterior"):
        PIWAE(2, num_bounds=2).parameter_groups(model)


def test_repr_builds_an_equal_bound():
    for objective in (
        IWAE(num_samples=5, beta=2, estimator="dreg"),
        PIWAE(num_samples=3, num_bounds=2, baseline="leave_one_out"),
        CIWAE(num_samples=3, elbo_weight=0.1),
        RenyiBound(num_samples=3, alpha=0.5),
        TVO(num_samples=4, num_partitions=5, smallest=0.1),
        ELBO(beta=2, num_samples=1, kl="auto", estimator="stl"),
    ):
        assert repr(eval(repr(objective))) == repr(objective)
    assert repr(IWAE(5, beta=2.0, estimator="dreg")) == (
        "IWAE(num_samples=5, beta=2, estimator='dreg')"
    )


def test_bound_ignores_samples_of_zero_weight():
    log_weight = torch.tensor([[0.0], [-math.inf], [-1.0]])
    kept = torch.tensor([[0.0], [-1.0]])
    for alpha in (0.0, 0.5):
        value = RenyiBound(3, alpha=alpha).value(log_weight)
        p = 1 - alpha
        expected = (torch.exp(p * kept).sum() / 3).log() / p
        torch.testing.assert_close(value.squeeze(), expected)
    assert IWAE(3).value(log_weight).isfinite().all()


@for_each("name", LOWER)
def test_bound_of_an_example_of_zero_mass_is_minus_infinity(name):
    """The density of a value that is far away underflows for every sample."""
    vae = VAE(GaussianEncoder(MLP(1, (4,)), 1), MLP(1, (4,), out_shape=1), GaussianLikelihood(1.0))
    x = torch.tensor([[0.3], [1e200]])
    bound = BOUNDS[name](4)
    terms = bound.terms(vae, Batch(x))
    assert terms["log_likelihood"][:, 1].tolist() == [-math.inf] * 4
    values = terms[bound.metric]
    assert values.isfinite().tolist() == [True, False]
    assert values[1].item() == -math.inf
    with torch.no_grad():
        assert bound(vae.eval(), Batch(x)).losses["model"].item() == math.inf


def test_forward_refuses_one_sample_without_rsample():
    for objective in (ELBO(), IWAE(1)):
        with pytest.raises(ValueError, match="num_samples >= 2"):
            objective(categorical_vae(), Batch(torch.randn(3, 5)))


def mixed(features, width=2):
    return JointEncoder(
        {
            "a": GaussianEncoder(MLP(features), 1),
            "b": CategoricalEncoder(MLP(features), width, temperature=None),
        }
    )


def test_check_refuses_a_partly_reparameterized_layer():
    batch = Batch(torch.randn(7, 5))
    encoders = [mixed(5), GaussianEncoder(MLP(3), 2)]
    lower = BottomUpVAE(encoders, [mixed(2)], MLP(3, out_shape=5), GaussianLikelihood())
    encoders = [GaussianEncoder(MLP(5), 2), mixed(2)]
    prior = JointPrior({"a": StandardNormal(1), "b": CategoricalPrior(2)})
    generators = [GaussianEncoder(MLP(3), 2)]
    upper = BottomUpVAE(encoders, generators, MLP(2, out_shape=5), GaussianLikelihood(), prior)
    top = GaussianEncoder(MLP(5), 2)
    network = ConcatContext(MLP(7), context_dim=2)
    kinds = CategoricalEncoder(network, 2, temperature=None)
    bottom = JointEncoder({"a": GaussianEncoder(network, 1), "b": kinds})
    two = TwoLevelVAE(
        top,
        bottom=bottom,
        generator=mixed(2),
        decoder=MLP(5, out_shape=5),
        likelihood=GaussianLikelihood(),
    )
    for vae in (lower, upper, two):
        for objective in (ELBO(num_samples=2), IWAE(2)):
            with pytest.raises(ValueError, match="reparameterized as a whole or not at all"):
                objective.check(vae, batch)
            with pytest.raises(ValueError, match="reparameterized as a whole or not at all"):
                objective(vae, batch)


def test_piwae_refuses_a_frozen_part():
    vae = small_vae()
    vae.encoder.requires_grad_(False)
    with pytest.raises(ValueError, match="use MultiplyIWAE or IWAE"):
        PIWAE(2, num_bounds=2).parameter_groups(vae)


def test_iwae_reports_the_kl_of_each_latent():
    encoder = JointEncoder({n: GaussianEncoder(MLP(5), 2) for n in ("a", "b")})
    prior = JointPrior({n: StandardNormal(2) for n in ("a", "b")})
    vae = VAE(encoder, MLP(4, out_shape=5), GaussianLikelihood(), prior)
    metrics = IWAE(3)(vae, Batch(torch.randn(7, 5))).metrics
    total = metrics["kl_a_nats"] + metrics["kl_b_nats"]
    torch.testing.assert_close(metrics["kl_nats"], total)


class Noisy(MLP):
    """A network with dropout in training."""

    def forward(self, x):
        return nn.functional.dropout(super().forward(x), 0.5, self.training)


@for_each("estimator", ["stl", "dreg"])
def test_check_refuses_dropout_with_a_second_pass(estimator):
    batch = Batch(torch.randn(7, 5))
    noisy = VAE(GaussianEncoder(Noisy(5), 2), MLP(2, out_shape=5), GaussianLikelihood())
    with pytest.raises(ValueError, match="another posterior of latent 'z' in a second pass"):
        IWAE(2, estimator=estimator).check(noisy, batch)
    assert "a lower bound" in IWAE(2).check(noisy, batch)
    dropout = nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.5))
    vae = VAE(GaussianEncoder(dropout, 2, features=6), MLP(2, out_shape=5), GaussianLikelihood())
    with pytest.raises(ValueError, match="dropout in the decoder only"):
        IWAE(2, estimator=estimator).check(vae, batch)
    decoder = nn.Sequential(nn.Linear(2, 6), nn.Dropout(0.5), nn.Linear(6, 5))
    vae = VAE(GaussianEncoder(MLP(5), 2), decoder, GaussianLikelihood())
    objective = IWAE(2, estimator=estimator)
    objective.check(vae, batch)
    assert objective(vae.train(), batch).losses["model"].isfinite()


@for_each("estimator", ["stl", "dreg"])
def test_second_pass_leaves_batch_statistics(estimator):
    network = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6))
    vae = VAE(GaussianEncoder(network, 2, features=6), MLP(2, out_shape=5), GaussianLikelihood())
    objective, x = IWAE(2, estimator=estimator), torch.randn(7, 5)
    objective.check(vae, Batch(x))
    assert network[1].num_batches_tracked == 0
    objective(vae, Batch(x)).losses["model"].backward()
    assert network[1].num_batches_tracked == 1
    expected = 0.1 * network[0](x).mean(0)
    torch.testing.assert_close(network[1].running_mean, expected)


@pytest.mark.filterwarnings("ignore")
@for_each("penalty", [False, True])
def test_objective_with_inner_autograd_runs_eagerly(penalty):
    """A compiled graph would hide the path from the samples to the bound."""
    vae, x = small_vae(), torch.randn(7, 5)
    objective = IWAE(2, estimator="pathwise" if penalty else "dreg")
    if penalty:
        objective = objective + GradientPenaltyRegularizer(1.0)
    gradients = []
    for call in (objective, torch.compile(objective, backend="aot_eager")):
        torch.manual_seed(0)
        loss = call(vae, Batch(x)).losses["model"]
        gradients.append(torch.autograd.grad(loss, list(vae.parameters())))
    for eager, compiled in zip(*gradients, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-12, atol=1e-12)
    vae.compile(backend="eager")
    with pytest.raises(ValueError, match="compile its encoder and decoder"):
        objective(vae, Batch(x))
