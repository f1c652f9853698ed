r"""Normalizing flows: bijections with a Jacobian whose determinant is known.

.. math:: z = T(\epsilon \mid c), \qquad
    \log p(z) = \log p(\epsilon) - \log |\det \partial T / \partial \epsilon|
"""

from tinyvae.flows.autoregressive import Flow
from tinyvae.flows.base import Bijection, NormalizingFlow, Transformed
from tinyvae.flows.latents import FlowEncoder, FlowPrior
from tinyvae.flows.planar import PlanarFlow, RadialFlow

__all__ = [
    "Bijection",
    "Flow",
    "FlowEncoder",
    "FlowPrior",
    "NormalizingFlow",
    "PlanarFlow",
    "RadialFlow",
    "Transformed",
]
