"""Page that decodes latent points in the browser."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tinyvae.plotting.images import Limits
from tinyvae.plotting.latent import CLASS_COLORS

# Activations that the page computes, and the attributes that it needs.
ACTIVATIONS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.ELU: ("alpha",),
    nn.GELU: (),
    nn.LeakyReLU: ("negative_slope",),
    nn.ReLU: (),
    nn.SiLU: (),
    nn.Sigmoid: (),
    nn.Softplus: ("beta", "threshold"),
    nn.Tanh: (),
}
WITHOUT_EFFECT = (nn.Dropout, nn.Flatten, nn.Identity, nn.Unflatten)
MAX_BYTES = 1_000_000


class DecodingVAE(Protocol):
    """Part of a :class:`~tinyvae.VAE` that the page needs."""

    decoder: nn.Module

    @property
    def latent_shape(self) -> torch.Size:
        """Shape of a latent point."""

    def encode(self, x: Tensor) -> Any:
        """Return q(z given x)."""

    def decode(self, z: Tensor) -> Any:
        """Return p(x given z)."""


def latent_page(
    vae: DecodingVAE,
    path: str | Path,
    data: Tensor | None = None,
    labels: Tensor | None = None,
    *,
    limits: Limits = (0.0, 1.0),
    title: str = "Latent space",
) -> Path:
    """Write a page on which one drags z and sees the mean of p(x given z).

    The page is one HTML file with the weights of the decoder, which the browser evaluates. It needs
    no server and no network. Dots are the posterior means of ``data``. A click on a dot walks to
    it, so two clicks walk from one image to another.

    Args:
        vae: Model of images, with a latent vector. Its decoder is a sequence of linear layers and
            ELU, GELU, LeakyReLU, ReLU, SiLU, Sigmoid, Softplus or Tanh. The mean of its likelihood
            is the decoder's output or the sigmoid of it, as with a Bernoulli or Gaussian one.
        path: Path of the file. A missing folder is made.
        data: Images that are shown as dots, such as 1,000 test images.
        labels: Class of each image, for the color of its dot.
        limits: Values of black and white.
        title: Title of the page.

    Shape:
        data: ``(N, H, W)``, ``(N, 1, H, W)`` or ``(N, 3, H, W)``; labels: ``(N,)``, integers.

    Returns:
        The path.

    Raises:
        ValueError: If the page cannot compute the decoder or show its output, or if the file would
            exceed 1 MB.

    Example:
        >>> import tempfile
        >>> images = VAE.from_shapes((1, 4, 4), latent_dim=2, likelihood=BernoulliLikelihood())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     latent_page(images, f"{folder}/page.html").read_text()[:15]
        '<!doctype html>'
    """
    if len(vae.latent_shape) != 1:
        raise ValueError(
            f"latent_page expects a latent vector (L,), got {tuple(vae.latent_shape)}: "
            "draw traversals of it"
        )
    means = encoded_means(vae, data)  # (N, L)
    layers, shape = decoder_layers(vae)
    index = torch.zeros(len(means), dtype=torch.int64) if labels is None else labels.cpu()
    if index.shape != means.shape[:1]:
        raise ValueError(
            f"latent_page expects labels ({len(means)},), got {tuple(index.shape)}: "
            "pass the class of each image"
        )
    spread = means.std(0, correction=0) if len(means) else torch.zeros(vae.latent_shape)
    axes = spread.argsort(descending=True, stable=True)[:2].tolist()
    page = {
        "layers": layers,
        "shape": shape,
        "limits": limits,
        "points": rounded(means, 4),
        "colors": [CLASS_COLORS[i % len(CLASS_COLORS)] for i in index.tolist()],
        "range": max([3.0, *means.abs().flatten().tolist()]),
        "axes": [axes[0], axes[-1]],
        "start": rounded(means[0], 4) if len(means) else [0.0] * len(spread),
    }
    content = json.dumps(page, separators=(",", ":"))
    template = Path(__file__).with_suffix(".html").read_text("utf-8")
    text = template.replace("PAGE", content).replace("TITLE", html.escape(title))
    if len(text) > MAX_BYTES:
        raise ValueError(
            f"latent_page expects a decoder and data that fit into 1 MB, got {len(text):,} bytes: "
            "use narrower layers or fewer data"
        )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return path


def encoded_means(vae: DecodingVAE, data: Tensor | None) -> Tensor:
    """Return the posterior means of the data ``(N, L)``, on the CPU."""
    if data is None:
        return torch.zeros(0, *vae.latent_shape)
    with torch.no_grad():
        mean: Tensor = vae.encode(data).mean
    return mean.float().cpu()


def decoder_layers(vae: DecodingVAE) -> tuple[list[dict[str, Any]], list[int]]:
    """Return the layers that compute the mean from z, and its shape ``[C, H, W]``."""
    modules = [
        (name, module)
        for name, module in vae.decoder.named_modules()
        if not list(module.children()) and not isinstance(module, WITHOUT_EFFECT)
    ]
    for name, module in modules:
        if type(module) not in (nn.Linear, *ACTIVATIONS):
            names = ", ".join(sorted(activation.__name__ for activation in ACTIVATIONS))
            raise ValueError(
                f"latent_page expects a decoder of Linear and {names}, got "
                f"{type(module).__name__} as 'decoder.{name}': use an MLP, or draw latent_map"
            )
    like = next(vae.decoder.parameters(), torch.empty(0))
    z = torch.randn(64, *vae.latent_shape, generator=torch.Generator().manual_seed(0)).to(like)
    with torch.no_grad():
        mean = vae.decode(z).mean  # (64, *E)
        output = z
        for _, module in modules:
            output = module(output)
    shape = list(mean.shape[1:])
    if len(shape) == 2:
        shape = [1, *shape]
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise ValueError(
            f"latent_page expects images (H, W), (1, H, W) or (3, H, W), got {tuple(shape)}: "
            "draw other data in a figure of their own"
        )
    size = mean[0].numel()
    output, mean = output.flatten(1)[:, :size], mean.flatten(1)  # location first, then scales
    layers = [exported(module) for _, module in modules]
    if modules and isinstance(modules[-1][1], nn.Linear):
        layers[-1] = {key: values[:size] for key, values in layers[-1].items()}
    if equal(output.sigmoid(), mean):
        layers.append({"name": "Sigmoid", "args": []})
    elif not equal(output, mean):
        raise ValueError(
            "latent_page expects layers that run one after the other, and a likelihood whose mean "
            "is their output or its sigmoid, got another mean: use an MLP with a Bernoulli or "
            "Gaussian likelihood, or draw latent_map"
        )
    return layers, shape


def equal(output: Tensor, mean: Tensor) -> bool:
    """Return True if both are equal up to rounding."""
    return output.shape == mean.shape and torch.allclose(output, mean, rtol=1e-5, atol=1e-6)


def exported(module: nn.Module) -> dict[str, Any]:
    """Return the description of a layer for the page."""
    if isinstance(module, nn.Linear):
        bias = torch.zeros(module.out_features) if module.bias is None else module.bias
        return {"weight": rounded(module.weight, 7), "bias": rounded(bias, 7)}
    names = ACTIVATIONS[type(module)]
    return {"name": type(module).__name__, "args": [getattr(module, name) for name in names]}


def rounded(values: Tensor, digits: int) -> Any:
    """Return nested lists of numbers with ``digits`` significant digits."""
    if values.dim() > 1:
        return [rounded(row, digits) for row in values]
    return [float(f"{value:.{digits}g}") for value in values.tolist()]
