"""Data, latents and contexts that the user gives to a model: tensors of the right shape."""

from abc import ABC
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tinyvae.core.data import require_exact, to_module
from tinyvae.core.objective import data_are_checked
from tinyvae.likelihoods import Likelihood, MixedLikelihood
from tinyvae.models.checks import advise_part
from tinyvae.networks import Network


class ModelInputs(nn.Module, ABC):
    """Base class of models with a likelihood, which checks the inputs of the user."""

    decoder: nn.Module
    likelihood: Likelihood
    data_shape: torch.Size | None

    def _inputs(
        self, x: Tensor, context: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return data with NaN at missing entries, and context. Check them if nobody has."""
        if data_are_checked():
            return self.observed(x, mask), context
        x, context, _ = self._accepted(x, context, mask)
        return x, context

    def _accepted(self, x: Any, context: Any, mask: Any) -> tuple[Tensor, Tensor | None, bool]:
        """Return data and context as tensors, and True if all data have a density.

        Raise, with the remedy, if they do not fit the model.
        """
        name = type(self).__name__
        if context is not None:
            context = to_module(context, self, name)
        self.likelihood.check_context(context)
        x, in_support = self._accepted_data(x, mask)
        require_rows(name, x, context)
        return x, context, in_support

    def _accepted_data(self, x: Any, mask: Any) -> tuple[Tensor, bool]:
        name = type(self).__name__
        x = to_module(table_to_tensor(self, x), self, name)
        require_batch(name, x, self.data_shape)
        self._require_data_shape(x)
        if mask is not None:
            x = self.observed(x, to_module(mask, self, name))
        with torch.no_grad():
            in_support = self.likelihood.check_support(x)
        observed = self.observed(x, None)
        require_exact(x, observed.dtype, name)
        return observed, in_support

    def _require_data_shape(self, x: Tensor) -> None:
        """Raise if neither the encoder nor the decoder is built for data of this shape."""
        known, shape, decoder = self.data_shape, x.shape[1:], self.decoder
        if known is None or shape == known or not isinstance(decoder, Network):
            return
        if decoder.out_shape != self.likelihood.param_shape(shape):
            raise ValueError(
                f"{type(self).__name__} expects x of shape (B, {_sizes(known)}), got "
                f"{tuple(x.shape)}: {advise_shape(type(self).__name__, x.shape, known)}"
            )

    def _advise_inputs(self, inputs: Tensor, context: Tensor | None, error: Exception) -> str:
        """Return a hint why the encoder does not accept its inputs."""
        known = self.data_shape
        if known is not None and inputs.shape[1:] != self.likelihood.input_shape(known):
            return advise_shape(type(self).__name__, inputs.shape, known)
        return advise_part(next(self.children()), inputs, context, error)

    def observed(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Return the data as floating-point numbers, NaN for entries that the mask leaves out."""
        if not x.is_floating_point():
            dtypes = (p.dtype for p in self.parameters() if p.is_floating_point())
            x = x.to(next(dtypes, torch.get_default_dtype()))
        return x if mask is None else self.likelihood.with_mask(x, mask)


def table_to_tensor(model: nn.Module, data: Any) -> Any:
    """Return a table by :meth:`~tinyvae.likelihoods.MixedLikelihood.to_tensor`, other data as such.

    A table is a DataFrame or a dictionary of columns, for a model that has such a likelihood.
    """
    if isinstance(data, Tensor | np.ndarray | list | tuple):
        return data
    is_table = isinstance(data, Mapping) or getattr(data, "columns", None) is not None
    tables = (module for module in model.modules() if isinstance(module, MixedLikelihood))
    likelihood = next(tables, None) if is_table else None
    return data if likelihood is None else likelihood.to_tensor(data)


def require_batch(owner: str, x: Tensor, data_shape: Sequence[int] | None) -> None:
    """Raise unless ``x`` is a batch ``(B, *E)`` of at least one example."""
    if x.dim() < 2 or len(x) == 0:
        shape = "(B, *E)" if data_shape is None else f"(B, {_sizes(data_shape)})"
        advice = "give at least one example"
        if x.numel() and (data_shape is None or x.shape == data_shape):
            advice = "add the batch axis, x.unsqueeze(0)"
        elif x.numel() and data_shape is not None:
            advice = advise_shape(owner, x.shape, data_shape)
        raise ValueError(
            f"{owner} expects x of shape {shape} with B >= 1, got {tuple(x.shape)}: {advice}"
        )


def require_rows(owner: str, x: Tensor, context: Tensor | None) -> None:
    """Raise unless there is one row of context per example."""
    if context is not None and context.shape[:1] != x.shape[:1]:
        raise ValueError(
            f"{owner} expects one row of context per example, got {tuple(context.shape)} for "
            f"{len(x)} examples: give context of shape ({len(x)}, ...)"
        )


def advise_shape(owner: str, shape: torch.Size, expected: Sequence[int]) -> str:
    """Return advice for data of ``shape`` ``(B, *E)`` and a model of data of another shape."""
    expected, got = torch.Size(expected), shape[1:]
    if shape == expected:
        return "add the batch axis, x.unsqueeze(0)"
    if len(expected) == 3 and got == (*expected[1:], expected[0]):
        return "put the channels first, x.movedim(-1, 1)"
    if (1, *got) == expected:
        return "add the channel axis, x.unsqueeze(1)"
    if got == (1, *expected):
        return "drop the channel axis, x.squeeze(1)"
    model = f"build {owner} with data_shape={tuple(got)} and networks for it"
    if got.numel() == expected.numel():
        change = "x.flatten(1)" if len(expected) == 1 else f"x.reshape(-1, {_sizes(expected)})"
        return f"give {change}, or {model}"
    if shape.numel() == expected.numel():
        return f"give x.reshape(1, {_sizes(expected)}) for one example"
    return f"give examples of shape {tuple(expected)}, or {model}"


def require_count(owner: str, count: object, name: str = "num_samples", least: int = 1) -> None:
    """Raise unless the argument ``name`` is an integer of at least ``least``."""
    if not isinstance(count, Integral) or count < least:
        raise ValueError(f"{owner} expects an integer {name} >= {least}, got {count!r}")


def require_latents(owner: str, z: Tensor, latent_shape: torch.Size) -> None:
    """Raise unless latents are ``(*S, *L)``."""
    if z.shape[max(0, z.dim() - len(latent_shape)) :] != latent_shape:
        raise ValueError(
            f"{owner} expects latents of shape (..., {_sizes(latent_shape)}), got "
            f"{tuple(z.shape)}: give latents of the model's latent_shape {tuple(latent_shape)}"
        )
    if not z.is_floating_point():
        raise TypeError(
            f"{owner} expects floating-point latents, got {z.dtype}: use z.float(), and one-hot "
            "rows for classes"
        )


def _sizes(shape: Sequence[int]) -> str:
    return ", ".join(map(str, shape))
