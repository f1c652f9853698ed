"""DataFrames with columns of many dtypes."""

import numpy as np
import pandas as pd


def mixed_frame(num_rows=60, seed=0):
    """Return a table with missing values, a constant, an empty column, and an index."""
    rng = np.random.default_rng(seed)
    levels = ["low", "mid", "high", "never"]
    frame = pd.DataFrame(
        {
            "age": rng.integers(18, 80, num_rows),
            "income": rng.lognormal(10, 1, num_rows),
            "size": pd.Categorical(rng.choice(levels[:3], num_rows), levels, ordered=True),
            "smokes": rng.random(num_rows) < 0.3,
            "visits": pd.array(rng.integers(0, 300, num_rows), dtype="Int64"),
            "member": pd.array(rng.random(num_rows) < 0.5, dtype="boolean"),
            "text": pd.array(rng.choice(["x", "y"], num_rows), dtype="string"),
            "short": rng.normal(size=num_rows).astype(np.float32),
            "born": pd.Timestamp("1980-01-01")
            + pd.to_timedelta(rng.integers(0, 9999, num_rows), "D"),
            "unit": 3.0,
            "empty": np.full(num_rows, np.nan),
        },
        index=pd.Index(range(100, 100 + num_rows), name="id"),
    )
    frame["city"] = rng.choice(["Bern", "Oslo", "Rome"], num_rows)
    for name in ["income", "city", "size", "visits", "member", "text", "short", "born", "unit"]:
        frame.loc[frame.index[rng.choice(num_rows, num_rows // 8, replace=False)], name] = None
    return frame
