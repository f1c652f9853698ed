"""Objectives: what is optimised, and whether it is a bound."""

from tinyvae.objectives.elbo import ELBO

__all__ = ["ELBO"]
