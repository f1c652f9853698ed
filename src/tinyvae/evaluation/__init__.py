"""Evaluation of trained models, with standard errors."""

from tinyvae.evaluation.activity import Activity as Activity
from tinyvae.evaluation.activity import active_units as active_units
from tinyvae.evaluation.compare import Comparison as Comparison
from tinyvae.evaluation.compare import compare as compare
from tinyvae.evaluation.estimate import Estimate as Estimate
from tinyvae.evaluation.estimation import evaluate as evaluate
from tinyvae.evaluation.importance import log_marginal as log_marginal
from tinyvae.evaluation.imputation import conditional_draws as conditional_draws
from tinyvae.evaluation.imputation import impute as impute
from tinyvae.evaluation.latents import LatentSummary as LatentSummary
from tinyvae.evaluation.monitor import EvaluationMonitor as EvaluationMonitor
from tinyvae.evaluation.report import Report as Report
from tinyvae.evaluation.weights import WeightQuality as WeightQuality
from tinyvae.models.conditional import ConditionalDraws as ConditionalDraws
