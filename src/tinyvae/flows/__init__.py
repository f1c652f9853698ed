r"""Normalizing flows: bijections whose Jacobian has a known determinant.

.. math:: z = T(\epsilon \mid c), \qquad
    \log p(z) = \log p(\epsilon) - \log |\det \partial T / \partial \epsilon|
"""

from tinyvae.flows.autoregressive import Flow as Flow
from tinyvae.flows.base import Bijection as Bijection
from tinyvae.flows.base import NormalizingFlow as NormalizingFlow
from tinyvae.flows.base import Transformed as Transformed
from tinyvae.flows.planar import PlanarFlow as PlanarFlow
from tinyvae.flows.planar import RadialFlow as RadialFlow
