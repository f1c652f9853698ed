"""Imputation of a table with numbers, amounts, counts and categories, 30 % of it missing.

    python examples/mixed_table.py

The table is synthetic: 3,000 visitors of a museum, each with two hidden traits a and b from N(0,
1). ``columns_given`` is the distribution of every column given the traits. The best possible
imputation is therefore known: the expectation of the process itself given the observed entries of a
row.
"""

import argparse
from pathlib import Path

import torch
from charts import compare, figure, heading
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Distribution, LogNormal, Normal, Poisson

from tinyvae import ELBO, MLP, VAE, GaussianEncoder, Optimization, Trainer, impute
from tinyvae.likelihoods import MaskedLikelihood, MixedLikelihood
from tinyvae.plotting import save_figure

LEVELS = {
    "member": ("no", "yes"),
    "student": ("no", "yes"),
    "came by": ("bicycle", "car", "foot", "train"),
    "exhibition": ("modern", "old masters", "sculpture"),
}


def columns_given(a: Tensor, b: Tensor) -> dict[str, Distribution]:
    """Return the distribution of each column given the traits."""
    zero = torch.zeros_like(a)
    return {
        "age": Normal(45 + 12 * a, 5.0),
        "hours": Normal(2 + 0.3 * a + 0.6 * b, 0.3),
        "distance": LogNormal(2 + 0.6 * b, 0.3),
        "spent": LogNormal(3 + 0.4 * a + 0.4 * b, 0.3),
        "visits": Poisson(torch.exp(1 + 0.6 * a - 0.5 * b)),
        "rooms": Poisson(torch.exp(2 + 0.4 * b)),
        "member": Bernoulli(logits=2 * a - 2 * b),
        "student": Bernoulli(logits=-1 - 3 * a),
        "came by": Categorical(logits=torch.stack([-2 * a - b, 2 * b, -2 * b, 2 * a + b], -1)),
        "exhibition": Categorical(logits=torch.stack([-2 * a, 2 * a, zero + 2 * b], -1)),
    }


def expect_by_process(x: Tensor, num_samples: int = 4000) -> Tensor:
    """Return conditional means, or most probable levels, of every entry under the process."""
    columns = columns_given(*torch.randn(2, num_samples, 1))  # each (S, 1)
    pairs = list(zip(columns.values(), x.T, strict=True))
    log_weight = torch.zeros(num_samples, len(x))
    for column, values in pairs:
        seen = ~torch.isnan(values)
        log_weight[:, seen] += column.log_prob(values[seen])
    weights = log_weight.softmax(0).T  # (N, S)
    expected = []
    for column, _ in pairs:
        if isinstance(column, Categorical):
            expected.append((weights @ column.probs[:, 0]).argmax(1).float())
        else:
            mean = weights @ column.mean[:, 0]
            expected.append(mean.round() if isinstance(column, Bernoulli) else mean)
    return torch.stack(expected, 1)


def fit(table: dict[str, list], seed: int = 0, epochs: int = 100) -> tuple[VAE, Tensor]:
    """Build a VAE from the columns of the table, and fit it to the observed values."""
    columns = MixedLikelihood.from_table(table)
    x = columns.to_tensor(table)
    torch.manual_seed(seed)
    likelihood = MaskedLikelihood(columns)
    encoder = GaussianEncoder(MLP(likelihood.input_shape(x.shape[1:]), hidden=(64,)), latent_dim=4)
    decoder = MLP(4, hidden=(64,), out_shape=likelihood.param_shape(x.shape[1:]))
    vae = VAE(encoder, decoder, likelihood)
    optimization = Optimization(3e-3, learning_rates={"likelihood": 1e-2}, schedule="cosine")
    Trainer(vae, ELBO(), optimization, seed=seed, progress=False).fit(x, epochs=epochs)
    return vae.cpu(), x


def main() -> None:
    """Draw the table, remove values, impute them, compare, draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--missing", type=float, default=0.3)
    parser.add_argument("--output", type=Path, default=Path("runs/gallery"))
    args = parser.parse_args()

    torch.manual_seed(0)
    columns = {name: p.sample() for name, p in columns_given(*torch.randn(2, args.rows)).items()}
    truth = torch.stack(list(columns.values()), 1)  # (N, D), with indices of levels
    removed = torch.rand(truth.shape) < args.missing
    table = {}
    for name, values, gone in zip(columns, truth.T.tolist(), removed.T.tolist(), strict=True):
        read = LEVELS[name].__getitem__ if name in LEVELS else float
        entries = [int(v) if name in LEVELS else v for v in values]
        table[name] = [None if g else read(v) for v, g in zip(entries, gone, strict=True)]

    vae, x = fit(table)
    filled = impute(vae, x)
    best = expect_by_process(x)
    errors, hits = {}, {}
    for i, name in enumerate(columns):
        missing, observed = removed[:, i], x[~removed[:, i], i]
        simple = observed.mode().values if name in LEVELS else observed.mean()
        answers = {"mean or mode": simple, "VAE": filled[missing, i], "process": best[missing, i]}
        wrong = {method: answer - truth[missing, i] for method, answer in answers.items()}
        if name in LEVELS:
            hits[name] = {m: 100 * (w == 0).double().mean().item() for m, w in wrong.items()}
            print(f"{name:<12}" + "".join(f"{m} {v:5.1f} %   " for m, v in hits[name].items()))
        else:
            scale = observed.std(correction=0)
            errors[name] = {m: (w / scale).square().mean().sqrt().item() for m, w in wrong.items()}
            print(f"{name:<12}" + "".join(f"{m} {v:5.3f}     " for m, v in errors[name].items()))
    chart, (left, right) = figure(10, 4.6, columns=2)
    compare(left, errors)
    heading(left, "Numbers, amounts, counts", "RMSE of removed entries (std of the column)")
    compare(right, hits)
    heading(right, "Categories", "removed entries found (%)")
    handles, labels = right.get_legend_handles_labels()
    chart.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=12, frameon=False)
    save_figure(chart, args.output / "gallery_mixed_table.png")


if __name__ == "__main__":
    main()
