"""Data far from those of training: log p(x) is very low there, and nothing is NaN."""

import torch
from helpers.cases import for_each
from torch import nn

from tinyvae import (
    ELBO,
    MLP,
    VAE,
    BernoulliLikelihood,
    ConvNet,
    GaussianEncoder,
    GaussianLikelihood,
    ResNet,
    TransposedConvNet,
    TransposedResNet,
)
from tinyvae.core import Batch
from tinyvae.encoders import (
    CategoricalEncoder,
    DeterministicEncoder,
    FlowEncoder,
    FullGaussianEncoder,
    GumbelSoftmaxEncoder,
    JointEncoder,
    LaplaceEncoder,
    LowRankGaussianEncoder,
    PowerSphericalEncoder,
)
from tinyvae.encoders.quantized import VectorQuantizedEncoder
from tinyvae.evaluation import log_marginal
from tinyvae.flows import Flow, PlanarFlow, RadialFlow
from tinyvae.likelihoods import (
    Column,
    LaplaceLikelihood,
    LogNormalLikelihood,
    MaskedLikelihood,
    MixedLikelihood,
    MixtureLikelihood,
    NegativeBinomialLikelihood,
    OptimalGaussianLikelihood,
    PoissonLikelihood,
    StandardizedLikelihood,
    StudentTLikelihood,
    ZeroInflatedLikelihood,
)
from tinyvae.models import BottomUpVAE, LadderVAE
from tinyvae.networks import ConcatContext
from tinyvae.priors import (
    CategoricalPrior,
    CodePrior,
    FullGaussianPrior,
    GumbelSoftmaxPrior,
    JointPrior,
    SphereUniformPrior,
    StandardNormal,
)


def network(size=4):
    return MLP(size, hidden=(8,))


def gaussian(size=4, latent_dim=3):
    return GaussianEncoder(network(size), latent_dim)


def full(size=4, latent_dim=3):
    return FullGaussianEncoder(network(size), latent_dim)


def low_rank(size=4, latent_dim=3):
    return LowRankGaussianEncoder(network(size), latent_dim, rank=2)


def joint():
    return JointEncoder(
        {"full": full(8), "class": CategoricalEncoder(network(8), num_classes=3)},
        network=network(),
    )


# Encoder and prior of data (4,).
ENCODERS = {
    "gaussian": lambda: (gaussian(), None),
    "full": lambda: (full(latent_dim=8), FullGaussianPrior(8)),
    "low rank": lambda: (low_rank(latent_dim=8), None),
    "laplace": lambda: (LaplaceEncoder(network(), 3), None),
    "point": lambda: (DeterministicEncoder(network(), 3), None),
    "spline": lambda: (FlowEncoder(gaussian(), Flow(3, context_dim=8)), None),
    "affine": lambda: (FlowEncoder(full(), Flow(3, kind="affine", context_dim=8)), None),
    "planar": lambda: (FlowEncoder(gaussian(), PlanarFlow(3, context_dim=8)), None),
    "radial": lambda: (FlowEncoder(low_rank(), RadialFlow(3, context_dim=8)), None),
    "classes": lambda: (CategoricalEncoder(network(), 3), CategoricalPrior(3)),
    "relaxed": lambda: (GumbelSoftmaxEncoder(network(), 3), GumbelSoftmaxPrior(3)),
    "sphere": lambda: (PowerSphericalEncoder(network(), 5), SphereUniformPrior(5)),
    "codes": lambda: (
        VectorQuantizedEncoder(network(), num_codes=5, latent_dim=(2, 3), decay=None),
        CodePrior(5, latent_dim=(2, 3)),
    ),
    "joint": lambda: (
        joint(),
        JointPrior({"full": StandardNormal(3), "class": CategoricalPrior(3)}),
    ),
}
REAL = {
    "gaussian": GaussianLikelihood,
    "predicted": lambda: GaussianLikelihood("predicted"),
    "optimal": OptimalGaussianLikelihood,
    "laplace": lambda: LaplaceLikelihood("predicted"),
    "student": lambda: StudentTLikelihood("predicted"),
    "df": lambda: StudentTLikelihood("predicted", df="predicted"),
    "mixture": lambda: MixtureLikelihood(GaussianLikelihood("predicted"), num_components=3),
    "standardized": lambda: StandardizedLikelihood(StudentTLikelihood(), mean=3.0, std=2.0),
    "masked": lambda: MaskedLikelihood(StudentTLikelihood()),
    "table": lambda: MixedLikelihood([Column(name, "number") for name in "abcd"]),
}
POSITIVE = {
    "log-normal": lambda: LogNormalLikelihood("predicted"),
    "poisson": PoissonLikelihood,
    "negative binomial": lambda: NegativeBinomialLikelihood("predicted"),
    "zero-inflated": lambda: ZeroInflatedLikelihood(NegativeBinomialLikelihood("predicted")),
}
DTYPES = (torch.float32, torch.float64)


def far_rows(dtype, *, positive=False):
    """Return an ordinary example, and examples with one value or all values far away, (N, 4)."""
    x = torch.tensor([1.0, 2.0, 3.0, 4.0] if positive else [0.5, -0.2, 0.1, 1.0], dtype=dtype)
    rows = [x]
    for size in (1e4, 1e8, 1e16, 1e30, torch.finfo(dtype).max):
        one = x.clone()
        one[2] = size
        rows += [one, torch.full_like(x, size)]
        if not positive:
            rows += [-one, -rows[-1], torch.tensor([size, -size, size, -size], dtype=dtype)]
    return torch.stack(rows)


def check_far(vae, x, context=None):
    """Check densities, draws, bounds and validation losses of examples, the first one ordinary."""
    vae.eval()
    evidence = log_marginal(vae, x, context, num_samples=20)
    assert evidence[0].isfinite()
    if context is None:
        assert (evidence[1:] < evidence[0] - 5).all(), evidence  # false for NaN
    assert (evidence < torch.inf).all(), evidence
    with torch.no_grad():
        output = vae(x, context, num_samples=5)
    for term in output.latents:
        assert term.z.isfinite().all(), term
        assert term.log_q.isfinite().all(), term
        assert (term.kl() > -torch.inf).all(), term  # false for NaN
    with torch.no_grad():
        loss = ELBO()(vae, Batch(x, context)).losses["model"]
    assert loss > -torch.inf, loss


@for_each("dtype", DTYPES)
@for_each("name", ENCODERS)
@for_each("likelihood", REAL | POSITIVE)
def test_vae_scores_far_data_very_low(name, likelihood, dtype):
    encoder, prior = ENCODERS[name]()
    decoder = MLP(encoder.latent_shape, hidden=(8,))
    vae = VAE(encoder, decoder, (REAL | POSITIVE)[likelihood](), prior, data_shape=(4,)).to(dtype)
    check_far(vae, far_rows(dtype, positive=likelihood in POSITIVE))


def hierarchy(make):
    return lambda: BottomUpVAE(
        [make(), make(3, 6)], [make(6)], MLP(3, (8,)), StudentTLikelihood(), data_shape=(4,)
    )


MODELS = {
    "bottom-up": hierarchy(gaussian),
    "bottom-up, full": hierarchy(full),
    "bottom-up, low rank": hierarchy(low_rank),
    "ladder": lambda: LadderVAE(
        [gaussian(), gaussian(8, 2)],
        [gaussian(2)],
        MLP(3, (8,)),
        StudentTLikelihood(),
        data_shape=(4,),
    ),
    "normalized": lambda: VAE(
        GaussianEncoder(MLP(4, (8, 8), normalize=True, activation=nn.GELU), 3),
        MLP(3, (8, 8), normalize=True, activation=nn.SiLU),
        StudentTLikelihood(),
    ),
}


@for_each("dtype", DTYPES)
@for_each("name", MODELS)
def test_hierarchy_or_network_scores_far_data_very_low(name, dtype):
    check_far(MODELS[name]().to(dtype), far_rows(dtype))


@for_each("dtype", DTYPES)
@for_each("encoder, decoder", [(ConvNet, TransposedConvNet), (ResNet, TransposedResNet)])
def test_convolutions_score_far_images_very_low(encoder, decoder, dtype):
    vae = VAE(
        GaussianEncoder(encoder((1, 8, 8), (4, 8)), 3),
        decoder(3, channels=(8, 4)),
        StudentTLikelihood(),
    )
    check_far(vae.to(dtype), far_rows(dtype).repeat(1, 16).reshape(-1, 1, 8, 8))


@for_each("dtype", DTYPES)
def test_context_far_from_the_data_gives_finite_posteriors(dtype):
    vae = VAE(
        GaussianEncoder(ConcatContext(MLP(6, (8,)), context_dim=2), 3),
        ConcatContext(MLP(5, (8,)), context_dim=2),
        StudentTLikelihood(),
        data_shape=(4,),
    ).to(dtype)
    context = far_rows(dtype)[:, :2].contiguous()
    check_far(vae, far_rows(dtype)[:1].expand(len(context), -1), context)


@for_each("dtype", DTYPES)
@for_each("likelihood", [BernoulliLikelihood, *REAL.values(), *POSITIVE.values()])
def test_decode_far_latents_gives_densities(likelihood, dtype):
    decoder = MLP(3, (8, 8), normalize=True)
    vae = VAE(gaussian(), decoder, likelihood(), data_shape=(4,)).to(dtype)
    p = vae.decode(far_rows(dtype)[:, :3].contiguous())
    log_p = p.log_prob(torch.ones(4, dtype=dtype))
    assert (log_p < torch.inf).all(), log_p  # false for NaN


@for_each("dtype", DTYPES)
@for_each("make", [gaussian, full, low_rank, lambda: LaplaceEncoder(network(), 3)])
def test_posterior_far_from_the_data_keeps_its_scale_in_range(make, dtype):
    q, eps = make().to(dtype).eval()(far_rows(dtype)), torch.finfo(dtype).eps
    parameters = vars(getattr(q, "base", q))
    scales = [
        parameters[name].exp()
        for name in parameters.keys() & {"log_std", "log_scale", "log_diagonal"}
    ]
    assert all((scale > eps / 1.1).all() for scale in scales)
    assert len(scales) == 1
    scales += [parameters[name].abs() for name in parameters.keys() & {"scale_tril", "factor"}]
    assert all((scale < 1.1 / eps).all() for scale in scales)
    assert q.mean.isfinite().all()


def test_scale_in_training_mode_is_not_bounded():
    encoder = gaussian()
    encoder.head.bias.data[3:] = 100.0
    assert (encoder.train()(torch.zeros(1, 4)).base.log_std > 90).all()
    assert (encoder.eval()(torch.zeros(1, 4)).base.log_std < 40).all()
    encoder.head.bias.data[3:] = 0.25
    assert encoder.posterior(torch.zeros(1, 8)).base.log_std.tolist() == [[0.25] * 3]
