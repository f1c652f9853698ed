"""A table of 1,000 customers, from missing values to synthetic rows.

    python examples/tables.py

The table is synthetic, and has what tables have: numbers of rows, dates as text, categories,
amounts with zeros, counts, percentages, booleans and ratings with missing values, a constant, free
text and an empty column. The true values of the missing incomes are known, so that imputations can
be judged.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from charts import BLUE, INK, ORANGE, RULE, against, figure, heading
from matplotlib.axes import Axes

from tinyvae.plotting import save_figure
from tinyvae.sklearn import VAEDetector, VAEImputer, VAESynthesizer, VAETransformer

MISSING = {"age": 0.05, "plan": 0.05, "income": 0.2, "newsletter": 0.1, "rating": 0.15}
LEVELS = np.linspace(0.1, 0.9, 9)


def customers(num_rows: int = 1000, seed: int = 0) -> tuple[pd.DataFrame, pd.Series]:
    """Return the table and the complete incomes. Two hidden traits drive all columns."""
    rng = np.random.default_rng(seed)

    def noise(scale: float) -> np.ndarray:
        return scale * rng.normal(size=num_rows)

    wealth, loyalty = noise(1.0), noise(1.0)
    days = (1800 - 700 * loyalty + noise(300)).clip(0, 3600).round()
    amount = np.exp(3 + 0.5 * wealth + noise(0.4))
    buys = rng.random(num_rows) > 0.45 - 0.15 * loyalty.clip(-2, 2)
    plans = np.where(loyalty + noise(0.7) > 0, "standard", "basic")
    table = pd.DataFrame(
        {
            "since": pd.Timestamp("2015-01-01") + pd.to_timedelta(days, unit="D"),
            "plan": np.where(wealth + noise(0.7) > 0.8, "premium", plans),
            "age": (42 + 10 * wealth + noise(5)).clip(18, 90).round(),
            "income": np.exp(10.3 + 0.35 * wealth + noise(0.2)).round(-2),
            "spent": np.where(buys, amount, 0).round(2),
            "visits": rng.poisson(np.exp(1 + 0.5 * loyalty - 0.2 * wealth)),
            "discount": (100 / (1 + np.exp(noise(0.8) - loyalty))).round(1),
            "newsletter": rng.random(num_rows) < 1 / (1 + np.exp(-2 * loyalty)),
            "rating": (3 + 0.5 * wealth + 0.7 * loyalty + noise(0.7)).round().clip(1, 5),
            "country": "AT",
            "note": [f"called on day {day}" for day in rng.integers(1_000_000, size=num_rows)],
            "fax": np.nan,
        }
    )
    income = table["income"].copy()
    for name, share in MISSING.items():
        table[name] = table[name].where(rng.random(num_rows) > share)
    return table, income


def read(path: Path) -> pd.DataFrame:
    """Return the table of a file, with its dates."""
    return pd.read_csv(path, index_col=0, parse_dates=["since"])


def main() -> None:
    """Fit one model, fill, score, explain, embed and draw, and make the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/gallery"))
    args = parser.parse_args()

    args.output.mkdir(parents=True, exist_ok=True)
    written, income = customers()
    written.to_csv(args.output / "customers.csv")
    table = read(args.output / "customers.csv")
    imputer = VAEImputer(max_epochs=args.epochs, random_state=args.seed).fit(table)
    print(imputer.describe())
    fill(imputer, table, income, args.output)
    detect(imputer, args.output)
    embed(imputer, table, args.output)
    synthesize(imputer, table, args.output)


def fill(imputer: VAEImputer, table: pd.DataFrame, income: pd.Series, output: Path) -> None:
    """Compare imputed incomes, and intervals of 99 draws, with the true incomes."""
    missing = table["income"].isna().to_numpy()
    true = income[missing].to_numpy()
    filled = imputer.transform(table)["income"][missing].to_numpy()
    draws = [each["income"][missing].to_numpy() for each in imputer.impute(table, 99)]
    rank = (np.stack(draws) < true).sum(0)  # 0 to 99
    covered = np.array([np.mean(np.abs(rank - 49.5) < 50 * level) for level in LEVELS])
    simple = table["income"].mean()
    for name, values in (("mean", simple), ("VAE", filled)):
        rmse = np.sqrt(np.mean((values - true) ** 2))
        print(f"RMSE of {missing.sum()} incomes, {name}: {rmse:,.0f}")
    print(f"true incomes inside 90 % intervals: {covered[-1]:.1%}")
    chart, (left, right) = figure(10, 4.6, columns=2)
    against(left, true / 1000, filled / 1000, (0, 100), 0.5)
    heading(left, "Missing incomes", "true (1,000 euros)", "filled (1,000 euros)")
    against(right, 100 * LEVELS, 100 * covered, (0, 100), 1.0)
    heading(right, "Intervals of 99 draws", "nominal (%)", "true incomes inside (%)")
    save_figure(chart, output / "tables_filled.png")


def detect(imputer: VAEImputer, output: Path) -> None:
    """Show p-values of new customers, and what explains the score of one with an error."""
    fresh = customers(seed=1)[0]
    detector = VAEDetector.from_fitted(imputer, customers(seed=2)[0])
    p_values = detector.p_values(fresh)
    for level in (0.01, 0.05, 0.1):
        print(f"new customers with p <= {level}: {np.mean(p_values <= level):.1%}")
    wrong = fresh.dropna(subset=["income", "age"]).head(1)
    wrong = wrong.assign(income=wrong["income"] / 12)
    terms = detector.explain(wrong, relative=True).iloc[0]
    terms = terms[terms != 0]
    print(wrong.to_string(), f"p = {detector.p_values(wrong)[0]:.4f}", terms.round(2), sep="\n")
    chart, (left, right) = figure(10, 4.4, columns=2)
    left.hist(p_values, bins=20, range=(0, 1), density=True, color=BLUE)
    left.axhline(1, color=INK, linestyle="--", linewidth=1.2)
    heading(left, "1,000 new customers", "p-value", "density")
    right.barh(list(terms.index), terms, color=[ORANGE if t > 2 else BLUE for t in terms])
    right.invert_yaxis()
    right.axvline(0, color=INK, linewidth=1)
    heading(right, "A monthly income by mistake", "surprise above the mean (nats)")
    save_figure(chart, output / "tables_scores.png")


def embed(imputer: VAEImputer, table: pd.DataFrame, output: Path) -> None:
    """Plot an embedding in two dimensions."""
    transformer = VAETransformer(
        latent_dim=2, max_epochs=imputer.max_epochs, random_state=imputer.random_state
    ).fit(table)
    z = transformer.transform(table)
    chart, panels = figure(10, 4.6, columns=2)
    color = {"basic": ORANGE, "standard": BLUE, "premium": INK}
    for plan in color:
        chosen = (table["plan"] == plan).to_numpy()
        dots = {"markersize": 4, "alpha": 0.6, "mew": 0}
        panels[0].plot(*z[chosen].T, "o", color=color[plan], label=plan, **dots)
    panels[0].legend(frameon=False, fontsize=11)
    heading(panels[0], "Plan", "first dimension", "second dimension")
    years = panels[1].scatter(*z.T, c=table["since"].dt.year, s=12, cmap="viridis")
    chart.colorbar(years, ax=panels[1]).ax.tick_params(labelsize=11)
    heading(panels[1], "Customer since", "first dimension")
    save_figure(chart, output / "tables_embedding.png")


def synthesize(imputer: VAEImputer, table: pd.DataFrame, output: Path) -> None:
    """Compare columns of synthetic rows with those of the table."""
    synthesizer = VAESynthesizer(
        max_epochs=imputer.max_epochs, random_state=imputer.random_state
    ).fit(table)
    rows = synthesizer.sample(1000)
    premium = synthesizer.sample(1000, given={"plan": "premium"})
    real = table[table["plan"] == "premium"]
    means = f"{real['income'].mean():,.0f} real, {premium['income'].mean():,.0f} drawn"
    print(f"mean income of premium customers: {means}")
    chart, panels = figure(11, 4.0, columns=4)
    for axes, name in zip(panels, ("age", "spent", "discount", "rating"), strict=True):
        compare(axes, table[name].dropna(), rows[name])
        heading(axes, name, "", "share" if name == "age" else "")
    handles, labels = panels[0].get_legend_handles_labels()
    chart.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=12, frameon=False)
    save_figure(chart, output / "tables_synthetic.png")


def compare(axes: Axes, real: pd.Series, drawn: pd.Series) -> None:
    """Draw the histograms of a column and of its draws."""
    bins = np.linspace(real.min(), np.quantile(real, 0.99), 16)
    for values, label, color in ((real, "customers", BLUE), (drawn, "synthetic rows", ORANGE)):
        weights = np.full(len(values), 1 / len(values))
        axes.hist(values, bins, weights=weights, histtype="step", color=color, label=label, lw=2)
    axes.grid(axis="y", color=RULE)


if __name__ == "__main__":
    main()
