"""Decoders of a model: output shape and initial bias."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tinyvae.encoders import Encoder
from tinyvae.likelihoods import Likelihood
from tinyvae.networks import Decoder, Network

LAYERS_WITH_BIAS = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


def infer_data_shape(encoder: nn.Module, likelihood: Likelihood) -> torch.Size | None:
    """Return the ``in_shape`` of the encoder's network if it is the shape of one datum, else None.

    The two agree if the likelihood does not change the shape of the encoder's input.
    """
    containers = (Encoder, nn.ModuleList, nn.ModuleDict)
    network = next((m for m in encoder.modules() if not isinstance(m, containers)), None)
    if not isinstance(network, Network):
        return None
    try:
        input_shape = likelihood.input_shape(network.in_shape)
    except ValueError:  # a table with another number of columns
        return None
    return network.in_shape if input_shape == network.in_shape else None


def build_decoder(
    owner: str, decoder: nn.Module, likelihood: Likelihood, data_shape: Sequence[int] | None
) -> None:
    """Build a decoder that has no output shape, for the likelihood's parameters."""
    if not isinstance(decoder, (Decoder, Network)) or not decoder.needs_out_shape:
        return
    if data_shape is None:
        raise ValueError(
            f"{owner} expects data_shape for a decoder without an output shape, because the "
            f"encoder and {likelihood} do not tell the shape of the data: give {owner}(..., "
            "data_shape=(C, H, W)), or the decoder out_shape=likelihood.param_shape(data_shape)"
        )
    decoder.build(likelihood.param_shape(data_shape))


def set_output_bias(decoder: nn.Module, likelihood: Likelihood, x: Tensor) -> None:
    """Set the bias of the decoder's last layer so that its output fits the mean of ``x``.

    A convolution has one bias per channel. It is set by the channels' means.
    """
    biases = [
        layer.bias
        for layer in decoder.modules()
        if isinstance(layer, LAYERS_WITH_BIAS) and isinstance(layer.bias, nn.Parameter)
    ]
    bias = biases[-1] if biases else None
    shape = likelihood.param_shape(x.shape[1:])
    if bias is not None and x.dim() == 4 and bias.numel() == shape[:-2].numel():
        x = x.movedim(1, -1).reshape(-1, x.shape[1], 1, 1)  # (N * H * W, C, 1, 1)
    params = likelihood.params_for_mean(x)
    if bias is None or bias.numel() != params.numel():
        raise ValueError(
            "init_output_bias expects a decoder that ends in a linear or convolutional layer with "
            f"a bias for {likelihood}'s {tuple(shape)}, got {decoder!r:.200}"
        )
    with torch.no_grad():
        bias.copy_(params.flatten())
