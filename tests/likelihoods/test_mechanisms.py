"""Values missing not at random: bounds against quadrature, and recovered means."""

import copy
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
    impute,
    log_marginal,
)
from tinyvae.likelihoods import (
    BetaLikelihood,
    Column,
    HurdleLikelihood,
    LaplaceLikelihood,
    LogitNormalLikelihood,
    LogNormalLikelihood,
    MaskedLikelihood,
    MixedLikelihood,
    MixtureLikelihood,
    OrdinalLikelihood,
    PoissonLikelihood,
    RowMasking,
    SelfMasking,
    StandardizedLikelihood,
    StudentTLikelihood,
    ignoring_mask,
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


def posterior_mean(vae, row):
    """Return E x given the observed values and the mask, by quadrature over z."""
    nodes, log_weights = gauss_hermite(60)
    p = vae.decode(nodes[:, None])
    weights = (p.log_prob(row[None]) + log_weights[:, None]).softmax(0)  # (n, 1)
    return (weights[..., None] * vae.likelihood.conditional(p, row[None]).mean).sum(0)[0]


@for_each("make", ["self", "rows"])
def test_impute_takes_into_account_that_values_are_missing(make):
    vae = masked_linear_gaussian()
    want = torch.stack([posterior_mean(vae, row) for row in X])
    ignorable = masked_linear_gaussian()
    ignorable.likelihood.mechanism = None
    if make == "rows":
        weight = torch.diag(torch.tensor([2.0, -1.0, 0.5]))
        vae.likelihood.mechanism = row_masked(weight, [0.2, -0.4, 0.0]).mechanism
    filled = impute(vae, X, num_samples=2000)
    draws = impute(vae, X, num_samples=2000, num_imputations=500)
    is_missing = torch.isnan(X)
    plain = impute(ignorable, X, num_samples=2000)
    assert torch.equal(filled[~is_missing], X[~is_missing])
    assert ((filled - want)[is_missing].abs() < 0.06).all()
    assert ((draws.mean(0) - want)[is_missing].abs() < 0.12).all()
    assert ((plain - want)[is_missing].abs().max()) > 0.3


def test_draws_given_entries_leave_the_mechanism_out():
    vae = masked_linear_gaussian()
    ignorable = copy.deepcopy(vae)
    ignorable.likelihood.mechanism = None
    torch.manual_seed(0)
    draws = vae.sample(50, given=X[1])
    torch.manual_seed(0)
    assert torch.equal(draws, ignorable.sample(50, given=X[1]))


def test_check_draws_nothing():
    vae = masked_linear_gaussian()
    vae.likelihood.mechanism = row_masked(torch.eye(3), torch.zeros(3)).mechanism
    state = torch.get_rng_state()
    vae.check(X)
    log_marginal(vae, X, num_samples=5)
    assert torch.equal(torch.get_rng_state(), state)


def test_masked_without_a_mechanism_keeps_its_conditional():
    likelihood = MaskedLikelihood(GaussianLikelihood(1.0))
    p = likelihood(torch.zeros(2, 3), event_ndim=1)
    assert likelihood.conditional(p, torch.zeros(2, 3)) is p


# Rows ---------------------------------------------------------------------------------------------


def row_masked(weight, bias):
    """A model of three Gaussian columns whose mask depends linearly on the row."""
    network = MLP(3, (), 3).double()
    with torch.no_grad():
        layer = next(m for m in network.modules() if isinstance(m, torch.nn.Linear))
        layer.weight.copy_(torch.as_tensor(weight))
        layer.bias.copy_(torch.as_tensor(bias))
    mechanism = RowMasking(network)
    return MaskedLikelihood(GaussianLikelihood(STD), mechanism=mechanism).double()


def test_row_masking_is_unbiased():
    """Two entries are missing. The chance of every entry depends on both."""
    weight = torch.tensor([[1.0, -0.5, 0.3], [0.4, 0.8, -1.0], [-0.6, 0.5, 0.2]])
    bias = torch.tensor([0.1, -0.3, 0.2])
    likelihood = row_masked(weight, bias)
    mean = torch.tensor([0.2, -0.5, 0.7])
    x = torch.tensor([math.nan, 0.4, math.nan])
    p = likelihood(mean.expand(40_000, 3), event_ndim=1)
    estimates = p.log_prob(x).exp()
    nodes, log_weights = gauss_hermite(50, 2)
    rows = x.repeat(len(nodes), 1)
    rows[:, [0, 2]] = mean[[0, 2]] + STD * nodes
    log_odds = rows @ weight.T + bias
    chance = torch.sigmoid(log_odds * torch.tensor([1.0, -1.0, 1.0])).prod(1)
    density = torch.distributions.Normal(mean[1], STD).log_prob(x[1]).exp()
    want = (log_weights.exp() * chance).sum() * density
    error = estimates.std() / 200
    assert abs(estimates.mean() - want) < 4 * error
    assert error < 0.01 * want
    # The conditional mean given the mask, and draws.
    tilted = (log_weights.exp() * chance)[:, None] * rows
    want_mean = tilted.sum(0) / (log_weights.exp() * chance).sum()
    q = likelihood.conditional(likelihood(mean.expand(2000, 3), 1), x)
    means, draws = q.mean, q.sample()
    assert torch.equal(draws[:, 1], x[1].expand(2000))
    for values in (means, draws):
        error = values.std(0) / 2000**0.5
        assert ((values.mean(0) - want_mean).abs() < 4 * error + 2e-3).all()


def test_row_masking_with_a_diagonal_network_is_self_masking():
    vae = masked_linear_gaussian()
    rows = row_masked(torch.diag(torch.tensor([2.0, -1.0, 0.5])), [0.2, -0.4, 0.0])
    vae.likelihood.mechanism = rows.mechanism
    want = torch.tensor([evidence(row.tolist()) for row in X])
    got = log_marginal(vae, X, num_samples=20_000)
    torch.testing.assert_close(got, want, rtol=0, atol=0.04)


def test_row_masking_trains_and_learns_no_dependence_at_random():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 3, generator=generator)
    x[torch.rand(300, 3, generator=generator) < 0.3] = math.nan
    mechanism = RowMasking.from_data(MLP(3, (), 3), x)
    masked = MaskedLikelihood(GaussianLikelihood(), show_mask=True, mechanism=mechanism)
    vae = trained(masked, x, epochs=30, objective=IWAE(5), rate=0.01)
    layer = next(m for m in mechanism.network.modules() if isinstance(m, torch.nn.Linear))
    chance = torch.sigmoid(layer.bias)
    assert ((chance - 0.3).abs() < 0.12).all()
    same = VAE(vae.encoder, vae.decoder, vae.likelihood, data_shape=(3,))
    assert torch.equal(log_marginal(vae, x, num_samples=5), log_marginal(same, x, num_samples=5))


def test_row_masking_refuses_draws_without_gradients():
    masked = MaskedLikelihood(PoissonLikelihood(), mechanism=RowMasking(MLP(2, (), 2)))
    x = torch.tensor([[1.0, math.nan]]).repeat(9, 1)
    with pytest.raises((TypeError, ValueError), match="expects draws with gradients"):
        trained(masked, x)


@for_each("make", [lambda: SelfMasking((4,)), lambda: RowMasking(MLP(4, (), 4))])
def test_ignoring_the_mask_is_leaving_out_the_mechanism(make):
    masked = MaskedLikelihood(GaussianLikelihood(STD), mechanism=make()).double()
    plain = MaskedLikelihood(GaussianLikelihood(STD)).double()
    params, x = torch.randn(5, 4), torch.randn(5, 4)
    x[torch.rand(5, 4) < 0.4] = math.nan
    with ignoring_mask(masked):
        p = masked(params, 1)
        assert masked.conditional(p, x) is p
    assert torch.equal(p.log_prob(x), plain(params, 1).log_prob(x))
    assert not torch.equal(masked(params, 1).log_prob(x), p.log_prob(x))


@for_each("make", [lambda: SelfMasking((4,), sign=1), lambda: RowMasking(MLP(4, (), 4))])
def test_saved_model_has_the_same_mechanism(tmp_path, make):
    x = torch.randn(9, 4)
    x[torch.rand(9, 4) < 0.4] = math.nan
    masked = MaskedLikelihood(GaussianLikelihood(), show_mask=True, mechanism=make())
    vae = VAE(GaussianEncoder(MLP(8, (4,)), 2), MLP(2, (4,)), masked, data_shape=(4,)).double()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    vae.save(tmp_path / "model.safetensors")
    same = VAE.load(tmp_path / "model.safetensors")
    assert repr(same.likelihood) == repr(vae.likelihood)
    assert torch.equal(log_marginal(same, x, num_samples=3), log_marginal(vae, x, num_samples=3))


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
    "hurdle": HurdleLikelihood(LogNormalLikelihood(0.5), at=0.0),
    "laplace": LaplaceLikelihood(),
    "log-normal": LogNormalLikelihood(0.5),
    "logit-normal": LogitNormalLikelihood(0.5, low=-1.0, high=2.0),
    "ordinal": OrdinalLikelihood(3),
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
    no_mask = ("categorical", "hurdle")  # whose encoder input has one more dimension
    mechanism = SelfMasking.from_data(x, intercept=intercept)
    masked = MaskedLikelihood(FAMILIES[name], show_mask=name not in no_mask, mechanism=mechanism)
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


def test_mechanism_has_the_units_of_the_data():
    y = torch.randn(5, 3)
    y[torch.rand(5, 3) < 0.4] = math.nan
    center, scale = torch.tensor([2000.0, -3.0, 0.0]), torch.tensor([5.0, 0.1, 40.0])
    x = center + scale * y
    options = {"mean": center.tolist(), "std": scale.tolist()}
    wide = StandardizedLikelihood(GaussianLikelihood(STD), **options)
    observed = (~torch.isnan(y)).to(y)
    params = torch.randn(5, 3)
    for mechanisms in (
        (SelfMasking((3,)), SelfMasking((3,), **options)),
        (RowMasking(MLP(3, (), 3)), RowMasking(MLP(3, (), 3), **options)),
    ):
        with torch.no_grad():
            for parameter in mechanisms[0].parameters():
                parameter.copy_(torch.randn_like(parameter))
        mechanisms[1].load_state_dict(
            mechanisms[0].state_dict()
            | {name: mechanisms[1].get_buffer(name) for name in ("center", "scale")}
        )
        plain = MaskedLikelihood(GaussianLikelihood(STD), mechanism=mechanisms[0]).double()
        other = MaskedLikelihood(wide, mechanism=mechanisms[1]).double()
        values = []
        for likelihood, data in ((plain, y), (other, x)):
            torch.manual_seed(0)
            values.append(likelihood(params, 1).log_prob(data))
        torch.testing.assert_close(values[1], values[0] - (observed * scale.log()).sum(1))


def test_mechanism_from_data_ignores_missing_entries():
    nan = math.nan
    x = torch.tensor([[1.0, 5.0, nan], [3.0, 5.0, nan], [nan, 5.0, nan]])
    mechanism = SelfMasking.from_data(x, sign=(1, -1, None)).double()
    assert mechanism.mean == [2.0, 5.0, 0.0]
    assert mechanism.std == [1.0, 1.0, 1.0]
    torch.testing.assert_close(mechanism.bias.sigmoid(), torch.tensor([1.5, 0.5, 3.5]) / 4)
    assert (mechanism.slope.sign() == torch.tensor([1.0, -1.0, 0.0])).all()


@for_each(
    ("options", "message"),
    [
        ({"sign": 2}, "sign 1, -1, 0 or None, got 2"),
        ({"std": 0.0}, "std between 0 and inf, got 0.0"),
        ({"missing_rate": 1.0}, "missing_rate between 0 and 1, got 1.0"),
        ({"intercept": "none"}, "intercept 'learned' or 'predicted', got 'none'"),
    ],
)
def test_mechanism_refuses_other_options(options, message):
    with pytest.raises(ValueError, match=f"SelfMasking expects an? {message}|{message}"):
        SelfMasking((2,), **options)


def test_mechanism_must_fit_the_data():
    masked = MaskedLikelihood(GaussianLikelihood(), mechanism=SelfMasking((3,)))
    with pytest.raises(ValueError, match=r"does not broadcast over data of shape \(4,\)"):
        masked.check_support(torch.zeros(5, 4))
    with pytest.raises(TypeError, match=r"expects a mechanism such as SelfMasking\(\), got 'self'"):
        MaskedLikelihood(GaussianLikelihood(), mechanism="self")
    with pytest.raises(TypeError, match="RowMasking expects a module from rows to log odds"):
        RowMasking(3)
    rows = MaskedLikelihood(GaussianLikelihood(), mechanism=RowMasking(MLP(4, (), 2)))
    with pytest.raises(ValueError, match=r"returns log odds .* one output"):
        rows(torch.zeros(5, 4), 1).log_prob(torch.zeros(5, 4))


# Training -----------------------------------------------------------------------------------------


def correlated(num_rows, generator):
    """Return two correlated standard normal columns, of which the second is often missing."""
    z = torch.randn(num_rows, 1, generator=generator)
    noise = torch.randn(num_rows, 2, generator=generator)
    return 0.8 * z + 0.6 * noise


@pytest.mark.slow
@for_each("column", [0, 1])
def test_mechanism_learns_no_dependence_if_values_are_missing_at_random(column):
    """The second column is missing at random: completely, or by the first one."""
    generator = torch.Generator().manual_seed(1)
    x = correlated(3000, generator)
    chance = torch.sigmoid(2.0 * x[:, 0] - 1) if column else torch.full((3000,), 0.4)
    x[torch.rand(3000, generator=generator) < chance, 1] = math.nan
    mechanism = SelfMasking.from_data(x, intercept="predicted" if column else "learned")
    masked = MaskedLikelihood(GaussianLikelihood(), show_mask=True, mechanism=mechanism)
    trained(masked, x, epochs=30, objective=IWAE(5), latent_dim=1, hidden=(32,))
    print(mechanism.slope.tolist())
    assert abs(mechanism.slope[1]) < 0.4


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
