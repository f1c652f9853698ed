"""Shapes, draws and contexts of a VAE."""

import math

import pytest
import torch
from helpers.cases import for_each
from helpers.models import (
    MODELS,
    binary,
    conditional_vae,
    mlp_vae,
    small_vae,
    spatial_vae,
    standard_normal,
)

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
    StandardNormal,
    log_marginal,
)
from tinyvae.distributions import Independent, Normal
from tinyvae.errors import NoClosedFormError
from tinyvae.likelihoods import (
    BetaBinomialLikelihood,
    DiscretizedLogisticLikelihood,
    HurdleLikelihood,
    MaskedLikelihood,
    MultinomialLikelihood,
    NegativeBinomialLikelihood,
    OrdinalLikelihood,
    PoissonLikelihood,
    ZeroInflatedLikelihood,
)
from tinyvae.models import LatentTerm

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture(params=MODELS)
def model_case(request):
    return MODELS[request.param]


@for_each(("num_samples", "batch"), [(1, 5), (3, 5), (3, 1)])
@for_each("dtype", [torch.float32, torch.float64])
def test_vae_shapes_and_dtypes(model_case, num_samples, batch, dtype):
    make, data_shape, latent_shape, *_ = model_case
    vae, x = make().to(dtype), binary(batch, *data_shape).to(dtype)
    assert vae.latent_shape == latent_shape
    output = vae(x, num_samples=num_samples)
    (term,) = output.latents
    assert term.name == "z"
    tensors = {
        (num_samples, batch, *latent_shape): [term.z],
        (num_samples, batch): [output.log_px, term.log_q, term.log_p, output.log_weight()],
        (batch,): [term.kl(), term.kl("sample")],
        (num_samples, batch, *data_shape): [output.likelihood.mean, vae.decode(term.z).sample()],
        (batch, *data_shape): [vae.reconstruct(x), vae.decode(term.z[0]).mean],
        (7, *data_shape): [vae.sample(7), vae.sample(7, mean=True)],
        data_shape: [vae.decode(term.z[0, 0, None]).mean[0]],
    }
    for shape, values in tensors.items():
        assert [v.shape for v in values] == [shape] * len(values)
        assert {v.dtype for v in values} == {dtype}
    assert output.likelihood.batch_shape == (num_samples, batch)
    assert output.likelihood.event_shape == data_shape
    assert term.posterior.batch_shape == (batch,)
    assert not vae.sample(2).requires_grad


def test_log_weight_is_the_sum_of_its_terms(model_case):
    make, data_shape, *_ = model_case
    vae, x = make(), binary(5, *data_shape)
    output = vae(x, num_samples=3)
    z = output.latents[0].z
    expected = vae.decode(z).log_prob(x) + vae.prior().log_prob(z) - vae.encode(x).log_prob(z)
    torch.testing.assert_close(output.log_weight(), expected, rtol=1e-12, atol=1e-12)


def test_decode_treats_each_latent_by_itself(model_case):
    """p(x given z) of K x B latents is that of each latent by itself."""
    make, _, latent_shape, *_ = model_case
    vae, z = make(), torch.randn(3, 5, *latent_shape)
    together = vae.decode(z).mean
    alone = torch.stack(
        [torch.stack([vae.decode(z[k, b][None]).mean[0] for b in range(5)]) for k in range(3)]
    )
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)


def test_decode_accepts_a_single_latent():
    vae = VAE(GaussianEncoder(MLP(4), 2), MLP(2, out_shape=4), BernoulliLikelihood())
    assert vae.decode(torch.zeros(2)).mean.shape == (4,)


def test_vae_gradients_reach_every_parameter(model_case):
    make, data_shape, *_ = model_case
    vae = make()
    vae(binary(5, *data_shape), num_samples=3).log_weight().sum().backward()
    dead = [n for n, p in vae.named_parameters() if p.grad is None or not p.grad.any()]
    assert not dead


def test_sample_has_the_mean_and_variance_of_the_model():
    """The mean of draws is the mean of the decoder's means over prior draws."""
    vae = mlp_vae(GaussianLikelihood(0.5), (4,))
    draws, means = vae.sample(20_000), vae.sample(20_000, mean=True)
    error = (draws.var(0) / 20_000 + means.var(0) / 20_000).sqrt()
    assert ((draws.mean(0) - means.mean(0)).abs() < 4 * error).all()
    noise = draws.var(0) - means.var(0)
    torch.testing.assert_close(noise, torch.full((4,), 0.25), rtol=0.1, atol=0)


def test_reconstruct_draws_nothing(model_case):
    make, data_shape, *_ = model_case
    vae, x = make(), binary(5, *data_shape)
    state = torch.get_rng_state()
    reconstruction = vae.reconstruct(x)
    assert torch.equal(torch.get_rng_state(), state)
    expected = vae.decode(vae.encode(x).mean).mean
    assert torch.equal(reconstruction, expected)


def test_latent_term_kl_estimators():
    q, p = standard_normal(5, 3, event_ndim=1), standard_normal(2, 5, 3, event_ndim=1)
    q = Independent(Normal(q.mean + 2, q.base.log_std), 1)
    term = LatentTerm("z", q.sample((2,)), q, p)
    assert term.has_analytic_kl
    torch.testing.assert_close(term.kl("analytic"), torch.full((5,), 6.0))  # 3 x 2^2 / 2
    assert torch.equal(term.kl("sample"), (term.log_q - term.log_p).mean(0))
    assert torch.equal(term.kl(), term.kl("analytic"))
    flat = LatentTerm("z", term.z, q, Independent(p.base, 2))
    assert not flat.has_analytic_kl
    with pytest.raises(NoClosedFormError):
        flat.kl("analytic")


def test_vae_is_a_density_if_both_parts_are():
    for part in ("encoder", "likelihood"):
        vae = small_vae()
        assert vae.is_density
        getattr(vae, part).is_density = False
        assert not vae.is_density


def test_vae_default_prior_and_repr():
    vae = spatial_vae()
    assert isinstance(vae.prior, StandardNormal)
    assert vae.prior.latent_shape == (2, 3, 4)
    assert repr(vae).startswith("VAE(\n  latent_shape=(2, 3, 4)")


class ShapelessEncoder(Encoder):
    """An encoder that does not set its latent shape."""

    def forward(self, x, context=None):
        return Independent(Normal(x, torch.zeros_like(x)), 1)


def test_vae_refuses_a_likelihood_that_sums_over_dimensions_itself():
    class SummedLikelihood(GaussianLikelihood):
        def elementwise(self, *params):
            return Independent(super().elementwise(*params), 1)

    vae = VAE(GaussianEncoder(MLP(4), 3), MLP(3), SummedLikelihood())
    with pytest.raises(ValueError, match=r"batch_shape \(1, 2\), got batch_shape \(1,\).*without"):
        vae.check(torch.zeros(5, 4))


def test_vae_constructor_names_the_remedy():
    encoder, decoder, likelihood = GaussianEncoder(MLP(4), 3), MLP(3), BernoulliLikelihood()
    for arguments, error, message in [
        (
            (MLP(4), decoder, likelihood),
            TypeError,
            r"an Encoder, got .* MLP: wrap a network .* Independent\(Normal\(mean, log_var / 2",
        ),
        ((ShapelessEncoder(), decoder, likelihood), TypeError, r"self\.latent_shape = torch\.Size"),
        (
            (encoder, torch.tanh, likelihood),
            TypeError,
            r"decoder a Module, got an instance of builtin.*MLP\(",
        ),
        (
            (encoder, decoder, "bernoulli"),
            TypeError,
            r"likelihood a Likelihood, got an instance of str: such",
        ),
        (
            (encoder, decoder, BernoulliLikelihood),
            TypeError,
            r"got the class .*: make an object of it, BernoulliLikelihood\(\.\.\.\)",
        ),
        (
            (encoder, decoder, likelihood, decoder),
            TypeError,
            r"prior a Prior, got an instance of MLP: such as",
        ),
        (
            (encoder, decoder, likelihood, StandardNormal(2)),
            ValueError,
            r"encoder's latents \(3,\), got one over \(2,\)",
        ),
    ]:
        with pytest.raises(error, match=message):
            VAE(*arguments)


@for_each("with_prior", [False, True])
def test_vae_passes_the_context_to_every_part(with_prior):
    vae, x, context = conditional_vae(with_prior), torch.randn(5, 4), torch.randn(5, 2)
    output = vae(x, context, num_samples=3)
    (term,) = output.latents
    assert output.log_weight().shape == (3, 5)
    for b in range(5):  # Each example reads its own context only.
        row, row_context = x[b : b + 1], context[b : b + 1]
        z = term.z[:, b : b + 1]
        head = vae.encoder.head(vae.encoder.network(row, row_context))
        torch.testing.assert_close(term.posterior.mean[b], head[0, :3])
        decoded = torch.stack([vae.decoder(z[k], row_context) for k in range(3)])
        torch.testing.assert_close(output.likelihood.mean[:, b : b + 1], decoded)
        prior = vae.prior.linear(row_context) if with_prior else torch.zeros(1, 3)
        log_p = -0.5 * ((z - prior) ** 2).sum(-1) - 1.5 * math.log(2 * math.pi)
        torch.testing.assert_close(term.log_p[:, b : b + 1], log_p)
    reconstruction = vae.decoder(term.posterior.mean, context)
    torch.testing.assert_close(vae.reconstruct(x, context), reconstruction)
    vae.check(x, context)
    assert log_marginal(vae, x, context, num_samples=4).shape == (5,)
    objective, batch = ELBO(num_samples=2), Batch(x, context)
    objective.check(vae, batch)
    objective(vae, batch).losses["model"].backward()
    assert all(p.grad.any() for p in vae.parameters())


@for_each("with_prior", [False, True])
def test_sample_reads_the_context(with_prior):
    vae, context = conditional_vae(with_prior), torch.tensor([[0.0, 0.0], [30.0, -30.0]])
    draws = vae.sample(4000, context)
    assert draws.shape == (4000, 2, 4)
    with torch.no_grad():
        z = vae.prior.linear(context) if with_prior else torch.zeros(2, 3)
        expected = vae.decoder(z, context)  # linear, so that the mean passes through
    error = draws.std(0) / math.sqrt(4000)
    assert ((draws.mean(0) - expected).abs() < 4.5 * error).all()
    assert vae.sample(6, context, mean=True).shape == (6, 2, 4)


def test_vae_needs_a_row_of_context_per_example():
    vae = VAE(GaussianEncoder(MLP(4), 2), MLP(2, out_shape=4), BernoulliLikelihood())
    with pytest.raises(ValueError, match=r"one row of context per example, got \(2, \d\) for 3"):
        vae.check(torch.ones(3, 4), torch.ones(2, 1))
    with pytest.raises(ValueError, match=r"context of 2 rows does not fit .* batch shape \(4,\)"):
        vae.decode(torch.zeros(4, 2), torch.ones(2, 1))


@for_each(
    ("likelihood", "draws", "centers"),
    [
        (CategoricalLikelihood(5), torch.int64, torch.int64),
        (CategoricalLikelihood(5, ordered=True), torch.int64, torch.float64),
        (BetaBinomialLikelihood(5), torch.int64, torch.float64),
        (MultinomialLikelihood(5), torch.int64, torch.float64),
        (OrdinalLikelihood(5), torch.int64, torch.float64),
        (DiscretizedLogisticLikelihood(16), torch.int64, torch.float64),
        (NegativeBinomialLikelihood(), torch.int64, torch.float64),
        (ZeroInflatedLikelihood(PoissonLikelihood()), torch.int64, torch.float64),
        (MaskedLikelihood(CategoricalLikelihood(5)), torch.int64, torch.int64),
        (HurdleLikelihood(GaussianLikelihood()), torch.float64, torch.float64),
        (BernoulliLikelihood(), torch.float64, torch.float64),
        (GaussianLikelihood(), torch.float64, torch.float64),
    ],
)
def test_draws_of_classes_levels_and_counts_are_integers(likelihood, draws, centers):
    vae = VAE.from_shapes(3, latent_dim=2, likelihood=likelihood)
    torch.manual_seed(0)
    x = vae.sample(100)
    torch.manual_seed(0)
    exact = vae.decode(vae.generate(100, None)).sample()
    assert x.dtype == draws
    assert torch.equal(x.double(), exact)
    assert vae.sample(100, mean=True).dtype == centers
    assert vae.reconstruct(x).dtype == centers
    assert vae(x).log_px.isfinite().all()  # draws are data again
