import pytest
import torch
from helpers.cases import for_each
from torch import nn

from tinyvae import (
    MLP,
    VAE,
    BernoulliLikelihood,
    CategoricalLikelihood,
    GaussianEncoder,
    GaussianLikelihood,
    TransposedConvNet,
    TransposedResNet,
)
from tinyvae.likelihoods import (
    BetaBinomialLikelihood,
    BetaLikelihood,
    Column,
    ContinuousBernoulliLikelihood,
    DiscretizedLogisticLikelihood,
    HurdleLikelihood,
    LaplaceLikelihood,
    LogitNormalLikelihood,
    LogNormalLikelihood,
    MaskedLikelihood,
    MixedLikelihood,
    MixtureLikelihood,
    MultinomialLikelihood,
    NegativeBinomialLikelihood,
    OneHotLikelihood,
    OptimalGaussianLikelihood,
    OrdinalLikelihood,
    PoissonLikelihood,
    StandardizedLikelihood,
    StudentTLikelihood,
    ZeroInflatedLikelihood,
)
from tinyvae.networks import ConcatContext

N = 4000


pytestmark = pytest.mark.usefixtures("float64")


def started(likelihood, x, decoder=None):
    """Return a VAE that starts from the mean of ``x``, with the same output for every z."""
    shape = x.shape[1:]
    decoder = decoder or MLP(2, hidden=(5,), out_shape=likelihood.param_shape(shape))
    encoder = GaussianEncoder(MLP(likelihood.input_shape(shape), hidden=(5,)), 2)
    vae = VAE(encoder, decoder, likelihood)
    vae.init_output_bias(x)
    weighted = [m for m in vae.decoder.modules() if isinstance(m, (nn.Linear, nn.ConvTranspose2d))]
    with torch.no_grad():
        weighted[-1].weight.zero_()
    return vae


def uniform():
    return torch.rand(N, 3)


def counts():
    return (9 * torch.rand(N, 3)).round()


def one_hot():
    return torch.eye(3)[torch.multinomial(torch.tensor([0.2, 0.3, 0.5]), N, replacement=True)]


# name: likelihood, data, tolerance of the mean (0.5 / N if half a count is added)
CASES = {
    "Gaussian": (GaussianLikelihood, uniform, 1e-12),
    "predicted": (lambda: GaussianLikelihood("predicted"), uniform, 1e-12),
    "optimal": (OptimalGaussianLikelihood, uniform, 1e-12),
    "Laplace": (LaplaceLikelihood, uniform, 1e-12),
    "Student t": (StudentTLikelihood, uniform, 1e-12),
    "Bernoulli": (BernoulliLikelihood, lambda: (uniform() > 0.7).double(), 2e-4),
    "continuous Bernoulli": (ContinuousBernoulliLikelihood, lambda: uniform() ** 3, 2e-4),
    "Beta": (BetaLikelihood, lambda: uniform() ** 2, 1e-12),
    "Poisson": (lambda: PoissonLikelihood(2.0), counts, 1e-12),
    "negative binomial": (
        lambda: NegativeBinomialLikelihood("predicted", baseline=[1.0, 2.0, 3.0]),
        counts,
        1e-12,
    ),
    "zero-inflated": (lambda: ZeroInflatedLikelihood(PoissonLikelihood()), counts, 1e-12),
    "beta-binomial": (lambda: BetaBinomialLikelihood([9, 12, 20]), counts, 2e-3),
    "multinomial": (
        lambda: MultinomialLikelihood(9),
        lambda: torch.distributions.Multinomial(9, torch.tensor([0.2, 0.3, 0.5])).sample((N,)),
        1e-3,
    ),
    "ordinal": (lambda: OrdinalLikelihood(10, shape=(3,)), counts, 2e-3),
    "hurdle": (
        lambda: HurdleLikelihood(GaussianLikelihood("predicted"), at=(0.0, 0.5)),
        lambda: uniform().masked_fill(uniform() > 0.7, 0.5).masked_fill(uniform() > 0.8, 0.0),
        2e-4,
    ),
    "hurdle without other values": (
        lambda: HurdleLikelihood(LogNormalLikelihood(1e-6)),
        lambda: torch.zeros(N, 3),
        1e-3,
    ),
    "mixture": (
        lambda: MixtureLikelihood(GaussianLikelihood("predicted"), num_components=3),
        uniform,
        1e-12,
    ),
    "classes": (lambda: CategoricalLikelihood(4), lambda: (3.99 * uniform()).floor(), 1e-3),
    "one-hot": (OneHotLikelihood, one_hot, 1e-3),
    "standardized": (
        lambda: StandardizedLikelihood(GaussianLikelihood(), mean=170.0, std=10.0),
        lambda: 170 + uniform(),
        1e-10,
    ),
    "masked": (
        lambda: MaskedLikelihood(GaussianLikelihood()),
        lambda: uniform().masked_fill(uniform() > 0.9, torch.nan),
        1e-12,
    ),
}


@for_each("name", CASES)
def test_init_output_bias_starts_at_the_data_mean(name):
    make, data, tolerance = CASES[name]
    x = data()
    vae = started(make(), x)
    mean = vae.decode(torch.randn(2, 2)).mean
    torch.testing.assert_close(mean, x.nanmean(0).expand_as(mean), rtol=0, atol=tolerance)


def test_init_output_bias_starts_near_the_mean_level():
    x = (15 * torch.rand(N, 3)).round()
    mean = started(DiscretizedLogisticLikelihood(16, scale=0.05), x).decode(torch.zeros(1, 2)).mean
    torch.testing.assert_close(mean, x.mean(0)[None], rtol=0, atol=1e-2)


def test_init_output_bias_of_log_normal_data():
    x = uniform().exp()
    median = started(LogNormalLikelihood(1e-6), x).decode(torch.zeros(1, 2)).mean
    torch.testing.assert_close(median, x.log().mean(0).exp()[None], rtol=0, atol=1e-9)


def test_init_output_bias_of_logit_normal_data():
    x = uniform().clamp(0.01, 0.99)
    mean = started(LogitNormalLikelihood(1e-6), x).decode(torch.zeros(1, 2)).mean
    expected = torch.sigmoid(torch.logit(x).mean(0))[None]
    torch.testing.assert_close(mean, expected, rtol=0, atol=1e-9)


def test_init_output_bias_of_a_table():
    columns = [
        Column("age", "number", shift=40.0, scale=12.0),
        Column("visits", "count", scale=2.0),
        Column("smokes", "binary", levels=("no", "yes")),
    ]
    x = torch.stack([40 + 12 * torch.randn(N), counts()[:, 0], torch.bernoulli(uniform())[:, 0]], 1)
    mean = started(MixedLikelihood(columns), x).decode(torch.zeros(1, 2)).mean
    torch.testing.assert_close(mean, x.mean(0)[None], rtol=0, atol=1e-3)


def test_init_output_bias_of_black_pixels_is_finite():
    vae = started(BernoulliLikelihood(), torch.zeros(50, 3))
    assert vae.decode(torch.zeros(1, 2)).mean.tolist() == [[pytest.approx(0.5 / 51)] * 3]
    vae = started(PoissonLikelihood(), torch.zeros(50, 3))
    assert vae.decode(torch.zeros(1, 2)).mean.tolist() == [[pytest.approx(1e-3)] * 3]


def test_init_output_bias_of_a_convolution_is_the_logit_of_the_mean():
    x = torch.zeros(50, 1, 8, 8)
    x[:25, :, 2:6, 2:6] = 1.0
    decoder = TransposedConvNet(2, (1, 8, 8), channels=(8,))
    mean = started(BernoulliLikelihood(), x, decoder).decode(torch.zeros(1, 2)).mean
    assert mean.flatten().tolist() == pytest.approx([x.mean().item()] * 64, abs=2e-4)


def test_init_output_bias_of_unobserved_entries_is_zero():
    x = torch.randn(20, 3)
    x[:, 1] = torch.nan
    bias = started(MaskedLikelihood(GaussianLikelihood()), x).decoder.layers[-1].bias
    torch.testing.assert_close(
        bias, torch.stack([x[:, 0].mean(), torch.tensor(0.0), x[:, 2].mean()])
    )


def test_init_output_bias_of_black_gray_levels_is_finite():
    vae = started(ContinuousBernoulliLikelihood(), torch.zeros(50, 3))
    assert vae.decode(torch.zeros(1, 2)).mean.tolist() == [[pytest.approx(0.5 / 51)] * 3]


@for_each("network", [TransposedConvNet, TransposedResNet])
@for_each("likelihood", [GaussianLikelihood(), GaussianLikelihood("predicted")])
def test_init_output_bias_of_a_convolution_starts_at_the_channel_means(network, likelihood):
    x = torch.rand(100, 2, 4, 6) + torch.tensor([0.0, 5.0])[:, None, None]
    decoder = network(2, likelihood.param_shape((2, 4, 6)), channels=(8,))
    bias = started(likelihood, x, decoder).decoder.layers[-1].bias[:2]
    torch.testing.assert_close(bias, x.mean((0, 2, 3)))


def test_init_output_bias_accepts_integers():
    x = torch.randint(0, 2, (60, 3), dtype=torch.uint8)
    same = started(BernoulliLikelihood(), x.double()).decoder.layers[-1].bias
    assert torch.equal(started(BernoulliLikelihood(), x).decoder.layers[-1].bias, same)


def test_init_output_bias_of_a_conditional_decoder():
    vae = VAE(
        GaussianEncoder(MLP(3), 2),
        ConcatContext(MLP(4, hidden=(5,), out_shape=3), context_dim=2),
        GaussianLikelihood(),
    )
    x = uniform()
    vae.init_output_bias(x)
    assert torch.equal(vae.decoder.network.layers[-1].bias, x.mean(0))


def convolution(dims, *, transposed=False, lazy=False):
    """Return a decoder of 2 latents, with two channels of size 4 in each of ``dims`` dimensions."""
    seed = [nn.Linear(2, 3 * 4**dims), nn.Unflatten(1, (3, *[4] * dims)), nn.ReLU()]
    name = f"{'Lazy' if lazy else ''}Conv{'Transpose' if transposed else ''}{dims}d"
    channels = (2,) if lazy else (3, 2)
    return nn.Sequential(*seed, getattr(nn, name)(*channels, 3, padding=1))


def zero_last_weight(decoder):
    last = [m for m in decoder.modules() if hasattr(m, "weight")][-1]
    with torch.no_grad():
        last.weight.zero_()


@for_each("dims", [1, 2, 3])
@for_each("transposed", [False, True])
@for_each("lazy", [False, True])
def test_init_output_bias_of_a_convolution_of_any_dimension(dims, transposed, lazy):
    x = torch.rand(50, 2, *[4] * dims) + torch.tensor([0.0, 5.0]).reshape(2, *[1] * dims)
    decoder = convolution(dims, transposed=transposed, lazy=lazy)
    vae = VAE(GaussianEncoder(MLP(x.shape[1:]), 2), decoder, GaussianLikelihood())
    vae.check(x)
    vae.init_output_bias(x)
    zero_last_weight(decoder)
    expected = x.mean((0, *range(2, dims + 2))).reshape(2, *[1] * dims).expand(1, *x.shape[1:])
    torch.testing.assert_close(vae.decode(torch.zeros(1, 2)).mean, expected)


# Decoders of data (4, 3): per position from the features, and flat with the shape given at the end.
SEQUENCES = {
    "per position": lambda: nn.Sequential(
        nn.Linear(2, 20), nn.Unflatten(1, (4, 5)), nn.Linear(5, 3)
    ),
    "unflatten": lambda: nn.Sequential(nn.Linear(2, 12), nn.Unflatten(1, (4, 3))),
    "spectral norm": lambda: nn.Sequential(
        torch.nn.utils.parametrizations.spectral_norm(nn.Linear(2, 12)), nn.Unflatten(1, (4, 3))
    ),
}


@for_each("name", SEQUENCES)
def test_init_output_bias_of_a_sequence(name):
    x = torch.rand(50, 4, 3)
    vae = VAE(GaussianEncoder(MLP((4, 3)), 2), SEQUENCES[name](), GaussianLikelihood())
    vae.init_output_bias(x)
    bias = [m for m in vae.decoder.modules() if isinstance(m, nn.Linear)][-1].bias
    expected = x.mean((0, 1)) if name == "per position" else x.mean(0).flatten()
    torch.testing.assert_close(bias.detach(), expected)


def test_init_output_bias_of_a_layer_without_size_says_how_to_set_it():
    vae = VAE(GaussianEncoder(MLP((2, 4)), 2), convolution(1, lazy=True), GaussianLikelihood())
    with pytest.raises(ValueError, match=r"LazyConv1d.* no size yet: pass data through the model"):
        vae.init_output_bias(torch.rand(5, 2, 4))


# Decoder: the end that the error names.
UNFIT = {
    "without bias": (lambda: nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3, bias=False)), "Linear"),
    "another size": (lambda: MLP(2, hidden=(3,), out_shape=5), "5 biases in Linear"),
    "normalized": (lambda: nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), "BatchNorm1d"),
    "no layer": (nn.Identity, "None at the end of Identity"),
}


@for_each("name", UNFIT)
def test_init_output_bias_refuses_a_decoder_without_a_fitting_bias(name):
    make, end = UNFIT[name]
    vae = VAE(GaussianEncoder(MLP(3), 2), make(), GaussianLikelihood())
    with pytest.raises(ValueError, match=rf"ends in a linear .* layer with a bias.* got {end}"):
        vae.init_output_bias(uniform())
