"""tinyvae's Trainer: images stay bytes, and binary pixels are drawn per batch."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import nn
from workloads import Workload

from tinyvae import (
    ELBO,
    IWAE,
    MLP,
    VAE,
    BernoulliLikelihood,
    Callback,
    ConvNet,
    GaussianEncoder,
    Speed,
    Trainer,
    TransposedConvNet,
)
from tinyvae.datasets import DynamicBinarization
from tinyvae.training import TrainState, tune_malloc
from tinyvae.training.history import Row


def build(workload: Workload) -> VAE:
    """Return the model of the workload."""
    shape, hidden, latent_dim = workload.data_shape, workload.hidden, workload.latent_dim
    activation = nn.Tanh if workload.activation == "tanh" else nn.ReLU
    if workload.convolutional:
        network = ConvNet(shape, hidden, activation=activation)
        decoder = TransposedConvNet(latent_dim, shape, hidden[::-1], activation=activation)
    else:
        network = MLP(shape, hidden, activation=activation)
        decoder = MLP(latent_dim, hidden[::-1], shape, activation=activation)
    return VAE(GaussianEncoder(network, latent_dim), decoder, BernoulliLikelihood())


class EndOfRound(Callback):
    """Callback that ends a round after every epoch."""

    def __init__(self, round_done: Callable[[], bool]) -> None:
        self.round_done = round_done

    def on_epoch_end(self, state: TrainState, row: Row) -> None:
        """End the round."""
        if not self.round_done():
            state.stop("end of the measurement")


def run(
    workload: Workload,
    images: np.ndarray,
    round_done: Callable[[], bool],
    *,
    compile: bool = False,  # noqa: A002
    keep: bool = False,
) -> None:
    """Train, optionally with freed memory kept."""
    if keep:
        tune_malloc()
    objective = ELBO() if workload.num_samples == 1 else IWAE(workload.num_samples)
    callbacks = [EndOfRound(round_done)]
    trainer = Trainer(
        build(workload),
        objective,
        callbacks=callbacks,
        speed=Speed(compile=compile),
        device="cpu",
        progress=False,
    )
    trainer.fit(
        torch.from_numpy(images),
        epochs=10**9,
        batch_size=workload.batch_size,
        transform=DynamicBinarization(255) if workload.gray else None,
    )


run_compiled = partial(run, compile=True)
run_kept = partial(run, keep=True)
run_both = partial(run, compile=True, keep=True)
