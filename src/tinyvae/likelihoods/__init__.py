"""Likelihoods: modules that turn a decoder's output into p(x given z).

A likelihood defines its constants, its support, its sampling and its mean. A decoder emits ``P``
parameters per data dimension, parameters first: ``(N, P, *E)``, or ``(N, *E)`` if ``P`` is 1.
To write a likelihood, define ``num_params`` and the scalar distribution that the parameters make::

    class GumbelLikelihood(Likelihood):
        num_params = 2

        def elementwise(self, loc: Tensor, log_scale: Tensor) -> TorchDistribution:
            return TorchDistribution(Gumbel(loc, log_scale.exp(), validate_args=False))

A likelihood also defines the encoder's input (:meth:`~tinyvae.Likelihood.encoder_input`):
logarithms of counts, one-hot rows of classes, zeros at missing entries.
"""

from tinyvae.likelihoods.base import Likelihood as Likelihood
from tinyvae.likelihoods.bounded import LogitNormalLikelihood as LogitNormalLikelihood
from tinyvae.likelihoods.clusters import within_cluster_std as within_cluster_std
from tinyvae.likelihoods.columns import Column as Column
from tinyvae.likelihoods.continuous import BetaLikelihood as BetaLikelihood
from tinyvae.likelihoods.continuous import (
    ContinuousBernoulliLikelihood as ContinuousBernoulliLikelihood,
)
from tinyvae.likelihoods.continuous import LaplaceLikelihood as LaplaceLikelihood
from tinyvae.likelihoods.continuous import LogNormalLikelihood as LogNormalLikelihood
from tinyvae.likelihoods.continuous import StudentTLikelihood as StudentTLikelihood
from tinyvae.likelihoods.counts import NegativeBinomialLikelihood as NegativeBinomialLikelihood
from tinyvae.likelihoods.counts import PoissonLikelihood as PoissonLikelihood
from tinyvae.likelihoods.discrete import BernoulliLikelihood as BernoulliLikelihood
from tinyvae.likelihoods.discrete import CategoricalLikelihood as CategoricalLikelihood
from tinyvae.likelihoods.discrete import (
    DiscretizedLogisticLikelihood as DiscretizedLogisticLikelihood,
)
from tinyvae.likelihoods.discrete import OneHotLikelihood as OneHotLikelihood
from tinyvae.likelihoods.distances import Distance as Distance
from tinyvae.likelihoods.distances import FeatureDistance as FeatureDistance
from tinyvae.likelihoods.distances import MultiScaleSSIM as MultiScaleSSIM
from tinyvae.likelihoods.gaussian import GaussianLikelihood as GaussianLikelihood
from tinyvae.likelihoods.gaussian import OptimalGaussianLikelihood as OptimalGaussianLikelihood
from tinyvae.likelihoods.hurdle import HurdleLikelihood as HurdleLikelihood
from tinyvae.likelihoods.masked import MaskedLikelihood as MaskedLikelihood
from tinyvae.likelihoods.ordinal import OrdinalLikelihood as OrdinalLikelihood
from tinyvae.likelihoods.parameters import Fixed as Fixed
from tinyvae.likelihoods.parameters import Learned as Learned
from tinyvae.likelihoods.parameters import PositiveLike as PositiveLike
from tinyvae.likelihoods.parameters import PositiveParameter as PositiveParameter
from tinyvae.likelihoods.parameters import Predicted as Predicted
from tinyvae.likelihoods.parameters import as_positive as as_positive
from tinyvae.likelihoods.perceptual import PerceptualLikelihood as PerceptualLikelihood
from tinyvae.likelihoods.tabular import MixedLikelihood as MixedLikelihood
from tinyvae.likelihoods.trials import BetaBinomialLikelihood as BetaBinomialLikelihood
from tinyvae.likelihoods.trials import MultinomialLikelihood as MultinomialLikelihood
from tinyvae.likelihoods.wrappers import MixtureLikelihood as MixtureLikelihood
from tinyvae.likelihoods.wrappers import StandardizedLikelihood as StandardizedLikelihood
from tinyvae.likelihoods.wrappers import ZeroInflatedLikelihood as ZeroInflatedLikelihood
