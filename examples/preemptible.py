"""A run that may be killed as often as one likes.

    python examples/preemptible.py

trains on the embedded digits in a folder, ``runs/preemptible`` or ``--output``. Kill it in any way
(Ctrl-C, ``kill``, ``kill -9``, a crash of the machine) and start it again by the same line: it goes
on at the step of its last checkpoint, and ends with bitwise the weights of a run that nobody has
touched. ``--show`` does this to itself: it kills a run at random instants, SIGKILL and SIGTERM in
turn, until it gets through, trains another in peace, compares the two, and draws what happened.
"""

import argparse
import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from tinyvae import (
    ELBO,
    MLP,
    VAE,
    BernoulliLikelihood,
    Checkpoint,
    EarlyStopping,
    GaussianEncoder,
    Linear,
    Trainer,
)
from tinyvae.datasets import DynamicBinarisation, digits

EPOCHS = 60


def train(folder: Path) -> None:
    """Train, or go on with it."""
    data = digits()
    images = data.images
    torch.manual_seed(0)
    vae = VAE(
        GaussianEncoder(MLP((1, 8, 8), hidden=(128,)), latent_dim=8),
        MLP(8, hidden=(128,), out_shape=(1, 8, 8)),
        BernoulliLikelihood(),
    )
    checkpoint = Checkpoint(folder, every_steps=10, keep=3, monitor="validation/elbo_nats")
    trainer = Trainer(
        vae,
        ELBO(beta=Linear(0.0, 1.0, fraction=0.5)),
        callbacks=[checkpoint, EarlyStopping(patience=40)],
    )
    history = trainer.fit(
        images[:1400],
        images[1400:],
        epochs=EPOCHS,
        transform=DynamicBinarisation(data.max_value),
        resume="auto",
    )
    print(
        f"validation ELBO {history['validation/elbo_nats'][-1]:.2f} nats after {trainer.step} steps"
    )
