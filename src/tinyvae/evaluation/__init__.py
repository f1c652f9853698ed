"""Evaluation of trained models, with standard errors."""

from tinyvae.evaluation.activity import Activity as Activity
from tinyvae.evaluation.activity import active_units as active_units
from tinyvae.evaluation.annealing import AnnealedEvidence as AnnealedEvidence
from tinyvae.evaluation.annealing import BidirectionalEvidence as BidirectionalEvidence
from tinyvae.evaluation.annealing import annealed_log_marginal as annealed_log_marginal
from tinyvae.evaluation.annealing import bidirectional as bidirectional
from tinyvae.evaluation.calibration import Calibration as Calibration
from tinyvae.evaluation.calibration import interval_calibration as interval_calibration
from tinyvae.evaluation.gaps import InferenceGaps as InferenceGaps
from tinyvae.evaluation.gaps import inference_gaps as inference_gaps
from tinyvae.evaluation.hamiltonian import HMC as HMC
from tinyvae.evaluation.importance import log_marginal as log_marginal
from tinyvae.evaluation.imputation import conditional_draws as conditional_draws
from tinyvae.evaluation.imputation import impute as impute
from tinyvae.evaluation.predictive import PredictiveCheck as PredictiveCheck
from tinyvae.evaluation.predictive import StatisticCheck as StatisticCheck
from tinyvae.evaluation.predictive import predictive_check as predictive_check
from tinyvae.evaluation.rate_distortion import RateDistortion as RateDistortion
from tinyvae.evaluation.rate_distortion import RateDistortionPoint as RateDistortionPoint
from tinyvae.evaluation.rate_distortion import rate_distortion as rate_distortion
from tinyvae.evaluation.report import Estimate as Estimate
from tinyvae.evaluation.report import Report as Report
from tinyvae.evaluation.report import evaluate as evaluate
from tinyvae.models.conditional import ConditionalDraws as ConditionalDraws
