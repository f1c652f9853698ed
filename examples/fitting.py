"""Code that the examples of latents share: arguments, binary images, training."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from tinyvae import ELBO, Batch, History, Objective, Optimization, Trainer
from tinyvae.datasets import LabeledImages, digits, mnist, split, threshold
from tinyvae.models import LatentVariableModel

Model = TypeVar("Model", bound=LatentVariableModel)


def arguments(description: str, *, epochs: int, seeds: int = 3) -> argparse.Namespace:
    """Parse the arguments of an example."""
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument("--mnist", type=Path, help="folder of MNIST/raw (default: the digits)")
    parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--output", type=Path, default=Path("runs/gallery"))
    return parser.parse_args()


def images(root: Path | None) -> tuple[LabeledImages, LabeledImages]:
    """Return training and test images: the embedded digits, or MNIST."""
    if root is None:
        train, test = split(digits(), (1397, 400))
        return train, test
    return mnist(root), mnist(root, train=False)


def binary(data: LabeledImages) -> Tensor:
    """Return 1 for pixels brighter than half of white, 0 for others."""
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
    """Minimize an objective by Adam, with a learning rate that falls to zero along a cosine."""
    optimization = Optimization(learning_rate, schedule="cosine")
    trainer = Trainer(model, objective(), optimization, seed=seed, progress=False)
    data = train if context is None else (train, context)
    to_batch = None if context is None else (lambda pair: Batch(x=pair[0], context=pair[1]))
    history = trainer.fit(data, validation, epochs=epochs, batch_size=batch_size, batch=to_batch)
    return model.cpu(), history
