"""Fits of densities and masses to the values of one column, which its kind is chosen by."""

import math
from itertools import pairwise

import numpy as np
import torch

from tinyvae.core.data import spread_rows
from tinyvae.likelihoods.tables import Array

LOG_NORMALIZER = 0.5 * math.log(2 * math.pi * math.e)  # of a standard normal at its own maximum
DEGREES_OF_FREEDOM = (2.0, 5.0)  # of Student t densities that are tried
MAX_DIVERGENCE = 0.1  # nats, of few values from the negative binomial of a count
MAX_EXCESS_OF_ZEROS = 0.15  # share
MAX_SHARE_BEYOND, MAX_ROWS_BEYOND = 0.02, 10  # that a count would have above the largest value
SMALL_MEAN = 10.0  # up to it, integers are near zero
LARGE_MEAN = 100.0  # above it, they are amounts
MAX_MODES, MIN_MASS, MAX_VALLEY = 8, 0.05, 0.75  # of a mode; density between two, per lower peak


def normal_fit(values: Array) -> float:
    """Return the average log density of the best normal density, nats."""
    return -math.log(values.std()) - LOG_NORMALIZER


def log_normal_fit(values: Array) -> float:
    """Return the average log density of positive values under the best log-normal density, nats.

    It is minus infinity if the density has another standard deviation than the values.
    """
    logs = np.log(values)
    shift, scale = logs.mean(), max(logs.std(), 1e-12)
    log_ratio = shift + scale**2 / 2 + math.log(math.expm1(min(scale**2, 100.0))) / 2
    log_ratio -= math.log(values.std())
    agrees = math.log(0.75) < log_ratio < math.log(4 / 3)
    return float(-math.log(scale) - LOG_NORMALIZER - shift) if agrees else -math.inf


def logit_normal_fit(values: Array, low: float, high: float) -> float:
    """Return the average log density of values in (low, high) under the best logit-normal, nats."""
    share = (values - low) / (high - low)
    logits = np.log(share) - np.log1p(-share)
    slope = -np.log(share * (1 - share)) - math.log(high - low)
    return float(-math.log(max(logits.std(), 1e-12)) - LOG_NORMALIZER + slope.mean())


def student_fit(values: Array) -> tuple[float, float, float]:
    """Return the average log density of a fitted Student t density, nats, its location and scale.

    They are found by expectation maximization for two numbers of degrees of freedom. The log
    density is minus infinity if the values are skewed or their tails are not heavier than those of
    a normal density.
    """
    low, first, median, third, high = np.quantile(values, (0.01, 0.25, 0.5, 0.75, 0.99))
    spread = (third - first) / 1.35 or values.std()
    is_skewed = abs(low + high - 2 * median) > 0.6 * (high - low)
    excess = (((values - values.mean()) / values.std()) ** 4).mean() - 3
    if is_skewed or excess < 0.5:
        return -math.inf, float(median), float(spread)
    best = (-math.inf, float(median), float(spread))
    for df in DEGREES_OF_FREEDOM:
        location, square = median, spread**2
        for _ in range(20):
            weights = (df + 1) / (df + (values - location) ** 2 / square)
            location = (weights * values).sum() / weights.sum()
            square = max((weights * (values - location) ** 2).mean(), 1e-12 * spread**2)
        constant = math.lgamma((df + 1) / 2) - math.lgamma(df / 2)
        constant -= math.log(df * math.pi * square) / 2
        tails = np.log1p((values - location) ** 2 / (df * square))
        fit = float(constant - (df + 1) / 2 * tails.mean())
        best = max(best, (fit, float(location), math.sqrt(square)))
    return best


def find_modes(values: Array) -> Array:
    """Return the peaks of a kernel density estimate that are clearly apart.

    The density between two of them is at most three quarters of the lower one, and each holds at
    least 5 % of the values.
    """
    first, third = np.quantile(values, (0.25, 0.75))
    spread = min(values.std(), (third - first) / 1.35) or values.std()
    width = 0.9 * spread * len(values) ** -0.2  # Silverman's rule
    low, high = np.quantile(values, (0.005, 0.995))
    if not (width > 0 and high > low):
        return np.array([])
    with np.errstate(over="ignore"):  # the width may be far smaller than the range
        bins = int(min(512, max(16, (high - low) / width * 4)))
        steps = np.arange(-bins, bins + 1) * (high - low) / bins / width
        kernel = np.exp(-(steps**2) / 2)
    inside = values[(values >= low) & (values <= high)]
    counts, edges = np.histogram(inside, bins, range=(low, high))
    density = np.convolve(counts, kernel)[bins : 2 * bins]
    centers = (edges[:-1] + edges[1:]) / 2
    padded = np.pad(density, 1)
    peaks = np.flatnonzero((density > padded[:-2]) & (density >= padded[2:])).tolist()
    while len(peaks) > 1:  # merge the pair with the shallowest valley
        pairs = list(pairwise(peaks))
        valleys = [int(a + density[a : b + 1].argmin()) for a, b in pairs]
        depths = [
            density[v] / min(density[a], density[b])
            for v, (a, b) in zip(valleys, pairs, strict=True)
        ]
        cuts = [0, *valleys, bins]
        masses = [counts[a:b].sum() / len(values) for a, b in pairwise(cuts)]
        shallow, light = int(np.argmax(depths)), int(np.argmin(masses))
        if depths[shallow] > MAX_VALLEY:
            a, b = pairs[shallow]
            peaks.remove(a if density[a] < density[b] else b)
        elif masses[light] < MIN_MASS:
            del peaks[light]
        else:
            break
    modes: Array = centers[peaks if len(peaks) <= MAX_MODES else []]
    return modes


def mixture_fit(values: Array, modes: Array) -> tuple[float, float]:
    """Return the average log density of a normal mixture, nats, and its common standard deviation.

    Expectation maximization starts from components at ``modes``.
    """
    means, weights = np.array(modes, dtype=np.float64), np.full(len(modes), 1 / len(modes))
    values = spread_rows(values, 1_000)
    nearest = np.abs(values[:, None] - means).argmin(1)
    square = float(((values - means[nearest]) ** 2).mean())
    floor = 1e-6 * values.var()
    fit = -math.inf
    for _ in range(30):
        square = max(square, floor)
        logs = np.log(weights) - (values[:, None] - means) ** 2 / (2 * square)  # (N, M)
        top = logs.max(1, keepdims=True)
        shares = np.exp(logs - top)
        totals = shares.sum(1, keepdims=True)
        fit = float((np.log(totals) + top).mean() - math.log(2 * math.pi * square) / 2)
        shares /= totals
        sizes = np.maximum(shares.sum(0), 1e-12)
        means, weights = (shares * values[:, None]).sum(0) / sizes, sizes / len(values)
        square = float((shares * (values[:, None] - means) ** 2).sum() / len(values))
    return fit, math.sqrt(square)


def concentration(values: Array) -> float:
    """Return the concentration of the negative binomial with the moments of the counts."""
    excess = values.var() - values.mean()
    return float(np.clip(values.mean() ** 2 / max(excess, 1e-12), 0.01, 100))


def is_count(values: Array, is_few: bool) -> bool:
    """Return True if integers are near zero and a negative binomial of equal moments fits them.

    Its variance is at least its mean.
    """
    mean, variance = values.mean(), values.var()
    if values.min() < 0 or mean > LARGE_MEAN:
        return False
    is_near_zero = mean <= SMALL_MEAN or variance >= mean**2 / 4
    error = 1 / math.sqrt(len(values))
    # Two standard errors of the ratio of variance and mean, and below of the share of zeros.
    if not is_near_zero or variance < (1 - max(0.2, 2.8 * error)) * mean:
        return False
    distinct, frequencies = np.unique(values, return_counts=True)
    shares, k = torch.from_numpy(frequencies / len(values)), torch.from_numpy(distinct)
    r = concentration(values)
    log_zero = r * math.log(r / (r + mean))
    if abs((values == 0).mean() - math.exp(log_zero)) > max(MAX_EXCESS_OF_ZEROS, error):
        return False

    def log_mass(k: torch.Tensor) -> torch.Tensor:
        log_ways = torch.lgamma(k + r) - math.lgamma(r) - torch.lgamma(k + 1)
        return log_ways + log_zero + k * math.log(mean / (r + mean))

    # A count would also have values above the largest hour or month.
    beyond = 1 - log_mass(torch.arange(values.max() + 1, dtype=torch.float64)).exp().sum()
    if beyond > MAX_SHARE_BEYOND and len(values) * beyond > MAX_ROWS_BEYOND:
        return False
    divergence = (shares * (shares.log() - log_mass(k))).sum()  # KL, nats
    return not is_few or bool(divergence < MAX_DIVERGENCE)
