r"""Predictive checks: are data sets that the model draws like the data?

.. math:: p_T = P\big(T(x^{\text{rep}}) > T(x)\big)
    + \tfrac12 P\big(T(x^{\text{rep}}) = T(x)\big), \qquad x^{\text{rep}} \sim p(x)^N
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tinyvae.core.generators import exclusive_generators
from tinyvae.core.keywords import suggest_keywords
from tinyvae.core.module_state import evaluating
from tinyvae.core.random import Stream, derive_seed, forked_rng
from tinyvae.evaluation.importance import CHUNK_ELEMENTS, to_model
from tinyvae.evaluation.progress import Progress
from tinyvae.evaluation.statistics import Statistic, compute, default_statistics
from tinyvae.models.base import DecoderModel
from tinyvae.models.inputs import require_count, table_to_tensor
from tinyvae.plotting._style import INK, SMALL, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TAIL = 0.01  # a p-value closer to 0 or 1 is marked
PLOT_COLUMNS = 4


@dataclass(frozen=True)
class StatisticCheck:
    """Check of one statistic.

    Attributes:
        value: Statistic of the data.
        draws: Statistic of each data set that the model drew, ``(R,)``.
    """

    value: float
    draws: Tensor

    @property
    def p_value(self) -> float:
        """Share of draws above the data, with half of those that are equal.

        It is near 0.5 if the model fits. Near 0, the model's data have smaller values than the
        data; near 1, larger ones.
        """
        above, equal = (self.draws > self.value).sum(), (self.draws == self.value).sum()
        return float(above + 0.5 * equal) / len(self.draws)

    @property
    def p_value_error(self) -> float:
        """Monte Carlo standard error of the p-value. It is not 0 if no draw is on one side."""
        num_draws = len(self.draws)
        share = (self.p_value * num_draws + 1) / (num_draws + 2)
        return math.sqrt(share * (1 - share) / num_draws)

    @property
    def is_extreme(self) -> bool:
        """True if less than 1 % of the draws are as far out as the data, on their side."""
        return not TAIL <= self.p_value <= 1 - TAIL


@dataclass(frozen=True)
class PredictiveCheck:
    """Predictive checks by the name of the statistic.

    Attributes:
        statistics: The check of each statistic.
        num_examples: Number of examples of the data, and of each data set that was drawn.
    """

    statistics: Mapping[str, StatisticCheck]
    num_examples: int

    @property
    def extreme(self) -> list[str]:
        """Names of the statistics that the model misses."""
        return [name for name, check in self.statistics.items() if check.is_extreme]

    def to_dict(self) -> dict[str, dict[str, float]]:
        """Return all numbers by the name of the statistic."""
        return {
            name: {
                "data": check.value,
                "model": check.draws.mean().item(),
                "model_std": check.draws.std().item(),
                "p_value": check.p_value,
                "p_value_standard_error": check.p_value_error,
            }
            for name, check in self.statistics.items()
        }

    def __str__(self) -> str:
        width = max(map(len, self.statistics))
        lines = [f"{'':<{width}} {'data':>10} {'model':>10} {'+-':>9} {'p-value':>8} {'+-':>6}"]
        for name, row in self.to_dict().items():
            numbers = f"{row['data']:>10.4g} {row['model']:>10.4g} {row['model_std']:>9.2g}"
            p_value = f"{row['p_value']:>8.3f} {row['p_value_standard_error']:>6.3f}"
            mark = " <- differs" if self.statistics[name].is_extreme else ""
            lines.append(f"{name:<{width}} {numbers} {p_value}{mark}")
        return "\n".join(lines)

    def plot(self) -> Figure:
        """Draw a histogram of each statistic of the model, with a line at that of the data.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        columns = min(PLOT_COLUMNS, len(self.statistics))
        rows = math.ceil(len(self.statistics) / columns)
        figure = new_figure(3 * columns, 2.2 * rows)
        figure.set_layout_engine("constrained")
        panels = figure.subplots(rows, columns, squeeze=False).flatten()
        for axes, (name, check) in zip(panels, self.statistics.items(), strict=False):
            axes.hist(check.draws.numpy(), bins=20, color="#0072B2")
            axes.axvline(check.value, color="#D55E00", linewidth=2)
            axes.set_title(f"{name}\np = {check.p_value:.3f}", fontsize=SMALL, color=INK)
            axes.set_yticks([])
        for axes in panels[len(self.statistics) :]:
            axes.set_axis_off()
        return figure


@suggest_keywords
@exclusive_generators("predictive_check")
def predictive_check(
    model: DecoderModel,
    x: Any,
    context: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    statistics: Mapping[str, Statistic] | None = None,
    num_draws: int = 200,
    seed: int = 0,
    progress: bool = True,
) -> PredictiveCheck:
    """Compare statistics of the data with those of data sets that the model draws.

    Each of ``num_draws`` data sets has as many examples as ``x``, and the same missing entries. By
    default the statistics are, for each column of a table, or for all entries of other data
    together:

    - numbers: mean, standard deviation, 5 %, 50 % and 95 % quantiles;
    - counts and levels of gray: mean, variance / mean, share of zeros, maximum;
    - binary values: their mean;
    - categories: shares of the ten most frequent ones,

    and the standard deviation of the sum of an example, which depends on correlations between
    dimensions.

    Args:
        model: The model. It is used in evaluation mode.
        x: Data ``(N, *E)``, such as test data. A model of a table takes a DataFrame.
        context: Input of a conditional model, ``(N, ...)``.
        mask: True for the observed entries, ``(N, *E)``. NaN is missing.
        statistics: Functions by name, from data ``(N, *E)`` to one number, that replace the default
            ones. Data are float64 on the CPU, NaN where they are missing.
        num_draws: Number of data sets ``R`` to draw.
        seed: Seed of the draws. The global random state does not change.
        progress: True to report draws and time left, if it takes longer than a second.

    References:
        Rubin (1984). Bayesianly justifiable and relevant frequency calculations for the applied
        statistician. Gelman, Meng, Stern (1996). Posterior predictive assessment of model fitness
        via realized discrepancies.

    Example:
        >>> check = predictive_check(vae, x, num_draws=50)
        >>> list(check.statistics)
        ['mean', 'std of sums']
        >>> row = lambda x: x.mean(1).max()
        >>> 0 <= predictive_check(vae, x, statistics={"max": row}).statistics["max"].p_value <= 1
        True
    """
    require_count("predictive_check", num_draws, "num_draws", least=2)
    x = to_model(model, table_to_tensor(model, x))
    context, mask = to_model(model, context), to_model(model, mask)
    if model.likelihood.has_bounds:
        raise TypeError(
            f"predictive_check expects data that are values, got bounds for {model.likelihood}: "
            "compare the rows that are not censored, with their own likelihood"
        )
    output = model.check(x, context, mask=mask)
    data = model.observed(x, mask).cpu().double()
    if statistics is None:
        is_discrete = output.likelihood.is_discrete
        statistics = default_statistics(model.likelihood, data, is_discrete=is_discrete)
    missing = torch.isnan(data)
    draws: dict[str, list[float]] = {name: [] for name in statistics}
    with (
        torch.no_grad(),
        evaluating(model),
        forked_rng(x.device, derive_seed(seed, Stream.PREDICTIVE)),
        Progress("predictive check", num_draws * len(x), shown=progress) as report,
    ):
        for _ in range(num_draws):
            drawn = _sampled(model, x, context).masked_fill_(missing, math.nan)
            for name, statistic in statistics.items():
                draws[name].append(compute(name, statistic, drawn))
            report.add(len(x))
    checks = {
        name: StatisticCheck(
            compute(name, statistic, data), torch.tensor(draws[name], dtype=torch.float64)
        )
        for name, statistic in statistics.items()
    }
    return PredictiveCheck(checks, len(x))


def _sampled(model: DecoderModel, x: Tensor, context: Tensor | None) -> Tensor:
    """Return as many draws of the model as there are examples, float64 on the CPU."""
    parts = []
    examples = max(1, CHUNK_ELEMENTS // model.peak_elements(x))
    for start in range(0, len(x), examples):
        if context is None:
            part = model.sample(min(examples, len(x) - start))
        else:
            part = model.sample(1, context[start : start + examples])[0]
        parts.append(part.cpu().double())
    return torch.cat(parts)
