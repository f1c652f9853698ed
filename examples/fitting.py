"""What the examples of latents share: binary images, and one way to fit to them."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from tinyvae import ELBO, Batch, History, Objective, Optimization, Trainer
from tinyvae.datasets import LabeledImages, digits, mnist, split, threshold
from tinyvae.models import LatentVariableModel

__all__ = ["arguments", "binary", "fit", "images"]

Model = TypeVar("Model", bound=LatentVariableModel)


def arguments(description: str, *, epochs: int, seeds: int = 3) -> argparse.Namespace:
    """What every one of these examples can be told."""
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument("--mnist", type=Path, help="folder that holds MNIST/raw; else the digits")
    parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--output", type=Path, default=Path("runs/gallery"))
    return parser.parse_args()


def images(root: Path | None) -> tuple[LabeledImages, LabeledImages]:
    """Images to train on and to test on: the embedded digits, or MNIST."""
    if root is None:
        train, test = split(digits(), (1397, 400))
        return train, test
    return mnist(root), mnist(root, train=False)


def binary(data: LabeledImages) -> Tensor:
    """Zeros and ones: brighter than half of white, or not."""
    return threshold(data.images, data.max_value / 2)


def fit(
    model: Model,
    train: Tensor,
    context: Tensor | None = None,
    *,
    epochs: int,
    seed: int,
    objective: Callable[[], Objective] = ELBO,
    learning_rate: float = 3e-3,
    batch_size: int = 64,
    validation: Any = None,
) -> tuple[Model, History]:
    """Maximize a bound by Adam, annealed to zero along a cosine."""
    optimization = Optimization(learning_rate, schedule="cosine")
    trainer = Trainer(model, objective(), optimization, seed=seed, progress=False)
    data = train if context is None else (train, context)
    pick = None if context is None else (lambda pair: Batch(x=pair[0], context=pair[1]))
    history = trainer.fit(data, validation, epochs=epochs, batch_size=batch_size, batch=pick)
    return model.cpu(), history
