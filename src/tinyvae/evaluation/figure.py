"""Figure of a report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tinyvae.evaluation.estimate import Estimate
from tinyvae.evaluation.latents import LatentSummary
from tinyvae.plotting._style import INK, LABEL, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 40


def draw_report(name: str, estimate: Estimate, latents: Mapping[str, LatentSummary]) -> Figure:
    """Return a histogram of the examples, and the sorted KL per dimension of each latent."""
    shown = {key: latent for key, latent in latents.items() if latent.kl_per_dim is not None}
    num_axes = 1 + len(shown)
    figure = new_figure(4.5 * num_axes, 3.6)
    figure.set_layout_engine("constrained")
    first, *others = figure.subplots(1, num_axes, squeeze=False)[0]
    if estimate.values is not None:
        first.hist(estimate.values[estimate.values.isfinite()].numpy(), BINS, color=INK)
    first.axvline(estimate.mean, color="tab:red")
    _label(first, f"{name} of an example, nats", "examples")
    for axes, (key, latent) in zip(others, shown.items(), strict=True):
        if latent.kl_per_dim is not None:
            values = latent.kl_per_dim.flatten().sort(descending=True).values
            axes.bar(range(1, len(values) + 1), values.numpy(), color=INK)
        _label(axes, f"dimensions of {key}, sorted", "KL to the prior, nats")
    return figure


def _label(axes: Any, xlabel: str, ylabel: str) -> None:
    axes.set_xlabel(xlabel, fontsize=LABEL)
    axes.set_ylabel(ylabel, fontsize=LABEL)
    axes.spines[["top", "right"]].set_visible(False)
