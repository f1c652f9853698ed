"""Models, composed of an encoder, a decoder with its likelihood, and a prior."""

from tinyvae.models.base import DecoderModel as DecoderModel
from tinyvae.models.hierarchical import BottomUpVAE as BottomUpVAE
from tinyvae.models.hierarchical import LadderVAE as LadderVAE
from tinyvae.models.output import LatentTerm as LatentTerm
from tinyvae.models.output import LatentVariableModel as LatentVariableModel
from tinyvae.models.output import VAEOutput as VAEOutput
from tinyvae.models.summary import summary as summary
from tinyvae.models.two_level import TwoLevelVAE as TwoLevelVAE
from tinyvae.models.vae import VAE as VAE
