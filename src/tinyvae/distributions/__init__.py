"""Distributions and their closed-form divergences.

Every conditional density of a model is a :class:`Distribution`. A scalar family (:class:`Normal`,
:class:`Bernoulli`) treats every element of its parameters as a batch; :class:`Independent` turns
the last dimensions into one event by summing log densities over them. Shapes follow
``torch.distributions``: a value is ``(*S, *batch, *event)`` and its log density ``(*S, *batch)``.

Log densities include their constants and are in nats. ``torch.distributions`` itself enters only
through :class:`TorchDistribution`.
"""

from tinyvae.distributions.base import (
    Distribution,
    Independent,
    TorchDistribution,
    Wrapper,
    sum_last,
)
from tinyvae.distributions.composed import (
    Affine,
    Columns,
    Joint,
    Mixture,
    Observed,
    Unflattened,
    ZeroInflated,
)
from tinyvae.distributions.continuous import (
    Beta,
    ContinuousBernoulli,
    Laplace,
    LogNormal,
    Normal,
    StudentT,
    UnitNormal,
)
from tinyvae.distributions.discrete import (
    Bernoulli,
    Categorical,
    DiscretisedLogistic,
    NegativeBinomial,
    OneHotCategorical,
    Poisson,
)
from tinyvae.distributions.kl import NoClosedForm, has_closed_form, kl_divergence
from tinyvae.distributions.multivariate import Delta, FullNormal, LowRankNormal
from tinyvae.distributions.quantized import Codes, Quantized
from tinyvae.distributions.relaxed import GumbelSoftmax, StraightThrough
from tinyvae.distributions.spherical import PowerSpherical, SphereUniform

__all__ = [
    "Affine",
    "Bernoulli",
    "Beta",
    "Categorical",
    "Codes",
    "Columns",
    "ContinuousBernoulli",
    "Delta",
    "DiscretisedLogistic",
    "Distribution",
    "FullNormal",
    "GumbelSoftmax",
    "Independent",
    "Joint",
    "Laplace",
    "LogNormal",
    "LowRankNormal",
    "Mixture",
    "NegativeBinomial",
    "NoClosedForm",
    "Normal",
    "Observed",
    "OneHotCategorical",
    "Poisson",
    "PowerSpherical",
    "Quantized",
    "SphereUniform",
    "StraightThrough",
    "StudentT",
    "TorchDistribution",
    "Unflattened",
    "UnitNormal",
    "Wrapper",
    "ZeroInflated",
    "has_closed_form",
    "kl_divergence",
    "sum_last",
]
