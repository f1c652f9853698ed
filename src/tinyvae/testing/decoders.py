"""Contract of a decoder."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tinyvae.core.random import forked_rng
from tinyvae.networks import Decoder, Network
from tinyvae.testing.contract import (
    cast,
    perturbed,
    rebuilt,
    require,
    require_close,
    require_gradients,
    require_shape,
)

BATCH = 5


def check_decoder(
    decoder: nn.Module,
    latent_dim: int | Sequence[int],
    out_shape: int | Sequence[int],
    *,
    context: Tensor | None = None,
    spread: float = 0.25,
    seed: int = 0,
) -> None:
    """Raise if a decoder breaks the contract of :class:`~tinyvae.Decoder`.

    The checks are: output shapes for batches of 1 and 5 latents; finite outputs; float32 against
    float64; rows that do not depend on each other; equal outputs of equal calls; gradients in the
    latent (against finite differences), the context and every parameter; and a description that
    builds an equal decoder. A decoder without an output shape gets ``out_shape`` from
    :meth:`~tinyvae.Decoder.build`, as from a model.

    The checks use a copy in evaluation mode. The global random state does not change.

    Args:
        decoder: The decoder: a :class:`~tinyvae.Decoder`, a network, or any other module.
        latent_dim: Number of latent dimensions, or the shape of a latent.
        out_shape: Shape of one output, ``likelihood.param_shape(data_shape)``.
        context: Context of at least 5 rows, ``(N, ...)``, if the decoder reads one.
        spread: Standard deviation of noise that is added to the parameters, divided by the square
            root of the number of inputs of a weight. Weights that start at zero would hide faults.
        seed: Seed of noise and latents.

    Raises:
        ContractError: If it breaks the contract. The message names the first fault.

    Example:
        >>> from tinyvae.testing import check_decoder
        >>> check_decoder(MLP(2, hidden=(8,)), 2, out_shape=(1, 4, 4))
        >>> class BatchCenteredDecoder(MLP):
        ...     def forward(self, z):
        ...         output = super().forward(z)
        ...         return output - output.mean(0)
        >>> check_decoder(BatchCenteredDecoder(2, (8,), 4), 2, out_shape=4)
        Traceback (most recent call last):
            ...
        tinyvae.testing.contract.ContractError: rows depend on each other: ...
    """
    if context is not None and len(context) < BATCH:
        raise ValueError(f"check_decoder expects context of >= {BATCH} rows, got {len(context)}")
    with forked_rng(torch.device("cpu"), seed):
        decoder = copy.deepcopy(decoder)
        out_shape = torch.Size((out_shape,) if isinstance(out_shape, int) else out_shape)
        if isinstance(decoder, (Decoder, Network)) and decoder.needs_out_shape:
            decoder.build(out_shape)
            require(not decoder.needs_out_shape, "needs_out_shape: still true after build(...)")
        latent_shape = (latent_dim,) if isinstance(latent_dim, int) else tuple(latent_dim)
        case = _Case(
            perturbed(decoder, spread),
            torch.randn(BATCH, *latent_shape).double(),
            None if context is None else cast(context[:BATCH], torch.float64),
            out_shape,
        )
        _check_shapes(case)
        _check_rows(case)
        _check_float32(case)
        _check_gradients(case)
        _check_description(case)


@dataclass
class _Case:
    decoder: nn.Module
    z: Tensor  # (BATCH, *L)
    context: Tensor | None  # (BATCH, ...)
    out_shape: torch.Size

    def decode(self, rows: slice = slice(None)) -> Tensor:
        """Return the decoder's output for some of the latents."""
        inputs = [x[rows] for x in (self.z, self.context) if x is not None]
        output: Tensor = self.decoder(*inputs)
        return output


def _check_shapes(case: _Case) -> None:
    for size in (1, BATCH):
        output = case.decode(slice(size))
        require(isinstance(output, Tensor), f"forward: returns a {type(output).__name__}")
        require_shape("forward", output, (size, *case.out_shape))
        require(output.dtype == torch.float64, f"forward: float64 weights give {output.dtype}")
        require(torch.isfinite(output).all(), "forward: the output is not finite")


def _check_rows(case: _Case) -> None:
    with torch.no_grad():
        output = case.decode()
        require(torch.equal(case.decode(), output), "two calls in evaluation mode differ")
        alone = torch.cat([case.decode(slice(row, row + 1)) for row in range(BATCH)])
    require_close(alone, output, "rows depend on each other: one row at a time")


def _check_float32(case: _Case) -> None:
    context = None if case.context is None else cast(case.context, torch.float32)
    single = _Case(copy.deepcopy(case.decoder).float(), case.z.float(), context, case.out_shape)
    with torch.no_grad():
        output = single.decode()
        require(output.dtype == torch.float32, f"forward: float32 weights give {output.dtype}")
        require_close(output, case.decode(), "float32 and float64", 1e-3)


def _check_gradients(case: _Case) -> None:
    names = [name for name, p in case.decoder.named_parameters() if p.requires_grad]
    weights = torch.randn(BATCH, *case.out_shape, dtype=torch.float64)
    require_gradients(case.decoder, names, [("forward", case.decode() * weights)])
    inputs = {"latent": case.z.clone()}
    if case.context is not None and case.context.is_floating_point():
        inputs["context"] = case.context.clone()
    for tensor in inputs.values():
        tensor.requires_grad_()
    variant = replace(case, z=inputs["latent"], context=inputs.get("context", case.context))
    total = (variant.decode() * weights).sum()
    gradients = torch.autograd.grad(total, list(inputs.values()), allow_unused=True)
    for name, gradient in zip(inputs, gradients, strict=True):
        require(gradient is not None and bool(gradient.any()), f"forward: no gradient in {name}")

    def decode(z: Tensor) -> Tensor:
        return replace(case, z=z).decode()

    z = inputs["latent"]
    agree = torch.autograd.gradcheck(decode, (z,), fast_mode=True, raise_exception=False)
    require(agree, "forward: the gradient in the latent differs from finite differences")


def _check_description(case: _Case) -> None:
    twin = replace(case, decoder=rebuilt(case.decoder))
    with torch.no_grad():
        require_close(twin.decode(), case.decode(), "a decoder built from its description")
