"""A model at a glance: layers, shapes, parameters."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from tinyvae.core.module_state import evaluating
from tinyvae.models.base import DecoderModel
from tinyvae.networks import Network


def summary(
    vae: DecoderModel, data_shape: Sequence[int] | None = None, context: Tensor | None = None
) -> str:
    """Describe a VAE: every layer with its output's shape and its parameters.

    Args:
        vae: The model.
        data_shape: Shape of one datum ``E``; read off an encoder whose network is a
            :class:`~tinyvae.networks.Network`, needed otherwise.
        context: A row of what the model is conditioned on, ``(1, ...)``, where it reads one.

    Example:
        >>> print(summary(vae))
        VAE of data (4,), latent (2,), BernoulliLikelihood()
        encoder.network.layers.0  Linear  (8,)       40
        encoder.network.layers.1  ReLU    (8,)        0
        encoder.head              Linear  (4,)       36
        decoder.layers.0          Linear  (8,)       24
        decoder.layers.1          ReLU    (8,)        0
        decoder.layers.2          Linear  (4,)       36
        total                                       136
    """
    shape = torch.Size(_data_shape(vae) if data_shape is None else data_shape)
    parameters = set(vae.parameters())
    total = elsewhere = _size(parameters)
    rows = []
    for name, module, output in _trace(vae, shape, context):
        new = parameters.intersection(module.parameters(recurse=False))
        parameters -= new  # shared ones count where they are met first
        elsewhere -= _size(new)
        rows.append((name, type(module).__name__, str(output), f"{_size(new):,}"))
    if elsewhere:
        rows.append(("parameters of no layer", "", "", f"{elsewhere:,}"))
    rows.append(("total", "", "", f"{total:,}"))
    name, latent = type(vae).__name__, tuple(vae.latent_shape)
    head = f"{name} of data {tuple(shape)}, latent {latent}, {vae.likelihood}"
    return "\n".join([head, *_align(rows)])


def _data_shape(vae: DecoderModel) -> torch.Size:
    for module in next(vae.children()).modules():
        if isinstance(module, Network):
            return module.in_shape
    raise ValueError("summary cannot tell the data's shape from the encoder: give data_shape=")


def _size(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)


def _trace(
    vae: DecoderModel, data_shape: torch.Size, context: Tensor | None
) -> list[tuple[str, nn.Module, tuple[int, ...]]]:
    """Layers in the order of their calls, with the shape of one output."""
    names = {module: name for name, module in vae.named_modules()}
    calls: list[tuple[str, nn.Module, tuple[int, ...]]] = []

    def record(module: nn.Module, args: object, output: object) -> None:
        del args
        if isinstance(output, Tensor) and len(output) == 1:  # not of pseudo-inputs
            calls.append((names[module], module, tuple(output.shape[1:])))

    # A dictionary, for a layer that encoder and decoder share takes one hook.
    layers = dict.fromkeys(m for m in vae.modules() if m not in set(vae.likelihood.modules()))
    hooks = [m.register_forward_hook(record) for m in layers if not list(m.children())]
    reference = next(vae.parameters(), torch.empty(0))
    x = torch.zeros((1, *data_shape), dtype=reference.dtype, device=reference.device)
    try:
        with evaluating(vae), torch.no_grad():
            vae.reconstruct(x, context)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _align(rows: list[tuple[str, str, str, str]]) -> list[str]:
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    padded = [[cell.ljust(w) for cell in c] for c, w in zip(columns[:3], widths[:3], strict=True)]
    padded.append([cell.rjust(widths[3]) for cell in columns[3]])
    return ["  ".join(cells) for cells in zip(*padded, strict=True)]
