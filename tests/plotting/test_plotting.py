from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread
from sklearn.decomposition import PCA

from tinyvae.plotting import curves, image_grid, image_rows, latent_scatter, save_figure
from tinyvae.plotting.curves import running_mean, spread_apart
from tinyvae.plotting.latent import principal_components

LABELS = {"xlabel": "update", "ylabel": "loss (nats)"}


def images(n, channels=1, height=5, width=5, seed=0):
    return torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(seed))


def noisy(n, seed=0):
    rng = np.random.default_rng(seed)
    return np.arange(1, n + 1), 100 + 50 * np.exp(-np.arange(n) / 20) + rng.standard_normal(n)


def every_figure():
    return [
        image_grid(images(7), title="Samples"),
        image_rows({"input": images(4, 3), "output": images(4)}, title="Rows"),
        curves({"a": noisy(600), "b": ([1, 300, 600], [120.0, 101.0, 99.0])}, **LABELS),
        latent_scatter(images(40)[:, 0, 0], torch.arange(40) % 4, title="Means"),
    ]


# Images


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("as_numpy", [False, True])
def test_image_grid_draws_values_unscaled_in_reading_order(channels, as_numpy):
    x = 0.2 + 0.1 * images(7, channels, 4, 6)  # a narrow range, which a rescaling would show
    drawn = image_grid(x.numpy() if as_numpy else x, columns=3).axes[0].images
    assert len(drawn) == 7
    for i, image in enumerate(drawn):
        want = x[i].double().permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(image.get_array().reshape(want.shape), want)
        assert image.get_clim() == (0, 1)
        assert image.get_cmap().name == "gray" or channels == 3
    left = [image.get_extent()[0] for image in drawn]
    top = [image.get_extent()[3] for image in drawn]
    assert left[:3] == left[3:6] == sorted(set(left))
    assert top == sorted(top)
    assert [top.count(t) for t in sorted(set(top))] == [3, 3, 1]


@pytest.mark.parametrize("shape", [(8, 3), (28, 28), (1, 7), (190, 30)])
@pytest.mark.parametrize(
    ("channels", "title"), [(1, None), (3, "Samples of a model with a title longer than the grid")]
)
def test_image_grid_enlarges_images_exactly_in_the_file(tmp_path, shape, channels, title):
    x = images(5, channels, *shape)
    figure = image_grid(x, columns=2, title=title)
    file = imread(save_figure(figure, tmp_path / "grid.png"))[..., :3]
    gaps = []
    for i, image in enumerate(figure.axes[0].images):
        box = image.get_window_extent()
        x0, x1 = round(box.x0), round(box.x1)
        y0, y1 = (round(file.shape[0] - y) for y in (box.y1, box.y0))
        scale = (x1 - x0) // shape[1]
        want = x[i].permute(1, 2, 0).numpy().repeat(scale, 0).repeat(scale, 1)
        assert file[y0:y1, x0:x1].shape[:2] == want.shape[:2]  # the aspect, too
        assert np.abs(file[y0:y1, x0:x1] - want).max() < 2 / 255  # rounded by color map and file
        gaps.append((x0, x1, y0, y1))
    # White strips of one width between neighbors, and white where the sixth image would be.
    across, down = gaps[1][0] - gaps[0][1], gaps[2][2] - gaps[0][3]
    assert across == down > 0
    assert (file[gaps[0][2] : gaps[0][3], gaps[0][1] : gaps[1][0]] == 1).all()
    assert (file[gaps[4][2] :, gaps[4][1] :] == 1).all()


@pytest.mark.parametrize(("n", "rows", "columns"), [(1, 1, 1), (4, 2, 2), (5, 2, 3), (10, 3, 4)])
def test_image_grid_is_about_square(n, rows, columns):
    drawn = image_grid(images(n)).axes[0].images
    assert len({image.get_extent()[0] for image in drawn}) == columns
    assert len({image.get_extent()[3] for image in drawn}) == rows


def test_image_grid_has_a_title_and_no_axes():
    axes = image_grid(images(2), title="Samples").axes[0]
    assert not axes.axison
    assert axes.get_title(loc="left") == "Samples"


def test_image_rows_have_labels_at_the_left_inside_the_figure():
    rows = {"input": images(3), "a rather long label": images(3, seed=1)}
    figure = image_rows(rows, title="A title")
    axes = figure.axes[0]
    first_of_row = axes.images[::3]
    for label, text, image in zip(rows, axes.texts, first_of_row, strict=True):
        box, tile = text.get_window_extent(), image.get_window_extent()
        assert text.get_text() == label
        assert 0 < box.x0 < box.x1 < tile.x0
        assert tile.y0 < (box.y0 + box.y1) / 2 < tile.y1
        np.testing.assert_array_equal(image.get_array(), rows[label][0, 0].double())
    assert first_of_row[0].get_window_extent().y0 > first_of_row[1].get_window_extent().y1


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.rand(3, 8, 8), r"\(N, C, H, W\) with C 1 or 3, got \(3, 8, 8\): unsqueeze"),
        (torch.rand(3, 64), r"got \(3, 64\): reshape flat images, \(-1, 1, H, W\)"),
        (torch.rand(2, 3, 1, 8, 8), r"got \(2, 3, 1, 8, 8\): flatten\(0, 1\)"),
        (torch.rand(3, 8, 8, 3), r"got \(3, 8, 8, 3\): .*permute"),
        (torch.rand(0, 1, 8, 8), r"got \(0, 1, 8, 8\)"),
        (
            torch.full((1, 1, 2, 2), 255),
            r"\[0, 1\], got 255..255: divide bytes by 255, or .*=",
        ),
        (torch.full((1, 1, 2, 2), 2, dtype=torch.uint8), r"\[0, 1\], got 2..2: .*limits="),
        (torch.linspace(0, 255, 4).reshape(1, 1, 2, 2), r"\[0, 1\], got 0..255: .*limits="),
        (torch.full((1, 1, 2, 2), torch.nan), r"finite values .*, got nan.*: .*nan_to_num"),
        (torch.full((1, 1, 2, 2), torch.inf), "finite values .*, got inf"),
    ],
)
def test_image_grid_rejects_bad_images(bad, message):
    with pytest.raises(ValueError, match="image_grid expects .*" + message):
        image_grid(bad)
    with pytest.raises(ValueError, match="image_rows, row 'bad' expects .*" + message):
        image_rows({"bad": bad})


@pytest.mark.parametrize("limits", [(1.0, 1.0), (1.0, 0.0), (0.0, np.nan), (-np.inf, 0.0)])
def test_image_grid_rejects_bad_limits(limits):
    with pytest.raises(ValueError, match=r"limits \(low, high\) with low < high, got"):
        image_grid(images(2), limits=limits)


@pytest.mark.parametrize("channels", [1, 3])
def test_image_grid_draws_values_outside_black_or_white_and_says_so(tmp_path, channels):
    """Means and draws of an unbounded likelihood."""
    x = images(4, channels)
    x[0, 0, 0, :2] = torch.tensor([-0.25, 3.0])
    for figure in (image_grid(x), image_rows({"a": x[:2], "b": x[2:]})):
        (note,) = figure.texts
        share = 2 / x.numel()
        assert note.get_text() == f"{share:.1%} of values outside [0, 1]"
        drawn = figure.axes[0].images[0].get_array().reshape(5, 5, channels)
        np.testing.assert_array_equal(drawn, x[0].clamp(0, 1).double().permute(1, 2, 0))
        box, lowest = note.get_window_extent(), figure.axes[0].images[-1].get_window_extent()
        assert 0 < box.y0 < box.y1 < lowest.y0
        assert box.x1 < figure.bbox.x1
    x[0, 0, 0, :2] = 0.5
    assert image_grid(x).texts[0].get_text() == ""


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32, torch.bfloat16])
def test_image_grid_scales_between_limits(dtype):
    levels = torch.randint(0, 17, (3, 1, 5, 5), generator=torch.Generator().manual_seed(0))
    figure = image_grid(levels.to(dtype), limits=(0, 16))
    for image, want in zip(figure.axes[0].images, levels, strict=True):
        np.testing.assert_array_equal(image.get_array(), want[0].double() / 16)
    assert image_grid(levels, limits=(0, 8)).texts[0].get_text().endswith("outside [0, 8]")


def test_figures_read_any_numbers():
    """Numbers that need gradients, losses in a list, booleans, missing values."""
    loss = torch.tensor(1.5, requires_grad=True)
    (line,) = curves({"a": (torch.arange(2), [loss, loss * 2])}, **LABELS).axes[0].lines
    np.testing.assert_array_equal(line.get_ydata(), [1.5, 3.0])
    (line,) = curves({"a": ([1, 2, 3], [1.0, None, 2.0])}, **LABELS).axes[0].lines
    np.testing.assert_array_equal(line.get_ydata(), [1.0, np.nan, 2.0])
    masked = np.ma.array([1.0, -999.0, 2.0], mask=[False, True, False])
    (line,) = curves({"a": ([1, 2, 3], masked)}, **LABELS).axes[0].lines
    np.testing.assert_array_equal(line.get_ydata(), [1.0, np.nan, 2.0])
    x = images(2).requires_grad_()
    np.testing.assert_array_equal(image_grid(x > 0.5).axes[0].images[0].get_array(), x[0, 0] > 0.5)
    assert len(latent_scatter(images(4)[:, 0, 0].requires_grad_(), [True, False] * 2).axes) == 1
    with pytest.raises(TypeError, match=r"a figure expects numbers, got <object .*the mean of a"):
        image_grid(object())


def test_image_grid_and_rows_reject_bad_layouts():
    with pytest.raises(ValueError, match="columns >= 1, got 0: leave it out"):
        image_grid(images(2), columns=0)
    with pytest.raises(ValueError, match="at least one row, got none"):
        image_rows({})
    with pytest.raises(ValueError, match=r"same \(N, H, W\) .*'b': \(3, 5, 5\).*: cut the rows"):
        image_rows({"a": images(2), "b": images(3)})


# Curves


@settings(deadline=None)
@given(
    y=st.lists(st.floats(-1e6, 1e6) | st.just(np.nan) | st.just(np.inf), min_size=1, max_size=60),
    half=st.integers(0, 70),
)
def test_running_mean_is_the_mean_of_each_window(y, half):
    y = np.array(y)
    got = running_mean(y, half)
    for i in range(len(y)):
        reach = min(i // 4, half)
        window = y[i - reach : i + reach + 1]
        window = window[np.isfinite(window)]
        want = window.mean() if len(window) else np.nan
        np.testing.assert_allclose(got[i], want, rtol=1e-9, atol=1e-6)


def test_running_mean_is_exact_after_a_huge_start():
    y = np.r_[1e300, np.ones(99)]
    np.testing.assert_array_equal(running_mean(y, 5)[4:], 1.0)


def test_curves_draw_short_curves_unchanged():
    x, y = noisy(500)
    y = y[-1] + np.sin(x)
    y[7] = np.nan
    axes = curves({"validation": (x, torch.tensor(y))}, **LABELS, title="A title").axes[0]
    (line,) = axes.lines
    np.testing.assert_array_equal(line.get_xydata(), np.stack([x, y], 1))
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["validation", ""]  # no note
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("update", "loss (nats)")
    assert axes.get_title(loc="left") == "A title"


def test_curves_draw_long_curves_below_their_running_mean():
    x, y = noisy(1000)
    axes = curves({"training": (x, y)}, **LABELS).axes[0]
    faint, mean = axes.lines
    np.testing.assert_array_equal(faint.get_ydata(), y)
    np.testing.assert_array_equal(mean.get_ydata(), running_mean(y, half=10))
    assert faint.get_alpha() < 0.5
    assert faint.get_zorder() < mean.get_zorder()
    assert axes.texts[-1].get_text().startswith("Running mean over 2% of the points")


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("n", "logx"), [(30, False), (30, True), (400, True), (3000, False)])
def test_curves_limits_ignore_extreme_first_points(n, logx, sign):
    x, y = noisy(n)
    y[:2] = 1e7, 1e5
    axes = curves({"training": (x, sign * y)}, **LABELS, logx=logx).axes[0]
    low, high = sorted(sign * limit for limit in axes.get_ylim())
    assert high < 1000
    assert low < y.min()
    left_out = (y > high).sum()
    assert 2 <= left_out <= max(3, n / 10)
    side = f"above the axis, up to {1e7:.3g}" if sign > 0 else f"below the axis, to {-1e7:.3g}"
    assert axes.texts[-1].get_text().splitlines()[-1] == f"{left_out} of {n} points {side}"


@pytest.mark.parametrize("n", [1, 2, 3, 10, 50])
def test_curves_limits_hold_a_plain_descent(n):
    x = np.arange(1, n + 1)
    axes = curves({"training": (x, 95 + 70 * x**-0.8)}, **LABELS).axes[0]
    assert axes.get_ylim()[1] > 165
    assert axes.texts[-1].get_text() == ""


@pytest.mark.parametrize("n", [40, 4000])
def test_curves_limits_hold_the_end(n):
    x, y = noisy(n)
    y[-n // 50 :] = 1e6  # diverged at the very end
    y[0] = -1e9
    axes = curves({"training": (x, y)}, **LABELS).axes[0]
    low, high = axes.get_ylim()
    assert low < axes.lines[-1].get_ydata()[-1] < high
    assert low > -1e8


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_curves_limits_leave_a_margin_around_constants(value):
    low, high = curves({"rate": ([0, 1], [value, value])}, **LABELS).axes[0].get_ylim()
    assert low < value < high


def test_curves_labels_are_at_the_ends_and_apart():
    ends = {"a": 1.0, "b": 1.01, "c": 1.02, "d": 5.0, "e": 0.0}
    figure = curves({k: ([0, 1], [2.0, y]) for k, y in ends.items()}, **LABELS)
    axes, frame = figure.axes[0], figure.bbox
    boxes = {text.get_text(): text.get_window_extent() for text in axes.texts[:-1]}
    middle = {k: (box.y0 + box.y1) / 2 for k, box in boxes.items()}
    assert sorted(middle, key=middle.__getitem__) == sorted(ends, key=ends.__getitem__)
    gaps = np.diff(sorted(middle.values()))
    assert gaps.min() > 0.9 * 14 / 72 * 200  # one line of 14 points
    want = axes.transData.transform((1, 5.0))[1]
    assert abs(middle["d"] - want) < 10
    assert all(frame.x0 < box.x0 and box.x1 < frame.x1 for box in boxes.values())
    colors = {text.get_color() for text in axes.texts[:-1]}
    assert colors == {line.get_color() for line in axes.lines}
    assert len(colors) == 5


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_spread_apart_keeps_order_and_stays_below_the_top(heights):
    heights = np.array(heights)
    spread = spread_apart(heights, 0.1)
    order = np.argsort(heights, kind="stable")
    assert (np.diff(spread[order]) >= 0.1 - 1e-9).all()
    assert spread.max() <= 1
    if len(heights) == 1 or np.diff(heights[order]).min() >= 0.1:
        np.testing.assert_allclose(spread, heights, rtol=0, atol=1e-15)  # rounding alone


def test_curves_limits_hold_the_start_on_a_logarithmic_axis():
    x, y = noisy(3000)
    low, high = curves({"a": (x, y)}, **LABELS, logx=True).axes[0].get_ylim()
    assert low < y.min() < y.max() < high


def test_curves_axis_scales():
    assert curves({"a": noisy(50)}, **LABELS, logx=True).axes[0].get_xscale() == "log"
    axes = curves({"a": ([1, 2, 3], [3.0, 2.0, 1.0])}, **LABELS).axes[0]
    assert all(tick == round(tick) for tick in axes.get_xticks())  # no epoch 1.5


@pytest.mark.parametrize(
    ("series", "message"),
    [
        ({}, "at least one curve, got none"),
        ({"a": ([1, 2], [1.0])}, r"one shape \(n,\).* got \(2,\) and \(1,\).* for 'a'"),
        ({"a": ([[1]], [[1.0]])}, r"one shape \(n,\)"),
        ({"a": ([1, 2], [np.nan, np.inf])}, "0 finite, for 'a': fix it or leave it out"),
        ({"a": ([0, 1], [1.0, 2.0])}, "x > 0, got 0 for 'a': count from 1"),
    ],
)
def test_curves_reject_bad_series(series, message):
    with pytest.raises(ValueError, match=message):
        curves(series, **LABELS, logx=True)


# Latent space


def cloud(dimension, n=300):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, n)
    means = 3 * rng.standard_normal((10, dimension))[labels] + rng.standard_normal((n, dimension))
    return torch.tensor(means), torch.tensor(labels)


def in_order(rows):
    return np.array(sorted(np.asarray(rows).tolist()))


def test_latent_scatter_draws_two_dimensions_unchanged():
    means, labels = cloud(2)
    axes = latent_scatter(means, labels, title="Means").axes[0]
    points = axes.collections[0]
    np.testing.assert_array_equal(in_order(points.get_offsets()), in_order(means))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("latent dimension 1", "latent dimension 2")
    assert axes.get_title(loc="left") == "Means"
    assert axes.get_aspect() == 1
    # One color per class, and the badge of the class has it.
    label_at = {tuple(m): int(k) for m, k in zip(means.tolist(), labels, strict=True)}
    edges = axes.collections[1].get_edgecolors()
    badges = {text.get_text(): tuple(edge) for text, edge in zip(axes.texts, edges, strict=True)}
    for xy, color in zip(points.get_offsets().tolist(), points.get_facecolors(), strict=True):
        assert tuple(color[:3]) == badges[str(label_at[tuple(xy)])][:3]
    assert len(set(badges.values())) == 10


@pytest.mark.parametrize("dimension", [3, 8])
def test_principal_components_agree_with_sklearn(dimension):
    means, labels = cloud(dimension)
    axes = latent_scatter(means, labels).axes[0]
    pca = PCA(2).fit(means.numpy())
    want = pca.transform(means.numpy())
    points, shares = principal_components(means.numpy())
    np.testing.assert_allclose(shares, pca.explained_variance_ratio_, rtol=1e-10)
    np.testing.assert_allclose(np.abs(points), np.abs(want), rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(in_order(axes.collections[0].get_offsets()), in_order(points))
    for k, name in enumerate([axes.get_xlabel(), axes.get_ylabel()]):
        share = pca.explained_variance_ratio_[k]
        assert name == f"component {k + 1} ({share:.0%} of the variance)"


def test_latent_scatter_numbers_are_at_medians_and_apart():
    means = torch.tensor([[0.0, 0.0], [1, 0], [8, 3], [10, 10], [10, 10], [10, 10]]).double()
    axes = latent_scatter(means, torch.tensor([3, 3, 3, 5, 5, 7])).axes[0]
    places = {text.get_text(): text.get_position() for text in axes.texts}
    np.testing.assert_allclose(places["3"], [1, 0], atol=1e-12)
    np.testing.assert_allclose(places["5"], [10, 10])
    assert places["7"][0] == pytest.approx(10)
    badges = axes.collections[1]
    np.testing.assert_allclose(badges.get_offsets(), list(places.values()))
    y5, y7 = (axes.transData.transform(places[label])[1] for label in "57")
    assert y7 - y5 > 0.98 * badges.get_sizes()[0] ** 0.5 / 72 * 200  # a diameter


@pytest.mark.parametrize("dimension", [2, 3])
def test_latent_scatter_draws_collapsed_means(dimension):
    texts = latent_scatter(torch.ones(4, dimension), torch.tensor([0, 0, 1, 1])).axes[0].texts
    assert [text.get_text() for text in texts] == ["0", "1"]


@pytest.mark.parametrize(
    ("means", "labels", "message"),
    [
        (torch.rand(5, 1), torch.zeros(5), r"D >= 2, got \(5, 1\): .* draw a histogram"),
        (torch.rand(5), torch.zeros(5), r"\(N, D\).* got \(5,\)"),
        (torch.rand(5, 2), torch.zeros(4), r"labels \(5,\) of integers, got \(4,\)"),
        (
            torch.rand(2, 2),
            torch.tensor([0.0, 0.5]),
            r"integers, got \(2,\) torch.float64: pass",
        ),
        (torch.full((5, 2), torch.nan), torch.zeros(5), "finite means, got nan or inf"),
    ],
)
def test_latent_scatter_rejects_bad_means_and_labels(means, labels, message):
    with pytest.raises(ValueError, match=message):
        latent_scatter(means, labels.double())


# All figures


def test_save_figure_writes_the_same_bytes_without_software_name(tmp_path):
    for i, (one, two) in enumerate(zip(every_figure(), every_figure(), strict=True)):
        files = [
            save_figure(figure, tmp_path / f"new/{i}/{name}.png").read_bytes()
            for name, figure in {"one": one, "again": one, "two": two}.items()
        ]
        assert files[0] == files[1] == files[2]
        assert files[0].startswith(b"\x89PNG")
        assert not any(word in files[0] for word in (b"Software", b"matplotlib", b"tEXt", b"tIME"))


def test_save_figure_writes_png_only(tmp_path):
    with pytest.raises(ValueError, match=r"ends in \.png, got .*grid\.pdf: rename it"):
        save_figure(image_grid(images(1)), tmp_path / "new" / "grid.pdf")
    assert not (tmp_path / "new").exists()


def test_plotting_changes_no_global_state(tmp_path):
    code = f"""
import sys, numpy, torch
from tinyvae.plotting import *
assert "matplotlib" not in sys.modules, "matplotlib is imported by the first figure"
x = torch.rand(4, 1, 8, 8)
before = repr(numpy.random.get_state()), torch.get_rng_state()
for figure in (
    image_grid(x),
    image_rows({{"x": x}}),
    curves({{"a": (range(600), range(600))}}, xlabel="x", ylabel="y"),
    latent_scatter(x[:, 0, 0], torch.arange(4)),
):
    save_figure(figure, {str(tmp_path / "x.png")!r})
assert "matplotlib.pyplot" not in sys.modules, "pyplot"
matplotlib = sys.modules["matplotlib"]
assert dict(matplotlib.rcParams) == dict(matplotlib.rcParamsOrig), "rcParams"
assert repr(numpy.random.get_state()) == before[0], "numpy.random"
assert torch.equal(torch.get_rng_state(), before[1]), "torch"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_plotting_without_matplotlib_names_the_remedy(monkeypatch):
    monkeypatch.delitem(sys.modules, "tinyvae.plotting._figure", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for draw in (
        lambda: image_grid(images(1)),
        lambda: image_rows({"x": images(1)}),
        lambda: curves({"a": ([1], [1.0])}, **LABELS),
        lambda: latent_scatter(*cloud(2)),
    ):
        with pytest.raises(ImportError, match=r"pip install 'tinyvae\[examples\]'"):
            draw()


@pytest.mark.parametrize("draw", ["curves", "latent_scatter"])
def test_title_fits_the_figure(draw):
    title = "Posterior means\n" + "of a title that says at some length what the data are " * 2
    if draw == "curves":
        figure = curves({"a": ([1, 2], [1.0, 2.0])}, xlabel="x", ylabel="y", title=title)
    else:
        figure = latent_scatter(torch.randn(20, 2), torch.arange(20) % 4, title=title)
    (axes,) = figure.axes
    text = axes.get_title(loc="left")
    assert text.split() == title.split()
    extent = axes._left_title.get_window_extent()
    assert extent.x1 <= figure.bbox.width
    assert extent.y1 <= figure.bbox.height


def test_figure_is_an_image_in_a_notebook():
    assert image_grid(images(1))._repr_png_()[1:4] == b"PNG"
