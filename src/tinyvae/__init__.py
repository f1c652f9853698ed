"""Variational autoencoders in PyTorch: exact, simple, useful, fast, reliable.

A model is composed of parts along four axes, and any part of one axis works with any part of
another: the posterior (an encoder), the decoder with its likelihood, the prior, and the objective.
:class:`VAE` combines the first three. An :class:`~tinyvae.core.Objective` defines the loss, and the
:class:`Trainer`, which depends on neither, minimizes it.

The names that most programs need are here. All other names are in the submodules.
"""

from tinyvae import datasets as datasets
from tinyvae import distributions as distributions
from tinyvae import encoders as encoders
from tinyvae import errors as errors
from tinyvae import evaluation as evaluation
from tinyvae import flows as flows
from tinyvae import likelihoods as likelihoods
from tinyvae import metrics as metrics
from tinyvae import models as models
from tinyvae import networks as networks
from tinyvae import objectives as objectives
from tinyvae import priors as priors
from tinyvae import schedules as schedules
from tinyvae import training as training
from tinyvae._version import __version__ as __version__
from tinyvae.core import Batch as Batch
from tinyvae.core import Objective as Objective
from tinyvae.encoders import Encoder as Encoder
from tinyvae.encoders import GaussianEncoder as GaussianEncoder
from tinyvae.errors import TinyVAEError as TinyVAEError
from tinyvae.evaluation import evaluate as evaluate
from tinyvae.evaluation import impute as impute
from tinyvae.evaluation import log_marginal as log_marginal
from tinyvae.likelihoods import BernoulliLikelihood as BernoulliLikelihood
from tinyvae.likelihoods import CategoricalLikelihood as CategoricalLikelihood
from tinyvae.likelihoods import GaussianLikelihood as GaussianLikelihood
from tinyvae.likelihoods import Likelihood as Likelihood
from tinyvae.models import VAE as VAE
from tinyvae.models import BottomUpVAE as BottomUpVAE
from tinyvae.models import LadderVAE as LadderVAE
from tinyvae.models import TwoLevelVAE as TwoLevelVAE
from tinyvae.models import summary as summary
from tinyvae.networks import MLP as MLP
from tinyvae.networks import ConvNet as ConvNet
from tinyvae.networks import Decoder as Decoder
from tinyvae.networks import ResNet as ResNet
from tinyvae.networks import TransposedConvNet as TransposedConvNet
from tinyvae.networks import TransposedResNet as TransposedResNet
from tinyvae.objectives import ELBO as ELBO
from tinyvae.objectives import IWAE as IWAE
from tinyvae.priors import Prior as Prior
from tinyvae.priors import StandardNormal as StandardNormal
from tinyvae.priors import VampPrior as VampPrior
from tinyvae.training import Callback as Callback
from tinyvae.training import Checkpoint as Checkpoint
from tinyvae.training import EarlyStopping as EarlyStopping
from tinyvae.training import History as History
from tinyvae.training import Optimization as Optimization
from tinyvae.training import Speed as Speed
from tinyvae.training import Trainer as Trainer
