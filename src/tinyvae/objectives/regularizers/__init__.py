"""Regularizers: terms that are added to a bound, such as ``ELBO() + MMDRegularizer(10.0)``."""

from tinyvae.objectives.regularizers.adversarial import (
    AdversarialPriorRegularizer as AdversarialPriorRegularizer,
)
from tinyvae.objectives.regularizers.adversarial import (
    AdversarialTotalCorrelationRegularizer as AdversarialTotalCorrelationRegularizer,
)
from tinyvae.objectives.regularizers.adversarial import VAEGANRegularizer as VAEGANRegularizer
from tinyvae.objectives.regularizers.base import RegularizedObjective as RegularizedObjective
from tinyvae.objectives.regularizers.base import Regularizer as Regularizer
from tinyvae.objectives.regularizers.base import RegularizerOutput as RegularizerOutput
from tinyvae.objectives.regularizers.moments import DIPRegularizer as DIPRegularizer
from tinyvae.objectives.regularizers.moments import MMDRegularizer as MMDRegularizer
from tinyvae.objectives.regularizers.moments import gaussian_kernel as gaussian_kernel
from tinyvae.objectives.regularizers.moments import (
    inverse_multiquadratic_kernel as inverse_multiquadratic_kernel,
)
from tinyvae.objectives.regularizers.penalties import (
    GradientPenaltyRegularizer as GradientPenaltyRegularizer,
)
from tinyvae.objectives.regularizers.penalties import LatentL2Regularizer as LatentL2Regularizer
from tinyvae.objectives.regularizers.penalties import WeightL2Regularizer as WeightL2Regularizer
from tinyvae.objectives.regularizers.total_correlation import (
    TotalCorrelationRegularizer as TotalCorrelationRegularizer,
)
