"""Features of data by a small network that is trained here, without a download."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyvae.core.random import forked_rng
from tinyvae.metrics.scores import Labels, as_labels
from tinyvae.networks import MLP, ConvNet

REPLACED = 0.3  # share of the entries that the task without labels replaces


def train_features(
    x: Tensor,
    labels: Labels | None = None,
    *,
    num_features: int = 32,
    epochs: int = 20,
    batch_size: int = 100,
    learning_rate: float = 2e-3,
    seed: int = 0,
) -> MLP | ConvNet:
    r"""Train a small network on data, and return its last hidden layer as features.

    With labels it learns to predict them by a linear layer on the features. Without, 30% of the
    entries of each example are replaced by those of other examples, at the same positions, and a
    linear layer on the features learns to restore the example, by the squared error.

    Images ``(C, H, W)`` pass through a :class:`~tinyvae.networks.ConvNet` that ends in one pixel,
    other data through an :class:`~tinyvae.networks.MLP` of two layers. The mean of the
    features' variances over the training data is one.

    Features know what the task needs and no more: compare models by the same network only, and
    train it on other data than those that the metrics compare.

    Args:
        x: Training data, standardized or between 0 and 1.
        labels: Class of each example.
        num_features: Number of features :math:`D`. The Frechet distance needs many more rows.
        epochs: Passes over the data.
        batch_size: Examples per update.
        learning_rate: Learning rate of Adam.
        seed: Seed of the weights, the order and the task.

    Shape:
        x: ``(N, *E)``; labels: ``(N,)``. The network maps ``(N, *E)`` to ``(N, num_features)``,
        and images to ``(N, num_features, 1, 1)``, which all metrics flatten.

    Returns:
        Network in evaluation mode with frozen weights, on the device of ``x``.

    Raises:
        ValueError: If a shape or value is invalid.

    References:
        Vincent, Larochelle, Bengio, Manzagol (2008). Extracting and Composing Robust Features with
        Denoising Autoencoders. ICML (the task without labels).

    Example:
        >>> images, labels = torch.rand(200, 1, 8, 8), torch.arange(200) % 10
        >>> network = train_features(images, labels, epochs=1)
        >>> network(images).shape
        torch.Size([200, 32, 1, 1])
        >>> likelihood = PerceptualLikelihood(FeatureDistance(network), weight=10.0)
    """
    if not x.is_floating_point() or x.dim() < 2 or len(x) < 2 or not x.isfinite().all():
        raise ValueError(
            f"train_features expects finite floats (N, *E) with N >= 2, got {tuple(x.shape)} of "
            f"{x.dtype}: convert the data, such as by x.float() / 255"
        )
    classes = None
    if labels is not None:
        index = as_labels("train_features", labels, len(x))
        if index.dtype.kind != "i":
            raise ValueError("train_features expects classes as labels, got real numbers: bin them")
        classes = torch.as_tensor(index, device=x.device)
    generator = torch.Generator().manual_seed(seed)
    with forked_rng(x.device, seed), torch.enable_grad():
        network = _network(x.shape[1:], num_features).to(x)
        outputs = x[0].numel() if classes is None else int(classes.max()) + 1
        head = nn.Linear(num_features, outputs).to(x)
        optimizer = torch.optim.Adam([*network.parameters(), *head.parameters()], learning_rate)
        for _ in range(epochs):
            order = torch.randperm(len(x), generator=generator).to(x.device)
            for rows in order.split(batch_size):
                if classes is None:
                    others = x[torch.randint(len(x), (len(rows),), generator=generator)]
                    replaced = torch.rand(others.shape, generator=generator).to(x) < REPLACED
                    restored = head(network(torch.where(replaced, others, x[rows])).flatten(1))
                    loss = F.mse_loss(restored, x[rows].flatten(1))
                else:
                    loss = F.cross_entropy(head(network(x[rows]).flatten(1)), classes[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    network.requires_grad_(False).eval()
    with torch.no_grad():
        _normalize(network, x.split(batch_size))
    return network


def _network(shape: torch.Size, num_features: int) -> MLP | ConvNet:
    if len(shape) != 3:
        return MLP(shape, hidden=(200, num_features))
    halvings = math.ceil(math.log2(max(2, *shape[1:])))  # to one pixel
    return ConvNet(shape, channels=(32, *[64] * (halvings - 2), num_features)[-halvings:])


def _normalize(network: MLP | ConvNet, batches: Sequence[Tensor]) -> None:
    """Scale the last layer so that the mean variance of the features is one."""
    # One scale for all: a feature that is almost always zero must not become a large one.
    features = torch.cat([network(batch) for batch in batches]).flatten(1)
    variance = features.var(0).mean()
    layer: nn.Module = network.layers[-2]  # before a ReLU, for which relu(a x) = a relu(x)
    if variance > 0:
        for parameter in layer.parameters():
            parameter.div_(variance.sqrt())
