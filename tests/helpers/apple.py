"""An emulated Apple device: it computes on the CPU, but refuses what torch's MPS refuses."""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

aten = torch.ops.aten
MPS, META = torch.device("mps", 0), torch.device("meta")
WIDE = {torch.float64, torch.complex128}
NO_FLOAT64 = (
    "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64. "
    "Please use float32 instead."
)
COPIES = {aten._to_copy.default, aten.copy_.default}
# Operations that take indices from the CPU.
INDEXING = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}
FUSED = {aten._fused_adam_.default, aten._fused_adamw_.default, aten._fused_sgd_.default}


class AppleTensor(torch.Tensor):
    """Tensor on the emulated device. To torch's core it is a meta tensor, without numbers."""

    @staticmethod
    def __new__(cls, values):
        if values.dtype in WIDE:
            raise TypeError(NO_FLOAT64)
        layout = {"strides": values.stride(), "storage_offset": values.storage_offset()}
        return torch.Tensor._make_wrapper_subclass(
            cls, values.size(), **layout, dtype=values.dtype, device=META
        )

    def __init__(self, values):
        self.values = values

    device, is_mps, is_cpu, is_meta = (
        property(lambda _, value=value: value) for value in (MPS, True, False, False)
    )
    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return call(func, args, kwargs or {})

    def tolist(self):
        return self.values.tolist()

    def numpy(self, **_):
        raise TypeError("can't convert mps:0 device type tensor to numpy. Use Tensor.cpu() first.")

    def __repr__(self, **_):
        return f"{self.values!r} on {MPS}"


def call(func, args, kwargs):
    """Call an operation of torch's core on the numbers of its arguments."""
    tensors = []

    def numbers(tensor):
        tensors.append(tensor)
        return tensor.values if isinstance(tensor, AppleTensor) else tensor

    args = map_tensors(numbers, args)
    kwargs = {name: map_tensors(numbers, value) for name, value in kwargs.items()}
    ours = {id(t.values): t for t in tensors if isinstance(t, AppleTensor)}
    stays = bool(ours)
    if kwargs.get("device") is not None:
        stays = kwargs["device"].type == "meta"
        kwargs["device"] = torch.device("cpu")
    elif func is aten.copy_.default:
        stays = isinstance(tensors[0], AppleTensor)
    is_mixed = bool(ours) and not all(isinstance(t, AppleTensor) for t in tensors)
    if is_mixed and func not in COPIES | INDEXING:
        raise RuntimeError(f"{func} expects tensors on one device, found mps:0 and cpu")
    if stays and func in MISSING:
        raise NotImplementedError(
            f"The operator '{func}' is not currently implemented for the MPS device. [...] As a "
            "temporary fix, you can set the environment variable `PYTORCH_ENABLE_MPS_FALLBACK=1`"
        )
    if stays and func in FUSED:
        kwargs["found_inf"] = None  # ignored up to torch 2.13
    is_random = stays and torch.Tag.nondeterministic_seeded in func.tags
    with RNG.selected() if is_random else nullcontext():
        results = func(*args, **kwargs)
    if stays:  # an operation in place returns its argument
        return map_tensors(lambda t: ours[id(t)] if id(t) in ours else AppleTensor(t), results)
    if ours and isinstance(results, torch.Tensor) and results.dtype in WIDE:
        raise TypeError(f"{func}: some versions of torch write no number here. {NO_FLOAT64}")
    return results


def map_tensors(function, value):
    """Apply a function to tensors, also in lists and tuples."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, list | tuple):
        return type(value)(map_tensors(function, part) for part in value)
    return value


class Dispatch(TorchDispatchMode):
    """Handles operations without a tensor of the device, such as its creation."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return call(func, args, kwargs or {})


class Names(TorchFunctionMode):
    """Translates the device's name, which a build of torch for another computer cannot use."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.device:
            return func(*args, **kwargs)
        if func is torch._C._nn._parse_to:  # of Module.to
            return tuple(MPS if value == META else value for value in func(*args, **kwargs))
        if any(isinstance(v, torch.device) and v == META for v in (*args, *kwargs.values())):
            with _disable_current_modes():  # a real meta tensor
                return func(*args, **kwargs)
        kwargs = {name: as_meta(value) for name, value in kwargs.items()}
        if func in (torch.tensor, torch.as_tensor):  # they would drop the numbers
            device = kwargs.pop("device", None)
            result = func(*args, **kwargs)
            return result if device is None else result.to(device)
        return func(*map(as_meta, args), **kwargs)


def as_meta(value):
    """Return a device or its name, as torch's core knows it."""
    is_ours = isinstance(value, str | torch.device) and str(value).partition(":")[0] == "mps"
    return META if is_ours else value


class DeviceGenerator:
    """The device's default generator of random numbers, with the functions of torch.mps."""

    def __init__(self):
        self.manual_seed(0)

    def manual_seed(self, seed):
        self.state = torch.Generator().manual_seed(seed).get_state()

    def get_rng_state(self, device=MPS):
        return self.state.clone()

    def set_rng_state(self, state, device=MPS):
        self.state = state.clone()

    @contextmanager
    def selected(self):
        """Draw from this generator, in place of the CPU's default one."""
        before = torch.get_rng_state()
        torch.set_rng_state(self.state)
        try:
            yield
        finally:
            self.state = torch.get_rng_state()
            torch.set_rng_state(before)


class AnyGenerator(torch.Generator):
    """A generator that may be asked for on the device."""

    def __new__(cls, _="cpu"):
        return super().__new__(cls, "cpu")


RNG = DeviceGenerator()
MISSING = set()  # operations that the version of torch lacks


@contextmanager
def apple_device(monkeypatch):
    """Emulate the device inside the block. ``device="auto"`` takes it."""
    with monkeypatch.context() as patch:
        patch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("mps"))
        stream = SimpleNamespace(is_capturing=lambda: False)  # torch's optimizers ask
        patch.setattr(torch.accelerator, "current_stream", lambda: stream)
        patch.setattr(torch, "Generator", AnyGenerator)
        for name in ("manual_seed", "get_rng_state", "set_rng_state"):
            patch.setattr(torch.mps, name, getattr(RNG, name))
        # A parameter that moves to a device remains the same object.
        patch.setattr(torch.__future__, "get_swap_module_params_on_conversion", lambda: True)
        with Names(), Dispatch():
            yield


def in_float32(value):
    """Return a tensor with float32 in place of other floating-point numbers. None stays None."""
    return value.float() if value is not None and value.is_floating_point() else value


def on_device(value):
    """Return a tensor on the device, floating-point numbers in float32. None stays None."""
    return None if value is None else in_float32(value).to("mps")
