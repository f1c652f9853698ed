"""Digests of fixed-seed runs, to show that a change of the code changes no number.

    python tools/digests.py --root PATH --output digests.json
    python tools/digests.py --compare old.json new.json

The first form runs every entry on the tree at PATH (which holds ``src`` and ``examples``) and
writes what it got: histories, weights, samples and estimates. The second form lists every entry
that differs between two files, and exits with 1 if there is one. ``--only REGEX`` selects entries
by name in both forms; ``--list`` prints the names.

One script serves trees with different names. ``find`` looks a name up in ``tinyvae``, then in its
submodules, under the aliases in the tables below. ``call`` translates keyword arguments. Nothing
that is compared depends on a name or a file format: numbers are recorded as ``float.hex()``,
tensors by a hash of dtype, shape and bytes, states in the order of ``state_dict`` without keys.

Each entry runs in a forked process of its own, with two threads and fixed seeds. An entry that
fails is recorded with its error. Both files of a comparison must come from the same machine with
the same packages; ``--compare`` warns if they do not.
"""

import argparse
import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import io
import json
import os
import pkgutil
import platform
import random
import re
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import cycle
from operator import attrgetter
from pathlib import Path
from typing import Any

THREADS = 2
# Numerical libraries read these when they are loaded, so they are set before torch is imported.
ENVIRONMENT = {
    "OMP_NUM_THREADS": str(THREADS),
    "MKL_NUM_THREADS": str(THREADS),
    "OPENBLAS_NUM_THREADS": str(THREADS),
    "MKL_DYNAMIC": "FALSE",
    "OMP_DYNAMIC": "FALSE",
    "OMP_WAIT_POLICY": "PASSIVE",  # on a busy machine ten times as fast as to spin
    "MPLBACKEND": "agg",
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
}
os.environ.update(ENVIRONMENT)
sys.dont_write_bytecode = True

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.optim import SGD, AdamW  # noqa: E402
from torch.optim.lr_scheduler import (  # noqa: E402
    CosineAnnealingLR,
    ReduceLROnPlateau,
    StepLR,
)
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset  # noqa: E402

# Names -------------------------------------------------------------------------------------------
#
# Edit these tables when a name changes. Keys are the names that this script uses, which are those
# of the tree before the restructuring. Values are tried first, in their order, then the key.

SUBMODULES = (
    *("distributions", "encoders", "likelihoods", "priors", "flows", "networks", "models"),
    *("objectives", "schedules", "evaluation", "training", "datasets", "core"),
)
ALIASES: dict[str, tuple[str, ...]] = {
    "AdversarialData": ("VAEGANRegularizer", "VAEGANLoss"),
    "AdversarialPrior": ("AdversarialPriorRegularizer", "AdversarialPriorMatching"),
    "AdversarialTotalCorrelation": ("AdversarialTotalCorrelationRegularizer",),
    "DIP": ("DIPRegularizer",),
    "Dequantisation": ("Dequantization",),
    "DiscretisedLogisticLikelihood": ("DiscretizedLogisticLikelihood",),
    "DynamicBinarisation": ("DynamicBinarization",),
    "GradientPenalty": ("GradientPenaltyRegularizer",),
    "LatentDensity": ("FittedPrior",),
    "LatentL2": ("LatentL2Regularizer",),
    "MMD": ("MMDRegularizer",),
    "Masked": ("MaskedLikelihood",),
    "StandardLaplace": ("StandardLaplacePrior",),
    "StandardNormal": ("StandardNormalPrior",),
    "StandardisedLikelihood": ("StandardizedLikelihood",),
    "TotalCorrelation": ("TotalCorrelationRegularizer",),
    "WeightL2": ("WeightL2Regularizer",),
}
KEYWORDS: dict[str, tuple[str, ...]] = {
    "batch": ("pick_batch", "to_batch"),
    "latent_shape": ("latent_dim",),
    "maximize": ("mode",),  # True and False become "max" and "min"
    "normalise": ("normalize",),
    "features": ("num_features",),
}
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "history": ("state.history",),
    "route": ("resolved_speed",),
    "start_at_mean": ("init_output_bias",),
}
# Examples by name: names of the file, anywhere below ``examples``, and arguments.
FEW = ("--epochs", "2", "--seeds", "1", "--output", ".")
EXAMPLES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "bounds": (("bounds.py",), FEW),
    "collapse": (("collapse.py",), FEW),
    "conditional_digits": (("conditional_digits.py",), FEW),
    "counts": (("counts.py",), FEW),
    "discrete_latents": (("discrete_latents.py",), FEW),
    "flow_posterior": (("flow_posterior.py",), ("--epochs", "1", "--seeds", "1", "--output", ".")),
    "grey_levels": (("gray_levels.py", "grey_levels.py"), ("--seeds", "1", "--output", ".")),
    "imputation": (("imputation.py",), ("--table", "wine", "--seeds", "0", "--output", ".")),
    "layers": (("layers.py",), FEW),
    "learned_scale": (("learned_scale.py",), ("--epochs", "2", "--output", ".")),
    "linear_vae": (("linear_vae.py",), ("--updates", "16", "--latents", "2", "5")),
    "mixed_table": (("mixed_table.py",), ("--rows", "1000", "--output", ".")),
    "preemptible": (("preemptible.py",), ("--epochs", "2", "--output", "run")),
    "vamp_prior": (("vamp_prior.py",), FEW),
    "vector_quantization": (("vector_quantization.py",), FEW),
}
# Caps of these examples: epochs of a call of ``fit``, samples of a call of ``evaluate``.
MOST_EPOCHS, MOST_SAMPLES = 2, 50
REFERENCE = (("mnist_vae.py",), ("--epochs", "3", "--output", "run"))

# Columns of a history and keys of a results file that hold times.
IS_TIME = re.compile(r"time|second", re.IGNORECASE)


class NameMissingError(LookupError):
    """A name that the tree lacks."""


@cache
def main_modules() -> tuple[Any, ...]:
    """Return tinyvae and its listed submodules."""
    names = ("tinyvae", *(f"tinyvae.{name}" for name in SUBMODULES))
    return tuple(importlib.import_module(name) for name in names if importlib.util.find_spec(name))


@cache
def other_modules() -> tuple[Any, ...]:
    """Return all other modules of tinyvae that can be imported."""
    package, *_ = main_modules()
    found = []
    for info in pkgutil.walk_packages(package.__path__, "tinyvae."):
        # A module that cannot be imported shows in the entries that need it.
        with contextlib.suppress(Exception):
            found.append(importlib.import_module(info.name))
    return tuple(module for module in found if module not in main_modules())


@cache
def find(name: str) -> Any:
    """Return an object of tinyvae by its name, or by one of its aliases."""
    for modules in (main_modules, other_modules):  # the others only if need be: they take seconds
        for candidate in (*ALIASES.get(name, ()), name):
            for module in modules():
                value = vars(module).get(candidate)
                if getattr(value, "__module__", "").startswith("tinyvae"):
                    return value
    raise NameMissingError(f"no '{name}' in tinyvae or its submodules: edit ALIASES")


def get(owner: Any, name: str) -> Any:
    """Return an attribute by its name, or by one of its aliases, which may have dots."""
    for candidate in (*ATTRIBUTES.get(name, ()), name):
        with contextlib.suppress(AttributeError):
            return attrgetter(candidate)(owner)
    raise NameMissingError(f"no '{name}' in {type(owner).__name__}: edit ATTRIBUTES")


def call(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call with keyword arguments under the names that the function has for them.

    Positional arguments that the function takes by keyword only are passed in their order.
    """
    parameters = inspect.signature(function).parameters
    kinds = {name: parameter.kind for name, parameter in parameters.items()}
    translated = {}
    for name, value in options.items():
        known = [c for c in (name, *KEYWORDS.get(name, ())) if c in parameters]
        key = known[0] if known else name
        is_mode = name == "maximize" and key == "mode"
        translated[key] = ("max" if value else "min") if is_mode else value
    if inspect.Parameter.VAR_POSITIONAL not in kinds.values():
        by_keyword = [n for n, kind in kinds.items() if kind == inspect.Parameter.KEYWORD_ONLY]
        most = len(kinds) - len(by_keyword) - (inspect.Parameter.VAR_KEYWORD in kinds.values())
        free = (name for name in by_keyword if name not in translated)
        translated |= dict(zip(free, args[most:], strict=False)) if len(args) > most else {}
        args = args[:most]
    return function(*args, **translated)


class Names:
    """Callables of tinyvae by name: ``tv.VAE(...)`` is ``call(find("VAE"), ...)``."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Return the callable."""
        return partial(call, find(name))


tv = Names()

# Values that are compared ------------------------------------------------------------------------


def digest(*tensors: torch.Tensor) -> str:
    """Hash dtype, shape and bytes of tensors."""
    total = hashlib.sha256()
    for tensor in tensors:
        tensor = tensor.detach().cpu().contiguous()
        total.update(f"{tensor.dtype} {tuple(tensor.shape)};".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    shapes = f"{len(tensors)} tensors" if len(tensors) != 1 else f"{tuple(tensors[0].shape)}"
    return f"{shapes} {total.hexdigest()[:32]}"


def digest_state(module: nn.Module) -> str:
    """Hash a module's state in its order, without the names."""
    return digest(*(value for value in module.state_dict().values() if torch.is_tensor(value)))


def plain(value: Any) -> Any:
    """Return numbers as text without loss, tensors as digests, dictionaries as lists."""
    match value:
        case None | bool():
            return str(value)
        case int() | np.integer():
            return str(int(value))
        case float() | np.floating():
            return float(value).hex()
        case torch.Tensor():
            return digest(value)
        case np.ndarray():
            return digest(torch.from_numpy(np.ascontiguousarray(value)))
        case Mapping():
            return [plain(item) for key, item in value.items() if not IS_TIME.search(str(key))]
        case str():
            return value
        case Sequence():
            return [plain(item) for item in value]
    raise TypeError(f"cannot record a {type(value).__name__}")


def numbers(value: Any) -> Any:
    """Keep the numbers of a JSON value, without texts and times."""
    match value:
        case dict():
            kept = {key: numbers(item) for key, item in value.items() if not IS_TIME.search(key)}
            return [item for item in kept.values() if item is not None]
        case list():
            return [numbers(item) for item in value]
        case str():
            return None
    return value


def attempt(function: Callable[[], Any]) -> Any:
    """Return a value to record, or the text of the error."""
    try:
        return plain(function())
    except Exception as error:
        return failure(error)


def failure(error: BaseException) -> str:
    """Describe an error with the line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
    return f"ERROR {type(error).__name__}: {error} ({place})"


def seed_all(seed: int) -> None:
    """Seed the generators of torch, numpy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)


# Data --------------------------------------------------------------------------------------------

N = 250  # not a multiple of the batch size
SHAPE = (1, 8, 8)


def digits() -> Any:
    """Return the digits of the package."""
    return call(find("digits"))


def levels(count: int = N) -> torch.Tensor:
    """Return images of levels 0 to 16, ``(N, 1, 8, 8)``, uint8."""
    return digits().images[:count]


def grey(count: int = N) -> torch.Tensor:
    """Return images in [0, 1]."""
    return levels(count).float() / 16


def binary(count: int = N) -> torch.Tensor:
    """Return images of zeros and ones."""
    return (levels(count) > 8).float()


def classes(count: int = N) -> torch.Tensor:
    """Return the labels of the images, ``(N,)``."""
    return digits().labels[:count]


def one_hot(count: int = N) -> torch.Tensor:
    """Return the labels as one-hot rows, ``(N, 10)``."""
    return torch.eye(10)[classes(count)]


def factors(columns: int = 6, seed: int = 0) -> np.ndarray:
    """Return correlated numbers, ``(N, columns)``."""
    rng = np.random.default_rng(seed)
    loadings = rng.standard_normal((2, columns))
    noise = 0.3 * rng.standard_normal((N, columns))
    return rng.standard_normal((N, 2)) @ loadings + noise


def reals() -> torch.Tensor:
    """Return a table of real numbers, ``(N, 6)``."""
    return torch.from_numpy(factors()).float()


def positive() -> torch.Tensor:
    """Return a table of positive numbers."""
    return reals().exp()


def shares() -> torch.Tensor:
    """Return a table of numbers in (0, 1)."""
    return reals().sigmoid()


def counts() -> torch.Tensor:
    """Return a table of counts with many zeros."""
    rng = np.random.default_rng(1)
    drawn = rng.poisson(3 * np.exp(0.5 * factors()) * rng.gamma(2, 0.5, (N, 6)))
    return torch.from_numpy(np.where(rng.random((N, 6)) < 0.2, 0, drawn)).float()


def missing(x: torch.Tensor, share: float = 0.3) -> torch.Tensor:
    """Replace a share of the entries by NaN."""
    gone = np.random.default_rng(2).random(tuple(x.shape)) < share
    return x.masked_fill(torch.from_numpy(gone), torch.nan)


def table() -> dict[str, list[Any]]:
    """Return a table of columns of every kind, with missing entries."""
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((2, N))
    columns: dict[str, np.ndarray] = {
        "age": 45 + 12 * a,
        "spent": np.exp(3 + 0.4 * b),
        "visits": rng.poisson(np.exp(1 + 0.5 * a)),
        "rooms": rng.poisson(np.exp(2 + 0.4 * b)),
        "member": np.where(a + rng.standard_normal(N) > 0, "yes", "no"),
        "came by": np.array(["bicycle", "car", "foot"])[rng.integers(3, size=N)],
        "hall": np.array(["east", "north", "west"])[(b > 0).astype(int) + (a > 1)],
        "size": 2 + 0.3 * a + 0.6 * b,
    }
    return {
        name: [None if rng.random() < 0.3 else value for value in values.tolist()]
        for name, values in columns.items()
    }


# Models and runs ---------------------------------------------------------------------------------

D, FEATURES = 3, 16


def net(inputs: Any = SHAPE, **options: Any) -> nn.Module:
    """Return a network of features."""
    return tv.MLP(inputs, hidden=(FEATURES,), **options)


def decoder(inputs: Any = D, outputs: Any = SHAPE) -> nn.Module:
    """Return a decoder."""
    return tv.MLP(inputs, hidden=(FEATURES,), out_shape=outputs)


def gaussian(inputs: Any = SHAPE, latent: Any = D) -> nn.Module:
    """Return a Gaussian encoder."""
    return tv.GaussianEncoder(net(inputs), latent)


def vae(encoder: nn.Module | None = None, prior: nn.Module | None = None, **parts: Any) -> Any:
    """Return a VAE of binary images."""
    encoder = gaussian() if encoder is None else encoder
    body = parts.get("decoder")
    body = decoder() if body is None else body
    likelihood = parts.get("likelihood")
    likelihood = tv.BernoulliLikelihood() if likelihood is None else likelihood
    return tv.VAE(encoder, body, likelihood, **({} if prior is None else {"prior": prior}))


def vae_of(likelihood: nn.Module, x: torch.Tensor, *, start: bool = True) -> Any:
    """Return a VAE with a likelihood, of the shape of the data."""
    shape = tuple(x.shape[1:])
    encoder = gaussian(likelihood.input_shape(shape))
    model = vae(encoder, decoder=decoder(D, likelihood.param_shape(shape)), likelihood=likelihood)
    if start:
        get(model, "start_at_mean")(x)
    return model


def batch_of(x: torch.Tensor, context: Any = None, mask: Any = None) -> Any:
    """Return a batch."""
    return find("Batch")(x=x, context=context, mask=mask)


def rows_of(rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Return rows of a history without names and times."""
    return [plain(row) for row in rows]


def columns_of(history: Any) -> list[str]:
    """Return the names of a history's columns, for reports of differences."""
    return [name for name in dict(next(iter(history), {})) if not IS_TIME.search(name)]


def trainer_of(model: nn.Module, objective: nn.Module, **options: Any) -> Any:
    """Return a quiet Trainer on the CPU that records every update."""
    settings = {"seed": 3, "record_every": 1, "progress": False, "device": "cpu", **options}
    return tv.Trainer(model, objective, **settings)


def trained(trainer: Any) -> dict[str, Any]:
    """Record what a run leaves behind: history, updates and weights."""
    history = get(trainer, "history")
    updates = json.dumps(rows_of(history.updates))
    return {
        "history": rows_of(list(history)),
        "updates": hashlib.sha256(updates.encode()).hexdigest()[:32],
        "weights": digest_state(trainer.model),
        "objective": digest_state(trainer.objective),
        "notes": {"history": columns_of(history)},
    }


def estimates(report: Any) -> list[Any]:
    """Return the numbers of a report."""
    each = [report.elbo, report.log_likelihood, report.kl, report.log_marginal]
    values = [n for e in each if e is not None for n in (e.mean, e.standard_error)]
    return plain([*values, report.num_dims, report.bits_per_dim(report.elbo)])


def probes(
    model: Any, x: torch.Tensor, context: torch.Tensor | None = None, mask: Any = None
) -> dict[str, Any]:
    """Record what a trained model draws, reconstructs and is worth."""
    model.eval()
    some = slice(0, 20)
    few, given, seen = (None if part is None else part[some] for part in (x, context, mask))
    to_draw = {} if given is None else {"context": given[:4]}
    data = {"context": given, "mask": seen}
    data = {name: value for name, value in data.items() if value is not None}

    def seeded(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        seed_all(5)
        return attempt(lambda: call(function, *args, **options))

    def report() -> list[Any]:
        options = {"elbo_samples": 4, "importance_samples": 20, "seed": 2}
        return estimates(tv.evaluate(model, few, **options, **data))

    return {
        "sample": seeded(model.sample, 5, **to_draw),
        "sample mean": seeded(model.sample, 5, mean=True, **to_draw),
        "reconstruct": seeded(model.reconstruct, few, **data),
        "evaluate": seeded(report),
        "log_marginal": seeded(tv.log_marginal, model, few, num_samples=20, seed=2, **data),
    }


def run(
    model: Any,
    objective: Any,
    x: torch.Tensor,
    *,
    context: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    train: Any = None,
    trainer: Mapping[str, Any] | None = None,
    rate: float = 5e-3,
    epochs: int = 2,
    **fit: Any,
) -> dict[str, Any]:
    """Train, and record history, weights and what the model makes of the data.

    Args:
        model: The model.
        objective: The objective.
        x: Data to train on and to evaluate.
        context: Context of each example.
        mask: Which entries are observed.
        train: Data to train on, if other than ``x``.
        trainer: Arguments of the Trainer.
        rate: Learning rate, if ``trainer`` has no optimization.
        epochs: Epochs.
        fit: Arguments of ``fit``.
    """
    options = {"optimization": tv.Optimization(learning_rate=rate), **(trainer or {})}
    trainer_ = trainer_of(model, objective, **options)
    data: Any = x if train is None else train
    if context is not None:
        data, fit["batch"] = (x, context), lambda pair: batch_of(*pair)
    if mask is not None:
        data, fit["batch"] = (x, mask), lambda pair: batch_of(pair[0], mask=pair[1])
    settings = {"epochs": epochs, "batch_size": 64, **fit}
    call(trainer_.fit, data, **settings)
    return trained(trainer_) | probes(model, x, context, mask)


# Entries -----------------------------------------------------------------------------------------

Entry = Callable[[], dict[str, Any]]
ENTRIES: dict[str, Entry] = {}
SECONDS: dict[str, float] = {}  # longest time of an entry, if other than usual
USUAL_SECONDS = 120.0


def entry(name: str, *, seconds: float = USUAL_SECONDS) -> Callable[[Entry], Entry]:
    """Register a function that returns what to compare."""

    def register(function: Entry) -> Entry:
        if name in ENTRIES:
            raise ValueError(f"two entries '{name}'")
        ENTRIES[name], SECONDS[name] = function, seconds
        return function

    return register


def entries(group: str, functions: Mapping[str, Entry]) -> None:
    """Register functions of one group."""
    for name, function in functions.items():
        entry(f"{group}/{name}")(function)


# Basics


@entry("datasets")
def _datasets() -> dict[str, Any]:
    data = digits()
    generator = torch.Generator().manual_seed(0)
    parts = find("split")(data, (1197, 200, 400), seed=1)
    transforms = {
        "binarization": tv.DynamicBinarisation(16),
        "binarization without maximum": tv.DynamicBinarisation(),
        "dequantization": tv.Dequantisation(17),
    }
    inputs = {"binarization without maximum": grey()}
    return {
        "digits": digest(data.images, data.labels),
        "split": digest(*(t for part in parts for t in (part.images, part.labels))),
        "threshold": plain(find("threshold")(data.images, 8)),
        **{
            n: attempt(lambda n=n, t=t: t(inputs.get(n, levels()), generator))
            for n, t in transforms.items()
        },
    }


@entry("schedules")
def _schedules() -> dict[str, Any]:
    schedules = {
        "linear": tv.Linear(0.0, 1.0, fraction=0.5),
        "linear steps": tv.Linear(0.2, 3.0, steps=7),
        "cosine": tv.Cosine(0.0, 1.0, fraction=1.0),
        "cyclical": tv.Cyclical(0.0, 1.0, cycles=3, ramp=0.7, fraction=1.0),
        "constant": tv.Constant(0.3),
    }
    return {name: plain([s(step, 40) for step in range(45)]) for name, s in schedules.items()}


@entry("distributions")
def _distributions() -> dict[str, Any]:
    wide = torch.from_numpy(factors(4)).float()[:20]
    first = tv.Independent(tv.Normal(wide, 0.1 * wide), 1)
    second = tv.Independent(tv.Normal(-wide, 0.2 * wide), 1)
    coins = tv.Independent(tv.Bernoulli(wide), 1)
    wrapped = tv.TorchDistribution(torch.distributions.Gumbel(wide, wide.exp()))
    kl = find("kl_divergence")
    parts: dict[str, Any] = {
        "kl normal": kl(first, second),
        "kl normal per dimension": call(kl, first, second, per_dim=True),
    }
    for name, q in {"normal": first, "bernoulli": coins, "torch": wrapped}.items():
        seed_all(0)
        z = q.sample((3,))
        parts |= {f"{name} sample": z, f"{name} log_prob": q.log_prob(z), f"{name} mean": q.mean}
    return {name: plain(value) for name, value in parts.items()}


# Networks

NETWORKS: dict[str, Callable[[], Any]] = {
    "mlp": lambda: vae(
        tv.GaussianEncoder(tv.MLP(SHAPE, hidden=(16, 12), activation=nn.Tanh, normalise=True), D)
    ),
    "conv": lambda: vae(
        tv.GaussianEncoder(tv.ConvNet(SHAPE, channels=(4, 6)), D),
        decoder=tv.TransposedConvNet(D, out_shape=SHAPE, channels=(6, 4)),
    ),
    "conv normalized": lambda: vae(
        tv.GaussianEncoder(
            tv.ConvNet(SHAPE, channels=(4,), kernel_size=5, activation=nn.SiLU, normalise=True), D
        ),
        decoder=tv.TransposedConvNet(D, out_shape=SHAPE, channels=(4,), normalise=True),
    ),
    "resnet": lambda: vae(
        tv.GaussianEncoder(tv.ResNet(SHAPE, channels=(4, 8), blocks=1), D),
        decoder=tv.TransposedResNet(D, out_shape=SHAPE, channels=(8, 4), blocks=1),
    ),
    "latent maps": lambda: vae(
        tv.GaussianEncoder(tv.ConvNet(SHAPE, channels=(4,)), (2, 4, 4)),
        decoder=tv.TransposedConvNet((2, 4, 4), out_shape=SHAPE, channels=(4,)),
    ),
}
entries(
    "networks",
    {n: lambda make=make: run(make(), tv.ELBO(), binary()) for n, make in NETWORKS.items()},
)


def conditional() -> Any:
    """Return a VAE whose every part reads the class as a one-hot row."""
    return vae(
        tv.GaussianEncoder(tv.ConcatContext(net(64 + 10), context_dim=10), D),
        tv.ConditionalPrior(gaussian(10)),
        decoder=tv.ConcatContext(decoder(D + 10), context_dim=10),
    )


@entry("networks/context numbers")
def _context_numbers() -> dict[str, Any]:
    return run(conditional(), tv.ELBO(), binary(), context=one_hot())


@entry("networks/context classes")
def _context_classes() -> dict[str, Any]:
    model = vae(
        tv.GaussianEncoder(
            tv.ConcatContext(tv.ConvNet((11, 8, 8), channels=(4,)), num_classes=10), D
        ),
        decoder=tv.ConcatContext(decoder(D + 10), num_classes=10),
    )
    return run(model, tv.ELBO(), binary(), context=classes())


# Encoders


def vector_quantized(latent: Any = (2, D), **options: Any) -> Any:
    """Return a VAE with a codebook, or with several."""
    several = {k: v for k, v in options.items() if k == "num_quantizers"}
    return vae(
        tv.VectorQuantizedEncoder(net(), 8, latent, **options),
        tv.CodePrior(8, latent_shape=latent, **several),
        decoder=decoder(latent),
    )


def joint(network: nn.Module | None = None) -> Any:
    """Return a VAE of a continuous and a relaxed latent."""
    inputs = SHAPE if network is None else FEATURES
    encoders = {
        "style": gaussian(inputs),
        "kind": tv.GumbelSoftmaxEncoder(net(inputs), 4, num_variables=1, temperature=0.7),
    }
    prior = {"style": tv.StandardNormal(D), "kind": tv.GumbelSoftmaxPrior(4)}
    encoder = tv.JointEncoder(encoders, **({} if network is None else {"network": network}))
    return vae(encoder, tv.JointPrior(prior), decoder=decoder(D + 4))


def flowing(flow: nn.Module) -> Any:
    """Return a VAE whose posterior is a flow on top of a Gaussian."""
    return vae(tv.FlowEncoder(gaussian(), flow))


ENCODERS: dict[str, Callable[[], Any]] = {
    "gaussian": lambda: vae(),
    "deterministic": lambda: vae(tv.DeterministicEncoder(net(), D)),
    "laplace": lambda: vae(tv.LaplaceEncoder(net(), D), tv.StandardLaplace(D)),
    "laplace to normal": lambda: vae(tv.LaplaceEncoder(net(), D)),
    "full gaussian": lambda: vae(tv.FullGaussianEncoder(net(), D)),
    "low rank": lambda: vae(tv.LowRankGaussianEncoder(net(), D, rank=2)),
    "power spherical": lambda: vae(tv.PowerSphericalEncoder(net(), D), tv.SphereUniformPrior(D)),
    "categorical": lambda: vae(
        tv.CategoricalEncoder(net(), 4, num_variables=3, temperature=0.5),
        tv.CategoricalPrior(4, num_variables=3),
        decoder=decoder((4, 3)),
    ),
    "gumbel softmax": lambda: vae(
        tv.GumbelSoftmaxEncoder(net(), 4, num_variables=3),
        tv.GumbelSoftmaxPrior(4, num_variables=3, temperature=0.5),
        decoder=decoder((4, 3)),
    ),
    "joint": lambda: joint(),
    "joint shared": lambda: joint(net()),
    "planar": lambda: flowing(tv.PlanarFlow(D, context_dim=FEATURES, transforms=4)),
    "radial": lambda: flowing(tv.RadialFlow(D, transforms=4)),
    "features": lambda: vae(tv.GaussianEncoder(nn.Flatten(), D, features=64)),
}
if importlib.util.find_spec("zuko"):
    ENCODERS |= {
        "flow spline": lambda: flowing(tv.Flow(D, context_dim=FEATURES, hidden=(16,))),
        "flow affine": lambda: flowing(
            tv.Flow(D, context_dim=FEATURES, transforms=2, hidden=(16,), kind="affine")
        ),
        "flow coupling": lambda: flowing(
            tv.Flow(D, context_dim=FEATURES, hidden=(16,), coupling=True)
        ),
    }
QUANTIZED: dict[str, dict[str, Any]] = {
    "averages": {},
    "averages restart": {"decay": 0.8, "restart_below": 0.5, "commitment": 0.5},
    "gradient": {"decay": None},
    "residual averages": {"num_quantizers": 3, "decay": 0.9},
    "residual gradient": {"num_quantizers": 2, "decay": None},
    "maps": {"latent": (2, 2, 2)},
}
entries(
    "encoders",
    {n: lambda make=make: run(make(), tv.ELBO(), binary()) for n, make in ENCODERS.items()},
)


def quantized(options: Mapping[str, Any]) -> dict[str, Any]:
    """Train with codebooks, then fit the prior to the codes."""
    model = vector_quantized(**options)
    x = binary()
    parts = run(model, tv.ELBO(), x)

    def fit_prior() -> torch.Tensor:
        codes = model.encode(x).codes
        model.prior.fit(codes)
        return codes

    parts["codes"] = attempt(fit_prior)
    parts["prior"] = digest_state(model.prior)
    after = probes(model, x)
    return parts | {f"{name} after": value for name, value in after.items()}


entries("quantized", {n: lambda o=o: quantized(o) for n, o in QUANTIZED.items()})


@entry("encoders/categorical by score")
def _categorical_by_score() -> dict[str, Any]:
    model = vae(
        tv.CategoricalEncoder(net(), 4, num_variables=3, temperature=None),
        tv.CategoricalPrior(4, num_variables=3),
        decoder=decoder((4, 3)),
    )
    return run(model, tv.IWAE(4), binary())


# Priors

PRIORS: dict[str, Callable[[Any], Any]] = {
    "standard normal": lambda _: tv.StandardNormal(D),
    "gaussian": lambda _: tv.GaussianPrior(D),
    "full gaussian": lambda _: tv.FullGaussianPrior(D),
    "mixture": lambda _: tv.MixturePrior(D, num_components=5),
    "vamp": lambda _: tv.VampPrior(D, input_shape=SHAPE, num_components=7),
    "vamp from data": lambda encoder: call(
        find("VampPrior").from_data, encoder, binary(), num_components=9, learned_weights=True
    ),
}
if importlib.util.find_spec("zuko"):
    PRIORS["flow"] = lambda _: tv.FlowPrior(tv.Flow(D, hidden=(16,)))


def with_prior(make: Callable[[Any], Any]) -> dict[str, Any]:
    """Train with a prior."""
    encoder = gaussian()
    return run(vae(encoder, make(encoder)), tv.ELBO(), binary())


entries("priors", {n: lambda make=make: with_prior(make) for n, make in PRIORS.items()})


@entry("priors/conditional vamp")
def _conditional_vamp() -> dict[str, Any]:
    encoder = tv.GaussianEncoder(tv.ConcatContext(net(64 + 10), num_classes=10), D)
    prior = call(find("VampPrior").from_data, encoder, binary(), classes(), num_components=9)
    model = vae(encoder, prior, decoder=tv.ConcatContext(decoder(D + 10), num_classes=10))
    return run(model, tv.ELBO(), binary(), context=classes())


@entry("priors/learned categorical")
def _learned_categorical() -> dict[str, Any]:
    model = vae(
        tv.CategoricalEncoder(net(), 4, num_variables=(3,)),
        tv.CategoricalPrior(4, num_variables=(3,), learned=True),
        decoder=decoder((4, 3)),
    )
    return run(model, tv.ELBO(num_samples=2), binary())


@entry("priors/learned gumbel softmax")
def _learned_gumbel() -> dict[str, Any]:
    model = vae(
        tv.GumbelSoftmaxEncoder(net(), 4, num_variables=3),
        tv.GumbelSoftmaxPrior(4, num_variables=3, temperature=0.4, learned=True),
        decoder=decoder((4, 3)),
    )
    return run(model, tv.IWAE(3), binary())


DENSITIES: dict[str, Callable[[], Any]] = {
    "full gaussian": lambda: tv.FullGaussianPrior(D),
    "mixture": lambda: tv.MixturePrior(D, num_components=3),
    "gaussian": lambda: tv.GaussianPrior(D),
}


def fitted_density(make: Callable[[], Any]) -> dict[str, Any]:
    """Fit a density to the latents of an autoencoder, and draw from it."""
    model = vae(tv.DeterministicEncoder(net(), D))
    parts = run(model, tv.ELBO(beta=0.0), binary())
    seed_all(7)
    z = model.encode(binary()).sample()
    density = find("LatentDensity")
    model.prior = call(density.fit, z, make(), steps=30)
    seed_all(8)
    return {
        "weights": parts["weights"],
        "density": digest_state(model.prior),
        "samples": plain(model.sample(5)),
    }


entries(
    "latent_density", {n: lambda make=make: fitted_density(make) for n, make in DENSITIES.items()}
)

# Likelihoods

LIKELIHOODS: dict[str, tuple[Callable[[], Any], Callable[[], torch.Tensor]]] = {
    "bernoulli": (lambda: tv.BernoulliLikelihood(), binary),
    "beta learned": (lambda: tv.BetaLikelihood("learned"), shares),
    "beta predicted": (lambda: tv.BetaLikelihood("predicted"), shares),
    "categorical": (lambda: tv.CategoricalLikelihood(17), levels),
    "categorical ordered": (lambda: tv.CategoricalLikelihood(17, ordered=True), levels),
    "continuous bernoulli": (lambda: tv.ContinuousBernoulliLikelihood(), grey),
    "logistic learned": (lambda: tv.DiscretisedLogisticLikelihood(17, scale="learned"), levels),
    "logistic predicted": (lambda: tv.DiscretisedLogisticLikelihood(17), levels),
    "gaussian learned": (lambda: tv.GaussianLikelihood("learned"), reals),
    "gaussian fixed": (lambda: tv.GaussianLikelihood(0.3), grey),
    "gaussian predicted": (lambda: tv.GaussianLikelihood("predicted"), reals),
    "gaussian parameters": (
        lambda: tv.GaussianLikelihood(tv.Learned((6,), initial=0.5, minimum=0.1)),
        reals,
    ),
    "laplace": (lambda: tv.LaplaceLikelihood(tv.Predicted(minimum=0.05)), reals),
    "log normal": (lambda: tv.LogNormalLikelihood("learned"), positive),
    "negative binomial": (
        lambda: tv.NegativeBinomialLikelihood(tv.Learned((6,)), baseline=2.0),
        counts,
    ),
    "negative binomial predicted": (lambda: tv.NegativeBinomialLikelihood("predicted"), counts),
    "one hot": (lambda: tv.OneHotLikelihood(), one_hot),
    "optimal gaussian": (lambda: tv.OptimalGaussianLikelihood(), grey),
    "optimal gaussian shape": (
        lambda: tv.OptimalGaussianLikelihood((6,), minimum=0.01),
        reals,
    ),
    "poisson": (lambda: tv.PoissonLikelihood(baseline=[1.0, 2.0, 3.0, 1.0, 2.0, 3.0]), counts),
    "student t": (lambda: tv.StudentTLikelihood("predicted", df=tv.Fixed(5.0)), reals),
    "student t learned": (lambda: tv.StudentTLikelihood("learned", df="learned"), reals),
    "standardized": (
        lambda: tv.StandardisedLikelihood(
            tv.GaussianLikelihood("learned"), mean=[0.1, 0.2, 0.0, 0.0, 0.1, 0.1], std=2.0
        ),
        reals,
    ),
    "standardized log normal": (
        lambda: tv.StandardisedLikelihood(tv.LogNormalLikelihood(), std=3.0),
        positive,
    ),
    "mixture gaussian": (
        lambda: tv.MixtureLikelihood(tv.GaussianLikelihood("predicted"), num_components=3),
        reals,
    ),
    "mixture logistic": (
        lambda: tv.MixtureLikelihood(tv.DiscretisedLogisticLikelihood(17), num_components=2),
        levels,
    ),
    "zero-inflated poisson": (
        lambda: tv.ZeroInflatedLikelihood(tv.PoissonLikelihood(baseline=2.0)),
        counts,
    ),
    "zero-inflated negative binomial": (
        lambda: tv.ZeroInflatedLikelihood(tv.NegativeBinomialLikelihood()),
        counts,
    ),
    "perceptual ssim": (
        lambda: tv.PerceptualLikelihood(tv.MultiScaleSSIM(1, window=3, scales=2), weight=50.0),
        grey,
    ),
    "perceptual features": (
        lambda: tv.PerceptualLikelihood(tv.FeatureDistance(net()), weight=2.0, bounds=(-1.0, 2.0)),
        grey,
    ),
}


def with_likelihood(make: Callable[[], Any], data: Callable[[], torch.Tensor]) -> dict[str, Any]:
    """Train with a likelihood, from the mean of the data."""
    x = data()
    return run(vae_of(make(), x), tv.ELBO(), x)


entries(
    "likelihoods",
    {n: lambda make=m, data=d: with_likelihood(make, data) for n, (m, d) in LIKELIHOODS.items()},
)


@entry("likelihoods/gaussian per class")
def _per_class() -> dict[str, Any]:
    likelihood = tv.GaussianLikelihood(tv.Learned((), num_classes=10))
    model = vae(
        tv.GaussianEncoder(tv.ConcatContext(net(64 + 10), num_classes=10), D),
        decoder=tv.ConcatContext(decoder(D + 10), num_classes=10),
        likelihood=likelihood,
    )
    return run(model, tv.ELBO(), grey(), context=classes())


# Missing entries

IMPUTED = {"one": {}, "several": {"num_imputations": 3}}
MASKED: dict[str, tuple[Callable[[], Any], Callable[[], torch.Tensor]]] = {
    "gaussian": (lambda: tv.Masked(tv.GaussianLikelihood(), show_mask=True), reals),
    "images": (lambda: tv.Masked(tv.BernoulliLikelihood(), show_mask=True), binary),
    "zero-inflated": (
        lambda: tv.Masked(tv.ZeroInflatedLikelihood(tv.NegativeBinomialLikelihood())),
        counts,
    ),
    "mixture": (
        lambda: tv.Masked(
            tv.MixtureLikelihood(tv.GaussianLikelihood("predicted"), num_components=3)
        ),
        reals,
    ),
}


def imputations(model: Any, x: torch.Tensor, **data: Any) -> dict[str, Any]:
    """Record imputed values: one per entry, and several."""
    return {
        f"impute {name}": attempt(
            lambda options=options: tv.impute(
                model, x[:20], num_samples=50, seed=4, **options, **data
            )
        )
        for name, options in IMPUTED.items()
    }


def with_missing(make: Callable[[], Any], data: Callable[[], torch.Tensor]) -> dict[str, Any]:
    """Train on incomplete data, and impute."""
    x = missing(data())
    model = vae_of(make(), x)
    return run(model, tv.IWAE(3), x) | imputations(model, x)


entries(
    "missing",
    {n: lambda make=m, data=d: with_missing(make, data) for n, (m, d) in MASKED.items()},
)


@entry("missing/mask")
def _mask() -> dict[str, Any]:
    x = reals()
    mask = ~torch.isnan(missing(x))
    model = vae_of(tv.Masked(tv.StudentTLikelihood()), x, start=False)
    return run(model, tv.ELBO(), x, mask=mask) | imputations(model, x, mask=mask[:20])


MIXED: dict[str, Callable[[], Any]] = {
    "": lambda: {},
    " own": lambda: {"likelihoods": {"size": tv.StudentTLikelihood(0.5, df="learned")}},
}


def mixed(options: Mapping[str, Any]) -> dict[str, Any]:
    """Train on a table of columns of different kinds, and impute."""
    data = table()
    kinds = {"spent": "positive", "visits": "count", "rooms": "count"}
    columns = call(find("MixedLikelihood").from_table, data, kinds=kinds, **options)
    x = columns.to_tensor(data)
    model = vae_of(tv.Masked(columns), x)
    parts = run(model, tv.ELBO(), x) | imputations(model, x)
    filled = tv.impute(model, x[:20], num_samples=50, seed=4)
    back = columns.to_arrays(filled)
    return parts | {
        "table": digest(x),
        "arrays": attempt(lambda: [str(v) for values in back.values() for v in values]),
        "encoder input": digest(columns.encoder_input(x)),
    }


entries("mixed table", {f"mixed{n}": lambda o=o: mixed(o()) for n, o in MIXED.items()})

# Objectives

BOUNDS: dict[str, Callable[..., Any]] = {
    "iwae": lambda **o: tv.IWAE(4, **o),
    "piwae": lambda **o: tv.PIWAE(3, num_bounds=2, **o),
    "multiply iwae": lambda **o: tv.MultiplyIWAE(3, num_bounds=2, **o),
    "ciwae": lambda **o: tv.CIWAE(4, elbo_weight=0.3, **o),
    "renyi": lambda **o: tv.RenyiBound(alpha=0.5, num_samples=4, **o),
    "tvo": lambda **o: tv.TVO(4, num_partitions=3, smallest=0.1, **o),
    "elbo": lambda **o: tv.ELBO(num_samples=2, **o),
}
for _bound, _make in BOUNDS.items():
    for _estimator in ("pathwise", "stl", "dreg"):
        entries(
            "bounds",
            {
                f"{_bound} {_estimator}": lambda make=_make, estimator=_estimator: run(
                    vae(), make(estimator=estimator), binary()
                )
            },
        )

ELBOS: dict[str, Callable[[], Any]] = {
    "beta": lambda: tv.ELBO(beta=4.0),
    "beta linear": lambda: tv.ELBO(beta=tv.Linear(0.0, 1.0, fraction=0.5)),
    "beta cosine": lambda: tv.ELBO(beta=tv.Cosine(0.1, 1.0, steps=6)),
    "beta cyclical": lambda: tv.ELBO(beta=tv.Cyclical(0.0, 1.0, cycles=2, fraction=1.0)),
    "capacity": lambda: tv.ELBO(beta=10.0, capacity=tv.Linear(0.0, 5.0, fraction=1.0)),
    "free bits": lambda: tv.ELBO(free_bits=0.2),
    "free bits scheduled": lambda: tv.ELBO(
        free_bits=tv.Linear(0.5, 0.0, fraction=1.0), free_bits_per="layer"
    ),
    "free bits of groups": lambda: tv.ELBO(free_bits=0.2, free_bits_per=3),
    "likelihood weight": lambda: tv.ELBO(likelihood_weight=0.5),
    "sampled kl": lambda: tv.ELBO(kl="sample", num_samples=3),
    "scheduled iwae": lambda: tv.IWAE(3, beta=tv.Linear(0.0, 1.0, fraction=0.5)),
    "scheduled ciwae": lambda: tv.CIWAE(3, elbo_weight=tv.Linear(1.0, 0.0, fraction=0.5)),
    "scheduled renyi": lambda: tv.RenyiBound(
        alpha=tv.Linear(1.0, -0.5, fraction=1.0), num_samples=3
    ),
    "scheduled tvo": lambda: tv.TVO(3, smallest=tv.Linear(0.5, 0.1, fraction=1.0)),
}
entries("elbo", {n: lambda make=m: run(vae(), make(), binary()) for n, m in ELBOS.items()})


@entry("elbo/of each latent")
def _of_each_latent() -> dict[str, Any]:
    capacity = {"style": tv.Linear(0.0, 5.0, fraction=1.0), "kind": 1.0}
    return run(joint(), tv.ELBO(beta={"style": 3.0, "kind": 2.0}, capacity=capacity), binary())


@entry("elbo/free bits of channels")
def _free_bits_of_channels() -> dict[str, Any]:
    objective = tv.ELBO(free_bits=0.5, free_bits_per="channel")
    return run(NETWORKS["latent maps"](), objective, binary())


@entry("elbo/leave one out")
def _leave_one_out() -> dict[str, Any]:
    model = vae(
        tv.CategoricalEncoder(net(), 4, num_variables=3, temperature=None),
        tv.CategoricalPrior(4, num_variables=3),
        decoder=decoder((4, 3)),
    )
    objective = tv.ELBO(num_samples=3, baseline="leave_one_out", beta=2.0)
    return run(model, objective, binary())


@entry("elbo/terms")
def _terms() -> dict[str, Any]:
    model, batch = vae(), batch_of(binary(30))
    parts = {}
    for name, make in BOUNDS.items():
        seed_all(3)
        parts[name] = attempt(lambda make=make: make().terms(model, batch))
    activity = tv.active_units(model, binary(), num_samples=8)
    return parts | {"activity": plain([each.variance for each in activity.values()])}


# Hierarchies


def bottom_up() -> Any:
    """Return a model of two layers, inferred upward."""
    return tv.BottomUpVAE(
        [gaussian(), gaussian(D, 2)],
        generators=[gaussian(2)],
        decoder=decoder(),
        likelihood=tv.BernoulliLikelihood(),
    )


def ladder(prior: nn.Module | None = None) -> Any:
    """Return a model of two layers, inferred along the ladder."""
    return tv.LadderVAE(
        [gaussian(), gaussian(FEATURES, 2)],
        generators=[gaussian(2)],
        decoder=decoder(),
        likelihood=tv.BernoulliLikelihood(),
        **({} if prior is None else {"prior": prior}),
    )


def two_level() -> Any:
    """Return a model of two layers that both reach the data."""
    top = gaussian()
    return tv.TwoLevelVAE(
        top,
        bottom=tv.GaussianEncoder(tv.ConcatContext(net(64 + D), context_dim=D), 2),
        generator=gaussian(D, 2),
        decoder=decoder(D + 2),
        likelihood=tv.BernoulliLikelihood(),
        prior=call(find("VampPrior").from_data, top, binary(), num_components=8),
    )


def conditional_ladder() -> Any:
    """Return a ladder that is conditioned on the class."""
    return tv.LadderVAE(
        [
            tv.GaussianEncoder(tv.ConcatContext(net(64 + 10), context_dim=10), D),
            gaussian(FEATURES, 2),
        ],
        generators=[tv.GaussianEncoder(tv.ConcatContext(net(2 + 10), context_dim=10), D)],
        decoder=tv.ConcatContext(decoder(D + 10), context_dim=10),
        likelihood=tv.BernoulliLikelihood(),
    )


HIERARCHIES: dict[str, Callable[[], dict[str, Any]]] = {
    "bottom up": lambda: run(bottom_up(), tv.ELBO(), binary()),
    "bottom up iwae": lambda: run(bottom_up(), tv.IWAE(4, estimator="dreg"), binary()),
    "bottom up piwae": lambda: run(bottom_up(), tv.PIWAE(3, num_bounds=2), binary()),
    "ladder": lambda: run(
        ladder(), tv.ELBO(beta={"z1": 1.0, "z2": tv.Linear(0.0, 1.0, fraction=0.5)}), binary()
    ),
    "ladder vamp": lambda: run(
        ladder(tv.VampPrior(2, input_shape=SHAPE, num_components=5)), tv.ELBO(), binary()
    ),
    "ladder conditional": lambda: run(
        conditional_ladder(), tv.ELBO(free_bits=0.1), binary(), context=one_hot()
    ),
    "two level": lambda: run(two_level(), tv.ELBO(), binary()),
    "two level iwae": lambda: run(two_level(), tv.IWAE(3, estimator="stl"), binary()),
}
entries("hierarchies", HIERARCHIES)

# Regularizers


def discriminator(inputs: Any = D) -> nn.Module:
    """Return a network of log odds."""
    return decoder(inputs, 1)


REGULARIZERS: dict[str, Callable[[], Any]] = {
    "dip means": lambda: tv.ELBO() + tv.DIP(2.0, diagonal=5.0),
    "dip total": lambda: tv.ELBO() + tv.DIP(1.0, covariance="total"),
    "mmd": lambda: tv.ELBO(beta=0.5) + tv.MMD(9.5),
    "mmd scales": lambda: tv.IWAE(2) + tv.MMD(5.0, scales=(0.5, 2.0)),
    "latent l2": lambda: tv.ELBO(beta=0.0) + tv.LatentL2(0.1),
    "weight l2": lambda: tv.ELBO() + tv.WeightL2(1e-3) + tv.LatentL2(0.1),
    "gradient penalty": lambda: tv.ELBO(beta=0.0) + tv.GradientPenalty(1e-3),
    "total correlation": lambda: tv.ELBO() + tv.TotalCorrelation(5.0, dataset_size=N),
    "total correlation weighted": lambda: (
        tv.ELBO()
        + tv.TotalCorrelation(
            2.0, dataset_size=N, sampling="weighted", mutual_information=-0.5, dimension_kl=0.5
        )
    ),
    "adversarial total correlation": lambda: (
        tv.ELBO() + tv.AdversarialTotalCorrelation(discriminator(), weight=6.0)
    ),
    "adversarial prior": lambda: (
        tv.ELBO(beta=0.0)
        + tv.AdversarialPrior(discriminator(), weight=tv.Linear(1.0, 10.0, fraction=1.0))
    ),
    "adversarial data": lambda: (
        tv.ELBO(likelihood_weight=0.0)
        + tv.AdversarialData(net(), num_features=FEATURES, weight=0.1, similarity=2.0)
    ),
    "several": lambda: (
        tv.IWAE(2, estimator="stl")
        + tv.DIP(1.0)
        + tv.AdversarialPrior(discriminator(), weight=1.0, group="matching")
        + tv.AdversarialTotalCorrelation(discriminator(), weight=2.0)
    ),
}
entries(
    "regularizers",
    {n: lambda make=m: run(vae(), make(), binary()) for n, m in REGULARIZERS.items()},
)


@entry("regularizers/of a layer")
def _of_a_layer() -> dict[str, Any]:
    return run(bottom_up(), tv.ELBO() + tv.MMD(3.0, latent="z2"), binary())


@entry("regularizers/optimizers of groups")
def _optimizers_of_groups() -> dict[str, Any]:
    optimization = tv.Optimization(
        5e-3,
        optimizer={"discriminator": lambda p: SGD(p, lr=0.05, momentum=0.9)},
        clip_norm=2.0,
    )
    objective = tv.ELBO() + tv.AdversarialTotalCorrelation(discriminator(), weight=6.0)
    return run(vae(), objective, binary(), trainer={"optimization": optimization})


# Training


def flip(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Flip a tenth of the pixels."""
    noise = torch.rand(x.shape, generator=generator)
    return torch.where(noise < 0.1, 1 - x, x)


class Drawn(Dataset):
    """Items that draw from every generator, with their labels."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        noise = torch.rand(()) + random.random() + np.random.rand()  # noqa: NPY002
        return torch.where(noise < 0.5, 1 - self.x[index], self.x[index]), index


class Stream(IterableDataset):
    """Items without a length."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x = x

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(self.x)


def first(pair: Any) -> torch.Tensor:
    """Pick x out of what the data yield."""
    return pair[0]


def cosine(optimizer: Any, total: int) -> CosineAnnealingLR:
    """Anneal to zero along a cosine."""
    return CosineAnnealingLR(optimizer, total)


TRAINING: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "cosine per step": (
        {"learning_rate": 5e-3, "scheduler": cosine, "scheduler_interval": "step"},
        {},
    ),
    "steps per epoch": (
        {"learning_rate": 5e-3, "scheduler": lambda optimizer: StepLR(optimizer, 1, gamma=0.5)},
        {"epochs": 3},
    ),
    "plateau": (
        {
            "optimizer": lambda p: SGD(p, lr=1e-2, momentum=0.9),
            "scheduler": lambda o: ReduceLROnPlateau(o, mode="max", patience=0, threshold=0.5),
            "monitor": "validation/elbo_nats",
        },
        {"validation": "few", "epochs": 3},
    ),
    "clip": ({"learning_rate": 5e-3, "clip_norm": 0.5}, {}),
    "sgd": ({"optimizer": lambda p: SGD(p, lr=1e-3)}, {}),
    "adamw": ({"optimizer": partial(AdamW, fused=True, weight_decay=0.1)}, {}),
    "rates of parts": (
        {"learning_rate": 5e-3, "learning_rates": {"encoder": 1e-4, "decoder.layers": 1e-2}},
        {},
    ),
    "transform": ({}, {"transform": flip, "validation": "few", "epochs": 3}),
    "batch size": ({}, {"batch_size": 100, "epochs": 1}),
}


def with_training(optimization: Mapping[str, Any], fit: Mapping[str, Any]) -> dict[str, Any]:
    """Train with settings of the optimization and of ``fit``."""
    fit = dict(fit)
    if fit.get("validation") == "few":
        fit["validation"] = binary(400)[N:]
    options = {"optimization": tv.Optimization(**optimization)}
    return run(vae(), tv.ELBO(), binary(), trainer=options, **fit)


entries("training", {n: lambda o=o, f=f: with_training(o, f) for n, (o, f) in TRAINING.items()})

DATA: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "array": (lambda: binary().numpy(), {}),
    "tuple": (lambda: (binary(), classes()), {"batch": first}),
    "tensor dataset": (lambda: TensorDataset(binary()), {}),
    "dataset": (lambda: Drawn(binary()), {"batch": first}),
    "dataset workers": (lambda: Drawn(binary()), {"batch": first, "workers": 2}),
    "loader": (lambda: DataLoader(binary(), 50, shuffle=True), {"transform": flip}),
    "loader pairs": (
        lambda: DataLoader(TensorDataset(binary(), classes()), 60, shuffle=True, drop_last=True),
        {"batch": first},
    ),
    "stream": (lambda: DataLoader(Stream(binary()), 50), {}),
}
entries(
    "data",
    {
        n: lambda make=m, fit=f: run(vae(), tv.ELBO(), binary(), train=make(), **fit)
        for n, (m, f) in DATA.items()
    },
)


@entry("data/binarization")
def _binarization() -> dict[str, Any]:
    transform = tv.DynamicBinarisation(16)
    fit = {"train": levels(), "validation": levels(400)[N:], "transform": transform}
    return run(vae(), tv.ELBO(), binary(), **fit)


@entry("data/dequantization")
def _dequantization() -> dict[str, Any]:
    transform = tv.Dequantisation(17)
    x = transform(levels(), torch.Generator().manual_seed(0))
    model = vae_of(tv.GaussianLikelihood("predicted"), x)
    parts = run(model, tv.ELBO(), x, train=levels(), transform=transform)
    options = {"elbo_samples": 2, "importance_samples": 10, "bin_width": transform.bin_width}
    report = tv.evaluate(model, x[:20], **options)
    return parts | {"bits": plain(report.bits_per_dim(report.log_marginal))}


@entry("training/early stopping")
def _early_stopping() -> dict[str, Any]:
    stop = tv.EarlyStopping("validation/elbo_nats", patience=2, maximize=True)
    trainer = {"callbacks": [stop], "optimization": tv.Optimization(learning_rate=0.1)}
    fit = {"validation": binary(300)[N:], "epochs": 15, "trainer": trainer}
    return run(vae(), tv.ELBO(), binary(), **fit) | {"best": plain([stop.best, stop.best_epoch])}


@entry("training/early stopping of a loss")
def _early_stopping_loss() -> dict[str, Any]:
    stop = tv.EarlyStopping(
        "train/loss", patience=1, maximize=False, min_delta=0.5, restore_best=False
    )
    fit = {"epochs": 15, "trainer": {"callbacks": [stop]}}
    return run(vae(), tv.ELBO(), binary(), **fit) | {"best": plain([stop.best, stop.best_epoch])}


@entry("training/frozen encoder")
def _frozen() -> dict[str, Any]:
    model = vae()
    model.encoder.requires_grad_(False)
    return run(model, tv.ELBO(), binary())


@entry("training/float64")
def _float64() -> dict[str, Any]:
    return run(vae().double(), tv.IWAE(3), binary().double())


@entry("training/twice")
def _twice() -> dict[str, Any]:
    optimization = tv.Optimization(learning_rate=5e-3, scheduler=cosine, scheduler_interval="step")
    objective = tv.ELBO(beta=tv.Linear(0.0, 1.0, fraction=0.5))
    trainer = trainer_of(vae(), objective, optimization=optimization)
    for epochs in (2, 1):
        call(trainer.fit, binary(), epochs=epochs, batch_size=64)
    return trained(trainer)


@entry("training/dropout")
def _dropout() -> dict[str, Any]:
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12), nn.Dropout(0.3), nn.ReLU()
    )
    return run(vae(tv.GaussianEncoder(network, D, features=12)), tv.ELBO(), binary())


@entry("training/file")
def _file() -> dict[str, Any]:
    model = joint(net())
    parts = run(model, tv.ELBO(), binary())
    model.save("model.safetensors")
    loaded = find("VAE").load("model.safetensors")
    return {"weights": parts["weights"], "loaded": digest_state(loaded), **probes(loaded, binary())}


# Fast paths


@contextlib.contextmanager
def clock(*durations: float) -> Iterator[None]:
    """Make ``time.perf_counter`` tell that timed pieces of code take these times in turn."""

    def ticks() -> Iterator[float]:
        now = 0.0
        for duration in cycle(durations):
            yield now
            now += duration
            yield now

    original = time.perf_counter
    time.perf_counter = partial(next, ticks())
    try:
        yield
    finally:
        time.perf_counter = original


def fast(settings: Mapping[str, Any], durations: tuple[float, float]) -> dict[str, Any]:
    """Train on a fast path, whose probes get the times ``(fast, plain)``."""
    # Without units for bfloat16, oneDNN's products are exact, so that only the times decide.
    if settings.get("matmul") == "fast":
        os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX512_CORE"
    trainer = trainer_of(vae(), tv.ELBO(), speed=tv.Speed(**settings))
    with clock(*durations):
        call(trainer.fit, binary(), epochs=2, batch_size=50)
    parts = trained(trainer) | probes(trainer.model, binary())
    parts["notes"]["route"] = str(get(trainer, "route"))
    return parts


entries(
    "speed",
    {
        "plain": lambda: fast({}, (1.0, 1.0)),
        "matmul taken": lambda: fast({"matmul": "fast"}, (1.0, 2.0)),
        "matmul refused": lambda: fast({"matmul": "fast"}, (2.0, 1.0)),
        "bfloat16 taken": lambda: fast({"precision": "bfloat16"}, (1.0, 2.0)),
        "bfloat16 refused": lambda: fast({"precision": "bfloat16"}, (2.0, 1.0)),
    },
)


def compiled() -> dict[str, Any]:
    """Train on the compiled path, and make sure that the run was compiled."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path("inductor").resolve())
    trainer = trainer_of(vae(), tv.ELBO(), speed=tv.Speed(compile=True))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(trainer.fit, binary(), epochs=2, batch_size=50)
    from torch._inductor import metrics

    if not metrics.generated_kernel_count:
        raise RuntimeError(f"not compiled: {[str(warning.message) for warning in caught]}")
    return trained(trainer) | probes(trainer.model, binary())


if shutil.which("g++") or shutil.which("clang++"):
    entry("speed/compiled", seconds=300.0)(compiled)

# Stopped and resumed


class StopError(Exception):
    """Raised to end a run between two steps."""


def raise_error() -> None:
    """Stop a run by an error."""
    raise StopError


def send(signum: int) -> Callable[[], None]:
    """Return a function that stops a run by a signal to this process."""
    return lambda: os.kill(os.getpid(), signum)


def stopping(at: int, stop: Callable[[], None]) -> Any:
    """Return a callback that stops a run after so many steps."""

    class Stopping(find("Callback")):  # type: ignore[misc]
        steps = 0

        def on_step_end(self, trainer: Any, output: Any) -> None:
            self.steps += 1
            if self.steps == at:
                stop()

    return Stopping()


def part_of_run(folder: str, more: Sequence[Any], data: str, resume: str | None) -> Any:
    """Train with everything that has a state, in a folder of checkpoints."""
    objective = tv.ELBO(beta=tv.Linear(0.0, 1.0, fraction=0.8)) + tv.AdversarialTotalCorrelation(
        discriminator(), weight=2.0
    )
    optimization = tv.Optimization(
        learning_rate=5e-3, scheduler=cosine, scheduler_interval="step", clip_norm=1.0
    )
    keep = {"every_steps": 3, "every_minutes": None, "monitor": "validation/elbo_nats"}
    callbacks = [tv.Checkpoint(folder, **keep), tv.EarlyStopping(patience=5), *more]
    trainer = trainer_of(vae(), objective, optimization=optimization, callbacks=callbacks)
    train = DataLoader(binary(), 64, shuffle=True) if data == "loader" else binary()
    options = {"validation": binary(300)[N:], "transform": flip, "resume": resume}
    call(trainer.fit, train, epochs=4, batch_size=64, **options)
    return trainer


def stopped(stops: Mapping[int, Callable[[], None]], data: str) -> dict[str, Any]:
    """Stop a run, each time after some steps, and resume it; compare with a run in one go."""
    whole = trained(part_of_run("whole", (), data, None))
    for number, (at, stop) in enumerate(stops.items()):
        seed_all(number)  # only the first part of the run has the weights of the run in one go
        with contextlib.suppress(StopError, SystemExit):
            part_of_run("stopped", [stopping(at, stop)], data, "auto")
    seed_all(20)
    trainer = part_of_run("stopped", (), data, "auto")
    parts = trained(trainer)
    same = all(parts[name] == whole[name] for name in whole if name != "notes")
    return parts | {"as in one go": str(same)} | probes(trainer.model, binary())


RESUMED: dict[str, tuple[dict[int, Callable[[], None]], str]] = {
    "error": ({7: raise_error}, "tensor"),
    "interrupt": ({6: send(signal.SIGINT)}, "tensor"),
    "terminate twice": ({5: send(signal.SIGTERM), 4: send(signal.SIGTERM)}, "tensor"),
    "loader": ({8: raise_error}, "loader"),
}
entries("resumed", {n: lambda s=s, d=d: stopped(s, d) for n, (s, d) in RESUMED.items()})

# Examples


def decimals(text: str) -> list[str]:
    """Return the decimal numbers of a text, without times."""
    text = re.sub(r"\d[\d.]*\s*(ms|s|seconds)\b", "", text)
    return re.findall(r"-?\d+\.\d+(?:e[-+]?\d+)?", text)


def script_of(root: Path, names: Sequence[str]) -> Path:
    """Return the path of an example."""
    for name in names:
        for path in (root / "examples").rglob(name):
            return path
    raise FileNotFoundError(f"no {' or '.join(names)} in {root / 'examples'}: edit EXAMPLES")


def example(root: Path, name: str) -> dict[str, Any]:
    """Run an example in this process, and record its fits and the numbers that it prints."""
    files, arguments = EXAMPLES[name]
    script = script_of(root, files)
    parts: dict[str, Any] = {}
    Trainer, evaluate = find("Trainer"), find("evaluate")  # noqa: N806
    fit = Trainer.fit

    def short_fit(self: Any, *args: Any, **options: Any) -> Any:
        options["epochs"] = min(options["epochs"], MOST_EPOCHS)
        history = fit(self, *args, **options)
        number = sum(key.endswith("weights") for key in parts)
        parts[f"fit {number} weights"] = digest_state(self.model)
        parts[f"fit {number} history"] = rows_of(list(history))
        return history

    def short_evaluate(*args: Any, **options: Any) -> Any:
        bound = inspect.signature(evaluate).bind(*args, **options)
        bound.apply_defaults()
        for key in ("elbo_samples", "importance_samples"):
            if bound.arguments[key] is not None:
                bound.arguments[key] = min(bound.arguments[key], MOST_SAMPLES)
        report = evaluate(*bound.args, **bound.kwargs)
        number = sum(key.startswith("report") for key in parts)
        parts[f"report {number}"] = estimates(report)
        return report

    def touch(_: Any, file: Any, **__: Any) -> None:
        Path(file).touch()

    from matplotlib.figure import Figure

    Trainer.fit, Figure.savefig = short_fit, touch
    for module in [m for name, m in sys.modules.items() if name.partition(".")[0] == "tinyvae"]:
        if vars(module).get("evaluate") is evaluate:
            module.evaluate = short_evaluate
    sys.argv = [str(script), *arguments]
    sys.path.insert(0, str(script.parent))
    sys.path.insert(0, str(root / "examples"))
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        runpy.run_path(str(script), run_name="__main__")
    return parts | {"printed": decimals(output.getvalue())}


def reference(root: Path) -> dict[str, Any]:
    """Run the reference example as a user does, and record its results and its model."""
    files, arguments = REFERENCE
    command = [sys.executable, str(script_of(root, files)), *arguments]
    environment = os.environ | {"PYTHONPATH": str(root / "src")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    results = json.loads(Path("run/results.json").read_text())
    (model,) = Path("run").glob("*.safetensors")
    loaded = find("VAE").load(model)
    return {
        "results": plain(numbers(results)),
        "weights": digest_state(loaded),
        **probes(loaded, binary()),
    }


def preload() -> None:
    """Import once, before the forks, what most entries need and what takes seconds."""
    main_modules()
    for name in ("torch._dynamo", "zuko", "matplotlib.figure"):
        if importlib.util.find_spec(name.partition(".")[0]):
            importlib.import_module(name)


def add_examples(root: Path) -> None:
    """Register the examples of a tree."""
    entry("examples/reference", seconds=300.0)(partial(reference, root))
    for name in EXAMPLES:
        entry(f"examples/{name}", seconds=300.0)(partial(example, root, name))


# Running -----------------------------------------------------------------------------------------


def say(text: str) -> None:
    """Print a line."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def measure(function: Entry) -> dict[str, Any]:
    """Run an entry in this process, or return its error."""
    torch.set_num_threads(THREADS)
    seed_all(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function()
    except Exception as error:
        traceback.print_exc()
        return {"error": failure(error)}


def isolated(function: Entry, seconds: float, *, verbose: bool) -> dict[str, Any]:
    """Run an entry in a forked process, in an empty folder.

    The parent never starts a thread or computes, so that a fork is safe and every entry starts from
    the same state.
    """
    with tempfile.TemporaryDirectory(prefix="digests-") as folder:
        result = Path(folder) / "result.json"
        child = os.fork()
        if child == 0:
            status = 1
            try:
                work = Path(folder) / "work"
                work.mkdir()
                os.chdir(work)
                if not verbose:
                    with Path(os.devnull).open("w") as silence:
                        for number in (1, 2):
                            os.dup2(silence.fileno(), number)
                result.write_text(json.dumps(measure(function)))
                status = 0
            finally:
                os._exit(status)
        code = _wait(child, seconds)
        if code is None:
            return {"error": f"ERROR no result after {seconds:g} s"}
        if not result.exists():
            return {"error": f"ERROR the process ended with status {code}"}
        return json.loads(result.read_text())


def _wait(child: int, seconds: float) -> int | None:
    """Wait for a child process; kill it and return None when its time is over."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def machine() -> dict[str, str]:
    """Describe what bits may depend on besides the code."""
    cpu = platform.processor()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.partition(":")[2].strip() for line in lines if "model name" in line)
        flags = next(line.partition(":")[2] for line in lines if line.startswith("flags"))
        cpu += " " + hashlib.sha256(flags.encode()).hexdigest()[:8]
    packages = {
        name: importlib.import_module(name).__version__
        for name in ("numpy", "torch", "zuko")
        if importlib.util.find_spec(name)
    }
    python = platform.python_version()
    return {"cpu": cpu, "cores": str(os.cpu_count()), "python": python, **packages}


def is_error(parts: Mapping[str, Any]) -> bool:
    """Return True if an entry, or a part of it, is an error."""
    return any(isinstance(v, str) and v.startswith("ERROR") for v in parts.values())


def record(root: Path, output: Path, pattern: str, *, verbose: bool) -> int:
    """Run the entries on a tree and write the file; return the number of errors."""
    source = root / "src"
    sys.path.insert(0, str(source))
    os.environ["PYTHONPATH"] = str(source)
    package = Path(importlib.import_module("tinyvae").__file__ or "")
    if not package.is_relative_to(source):
        raise SystemExit(f"tinyvae was imported from {package}, not from {source}")
    preload()
    add_examples(root)
    names = [name for name in ENTRIES if re.search(pattern, name)]
    results: dict[str, Any] = {}
    start, errors = time.monotonic(), 0
    for name in names:
        began = time.monotonic()
        results[name] = isolated(ENTRIES[name], SECONDS[name], verbose=verbose)
        taken = time.monotonic() - began
        for part, value in results[name].items():
            if is_error({part: value}):
                say(f"{name}: {part}: {value}")
        errors += is_error(results[name])
        if taken > 5 or verbose:
            say(f"{name}: {taken:.1f} s")
    seconds = time.monotonic() - start
    document = {
        "root": str(root),
        "machine": machine(),
        "seconds": round(seconds, 1),
        "entries": results,
    }
    output.write_text(json.dumps(document, indent=1) + "\n")
    parts = sum(len(entry.keys() - {"notes"}) for entry in results.values())
    say(f"{len(names)} entries, {parts} parts, {errors} with errors, {seconds:.0f} s: {output}")
    return errors


# Comparing ---------------------------------------------------------------------------------------


def compare(first: Path, second: Path, pattern: str) -> int:
    """List the entries that differ; return their number."""
    old, new = (json.loads(path.read_text()) for path in (first, second))
    if old["machine"] != new["machine"]:
        say(f"WARNING: other machines or packages:\n  {old['machine']}\n  {new['machine']}")
    names = [n for n in (old["entries"] | new["entries"]) if re.search(pattern, n)]
    differing = 0
    for name in names:
        lines = _differences(old["entries"].get(name), new["entries"].get(name))
        differing += bool(lines)
        for line in lines:
            say(f"{name}: {line}")
    say(f"{differing} of {len(names)} entries differ")
    return differing


def _differences(old: dict[str, Any] | None, new: dict[str, Any] | None) -> list[str]:
    """Describe what differs between two results of an entry; an error always counts."""
    if old is None or new is None:
        return [f"only in the {'first' if new is None else 'second'} file"]
    names = [name for name in (old | new) if name != "notes"]
    if "error" in old or "error" in new:
        names = ["error"]
    columns = old.get("notes", {}).get("history", [])
    lines = []
    for name in names:
        a, b = old.get(name, "(none)"), new.get(name, "(none)")
        if a != b:
            where = _first_difference(a, b, columns if name == "history" else ())
            lines.append(f"{name}{where}")
        elif is_error({name: a}):
            lines.append(f"{name}: in both files {a}")
    return lines


def _first_difference(a: Any, b: Any, columns: Sequence[str], path: str = "") -> str:
    """Locate the first difference of two nested lists."""
    if isinstance(a, list) and isinstance(b, list):
        if len(a) != len(b):
            return f"{path}: {len(a)} values and {len(b)}"
        for index, (left, right) in enumerate(zip(a, b, strict=True)):
            if left != right:
                is_row = isinstance(left, list)
                label = columns[index] if not is_row and index < len(columns) else index
                return _first_difference(left, right, columns, f"{path} [{label}]")
    return f"{path}: {_readable(a)} and {_readable(b)}"


def _readable(value: Any) -> str:
    """Return a value with the decimal form of a hexadecimal number."""
    if isinstance(value, str) and re.match(r"-?0x", value):
        return f"{float.fromhex(value)!r}"
    return str(value)


def main() -> None:
    """Parse arguments; record or compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--root", type=Path, help="the tree, with src and examples")
    parser.add_argument("--output", type=Path, default=Path("digests.json"))
    parser.add_argument("--compare", type=Path, nargs=2, metavar="FILE")
    parser.add_argument("--only", default="", metavar="REGEX", help="entries to run or compare")
    parser.add_argument("--list", action="store_true", help="print the names of the entries")
    parser.add_argument("--verbose", action="store_true", help="show output and time of each entry")
    args = parser.parse_args()
    if args.compare:
        raise SystemExit(1 if compare(*args.compare, args.only) else 0)
    if args.list:
        add_examples(Path())
        say("\n".join(name for name in ENTRIES if re.search(args.only, name)))
        return
    if args.root is None:
        parser.error("expected --root PATH or --compare FILE FILE")
    output = args.output.resolve()
    raise SystemExit(
        1 if record(args.root.resolve(), output, args.only, verbose=args.verbose) else 0
    )


if __name__ == "__main__":
    main()
