"""Summary of a model: layers, shapes, parameters."""

import html
from collections.abc import Iterable, Sequence
from contextlib import suppress

import torch
from torch import Tensor, nn

from tinyvae.core.objective import checked_data
from tinyvae.models.base import DecoderModel


class Summary(str):
    """Text of a summary, which keeps its columns in a notebook."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self)}</pre>"


def summary(
    vae: DecoderModel, data_shape: Sequence[int] | None = None, context: Tensor | None = None
) -> Summary:
    """Return a table of all layers, with the shape of one output and the number of parameters.

    Args:
        vae: The model.
        data_shape: Shape of one datum ``E``, by default ``vae.data_shape``.
        context: One row of context, ``(1, ...)``, for a model that reads one.

    Raises:
        ValueError: If the shape of one datum is unknown.

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
    data_shape = vae.data_shape if data_shape is None else data_shape
    if data_shape is None:
        raise ValueError(
            "summary cannot infer the shape of the data from the encoder: give data_shape="
        )
    shape = torch.Size(data_shape)
    parameters = set(vae.parameters())
    total = unlisted = _count(parameters)
    rows = []
    for name, module, output in _trace(vae, shape, context):
        new = parameters.intersection(module.parameters(recurse=False))
        parameters -= new  # Shared parameters count once, at their first layer.
        unlisted -= _count(new)
        rows.append((name, type(module).__name__, str(output), f"{_count(new):,}"))
    if unlisted:
        rows.append(("parameters of no layer", "", "", f"{unlisted:,}"))
    rows.append(("total", "", "", f"{total:,}"))
    name, latent = type(vae).__name__, tuple(vae.latent_shape)
    head = f"{name} of data {tuple(shape)}, latent {latent}, {vae.likelihood}"
    return Summary("\n".join([head, *_align(rows)]))


def describe(model: nn.Module) -> str:
    """Return the summary of a model, or its layers if the shapes are unknown or need a context."""
    if isinstance(model, DecoderModel):
        with suppress(RuntimeError, TypeError, ValueError):
            return summary(model)
    return repr(model)


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)


def _trace(
    vae: DecoderModel, data_shape: torch.Size, context: Tensor | None
) -> list[tuple[str, nn.Module, tuple[int, ...]]]:
    """Return the layers in the order of their calls, with the shape of one output."""
    names = {module: name for name, module in vae.named_modules()}
    calls: list[tuple[str, nn.Module, tuple[int, ...]]] = []

    def record(module: nn.Module, args: object, output: object) -> None:
        del args
        if isinstance(output, Tensor) and len(output) == 1:  # Pseudo-inputs are more rows.
            calls.append((names[module], module, tuple(output.shape[1:])))

    # A dictionary, because a layer that encoder and decoder share gets one hook.
    layers = dict.fromkeys(m for m in vae.modules() if m not in set(vae.likelihood.modules()))
    hooks = [m.register_forward_hook(record) for m in layers if not list(m.children())]
    reference = next(vae.parameters(), torch.empty(0))
    x = torch.zeros((1, *data_shape), dtype=reference.dtype, device=reference.device)
    try:
        with checked_data():  # zeros may be outside the support
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
