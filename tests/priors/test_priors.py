"""The contract of priors, references for each one, and fits."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from helpers.apple import in_float32, on_device
from helpers.cases import for_each
from torch import nn
from torch.distributions import MultivariateNormal

from tinyvae import (
    MLP,
    VAE,
    BernoulliLikelihood,
    GaussianEncoder,
    GaussianLikelihood,
    Prior,
    ResNet,
    StandardNormal,
    VampPrior,
)
from tinyvae.distributions import kl_divergence
from tinyvae.encoders import (
    CategoricalEncoder,
    FlowEncoder,
    FullGaussianEncoder,
    JointEncoder,
    PowerSphericalEncoder,
    VectorQuantizedEncoder,
)
from tinyvae.errors import CheckpointError
from tinyvae.flows import Flow
from tinyvae.models.serialization import build_part, describe_part
from tinyvae.networks import ConcatContext
from tinyvae.priors import (
    AutoregressivePrior,
    CategoricalPrior,
    CodePrior,
    ConditionalPrior,
    FittedPrior,
    FlowPrior,
    FullGaussianPrior,
    GaussianPrior,
    GumbelSoftmaxPrior,
    JointPrior,
    MixturePrior,
    SphereUniformPrior,
    StandardLaplace,
)
from tinyvae.testing import check_prior
from tinyvae.testing.contract import perturbed

pytestmark = pytest.mark.usefixtures("float64")

NUMBERS = torch.linspace(-1, 1, 15, dtype=torch.float64).reshape(5, 3)
CLASSES = torch.tensor([0, 3, 2, 1, 1])


def mlp(size=4):
    return MLP(size, hidden=(6,), activation=nn.Tanh)


def gaussian(dim=2, **options):
    return GaussianEncoder(mlp(), dim, **options)


def of_classes():
    return GaussianEncoder(ConcatContext(mlp(4 + 4), num_classes=4), 2)


def of_numbers():
    return GaussianEncoder(ConcatContext(mlp(4 + 3), context_dim=3), 2)


def flow(dim, **options):
    return FlowPrior(Flow(dim, hidden=(8,), **options))


def fitted(density, steps=5):
    dim = density.latent_shape.numel()
    z = torch.randn(200, dim).exp() @ torch.randn(dim, dim)
    return FittedPrior.fit(z.reshape(-1, *density.latent_shape), density, steps=steps)


def fitted_codes():
    prior = CodePrior(6, latent_dim=(2, 3))
    prior.fit(torch.randint(3, (20, 3)))
    return prior


def vamp_of(encoder, context=None, **options):
    """Return a VampPrior and its encoder."""
    return VampPrior.from_data(encoder, torch.randn(9, 4), context, **options), encoder


# name: (prior, or pair of prior and the VAE's encoder; context)
PRIORS = {
    "standard normal": (lambda: StandardNormal(3), None),
    "standard normal, spatial": (lambda: StandardNormal((2, 3, 1)), None),
    "standard normal, context": (lambda: StandardNormal(2), NUMBERS),
    "standard laplace": (lambda: StandardLaplace(2), None),
    "standard laplace, spatial": (lambda: StandardLaplace((2, 3, 1)), None),
    "sphere, 2": (lambda: SphereUniformPrior(2), None),
    "sphere, 5": (lambda: SphereUniformPrior(5), CLASSES),
    "gaussian": (lambda: GaussianPrior(2), None),
    "gaussian, spatial": (lambda: GaussianPrior((2, 3, 1)), None),
    "full gaussian": (lambda: FullGaussianPrior(3), None),
    "mixture": (lambda: MixturePrior(2, num_components=3), None),
    "mixture, 1 of 1": (lambda: MixturePrior(1, num_components=2), NUMBERS),
    "mixture, spatial": (lambda: MixturePrior((2, 1, 1), num_components=3), None),
    "autoregressive": (lambda: AutoregressivePrior(3, hidden=(8,), num_components=2), None),
    "autoregressive, context": (lambda: AutoregressivePrior(2, hidden=(4, 5)), NUMBERS),
    "categorical": (lambda: CategoricalPrior(4), None),
    "categorical, learned": (lambda: CategoricalPrior(3, num_variables=(2, 2), learned=True), None),
    "gumbel-softmax": (lambda: GumbelSoftmaxPrior(3), None),
    "gumbel-softmax, learned": (
        lambda: GumbelSoftmaxPrior(2, num_variables=2, temperature=0.8, learned=True),
        None,
    ),
    "codes, of one position": (
        lambda: (
            CodePrior(6, latent_dim=(2, 1)),
            VectorQuantizedEncoder(mlp(), num_codes=6, latent_dim=(2, 1)),
        ),
        None,
    ),
    "codes, fitted": (
        lambda: (
            fitted_codes(),
            VectorQuantizedEncoder(mlp(), num_codes=6, latent_dim=(2, 3), decay=None),
        ),
        None,
    ),
    "joint": (
        lambda: JointPrior(
            {
                "a": StandardNormal(2),
                "b": CategoricalPrior(3, learned=True),
                "c": SphereUniformPrior(2),
            }
        ),
        None,
    ),
    "joint, of numbers": (
        lambda: JointPrior(
            [("a", ConditionalPrior(GaussianEncoder(mlp(3), 2))), ("b", flow(2, context_dim=3))]
        ),
        NUMBERS,
    ),
    "conditional": (lambda: ConditionalPrior(GaussianEncoder(mlp(3), 2)), NUMBERS),
    "conditional, of classes": (
        lambda: ConditionalPrior(GaussianEncoder(nn.Embedding(4, 5), 2, features=5)),
        CLASSES,
    ),
    "conditional, categorical": (lambda: ConditionalPrior(CategoricalEncoder(mlp(3), 4)), NUMBERS),
    "conditional, flow": (
        lambda: ConditionalPrior(
            FlowEncoder(GaussianEncoder(mlp(3), 2), Flow(2, context_dim=6, hidden=(8,)))
        ),
        NUMBERS,
    ),
    "flow": (lambda: flow(2), None),
    "flow, 1": (lambda: flow(1), None),
    "flow, 1, affine, of numbers": (lambda: flow(1, kind="affine", context_dim=3), NUMBERS),
    "flow, affine": (lambda: flow(2, kind="affine"), None),
    "flow, coupling": (lambda: flow(3, coupling=True, transforms=2), None),
    "flow, of numbers": (lambda: flow(2, context_dim=3), NUMBERS),
    "vamp": (lambda: vamp_of(gaussian(), num_components=3), None),
    "vamp, random": (lambda: (VampPrior(2, input_shape=4, num_components=3), gaussian()), None),
    "vamp, all data": (lambda: vamp_of(gaussian(1), num_components=9), None),
    "vamp, learned weights": (
        lambda: vamp_of(gaussian(), num_components=3, learned_weights=True),
        None,
    ),
    "vamp, of numbers": (
        lambda: vamp_of(of_numbers(), torch.randn(9, 3), num_components=3),
        NUMBERS,
    ),
    "vamp, of classes": (
        lambda: vamp_of(of_classes(), torch.arange(9) % 4, num_components=4),
        CLASSES,
    ),
    "vamp, full gaussian": (lambda: vamp_of(FullGaussianEncoder(mlp(), 2), num_components=2), None),
    "vamp, flow": (
        lambda: vamp_of(FlowEncoder(gaussian(), Flow(2, hidden=(8,))), num_components=2),
        None,
    ),
    "vamp, spherical": (lambda: vamp_of(PowerSphericalEncoder(mlp(), 2), num_components=3), None),
    "fitted full gaussian": (lambda: fitted(FullGaussianPrior(3)), None),
    "fitted mixture": (lambda: fitted(MixturePrior((2, 1), num_components=2)), None),
    "fitted gaussian": (lambda: fitted(GaussianPrior(2)), None),
    "fitted flow": (lambda: fitted(flow(2, transforms=1)), NUMBERS),
    "density, not fitted": (lambda: FittedPrior(MixturePrior(1, num_components=2)), None),
}


@pytest.mark.parametrize("name", PRIORS)
def test_prior_contract(name):
    make, context = PRIORS[name]
    made = make()
    prior, encoder = made if isinstance(made, tuple) else (made, None)
    check_prior(prior, context, encoder=encoder)


@pytest.mark.slow
@for_each("name", PRIORS)
def test_prior_needs_no_float64(apple, name):
    make, context = PRIORS[name]
    made = make()
    parts = nn.ModuleList(made if isinstance(made, tuple) else (made,)).float().eval()
    prior, encoder = (*parts, None)[:2]
    with torch.no_grad():
        expected = prior(in_float32(context), encoder=encoder)
        z = expected.sample((3,))
        expected = expected.log_prob(z)
        parts.to("mps")
        p = prior(on_device(context), encoder=encoder)
    torch.testing.assert_close(p.log_prob(on_device(z)).cpu(), expected)
    assert p.sample((3,)).is_mps


# Formulas -----------------------------------------------------------------------------------------

# name: (prior, log density of z in numpy)
ELEMENTWISE = {
    "standard normal": (StandardNormal, scipy.stats.norm.logpdf),
    "gaussian": (GaussianPrior, scipy.stats.norm.logpdf),
    "standard laplace": (StandardLaplace, scipy.stats.laplace.logpdf),
}


@for_each("sample_shape", [(), (5,), (3, 5)])
@for_each("latent_shape", [3, (2, 3, 1)])
@for_each("name", ELEMENTWISE)
def test_standard_prior_log_prob(name, latent_shape, sample_shape):
    cls, log_density = ELEMENTWISE[name]
    prior = cls(latent_shape)
    z = torch.randn(*sample_shape, *prior.latent_shape)
    event = tuple(range(-len(prior.latent_shape), 0))
    expected = torch.from_numpy(log_density(z.numpy())).sum(event)
    torch.testing.assert_close(prior().log_prob(z), expected, rtol=1e-12, atol=1e-12)


@for_each("dtype", [torch.float32, torch.float64, torch.bfloat16])
@for_each("cls", [StandardNormal, StandardLaplace, SphereUniformPrior])
def test_constant_prior_follows_the_dtype(cls, dtype):
    prior = cls(3).to(dtype)
    assert prior().mean.dtype == prior().sample().dtype == dtype
    assert not prior.state_dict()


def test_standard_normal_ignores_the_context():
    prior = StandardNormal(2)
    assert prior(torch.randn(7, 3)).batch_shape == ()
    assert repr(prior) == "StandardNormal((2,))"


def test_mixture_prior_agrees_with_formula():
    prior, z = MixturePrior(2, num_components=3), torch.randn(7, 2)
    for parameter in prior.parameters():
        nn.init.normal_(parameter)
    weights = prior.logits.softmax(0)
    components = torch.distributions.Normal(prior.means, prior.log_std.exp())
    each = components.log_prob(z[:, None]).sum(2).exp()  # (7, M)
    torch.testing.assert_close(prior().log_prob(z), (each @ weights).log(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(prior().mean, weights @ prior.means)


def test_vamp_prior_is_the_mixture_of_posteriors():
    prior, encoder = vamp_of(of_classes(), torch.arange(9) % 4, num_components=4)
    weighted, _ = vamp_of(encoder, torch.arange(9) % 4, num_components=4, learned_weights=True)
    weighted.load_state_dict(prior.state_dict() | {"logits": torch.randn(4)})
    z = torch.randn(7, 2)
    each = torch.stack([q.log_prob(z) for q in _posteriors(encoder, prior)], 1)  # (7, 4)
    expected = each.logsumexp(1) - math.log(4)
    torch.testing.assert_close(prior(encoder=encoder).log_prob(z), expected)
    expected = (each + weighted.logits.log_softmax(0)).logsumexp(1)
    torch.testing.assert_close(weighted(encoder=encoder).log_prob(z), expected)


def _posteriors(encoder, prior):
    rows = zip(prior.inputs.split(1), prior.contexts.split(1), strict=True)
    return [encoder(x, context) for x, context in rows]


# VampPrior ----------------------------------------------------------------------------------------


def test_vamp_prior_of_all_data_costs_the_mutual_information():
    rows = 6
    encoder = GaussianEncoder(mlp(), 1)
    encoder.head.weight.data *= 4
    x = torch.randn(rows, 4)
    prior = VampPrior.from_data(encoder, x, num_components=rows)
    with torch.no_grad():
        q, p = encoder(x), prior(encoder=encoder)
        z = torch.linspace(-30, 30, 200_001).reshape(-1, 1, 1)  # (n, 1, 1)
        log_q = q.log_prob(z.expand(-1, rows, 1))  # (n, B)
        log_p = p.log_prob(z)  # (n, 1)
        step = z[1, 0, 0] - z[0, 0, 0]
        charged = (log_q.exp() * (log_q - log_p)).sum(0).mean() * step
        aggregate = log_q.logsumexp(1) - math.log(rows)
        # I(x; z) = H(z) - H(z given x), the latter in closed form.
        entropy = -(aggregate.exp() * aggregate).sum() * step
        log_std = q.base.log_std
    information = entropy - (log_std + 0.5 * math.log(2 * math.pi * math.e)).mean()
    torch.testing.assert_close(charged, information, rtol=1e-8, atol=1e-8)
    assert 0.1 < charged < math.log(rows)


def test_vamp_trains_encoder_and_inputs():
    prior, encoder = vamp_of(gaussian(), num_components=3, learned_weights=True)
    vae = VAE(encoder, MLP(2, out_shape=4), GaussianLikelihood(), prior)
    vae(torch.randn(5, 4)).latents[0].log_p.sum().backward()
    assert (prior.inputs.grad.abs().sum(1) > 0).all()
    assert prior.logits.grad.abs().max() > 0
    assert all(p.grad.abs().max() > 0 for p in encoder.parameters())


def test_vamp_from_data_draws_without_replacement():
    encoder, x, context = of_numbers(), torch.randn(9, 4), torch.randn(9, 3)
    prior = VampPrior.from_data(encoder, x, context, num_components=9)
    order = [int((x == row).all(1).nonzero()) for row in prior.inputs]
    assert sorted(order) == list(range(9))
    assert torch.equal(prior.contexts, context[order])


# Densities that are fitted ------------------------------------------------------------------------


def skewed(rows=300, dim=3):
    return torch.randn(rows, dim).exp() @ torch.randn(dim, dim) + 5


def test_fitted_prior_full_gaussian_matches_moments():
    z = skewed()
    prior = FittedPrior.fit(z, FullGaussianPrior(3))
    assert not any(parameter.requires_grad for parameter in prior.parameters())
    p = prior()
    covariance = torch.from_numpy(np.cov(z.numpy().T, ddof=0))
    torch.testing.assert_close(p.mean, z.mean(0), rtol=0, atol=1e-10)
    factor = p.scale[:, None] * p.base.scale_tril
    torch.testing.assert_close(factor @ factor.T, covariance, rtol=0, atol=1e-10)
    at = torch.randn(7, 3) * 3 + 5
    expected = MultivariateNormal(z.mean(0), covariance).log_prob(at)
    torch.testing.assert_close(p.log_prob(at), expected, rtol=1e-10, atol=1e-10)


def clusters(rows=600):
    centers = torch.tensor([[-8.0, 0.0], [8.0, 3.0], [0.0, -40.0]])
    kind = torch.arange(rows) % 3
    return centers[kind] + torch.tensor([[1.0, 0.3], [0.5, 2.0], [1.0, 1.0]])[kind] * torch.randn(
        rows, 2
    )


def test_fitted_prior_em_never_decreases():
    z, likelihoods = clusters(), []
    for steps in range(1, 25):
        torch.manual_seed(3)
        fit = FittedPrior.fit(z, MixturePrior(2, num_components=3), steps=steps)
        likelihoods.append(fit().log_prob(z).mean())
    rises = torch.stack(likelihoods).diff()
    assert (rises > -1e-10).all()
    assert rises.sum() > 0.1


def test_fitted_prior_em_agrees_with_sklearn():
    mixture = pytest.importorskip("sklearn.mixture")
    z = clusters()
    options = {"covariance_type": "diag", "n_init": 5, "random_state": 0, "tol": 1e-8}
    best = mixture.GaussianMixture(3, **options).fit(z.numpy()).score(z.numpy())
    got = []
    for seed in range(8):
        torch.manual_seed(seed)
        fit = FittedPrior.fit(z, MixturePrior(2, num_components=3))
        got.append(fit().log_prob(z).mean().item())
    assert max(got) == pytest.approx(best, abs=0.01)
    assert all(value < best + 0.01 for value in got)


@for_each("density", [lambda: flow(2), lambda: GaussianPrior(2)])
def test_fitted_prior_by_gradient(density):
    z = skewed(dim=2)
    before = FittedPrior.fit(z, density(), steps=1, learning_rate=0.0)().log_prob(z).mean()
    after = FittedPrior.fit(z, density(), steps=60, learning_rate=1e-2)().log_prob(z).mean()
    # Standardized data leave nothing to a Gaussian of independent elements.
    assert after > before + 0.3 if isinstance(density(), FlowPrior) else after > before - 1e-2


# Autoregressive prior -----------------------------------------------------------------------------


def autoregressive(dim=2):
    return perturbed(AutoregressivePrior(dim, hidden=(16, 16), num_components=3), 0.5).double()


def test_autoregressive_prior_starts_standardized():
    conditional = AutoregressivePrior(4, num_components=5).conditional(torch.randn(7, 4))
    torch.testing.assert_close(conditional.mean, torch.zeros(7, 4), rtol=0, atol=1e-6)
    torch.testing.assert_close(conditional.variance, torch.ones(7, 4), rtol=0, atol=1e-6)


def test_autoregressive_prior_reads_earlier_dimensions_only():
    prior = autoregressive(dim=4)
    slopes = sum(
        torch.autograd.functional.jacobian(lambda z: prior.conditional(z).mean, z).abs()
        for z in torch.randn(20, 4)
    )
    assert (slopes.triu() == 0).all()
    assert (slopes[*torch.tril_indices(4, 4, -1)] > 0).all()


def test_autoregressive_prior_integrates_to_one():
    grid = torch.linspace(-15, 15, 1001, dtype=torch.float64)
    z = torch.stack(torch.meshgrid(grid, grid, indexing="ij"), -1)
    mass = autoregressive()().log_prob(z).exp().sum() * (grid[1] - grid[0]) ** 2
    assert mass.item() == pytest.approx(1, abs=1e-6)


def test_autoregressive_prior_is_finite_far_from_the_data():
    far = torch.tensor([[1e7, -1e7], [-1e7, 3.0]], dtype=torch.float32)
    assert torch.isfinite(autoregressive().float()().log_prob(far)).all()


def test_autoregressive_prior_fits_clusters():
    z = clusters()
    prior = AutoregressivePrior(2, hidden=(32,), num_components=4)
    fit = FittedPrior.fit(z, prior, steps=400, learning_rate=1e-2)
    mixture = FittedPrior.fit(z, MixturePrior(2, num_components=3))
    assert fit().log_prob(z).mean() > mixture().log_prob(z).mean() - 0.1


# Sampling given a context -------------------------------------------------------------------------


def sampling(prior, context, encoder=None):
    """Return a model with the prior, whose decoder reads the context."""
    classes = not context.is_floating_point()
    like = {"num_classes": 4} if classes else {"context_dim": 3}
    width = prior.latent_shape.numel() + (4 if classes else 3)
    decoder = ConcatContext(MLP(width, out_shape=(2, 2)), **like)
    encoder = encoder or GaussianEncoder(mlp(), tuple(prior.latent_shape))
    return VAE(encoder, decoder, BernoulliLikelihood(), prior)


GIVEN = {
    "standard normal": (lambda: StandardNormal(2), NUMBERS),
    "standard normal, classes": (lambda: StandardNormal(2), CLASSES),
    "mixture, classes": (lambda: MixturePrior(2, num_components=3), CLASSES),
} | {name: PRIORS[name] for name, (_, context) in PRIORS.items() if context is not None}


@for_each("name", GIVEN)
def test_sample_draws_for_each_row_of_context(name):
    make, context = GIVEN[name]
    made = make()
    prior, encoder = made if isinstance(made, tuple) else (made, None)
    vae = sampling(prior, context, encoder)
    assert vae.sample(3, context=context).shape == (3, 5, 2, 2)
    assert vae.sample(1, context=context[:1], mean=True).shape == (1, 1, 2, 2)


def test_conditional_prior_encodes_the_context():
    encoder = GaussianEncoder(mlp(3), 2)
    z, prior = torch.randn(5, 2), ConditionalPrior(encoder)
    assert torch.equal(prior(NUMBERS).log_prob(z), encoder(NUMBERS).log_prob(z))


# Combinations of priors ---------------------------------------------------------------------------


def test_joint_prior_samples_conditional_and_plain_parts():
    prior = JointPrior({"a": ConditionalPrior(GaussianEncoder(mlp(3), 2)), "b": StandardNormal(1)})
    draws = prior(NUMBERS).sample((3,))
    assert draws.shape == (3, 5, 3)
    assert draws[:, :, 2].unique().numel() == 15


def test_joint_prior_passes_encoders_to_its_parts():
    encoder = JointEncoder({"a": gaussian()})
    JointPrior({"a": VampPrior(2, input_shape=4, num_components=3)})(encoder=encoder).sample((3,))


def test_joint_prior_keeps_the_order_of_its_parts():
    encoder = JointEncoder({"a": gaussian(1), "b": gaussian(1)})
    prior = JointPrior({"b": StandardNormal(1), "a": StandardNormal(1)})
    with pytest.raises(ValueError, match="order"):
        VAE(encoder, MLP(2, out_shape=4), BernoulliLikelihood(), prior).check(torch.zeros(2, 4))


# Errors -------------------------------------------------------------------------------------------

ERRORS = {
    "sphere of numbers": (
        lambda: SphereUniformPrior(1),
        ValueError,
        r"SphereUniformPrior expects a vector of 2 or more coordinates, got \(1,\)",
    ),
    "sphere of maps": (
        lambda: SphereUniformPrior((2, 2)),
        ValueError,
        r"2 or more coordinates, got \(2, 2\)",
    ),
    "no component": (
        lambda: MixturePrior(2, num_components=0),
        ValueError,
        "MixturePrior expects num_components >= 1, got 0",
    ),
    "autoregressive, no component": (
        lambda: AutoregressivePrior(2, num_components=0),
        ValueError,
        "AutoregressivePrior expects num_components >= 1, got 0",
    ),
    "autoregressive, one dimension": (
        lambda: AutoregressivePrior(1),
        ValueError,
        r"AutoregressivePrior expects a vector of 2 or more dimensions, got \(1,\)",
    ),
    "one class": (
        lambda: CategoricalPrior(1),
        ValueError,
        "CategoricalPrior expects num_classes >= 2, got 1",
    ),
    "temperature": (
        lambda: GumbelSoftmaxPrior(3, temperature=0.0),
        ValueError,
        "GumbelSoftmaxPrior expects temperature > 0, got 0.0",
    ),
    "no pseudo-input": (
        lambda: VampPrior(2, input_shape=4, num_components=0),
        ValueError,
        "VampPrior expects num_components >= 1, got 0",
    ),
    "few examples": (
        lambda: VampPrior.from_data(gaussian(), torch.randn(3, 4), num_components=5),
        ValueError,
        "at least num_components = 5 examples.* got 3: give more, or num_components=3",
    ),
    "vamp without encoder": (
        lambda: VampPrior(2, input_shape=4, num_components=3)(),
        ValueError,
        r"VampPrior expects an encoder, got None: call prior\(encoder=vae.encoder\)",
    ),
    "conditional on a network": (
        lambda: ConditionalPrior(mlp()),
        TypeError,
        r"expects an encoder of the context, got a MLP: wrap a network, GaussianEncoder\(",
    ),
    "conditional on nothing": (
        lambda: ConditionalPrior(gaussian())(),
        ValueError,
        "ConditionalPrior expects a context, got None: give context=",
    ),
    "flow of nothing": (
        lambda: flow(2, context_dim=3)(),
        ValueError,
        r"FlowPrior expects a context \(B, 3\), got None: give context=",
    ),
    "joint of nothing": (lambda: JointPrior({}), TypeError, r"expects priors by name, got \{\}"),
    "joint of encoders": (
        lambda: JointPrior({"a": gaussian()}),
        TypeError,
        "JointPrior expects priors by name, got .*GaussianEncoder",
    ),
    "codes without codebook": (
        lambda: CodePrior(6, latent_dim=2)(encoder=gaussian()),
        ValueError,
        r"codebook of a VectorQuantizedEncoder, got GaussianEncoder: call prior\(encoder=",
    ),
    "other codes": (
        lambda: CodePrior(6, latent_dim=(2, 3)).fit(torch.zeros(5, 2, dtype=torch.long)),
        ValueError,
        r"expects codes \(N, \*\(3,\)\), got \(5, 2\): give vae.encode\(x\).codes",
    ),
    "latents of another shape": (
        lambda: FittedPrior.fit(torch.randn(9, 3), GaussianPrior(2)),
        ValueError,
        r"two or more latents \(N, \*\(2,\)\), got \(9, 3\): z = vae.encode\(x\).sample",
    ),
    "one latent": (
        lambda: FittedPrior.fit(torch.randn(1, 2), GaussianPrior(2)),
        ValueError,
        r"two or more latents .* got \(1, 2\)",
    ),
    "a constant": (
        lambda: FittedPrior.fit(torch.randn(9, 2) * torch.tensor([1, 0]), GaussianPrior(2)),
        ValueError,
        "expects latents that vary in every dimension, got a constant",
    ),
}


@for_each("case", ERRORS)
def test_prior_names_the_remedy(case):
    make, error, message = ERRORS[case]
    with pytest.raises(error, match=message):
        make()


def test_prior_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Prior()


# Regressions --------------------------------------------------------------------------------------


def test_conditional_joint_prior_in_another_order_is_refused():
    parts = {name: GaussianEncoder(ConcatContext(mlp(4 + 2), context_dim=2), 1) for name in "ab"}
    prior = ConditionalPrior(JointEncoder({name: GaussianEncoder(mlp(2), 1) for name in "ba"}))
    decoder = ConcatContext(MLP(2 + 2, out_shape=4), context_dim=2)
    vae = VAE(JointEncoder(parts), decoder, BernoulliLikelihood(), prior)
    with pytest.raises(ValueError, match="in their order"):
        vae.check(torch.zeros(2, 4), torch.zeros(2, 2))


def test_joint_of_real_parts_accepts_a_plain_prior():
    encoder = JointEncoder({"a": gaussian(1), "b": gaussian(2)})
    vae = VAE(encoder, MLP(3, out_shape=4), BernoulliLikelihood())
    assert [term.name for term in vae.check(torch.zeros(2, 4)).latents] == ["z"]


def test_conditional_categorical_prior_has_a_closed_form():
    q = CategoricalEncoder(mlp(), 3)(torch.randn(5, 4))
    p = ConditionalPrior(CategoricalEncoder(mlp(), 3))(torch.randn(5, 4))
    assert (kl_divergence(q, p) >= 0).all()
    assert not kl_divergence(p, p).any()


def test_vamp_keeps_a_scalar_context():
    context = torch.tensor([0.13, 0.41, 0.77])
    prior = VampPrior.from_data(gaussian(), torch.randn(3, 4), context, num_components=3)
    assert sorted(prior.contexts.tolist()) == context.tolist()


@for_each("dtype", [torch.float32, torch.float64])
def test_vamp_from_data_has_the_precision_of_the_encoder(dtype):
    torch.set_default_dtype(torch.float32)  # a fixture restores it
    encoder, x = gaussian().to(dtype), 1e6 + torch.rand(3, 4, dtype=torch.float64)
    prior = VampPrior.from_data(encoder, x, num_components=3)
    torch.testing.assert_close(prior.inputs.sort(0).values.detach(), x.to(dtype).sort(0).values)
    assert prior(encoder=encoder).log_prob(torch.zeros(2, dtype=dtype)).dtype == dtype
    context = torch.rand(3, 2, dtype=torch.float64)
    prior = VampPrior.from_data(encoder, x, context, num_components=3)
    assert prior.contexts.dtype == dtype
    classes = VampPrior.from_data(encoder, x, torch.arange(3), num_components=3)
    assert classes.contexts.dtype == torch.int64


def test_vamp_from_data_refuses_nan():
    with pytest.raises(ValueError, match=r"got NaN or infinity: give .*encoder_input\(data\)"):
        VampPrior.from_data(gaussian(), torch.full((3, 4), torch.nan), num_components=3)


def test_failing_prior_is_named_in_the_error():
    vae = VAE(
        gaussian(),
        MLP(2, out_shape=4),
        BernoulliLikelihood(),
        VampPrior(2, input_shape=7, num_components=3),
    )
    with pytest.raises(ValueError, match="the prior fails for this context and encoder"):
        vae.check(torch.zeros(2, 4))


@for_each(
    "description",
    [
        {"part": "FlowPrior", "config": {"flow": 5}},
        {"part": "FittedPrior", "config": {"density": 5}},
        {
            "part": "JointPrior",
            "config": {"priors": [["training", describe_part(StandardNormal(1))]]},
        },
        {"part": "GaussianEncoder", "config": {"network": "x", "latent_dim": 2, "features": 8}},
        {
            "part": "ResNet",
            "config": describe_part(ResNet((1, 8, 8)))["config"] | {"blocks": 10**9},
        },
        {"part": "Flow", "config": describe_part(Flow(2))["config"] | {"hidden": [30000, -30000]}},
        {
            "part": "Flow",
            "config": describe_part(Flow(2))["config"] | {"dim": 20000, "hidden": [1]},
        },
        {"part": "Flow", "config": describe_part(Flow(2))["config"] | {"transforms": 10**7}},
    ],
)
def test_hostile_descriptions_are_refused(description):
    with pytest.raises(CheckpointError):
        build_part(description, name="prior")


def test_code_prior_of_frequencies_is_exact_if_the_default_dtype_is_float32():
    prior = CodePrior(3, latent_dim=2)
    torch.set_default_dtype(torch.float32)
    prior.fit(torch.tensor([0, 0, 1]))
    assert prior.logits.tolist() == [math.log(3), math.log(2), 0.0]
