"""Objectives: what is optimised, and whether it is a bound."""

from tinyvae.objectives.adversarial import (
    AdversarialData,
    AdversarialPrior,
    AdversarialTotalCorrelation,
)
from tinyvae.objectives.bound import Bound, Regularised
from tinyvae.objectives.elbo import ELBO
from tinyvae.objectives.importance import CIWAE, IWAE, PIWAE, MultiplyIWAE
from tinyvae.objectives.moments import DIP, MMD, gaussian, inverse_multiquadratic
from tinyvae.objectives.penalties import GradientPenalty, LatentL2, WeightL2
from tinyvae.objectives.regulariser import Penalty, Regulariser
from tinyvae.objectives.tempered import TVO, RenyiBound
from tinyvae.objectives.total_correlation import TotalCorrelation

__all__ = [
    "CIWAE",
    "DIP",
    "ELBO",
    "IWAE",
    "MMD",
    "PIWAE",
    "TVO",
    "AdversarialData",
    "AdversarialPrior",
    "AdversarialTotalCorrelation",
    "Bound",
    "GradientPenalty",
    "LatentL2",
    "MultiplyIWAE",
    "Penalty",
    "Regularised",
    "Regulariser",
    "RenyiBound",
    "TotalCorrelation",
    "WeightL2",
    "gaussian",
    "inverse_multiquadratic",
]
