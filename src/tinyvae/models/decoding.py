"""Decoders of a model: output shape and initial bias."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrize import ParametrizationList

from tinyvae.encoders import Encoder
from tinyvae.likelihoods import Likelihood
from tinyvae.networks import Decoder, Network

CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


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

    A convolution has one bias per channel, and a linear layer over the last dimension of a datum
    has one per feature. They are set by the mean over the positions, too.
    """
    expected = "init_output_bias expects a decoder that ends in a linear or convolutional layer"
    modules = (m for m in decoder.modules() if not isinstance(m, ParametrizationList))
    layers = [m for m in modules if next(m.parameters(recurse=False), None) is not None]
    last = layers[-1] if layers else None
    bias = last.bias if isinstance(last, (nn.Linear, *CONVOLUTIONS)) else None
    if isinstance(bias, UninitializedParameter):
        raise ValueError(
            f"{expected} with a bias, got {last}, which has no size yet: pass data through the "
            "model first, as with vae.check(x)"
        )
    if bias is None:
        raise ValueError(f"{expected} with a bias, got {last} at the end of {decoder!r:.200}")
    shape = likelihood.param_shape(x.shape[1:])
    if bias.numel() != shape.numel():
        x = _over_positions(x, layers[-1])
    params = likelihood.params_for_mean(x)
    if bias.numel() != params.numel():
        raise ValueError(
            f"{expected} with a bias for {likelihood}'s {tuple(shape)} or one per channel, got "
            f"{bias.numel()} biases in {last} at the end of {decoder!r:.200}"
        )
    with torch.no_grad():
        bias.copy_(params.flatten())


def _over_positions(x: Tensor, layer: nn.Module) -> Tensor:
    """Return the positions that share a bias of ``layer`` as examples, ``(N, C, 1, ...)``."""
    if isinstance(layer, nn.Linear):  # over the last dimension of a datum
        return x.reshape(-1, *[1] * (x.dim() - 2), x.shape[-1])
    num_spatial = len(layer.kernel_size)  # type: ignore[arg-type]
    channels = x.shape[1 : x.dim() - num_spatial]
    x = x.flatten(len(channels) + 1).movedim(-1, 1)  # (N, positions, *C)
    return x.reshape(-1, *channels, *[1] * num_spatial)
