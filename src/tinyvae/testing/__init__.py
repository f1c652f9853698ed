"""Contract checks for your own distributions, encoders, priors and likelihoods.

Call them in your tests. They raise a :class:`ContractError` that names what was expected and what
came instead.
"""

from tinyvae.testing.contract import ContractError as ContractError
from tinyvae.testing.decoders import check_decoder as check_decoder
from tinyvae.testing.distributions import check_distribution as check_distribution
from tinyvae.testing.latents import check_encoder as check_encoder
from tinyvae.testing.latents import check_prior as check_prior
from tinyvae.testing.likelihoods import check_likelihood as check_likelihood
from tinyvae.testing.objectives import check_objective as check_objective
