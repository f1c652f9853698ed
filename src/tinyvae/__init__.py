"""Variational autoencoders that are exact, small and fast: four axes that compose.

Posterior, decoder with likelihood, prior, objective: each is a module of its own, and any goes with
any. :class:`VAE` puts the first three together, an :class:`Objective` says what is optimised, and
the :class:`Trainer`, which knows neither, optimises it.
"""

from tinyvae import datasets
from tinyvae._version import __version__
from tinyvae.distributions import (
    Bernoulli,
    Distribution,
    Independent,
    NoClosedForm,
    Normal,
    TorchDistribution,
    kl_divergence,
)
from tinyvae.encoders import Encoder, GaussianEncoder
from tinyvae.evaluation import Estimate, Report, evaluate, impute, log_marginal
from tinyvae.files import CheckpointError
from tinyvae.likelihoods import (
    BernoulliLikelihood,
    BetaLikelihood,
    CategoricalLikelihood,
    Column,
    ContinuousBernoulliLikelihood,
    DiscretisedLogisticLikelihood,
    Fixed,
    GaussianLikelihood,
    LaplaceLikelihood,
    Learned,
    Likelihood,
    LogNormalLikelihood,
    Masked,
    MixedLikelihood,
    MixtureLikelihood,
    NegativeBinomialLikelihood,
    OneHotLikelihood,
    OptimalGaussianLikelihood,
    PoissonLikelihood,
    Positive,
    Predicted,
    StandardisedLikelihood,
    StudentTLikelihood,
    ZeroInflatedLikelihood,
)
from tinyvae.networks import MLP, ConvNet, Network, TransposedConvNet
from tinyvae.objective import Batch, Objective, ObjectiveOutput
from tinyvae.objectives import ELBO
from tinyvae.priors import Prior, StandardNormal
from tinyvae.record import LatentTerm, LatentVariableModel, VAEOutput
from tinyvae.schedules import Constant, Cosine, Cyclical, Linear, Schedule
from tinyvae.summary import summary
from tinyvae.training import (
    Callback,
    EarlyStopping,
    History,
    NonFiniteError,
    Optimization,
    Trainer,
)
from tinyvae.vae import VAE

__all__ = [
    "ELBO",
    "MLP",
    "VAE",
    "Batch",
    "Bernoulli",
    "BernoulliLikelihood",
    "BetaLikelihood",
    "Callback",
    "CategoricalLikelihood",
    "CheckpointError",
    "Column",
    "Constant",
    "ContinuousBernoulliLikelihood",
    "ConvNet",
    "Cosine",
    "Cyclical",
    "DiscretisedLogisticLikelihood",
    "Distribution",
    "EarlyStopping",
    "Encoder",
    "Estimate",
    "Fixed",
    "GaussianEncoder",
    "GaussianLikelihood",
    "History",
    "Independent",
    "LaplaceLikelihood",
    "LatentTerm",
    "LatentVariableModel",
    "Learned",
    "Likelihood",
    "Linear",
    "LogNormalLikelihood",
    "Masked",
    "MixedLikelihood",
    "MixtureLikelihood",
    "NegativeBinomialLikelihood",
    "Network",
    "NoClosedForm",
    "NonFiniteError",
    "Normal",
    "Objective",
    "ObjectiveOutput",
    "OneHotLikelihood",
    "OptimalGaussianLikelihood",
    "Optimization",
    "PoissonLikelihood",
    "Positive",
    "Predicted",
    "Prior",
    "Report",
    "Schedule",
    "StandardNormal",
    "StandardisedLikelihood",
    "StudentTLikelihood",
    "TorchDistribution",
    "Trainer",
    "TransposedConvNet",
    "VAEOutput",
    "ZeroInflatedLikelihood",
    "__version__",
    "datasets",
    "evaluate",
    "impute",
    "kl_divergence",
    "log_marginal",
    "summary",
]
