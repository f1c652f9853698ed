"""Distributions and their closed-form divergences.

Every conditional density of a model is a :class:`Distribution`. A scalar family (:class:`Normal`,
:class:`Bernoulli`) treats every element of its parameters as a batch; :class:`Independent` turns
the last dimensions into one event by summing log densities over them. Shapes follow
``torch.distributions``: a value is ``(*S, *batch, *event)`` and its log density ``(*S, *batch)``.

Log densities include their constants and are in nats. :class:`TorchDistribution` wraps an object of
``torch.distributions``.
"""

from tinyvae.distributions.adapter import TorchDistribution as TorchDistribution
from tinyvae.distributions.autoregressive import Autoregressive as Autoregressive
from tinyvae.distributions.base import Distribution as Distribution
from tinyvae.distributions.base import Independent as Independent
from tinyvae.distributions.base import Wrapper as Wrapper
from tinyvae.distributions.base import sum_last as sum_last
from tinyvae.distributions.bounded import Beta as Beta
from tinyvae.distributions.bounded import ContinuousBernoulli as ContinuousBernoulli
from tinyvae.distributions.bounded import LogitNormal as LogitNormal
from tinyvae.distributions.bounded import LogNormal as LogNormal
from tinyvae.distributions.continuous import ElementwiseNormal as ElementwiseNormal
from tinyvae.distributions.continuous import Laplace as Laplace
from tinyvae.distributions.continuous import Normal as Normal
from tinyvae.distributions.continuous import (
    StandardNormalDistribution as StandardNormalDistribution,
)
from tinyvae.distributions.continuous import StudentT as StudentT
from tinyvae.distributions.counts import NegativeBinomial as NegativeBinomial
from tinyvae.distributions.counts import Poisson as Poisson
from tinyvae.distributions.discrete import Bernoulli as Bernoulli
from tinyvae.distributions.discrete import Categorical as Categorical
from tinyvae.distributions.discrete import DiscretizedLogistic as DiscretizedLogistic
from tinyvae.distributions.discrete import OneHotCategorical as OneHotCategorical
from tinyvae.distributions.discrete import OneHotDistribution as OneHotDistribution
from tinyvae.distributions.intervals import CensoredDistribution as CensoredDistribution
from tinyvae.distributions.intervals import log_interval as log_interval
from tinyvae.distributions.joint import JointDistribution as JointDistribution
from tinyvae.distributions.joint import TabularDistribution as TabularDistribution
from tinyvae.distributions.kl import has_closed_form as has_closed_form
from tinyvae.distributions.kl import kl_divergence as kl_divergence
from tinyvae.distributions.kl import log_prob_of_draws as log_prob_of_draws
from tinyvae.distributions.mixtures import Hurdle as Hurdle
from tinyvae.distributions.mixtures import Mixture as Mixture
from tinyvae.distributions.mixtures import ZeroInflated as ZeroInflated
from tinyvae.distributions.multivariate import Delta as Delta
from tinyvae.distributions.multivariate import FullNormal as FullNormal
from tinyvae.distributions.multivariate import LowRankNormal as LowRankNormal
from tinyvae.distributions.multivariate import PointMass as PointMass
from tinyvae.distributions.ordinal import Ordinal as Ordinal
from tinyvae.distributions.quadrature import quadrature as quadrature
from tinyvae.distributions.quantized import CodebookCategorical as CodebookCategorical
from tinyvae.distributions.quantized import Quantized as Quantized
from tinyvae.distributions.relaxed import GumbelSoftmax as GumbelSoftmax
from tinyvae.distributions.relaxed import LogGumbelSoftmax as LogGumbelSoftmax
from tinyvae.distributions.relaxed import StraightThrough as StraightThrough
from tinyvae.distributions.selection import LogisticChance as LogisticChance
from tinyvae.distributions.selection import RowMaskedDistribution as RowMaskedDistribution
from tinyvae.distributions.selection import RowsGivenMask as RowsGivenMask
from tinyvae.distributions.selection import SelfMaskedDistribution as SelfMaskedDistribution
from tinyvae.distributions.selection import Tilted as Tilted
from tinyvae.distributions.selection import tilted as tilted
from tinyvae.distributions.spherical import PowerSpherical as PowerSpherical
from tinyvae.distributions.spherical import SphereUniform as SphereUniform
from tinyvae.distributions.trials import BetaBinomial as BetaBinomial
from tinyvae.distributions.trials import Multinomial as Multinomial
from tinyvae.distributions.wrappers import Affine as Affine
from tinyvae.distributions.wrappers import MaskedDistribution as MaskedDistribution
from tinyvae.distributions.wrappers import ReshapedBatch as ReshapedBatch
