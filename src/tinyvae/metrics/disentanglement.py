"""Disentanglement by predictors of factors from codes: DCI, SAP and the FactorVAE score."""

from dataclasses import dataclass

import numpy as np

from tinyvae.metrics.information import equal_width_bins
from tinyvae.metrics.probes import prediction_score, split_rows
from tinyvae.metrics.scores import (
    Array,
    Floats,
    Indices,
    Score,
    as_factors,
    as_rows,
    jackknife,
    missing_sklearn,
)


@dataclass(frozen=True)
class DCIScores:
    """Scores of Eastwood and Williams (2018).

    Attributes:
        disentanglement: 1 if each code dimension is important for one factor only.
        completeness: 1 if one code dimension is important for each factor.
        informativeness: Score of the prediction of each factor on the test rows: accuracy of
            classes, R² of real numbers.
        importance: Importance of each code dimension for each factor, ``(L, K)``. Columns sum to 1.
    """

    disentanglement: float
    completeness: float
    informativeness: tuple[Score, ...]
    importance: Floats


def dci(codes: Array, factors: Array, *, trees: int = 100, seed: int = 0) -> DCIScores:
    r"""Return disentanglement, completeness and informativeness.

    A random forest predicts each factor from the codes. With its importances :math:`R_{ik}` (mean
    decrease in impurity), :math:`P_{ik} = R_{ik} / \sum_k R_{ik}`, and
    :math:`\rho_i = \sum_k R_{ik} / \sum_{ik} R_{ik}`,

    .. math:: D = \sum_i \rho_i \Big(1 + \sum_k P_{ik} \log_K P_{ik}\Big), \qquad
        C = \frac1K \sum_k \Big(1 + \sum_i R_{ik} \log_L R_{ik}\Big).

    Forests are fitted to four fifths of the rows and tested on the rest. Correlated factors lower
    D, and so do few rows. D and C have no standard error here: the spread over trained models is
    larger than that over rows, so train several.

    Args:
        codes: Codes, such as the means of the posteriors.
        factors: Known factors. A column of whole numbers is a factor of classes.
        trees: Number of trees of each forest.
        seed: Seed of the split and the forests.

    Shape:
        codes: ``(N, L)``, ``L >= 2``; factors: ``(N, K)``, ``K >= 2``.

    Raises:
        ImportError: If scikit-learn is missing (extra ``sklearn``).
        ValueError: If a shape or value is invalid.

    References:
        Eastwood, Williams (2018). A Framework for the Quantitative Evaluation of Disentangled
        Representations. ICLR.

    Example:
        >>> factors = torch.rand(500, 2)
        >>> scores = dci(factors, factors, trees=20)
        >>> scores.disentanglement > 0.95, scores.completeness > 0.95
        (True, True)
    """
    try:
        from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
    except ImportError as error:
        raise missing_sklearn("dci") from error
    x = as_rows("dci", "codes", codes)
    columns = as_factors("dci", factors, len(x))
    if x.shape[1] < 2 or len(columns) < 2:
        raise ValueError(
            f"dci expects 2 code dimensions and 2 factors or more, got {x.shape[1]} and "
            f"{len(columns)}: use a probe for a single factor"
        )
    importances, informativeness = [], []
    for y in columns:
        make = RandomForestClassifier if y.dtype.kind == "i" else RandomForestRegressor
        train, test = split_rows("dci", y, None, seed)
        forest = make(trees, max_features=1.0, random_state=seed).fit(x[train], y[train])
        importances.append(forest.feature_importances_)
        informativeness.append(prediction_score(y[test], forest.predict(x[test])))
    importance = np.stack(importances, axis=1)  # (L, K)
    weight = importance.sum(axis=1)
    used = weight > 0
    shares = importance[used] / weight[used, None]
    disentanglement = np.average(_concentration(shares), weights=weight[used])
    completeness = _concentration(importance.T).mean()
    return DCIScores(
        float(disentanglement), float(completeness), tuple(informativeness), importance
    )


def _concentration(shares: Floats) -> Floats:
    """Return one minus the entropy of each row, relative to the uniform distribution."""
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    concentration: Floats = 1 + (shares * logs).sum(axis=1) / np.log(shares.shape[1])
    return concentration


def separated_attribute_predictability(codes: Array, factors: Array, *, seed: int = 0) -> Score:
    """Return the separated attribute predictability (SAP).

    Each factor is predicted from each single code dimension. The score is the mean over factors of
    the gap between the best two dimensions. Real factors are scored by the squared correlation.
    Classes are scored by the mean of the accuracies within each class, on a fifth of the rows, of
    thresholds that are fitted to the rest: a decision tree with one leaf per class. A perfect code
    of C classes thus has a gap of 1 - 1 / C, because chance has 1 / C. The standard error is by the
    jackknife over rows; for classes it is too large, up to about twice, because thresholds jump.

    Args:
        codes: Codes, such as the means of the posteriors.
        factors: Known factors. A column of whole numbers is a factor of classes.
        seed: Seed of the split.

    Shape:
        codes: ``(N, L)``, ``L >= 2``; factors: ``(N, K)`` or ``(N,)``.

    Raises:
        ImportError: If scikit-learn is missing (extra ``sklearn``).
        ValueError: If a shape or value is invalid.

    References:
        Kumar, Sattigeri, Balakrishnan (2018). Variational Inference of Disentangled Latent Concepts
        from Unlabeled Observations. arXiv:1711.00848, section 3.

    Example:
        >>> factors = torch.rand(500, 2)
        >>> separated_attribute_predictability(factors, factors).value > 0.9
        True
    """
    who = "separated_attribute_predictability"
    x = as_rows(who, "codes", codes)
    columns = as_factors(who, factors, len(x))
    if x.shape[1] < 2:
        raise ValueError(f"{who} expects 2 code dimensions or more, got 1")
    in_test = []
    for y in columns:
        _, test = split_rows(who, y, None, seed)
        in_test.append(np.isin(np.arange(len(x)), test))

    def mean_gap(rows: Indices) -> float:
        gaps = []
        for y, is_test in zip(columns, in_test, strict=True):
            scores = sorted(
                _predictability(x[rows, i], y[rows], is_test[rows]) for i in range(dims)
            )
            gaps.append(scores[-1] - scores[-2])
        return float(np.mean(gaps))

    dims = x.shape[1]
    return jackknife(mean_gap, len(x))


def _predictability(code: Floats, y: Indices | Floats, is_test: np.ndarray) -> float:
    """Return the score of one factor from one code dimension."""
    if y.dtype.kind == "f":
        spread = code.std() * y.std()
        return float((np.cov(code, y, bias=True)[0, 1] / spread) ** 2) if spread > 0 else 0.0
    try:
        from sklearn.metrics import recall_score
        from sklearn.tree import DecisionTreeClassifier
    except ImportError as error:
        raise missing_sklearn("separated_attribute_predictability") from error
    leaves = len(np.unique(y))
    tree = DecisionTreeClassifier(max_leaf_nodes=leaves, class_weight="balanced", random_state=0)
    predicted = tree.fit(code[~is_test, None], y[~is_test]).predict(code[is_test, None])
    return float(recall_score(y[is_test], predicted, average="macro", zero_division=0.0))


def factor_vae_score(
    codes: Array,
    factors: Array,
    *,
    group_size: int = 64,
    votes: int = 800,
    bins: int = 20,
    seed: int = 0,
) -> Score:
    """Return the FactorVAE score: does fixing a factor fix one code dimension?

    A vote picks a random factor and a random one of its values, draws rows with this value (with
    replacement), and names the code dimension with the least variance in the group, relative to
    that of all rows. A majority vote over half of the votes assigns dimensions to factors. The
    score is the accuracy of this assignment on the other half. Chance has 1 / K. Dimensions that
    are constant are left out.

    In the paper, other factors are drawn independently. Here they are drawn with the rows, which is
    the same if factors are independent in the data.

    Args:
        codes: Codes, such as the means of the posteriors.
        factors: Known factors. A column of whole numbers is a factor of classes.
        group_size: Rows of a vote.
        votes: Votes for the assignment, and again for the score.
        bins: Bins of equal width for factors that are no whole numbers.
        seed: Seed of the draws.

    Shape:
        codes: ``(N, L)``; factors: ``(N, K)``, ``K >= 2``.

    Returns:
        Accuracy, with its standard error over votes.

    Raises:
        ValueError: If a shape or value is invalid.

    References:
        Kim, Mnih (2018). Disentangling by Factorising. arXiv:1802.05983, section 4.

    Example:
        >>> factors = torch.randint(5, (1000, 3))
        >>> factor_vae_score(factors + 0.1 * torch.randn(1000, 3), factors).value
        1.0
    """
    x = as_rows("factor_vae_score", "codes", codes)
    columns = as_factors("factor_vae_score", factors, len(x))
    if len(columns) < 2:
        raise ValueError("factor_vae_score expects 2 factors or more, got 1")
    x = x[:, x.std(axis=0) > 0]
    if x.shape[1] == 0:
        raise ValueError("factor_vae_score expects codes that vary, got constant ones")
    classes = [c if c.dtype.kind == "i" else equal_width_bins(c, bins) for c in columns]
    members = [[np.flatnonzero(c == value) for value in np.unique(c)] for c in classes]
    x = x / x.std(axis=0)
    rng = np.random.default_rng(seed)

    def draw_votes() -> tuple[Indices, Indices]:
        factor, dimension = rng.integers(len(members), size=votes), []
        for k in factor:
            rows = members[k][rng.integers(len(members[k]))]
            group = x[rng.choice(rows, group_size)]
            dimension.append(group.var(axis=0).argmin())
        return factor, np.array(dimension)

    counts = np.zeros((x.shape[1], len(members)))
    factor, dimension = draw_votes()
    np.add.at(counts, (dimension, factor), 1)
    factor, dimension = draw_votes()
    return Score.of((counts.argmax(axis=1)[dimension] == factor).astype(np.float64))
