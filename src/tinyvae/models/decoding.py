"""Decoders of a model: output shape, initial bias, and p(x given z)."""

from abc import ABC
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrize import ParametrizationList

from tinyvae.core.data import to_module
from tinyvae.core.html import html_table
from tinyvae.core.module_state import evaluating
from tinyvae.distributions import Distribution
from tinyvae.distributions.special import at_least_float32
from tinyvae.encoders import Encoder
from tinyvae.likelihoods import Likelihood
from tinyvae.models.checks import advise_part, call_part, check_params, require_densities
from tinyvae.models.inputs import require_latents
from tinyvae.models.latents import repeat_rows
from tinyvae.networks import Decoder, Network
from tinyvae.networks.base import within_range

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


class DecodingModel(nn.Module, ABC):
    """Base class of models with a decoder and a likelihood, which map latents to p(x given z)."""

    decoder: nn.Module
    likelihood: Likelihood
    latent_shape: torch.Size

    def _repr_html_(self) -> str:
        rows = [[type(self).__name__, f"latent {tuple(self.latent_shape)}", "parameters"]]
        for name, part in self.named_children():
            count = sum(parameter.numel() for parameter in part.parameters())
            rows.append([name, type(part).__name__, f"{count:,}"])
        return html_table(rows)

    def _checked_likelihood(
        self, z: Tensor, context: Tensor | None, data_shape: torch.Size | None = None
    ) -> Distribution:
        """Return p(x given z). Errors name the decoder, and the remedy."""
        rows = z.reshape(-1, *self.latent_shape)
        advise = partial(advise_part, self.decoder, rows, context)
        output = call_part("decoder", rows, partial(self._decoder_output, z, context), advise)
        params = check_params(type(self).__name__, self.likelihood, output, data_shape)
        distribution = self._likelihood_of(params, z, context)
        return require_densities(self.likelihood, distribution, z, self.latent_shape)

    def decode(self, z: Tensor, context: Tensor | None = None) -> Distribution:
        """Return p(x given z) for ``z`` ``(*S, *L)``. With a context ``(B, ...)``, S ends in B.

        It is computed in evaluation mode. An objective uses :meth:`likelihood_given` instead.
        """
        name = f"{type(self).__name__}.decode"
        z = to_module(z, self, name)
        require_latents(name, z, self.latent_shape)
        context = None if context is None else to_module(context, self, name)
        with evaluating(self):
            return self._checked_likelihood(z, context)

    def likelihood_given(self, z: Tensor, context: Tensor | None = None) -> Distribution:
        """Return p(x given z) as :meth:`decode` does, in the modes that the parts are in."""
        return self._likelihood_of(self._decoder_output(z, context), z, context)

    def _likelihood_of(self, output: Tensor, z: Tensor, context: Tensor | None) -> Distribution:
        params = at_least_float32(output)
        event_ndim = params.dim() - 1 - (self.likelihood.num_params > 1)
        batch_shape = z.shape[: z.dim() - len(self.latent_shape)]
        params = params.reshape(*batch_shape, *params.shape[1:])
        likelihood: Distribution = self.likelihood(params, event_ndim, context)
        return likelihood

    def _decoder_output(self, z: Tensor, context: Tensor | None) -> Any:
        rows = z.reshape(-1, *self.latent_shape)  # (K * B, *L)
        batch_shape = z.shape[: z.dim() - len(self.latent_shape)]
        if context is not None and batch_shape[-1:] != context.shape[:1]:
            raise ValueError(
                f"a context of {len(context)} rows does not fit latents of batch shape "
                f"{tuple(batch_shape)}: give one row per example, the last of these sizes"
            )
        context = None if context is None else repeat_rows(context, rows.shape[0])
        return self.decoder(*within_range(self, rows, context))
