r"""Comparison of models on the same data.

.. math:: \Delta = \frac1N \sum_i (a_i - b_i), \qquad
    \operatorname{se}(\Delta) = \frac{\operatorname{std}_i (a_i - b_i)}{\sqrt N}

Some data are harder than others for every model. Differences of the same data leave this out, so
their standard error is often much smaller than those of the reports.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tinyvae.core.html import html_table
from tinyvae.evaluation.estimate import Estimate
from tinyvae.evaluation.report import Report


@dataclass(frozen=True)
class Comparison:
    """Differences between models on the same data.

    Attributes:
        measure: Name of the estimate that is compared, such as ``"log_marginal"``.
        estimates: Estimate of each model, the best one first.
        differences: Estimate minus that of the best model, of each model, with the standard error
            of the difference.
    """

    measure: str
    estimates: dict[str, Estimate]
    differences: dict[str, Estimate]

    @property
    def best(self) -> str:
        """Name of the model with the highest mean."""
        return next(iter(self.estimates))

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers, with their units in the keys."""
        return {
            name: {
                "nats": estimate.mean,
                "standard_error_nats": estimate.standard_error,
                "difference_nats": self.differences[name].mean,
                "standard_error_of_difference_nats": self.differences[name].standard_error,
            }
            for name, estimate in self.estimates.items()
        }

    def _rows(self) -> list[list[str]]:
        rows = [[f"{self.measure}, nats", "mean", "difference", "std. error"]]
        for name, estimate in self.estimates.items():
            row = [name, f"{estimate.mean:.2f}", "", ""]
            if name != self.best:
                difference = self.differences[name]
                row[2:] = [f"{difference.mean:.3f}", f"{difference.standard_error:.3f}"]
            rows.append(row)
        return rows

    def __str__(self) -> str:
        rows = self._rows()
        width = max(len(row[0]) for row in rows)
        lines = [f"{row[0]:<{width}}" + "".join(f"{cell:>12}" for cell in row[1:]) for row in rows]
        return "\n".join(line.rstrip() for line in lines)

    def _repr_html_(self) -> str:
        return html_table(self._rows())


def compare(reports: Mapping[str, Report], *, measure: str | None = None) -> Comparison:
    """Compare models by the paired differences of their estimates on the same data.

    Args:
        reports: Reports by name, at least two, of the same data in the same order.
        measure: Name of an estimate that all reports have: ``"log_marginal"``, ``"iwae"``,
            ``"elbo"``, or that of an extra one. None takes the first that all have.

    Raises:
        ValueError: If the reports are of other data, or used other numbers of draws.

    Example:
        >>> options = {"elbo_samples": 4, "importance_samples": 50}
        >>> other = VAE.from_shapes(4, latent_dim=1, likelihood=BernoulliLikelihood())
        >>> reports = {"a": evaluate(vae, x, **options), "b": evaluate(other, x, **options)}
        >>> comparison = compare(reports)
        >>> comparison.differences[comparison.best].mean
        0.0
    """
    if len(reports) < 2:
        raise ValueError(f"compare expects at least two reports, got {len(reports)}: add one")
    digests = {report.data_digest for report in reports.values()}
    if len(digests) > 1 or not next(iter(digests)):
        raise ValueError(
            "compare expects reports of the same data in the same order, got other data in one of "
            f"{', '.join(reports)}: evaluate all models on the same data with the same seed"
        )
    measure = measure or _common_measure(reports)
    estimates = {name: _estimate_of(report, measure, name) for name, report in reports.items()}
    counts = {name: (e.num_examples, e.num_samples) for name, e in estimates.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(
            f"compare expects {measure} of as many examples and draws, because fewer draws make it "
            f"lower, got (examples, draws) {counts}: evaluate with the same numbers"
        )
    ordered = sorted(estimates, key=lambda name: -estimates[name].mean)
    best = estimates[ordered[0]].values
    return Comparison(
        measure,
        {name: estimates[name] for name in ordered},
        {
            name: Estimate.of(estimates[name].values - best)  # type: ignore[operator]
            for name in ordered
        },
    )


def _common_measure(reports: Mapping[str, Report]) -> str:
    names = [set(report.estimates()) for report in reports.values()]
    common = set.intersection(*names)
    return next(name for name in ("log_marginal", "iwae", "elbo") if name in common)


def _estimate_of(report: Report, measure: str, name: str) -> Estimate:
    """Return an estimate that has the values of its examples."""
    estimates = report.estimates()
    estimate = estimates.get(measure)
    if estimate is None or estimate.values is None:
        known = [key for key, value in estimates.items() if value.values is not None]
        raise ValueError(
            f"compare expects {measure!r} with values of the examples in each report, got "
            f"{known} in {name!r}: choose one that all have"
        )
    return estimate
