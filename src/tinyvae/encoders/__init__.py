"""Encoders: modules whose ``forward`` returns the approximate posterior q(z given x)."""

from tinyvae.encoders.base import Encoder, NetworkEncoder
from tinyvae.encoders.categorical import CategoricalEncoder, GumbelSoftmaxEncoder
from tinyvae.encoders.gaussian import (
    DeterministicEncoder,
    FullGaussianEncoder,
    GaussianEncoder,
    LaplaceEncoder,
    LowRankGaussianEncoder,
)
from tinyvae.encoders.joint import JointEncoder
from tinyvae.encoders.spherical import PowerSphericalEncoder

__all__ = [
    "CategoricalEncoder",
    "DeterministicEncoder",
    "Encoder",
    "FullGaussianEncoder",
    "GaussianEncoder",
    "GumbelSoftmaxEncoder",
    "JointEncoder",
    "LaplaceEncoder",
    "LowRankGaussianEncoder",
    "NetworkEncoder",
    "PowerSphericalEncoder",
]
