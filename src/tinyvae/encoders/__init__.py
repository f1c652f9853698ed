"""Encoders: modules whose ``forward`` returns the approximate posterior q(z given x)."""

from tinyvae.encoders.base import Encoder as Encoder
from tinyvae.encoders.base import NetworkEncoder as NetworkEncoder
from tinyvae.encoders.categorical import CategoricalEncoder as CategoricalEncoder
from tinyvae.encoders.categorical import GumbelSoftmaxEncoder as GumbelSoftmaxEncoder
from tinyvae.encoders.flow import FlowEncoder as FlowEncoder
from tinyvae.encoders.gaussian import DeterministicEncoder as DeterministicEncoder
from tinyvae.encoders.gaussian import FullGaussianEncoder as FullGaussianEncoder
from tinyvae.encoders.gaussian import GaussianEncoder as GaussianEncoder
from tinyvae.encoders.gaussian import LaplaceEncoder as LaplaceEncoder
from tinyvae.encoders.gaussian import LowRankGaussianEncoder as LowRankGaussianEncoder
from tinyvae.encoders.joint import JointEncoder as JointEncoder
from tinyvae.encoders.quantized import VectorQuantizedEncoder as VectorQuantizedEncoder
from tinyvae.encoders.spherical import PowerSphericalEncoder as PowerSphericalEncoder
