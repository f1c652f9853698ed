"""Contracts that a part of one's own can be held against.

Call them in a test of yours; what they find is a :class:`ContractError` that says what was expected
and what came.
"""

from tinyvae.testing.contract import ContractError as ContractError
from tinyvae.testing.decoders import check_decoder as check_decoder
from tinyvae.testing.latents import check_encoder as check_encoder
from tinyvae.testing.latents import check_prior as check_prior
from tinyvae.testing.likelihoods import check_likelihood as check_likelihood
from tinyvae.testing.objectives import check_objective as check_objective
