"""Evaluation: what a model is worth, with the error of the estimate."""

from tinyvae.evaluation.importance import log_marginal
from tinyvae.evaluation.imputation import impute
from tinyvae.evaluation.report import Estimate, Report, evaluate

__all__ = ["Estimate", "Report", "evaluate", "impute", "log_marginal"]
