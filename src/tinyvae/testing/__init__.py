"""Contracts that a part of one's own can be held against.

Call them in a test of yours; what they find is a :class:`ContractError` that says what was expected
and what came.
"""

from tinyvae.testing.contract import ContractError
from tinyvae.testing.latents import check_encoder, check_prior
from tinyvae.testing.likelihoods import check_likelihood

__all__ = ["ContractError", "check_encoder", "check_likelihood", "check_prior"]
