"""Models and a table of regularizers."""

import torch
from torch import nn

from tinyvae import (
    MLP,
    VAE,
    Batch,
    BottomUpVAE,
    GaussianEncoder,
    GaussianLikelihood,
    LadderVAE,
    StandardNormal,
    TwoLevelVAE,
)
from tinyvae.encoders import CategoricalEncoder, JointEncoder
from tinyvae.networks import ConcatContext
from tinyvae.objectives import (
    AdversarialPriorRegularizer,
    AdversarialTotalCorrelationRegularizer,
    DIPRegularizer,
    GradientPenaltyRegularizer,
    LatentL2Regularizer,
    MMDRegularizer,
    TotalCorrelationRegularizer,
    VAEGANRegularizer,
    WeightL2Regularizer,
)
from tinyvae.priors import CategoricalPrior, JointPrior

DATA, LATENT, SIZE = 5, 2, 40


def small_vae(encoder=GaussianEncoder, **options):
    network = MLP(DATA, hidden=(6,), activation=nn.Tanh)
    decoder = MLP(LATENT, hidden=(6,), out_shape=DATA, activation=nn.Tanh)
    return VAE(encoder(network, LATENT, **options), decoder, GaussianLikelihood(0.4))


def spatial_vae():
    encoder = GaussianEncoder(MLP(DATA, hidden=(6,), activation=nn.Tanh), (2, 2, 3))
    return VAE(encoder, MLP((2, 2, 3), hidden=(6,), out_shape=DATA), GaussianLikelihood(0.4))


def conditional_vae():
    encoder = GaussianEncoder(ConcatContext(MLP(DATA + 3, hidden=(6,)), context_dim=3), LATENT)
    decoder = MLP(LATENT + 3, hidden=(6,), out_shape=DATA, activation=nn.Tanh)
    return VAE(encoder, ConcatContext(decoder, context_dim=3), GaussianLikelihood(0.4))


def ladder_vae(cls=LadderVAE, top=LATENT):
    below = 6 if cls is LadderVAE else LATENT
    return cls(
        encoders=[GaussianEncoder(MLP(DATA, (6,)), LATENT), GaussianEncoder(MLP(below, (6,)), top)],
        generators=[GaussianEncoder(MLP(top, (6,)), LATENT)],
        decoder=MLP(LATENT, (6,), out_shape=DATA),
        likelihood=GaussianLikelihood(0.4),
    )


def bottom_up_vae():
    return ladder_vae(BottomUpVAE)


def two_level_vae():
    bottom = GaussianEncoder(ConcatContext(MLP(DATA + 2, (6,)), context_dim=2), 3)
    top, generator = GaussianEncoder(MLP(DATA, (6,)), 2), GaussianEncoder(MLP(2, (6,)), 3)
    return TwoLevelVAE(
        top,
        bottom=bottom,
        generator=generator,
        decoder=MLP(5, (6,), DATA),
        likelihood=GaussianLikelihood(0.4),
    )


def joint_vae():
    encoders = {
        "kind": CategoricalEncoder(MLP(DATA, hidden=(6,)), 3, temperature=None),
        "style": GaussianEncoder(MLP(DATA, hidden=(6,)), LATENT),
    }
    prior = JointPrior({"kind": CategoricalPrior(3), "style": StandardNormal(LATENT)})
    decoder = MLP(3 + LATENT, hidden=(6,), out_shape=DATA)
    return VAE(JointEncoder(encoders), decoder, GaussianLikelihood(0.4), prior)


def discriminator(size=LATENT):
    return MLP(size, hidden=(8,), out_shape=1, activation=nn.Tanh)


REGULARIZERS = {
    "latent l2": lambda w, **o: LatentL2Regularizer(w, **o),
    "weight l2": lambda w, **_: WeightL2Regularizer(w),
    "gradient penalty": lambda w, **_: GradientPenaltyRegularizer(w),
    "dip": lambda w, **o: DIPRegularizer(w, diagonal=3.0, **o),
    "dip total": lambda w, **o: DIPRegularizer(w, covariance="total", **o),
    "mmd": lambda w, **o: MMDRegularizer(w, **o),
    "total correlation": lambda w, **o: TotalCorrelationRegularizer(
        w,
        dataset_size=SIZE,
        mutual_information=0.4 * w,
        dimension_kl=0.7 * w,
        **o,
    ),
    "adversarial tc": lambda w, **o: AdversarialTotalCorrelationRegularizer(
        discriminator(),
        weight=w,
        **o,
    ),
    "adversarial prior": lambda w, **o: AdversarialPriorRegularizer(discriminator(), weight=w, **o),
    "adversarial data": lambda w, **_: VAEGANRegularizer(
        MLP(DATA, hidden=(8,), activation=nn.Tanh),
        num_features=8,
        weight=w,
        similarity=0.3,
    ),
}


METRICS = {
    "latent l2": {"latent_l2"},
    "weight l2": {"decoder_l2"},
    "gradient penalty": {"gradient_penalty"},
    "dip": {"batch_dip"},
    "dip total": {"batch_dip"},
    "mmd": {"mmd"},
    "total correlation": {
        "batch_mutual_information_nats",
        "batch_total_correlation_nats",
        "batch_dimension_kl_nats",
    },
    "adversarial tc": {"adversarial_total_correlation_nats", "discriminator_accuracy"},
    "adversarial prior": {"adversarial_prior", "discriminator_accuracy"},
    "adversarial data": {"adversarial_data", "feature_distance", "discriminator_accuracy"},
}


def penalty_of(regularizer, vae, x, num_samples=1):
    record = vae(x, num_samples=num_samples)
    return record, regularizer(vae, Batch(x), record)


def gradients(loss, module):
    return torch.autograd.grad(
        loss, list(module.parameters()), retain_graph=True, materialize_grads=True
    )


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)
