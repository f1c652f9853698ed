"""Small models, and every encoder with every prior."""

import itertools

import torch
from torch import nn

from tinyvae import (
    MLP,
    VAE,
    BernoulliLikelihood,
    ConvNet,
    Encoder,
    GaussianEncoder,
    GaussianLikelihood,
    Prior,
    StandardNormal,
    TransposedConvNet,
    VampPrior,
)
from tinyvae.distributions import Independent, Normal
from tinyvae.encoders import (
    CategoricalEncoder,
    FlowEncoder,
    FullGaussianEncoder,
    GumbelSoftmaxEncoder,
    JointEncoder,
    LaplaceEncoder,
    LowRankGaussianEncoder,
    PowerSphericalEncoder,
)
from tinyvae.encoders.quantized import VectorQuantizedEncoder
from tinyvae.flows import Flow
from tinyvae.likelihoods import Learned
from tinyvae.priors import (
    AutoregressivePrior,
    CategoricalPrior,
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
from tinyvae.priors.codes import CodePrior


def standard_normal(*batch_and_event, event_ndim):
    zero = torch.zeros(batch_and_event)
    return Independent(Normal(zero, zero), event_ndim)


class SpatialEncoder(Encoder):
    """A posterior over maps (2, H, W), made of torch's modules."""

    def __init__(self, height, width):
        super().__init__()
        self.latent_shape = torch.Size((2, height, width))
        self.head = nn.Conv2d(1, 4, 1)

    def forward(self, x, context=None):
        return Independent(Normal(*self.head(x).chunk(2, 1)), 3)

    def config(self):
        return {"height": self.latent_shape[1], "width": self.latent_shape[2]}


def mlp_vae(likelihood=None, data=(2, 3, 1)):
    likelihood = BernoulliLikelihood() if likelihood is None else likelihood
    encoder = GaussianEncoder(MLP(data, hidden=(6,)), latent_dim=3)
    return VAE(encoder, MLP(3, hidden=(6,), out_shape=likelihood.param_shape(data)), likelihood)


def small_vae():
    return mlp_vae(data=(4,))


def with_decoder(decoder):
    return lambda: VAE(GaussianEncoder(MLP(4), 3), decoder(), BernoulliLikelihood())


def conv_vae():
    encoder = GaussianEncoder(ConvNet((1, 5, 4), (2, 3)), latent_dim=3)
    decoder = TransposedConvNet(3, (2, 1, 5, 4), (3, 2))
    return VAE(encoder, decoder, GaussianLikelihood("predicted"), StandardNormal(3))


def spatial_vae():
    decoder = nn.Conv2d(2, 1, 3, padding=1)
    return VAE(SpatialEncoder(3, 4), decoder, GaussianLikelihood(Learned((1, 3, 4))))


# name: (model, data shape, latent shape, user parts, foreign modules)
MODELS = {
    "mlp, bernoulli": (mlp_vae, (2, 3, 1), (3,), (), ()),
    "mlp, learned scale": (
        lambda: mlp_vae(GaussianLikelihood(Learned((2, 1, 1)))),
        (2, 3, 1),
        (3,),
        (),
        (),
    ),
    "vectors, fixed scale": (
        lambda: mlp_vae(GaussianLikelihood(0.2), (4,)),
        (4,),
        (3,),
        (),
        (),
    ),
    "conv, predicted scale": (conv_vae, (1, 5, 4), (3,), (), ()),
    "own spatial encoder, foreign decoder": (
        spatial_vae,
        (1, 3, 4),
        (2, 3, 4),
        (SpatialEncoder,),
        ("decoder",),
    ),
    "foreign networks": (
        lambda: VAE(
            GaussianEncoder(nn.Flatten(), 3, features=6),
            nn.Sequential(nn.Linear(3, 6), nn.Unflatten(1, (2, 3, 1))),
            BernoulliLikelihood(),
        ),
        (2, 3, 1),
        (3,),
        (),
        ("encoder.network", "decoder"),
    ),
}


def binary(*shape):
    return (torch.rand(shape) > 0.5).to(torch.get_default_dtype())


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


class ContextLinear(nn.Module):
    """A linear layer of input and context together."""

    def __init__(self, n_in, n_context, n_out):
        super().__init__()
        self.linear = nn.Linear(n_in + n_context, n_out)

    def forward(self, x, context):
        return self.linear(torch.cat([x, context], 1))


class ContextPrior(Prior):
    def __init__(self, latent_dim, n_context):
        super().__init__()
        self.latent_shape = torch.Size((latent_dim,))
        self.linear = nn.Linear(n_context, latent_dim)

    def forward(self, context=None, *, encoder=None):
        mean = self.linear(context)
        return Independent(Normal(mean, torch.zeros_like(mean)), 1)

    def config(self):
        return {"latent_dim": self.latent_shape[0], "n_context": self.linear.in_features}


def conditional_vae(prior=True):
    encoder = GaussianEncoder(ContextLinear(4, 2, 6), latent_dim=3, features=6)
    prior = ContextPrior(3, 2) if prior else None
    return VAE(encoder, ContextLinear(3, 2, 4), GaussianLikelihood(0.1), prior)


def features(size=4):
    return MLP(size, hidden=(5,), activation=nn.Tanh)


def features_encoder():
    return GaussianEncoder(features(), 2)


def perturbed_flow(dim, **options):
    """A flow that is not the identity."""
    flow = Flow(dim, transforms=2, hidden=(8,), **options)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return flow


def joint_encoder():
    style = GaussianEncoder(features(5), latent_dim=2)
    kind = CategoricalEncoder(features(5), num_classes=3)
    return JointEncoder({"style": style, "kind": kind}, network=features())


def joint_prior():
    return JointPrior({"style": GaussianPrior(2), "kind": CategoricalPrior(3, learned=True)})


REAL_ENCODERS = {
    "gaussian": lambda: GaussianEncoder(features(), 2),
    "full": lambda: FullGaussianEncoder(features(), 2),
    "low rank": lambda: LowRankGaussianEncoder(features(), 2, rank=1),
    "laplace": lambda: LaplaceEncoder(features(), 2),
    "spline": lambda: FlowEncoder(features_encoder(), perturbed_flow(2, context_dim=5)),
    "affine": lambda: FlowEncoder(features_encoder(), perturbed_flow(2, kind="affine")),
}


REAL_PRIORS = {
    "normal": lambda: StandardNormal(2),
    "laplace": lambda: StandardLaplace(2),
    "gaussian": lambda: GaussianPrior(2),
    "full": lambda: FullGaussianPrior(2),
    "mixture": lambda: MixturePrior(2, num_components=3),
    "autoregressive": lambda: AutoregressivePrior(2, hidden=(6,), num_components=3),
    "vamp": lambda: VampPrior(2, input_shape=4, num_components=3, learned_weights=True),
    "flow": lambda: FlowPrior(perturbed_flow(2)),
    "density": lambda: FittedPrior.fit(torch.randn(50, 2), FullGaussianPrior(2)),
}


COMBINATIONS = {
    **{
        f"{name}, {prior}": (encoder, REAL_PRIORS[prior])
        for (name, encoder), prior in itertools.product(REAL_ENCODERS.items(), REAL_PRIORS)
    },
    "sphere, uniform": (
        lambda: PowerSphericalEncoder(features(), 3),
        lambda: SphereUniformPrior(3),
    ),
    "sphere, vamp": (
        lambda: PowerSphericalEncoder(features(), 3),
        lambda: VampPrior(3, input_shape=4, num_components=3),
    ),
    "classes, uniform": (
        lambda: CategoricalEncoder(features(), 3, num_variables=2),
        lambda: CategoricalPrior(3, num_variables=2),
    ),
    "classes, learned": (
        lambda: CategoricalEncoder(features(), 3, num_variables=2),
        lambda: CategoricalPrior(3, num_variables=2, learned=True),
    ),
    "classes, vamp": (
        lambda: CategoricalEncoder(features(), 3, num_variables=2),
        lambda: VampPrior((3, 2), input_shape=4, num_components=3),
    ),
    "relaxed, symmetric": (
        lambda: GumbelSoftmaxEncoder(features(), 3, num_variables=2),
        lambda: GumbelSoftmaxPrior(3, num_variables=2),
    ),
    "relaxed, learned": (
        lambda: GumbelSoftmaxEncoder(features(), 3, num_variables=2),
        lambda: GumbelSoftmaxPrior(3, num_variables=2, learned=True),
    ),
    "codes": (
        lambda: VectorQuantizedEncoder(features(), num_codes=5, latent_dim=(2, 3), decay=None),
        lambda: CodePrior(5, latent_dim=(2, 3)),
    ),
    "joint": (joint_encoder, joint_prior),
}


# Each encoder with one plain prior and one that uses the encoder, each prior with one encoder.
DIVERSE = [
    name
    for name in COMBINATIONS
    if name.startswith("gaussian")
    or not name.endswith(tuple(set(REAL_PRIORS) - {"normal", "vamp"}))
]


def combined(name, dtype=torch.float64):
    encoder, prior = (build() for build in COMBINATIONS[name])
    decoder = MLP(encoder.latent_shape, hidden=(6,), out_shape=4, activation=nn.Tanh)
    return VAE(encoder, decoder, BernoulliLikelihood(), prior).to(dtype)


def all_images(pixels, dtype=torch.float64):
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=pixels)), dtype=dtype)
