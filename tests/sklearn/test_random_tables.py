"""Random tables are used by all estimators, or refused before training."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyvae.sklearn import VAEDetector, VAEImputer, VAESynthesizer, VAETransformer

START = pd.Timestamp("2020-01-01")


def columns(rng, n):
    """Return a column of each type, as functions of nothing."""
    levels = ["north", "south", "west"]
    texts = rng.choice(levels, n)
    integers = rng.integers(0, 9, n)
    return {
        "float": lambda: rng.normal(size=n),
        "float32": lambda: rng.normal(size=n).astype("float32"),
        "int": lambda: rng.integers(-50, 50, n),
        "uint8": lambda: rng.integers(0, 255, n).astype("uint8"),
        "bool": lambda: rng.random(n) < 0.5,
        "str": lambda: texts,
        "object": lambda: np.array(texts.tolist(), dtype=object),
        "mixed": lambda: np.array([t if i else 1 for t, i in zip(texts, integers, strict=True)]),
        "category": lambda: pd.Categorical(texts),
        "ordered": lambda: pd.Categorical(texts, [*levels, "none"], ordered=True),
        "Int64": lambda: pd.array(integers, dtype="Int64"),
        "Float64": lambda: pd.array(rng.normal(size=n), dtype="Float64"),
        "boolean": lambda: pd.array(integers > 4, dtype="boolean"),
        "string": lambda: pd.array(texts, dtype="string"),
        "date": lambda: START + pd.to_timedelta(integers, unit="D"),
        "zone": lambda: START.tz_localize("Europe/Oslo") + pd.to_timedelta(integers, unit="h"),
        "duration": lambda: pd.to_timedelta(integers, unit="s"),
        "constant": lambda: np.full(n, 2.5),
        "empty": lambda: np.full(n, np.nan),
        "identifier": lambda: np.arange(n) + 1,
        "large": lambda: 1e20 * rng.normal(size=n),
        "small": lambda: 1e-20 * rng.normal(size=n),
    }


NAMES = {
    "text": lambda index: f"c{index}",
    "integer": lambda index: index,
    "tuple": lambda index: ("a", index),
    "repeated": lambda index: f"c{index // 2}",
}


@st.composite
def tables(draw):
    """Draw a table of 1 to 30 rows, some of whose entries are missing."""
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    n = draw(st.sampled_from([1, 2, 3, 5, 12, 30]))
    kinds = draw(st.lists(st.sampled_from(sorted(columns(rng, 1))), min_size=1, max_size=5))
    made = [pd.Series(columns(rng, n)[kind]()) for kind in kinds]
    share = draw(st.sampled_from([0.0, 0.1, 0.5]))
    for column in made:
        if column.dtype.kind not in "iub":
            column[rng.random(n) < share] = None
    table = pd.concat(made, axis=1)
    names = NAMES[draw(st.sampled_from(sorted(NAMES)))]
    table.columns = [names(index) for index in range(len(kinds))]
    return table


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(tables())
def test_table_is_used_by_all_estimators_or_refused_before_training(table):
    imputer = VAEImputer(max_epochs=1, random_state=0, keep_empty_features=True)
    try:
        imputer.fit(table)
    except (ValueError, TypeError):
        assert not hasattr(imputer, "vae_")
        return
    observed = table.notna()
    for filled in (imputer.transform(table), *imputer.impute(table, 2)):
        assert filled.dtypes.tolist() == table.dtypes.tolist()
        pd.testing.assert_frame_equal(filled.where(observed), table.where(observed))
        for column in imputer.columns_.columns:
            if column.is_modeled:
                assert filled[column.label].notna().all()
    detector = VAEDetector.from_fitted(imputer, table)
    scores = detector.score_samples(table)
    assert np.isfinite(scores).all()
    np.testing.assert_allclose(detector.explain(table).sum(axis=1), -scores, rtol=1e-9, atol=1e-9)
    assert np.isfinite(VAETransformer.from_fitted(imputer).transform(table)).all()
    drawn = VAESynthesizer.from_fitted(imputer).sample(3)
    for label in drawn:
        assert drawn[label].dtype == table[label].dtype
