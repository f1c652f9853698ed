"""Evaluation: what a model is worth, with the error of the estimate."""

from tinyvae.evaluation.importance import log_marginal
from tinyvae.evaluation.report import Estimate, Report, evaluate

__all__ = ["Estimate", "Report", "evaluate", "log_marginal"]
