import itertools
import math

import numpy as np
import pytest
import torch
from helpers.cases import for_each
from helpers.oracles import gauss_hermite
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal
from torch import nn
from torch.distributions import MultivariateNormal

from tinyvae import (
    ELBO,
    MLP,
    VAE,
    Batch,
    BernoulliLikelihood,
    CategoricalLikelihood,
    Encoder,
    GaussianEncoder,
    GaussianLikelihood,
    LadderVAE,
    evaluate,
    impute,
    log_marginal,
)
from tinyvae.distributions import Independent, Normal, TorchDistribution
from tinyvae.likelihoods import Column, MaskedLikelihood, MixedLikelihood

pytestmark = pytest.mark.usefixtures("float64")

D = 5
STD = 0.7


class Posterior(Encoder):
    """Posterior q(z given x_obs) of a linear-Gaussian model; exact without a shift."""

    def __init__(self, weight, bias, *, shift=0.0, spread=1.0, diagonal=False):
        super().__init__()
        self.latent_shape = torch.Size((weight.shape[1],))
        self.weight, self.bias = weight, bias
        self.shift, self.spread, self.diagonal = shift, spread, diagonal

    def forward(self, x, context=None):
        x, seen = x.chunk(2, 1)
        weight = self.weight * seen[..., None] / STD  # (B, D, L)
        covariance = torch.linalg.inv(torch.eye(*self.latent_shape) + weight.mT @ weight)
        mean = (covariance @ weight.mT @ ((x - self.bias) / STD)[..., None])[..., 0] + self.shift
        covariance = covariance * self.spread**2
        if self.diagonal:
            return Independent(Normal(mean, covariance.diagonal(dim1=1, dim2=2).log() / 2), 1)
        return TorchDistribution(MultivariateNormal(mean, covariance, validate_args=False))

    def config(self):
        return {}


class LinearGaussian:
    """z ~ N(0, I), x given z ~ N(W z + b, std^2 I), some entries of x missing."""

    def __init__(self, num_latents, **posterior):
        self.weight, self.bias = torch.randn(D, num_latents), torch.randn(D)
        decoder = MLP(num_latents, hidden=(), out_shape=D)
        with torch.no_grad():
            decoder.layers[0].weight.copy_(self.weight)
            decoder.layers[0].bias.copy_(self.bias)
        likelihood = MaskedLikelihood(GaussianLikelihood(STD), show_mask=True)
        self.vae = VAE(Posterior(self.weight, self.bias, **posterior), decoder, likelihood)
        self.covariance = self.weight @ self.weight.T + STD**2 * torch.eye(D)

    def sample(self, count):
        return MultivariateNormal(self.bias, self.covariance).sample((count,))

    def evidence(self, x):
        """Return log N(x_obs; b_obs, covariance_obs) of each row by scipy."""
        x, mean, covariance = x.numpy(), self.bias.numpy(), self.covariance.numpy()
        rows = []
        for row in x:
            at = np.flatnonzero(~np.isnan(row))
            p = multivariate_normal(mean[at], covariance[np.ix_(at, at)]) if len(at) else None
            rows.append(p.logpdf(row[at]) if p else 0.0)
        return torch.tensor(rows)

    def conditional(self, row):
        """Return mean and covariance of the missing entries of a row given the observed ones."""
        missing = row.isnan()
        seen = ~missing
        gain = self.covariance[missing][:, seen] @ torch.linalg.inv(self.covariance[seen][:, seen])
        mean = self.bias[missing] + gain @ (row - self.bias)[seen]
        covariance = self.covariance[missing][:, missing]
        return mean, covariance - gain @ self.covariance[seen][:, missing]


ONE = {"num_latents": 1, "diagonal": True}
MANY = {"num_latents": 2}
WRONG = {"shift": 0.5, "spread": 1.5}
masks = st.lists(st.lists(st.booleans(), min_size=D, max_size=D), min_size=1, max_size=4)


def with_holes(model, rows):
    return model.sample(len(rows)).masked_fill(~torch.tensor(rows), math.nan)


# The evidence of what was observed ----------------------------------------------------------------


@for_each("options", [ONE, MANY, {"num_latents": 4}])
@settings(max_examples=30)
@given(rows=masks)
def test_masked_vae_at_exact_posterior_gives_evidence(options, rows):
    model = LinearGaussian(**options)
    x = with_holes(model, rows)
    exact = model.evidence(x)
    with torch.no_grad():
        log_weight = model.vae(x, num_samples=3).log_weight()
        loss = ELBO(kl="sample")(model.vae, Batch(x)).losses["model"]
    torch.testing.assert_close(log_weight, exact.expand(3, -1), rtol=0, atol=1e-10)
    torch.testing.assert_close(-loss, exact.mean(), rtol=0, atol=1e-10)
    for num_samples in (1, 5):
        estimate = log_marginal(model.vae, x, num_samples=num_samples)
        torch.testing.assert_close(estimate, exact, rtol=0, atol=1e-10)


@given(rows=masks.filter(lambda rows: any(map(any, rows))))
@settings(max_examples=20)
def test_evaluate_reports_evidence_of_observed_entries(rows):
    model = LinearGaussian(**MANY)
    x = with_holes(model, rows)
    report = evaluate(model.vae, x, elbo_samples=3, importance_samples=2)
    exact = model.evidence(x).mean().item()
    assert report.elbo.mean == pytest.approx(exact, abs=1e-10)
    assert report.log_marginal.mean == pytest.approx(exact, abs=1e-10)
    assert report.num_dims == sum(map(sum, rows)) / len(rows)
    bits = -exact / report.num_dims / math.log(2)
    assert report.bits_per_dim(report.elbo) == pytest.approx(bits, abs=1e-9)


@pytest.mark.parametrize("elements", [1, 12, 60])
def test_evaluate_splits_masks_with_data(monkeypatch, elements):
    monkeypatch.setattr("tinyvae.evaluation.importance.CHUNK_ELEMENTS", elements)
    model = LinearGaussian(**MANY)
    x, mask = model.sample(7), torch.rand(7, D) > 0.4
    exact = model.evidence(x.masked_fill(~mask, math.nan))
    estimate = log_marginal(model.vae, x, mask=mask, num_samples=4)
    torch.testing.assert_close(estimate, exact, rtol=0, atol=1e-10)
    options = {"elbo_samples": 2, "importance_samples": 2, "importance_examples": 3}
    report = evaluate(model.vae, x, mask=mask, **options)
    assert report.elbo.mean == pytest.approx(exact.mean().item(), abs=1e-10)
    assert report.log_marginal.mean == pytest.approx(exact[:3].mean().item(), abs=1e-10)


def test_elbo_with_missing_entries_uses_closed_form_kl():
    model = LinearGaussian(**ONE)
    x = with_holes(model, [[True, False, True, False, False], [False] * 5])
    report = evaluate(model.vae, x.repeat(50, 1), elbo_samples=400, importance_samples=None)
    posterior = model.vae.encode(x).base
    mean, variance = posterior.mean[:, 0], (2 * posterior.log_std[:, 0]).exp()
    kl = 0.5 * (mean**2 + variance - 1 - variance.log())
    assert kl[1].item() == pytest.approx(0, abs=1e-12)  # without observed entries, the prior
    assert report.kl.mean == pytest.approx(kl.mean().item(), abs=1e-12)
    exact = model.evidence(x).mean().item()
    # Half of the rows have no noise; the others are 50 independent means of 400 draws.
    noise = model.vae(x, num_samples=5000).log_px.std(0).norm().item() / 2 / math.sqrt(50 * 400)
    assert abs(report.elbo.mean - exact) < 4 * noise


@for_each("options", [ONE, MANY])
def test_masked_vae_with_wrong_posterior_is_below_evidence(options):
    model = LinearGaussian(**options, **WRONG)
    x = model.sample(200).masked_fill(torch.rand(200, D) < 0.4, math.nan)
    exact = model.evidence(x).mean().item()
    report = evaluate(model.vae, x, elbo_samples=200, importance_samples=5)
    assert report.elbo.mean + 0.05 < report.log_marginal.mean + 0.02 < exact
    many = log_marginal(model.vae, x, num_samples=4000).mean().item()
    assert many == pytest.approx(exact, abs=0.02)


# Filling in ---------------------------------------------------------------------------------------


@for_each("num_imputations", [None, 3])
@settings(max_examples=20)
@given(rows=masks)
def test_impute_keeps_observed_entries(num_imputations, rows):
    model = LinearGaussian(**MANY)
    x = with_holes(model, rows)
    seen = ~x.isnan()
    filled = impute(model.vae, x, num_samples=4, num_imputations=num_imputations)
    assert filled.shape == (x.shape if num_imputations is None else (num_imputations, *x.shape))
    assert torch.isfinite(filled).all()
    assert torch.equal(filled[..., seen], x[seen].expand_as(filled[..., seen]))


ROW = torch.tensor([1.5, math.nan, -0.5, math.nan, math.nan], dtype=torch.float64)


@for_each("options", [ONE, MANY])
@for_each("wrong", [{}, WRONG])
def test_impute_gives_the_conditional_mean(options, wrong):
    """Average over the rows of a batch, which have independent samples."""
    model = LinearGaussian(**options, **wrong)
    mean, _ = model.conditional(ROW)
    filled = impute(model.vae, ROW.expand(400, D), num_samples=1000)[:, ROW.isnan()]
    error = filled.std(0) / math.sqrt(400)
    assert ((filled.mean(0) - mean).abs() < 4 * error + 1e-4).all()
    assert error.max() < 0.01
    if wrong:  # without weights the error would be large
        unweighted = model.vae.decode(model.vae.encode(ROW[None]).mean).mean[0, ROW.isnan()]
        assert ((unweighted - mean).abs() > 20 * error).any()


@for_each("options", [ONE, MANY])
@for_each("wrong", [{}, WRONG])
def test_impute_samples_the_conditional_distribution(options, wrong):
    model = LinearGaussian(**options, **wrong)
    mean, covariance = model.conditional(ROW)
    count = 5000
    draws = impute(model.vae, ROW.expand(count, D), num_samples=200, num_imputations=2)
    draws = draws[0][:, ROW.isnan()]  # one sample per row, so they are independent
    error = covariance.diagonal().sqrt() / math.sqrt(count)
    assert ((draws.mean(0) - mean).abs() < 4.5 * error).all()
    scale = covariance.diagonal().sqrt()
    spread = (scale[:, None] * scale).square() + covariance.square()
    error = (spread / count).sqrt()
    assert ((draws.T.cov() - covariance).abs() < 4.5 * error).all()


def test_impute_gives_different_imputations():
    model = LinearGaussian(**MANY)
    filled = impute(model.vae, ROW[None], num_samples=50, num_imputations=20)
    assert len(filled[:, 0, ROW.isnan()].unique(dim=0)) == 20
    pairs = impute(model.vae, ROW.expand(2000, D), num_samples=100, num_imputations=2)[:, :, 1]
    correlation = torch.corrcoef(pairs)[0, 1].item()
    assert abs(correlation) < 4.5 / math.sqrt(2000) + 1 / 100  # one in a hundred latents is shared


def test_impute_samples_only_what_it_returns(monkeypatch):
    sampled, sample = [], Independent.sample
    monkeypatch.setattr(
        Independent, "sample", lambda p, *shape: sampled.append(p.batch_shape) or sample(p, *shape)
    )
    impute(LinearGaussian(**MANY).vae, ROW[None], num_samples=50, num_imputations=3)
    assert sampled == [(3, 1)]


def test_impute_with_nothing_and_everything_missing():
    model = LinearGaussian(**MANY)
    x = model.sample(3)
    assert torch.equal(impute(model.vae, x, num_samples=2), x)
    draws = impute(model.vae, torch.full((20_000, D), math.nan), num_samples=2, num_imputations=1)[
        0
    ]
    error = model.covariance.diagonal().sqrt() / math.sqrt(20_000)
    assert ((draws.mean(0) - model.bias).abs() < 4.5 * error).all()


# Classes ------------------------------------------------------------------------------------------


def tiny_table():
    """Return a model of columns with 3, 2 and 4 classes, one latent and a wrong posterior."""
    columns = [
        Column("a", "category", ("u", "v", "w")),
        Column("b", "binary", (False, True)),
        Column("c", "category", (1, 2, 3, 4)),
    ]
    likelihood = MaskedLikelihood(MixedLikelihood(columns), show_mask=True)
    encoder = GaussianEncoder(MLP(likelihood.input_shape((3,)), (4,)), 1)
    decoder = MLP(1, hidden=(), out_shape=likelihood.param_shape((3,)))
    slopes = torch.tensor([-1.5, 1.5, -2.0, 0.0, 2.0, -3.0, -1.0, 1.0, 3.0])  # of b, a, c
    with torch.no_grad():
        decoder.layers[0].weight.copy_(slopes[:, None])
    return VAE(encoder, decoder, likelihood)


ALL_CELLS = torch.tensor(list(itertools.product(range(3), range(2), range(4)))).double()


def cell_probabilities(vae):
    """Return the probabilities of all 24 rows by quadrature over the latent."""
    nodes, log_weights = gauss_hermite(60)
    with torch.no_grad():
        log_px = vae.decode(nodes[:, None]).log_prob(ALL_CELLS)
    return (log_px + log_weights[:, None]).logsumexp(0).exp()


def patterns():
    """Return every row with one or two observed entries; -1 is missing."""
    seen = [mask for mask in itertools.product([True, False], repeat=3) if 0 < sum(mask) < 3]
    rows = [ALL_CELLS.masked_fill(~torch.tensor(mask), -1) for mask in seen]
    return torch.cat(rows).unique(dim=0)


def conditional_probabilities(vae):
    """Yield rows, the position of a missing entry, and the probabilities of its classes."""
    joint = cell_probabilities(vae)
    assert joint.sum().item() == pytest.approx(1, abs=1e-10)
    for row in patterns():
        fits = ((row < 0) | (row == ALL_CELLS)).all(1)
        for at in (row < 0).nonzero()[:, 0].tolist():
            classes = ALL_CELLS[:, at].long()
            p = torch.zeros(int(classes.max()) + 1).index_add(0, classes[fits], joint[fits])
            yield row.masked_fill(row < 0, math.nan), at, p / p.sum()


def test_impute_gives_the_most_probable_class():
    vae = tiny_table()
    cases = list(conditional_probabilities(vae))
    assert len(cases) == (3 + 2 + 4) * 2 + 3 * 2 + 3 * 4 + 2 * 4
    filled = impute(vae, torch.stack([row for row, _, _ in cases]), num_samples=5000)
    clear = 0
    for (_, at, p), got in zip(cases, filled, strict=True):
        first, second = p.sort(descending=True).values[:2]
        if first - second > 0.05:  # no tie
            clear += 1
            assert got[at] == p.argmax()
    assert clear > 25
    best = {(at, int(p.argmax())) for _, at, p in cases}
    assert len(best) > 4  # the best class depends on the observed entries


def test_impute_samples_classes_by_probability():
    vae = tiny_table()
    for row, at, p in list(conditional_probabilities(vae))[::6]:
        draws = impute(vae, row.expand(1000, 3), num_samples=200, num_imputations=1)[0, :, at]
        frequency = torch.stack([(draws == c).double().mean() for c in range(len(p))])
        error = (p * (1 - p) / 1000).sqrt()
        assert ((frequency - p).abs() < 4.5 * error + 1e-3).all()


class Step(nn.Module):
    """Decoder with logits of three classes; two of them are likely for either sign of z."""

    def forward(self, z):
        left, right = torch.tensor([[0.51, 0.49, 1e-9], [1e-9, 0.49, 0.51]]).log()
        rows = torch.where(z < 0, left, right)[..., None]
        return torch.cat([rows, rows], -1)  # (N, 3, 2)


def test_impute_pools_probabilities():
    """The mean of the best classes is 1, a class that is never the best one."""
    encoder = GaussianEncoder(MLP((3, 2), (4,)), 1)
    vae = VAE(encoder, Step(), MaskedLikelihood(CategoricalLikelihood(3)))
    filled = impute(vae, torch.full((4, 2), math.nan), num_samples=2000)
    assert torch.equal(filled, torch.ones(4, 2))


def test_impute_does_not_round_a_mean_class():
    encoder = GaussianEncoder(MLP((3, 2), (4,)), 1)
    decoder = MLP(1, hidden=(), out_shape=(3, 2))
    with torch.no_grad():
        decoder.layers[0].weight.zero_()
        decoder.layers[0].bias.copy_(torch.tensor([0.4, 0.25, 0.35]).log().repeat_interleave(2))
    x = torch.tensor([[math.nan, 2.0]])
    vae = VAE(encoder, decoder, MaskedLikelihood(CategoricalLikelihood(3)))
    assert torch.equal(impute(vae, x, num_samples=20), torch.tensor([[0.0, 2.0]]))
    vae.likelihood = MaskedLikelihood(CategoricalLikelihood(3, ordered=True))
    vae.encoder = GaussianEncoder(MLP(2, (4,)), 1)
    expected = torch.tensor([[0.95, 2.0]])
    torch.testing.assert_close(impute(vae, x, num_samples=20), expected)


def test_impute_completes_a_table():
    columns = [Column("age", "number", (), 40.0, 12.0), Column("smokes", "binary", ("no", "yes"))]
    likelihood = MaskedLikelihood(MixedLikelihood(columns), show_mask=True)
    mixed = likelihood.likelihood
    encoder = GaussianEncoder(MLP(likelihood.input_shape((2,)), (4,)), 1)
    vae = VAE(encoder, MLP(1, (4,), out_shape=likelihood.param_shape((2,))), likelihood)
    x = mixed.to_tensor({"age": [35.0, None, None], "smokes": ["yes", "no", None]})
    for options in ({}, {"num_imputations": 4}):
        filled = impute(vae, x, num_samples=50, **options).reshape(-1, 3, 2)
        for rows in map(mixed.to_arrays, filled):
            assert rows["age"][0] == 35.0
            assert rows["smokes"][:2].tolist() == ["yes", "no"]
            assert rows["smokes"][2] in ("no", "yes")
            assert (rows["age"] > -60).all()
            assert (rows["age"] < 140).all()
            assert (rows["age"][1:] > 5).any()  # units of the table


# Chunks, seeds, state -----------------------------------------------------------------------------


def certain_vae():
    """A model without noise gives the same samples for any chunks."""
    encoder = GaussianEncoder(MLP(2 * D, (6,)), 2)
    with torch.no_grad():
        encoder.head.weight[2:] = 0
        encoder.head.bias[2:] = -40.0
    likelihood = MaskedLikelihood(GaussianLikelihood(1e-15), show_mask=True)
    return VAE(encoder, MLP(2, (6,), out_shape=D), likelihood)


@for_each("elements", [1, 25, 100, 10**6])
@for_each("num_imputations", [None, 2])
def test_impute_does_not_depend_on_chunks(monkeypatch, elements, num_imputations):
    monkeypatch.setattr("tinyvae.evaluation.imputation.CHUNK_ELEMENTS", elements)
    vae = certain_vae()
    x = torch.randn(9, D)
    mask = torch.rand(9, D) > 0.4
    filled = impute(vae, x, mask=mask, num_samples=5, num_imputations=num_imputations)
    expected = torch.where(mask, x, vae.reconstruct(x, mask=mask))
    torch.testing.assert_close(filled, expected.expand_as(filled), rtol=0, atol=1e-12)


def test_impute_in_chunks_has_the_same_distribution(monkeypatch):
    model = LinearGaussian(**MANY)
    mean, covariance = model.conditional(ROW)
    monkeypatch.setattr("tinyvae.evaluation.imputation.CHUNK_ELEMENTS", 5000)  # chunks of 10 rows
    draws = impute(model.vae, ROW.expand(2000, D), num_samples=100, num_imputations=1)[0]
    assert len(draws[:, 1].unique()) == 2000  # chunks do not share samples
    error = covariance.diagonal().sqrt() / math.sqrt(2000)
    assert ((draws[:, ROW.isnan()].mean(0) - mean).abs() < 4.5 * error).all()


@for_each("num_imputations", [None, 3])
def test_impute_is_reproducible(num_imputations):
    model = LinearGaussian(**MANY)
    x = with_holes(model, [[True, False, True, False, True]] * 4)
    options = {"num_samples": 7, "num_imputations": num_imputations}
    first = impute(model.vae, x, **options)
    torch.randn(3)
    assert torch.equal(impute(model.vae, x, **options), first)
    assert not torch.equal(impute(model.vae, x, seed=1, **options), first)


def test_impute_leaves_no_trace():
    network = nn.Sequential(nn.Linear(2 * D, 6), nn.Dropout(0.5))
    encoder = GaussianEncoder(network, 2, features=6)
    likelihood = MaskedLikelihood(GaussianLikelihood(), show_mask=True)
    vae = VAE(encoder, MLP(2, (6,), out_shape=D), likelihood)
    vae.decoder.eval()
    x = torch.randn(4, D).masked_fill(torch.rand(4, D) < 0.5, math.nan)
    before, modes = x.clone(), [m.training for m in vae.modules()]
    state = torch.get_rng_state()
    filled = impute(vae, x, num_samples=5, num_imputations=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in vae.modules()] == modes
    assert torch.is_grad_enabled()
    assert not filled.requires_grad
    torch.testing.assert_close(x, before, rtol=0, atol=0, equal_nan=True)
    # Dropout is off during imputation.
    assert torch.equal(impute(vae.eval(), x, num_samples=5, num_imputations=2), filled)


def test_impute_treats_mask_and_nan_alike():
    model = LinearGaussian(**MANY)
    x = model.sample(6)
    mask = torch.rand(6, D) > 0.5
    for num_imputations in (None, 2):
        options = {"num_samples": 7, "num_imputations": num_imputations}
        expected = impute(model.vae, x.masked_fill(~mask, math.nan), **options)
        for mask_variant in (mask, mask.long(), mask.double()):
            assert torch.equal(impute(model.vae, x, mask=mask_variant, **options), expected)


def test_impute_integers_with_a_mask():
    encoder = GaussianEncoder(MLP((3, 2), (4,)), 1)
    vae = VAE(
        encoder, MLP(1, hidden=(), out_shape=(3, 2)), MaskedLikelihood(CategoricalLikelihood(3))
    )
    x = torch.tensor([[2, 0], [1, 2]], dtype=torch.uint8)
    mask = torch.tensor([[True, False], [False, True]])
    filled = impute(vae, x, mask=mask, num_samples=20)
    assert torch.equal(filled[mask], torch.tensor([2.0, 2.0]))
    assert torch.equal(filled, impute(vae, x.double(), mask=mask, num_samples=20))


def test_impute_images():
    likelihood = MaskedLikelihood(BernoulliLikelihood(), show_mask=True)
    encoder = GaussianEncoder(MLP((2, 4, 3), (4,)), 2)
    vae = VAE(encoder, MLP(2, (4,), out_shape=(1, 4, 3)), likelihood)
    x = (torch.rand(5, 1, 4, 3) > 0.5).double()
    mask = torch.rand(5, 1, 4, 3) > 0.5
    mean = impute(vae, x, mask=mask, num_samples=20)
    assert torch.equal(mean[mask], x[mask])
    assert ((mean[~mask] > 0) & (mean[~mask] < 1)).all()
    draws = impute(vae, x, mask=mask, num_samples=20, num_imputations=3)
    assert draws.shape == (3, 5, 1, 4, 3)
    assert torch.equal(draws, (draws > 0.5).double())


class Conditional(nn.Module):
    """Decoder that returns its context."""

    def forward(self, z, context):
        return context


class Ignorant(Posterior):
    """Posterior N(0, I) for any x and context."""

    def forward(self, x, context=None):
        zeros = torch.zeros(len(x), *self.latent_shape)
        return Independent(Normal(zeros, zeros), 1)


def test_impute_with_context(monkeypatch):
    monkeypatch.setattr("tinyvae.evaluation.imputation.CHUNK_ELEMENTS", 30)  # chunks of two rows
    encoder = Ignorant(torch.zeros(D, 2), torch.zeros(D))
    vae = VAE(encoder, Conditional(), MaskedLikelihood(GaussianLikelihood(1e-9)))
    context, x = torch.randn(7, D), torch.full((7, D), math.nan)
    x[:, 0] = context[:, 0]
    torch.testing.assert_close(impute(vae, x, context, num_samples=3), context)
    draws = impute(vae, x, context, num_samples=3, num_imputations=2)
    torch.testing.assert_close(draws, context.expand(2, 7, D), rtol=0, atol=1e-7)
    with pytest.raises(ValueError, match=r"one row of context per example, got \(6, 5\) for 7"):
        impute(vae, x, context[:6])


@for_each("num_imputations", [None, 3])
def test_impute_next_to_an_extreme_value(num_imputations):
    """The density of the observed value underflows for every draw. All draws count equally."""
    x = torch.tensor([[1e25, math.nan, 0.0]], dtype=torch.float32)
    encoder = GaussianEncoder(MLP(3, (8,)), 2)
    likelihood = MaskedLikelihood(GaussianLikelihood(0.1))
    vae = VAE(encoder, MLP(2, (8,), out_shape=3), likelihood).float()
    assert log_marginal(vae, x, num_samples=50).item() == -math.inf
    with pytest.warns(UserWarning, match="found no latents that fit the observed entries of row 0"):
        completed = impute(vae, x, num_imputations=num_imputations, num_samples=50)
    assert completed.isfinite().all()
    assert (completed[..., 1].abs() > 1.0).all()  # decoded from latents far from the origin


def test_impute_float32_model():
    x = torch.randn(4, D).masked_fill(torch.rand(4, D) < 0.5, math.nan)
    vae = certain_vae()
    exact = impute(vae, x, num_samples=5)
    filled = impute(vae.float(), x, num_samples=5)
    assert torch.equal(filled[~x.isnan()], x[~x.isnan()])  # not rounded
    assert impute(vae, x.float(), num_samples=5).dtype == torch.float32
    torch.testing.assert_close(filled.double(), exact, rtol=1e-5, atol=1e-5)


# Degenerate weights, shared noise -----------------------------------------------------------------

POOR = {"num_latents": 2, "diagonal": True, "shift": 2.0, "spread": 0.3}


@pytest.mark.slow
def test_impute_moves_latents_where_weights_are_degenerate():
    model = LinearGaussian(**POOR)
    mean, covariance = model.conditional(ROW)
    scale = covariance.diagonal().sqrt()
    for noise in ("independent", "shared"):
        filled = impute(model.vae, ROW.expand(100, D), noise=noise)[:, ROW.isnan()]
        assert ((filled - mean).abs() < 0.5 * scale).all()
    with pytest.warns(UserWarning, match="effective sample size below 10 in row"):
        weighted = impute(model.vae, ROW.expand(100, D), moves=False)[:, ROW.isnan()]
    assert not ((weighted - mean).abs() < 0.5 * scale).all()
    draws = impute(model.vae, ROW.expand(300, D), num_imputations=2)[0][:, ROW.isnan()]
    assert ((draws.mean(0) - mean).abs() < 4.5 * scale / math.sqrt(300)).all()
    assert ((draws.std(0) / scale - 1).abs() < 0.15).all()


@for_each("num_imputations", [None, 3])
def test_impute_keeps_values_next_to_examples_that_need_moves(monkeypatch, num_imputations):
    """Moves have random numbers of their own, also if other chunks follow."""
    monkeypatch.setattr("tinyvae.evaluation.imputation.CHUNK_ELEMENTS", 4 * D * 100)
    model = LinearGaussian(**ONE, shift=0.3)
    x = with_holes(model, [[True, False, True, False, False]] * 8)
    unusual = x.clone()
    unusual[1, 0] = 200.0  # the posterior of the encoder is shifted by more than its width
    model.vae.encoder.register_forward_hook(
        lambda _, inputs, posterior: _without_confidence(inputs[0], posterior)
    )
    options = {"num_samples": 100, "num_imputations": num_imputations}
    plain, other = (impute(model.vae, data, **options) for data in (x, unusual))
    kept = [0, *range(2, 8)]
    assert torch.equal(plain[..., kept, :], other[..., kept, :])
    mean, covariance = model.conditional(unusual[1])
    error = (other[..., 1, unusual[1].isnan()] - mean) / covariance.diagonal().sqrt()
    assert (error.abs() < 5).all()


def _without_confidence(x, posterior):
    """Return a posterior whose mean is off where the first entry is large."""
    shift = torch.where(x[:, :1] > 100, 3.0, 0.0)
    return Independent(Normal(posterior.mean + shift, posterior.base.log_std), 1)


def table_vae():
    torch.manual_seed(3)
    likelihood = MaskedLikelihood(GaussianLikelihood(0.5), show_mask=True)
    return VAE(GaussianEncoder(MLP(2 * D, (8,)), 2), MLP(2, (8,), out_shape=D), likelihood)


@pytest.mark.slow
@for_each("samples", [50, 600])
def test_shared_noise_makes_examples_independent_of_their_batch(monkeypatch, samples):
    monkeypatch.setattr("tinyvae.evaluation.importance.CHUNK_ELEMENTS", 20 * D * samples)
    monkeypatch.setattr("tinyvae.evaluation.imputation.CHUNK_ELEMENTS", 20 * D * samples)
    vae = table_vae()
    x = (3 * torch.randn(60, D)).masked_fill(torch.rand(60, D) < 0.4, math.nan)
    order = torch.randperm(60)
    for function in (impute, log_marginal):
        options = {"num_samples": samples, "noise": "shared"}
        together = function(vae, x, **options)
        shuffled = function(vae, x[order], **options)
        torch.testing.assert_close(shuffled, together[order], rtol=0, atol=1e-9)
        alone = torch.cat([function(vae, row[None], **options) for row in x[:9]])
        torch.testing.assert_close(alone, together[:9], rtol=0, atol=1e-9)
        assert not torch.equal(function(vae, x, **options, seed=1), together)
        independent = function(vae, x, num_samples=samples)
        assert not torch.allclose(independent, together, rtol=0, atol=1e-9)


@for_each("samples", [30, 70])
def test_shared_noise_is_the_same_in_parts(monkeypatch, samples):
    """Large models take the draws in parts, which continue the sequence."""
    vae = table_vae()
    x = torch.randn(3, D)
    whole = log_marginal(vae, x, num_samples=samples, noise="shared")
    monkeypatch.setattr("tinyvae.evaluation.importance.CHUNK_ELEMENTS", 7 * D)
    parts = log_marginal(vae, x, num_samples=samples, noise="shared")
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-12)


def test_shared_noise_has_less_variance():
    model = LinearGaussian(**ONE, **WRONG)
    x = with_holes(model, [[True, False, True, False, False]] * 4)
    exact = model.evidence(x)
    errors = {
        noise: torch.stack(
            [
                log_marginal(model.vae, x, num_samples=256, seed=seed, noise=noise) - exact
                for seed in range(20)
            ]
        )
        for noise in ("independent", "shared")
    }
    variance = {noise: error.square().mean() for noise, error in errors.items()}
    assert variance["shared"] < 0.2 * variance["independent"]


def test_shared_noise_fits_the_layers_of_a_model():
    layers = [GaussianEncoder(MLP(D, (8,)), 3), GaussianEncoder(MLP(8, (8,)), 2)]
    decoder, likelihood = MLP(3, (8,), out_shape=D), MaskedLikelihood(GaussianLikelihood())
    vae = LadderVAE(layers, [GaussianEncoder(MLP(2, (8,)), 3)], decoder, likelihood)
    x = vae.sample(10)
    shared, independent = (
        torch.stack([log_marginal(vae, x, num_samples=1000, seed=s, noise=noise) for s in range(8)])
        for noise in ("shared", "independent")
    )
    error = ((shared.var(0) + independent.var(0)) / 8).sqrt()
    assert ((shared.mean(0) - independent.mean(0)).abs() < 5 * error + 0.02).all()
    alone = log_marginal(vae, x[3:4], num_samples=1000, noise="shared")
    torch.testing.assert_close(alone, shared[0, 3:4], rtol=0, atol=1e-9)


def test_shared_noise_refuses_what_it_does_not_fit():
    model = LinearGaussian(**MANY)  # a posterior of torch
    with pytest.raises(TypeError, match="noise='shared' expects Gaussian posteriors"):
        log_marginal(model.vae, ROW[None], noise="shared")
    with pytest.raises(ValueError, match="noise='independent' for num_imputations"):
        impute(model.vae, ROW[None], noise="shared", num_imputations=2)
    for function in (impute, log_marginal):
        with pytest.raises(ValueError, match="expects noise 'independent' or 'shared', got 'same'"):
            function(model.vae, ROW[None], noise="same")


# Errors -------------------------------------------------------------------------------------------


@for_each("options", [{"num_samples": 0}, {"num_imputations": 0}])
def test_impute_refuses_counts_below_one(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"impute expects an integer {name} >= 1, got 0"):
        impute(LinearGaussian(**MANY).vae, ROW[None], **options)


def test_impute_refuses_other_likelihoods():
    vae = VAE(GaussianEncoder(MLP(D, (4,)), 1), MLP(1, (4,), out_shape=D), GaussianLikelihood())
    with pytest.raises(ValueError, match=r"NaN .*MaskedLikelihood\(likelihood\)"):
        impute(vae, ROW[None])
    with pytest.raises(ValueError, match=r"wrap it, MaskedLikelihood\(GaussianLikelihood"):
        impute(vae, torch.zeros(1, D), mask=torch.zeros(1, D, dtype=torch.bool))


def test_impute_refuses_data_of_other_shapes():
    vae = LinearGaussian(**MANY).vae
    with pytest.raises(ValueError, match=r"a mask of the data's shape \(1, 5\)"):
        impute(vae, ROW[None], mask=torch.ones(5, dtype=torch.bool))
    with pytest.raises(ValueError, match="B >= 1"):
        impute(vae, ROW[None][:0])
    with pytest.raises(TypeError, match="expects a tensor"):
        impute(vae, [ROW])
    assert torch.equal(impute(vae, ROW[None].numpy()), impute(vae, ROW[None]))
