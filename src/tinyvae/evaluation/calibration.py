r"""Calibration of predictive intervals of entries that the model does not see.

.. math:: u = F(x_{\text{mis}} \mid x_{\text{obs}}), \qquad
    \text{coverage}(\alpha) = P\big(|u - \tfrac12| \le \tfrac{\alpha}{2}\big)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
from tinyvae.likelihoods import MaskedLikelihood, MixedLikelihood
from tinyvae.models.base import DecoderModel
from tinyvae.models.conditional import draw_given, require_masked
from tinyvae.models.inputs import require_count, table_to_tensor
from tinyvae.plotting._style import add_axes, freeze_layout, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEVELS = (0.5, 0.8, 0.9, 0.95)


@dataclass(frozen=True)
class Calibration:
    """Coverage of central predictive intervals of hidden entries.

    Attributes:
        ranks: Rank of each hidden value among its draws, between 0 and 1, ``(N, *E)``, NaN for
            entries that were not hidden. The ranks of a calibrated model are uniform.
        names: Names of the columns of a table, otherwise empty.
    """

    ranks: Tensor
    names: tuple[str, ...] = ()

    def coverage(self, level: float = 0.9) -> tuple[float, float]:
        """Return the share of hidden values in intervals of ``level``, and its standard error.

        The error takes the entries of one example to be dependent.
        """
        return _coverage(self.ranks, level)

    def by_column(self, level: float = 0.9) -> Mapping[str, tuple[float, float]]:
        """Return the coverage of each column, with its standard error, by name."""
        flat = self.ranks.flatten(1)
        names = self.names or tuple(str(index) for index in range(flat.shape[1]))
        return {n: _coverage(flat[:, i : i + 1], level) for i, n in enumerate(names)}

    def __str__(self) -> str:
        rows = {f"{level:.0%} intervals": self.coverage(level) for level in LEVELS}
        if self.names:
            rows |= {f"90% intervals of {n}": c for n, c in self.by_column().items()}
        width = max(map(len, rows))
        return "\n".join(
            f"{name:<{width}} cover {share:6.1%} +- {error:.1%}"
            for name, (share, error) in rows.items()
        )

    def plot(self) -> Figure:
        """Draw the coverage against the level of intervals. A calibrated model is on the diagonal.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        levels = [index / 50 for index in range(51)]
        shares = [self.coverage(level)[0] for level in levels]
        figure = new_figure(5, 5)
        axes = add_axes(figure, "level of the interval", "share of hidden values inside")
        axes.plot([0, 1], [0, 1], color="#666666", linewidth=1, linestyle="--")
        axes.plot(levels, shares, color="#0072B2", linewidth=2)
        freeze_layout(figure)
        return figure


@suggest_keywords
@exclusive_generators("interval_calibration")
def interval_calibration(
    model: DecoderModel,
    x: Any,
    context: Tensor | None = None,
    *,
    hidden: Tensor | float = 0.2,
    num_draws: int = 200,
    seed: int = 0,
    progress: bool = True,
) -> Calibration:
    """Measure how often predictive intervals of hidden entries contain their true values.

    Some observed entries are hidden. The model draws them given the others, as in
    :func:`~tinyvae.evaluation.conditional_draws`, and the rank of each true value among its draws
    is recorded. Ties have a random rank, so that calibrated counts and levels have uniform ranks,
    too.

    Args:
        model: A model with a :class:`~tinyvae.likelihoods.MaskedLikelihood`. It is used in
            evaluation mode.
        x: Data ``(N, *E)`` that the model was not fitted to. NaN is missing. A model of a
            table takes a DataFrame.
        context: Input of a conditional model, ``(N, ...)``.
        hidden: True for the entries to hide, ``(N, *E)``, or the share of them to hide at random.
        num_draws: Draws per example.
        seed: Seed of hidden entries and draws. The global random state does not change.
        progress: True to report draws and time left, if it takes longer than a second.

    References:
        Gneiting, Balabdaoui, Raftery (2007). Probabilistic forecasts, calibration and sharpness.

    Example:
        >>> table = MaskedLikelihood(GaussianLikelihood())
        >>> vae = VAE(GaussianEncoder(MLP(3, (8,)), 2), MLP(2, (8,), out_shape=3), table)
        >>> calibration = interval_calibration(vae, torch.randn(20, 3), num_draws=50)
        >>> share, error = calibration.coverage(0.9)
        >>> 0 <= share <= 1
        True
    """
    require_count("interval_calibration", num_draws, "num_draws")
    require_masked("interval_calibration", model.likelihood)
    x, context = to_model(model, table_to_tensor(model, x)), to_model(model, context)
    model.check(x, context)
    x = model.observed(x, None)
    with (
        torch.no_grad(),
        evaluating(model),
        forked_rng(x.device, derive_seed(seed, Stream.PREDICTIVE, 1)),
        Progress("calibration", num_draws * len(x), shown=progress) as report,
    ):
        is_hidden = _hidden_entries(hidden, x)
        ranks = []
        examples = max(1, CHUNK_ELEMENTS // (num_draws * model.peak_elements(x)))
        for start in range(0, len(x), examples):
            rows = slice(start, start + examples)
            given = x[rows].masked_fill(is_hidden[rows], math.nan)
            part = None if context is None else context[rows]
            drawn = draw_given(model, model.likelihood, given, part, num_draws)
            drawn.require_enough("interval_calibration")
            rank = _random_rank(x[rows], drawn.values.to(x.dtype))
            ranks.append(rank.masked_fill(~is_hidden[rows], math.nan).cpu().double())
            report.add(num_draws * len(given))
    likelihood = model.likelihood
    inner = likelihood.likelihood if isinstance(likelihood, MaskedLikelihood) else likelihood
    columns: Sequence[str] = ()
    if isinstance(inner, MixedLikelihood):
        columns = [column.name for column in inner.modeled]
    return Calibration(torch.cat(ranks), tuple(columns))


def _hidden_entries(hidden: Tensor | float, x: Tensor) -> Tensor:
    if isinstance(hidden, Tensor):
        if hidden.shape != x.shape:
            raise ValueError(
                f"interval_calibration expects hidden of the shape of x, {tuple(x.shape)}, got "
                f"{tuple(hidden.shape)}: give True for each entry to hide, or a share"
            )
        hidden = hidden.to(x.device).bool()
    elif not 0 < hidden < 1:
        raise ValueError(f"interval_calibration expects a share 0 < hidden < 1, got {hidden}")
    else:
        hidden = torch.rand_like(x) < hidden
    is_hidden = hidden & ~torch.isnan(x)
    if not is_hidden.any():
        raise ValueError(
            "interval_calibration expects hidden entries that are observed, got none: hide more"
        )
    return is_hidden


def _random_rank(value: Tensor, draws: Tensor) -> Tensor:
    """Return the rank of values among draws ``(n, ...)``, uniform in [0, 1] if all are alike."""
    below, equal = (draws < value).sum(0), (draws == value).sum(0)
    return (below + torch.rand_like(value) * (equal + 1)) / (len(draws) + 1)


def _coverage(ranks: Tensor, level: float) -> tuple[float, float]:
    """Return the share of ranks in the central interval, and its error over examples."""
    is_hidden = ~torch.isnan(ranks)
    inside = ((ranks - 0.5).abs() <= level / 2) & is_hidden
    count = is_hidden.sum()
    share = inside.sum() / count
    residuals = (inside.double() - share * is_hidden).flatten(1).sum(1)
    return share.item(), (residuals.square().sum().sqrt() / count).item()
