"""Likelihoods: modules that turn a decoder's output into p(x given z).

A likelihood owns its constants, its support, its sampling and its mean. A decoder emits ``P``
parameters per data dimension, parameters first: ``(N, P, *E)``, or ``(N, *E)`` where ``P`` is 1.
To write one, say ``num_params`` and how they make a scalar distribution::

    class GumbelLikelihood(Likelihood):
        num_params = 2

        def elementwise(self, loc, log_scale):
            return TorchDistribution(Gumbel(loc, log_scale.exp(), validate_args=False))

It owns, too, what the encoder is fed of its data (:meth:`~tinyvae.Likelihood.encoder_input`):
counts as logarithms, classes as one-hot rows, zeros in the place of missing entries.
"""

from tinyvae.likelihoods.base import Likelihood
from tinyvae.likelihoods.columns import Column
from tinyvae.likelihoods.composed import (
    Masked,
    MixtureLikelihood,
    StandardisedLikelihood,
    ZeroInflatedLikelihood,
)
from tinyvae.likelihoods.counts import NegativeBinomialLikelihood, PoissonLikelihood
from tinyvae.likelihoods.distances import Distance, FeatureDistance, MultiScaleSSIM
from tinyvae.likelihoods.levels import (
    BernoulliLikelihood,
    CategoricalLikelihood,
    DiscretisedLogisticLikelihood,
    OneHotLikelihood,
)
from tinyvae.likelihoods.mixed import MixedLikelihood
from tinyvae.likelihoods.perceptual import PerceptualLikelihood
from tinyvae.likelihoods.positive import Fixed, Learned, Positive, Predicted
from tinyvae.likelihoods.reals import (
    BetaLikelihood,
    ContinuousBernoulliLikelihood,
    GaussianLikelihood,
    LaplaceLikelihood,
    LogNormalLikelihood,
    OptimalGaussianLikelihood,
    StudentTLikelihood,
)

__all__ = [
    "BernoulliLikelihood",
    "BetaLikelihood",
    "CategoricalLikelihood",
    "Column",
    "ContinuousBernoulliLikelihood",
    "DiscretisedLogisticLikelihood",
    "Distance",
    "FeatureDistance",
    "Fixed",
    "GaussianLikelihood",
    "LaplaceLikelihood",
    "Learned",
    "Likelihood",
    "LogNormalLikelihood",
    "Masked",
    "MixedLikelihood",
    "MixtureLikelihood",
    "MultiScaleSSIM",
    "NegativeBinomialLikelihood",
    "OneHotLikelihood",
    "OptimalGaussianLikelihood",
    "PerceptualLikelihood",
    "PoissonLikelihood",
    "Positive",
    "Predicted",
    "StandardisedLikelihood",
    "StudentTLikelihood",
    "ZeroInflatedLikelihood",
]
