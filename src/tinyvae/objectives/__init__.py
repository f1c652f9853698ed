"""Objectives: lower bounds on log p(x), and regularizers."""

from tinyvae.objectives.base import VariationalBound as VariationalBound
from tinyvae.objectives.constraints import LagrangeMultiplier as LagrangeMultiplier
from tinyvae.objectives.elbo import ELBO as ELBO
from tinyvae.objectives.importance import CIWAE as CIWAE
from tinyvae.objectives.importance import IWAE as IWAE
from tinyvae.objectives.importance import PIWAE as PIWAE
from tinyvae.objectives.importance import MultiplyIWAE as MultiplyIWAE
from tinyvae.objectives.regularizers import (
    AdversarialPriorRegularizer as AdversarialPriorRegularizer,
)
from tinyvae.objectives.regularizers import (
    AdversarialTotalCorrelationRegularizer as AdversarialTotalCorrelationRegularizer,
)
from tinyvae.objectives.regularizers import DIPRegularizer as DIPRegularizer
from tinyvae.objectives.regularizers import GradientPenaltyRegularizer as GradientPenaltyRegularizer
from tinyvae.objectives.regularizers import LatentL2Regularizer as LatentL2Regularizer
from tinyvae.objectives.regularizers import MMDRegularizer as MMDRegularizer
from tinyvae.objectives.regularizers import RegularizedObjective as RegularizedObjective
from tinyvae.objectives.regularizers import Regularizer as Regularizer
from tinyvae.objectives.regularizers import RegularizerOutput as RegularizerOutput
from tinyvae.objectives.regularizers import (
    TotalCorrelationRegularizer as TotalCorrelationRegularizer,
)
from tinyvae.objectives.regularizers import VAEGANRegularizer as VAEGANRegularizer
from tinyvae.objectives.regularizers import WeightL2Regularizer as WeightL2Regularizer
from tinyvae.objectives.regularizers import gaussian_kernel as gaussian_kernel
from tinyvae.objectives.regularizers import (
    inverse_multiquadratic_kernel as inverse_multiquadratic_kernel,
)
from tinyvae.objectives.tempered import TVO as TVO
from tinyvae.objectives.tempered import RenyiBound as RenyiBound
