"""Walks, neighbors and diagnostics."""

import math

import matplotlib as mpl
import numpy as np
import pytest
import torch
from scipy.stats import norm

from tinyvae.plotting import (
    interpolate,
    interpolations,
    kl_bars,
    latent_map,
    nearest_neighbors,
    rate_distortion_curve,
    traversals,
)


def as_pixels(z):
    """Decode a point of two dimensions to an image of its two values, 1 x 2 pixels."""
    return z.reshape(-1, 1, 1, 2)


def drawn(figure):
    """Pixels of all tiles, in the order of drawing, ``(N, 2)``."""
    tiles = figure.axes[0].images
    order = sorted(tiles, key=lambda t: (t.get_extent()[3], t.get_extent()[0]))
    assert list(tiles) == order  # rows from the top, each from the left
    return np.array([tile.get_array().ravel() for tile in tiles])


def labels(figure):
    return [text.get_text() for text in figure.axes[0].texts]


# Walks


def test_traversals_move_one_dimension_per_row():
    z, values = torch.tensor([0.25, 0.75]), (0.0, 0.5, 1.0)
    figure = traversals(as_pixels, z, values=values)
    want = [[v, 0.75] for v in values] + [[0.25, v] for v in values]
    np.testing.assert_allclose(drawn(figure), want)
    assert labels(figure) == ["dimension 0", "dimension 1"]
    assert z.tolist() == [0.25, 0.75]
    only = traversals(as_pixels, z, dims=[1], values=values)
    np.testing.assert_allclose(drawn(only), want[3:])


def test_interpolate_walks_lines_and_arcs():
    a, b = torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, -2.0]])
    line = interpolate(a, b, steps=5)
    torch.testing.assert_close(line[1], 0.75 * a + 0.25 * b)
    arc = interpolate(a, b, steps=5, spherical=True)
    angle = math.pi / 2 * torch.arange(5) / 4
    circle = torch.stack([angle.cos(), angle.sin()], 1)
    torch.testing.assert_close(arc[:, 0], circle)
    torch.testing.assert_close(arc[:, 1], 2 * circle * torch.tensor([1.0, -1.0]))
    for path in (line, arc):
        torch.testing.assert_close(path[[0, -1]], torch.stack([a, b]))
    # No unique arc: lines.
    for end in (2 * a, -a):
        straight = interpolate(a, end, steps=5, spherical=True)
        torch.testing.assert_close(straight, interpolate(a, end, steps=5))


def test_interpolations_have_a_row_per_pair():
    a, b = torch.rand(3, 2), torch.rand(3, 2)
    got = drawn(interpolations(as_pixels, a, b, steps=4)).reshape(3, 4, 2)
    np.testing.assert_allclose(got, interpolate(a, b, steps=4).transpose(0, 1), atol=1e-7)


def test_latent_map_has_the_quantiles_of_the_prior():
    figure = latent_map(as_pixels, size=4, limits=(-3, 3))
    assert not any(labels(figure))
    got = drawn(figure).reshape(4, 4, 2) * 6 - 3
    line = norm.ppf([0.125, 0.375, 0.625, 0.875])
    np.testing.assert_allclose(got[..., 0], np.tile(line, (4, 1)), atol=1e-6)  # to the right
    np.testing.assert_allclose(got[..., 1], np.tile(line[::-1, None], (1, 4)), atol=1e-6)  # up
    uniform = drawn(latent_map(as_pixels, size=2, quantile=lambda u: u))
    np.testing.assert_allclose(uniform, [[0.25, 0.75], [0.75, 0.75], [0.25, 0.25], [0.75, 0.25]])


def test_walks_compute_no_gradients():
    z = torch.zeros(1, 2, requires_grad=True)
    interpolations(lambda z: as_pixels(z).sigmoid(), z, z + 1)
    latent_map(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Unflatten(1, (1, 1, 2))),
               size=2, limits=(-5, 5))  # fmt: skip


# Neighbors


def test_nearest_neighbors_are_in_the_order_of_distance():
    training = torch.arange(8.0).reshape(8, 1, 1, 1).expand(8, 1, 1, 2) / 10
    samples = torch.tensor([0.22, 0.71]).reshape(2, 1, 1, 1).expand(2, 1, 1, 2)
    figure = nearest_neighbors(samples, training, k=3)
    want = [[0.22, 0.71], [0.2, 0.7], [0.3, 0.6], [0.1, 0.5]]
    np.testing.assert_allclose(drawn(figure)[:, 0].reshape(4, 2), want, atol=1e-6)
    assert labels(figure) == ["sample", "nearest", "2nd", "3rd"]
    features = (-samples.flatten(1), torch.arange(8.0).reshape(8, 1))  # nearest is the first
    figure = nearest_neighbors(samples, training, k=1, features=features)
    np.testing.assert_allclose(drawn(figure)[2:, 0], [0, 0], atol=1e-6)


# Diagnostics


def test_rate_distortion_curve_is_in_the_order_of_the_rate():
    series = {"a": ([9.0, 1.0, 4.0], [2.0, 8.0, 4.0]), "b": ([5.0], [5.0])}
    figure = rate_distortion_curve(series, notes={"a": ["x", "y", "z"]}, title="Curve")
    first, second, bound = figure.axes[0].lines
    np.testing.assert_array_equal(first.get_xydata(), [[1, 8], [4, 4], [9, 2]])
    np.testing.assert_array_equal(second.get_xydata(), [[5, 5]])
    np.testing.assert_allclose(bound.get_xydata().sum(1), 8)  # the best rate + distortion
    assert [t.get_text() for t in figure.axes[0].get_legend().get_texts()] == ["a", "b", "ELBO -8"]
    notes = {t.get_text(): t.xy for t in figure.axes[0].texts}
    assert notes == {"x": (9, 2), "y": (1, 8), "z": (4, 4)}


def test_kl_bars_are_in_decreasing_order():
    figure = kl_bars(torch.tensor([0.0, 2.0, 0.5]), threshold=0.5)
    bars = figure.axes[0].patches
    assert [bar.get_height() for bar in bars] == [2, 0.5, 0]
    assert len({bar.get_facecolor() for bar in bars[:2]}) == 2  # 0.5 is not above 0.5
    assert labels(figure) == ["1 of 3 above 0.5 nats"]
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["1", "2", "0"]
    assert len(kl_bars(torch.rand(500)).axes[0].get_xticks()) == 20


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: traversals(as_pixels, torch.zeros(1, 2)), "one latent point"),
        (lambda: interpolate(torch.zeros(2, 3), torch.zeros(1, 3), steps=3), "as many ends"),
        (lambda: interpolate(torch.zeros(2, 3), torch.zeros(2, 3), steps=1), "steps >= 2"),
        (lambda: latent_map(as_pixels, size=0), "size >= 1"),
        (lambda: nearest_neighbors(torch.rand(2, 1, 2, 2), torch.rand(3, 1, 2, 2)), "k=4"),
        (lambda: rate_distortion_curve({}), "got none"),
        (lambda: kl_bars([[1.0]]), "kl_bars expects finite values"),
        (lambda: kl_bars([math.nan]), "kl_bars expects finite values"),
    ],
)
def test_errors_name_the_remedy(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


def test_figures_leave_the_settings():
    before = dict(mpl.rcParams)
    kl_bars([1.0])
    rate_distortion_curve({"a": ([1.0], [1.0])})
    assert dict(mpl.rcParams) == before
