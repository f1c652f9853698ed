"""Optional fast paths: compilation, oneDNN matrix products, mixed precision."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tinyvae.core.keywords import suggest_keywords
from tinyvae.core.objective import Batch
from tinyvae.training.step import ComputeGradients, Gradients, without_trace

# Setting that selects oneDNN's float32 kernels. A CPU with bfloat16 units may use those instead;
# the probe measures the error.
ONEDNN = "bf16"
FLOAT32_EXACT = 1e-6
MANY_ROWS = 4096  # rows of several draws: large products use other kernels than small ones
Precision: TypeAlias = Literal["float32", "bfloat16", "float16"]
ROUNDS, GAIN = 7, 0.95  # a fast path has to save 5 % in the best of 7 rounds


@suggest_keywords
@dataclass(frozen=True)
class Speed:
    """Optional fast paths of a run.

    Attributes:
        compile: If True, compile the update, or its forward and backward pass, into one graph. This
            takes seconds at the start, needs a C++ compiler, and agrees with the plain update to
            rounding. Batches of another shape, such as a short last one, use the plain pass. So do
            all batches if the pass cannot be compiled, after a warning. The model's Python code
            runs once: the graph ignores changes that a callback makes to its attributes during the
            run.
        matmul: ``"fast"`` uses oneDNN's matrix products on a CPU, if a probe at the start finds
            that they make the step faster and that each layer's products are within 1e-6 of the
            exact ones. The global setting is restored after the run.
        precision: ``"bfloat16"`` or ``"float16"`` runs networks in this dtype by autocast, if a
            probe finds that the device multiplies faster in it. Densities and weights keep their
            precision, and validation runs in full precision. With float16, which has a small range,
            losses are scaled, and an update whose gradients overflow is skipped. The columns
            ``train/batch_skipped_updates``, a share, and ``train/batch_loss_scale`` show it.

    Raises:
        TypeError: If ``compile`` is not a bool.
        ValueError: If another option has an unknown value, or for float16 with ``compile``.

    Example:
        >>> trainer = Trainer(vae, ELBO(), speed=Speed(matmul="fast"), progress=False)
        >>> history = trainer.fit(x, epochs=1)
        >>> trainer.resolved_speed.matmul in ("default", "onednn")
        True
    """

    compile: bool = False
    matmul: Literal["default", "fast"] = "default"
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        if not isinstance(self.compile, bool):
            raise TypeError(f"Speed expects compile as True or False, got {self.compile!r}")
        for name, value, known in (
            ("matmul", self.matmul, ("default", "fast")),
            ("precision", self.precision, get_args(Precision)),
        ):
            if value not in known:
                raise ValueError(f"Speed expects {name} as one of {known}, got {value!r}")
        if self.compile and self.precision == "float16":
            raise ValueError(
                "Speed expects compile=False with precision='float16', whose scale of the loss "
                "changes: use precision='bfloat16'"
            )

    def describe(self, resolved: "ResolvedSpeed", *, is_compiled: bool) -> list[str]:
        """Return a phrase for each requested fast path that says if it is in use."""
        words = []
        if self.compile:
            words.append("compiled" if is_compiled else "not compiled")
        if self.matmul != "default":
            slow = "the default library, oneDNN is not faster"
            words.append(f"matrix products by {'oneDNN' if resolved.matmul == 'onednn' else slow}")
        if self.precision != "float32":
            words.append(f"networks in {resolved.precision}")
        return words


@dataclass(frozen=True)
class ResolvedSpeed:
    """Choices that the probes made at the start of a run.

    Attributes:
        matmul: ``"default"`` or ``"onednn"``.
        precision: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
    """

    matmul: Literal["default", "onednn"] = "default"
    precision: Precision = "float32"

    def __post_init__(self) -> None:  # also called with the values in a checkpoint
        known = self.matmul in ("default", "onednn") and self.precision in get_args(Precision)
        if not known:
            raise ValueError(f"unknown fast path {self}")


def resolve_speed(gradients: Gradients, example: Batch, speed: Speed) -> ResolvedSpeed:
    """Probe the requested options. Call in training mode; the probes leave no trace."""
    device = example.x.device
    has_float32 = any(p.dtype == torch.float32 for p in gradients.model.parameters())
    dtype = getattr(torch, speed.precision)
    is_half = dtype != torch.float32 and has_float32 and half_is_faster(device, dtype)
    precision = speed.precision if is_half else "float32"
    compute_gradients = replace(gradients, precision=getattr(torch, precision))

    def step() -> None:
        with without_trace(gradients, device):
            compute_gradients(example)

    # The step runs in the chosen precision, so that the probe measures the run's own products.
    is_candidate = speed.matmul == "fast" and device.type == "cpu"
    pays = is_candidate and onednn_is_faster(gradients.model, len(example), step)
    return ResolvedSpeed("onednn" if pays else "default", precision)


def accelerate(
    gradients: Gradients,
    example: Batch,
    speed: Speed,
    route: ResolvedSpeed,
    optimizers: Mapping[str, Optimizer],
    clip_norm: float | None,
) -> ComputeGradients:
    """Return the function that computes gradients, with the options that the probes chose.

    It may be a graph of whole updates by ``optimizers``, if there are any.
    """
    gradients = replace(gradients, precision=getattr(torch, route.precision))
    if not speed.compile:
        return gradients
    # torch's compiler takes seconds to import.
    from tinyvae.training.acceleration.compiled_step import compiled

    with matmul_route(route.matmul):
        return compiled(gradients, example, optimizers, clip_norm)


@contextmanager
def matmul_route(route: str) -> Iterator[None]:
    """Select the matrix products on CPUs inside the block, and restore the setting after it."""
    if route == "default":
        yield
        return
    # Through getattr, since torch's type stubs do not know the attribute.
    setting: Any = getattr(torch.backends.mkldnn, "matmul")  # noqa: B009
    previous = setting.fp32_precision
    setting.fp32_precision = ONEDNN
    try:
        yield
    finally:
        setting.fp32_precision = previous


def onednn_is_faster(model: nn.Module, rows: int, step: Callable[[], object]) -> bool:
    """Return True if oneDNN's products are exact to float32 rounding and make a step faster.

    Args:
        model: Model whose linear layers are probed.
        rows: Rows of a batch.
        step: One step that leaves no trace.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    shapes = {(layer.in_features, layer.out_features) for layer in layers}
    if not shapes or not torch.backends.mkldnn.is_available():
        return False
    with matmul_route("onednn"):
        sizes = (rows, MANY_ROWS)
        if any(_error(n, *shape) > FLOAT32_EXACT for n in sizes for shape in shapes):
            return False

    def fast() -> None:
        with matmul_route("onednn"):
            step()

    return _faster(fast, step)


def half_is_faster(device: torch.device, dtype: torch.dtype) -> bool:
    """Return True if a device multiplies matrices faster in bfloat16 or float16 than in float32."""
    if device.type == "cuda":
        return dtype == torch.float16 or torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    wide = torch.randn(512, 512, generator=torch.Generator().manual_seed(0))
    half = wide.to(dtype)
    return _faster(lambda: half @ half, lambda: wide @ wide)


def _error(rows: int, n_in: int, n_out: int) -> float:
    """Return the largest relative error of a layer's products, forward and backward."""
    generator = torch.Generator().manual_seed(0)
    x, weight, slope = (
        torch.randn(shape, generator=generator)
        for shape in ((rows, n_in), (n_in, n_out), (rows, n_out))
    )
    pairs = ((x, weight), (slope, weight.T), (x.T, slope))
    return max(_distance(a @ b, a.double() @ b.double()) for a, b in pairs)


def _distance(product: Tensor, exact: Tensor) -> float:
    return float(torch.linalg.norm(product - exact) / torch.linalg.norm(exact))


def _faster(fast: Callable[[], object], plain: Callable[[], object]) -> bool:
    """Return True if ``fast`` takes less time than ``plain``."""
    seconds: dict[Callable[[], object], list[float]] = {fast: [], plain: []}
    for _ in range(ROUNDS):  # both in turn: other processes slow both down
        for run, times in seconds.items():
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
    return min(seconds[fast]) < GAIN * min(seconds[plain])
