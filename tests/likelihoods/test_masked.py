import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tinyvae import (
    ELBO,
    MLP,
    VAE,
    Batch,
    BernoulliLikelihood,
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
    ContinuousBernoulliLikelihood,
    DiscretizedLogisticLikelihood,
    LaplaceLikelihood,
    Learned,
    LogNormalLikelihood,
    MaskedLikelihood,
    MixedLikelihood,
    MixtureLikelihood,
    NegativeBinomialLikelihood,
    OneHotLikelihood,
    OptimalGaussianLikelihood,
    PoissonLikelihood,
    StandardizedLikelihood,
    StudentTLikelihood,
    ZeroInflatedLikelihood,
)

pytestmark = pytest.mark.usefixtures("float64")

E = (4,)
COLUMNS = [
    Column("age", "number", (), 40.0, 12.0),
    Column("color", "category", ("blue", "green", "red")),
    Column("visits", "count", (), 0.0, 2.5),
    Column("income", "positive", (), 0.0, 2e4),
]
FAMILIES = {
    "bernoulli": BernoulliLikelihood,
    "beta": BetaLikelihood,
    "categorical": lambda: CategoricalLikelihood(3),
    "categorical, ordered": lambda: CategoricalLikelihood(5, ordered=True),
    "continuous Bernoulli": ContinuousBernoulliLikelihood,
    "discretized logistic": lambda: DiscretizedLogisticLikelihood(16),
    "gaussian, fixed": lambda: GaussianLikelihood(0.7),
    "gaussian, learned": GaussianLikelihood,
    "gaussian, per dimension": lambda: GaussianLikelihood(Learned(E)),
    "gaussian, predicted": lambda: GaussianLikelihood("predicted"),
    "laplace": LaplaceLikelihood,
    "log-normal": LogNormalLikelihood,
    "mixed": lambda: MixedLikelihood(COLUMNS),
    "mixture of gaussians": lambda: MixtureLikelihood(GaussianLikelihood("predicted"), 3),
    "mixture of levels": lambda: MixtureLikelihood(DiscretizedLogisticLikelihood(16), 2),
    "negative binomial": lambda: NegativeBinomialLikelihood("predicted", baseline=3.0),
    "poisson": lambda: PoissonLikelihood([1.0, 2.0, 3.0, 4.0]),
    "standardized": lambda: StandardizedLikelihood(GaussianLikelihood(), [1.0, 2.0, 3.0, 4.0], 5.0),
    "standardized, bounded": lambda: StandardizedLikelihood(BetaLikelihood(), 10.0, 2.0),
    "standardized, positive": lambda: StandardizedLikelihood(LogNormalLikelihood(), std=300.0),
    "student": lambda: StudentTLikelihood("predicted", "predicted"),
    "zero-inflated": lambda: ZeroInflatedLikelihood(NegativeBinomialLikelihood()),
}
# The second example is wholly observed, the third not at all.
SEEN = torch.tensor(
    [[1, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0]], dtype=torch.bool
)


class Drawn:
    """A likelihood, parameters ``(3, 5, ...)`` and data ``(5, 4)`` of it."""

    def __init__(self, make):
        self.plain, self.masked = make(), MaskedLikelihood(make())
        with torch.no_grad():
            for one, other in zip(self.plain.parameters(), self.masked.parameters(), strict=True):
                one += 0.3 * torch.randn_like(one)
                other.copy_(one)
        self.params = torch.randn(3, 5, *self.plain.param_shape(E))
        self.x = self.plain(self.params[0], 1).sample().detach()
        self.holes = self.x.masked_fill(~SEEN, math.nan)


@pytest.fixture(params=FAMILIES)
def drawn(request):
    return Drawn(FAMILIES[request.param])


def vae_of(likelihood, data_shape=E, num_latents=2):
    encoder = GaussianEncoder(MLP(likelihood.input_shape(data_shape), (6,)), num_latents)
    decoder = MLP(num_latents, (6,), out_shape=likelihood.param_shape(data_shape))
    return VAE(encoder, decoder, likelihood)


# Every family -------------------------------------------------------------------------------------


def test_only_what_was_observed_counts(drawn):
    each = drawn.plain.scalars(drawn.params, 1).log_prob(drawn.x)
    expected = each.masked_select(SEEN).reshape(3, -1).split(SEEN.sum(1).tolist(), 1)
    expected = torch.stack([part.sum(1) for part in expected], 1)
    torch.testing.assert_close(drawn.masked(drawn.params, 1).log_prob(drawn.holes), expected)


def test_nothing_missing_is_the_likelihood_itself(drawn):
    p, q = drawn.plain(drawn.params, 1), drawn.masked(drawn.params, 1)
    assert torch.equal(q.log_prob(drawn.x), p.log_prob(drawn.x))
    assert torch.equal(q.mean, p.mean)
    assert torch.equal(q.point_estimate(), p.point_estimate())
    assert (q.is_density, q.is_discrete, q.has_rsample) == (
        p.is_density,
        p.is_discrete,
        p.has_rsample,
    )
    assert torch.equal(drawn.masked.encoder_input(drawn.x), drawn.plain.encoder_input(drawn.x))
    torch.manual_seed(1)
    x = p.sample((2,))
    torch.manual_seed(1)
    assert torch.equal(q.sample((2,)), x)


def test_all_missing_is_zero(drawn):
    x = torch.full((5, *E), math.nan)
    params = drawn.params.requires_grad_()
    log_px = drawn.masked(params, 1).log_prob(x)
    assert torch.equal(log_px, torch.zeros(3, 5))
    log_px.sum().backward()
    for tensor in (params, *drawn.masked.parameters()):
        assert torch.equal(tensor.grad, torch.zeros_like(tensor))


def test_missing_entries_have_no_gradient(drawn):
    """Gradients are those of the density of the observed entries alone."""
    drawn.masked(drawn.params.requires_grad_(), 1).log_prob(drawn.holes).sum().backward()
    got = [drawn.params.grad, *(p.grad for p in drawn.masked.parameters())]
    params = drawn.params.detach().clone().requires_grad_()
    each = drawn.plain.scalars(params, 1).log_prob(drawn.x)
    each[:, SEEN].sum().backward()
    expected = [params.grad, *(p.grad for p in drawn.plain.parameters())]
    torch.testing.assert_close(got, expected)
    assert all(torch.isfinite(gradient).all() for gradient in got)
    if not isinstance(drawn.plain, MixedLikelihood):
        missing = got[0].reshape(3, 5, -1, *E).movedim(2, 0)[..., ~SEEN]
        assert torch.equal(missing, torch.zeros_like(missing))


@pytest.mark.parametrize("junk", [0.0, -1e6, math.inf, math.nan])
def test_values_under_the_mask_do_not_leak(drawn, junk):
    mask = SEEN
    one = drawn.masked.with_mask(drawn.x, mask)
    other = drawn.masked.with_mask(drawn.x.masked_fill(~mask, junk), mask)
    p = drawn.masked(drawn.params, 1)
    assert torch.equal(p.log_prob(one), p.log_prob(other))
    assert torch.equal(drawn.masked.encoder_input(one), drawn.masked.encoder_input(other))
    assert drawn.masked.check_support(other)


def test_values_under_the_mask_have_no_gradient(drawn):
    vae = vae_of(drawn.masked)
    x = drawn.x.clone().requires_grad_()
    vae(x, mask=SEEN).log_weight().sum().backward()
    assert torch.equal(x.grad[~SEEN], torch.zeros_like(x.grad[~SEEN]))
    assert torch.isfinite(x.grad).all()


def test_mask_is_nan_in_every_family(drawn):
    vae = vae_of(drawn.masked)
    torch.manual_seed(1)
    one = vae(drawn.x, mask=SEEN, num_samples=3)
    torch.manual_seed(1)
    other = vae(drawn.holes, num_samples=3)
    assert torch.equal(one.log_weight(), other.log_weight())
    one.log_weight().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in vae.parameters())


def test_checks_let_missing_entries_through(drawn):
    vae = vae_of(drawn.masked)
    record = vae.check(drawn.holes)
    assert torch.isfinite(record.log_px).all()
    assert "a lower bound" in ELBO().check(vae, Batch(drawn.x, mask=SEEN))


def test_observed_entries_must_have_a_density(drawn):
    x = drawn.holes.clone()
    x[4, 2] = math.inf
    with pytest.raises(ValueError, match=r"1 of 5 examples, first in example 4"):
        drawn.masked.check_support(x)


def test_shapes_are_those_of_the_family(drawn):
    assert drawn.masked.param_shape(E) == drawn.plain.param_shape(E)
    assert drawn.masked.input_shape(E) == drawn.plain.input_shape(E)
    assert drawn.masked.num_params == drawn.plain.num_params
    assert drawn.masked.encoder_input(drawn.holes).shape[1:] == drawn.plain.input_shape(E)


def test_file_is_bitwise(drawn, tmp_path):
    vae = vae_of(drawn.masked)
    vae.save(tmp_path / "vae.safetensors")
    twin = VAE.load(tmp_path / "vae.safetensors")
    torch.manual_seed(1)
    log_px = vae(drawn.holes).log_px
    torch.manual_seed(1)
    assert torch.equal(twin(drawn.holes).log_px, log_px)


@pytest.mark.parametrize("show_mask", [False, True])
def test_file_says_whether_the_mask_is_shown(show_mask, tmp_path):
    gaussian_vae(show_mask=show_mask).save(tmp_path / "vae.safetensors")
    assert VAE.load(tmp_path / "vae.safetensors").likelihood.show_mask is show_mask


@given(st.lists(st.booleans(), min_size=4, max_size=4))
def test_any_mask(seen):
    drawn = Drawn(FAMILIES["mixed"])
    seen = torch.tensor(seen)
    each = drawn.plain.scalars(drawn.params, 1).log_prob(drawn.x)
    x = drawn.masked.with_mask(drawn.x, seen.expand(5, 4))
    log_px = drawn.masked(drawn.params, 1).log_prob(x)
    torch.testing.assert_close(log_px, each[..., seen].sum(-1))


# A mask beside x, or NaN in it --------------------------------------------------------------------


def gaussian_vae(**options):
    return vae_of(MaskedLikelihood(GaussianLikelihood(), **options))


def data(count=30):
    x = torch.randn(count, *E)
    return x, torch.rand(count, *E) > 0.4


@pytest.mark.parametrize("show_mask", [False, True])
@pytest.mark.parametrize(
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
def test_mask_is_nan(call, show_mask):
    vae, (x, mask) = gaussian_vae(show_mask=show_mask), data()
    results = []
    for observed, beside in (
        (x.masked_fill(~mask, math.nan), None),
        (x, mask),
        (x, mask.long()),
        (x, mask.double()),
        (x.masked_fill(~mask, math.nan), mask),
    ):
        torch.manual_seed(1)
        results.append(call(vae, observed, beside))
    assert all(torch.equal(result, results[0]) for result in results)
    assert torch.isfinite(results[0]).all()
    torch.manual_seed(1)
    assert not torch.equal(call(vae, x, None), results[0])


def test_nan_and_mask_join():
    vae, (x, mask) = gaussian_vae(), data()
    half = x.clone()
    half[:15] = half[:15].masked_fill(~mask[:15], math.nan)
    beside = mask.clone()
    beside[:15] = True
    expected = log_marginal(vae, x, mask=mask, num_samples=7)
    assert torch.equal(log_marginal(vae, half, mask=beside, num_samples=7), expected)


def trained(data, batch=None, validation=None):
    torch.manual_seed(3)
    vae = gaussian_vae(show_mask=True)
    trainer = Trainer(vae, ELBO(), device="cpu", progress=False)
    history = trainer.fit(data, validation, epochs=2, batch_size=8, batch=batch)
    return vae.state_dict(), history


def test_training_with_a_mask_is_training_with_nan():
    x, mask = data()
    holes = x.masked_fill(~mask, math.nan)
    weights, history = trained(holes, validation=holes[:9])
    pair = (x, mask)
    with_mask, same = trained(pair, lambda b: Batch(x=b[0], mask=b[1]), (x[:9], mask[:9]))
    assert all(torch.equal(with_mask[name], tensor) for name, tensor in weights.items())
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    bounds = [[row["validation/elbo_nats"] for row in h.epochs] for h in (history, same)]
    assert bounds[0] == bounds[1]
    as_numpy, _ = trained(holes.numpy(), validation=holes[:9])
    assert all(torch.equal(as_numpy[name], tensor) for name, tensor in weights.items())
    other, _ = trained(x)
    assert any(not torch.equal(other[name], tensor) for name, tensor in weights.items())


def test_integers_with_a_mask():
    x = torch.randint(0, 16, (6, *E), dtype=torch.uint8)
    mask = torch.rand(6, *E) > 0.4
    vae = vae_of(MaskedLikelihood(DiscretizedLogisticLikelihood(16)))
    holes = x.double().masked_fill(~mask, math.nan)
    assert torch.equal(
        log_marginal(vae, x, mask=mask, num_samples=5), log_marginal(vae, holes, num_samples=5)
    )
    report = evaluate(vae, x, mask=mask, elbo_samples=2, importance_samples=None)
    assert report == evaluate(vae, holes, elbo_samples=2, importance_samples=None)
    trainer = Trainer(vae, ELBO(), device="cpu", progress=False)
    trainer.fit((x, mask), epochs=1, batch=lambda b: Batch(x=b[0], mask=b[1]))
    assert all(torch.isfinite(p).all() for p in vae.parameters())


def test_integers_without_a_mask():
    x = torch.randint(0, 3, (6, *E))
    vae = vae_of(MaskedLikelihood(CategoricalLikelihood(3)))
    vae.check(x)
    vae.check(x.to(torch.uint8))


# What the encoder is fed --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("likelihood", "data_shape", "expected"),
    [
        (GaussianLikelihood(), (5,), (10,)),
        (GaussianLikelihood(), (3, 8, 8), (6, 8, 8)),
        (DiscretizedLogisticLikelihood(256), (1, 8, 8), (2, 8, 8)),
        (CategoricalLikelihood(7, ordered=True), (2, 8, 8), (4, 8, 8)),
        (MixedLikelihood(COLUMNS), (4,), (1 + 3 + 1 + 1 + 4,)),
    ],
)
def test_shape_with_the_mask(likelihood, data_shape, expected):
    masked = MaskedLikelihood(likelihood, show_mask=True)
    x = torch.ones(2, *data_shape)
    assert masked.input_shape(data_shape) == expected
    assert masked.encoder_input(x).shape == (2, *expected)


@settings(max_examples=20)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=4))
def test_mask_is_shown_behind_the_data(shape):
    x = torch.randn(3, *shape)
    mask = torch.rand(3, *shape) > 0.5
    fed = MaskedLikelihood(GaussianLikelihood(), show_mask=True).encoder_input(
        x.masked_fill(~mask, math.nan)
    )
    assert torch.equal(fed, torch.cat([x * mask, mask.double()], 1))


@pytest.mark.parametrize("show_mask", [False, True])
def test_missing_entries_are_fed_as_zeros(show_mask):
    x = torch.tensor([[100.0, math.nan, 7.0]])
    standardized = StandardizedLikelihood(GaussianLikelihood(), 100.0, 50.0)
    fed = MaskedLikelihood(standardized, show_mask=show_mask).encoder_input(x)
    expected = [0.0, 0.0, -1.86] + [1.0, 0.0, 1.0] * show_mask
    torch.testing.assert_close(fed, torch.tensor([expected]))


def test_convolutions_see_the_mask():
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


def test_a_mask_beside_no_common_dimensions():
    masked = MaskedLikelihood(CategoricalLikelihood(3), show_mask=True)
    with pytest.raises(ValueError, match=r"\(3, 4\) and \(4,\) have no common dimensions: leave"):
        masked.input_shape(E)


# Errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(30,), (30, 1), (30, 3), (1, 4), (29, 4)])
def test_mask_of_another_shape(shape):
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


def test_a_mask_without_masked_is_refused_before_any_step():
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


def test_nan_without_masked_is_refused_before_any_step():
    vae, (x, _) = vae_of(GaussianLikelihood()), data()
    x[17, 2] = math.nan
    message = r"got NaN in 1 of 30 examples, first in example 17: .*MaskedLikelihood\(likelihood\)"
    for call in (vae.check, lambda x: evaluate(vae, x)):
        with pytest.raises(ValueError, match=message):
            call(x)
    unchanged(vae, lambda t: t.fit(x, epochs=1, batch_size=4), message)


@pytest.mark.parametrize(
    "inner",
    [
        OneHotLikelihood(),
        OptimalGaussianLikelihood(),
        MaskedLikelihood(GaussianLikelihood()),
        nn.Identity(),
        GaussianLikelihood,
    ],
)
def test_what_cannot_be_masked(inner):
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
        assert report.bits_per_dim(nats) == pytest.approx(-nats / expected / math.log(2))
        assert report.is_bound
    assert evaluate(vae, x, **options).num_dims == 4


def test_report_of_missing_data_in_words():
    vae, (x, mask) = gaussian_vae(), data()
    report = evaluate(vae, x.masked_fill(~mask, math.nan), elbo_samples=2, importance_samples=3)
    assert "nan" not in str(report)
    assert report.to_dict()["num_dims"] == report.num_dims
    assert np.isfinite(report.elbo.standard_error)
