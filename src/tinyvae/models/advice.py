"""Warnings before training, about parts that cannot learn what they should."""

import math
from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tinyvae.core.module_state import evaluating
from tinyvae.core.random import forked_rng
from tinyvae.core.warnings import warn
from tinyvae.likelihoods import Likelihood
from tinyvae.models.base import DecoderModel
from tinyvae.models.output import VAEOutput

# Ranges of activations, and the activations that have them.
RANGES = {
    (0.0, 1.0): "Sigmoid or Softmax",
    (-1.0, 1.0): "Tanh",
    (0.0, math.inf): "ReLU or Softplus",
    (-math.inf, 0.0): "LogSoftmax",
    (-1.0, math.inf): "ELU, GELU or SiLU",
}
TRIALS = 32  # of random weights, until outputs leave all ranges
ROWS = 8

Range = tuple[float, float]
Confined = list[Range | None]  # of each parameter
# The layers of each part by identity, and the ranges of its parameters.
_CONFINED: WeakKeyDictionary[nn.Module, tuple[tuple[int, ...], Confined]] = WeakKeyDictionary()


def advise(model: nn.Module, x: Tensor, context: Tensor | None, output: VAEOutput) -> None:
    """Warn if data or outputs do not fit the likelihood, though their shapes do.

    Args:
        model: The model. Nothing is known of one without a decoder and a likelihood.
        x: Data ``(B, *E)``, which have passed the model's check.
        context: Context of the examples.
        output: The result of the check.
    """
    if not isinstance(model, DecoderModel):
        return
    if x.is_floating_point():
        model.likelihood.warn_of_spikes(x)
    context = None if context is None else context[:1].expand(ROWS, *context.shape[1:])
    device = output.log_px.device
    with evaluating(model), torch.no_grad(), forked_rng(device, 0):
        _advise_on_decoder(model.decoder, model.likelihood, x, context, output)
        _advise_on_encoder(model, x, context, output)


def _advise_on_decoder(
    decoder: nn.Module, likelihood: Likelihood, x: Tensor, context: Tensor | None, output: VAEOutput
) -> None:
    z = output.z
    if z is None:
        return
    count = likelihood.num_params

    def call(weights: dict[str, Tensor]) -> Tensor:
        latents = 100 * torch.randn(ROWS, *z.shape[2:], dtype=z.dtype, device=z.device)
        rows: Tensor = functional_call(decoder, weights, _inputs(latents, context))
        return rows.unsqueeze(1) if count == 1 else rows  # (ROWS, P, *E)

    misfits = [
        (index, confined)
        for index, confined in enumerate(_confined(decoder, call))
        if confined is not None and not likelihood.fits_outputs(index, *confined, x)
    ]
    if not misfits:
        return
    index, confined = misfits[0]
    which = "" if count == 1 else f" (parameter {index + 1} of {count})"
    needs = (
        "a location in the range of the data, which is another"
        if likelihood.has_location and index == 0
        else "logits or logarithms, which may be any real numbers"
    )
    warn(
        f"the decoder's output{which} stays {_describe(confined)}, but {likelihood} expects "
        f"{needs}: remove the last activation, because the likelihood maps its parameters into "
        "their ranges"
    )


def _advise_on_encoder(
    model: DecoderModel, x: Tensor, context: Tensor | None, output: VAEOutput
) -> None:
    first = next(model.children())
    encoder = first[0] if isinstance(first, nn.ModuleList) else first
    term = output.latents[0]
    if term.posterior.support != "reals" or term.posterior.is_discrete or not term.is_density:
        return
    inputs = model.likelihood.encoder_input(x[:ROWS].to(output.log_px.dtype))
    context = None if context is None else context[: len(inputs)]

    def call(weights: dict[str, Tensor]) -> Tensor:
        mean: Tensor = functional_call(encoder, weights, _inputs(inputs, context)).mean
        return mean.unsqueeze(1)

    for confined in _confined(encoder, call):
        if confined is None or confined[0] == -1.0:
            continue
        draws = term.prior.sample((64,))
        if ((draws >= confined[0]) & (draws <= confined[1])).all():
            continue
        warn(
            f"the mean of the encoder's posterior stays {_describe(confined)}, but draws of the "
            "prior do not: remove the activation after the layer that computes the mean"
        )


def _inputs(rows: Tensor, context: Tensor | None) -> tuple[Tensor, ...]:
    return (rows,) if context is None else (rows, context)


def _describe(confined: Range) -> str:
    low, high = confined
    bounds = f"in [{low:g}, {high:g}]"
    if math.isinf(high - low):
        bounds = f">= {low:g}" if math.isinf(high) else f"<= {high:g}"
    return f"{bounds}, as that of {RANGES[confined]}"


def _confined(part: nn.Module, call: Callable[[dict[str, Tensor]], Tensor]) -> Confined:
    """Return the range of :data:`RANGES` that contains each parameter for any weights, or None.

    ``call`` returns outputs ``(N, P, ...)`` for given weights. Random ones show which outputs the
    layers can have, whatever the weights are now. The result is kept until the layers change.
    """
    layers = tuple(map(id, part.modules()))
    known = _CONFINED.get(part)
    if known is None or known[0] != layers:
        known = _CONFINED[part] = (layers, _probe(part, call))
    return known[1]


def _probe(part: nn.Module, call: Callable[[dict[str, Tensor]], Tensor]) -> Confined:
    is_compiled = any(
        module._compiled_call_impl is not None or "_orig_mod" in module._modules
        for module in part.modules()
    )
    if is_compiled:  # other weights would be compiled again
        return []
    extremes: list[Tensor] = []  # (2, P) of each trial
    ends: list[Range] = []
    for _ in range(TRIALS):
        weights = {
            name: 3 * torch.randn_like(p) * (p.abs().mean() + 0.1)
            for name, p in part.named_parameters()
            if p.is_floating_point()
        }
        try:
            rows = call(weights)
        except (RuntimeError, TypeError, ValueError, IndexError):
            return []  # this part accepts some weights only
        rows = rows.transpose(0, 1).flatten(1).cpu().double()  # (P, N ...)
        extremes.append(torch.stack([rows.amin(1), rows.amax(1)]))
        lows, highs = torch.stack(extremes, 1).unbind()  # (trials, P) each
        ends = list(zip(lows.amin(0).tolist(), highs.amax(0).tolist(), strict=True))
        if not any(_range(low, high) for low, high in ends):
            return []
    return [None if low == high else _range(low, high) for low, high in ends]


def _range(low: float, high: float) -> Range | None:
    """Return the narrowest range of an activation that contains outputs."""
    return next((ends for ends in RANGES if ends[0] <= low and high <= ends[1]), None)
