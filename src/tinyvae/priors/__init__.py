"""Priors: modules whose ``forward`` returns p(z), or p(z given context)."""

from tinyvae.priors.autoregressive import AutoregressivePrior as AutoregressivePrior
from tinyvae.priors.base import ConditionalPrior as ConditionalPrior
from tinyvae.priors.base import JointPrior as JointPrior
from tinyvae.priors.base import PosteriorOf as PosteriorOf
from tinyvae.priors.base import Prior as Prior
from tinyvae.priors.base import SphereUniformPrior as SphereUniformPrior
from tinyvae.priors.base import StandardLaplace as StandardLaplace
from tinyvae.priors.base import StandardNormal as StandardNormal
from tinyvae.priors.codes import CodePrior as CodePrior
from tinyvae.priors.fitted import FittedPrior as FittedPrior
from tinyvae.priors.flow import FlowPrior as FlowPrior
from tinyvae.priors.learned import CategoricalPrior as CategoricalPrior
from tinyvae.priors.learned import FullGaussianPrior as FullGaussianPrior
from tinyvae.priors.learned import GaussianPrior as GaussianPrior
from tinyvae.priors.learned import GumbelSoftmaxPrior as GumbelSoftmaxPrior
from tinyvae.priors.learned import MixturePrior as MixturePrior
from tinyvae.priors.vamp import VampPrior as VampPrior
