"""Export of a part of a model to a file."""

import copy
import importlib
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from tinyvae.export.noise import find_draws
from tinyvae.export.parts import ExportedDecoder, ExportedEncoder, ExportedPart, ExportedSampler
from tinyvae.models.base import DecoderModel

PartName: TypeAlias = Literal["encoder", "decoder", "sampler"]
PARTS: dict[PartName, type[ExportedPart]] = {
    "encoder": ExportedEncoder,
    "decoder": ExportedDecoder,
    "sampler": ExportedSampler,
}
TOLERANCE = 1e-4  # of the file's outputs, relative to their largest value


def export(
    model: DecoderModel,
    part: PartName,
    path: str | os.PathLike[str],
    *,
    x: Tensor | None = None,
    context: Tensor | None = None,
) -> dict[str, tuple[int, ...]]:
    """Write a part of a model as ONNX (``.onnx``) or as a program of torch (``.pt2``).

    The parts compute in evaluation mode, for any number of examples:

    - ``"encoder"``: from ``x`` and ``noise`` to the ``center`` of q(z given x) and a draw ``z``,
      ``(B, *L)``, the latents that the decoder reads.
    - ``"decoder"``: from ``z`` to the ``center`` of p(x given z), as ``model.reconstruct`` returns
      it, and to the ``parameters`` of the likelihood, ``(B, P, *E)``. The center is the mean, or
      the most probable of unordered classes.
    - ``"sampler"``: from ``noise`` to the ``center`` of p(x given z) at a draw z of the prior, as
      ``model.sample(n, mean=True)`` returns it.

    ``noise`` is ``(B, n)`` standard normal numbers. A part that draws nothing does not read it. A
    conditional model also reads ``context``. The file is run, and compared with the model.

    Args:
        model: The model. It does not change.
        part: ``"encoder"``, ``"decoder"`` or ``"sampler"``.
        path: File that ends in ``.onnx`` or ``.pt2``.
        x: One or more examples, for a model whose ``data_shape`` is None.
        context: One or more rows of context, for a conditional model.

    Returns:
        Shape of one example of each input, by name, in the order of the inputs.

    Raises:
        ImportError: If a package of the extra ``export`` is missing, for ONNX.
        NotImplementedError: If the part cannot be exported.
        ValueError: If ``part`` or the file's ending is unknown, or ``x`` is needed.

    Example:
        >>> from tinyvae.export import export
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     export(vae, "encoder", f"{folder}/encoder.pt2")
        ...     encoder = torch.export.load(f"{folder}/encoder.pt2").module()
        {'x': (4,), 'noise': (2,)}
        >>> center, z = encoder(x, torch.randn(8, 2))
        >>> torch.allclose(center, vae.encode(x).mean)
        True
    """
    path = Path(path)
    if path.suffix not in (".onnx", ".pt2"):
        raise ValueError(f"export expects a path that ends in .onnx or .pt2, got {path}: rename it")
    if part not in PARTS:
        raise ValueError(f"export expects part from {sorted(PARTS)}, got {part!r}")
    if path.suffix == ".onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            _import(package)
    model = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    rows = _example_rows(model, part, x, context)
    module = PARTS[part](model, [*rows, "noise"])
    try:
        module.draws = find_draws(lambda n: module(*_inputs(rows, torch.zeros(n, 1)).values()))
        num_normals = sum(draw.size for draw in module.draws)
        noise = torch.randn(4, num_normals, generator=torch.Generator().manual_seed(0))
        inputs = _inputs(rows, noise.to(next(model.parameters()).dtype))
        if not num_normals:
            del inputs["noise"]
        module.names = tuple(inputs)
        unchecked = path.with_name(f"unchecked-{path.name}")
        try:
            _write(module, inputs, unchecked)
            _check(module, inputs, unchecked)
            unchecked.replace(path)
        finally:
            unchecked.unlink(missing_ok=True)
    except Exception as error:  # of any kind: torch.export has many
        reason = str(error).strip().partition("\n")[0]
        raise NotImplementedError(
            f"export cannot write the {part} of this {type(model).__name__}: "
            f"{type(error).__name__}: {reason:.300}. Use torch and tinyvae where the model runs, "
            "export another part, or replace the part of the model that fails"
        ) from error
    return {name: tuple(value.shape[1:]) for name, value in inputs.items()}


def _example_rows(
    model: DecoderModel, part: PartName, x: Tensor | None, context: Tensor | None
) -> dict[str, Tensor]:
    """Return one row of each input without noise."""
    dtype = next(model.parameters()).dtype
    rows = {}
    if part == "encoder":
        if x is None and model.data_shape is None:
            raise ValueError("export cannot infer the shape of the data: give examples, x=")
        rows["x"] = torch.zeros(1, *model.data_shape or ()) if x is None else x[:1]
    if part == "decoder":
        rows["z"] = torch.zeros(1, *model.latent_shape)
    if context is not None:
        rows["context"] = context[:1]
    return {n: v.cpu().to(dtype) if v.is_floating_point() else v.cpu() for n, v in rows.items()}


def _inputs(rows: Mapping[str, Tensor], noise: Tensor) -> dict[str, Tensor]:
    """Return inputs of equal rows, and different noise."""
    size = len(noise)
    repeated = {name: row.expand(size, *row.shape[1:]).contiguous() for name, row in rows.items()}
    return {**repeated, "noise": noise}


def _write(module: ExportedPart, inputs: Mapping[str, Tensor], path: Path) -> None:
    shapes = {"inputs": tuple({0: torch.export.Dim("batch")} for _ in inputs)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        arguments = tuple(inputs.values())
        program = torch.export.export(module, arguments, dynamic_shapes=shapes, strict=False)
        if path.suffix == ".pt2":
            torch.export.save(program, path)
            return
        torch.onnx.export(
            program,
            (),
            path,
            input_names=list(inputs),
            output_names=list(module.outputs),
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def _check(module: ExportedPart, inputs: Mapping[str, Tensor], path: Path) -> None:
    """Raise ArithmeticError if the file computes other values, for one example and for several."""
    run = _runner(path)
    for size in (1, len(next(iter(inputs.values())))):
        rows = {name: value[:size] for name, value in inputs.items()}
        for name, expected, got in zip(
            module.outputs, module(*rows.values()), run(rows), strict=True
        ):
            largest = max(1.0, expected.abs().max().item())
            if got.shape != expected.shape or (got - expected).abs().max() > TOLERANCE * largest:
                raise ArithmeticError(f"the output '{name}' of the file differs from the model's")


def _runner(path: Path) -> Callable[[Mapping[str, Tensor]], Sequence[Tensor]]:
    """Return a function that runs a file."""
    if path.suffix == ".pt2":
        program = torch.export.load(path).module()
        return lambda rows: program(*rows.values())
    session = _import("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda rows: [
        torch.as_tensor(output)
        for output in session.run(None, {name: value.numpy() for name, value in rows.items()})
    ]


def _import(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"export to ONNX needs {package}: install the extra, pip install 'tinyvae[export]', or "
            "write a file that ends in .pt2"
        ) from error
