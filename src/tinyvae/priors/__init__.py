"""Priors: modules whose ``forward`` returns p(z), or p(z given context)."""

from tinyvae.priors.base import (
    ConditionalPrior,
    JointPrior,
    PosteriorOf,
    Prior,
    SphereUniformPrior,
    StandardLaplace,
    StandardNormal,
)
from tinyvae.priors.density import LatentDensity
from tinyvae.priors.learned import (
    CategoricalPrior,
    FullGaussianPrior,
    GaussianPrior,
    GumbelSoftmaxPrior,
    MixturePrior,
)
from tinyvae.priors.vamp import VampPrior

__all__ = [
    "CategoricalPrior",
    "ConditionalPrior",
    "FullGaussianPrior",
    "GaussianPrior",
    "GumbelSoftmaxPrior",
    "JointPrior",
    "LatentDensity",
    "MixturePrior",
    "PosteriorOf",
    "Prior",
    "SphereUniformPrior",
    "StandardLaplace",
    "StandardNormal",
    "VampPrior",
]
