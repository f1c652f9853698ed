"""The rule for data that users pass: each kind becomes a tensor, or is refused with the remedy."""

import os
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.masked import MaskedTensor
from torch.utils.data import DataLoader, Dataset

from tinyvae.core.warnings import warn

Array: TypeAlias = "np.ndarray[Any, Any]"
SIGNED = {torch.uint16: torch.int32, torch.uint32: torch.int64, torch.uint64: torch.int64}
# Dtypes that pass without a look at the rest: every batch is asked.
PLAIN = {torch.float32, torch.float64, torch.float16, torch.uint8, torch.int64, torch.bool}
ARRAY_REMEDIES = {
    "c": "pass real and imaginary parts, numpy.stack([x.real, x.imag], 1)",
    "O": "convert it by x.astype(float), which makes NaN of None; pad arrays of several lengths",
    "V": "pick a field by its name, or use numpy.lib.recfunctions.structured_to_unstructured(x)",
    "M": "convert it, for example to days since a date",
    "m": "convert it, for example to days, x / numpy.timedelta64(1, 'D')",
}
READERS = ("fit", "evaluation")  # owners that take more than tensors and arrays
ROUNDING = 1e-3  # share of a standard deviation


def as_tensor(data: Any, owner: str) -> Tensor:
    """Return data as a plain tensor of real numbers, which shares their memory if torch can.

    A masked array becomes floating-point, NaN where it is masked. Unsigned integers of 16 bits or
    more become signed, because torch has hardly any operation on them.

    Args:
        data: Tensor or array ``(N, *E)`` of booleans, integers or floating-point numbers, or
            anything that numpy converts to one, such as a DataFrame or nested lists.
        owner: Function or class for errors.

    Raises:
        TypeError: If ``data`` are of another kind.
        ValueError: If they are one number, or integers beyond 63 bits.

    Example:
        >>> as_tensor(np.ma.masked_array([3.0, 9.0], mask=[False, True]), "fit")
        tensor([3., nan], dtype=torch.float64)
    """
    if isinstance(data, Tensor):
        tensor = _from_tensor(data, owner)
    else:
        array = data if isinstance(data, np.ndarray) else _numbers(data)
        if array is None:
            raise refusal(data, owner)
        tensor = array_to_tensor(array, owner)
    if tensor.dim() == 0:
        raise ValueError(
            f"{owner} expects data of shape (N, *E), got a scalar: pass all examples in one tensor"
        )
    return tensor


def to_module(data: Any, module: nn.Module, owner: str) -> Tensor:
    """Return data as a tensor on a module's device. Floating-point numbers get its dtype.

    See :func:`as_tensor` for ``data`` and errors.
    """
    tensor = as_tensor(data, owner)
    like = next((p for p in module.parameters() if p.is_floating_point()), None)
    if like is None:
        return tensor
    warn_about_rounding(tensor, like.dtype)
    return to_dtype(tensor, like.dtype).to(like.device)


def _numbers(data: Any) -> "Array | None":
    """Return a table, a foreign array or nested lists as an array, None if not all are numbers."""
    leaf = data
    while isinstance(leaf, list | tuple) and leaf:
        leaf = leaf[0]
    is_nested = isinstance(data, list | tuple) and isinstance(leaf, int | float | np.number)
    if not is_nested and getattr(type(data), "__array__", None) is None:
        return None
    try:
        array: Array = np.asarray(data)
    except ValueError:  # rows of several lengths
        return None
    return array if array.dtype.kind in "biuf" and array.ndim > 0 else None


def _from_tensor(tensor: Tensor, owner: str) -> Tensor:
    if isinstance(tensor, MaskedTensor):
        values, observed = tensor.get_data(), tensor.get_mask()
        dtype = torch.promote_types(values.dtype, torch.float32)
        tensor = values.to(dtype).masked_fill(~observed, torch.nan)
    is_plain = type(tensor) is Tensor and tensor.dtype in PLAIN and not tensor.is_nested
    if is_plain and tensor.layout == torch.strided:
        return tensor
    for is_refused, kind, advice in (
        (tensor.is_nested, "a nested tensor", "pad it by torch.nested.to_padded_tensor(x, 0.0)"),
        (tensor.layout != torch.strided, "a sparse tensor", "pass x.to_dense()"),
        (tensor.is_complex(), "complex numbers", "pass torch.view_as_real(x)"),
        (tensor.is_quantized, "a quantized tensor", "pass x.dequantize()"),
    ):
        if is_refused:
            raise TypeError(f"{owner} expects a dense tensor of numbers, got {kind}: {advice}")
    if tensor.dtype in SIGNED:
        signed = tensor.to(SIGNED[tensor.dtype])
        _require_signed(bool((signed < 0).any()), owner)
        return signed
    return tensor if type(tensor) is Tensor else tensor.as_subclass(Tensor)


def array_to_tensor(array: Array, owner: str) -> Tensor:
    """Return an array of any shape as a tensor, see :func:`as_tensor`."""
    if array.dtype.kind not in "biuf":
        other = "encode it as numbers, such as indices of classes"
        advice = ARRAY_REMEDIES.get(array.dtype.kind, other)
        raise TypeError(f"{owner} expects an array of numbers, got dtype {array.dtype}: {advice}")
    if isinstance(array, np.ma.MaskedArray):
        numbers = array.astype(np.result_type(array.dtype, np.float32))
        array = np.ma.filled(numbers, np.nan)
    dtype, kind = array.dtype.newbyteorder("="), array.dtype.kind
    if kind == "u" and dtype.itemsize > 1:
        _require_signed(dtype.itemsize == 8 and bool((array >= 2**63).any()), owner)
        dtype = np.dtype(np.int32 if dtype.itemsize == 2 else np.int64)
    elif kind == "f" and dtype.itemsize > 8:
        dtype = np.dtype(np.float64)
    array = array.astype(dtype, copy=False)
    if not array.flags.aligned or any(s < 0 or s % dtype.itemsize for s in array.strides):
        array = np.require(array, requirements=["C", "A"])
    with warnings.catch_warnings():  # about memory that is read-only: nothing writes into data
        warnings.simplefilter("ignore")
        return torch.from_numpy(array)


def _require_signed(exceeds: bool, owner: str) -> None:
    if exceeds:
        raise ValueError(
            f"{owner} expects integers below 2**63, got larger ones: subtract an origin"
        )


def to_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return floating-point data in ``dtype``, other data unchanged.

    Raises:
        ValueError: If a finite number becomes infinite.
    """
    if not x.is_floating_point() or x.dtype == dtype:
        return x
    converted = x.to(dtype)
    largest = torch.finfo(dtype).max
    if torch.finfo(x.dtype).max > largest and (converted.isinf() & x.isfinite()).any():
        raise ValueError(
            f"a model of {dtype} expects numbers up to {largest:.1e}, got {x.abs().max():.1e}: "
            "scale the data, or use model.double()"
        )
    return converted


def require_exact(x: Tensor, dtype: torch.dtype, owner: str) -> None:
    """Raise if ``dtype`` does not hold all numbers of an integer tensor.

    Raises:
        ValueError: If a number would be rounded.
    """
    if x.is_floating_point() or x.dtype in (torch.bool, torch.uint8, torch.int8):
        return
    rounded = x.to(dtype).to(x.dtype) != x
    if rounded.any():
        raise ValueError(
            f"{owner} expects integers that {dtype} can hold, got {x[rounded][0].item()}: subtract "
            "an origin, or use model.double()"
        )


def warn_about_rounding(x: Tensor, dtype: torch.dtype) -> None:
    """Warn if ``dtype`` loses much of the spread of a dimension, see :func:`rounding_of`."""
    if (share := rounding_of(x, dtype)) > max(ROUNDING, 10 * torch.finfo(dtype).eps):
        warn(
            f"{dtype} rounds a dimension of the data by {share:.2g} of its standard deviations. "
            "The rounded numbers are used. Subtract an origin first, or use model.double()"
        )


def rounding_of(x: Tensor, dtype: torch.dtype) -> float:
    """Return the largest rounding error of ``dtype``, in standard deviations of its dimension.

    Some of the examples are looked at. Dimensions that are constant have no error.

    Example:
        >>> seconds = 1.7e9 + torch.arange(1000.0, dtype=torch.float64).unsqueeze(1)
        >>> round(rounding_of(seconds, torch.float32), 2)
        0.22
        >>> rounding_of(seconds - 1.7e9, torch.float32)
        0.0
    """
    is_wider = x.is_floating_point() and torch.finfo(x.dtype).eps < torch.finfo(dtype).eps
    if not is_wider or x.numel() == 0:
        return 0.0
    rows = spread_rows(x).cpu().double()
    error = (rows - rows.to(dtype)).abs().nan_to_num(0.0, 0.0, 0.0).amax(0)
    std = (rows - rows.nanmean(0)).square().nanmean(0).sqrt()
    varies = std > 1e-12 * rows.abs().nan_to_num().amax(0)  # more than the noise of float64
    return torch.where(varies, error / std, 0.0).max().item()


def spread_rows(x: Any, limit: int = 10_000) -> Any:
    """Return at most ``limit`` examples, evenly spread over ``x``."""
    return x[:: max(1, -(-len(x) // limit))]


def refusal(data: Any, owner: str, *, reason: str = "") -> TypeError:
    """Return an error that names the kind of data, optionally a reason, and the remedy."""
    expected = "a tensor or an array (N, *E)"
    if owner in READERS:
        expected = "a tensor, an array, a tuple or dictionary of these, a Dataset or a DataLoader"
    if data is None:
        kind = "None"
    else:
        module, name = _library(data), type(data).__name__
        kind = name if module in ("builtins", "tinyvae", "__main__") else f"{module}.{name}"
        kind = f"{'an' if kind[0] in 'aeio' else 'a'} {kind}"
    return TypeError(f"{owner} expects {expected}, got {kind}{reason}: {_remedy(data)}")


def _remedy(data: Any) -> str:
    match data:
        case str() | bytes() | os.PathLike():
            return "load the file first, such as torch.from_numpy(numpy.load(path))"
        case DataLoader():
            return "concatenate its batches, such as torch.cat([x for x, label in loader])"
        case Dataset():
            return "stack its items, such as torch.stack([x for x, label in dataset])"
        case Mapping():
            return f"pick x by its name, such as data[{next(iter(data), 'x')!r}]"
        case tuple() if data and isinstance(data[0], Tensor | np.ndarray):
            return "pass x alone, data[0]. A context is an argument of its own, context=data[1]"
        case list() if data and all(isinstance(p, Tensor | np.ndarray) for p in data):
            return "stack its tensors, such as torch.stack(data)"
        case list() | tuple():
            return "pass a tensor of all examples, with rows of one length and missing values NaN"
        case Iterator():
            return "an iterator is used up after one epoch, so collect it, torch.stack(list(data))"
    is_pandas = _library(data) == "pandas"
    if getattr(data, "to_numpy", None) is not None:
        numbers = f"data.to_numpy({'float, na_value=numpy.nan' if is_pandas else ''})"
        if getattr(data, "columns", None) is None:
            return f"pass {numbers}"
        table = "data" if is_pandas else "data.to_dict()"
        return (
            f"pass {numbers} if all columns are numbers, otherwise the result of "
            f"MixedLikelihood.from_table({table}).to_tensor({table})"
        )
    for method, advice in (
        ("toarray", "pass data.toarray()"),  # sparse arrays of scipy
        ("log_prob", "pass its mean or a draw, data.sample()"),  # a distribution
        ("with_format", "use data.with_format('torch'), and pick x by its name"),  # Hugging Face
    ):
        if getattr(data, method, None) is not None:
            return advice
    for name, value in getattr(data, "__dict__", {}).items():
        if isinstance(value, Tensor) and not name.startswith("_"):
            return f"pass its tensor, such as data.{name}"
    if getattr(data, "__getitem__", None) is not None:
        return "stack its items, such as torch.stack([torch.as_tensor(item) for item in data])"
    return "pass a tensor of all examples"


def _library(data: Any) -> str:
    return type(data).__module__.partition(".")[0]
