"""Values missing not at random: bounds against quadrature, and recovered means."""

import math

import numpy as np
import pytest
import torch
from helpers.cases import for_each
from helpers.oracles import gauss_hermite
from scipy.integrate import quad
from scipy.special import expit

from tinyvae import (
    ELBO,
    IWAE,
    MLP,
    VAE,
    BernoulliLikelihood,
    CategoricalLikelihood,
    GaussianEncoder,
    GaussianLikelihood,
    Optimization,
    Trainer,
    evaluate,
    log_marginal,
)
from tinyvae.likelihoods import (
    BetaLikelihood,
    Column,
    LaplaceLikelihood,
    LogNormalLikelihood,
    MaskedLikelihood,
    MixedLikelihood,
    MixtureLikelihood,
    PoissonLikelihood,
    SelfMasking,
    StandardizedLikelihood,
    StudentTLikelihood,
)

pytestmark = pytest.mark.usefixtures("float64")

WEIGHT = torch.tensor([[0.9], [-0.6], [0.4]], dtype=torch.float64)
BIAS = torch.tensor([0.3, -0.2, 1.0], dtype=torch.float64)
STD = 0.7


def set_mechanism(mechanism, weight, bias):
    with torch.no_grad():
        mechanism.weight.copy_(torch.as_tensor(weight))
        mechanism.bias.copy_(torch.as_tensor(bias))


def masked_linear_gaussian(intercept="learned"):
    """A linear Gaussian model with self-masking, and a posterior that is not exact."""
    mechanism = SelfMasking((3,), intercept=intercept)
    likelihood = MaskedLikelihood(GaussianLikelihood(STD), show_mask=True, mechanism=mechanism)
    encoder = GaussianEncoder(MLP(6, (5,)), 1)
    out_shape = likelihood.param_shape((3,))
    decoder = MLP(1, hidden=(), out_shape=out_shape)
    vae = VAE(encoder, decoder, likelihood, data_shape=(3,)).double()
    set_mechanism(mechanism, [2.0, -1.0, 0.5], [0.2, -0.4, 0.0])
    with torch.no_grad():
        layer = next(m for m in decoder.modules() if isinstance(m, torch.nn.Linear))
        slopes = torch.tensor([0.3, -0.7, 0.5])[:, None] if intercept == "predicted" else WEIGHT[:0]
        layer.weight.copy_(torch.cat([WEIGHT, slopes]))
        layer.bias.copy_(torch.cat([BIAS, torch.zeros(len(slopes))]))
    return vae


X = torch.tensor(
    [[0.5, 0.1, 1.2], [math.nan, -0.4, 0.8], [math.nan, math.nan, 2.0], [math.nan] * 3],
    dtype=torch.float64,
)


def evidence(x, is_predicted=False):
    """Return log p(observed values, mask) of the model by nested scipy quadrature."""
    w, a, m = np.array([2.0, -1.0, 0.5]), np.array([0.2, -0.4, 0.0]), np.array([0.3, -0.7, 0.5])

    def given_z(z):
        total = 1.0
        for i, value in enumerate(x):
            mean, odds = WEIGHT[i, 0].item() * z + BIAS[i].item(), a[i] + is_predicted * m[i] * z

            def density(v, mean=mean):
                return math.exp(-0.5 * ((v - mean) / STD) ** 2) / (STD * math.sqrt(2 * math.pi))

            if math.isnan(value):
                f = lambda v, i=i, d=density, o=odds: d(v) * expit(w[i] * v + o)  # noqa: E731
                total *= quad(f, mean - 9 * STD, mean + 9 * STD, epsabs=1e-13)[0]
            else:
                total *= density(value) * expit(-w[i] * value - odds)
        return total * math.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)

    return math.log(quad(given_z, -8, 8, epsabs=1e-14)[0])


@for_each("intercept", ["learned", "predicted"])
def test_evidence_of_the_pair_is_that_of_nested_quadrature(intercept):
    vae = masked_linear_gaussian(intercept)
    nodes, log_weights = gauss_hermite(60)
    log_px = vae.decode(nodes[:, None]).log_prob(X)
    got = (log_px + log_weights[:, None]).logsumexp(0)
    want = torch.tensor([evidence(row.tolist(), intercept == "predicted") for row in X])
    torch.testing.assert_close(got, want, rtol=1e-7, atol=0)


@pytest.mark.slow
def test_bounds_lie_below_the_evidence_and_rise_to_it():
    vae = masked_linear_gaussian()
    want = torch.tensor([evidence(row.tolist()) for row in X])
    bounds = []
    for k in (1, 4, 16):
        values = vae(X.repeat(2000, 1), num_samples=k).log_weight().logsumexp(0) - math.log(k)
        values = values.reshape(2000, 4)
        error = values.std(0) / 2000**0.5
        assert (values.mean(0) < want + 4 * error).all()
        bounds.append(values.mean(0))
    assert (bounds[0] < bounds[1]).all()
    assert (bounds[1] < bounds[2]).all()
    got = log_marginal(vae, X, num_samples=5000)
    torch.testing.assert_close(got, want, rtol=0, atol=0.03)


def test_report_counts_observed_values_and_the_mask():
    vae = masked_linear_gaussian()
    report = evaluate(vae, X, elbo_samples=8, importance_samples=50)
    assert report.num_dims == pytest.approx((6 + 5 + 4 + 3) / 4)
    assert report.is_discrete is None
    assert report.is_bound
    repeated = evaluate(vae, X, elbo_samples=8, importance_samples=50)
    assert report == repeated


def test_conditional_is_that_of_quadrature():
    vae = masked_linear_gaussian()
    p = vae.decode(torch.tensor([[[0.4]], [[-1.0]]]))  # (2, 1)
    q = vae.likelihood.conditional(p, X[1:2])
    for k, z in enumerate((0.4, -1.0)):
        mean = WEIGHT[:, 0].numpy() * z + BIAS.numpy()
        for i, (w, a) in enumerate(zip([2.0, -1.0, 0.5], [0.2, -0.4, 0.0], strict=True)):
            chance = lambda v, w=w, a=a, m=mean[i]: (  # noqa: E731
                math.exp(-0.5 * ((v - m) / STD) ** 2) * expit(w * v + a)
            )
            limits = mean[i] - 9 * STD, mean[i] + 9 * STD
            want = quad(lambda v, c=chance: v * c(v), *limits)[0] / quad(chance, *limits)[0]
            assert q.mean[k, 0, i].item() == pytest.approx(want, rel=1e-6)
    assert vae.likelihood.conditional(p, X[1:2]).sample().shape == (2, 1, 3)


def test_masked_without_a_mechanism_keeps_its_conditional():
    likelihood = MaskedLikelihood(GaussianLikelihood(1.0))
    p = likelihood(torch.zeros(2, 3), event_ndim=1)
    assert likelihood.conditional(p, torch.zeros(2, 3)) is p


# Families -----------------------------------------------------------------------------------------

COLUMNS = [
    Column("age", "number", (), 40.0, 12.0),
    Column("color", "category", ("blue", "green", "red")),
    Column("visits", "count", (), 0.0, 2.5),
    Column("income", "positive", (), 0.0, 2e4),
]
FAMILIES = {
    "bernoulli": BernoulliLikelihood(),
    "categorical": CategoricalLikelihood(3),
    "gaussian": GaussianLikelihood(),
    "laplace": LaplaceLikelihood(),
    "log-normal": LogNormalLikelihood(0.5),
    "mixture": MixtureLikelihood(GaussianLikelihood(), num_components=2),
    "poisson": PoissonLikelihood(),
    "standardized": StandardizedLikelihood(GaussianLikelihood(), mean=1.0, std=2.0),
    "student t": StudentTLikelihood(),
    "mixed": MixedLikelihood(COLUMNS),
}


def trained(likelihood, x, *, epochs=2, objective=None, latent_dim=2, rate=3e-3, hidden=(16,)):
    torch.manual_seed(0)
    shape = x.shape[1:]
    encoder = GaussianEncoder(MLP(likelihood.input_shape(shape), hidden), latent_dim)
    vae = VAE(encoder, MLP(latent_dim, hidden), likelihood, data_shape=shape).double()
    vae.init_output_bias(x)
    trainer = Trainer(
        vae,
        objective or ELBO(),
        optimization=Optimization(learning_rate=rate),
        device="cpu",
        progress=False,
    )
    trainer.fit(x, epochs=epochs, batch_size=100)
    return vae


@for_each("name", FAMILIES)
@for_each("intercept", ["learned", "predicted"])
def test_every_family_trains_with_a_mechanism(name, intercept):
    x = torch.tensor([[1.0, 0.0, 1.0, 1.0], [0.0, 1.0, 1.0, 0.0]]).repeat(30, 1)
    if name in ("log-normal", "mixed"):
        x = x.clamp(min=1.0)
    x = x.masked_fill(torch.rand_like(x) < 0.3, math.nan)
    mechanism = SelfMasking.from_data(x, intercept=intercept)
    masked = MaskedLikelihood(FAMILIES[name], show_mask=name != "categorical", mechanism=mechanism)
    vae = trained(masked, x, objective=IWAE(3))
    report = evaluate(vae, x, elbo_samples=2, importance_samples=4)
    assert math.isfinite(report.log_marginal.mean)
    assert all(torch.isfinite(p).all() for p in vae.parameters())
    assert mechanism.weight.grad is None or torch.isfinite(mechanism.weight.grad).all()
    filled = vae.likelihood.conditional(vae(x).likelihood, x)
    assert torch.isfinite(filled.sample()).all()


def test_likelihood_of_a_pair_has_total_mass_one():
    """All values and masks of two binary columns and one class."""
    columns = [
        Column("a", "binary", ("0", "1")),
        Column("b", "category", ("x", "y", "z")),
    ]
    mechanism = SelfMasking((2,), sign=(1, None))
    masked = MaskedLikelihood(MixedLikelihood(columns), mechanism=mechanism).double()
    set_mechanism(mechanism, [0.7, -1.3], [0.4, -0.2])
    p = masked(torch.randn(5), event_ndim=1)
    nan = math.nan
    rows = torch.tensor([[a, b] for a in (0.0, 1.0, nan) for b in (0.0, 1.0, 2.0, nan)])
    assert p.log_prob(rows).exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_family_without_a_rule_is_refused_before_training():
    masked = MaskedLikelihood(BetaLikelihood(), mechanism=SelfMasking())
    x = torch.tensor([[0.5, math.nan]]).repeat(9, 1)
    with pytest.raises((TypeError, ValueError), match="no rule for Beta"):
        trained(masked, x)


# Training -----------------------------------------------------------------------------------------


def correlated(num_rows, generator):
    """Return two correlated standard normal columns, of which the second is often missing."""
    z = torch.randn(num_rows, 1, generator=generator)
    noise = torch.randn(num_rows, 2, generator=generator)
    return 0.8 * z + 0.6 * noise


@pytest.mark.slow
def test_mechanism_recovers_the_mean_of_a_self_masked_column():
    generator = torch.Generator().manual_seed(0)
    full = correlated(4000, generator)
    chance = torch.sigmoid(3.0 * full[:, 1])
    x = full.clone()
    x[torch.rand(4000, generator=generator) < chance, 1] = math.nan
    means = {}
    for name, mechanism in {
        "ignorable": None,
        "self-masking": SelfMasking.from_data(x, sign=(0, 1)),
    }.items():
        scale = GaussianLikelihood("learned")
        likelihood = MaskedLikelihood(scale, show_mask=True, mechanism=mechanism)
        vae = trained(likelihood, x, epochs=40, objective=IWAE(5), latent_dim=1, hidden=(32,))
        means[name] = vae.sample(20_000)[:, 1].mean().item()
    true = full[:, 1].mean().item()
    print(f"true {true:.3f} {means}, slope {mechanism.slope[1] / mechanism.scale[1]}")
    assert abs(means["ignorable"] - true) > 0.25
    assert abs(means["self-masking"] - true) < 0.12
