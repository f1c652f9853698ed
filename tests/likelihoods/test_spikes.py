"""Values at which a density is unbounded."""

import warnings

import pytest
import torch
from helpers.cases import for_each

from tinyvae import (
    ELBO,
    VAE,
    BernoulliLikelihood,
    CategoricalLikelihood,
    GaussianLikelihood,
    Trainer,
)
from tinyvae.datasets import Dequantization, digits
from tinyvae.likelihoods import (
    BetaLikelihood,
    ContinuousBernoulliLikelihood,
    DiscretizedLogisticLikelihood,
    HurdleLikelihood,
    LaplaceLikelihood,
    Learned,
    LogitNormalLikelihood,
    LogNormalLikelihood,
    MaskedLikelihood,
    MixtureLikelihood,
    OptimalGaussianLikelihood,
    StandardizedLikelihood,
    StudentTLikelihood,
)

N = 200


def gray():
    """Return values in [0, 1], 80% of them 0 or 1."""
    x = torch.rand(N, 4)
    return torch.where(torch.rand(N, 4) < 0.8, x.round(), x)


def with_constant_column():
    x = torch.randn(N, 4)
    x[:, 2] = 0.3
    return x


def amounts_with_zeros():
    x = torch.randn(N, 4).exp()
    return torch.where(torch.rand(N, 4) < 0.3, 1e-6, x)


def missing(x):
    return x.masked_fill(torch.rand(x.shape) < 0.3, torch.nan)


SPIKES = {
    "continuous Bernoulli": (ContinuousBernoulliLikelihood, gray, "about 80% of .* at 0 or 1"),
    "masked": (
        lambda: MaskedLikelihood(ContinuousBernoulliLikelihood()),
        lambda: missing(gray()),
        "about 80% of .* at 0 or 1",
    ),
    "standardized": (
        lambda: StandardizedLikelihood(ContinuousBernoulliLikelihood(), mean=5.0, std=2.0),
        lambda: 5 + 2 * gray(),
        "about 80% of .* at 0 or 1",
    ),
    "mixture": (
        lambda: MixtureLikelihood(GaussianLikelihood("predicted"), num_components=3),
        gray,
        "occur again",
    ),
    "Beta": (
        BetaLikelihood,
        lambda: gray().clamp(1e-4, 1 - 1e-4),
        "about 80% .* next to an end",
    ),
    "logit-normal": (
        lambda: LogitNormalLikelihood(low=-1.0, high=3.0),
        lambda: 4 * gray().clamp(1e-4, 1 - 1e-4) - 1,
        "about 80% .* next to an end",
    ),
    "log-normal": (LogNormalLikelihood, amounts_with_zeros, "about 30% .* at 1e-06"),
    "Gaussian": (lambda: GaussianLikelihood("predicted"), gray, "about 80% .* occur again"),
    "Laplace": (lambda: LaplaceLikelihood("predicted"), gray, "about 80% .* occur again"),
    "levels": (
        lambda: GaussianLikelihood("predicted"),
        lambda: torch.randint(0, 17, (N, 4)) / 16,
        "about 100% .* occur again",
    ),
    "a constant column": (
        lambda: StudentTLikelihood("predicted"),
        with_constant_column,
        "a dimension of which half",
    ),
    "a learned scale per column": (
        lambda: StudentTLikelihood(Learned((4,))),
        with_constant_column,
        "learns a scale of constant dimensions",
    ),
    "a constant column with missing values": (
        lambda: MaskedLikelihood(StudentTLikelihood(Learned((4,)))),
        lambda: missing(with_constant_column()),
        "learns a scale of constant dimensions",
    ),
    "optimal scales": (
        lambda: OptimalGaussianLikelihood((4,)),
        with_constant_column,
        "computes a scale of constant dimensions",
    ),
    "a point that has no mass": (
        lambda: HurdleLikelihood(LogNormalLikelihood()),
        amounts_with_zeros,
        "LogNormalLikelihood got about 30% .* at 1e-06",
    ),
    "points that have no mass": (
        lambda: HurdleLikelihood(GaussianLikelihood("predicted"), at=-1.0),
        gray,
        "about 80% .* occur again",
    ),
    "the other end": (
        lambda: HurdleLikelihood(ContinuousBernoulliLikelihood(), at=0.0),
        gray,
        "about 60% of .* at 0 or 1",
    ),
    "constant data": (GaussianLikelihood, lambda: torch.ones(N, 4), "learns a scale of constant"),
}


@for_each("name", SPIKES)
def test_fit_warns_of_values_at_which_the_density_is_unbounded(name):
    make, data, found = SPIKES[name]
    vae = VAE.from_shapes(4, latent_dim=2, likelihood=make())
    with pytest.warns(UserWarning, match=f"{found}.*, where its density is unbounded.* To model"):
        Trainer(vae, ELBO()).fit(data(), epochs=1)


# Bounded densities, masses, values that do not occur again, and too few of them to tell.
FINE = {
    "a scale for all": (GaussianLikelihood, gray),
    "a fixed scale": (lambda: LaplaceLikelihood(0.1), gray),
    "a fixed scale per column": (lambda: StudentTLikelihood(0.1), with_constant_column),
    "one scale with a constant column": (StudentTLikelihood, with_constant_column),
    "one optimal scale": (OptimalGaussianLikelihood, with_constant_column),
    "binary": (BernoulliLikelihood, lambda: gray().round()),
    "classes": (lambda: CategoricalLikelihood(2), lambda: gray().round()),
    "levels": (lambda: DiscretizedLogisticLikelihood(2), lambda: gray().round()),
    "real numbers": (lambda: GaussianLikelihood("predicted"), lambda: torch.randn(N, 4)),
    "per column": (lambda: GaussianLikelihood(Learned((4,))), lambda: torch.randn(N, 4)),
    "missing": (
        lambda: MaskedLikelihood(GaussianLikelihood("predicted")),
        lambda: torch.randn(N, 4).masked_fill(torch.rand(N, 4) < 0.7, torch.nan),
    ),
    "inside": (ContinuousBernoulliLikelihood, lambda: torch.rand(N, 4)),
    "proportions": (BetaLikelihood, lambda: torch.rand(N, 4) ** 3),
    "scores": (lambda: LogitNormalLikelihood(high=9.0), lambda: 9 * torch.rand(N, 4)),
    "amounts": (LogNormalLikelihood, lambda: torch.randn(N, 4).exp()),
    "amounts with zeros": (
        lambda: HurdleLikelihood(LogNormalLikelihood()),
        lambda: torch.threshold(amounts_with_zeros(), 1e-6, 0.0),
    ),
    "points": (lambda: HurdleLikelihood(GaussianLikelihood("predicted"), at=(0.0, 1.0)), gray),
    "both ends": (lambda: HurdleLikelihood(ContinuousBernoulliLikelihood(), at=(0.0, 1.0)), gray),
    "masked points": (
        lambda: MaskedLikelihood(HurdleLikelihood(BetaLikelihood(), at=(0.0, 1.0))),
        lambda: missing(gray()),
    ),
    "few": (lambda: GaussianLikelihood("predicted"), lambda: gray()[:20]),
    "dequantized": (
        lambda: GaussianLikelihood("predicted"),
        lambda: Dequantization(17)(torch.randint(0, 17, (N, 4)), torch.Generator()),
    ),
}


@for_each("name", FINE)
def test_fit_is_silent_about_data_with_bounded_densities(name):
    make, data = FINE[name]
    vae = VAE.from_shapes(4, latent_dim=2, likelihood=make())
    Trainer(vae, ELBO()).fit(data(), epochs=1)  # warnings are errors


def test_the_advice_for_gray_images_starts_with_masses():
    images = digits().images
    for likelihood, x in [
        (ContinuousBernoulliLikelihood(), images),
        (BetaLikelihood(), images / 16),
        (BernoulliLikelihood(), images),
        (GaussianLikelihood(), images.to(torch.uint8)),
    ]:
        with pytest.raises((TypeError, ValueError)) as error:
            likelihood.check_support(x)
        assert "DiscretizedLogisticLikelihood" in str(error.value), likelihood
        assert "ContinuousBernoulli" not in str(error.value).split(":", 1)[1], likelihood
    with pytest.warns(UserWarning, match="DiscretizedLogisticLikelihood") as caught:
        BernoulliLikelihood().check_support(images / 16)
    assert "ContinuousBernoulli" not in str(caught[0].message)


def test_warning_of_spikes_can_be_ignored():
    vae = VAE.from_shapes(4, latent_dim=2, likelihood=ContinuousBernoulliLikelihood())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*where its density is unbounded")
        Trainer(vae, ELBO()).fit(gray(), epochs=1)
