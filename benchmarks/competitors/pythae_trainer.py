"""pythae's BaseTrainer with its VAE or IWAE and the layers of the workload.

Pixels are real-valued, as pythae takes them: nothing is drawn per batch. No evaluation, no
checkpoints, and its progress bar switched off by the variable that tqdm reads.
"""

import os
import tempfile
from collections.abc import Callable

os.environ["TQDM_DISABLE"] = "1"

import numpy as np
import torch
from pythae.data.datasets import BaseDataset
from pythae.models import IWAE, VAE, IWAEConfig, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from pythae.trainers.training_callbacks import TrainingCallback
from torch import Tensor
from workloads import Workload

from competitors.layers import decoder, encoder, pixels


class Encoder(BaseEncoder):
    """The workload's encoder."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self.layers = encoder(workload)

    def forward(self, x: Tensor) -> ModelOutput:
        """Return the mean and the log variance."""
        mean, log_var = self.layers(x).chunk(2, dim=1)
        return ModelOutput(embedding=mean, log_covariance=log_var)


class Decoder(BaseDecoder):
    """The workload's decoder."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self.layers = decoder(workload)

    def forward(self, z: Tensor) -> ModelOutput:
        """Return the means of the pixels."""
        return ModelOutput(reconstruction=torch.sigmoid(self.layers(z)))


class FinishedError(Exception):
    """Exception that ends a training, because pythae has no other way."""


class EndOfRound(TrainingCallback):
    """Callback that ends a round after every epoch."""

    def __init__(self, round_done: Callable[[], bool]) -> None:
        self.round_done = round_done

    def on_epoch_end(self, training_config: BaseTrainerConfig, **kwargs: object) -> None:
        """End the round."""
        if not self.round_done():
            raise FinishedError


def build(workload: Workload) -> VAE:
    """Return the model of the workload."""
    sizes = {"input_dim": workload.data_shape, "latent_dim": workload.latent_dim}
    parts = {"encoder": Encoder(workload), "decoder": Decoder(workload)}
    if workload.num_samples == 1:
        return VAE(VAEConfig(**sizes, reconstruction_loss="bce"), **parts)
    samples = workload.num_samples
    return IWAE(IWAEConfig(**sizes, reconstruction_loss="bce", number_samples=samples), **parts)


def run(workload: Workload, images: np.ndarray, round_done: Callable[[], bool]) -> None:
    """Train."""
    data = BaseDataset(pixels(torch.from_numpy(images), workload), torch.zeros(len(images)))
    with tempfile.TemporaryDirectory() as folder:
        config = BaseTrainerConfig(
            output_dir=folder,
            per_device_train_batch_size=workload.batch_size,
            num_epochs=10**9,
            learning_rate=1e-3,
        )
        callbacks = [EndOfRound(round_done)]
        trainer = BaseTrainer(build(workload), data, training_config=config, callbacks=callbacks)
        try:
            trainer.train()
        except FinishedError:
            return
