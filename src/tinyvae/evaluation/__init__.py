"""Evaluation: what a model is worth, with the error of the estimate."""

from tinyvae.evaluation.activity import Activity, active_units
from tinyvae.evaluation.importance import log_marginal
from tinyvae.evaluation.imputation import impute
from tinyvae.evaluation.report import Estimate, Report, evaluate

__all__ = [
    "Activity",
    "Estimate",
    "Report",
    "active_units",
    "evaluate",
    "impute",
    "log_marginal",
]
