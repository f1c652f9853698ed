"""Report of bounds and evidence with their errors."""

import html
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tinyvae.core.html import html_table
from tinyvae.evaluation.estimate import Estimate
from tinyvae.evaluation.figure import draw_report
from tinyvae.evaluation.latents import LatentSummary, advise_collapse
from tinyvae.evaluation.weights import WeightQuality

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT_VERSION = 1
NAMES = ("elbo", "log_likelihood", "kl", "iwae", "log_marginal")


@dataclass(frozen=True)
class Report:
    """Evaluation of a model on a data set.

    Attributes:
        elbo: Evidence lower bound.
        log_likelihood: Its first term, E log p(x given z): minus the distortion.
        kl: Its second term, KL(q(z given x) || p(z)): the rate.
        iwae: Importance-weighted bound of few draws; None if it was not estimated.
        log_marginal: log p(x) by importance sampling; None if it was not estimated.
        weights: Quality of the importance weights; None without log p(x).
        latents: Summary of each latent, by name; empty if they were not looked at.
        is_bound: True if the expectations of ELBO, IWAE and log p(x) are lower bounds on the log
            evidence: posterior and likelihood are densities on all of the data, and no example
            depends on the others.
        seed: Seed of the samples.
        is_discrete: True if the likelihood is a probability mass. None if some dimensions have
            masses and others densities. Unless it is True, nats depend on the units of the data.
        bin_width: Width of the bins of dequantized data; None for other data.
        data_digest: SHA-256 of the data, in their order. Reports with equal ones can be compared.
        bits_measured: Bits per datum of a compressed file, without the initial bits, which the
            bound promises; None if nothing was compressed.
        extra: Further estimates by name, see :meth:`with_estimate`.
    """

    elbo: Estimate
    log_likelihood: Estimate
    kl: Estimate
    iwae: Estimate | None = None
    log_marginal: Estimate | None = None
    weights: WeightQuality | None = field(default=None, compare=False)
    latents: Mapping[str, LatentSummary] = field(default_factory=dict, compare=False)
    is_bound: bool = False
    seed: int = 0
    is_discrete: bool | None = False
    bin_width: float | None = None
    data_digest: str = ""
    bits_measured: float | None = None
    extra: Mapping[str, Estimate] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def num_dims(self) -> float:
        """Dimensions of a datum. With missing entries, the mean number of observed ones."""
        return self.elbo.num_dims

    @property
    def best(self) -> Estimate:
        """Tightest estimate of log p(x) that was made, by importance sampling or else the ELBO."""
        return self.log_marginal or self.elbo

    def with_estimate(self, name: str, estimate: Estimate) -> "Report":
        """Return a report that holds a further estimate, such as log p(x) by annealing.

        Args:
            name: Name, for the table and for :func:`~tinyvae.evaluation.compare`.
            estimate: Estimate for the first examples, or all, of the same data.
        """
        return replace(self, extra=MappingProxyType({**self.extra, name: estimate}))

    def estimates(self) -> dict[str, Estimate]:
        """Return all estimates by name."""
        named = ((name, getattr(self, name)) for name in NAMES)
        return {name: value for name, value in named if value is not None} | dict(self.extra)

    def bits_per_dim(self, estimate: Estimate) -> float:
        """Return minus an estimate in bits per dimension of its own examples.

        For a mass, and with a ``bin_width``, these are bits of the levels: with uniform noise in
        the bins, E log p(x + u) + log(width) is at most the log mass of the level (Theis, van den
        Oord, Bethge 2016, arXiv:1511.01844, section 3.1). For any other density they depend on the
        units of the data.

        Args:
            estimate: Estimate of this report, ``report.elbo`` or ``report.log_marginal``.
        """
        if not isinstance(estimate, Estimate):
            raise TypeError(
                "bits_per_dim expects an Estimate, which knows the dimensions of its examples, got "
                f"a {type(estimate).__name__}: use report.bits_per_dim(report.log_marginal)"
            )
        num_dims = estimate.num_dims
        if num_dims == 0:
            return math.nan
        volume = num_dims * math.log(self.bin_width or 1.0)
        return -(estimate.mean + volume) / (num_dims * math.log(2))

    @property
    def bits_unit(self) -> str:
        """Description of the quantity that the bits per dimension measure."""
        if self.is_discrete is None:
            return "masses and densities, in the units of the data"
        if self.is_discrete:
            return "exact masses"
        if self.bin_width is None:
            return "a density, in the units of the data"
        return f"levels, dequantized uniformly in bins of {self.bin_width:g}"

    def plot(self) -> "Figure":
        """Return a matplotlib figure: the values of the examples, and the KL per dimension."""
        name = "ELBO" if self.log_marginal is None else "log p(x)"
        return draw_report(name, self.best, self.latents)

    # Files ----------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers, with their units in the keys, without the values of the examples."""
        result: dict[str, Any] = dict.fromkeys(NAMES)
        for name, estimate in self.estimates().items():
            result[name] = estimate.to_dict()
            if name not in ("log_likelihood", "kl"):
                result[name]["bits_per_dim"] = self.bits_per_dim(estimate)
        weights = None
        if self.weights is not None:
            size = self.weights.effective_sample_size
            weights = {
                "effective_sample_size_median": size.median().item(),
                "effective_sample_size_min": size.min().item(),
                "pareto_k_max": self.weights.pareto_k.max().item(),
                "pareto_k_threshold": self.weights.threshold,
                "num_unreliable": self.weights.num_unreliable,
            }
        return result | {
            "weights": weights,
            "latents": {name: latent.to_dict() for name, latent in self.latents.items()},
            "num_dims": self.num_dims,
            "bits_per_dim_unit": self.bits_unit,
            "bits_measured": self.bits_measured,
            "is_bound": self.is_bound,
            "is_discrete": self.is_discrete,
            "bin_width": self.bin_width,
            "seed": self.seed,
            "data_digest": self.data_digest,
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save the report with the values of the examples as JSON, with null for NaN."""
        values = {
            name: estimate.values
            for name, estimate in self.estimates().items()
            if estimate.values is not None
        }
        if self.weights is not None:
            values["effective_sample_size"] = self.weights.effective_sample_size
            values["pareto_k"] = self.weights.pareto_k
        saved = {"format_version": FORMAT_VERSION, **self.to_dict(), "extra": list(self.extra)}
        saved["values"] = {name: tensor.tolist() for name, tensor in values.items()}
        text = json.dumps(_without_nan(saved), indent=1, allow_nan=False)
        Path(path).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Report":
        """Return the report that :meth:`save` wrote.

        Raises:
            ValueError: If the file is of another version of the format.
        """
        saved = json.loads(Path(path).read_text(encoding="utf-8"))
        if saved.get("format_version") != FORMAT_VERSION:
            raise ValueError(
                f"Report.load expects a file of Report.save, format {FORMAT_VERSION}, got "
                f"{saved.get('format_version')}: evaluate again"
            )
        values = {name: _tensor(numbers) for name, numbers in saved["values"].items()}
        estimates = {
            name: Estimate.from_dict(saved[name], values.get(name))
            for name in (*NAMES, *saved["extra"])
            if saved[name] is not None
        }
        weights = None
        if saved["weights"] is not None:
            sizes, shapes = values["effective_sample_size"], values["pareto_k"]
            weights = WeightQuality(sizes, shapes, saved["log_marginal"]["num_samples"])
        extra = {name: estimates.pop(name) for name in saved["extra"]}
        latents = saved["latents"].items()
        kept = ("is_bound", "seed", "is_discrete", "bin_width", "data_digest", "bits_measured")
        return cls(
            estimates["elbo"],
            estimates["log_likelihood"],
            estimates["kl"],
            estimates.get("iwae"),
            estimates.get("log_marginal"),
            weights=weights,
            latents={name: LatentSummary.from_dict(latent) for name, latent in latents},
            extra=MappingProxyType(extra),
            **{name: saved[name] for name in kept},
        )

    # Tables ---------------------------------------------------------------------------------------

    def rows(self) -> Iterator[tuple[str, Estimate]]:
        """Yield the estimates with the labels of the printed table."""
        elbo = f"ELBO ({self.elbo.num_samples} draws)"
        yield elbo, self.elbo
        yield "  log-likelihood (-distortion)", self.log_likelihood
        yield "  KL (rate)", self.kl
        if self.iwae is not None:
            yield f"IWAE ({self.iwae.num_samples} draws)", self.iwae
        if self.log_marginal is not None:
            yield f"log p(x) (IS, {self.log_marginal.num_samples:,} draws)", self.log_marginal
        yield from self.extra.items()

    def notes(self) -> Iterator[str]:
        """Yield the sentences under the printed table."""
        if self.weights is not None:
            yield str(self.weights)
            if self.weights.num_unreliable:
                yield (
                    "log p(x) and its errors are unreliable for examples with a large Pareto k: "
                    "use more draws, annealing, or a better encoder"
                )
        for name, latent in self.latents.items():
            yield f"{name}: {latent}"
            if latent.has_collapsed:
                yield advise_collapse(name, latent)
        if self.bits_measured is not None:
            bound = -self.elbo.mean / math.log(2)
            yield f"{self.bits_measured:.2f} bits per datum in a file, {bound:.2f} by the ELBO"
        yield f"{self.bits_per_dim(self.best):.4f} bits per dimension of {self.bits_unit}"

    def __str__(self) -> str:
        lines = ["" if self.is_bound else "not a bound"]
        lines[0] = (
            f"{lines[0]:<32} {'nats':>10} {'std. error':>10} {'MC error':>10} {'examples':>9}"
        )
        for name, e in self.rows():
            numbers = (f"{e.mean:.2f}", _error(e.standard_error), _error(e.monte_carlo_error))
            cells = " ".join(f"{number:>10}" for number in numbers)
            lines.append(f"{name:<32} {cells} {e.num_examples:>9,}")
        return "\n".join([*lines, *self.notes()])

    def _repr_html_(self) -> str:
        cells = [
            [name.strip(), f"{e.mean:.2f}", _error(e.standard_error), _error(e.monte_carlo_error)]
            for name, e in self.rows()
        ]
        head = [["nats per datum", "mean", "standard error", "Monte Carlo error"]]
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes())
        bound = "" if self.is_bound else "<p>not a bound</p>"
        return f"{bound}{html_table(head + cells)}<ul>{notes}</ul>"


def _error(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}" if value >= 0.0005 else f"{value:.0e}"


def _without_nan(value: Any) -> Any:
    """Return nested data with None for NaN, and text for infinite numbers, as JSON needs it."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def _tensor(numbers: list[Any]) -> Tensor:
    """Return the numbers of a file, inverse of :func:`_without_nan`."""
    return torch.tensor([math.nan if n is None else float(n) for n in numbers], dtype=torch.float64)
