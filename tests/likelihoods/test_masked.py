import math

import numpy as np
import pytest
import torch
from helpers.cases import for_each
from helpers.likelihoods import LIKELIHOODS
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tinyvae import (
    ELBO,
    MLP,
    VAE,
    Batch,
    CategoricalLikelihood,
    ConvNet,
    GaussianEncoder,
    GaussianLikelihood,
    Trainer,
    evaluate,
    log_marginal,
)
from tinyvae.likelihoods import (
    BetaLikelihood,
    Column,
    DiscretizedLogisticLikelihood,
    LogNormalLikelihood,
    MaskedLikelihood,
    MixedLikelihood,
    OneHotLikelihood,
    OptimalGaussianLikelihood,
    StandardizedLikelihood,
)

pytestmark = pytest.mark.usefixtures("float64")

E = (4,)
COLUMNS = [
    Column("age", "number", (), 40.0, 12.0),
    Column("color", "category", ("blue", "green", "red")),
    Column("visits", "count", (), 0.0, 2.5),
    Column("income", "positive", (), 0.0, 2e4),
]
NAMES = (
    "bernoulli",
    "beta",
    "categorical",
    "categorical, ordered",
    "continuous bernoulli",
    "discretized logistic, 16",
    "gaussian, fixed",
    "gaussian, learned",
    "gaussian, per dimension",
    "gaussian, predicted",
    "laplace, learned",
    "log-normal",
    "mixture of discretized logistic",
    "mixture of gaussian, predicted",
    "negative binomial, predicted",
    "poisson, per dimension",
    "standardized gaussian",
    "student t, predicted",
    "zero-inflated negative binomial",
)
FAMILIES = {name: lambda name=name: LIKELIHOODS[name].make(E) for name in NAMES} | {
    "mixed": lambda: MixedLikelihood(COLUMNS),
    "standardized beta": lambda: StandardizedLikelihood(BetaLikelihood(), mean=10.0, std=2.0),
    "standardized log-normal": lambda: StandardizedLikelihood(LogNormalLikelihood(), std=300.0),
}
# The second example is completely observed, and the third is completely missing.
OBSERVED = torch.tensor(
    [[1, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0]], dtype=torch.bool
)


class Drawn:
    """A likelihood with parameters ``(3, 5, ...)`` and data ``(5, 4)``."""

    def __init__(self, make):
        self.plain, self.masked = make(), MaskedLikelihood(make())
        with torch.no_grad():
            for one, other in zip(self.plain.parameters(), self.masked.parameters(), strict=True):
                one += 0.3 * torch.randn_like(one)
                other.copy_(one)
        self.params = torch.randn(3, 5, *self.plain.param_shape(E))
        self.x = self.plain(self.params[0], 1).sample().detach()
        self.partial = self.x.masked_fill(~OBSERVED, math.nan)


def vae_of(likelihood, data_shape=E, num_latents=2):
    encoder = GaussianEncoder(MLP(likelihood.input_shape(data_shape), (6,)), num_latents)
    decoder = MLP(num_latents, (6,), out_shape=likelihood.param_shape(data_shape))
    return VAE(encoder, decoder, likelihood)


# Every family -------------------------------------------------------------------------------------


def check_density(drawn):
    """Only observed entries count."""
    each = drawn.plain.factors(drawn.params, 1).log_prob(drawn.x)
    expected = each.masked_select(OBSERVED).reshape(3, -1).split(OBSERVED.sum(1).tolist(), 1)
    expected = torch.stack([part.sum(1) for part in expected], 1)
    torch.testing.assert_close(drawn.masked(drawn.params, 1).log_prob(drawn.partial), expected)


def check_complete_data(drawn):
    """Without missing entries it is the wrapped likelihood."""
    p, q = drawn.plain(drawn.params, 1), drawn.masked(drawn.params, 1)
    assert torch.equal(q.log_prob(drawn.x), p.log_prob(drawn.x))
    assert torch.equal(q.mean, p.mean)
    assert torch.equal(q.point_estimate(), p.point_estimate())
    for attribute in ("is_density", "is_discrete", "has_rsample"):
        assert getattr(q, attribute) == getattr(p, attribute)
    assert torch.equal(drawn.masked.encoder_input(drawn.x), drawn.plain.encoder_input(drawn.x))
    torch.manual_seed(1)
    x = p.sample((2,))
    torch.manual_seed(1)
    assert torch.equal(q.sample((2,)), x)


def check_empty_data(drawn):
    """If all entries are missing, log density and gradients are zero."""
    x = torch.full((5, *E), math.nan)
    params = drawn.params.clone().requires_grad_()
    log_px = drawn.masked(params, 1).log_prob(x)
    assert torch.equal(log_px, torch.zeros(3, 5))
    tensors = (params, *drawn.masked.parameters())
    for gradient in torch.autograd.grad(log_px.sum(), tensors):
        assert torch.equal(gradient, torch.zeros_like(gradient))


def check_parameter_gradients(drawn):
    """Gradients are those of the density of the observed entries."""
    params = drawn.params.clone().requires_grad_()
    log_px = drawn.masked(params, 1).log_prob(drawn.partial)
    got = torch.autograd.grad(log_px.sum(), (params, *drawn.masked.parameters()))
    each = drawn.plain.factors(params, 1).log_prob(drawn.x)
    expected = torch.autograd.grad(each[:, OBSERVED].sum(), (params, *drawn.plain.parameters()))
    torch.testing.assert_close(got, expected)
    assert all(torch.isfinite(gradient).all() for gradient in got)
    if not isinstance(drawn.plain, MixedLikelihood):
        missing = got[0].reshape(3, 5, -1, *E).movedim(2, 0)[..., ~OBSERVED]
        assert torch.equal(missing, torch.zeros_like(missing))


def check_masked_values(drawn):
    """Values under the mask do not matter."""
    masked = drawn.masked.with_mask(drawn.x, OBSERVED)
    p = drawn.masked(drawn.params, 1)
    for junk in (0.0, -1e6, math.inf, math.nan):
        other = drawn.masked.with_mask(drawn.x.masked_fill(~OBSERVED, junk), OBSERVED)
        assert torch.equal(p.log_prob(masked), p.log_prob(other))
        assert torch.equal(drawn.masked.encoder_input(masked), drawn.masked.encoder_input(other))
        assert drawn.masked.check_support(other)


def check_model(drawn):
    """A mask and NaN are the same to a model, and values under the mask have no gradient."""
    vae = vae_of(drawn.masked)
    x = drawn.x.clone().requires_grad_()
    torch.manual_seed(1)
    by_mask = vae(x, mask=OBSERVED, num_samples=3).log_weight()
    torch.manual_seed(1)
    by_nan = vae(drawn.partial, num_samples=3).log_weight()
    assert torch.equal(by_mask, by_nan)
    gradients = torch.autograd.grad(by_mask.sum(), (x, *vae.parameters()))
    assert torch.equal(gradients[0][~OBSERVED], torch.zeros_like(gradients[0][~OBSERVED]))
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert torch.isfinite(vae.check(drawn.partial).log_px).all()
    assert "a lower bound" in ELBO().check(vae, Batch(drawn.x, mask=OBSERVED))


def check_errors(drawn):
    """Observed entries outside the support are rejected."""
    x = drawn.partial.clone()
    x[4, 2] = math.inf
    with pytest.raises(ValueError, match=r"1 of 5 examples, first in example 4"):
        drawn.masked.check_support(x)


def check_shapes(drawn):
    """Shapes are those of the wrapped likelihood."""
    assert drawn.masked.param_shape(E) == drawn.plain.param_shape(E)
    assert drawn.masked.input_shape(E) == drawn.plain.input_shape(E)
    assert drawn.masked.num_params == drawn.plain.num_params
    assert drawn.masked.encoder_input(drawn.partial).shape[1:] == drawn.plain.input_shape(E)


def check_file(drawn, tmp_path):
    """A model comes back from its file bit for bit."""
    vae = vae_of(drawn.masked)
    vae.save(tmp_path / "vae.safetensors")
    twin = VAE.load(tmp_path / "vae.safetensors")
    torch.manual_seed(1)
    log_px = vae(drawn.partial).log_px
    torch.manual_seed(1)
    assert torch.equal(twin(drawn.partial).log_px, log_px)


@pytest.mark.parametrize("name", FAMILIES)
def test_masked_likelihood_scores_observed_entries_only(name, tmp_path):
    drawn = Drawn(FAMILIES[name])
    check_density(drawn)
    check_complete_data(drawn)
    check_empty_data(drawn)
    check_parameter_gradients(drawn)
    check_masked_values(drawn)
    check_model(drawn)
    check_errors(drawn)
    check_shapes(drawn)
    check_file(drawn, tmp_path)


@pytest.mark.parametrize("show_mask", [False, True])
def test_file_holds_show_mask(show_mask, tmp_path):
    gaussian_vae(show_mask=show_mask).save(tmp_path / "vae.safetensors")
    assert VAE.load(tmp_path / "vae.safetensors").likelihood.show_mask is show_mask


@given(st.lists(st.booleans(), min_size=4, max_size=4))
def test_log_prob_of_any_mask(seen):
    drawn = Drawn(FAMILIES["mixed"])
    seen = torch.tensor(seen)
    each = drawn.plain.factors(drawn.params, 1).log_prob(drawn.x)
    x = drawn.masked.with_mask(drawn.x, seen.expand(5, 4))
    log_px = drawn.masked(drawn.params, 1).log_prob(x)
    torch.testing.assert_close(log_px, each[..., seen].sum(-1))


# Masks and NaN -----------------------------------------------------------------------------------


def gaussian_vae(**options):
    return vae_of(MaskedLikelihood(GaussianLikelihood(), **options))


def data(count=30):
    x = torch.randn(count, *E)
    return x, torch.rand(count, *E) > 0.4


@for_each("show_mask", [False, True])
@for_each(
    "call",
    [
        lambda vae, x, mask: vae.encode(x, mask=mask).mean,
        lambda vae, x, mask: vae.reconstruct(x, mask=mask),
        lambda vae, x, mask: log_marginal(vae, x, mask=mask, num_samples=7),
        lambda vae, x, mask: vae.check(x, mask=mask).log_px,
        lambda vae, x, mask: ELBO(kl="sample")(vae, Batch(x, mask=mask)).losses["model"],
        lambda vae, x, mask: torch.tensor(
            evaluate(vae, x, mask=mask, elbo_samples=3, importance_samples=5).elbo.mean
        ),
    ],
)
def test_mask_and_nan_are_equivalent(call, show_mask):
    vae, (x, mask) = gaussian_vae(show_mask=show_mask), data()
    results = []
    for observed, explicit_mask in (
        (x.masked_fill(~mask, math.nan), None),
        (x, mask),
        (x, mask.long()),
        (x, mask.double()),
        (x.masked_fill(~mask, math.nan), mask),
    ):
        torch.manual_seed(1)
        results.append(call(vae, observed, explicit_mask))
    assert all(torch.equal(result, results[0]) for result in results)
    assert torch.isfinite(results[0]).all()
    torch.manual_seed(1)
    assert not torch.equal(call(vae, x, None), results[0])


def test_nan_and_mask_combine():
    vae, (x, mask) = gaussian_vae(), data()
    half = x.clone()
    half[:15] = half[:15].masked_fill(~mask[:15], math.nan)
    explicit_mask = mask.clone()
    explicit_mask[:15] = True
    expected = log_marginal(vae, x, mask=mask, num_samples=7)
    assert torch.equal(log_marginal(vae, half, mask=explicit_mask, num_samples=7), expected)


def trained(data, batch=None, validation=None):
    torch.manual_seed(3)
    vae = gaussian_vae(show_mask=True)
    trainer = Trainer(vae, ELBO(), device="cpu", progress=False)
    history = trainer.fit(data, validation, epochs=2, batch_size=8, batch=batch)
    return vae.state_dict(), history


def test_training_with_a_mask_equals_training_with_nan():
    x, mask = data()
    partial = x.masked_fill(~mask, math.nan)
    weights, history = trained(partial, validation=partial[:9])
    pair = (x, mask)
    with_mask, same = trained(pair, lambda b: Batch(x=b[0], mask=b[1]), (x[:9], mask[:9]))
    assert all(torch.equal(with_mask[name], tensor) for name, tensor in weights.items())
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    bounds = [[row["validation/elbo_nats"] for row in h.epochs] for h in (history, same)]
    assert bounds[0] == bounds[1]
    as_numpy, _ = trained(partial.numpy(), validation=partial[:9])
    assert all(torch.equal(as_numpy[name], tensor) for name, tensor in weights.items())
    other, _ = trained(x)
    assert any(not torch.equal(other[name], tensor) for name, tensor in weights.items())


def test_integers_with_a_mask():
    x = torch.randint(0, 16, (6, *E), dtype=torch.uint8)
    mask = torch.rand(6, *E) > 0.4
    vae = vae_of(MaskedLikelihood(DiscretizedLogisticLikelihood(16)))
    partial = x.double().masked_fill(~mask, math.nan)
    assert torch.equal(
        log_marginal(vae, x, mask=mask, num_samples=5), log_marginal(vae, partial, num_samples=5)
    )
    report = evaluate(vae, x, mask=mask, elbo_samples=2, importance_samples=None)
    assert report == evaluate(vae, partial, elbo_samples=2, importance_samples=None)
    trainer = Trainer(vae, ELBO(), device="cpu", progress=False)
    trainer.fit((x, mask), epochs=1, batch=lambda b: Batch(x=b[0], mask=b[1]))
    assert all(torch.isfinite(p).all() for p in vae.parameters())


def test_integers_without_a_mask():
    x = torch.randint(0, 3, (6, *E))
    vae = vae_of(MaskedLikelihood(CategoricalLikelihood(3)))
    vae.check(x)
    vae.check(x.to(torch.uint8))


# Encoder input -----------------------------------------------------------------------------------


@for_each(
    ("likelihood", "data_shape", "expected"),
    [
        (GaussianLikelihood(), (5,), (10,)),
        (GaussianLikelihood(), (3, 8, 8), (6, 8, 8)),
        (DiscretizedLogisticLikelihood(256), (1, 8, 8), (2, 8, 8)),
        (CategoricalLikelihood(7, ordered=True), (2, 8, 8), (4, 8, 8)),
        (MixedLikelihood(COLUMNS), (4,), (1 + 3 + 1 + 1 + 4,)),
    ],
)
def test_input_shape_with_the_mask(likelihood, data_shape, expected):
    masked = MaskedLikelihood(likelihood, show_mask=True)
    x = torch.ones(2, *data_shape)
    assert masked.input_shape(data_shape) == expected
    assert masked.encoder_input(x).shape == (2, *expected)


@settings(max_examples=20)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=4))
def test_encoder_input_ends_with_the_mask(shape):
    x = torch.randn(3, *shape)
    mask = torch.rand(3, *shape) > 0.5
    inputs = MaskedLikelihood(GaussianLikelihood(), show_mask=True).encoder_input(
        x.masked_fill(~mask, math.nan)
    )
    assert torch.equal(inputs, torch.cat([x * mask, mask.double()], 1))


@for_each("show_mask", [False, True])
def test_encoder_input_holds_zeros_for_missing_entries(show_mask):
    x = torch.tensor([[100.0, math.nan, 7.0]])
    standardized = StandardizedLikelihood(GaussianLikelihood(), mean=100.0, std=50.0)
    inputs = MaskedLikelihood(standardized, show_mask=show_mask).encoder_input(x)
    expected = [0.0, 0.0, -1.86] + [1.0, 0.0, 1.0] * show_mask
    torch.testing.assert_close(inputs, torch.tensor([expected]))


def test_convolutional_encoder_reads_the_mask():
    likelihood = MaskedLikelihood(GaussianLikelihood(), show_mask=True)
    shape = (3, 8, 8)
    encoder = GaussianEncoder(ConvNet(likelihood.input_shape(shape), (4,)), 2)
    vae = VAE(encoder, MLP(2, (6,), out_shape=shape), likelihood)
    x = torch.randn(4, *shape)
    mask = torch.rand(4, *shape) > 0.5
    trainer = Trainer(vae, ELBO(), device="cpu", progress=False)
    trainer.fit(x.masked_fill(~mask, math.nan), epochs=1)
    zeros = x.masked_fill(~mask, 0.0)
    assert not torch.equal(vae.encode(zeros).mean, vae.encode(x, mask=mask).mean)
    assert vae.reconstruct(x, mask=mask).shape == x.shape


def test_show_mask_needs_common_dimensions():
    masked = MaskedLikelihood(CategoricalLikelihood(3), show_mask=True)
    with pytest.raises(ValueError, match=r"got \(3, 4\) for data of \(4,\): leave"):
        masked.input_shape(E)


# Errors -------------------------------------------------------------------------------------------


@for_each("shape", [(30,), (30, 1), (30, 3), (1, 4), (29, 4)])
def test_mask_must_have_the_shape_of_the_data(shape):
    vae, (x, _) = gaussian_vae(), data()
    mask = torch.ones(shape, dtype=torch.bool)
    for call in (vae, vae.check, vae.encode, vae.reconstruct):
        with pytest.raises(ValueError, match=r"a mask of the data's shape \(30, 4\)"):
            call(x, mask=mask)


def unchanged(vae, fit, message):
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    trainer = Trainer(vae, ELBO(), device="cpu", progress=False)
    with pytest.raises(ValueError, match=message):
        fit(trainer)
    assert all(torch.equal(tensor, before[name]) for name, tensor in vae.state_dict().items())


def test_mask_without_masked_likelihood_is_rejected_before_training():
    vae, (x, mask) = vae_of(GaussianLikelihood()), data()
    message = (
        r"GaussianLikelihood got a mask .* wrap it, MaskedLikelihood\(GaussianLikelihood\(...\)\)"
    )
    for call in (vae, vae.check, vae.encode, vae.reconstruct):
        with pytest.raises(ValueError, match=message):
            call(x, mask=mask)
    for call in (evaluate, log_marginal):
        with pytest.raises(ValueError, match=message):
            call(vae, x, mask=mask)
    unchanged(
        vae,
        lambda t: t.fit((x, mask), epochs=1, batch=lambda b: Batch(x=b[0], mask=b[1])),
        message,
    )


def test_nan_without_masked_likelihood_is_rejected_before_training():
    vae, (x, _) = vae_of(GaussianLikelihood()), data()
    x[17, 2] = math.nan
    message = r"got NaN in 1 of 30 examples, first in example 17: .*MaskedLikelihood\(likelihood\)"
    for call in (vae.check, lambda x: evaluate(vae, x)):
        with pytest.raises(ValueError, match=message):
            call(x)
    unchanged(vae, lambda t: t.fit(x, epochs=1, batch_size=4), message)


@for_each("value", [math.inf, -math.inf])
def test_masked_likelihood_does_not_take_infinity_for_missing(value):
    x = torch.tensor([[0.5, math.nan], [value, 0.5]])
    with pytest.raises(ValueError, match="inf"):
        MaskedLikelihood(GaussianLikelihood()).check_support(x)
    vae = VAE(
        GaussianEncoder(MLP(2, (4,)), 1), MLP(1, (4,), 2), MaskedLikelihood(GaussianLikelihood())
    )
    with pytest.raises(ValueError, match="inf"):
        Trainer(vae, ELBO(), progress=False).fit(x, epochs=1)
    with pytest.raises(ValueError, match="inf"):
        evaluate(vae, x)


@for_each(
    "inner",
    [
        OneHotLikelihood(),
        OptimalGaussianLikelihood(),
        MaskedLikelihood(GaussianLikelihood()),
        nn.Identity(),
        GaussianLikelihood,
    ],
)
def test_masked_rejects_other_parts(inner):
    with pytest.raises(TypeError, match="MaskedLikelihood expects a likelihood"):
        MaskedLikelihood(inner)


# Evaluation ---------------------------------------------------------------------------------------


def test_report_counts_observed_dimensions():
    vae, (x, mask) = gaussian_vae(), data()
    options = {"elbo_samples": 2, "importance_samples": 3}
    expected = mask.sum().item() / 30
    for report in (
        evaluate(vae, x, mask=mask, **options),
        evaluate(vae, x.masked_fill(~mask, math.nan), **options),
        evaluate(vae, x, mask=mask.double(), **options),
    ):
        assert report.num_dims == pytest.approx(expected, abs=1e-12)
        nats = report.elbo.mean
        assert report.bits_per_dim(report.elbo) == pytest.approx(-nats / expected / math.log(2))
        assert report.is_bound
    assert evaluate(vae, x, **options).num_dims == 4


def test_report_of_missing_data_is_finite():
    vae, (x, mask) = gaussian_vae(), data()
    report = evaluate(vae, x.masked_fill(~mask, math.nan), elbo_samples=2, importance_samples=3)
    assert "nan" not in str(report)
    assert report.to_dict()["num_dims"] == report.num_dims
    assert np.isfinite(report.elbo.standard_error)
