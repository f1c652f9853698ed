import copy
import math
import re

import numpy as np
import pytest
import torch
from helpers.cases import for_each
from torch import nn
from torch.autograd import gradcheck

from tinyvae import ELBO, MLP, VAE, Batch, GaussianEncoder, GaussianLikelihood, datasets, evaluate
from tinyvae.likelihoods import (
    Distance,
    FeatureDistance,
    MaskedLikelihood,
    MultiScaleSSIM,
    PerceptualLikelihood,
)
from tinyvae.testing import check_likelihood

pytestmark = pytest.mark.usefixtures("float64")


# References: the papers' formulas, with loops over windows ----------------------------------------


def gaussian_window(size, sigma):
    steps = np.arange(size) - (size - 1) / 2
    weights = np.exp(-(steps[:, None] ** 2 + steps[None, :] ** 2) / (2 * sigma**2))
    return weights / weights.sum()


def terms(x, y, weights, c1, c2):
    """Luminance, and contrast times structure, of every window of two images (H, W)."""
    size = len(weights)
    luminance, contrast = [], []
    for i in range(x.shape[0] - size + 1):
        for j in range(x.shape[1] - size + 1):
            a, b = x[i : i + size, j : j + size], y[i : i + size, j : j + size]
            mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
            var_a = (weights * (a - mean_a) ** 2).sum()
            var_b = (weights * (b - mean_b) ** 2).sum()
            both = (weights * (a - mean_a) * (b - mean_b)).sum()
            luminance.append((2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1))
            contrast.append((2 * both + c2) / (var_a + var_b + c2))
    return np.array(luminance), np.array(contrast)


def halved(x):
    rows, columns = (size // 2 for size in x.shape)
    small = np.empty((rows, columns))
    for i in range(rows):
        for j in range(columns):
            small[i, j] = x[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean()
    return small


def power(mean, exponent):
    """Power of the mean, or of its replacement if it is small or negative."""
    return (mean if mean >= 0.01 else 0.01**2 / (0.02 - mean)) ** exponent


def similarity(x, y, size, sigma, scales, max_value):
    """Multi-scale SSIM of two images of one channel."""
    weights = gaussian_window(size, sigma)
    c1, c2 = (0.01 * max_value) ** 2, (0.03 * max_value) ** 2
    exponents = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])[:scales]
    exponents /= exponents.sum()
    if scales == 1:
        luminance, contrast = terms(x, y, weights, c1, c2)
        return (luminance * contrast).mean()
    product = 1.0
    for scale in range(scales):
        luminance, contrast = terms(x, y, weights, c1, c2)
        mean = (luminance * contrast).mean() if scale == scales - 1 else contrast.mean()
        product *= power(mean, exponents[scale])
        x, y = halved(x), halved(y)
    return product


def reference(x, y, distance):
    arguments = (distance.window, distance.sigma, distance.scales, distance.max_value)
    x, y = x.numpy(), y.numpy()
    return np.array(
        [
            np.mean([1 - similarity(a[c], b[c], *arguments) for c in range(len(a))])
            for a, b in zip(x, y, strict=True)
        ]
    )


def noisy(x, size):
    return (x + size * torch.randn_like(x)).clamp(0, 1)


def images(num_images, *shape):
    """Smooth images in [0, 1] with contrasts above the noise."""
    coarse = torch.rand(num_images, shape[0], 4, 4)
    return nn.functional.interpolate(coarse, shape[1:], mode="bicubic").clamp(0, 1)


# SSIM ---------------------------------------------------------------------------------------------

CASES = [
    (MultiScaleSSIM(1, scales=1), (1, 16, 13)),
    (MultiScaleSSIM(3, scales=1), (3, 12, 12)),
    (MultiScaleSSIM(1, window=7, sigma=1.2, scales=1, max_value=255.0), (1, 14, 14)),
    (MultiScaleSSIM(1, scales=2), (1, 28, 23)),
    (MultiScaleSSIM(3, window=5, scales=3), (3, 29, 22)),
    (MultiScaleSSIM(1, window=4, sigma=0.8, scales=2), (1, 8, 8)),
    (MultiScaleSSIM(1, window=2, scales=5), (1, 33, 32)),
]


@for_each(("distance", "shape"), CASES)
@for_each("noise", [0.0, 0.01, 0.3, 5.0])
def test_ssim_agrees_with_loops_over_windows(distance, shape, noise):
    x = images(3, *shape)
    y = noisy(x, noise) if noise < 5 else torch.rand(3, *shape)
    x, y = distance.max_value * x, distance.max_value * y
    actual = distance(x, y).numpy()
    np.testing.assert_allclose(actual, reference(x, y, distance), rtol=0, atol=1e-10)
    assert actual.shape == (3,)


def test_ssim_of_opposite_images_stays_finite():
    distance = MultiScaleSSIM(1, window=5, scales=2)
    x = images(3, 1, 16, 16)
    actual = distance(x, 1 - x)
    assert (actual > 0.9).all()
    np.testing.assert_allclose(actual.numpy(), reference(x, 1 - x, distance), rtol=0, atol=1e-10)


def test_ssim_uses_the_exponents_of_the_paper():
    """Only contrasts of the finest scale differ, which has 0.0448 of 0.3304 of the exponents."""
    checks = torch.arange(16).add(torch.arange(16)[:, None]).remainder(2).double()
    x = 0.5 + 0.1 * (checks - 0.5).expand(1, 1, 16, 16)
    y = 0.5 + 0.3 * (checks - 0.5).expand(1, 1, 16, 16)  # the same means of 2 by 2 pixels
    distance = MultiScaleSSIM(1, window=2, scales=2)(x, y)
    contrast = (2 * 0.05 * 0.15 + 0.0009) / (0.05**2 + 0.15**2 + 0.0009)
    assert distance.item() == pytest.approx(1 - contrast ** (0.0448 / 0.3304), abs=1e-12)


def test_ssim_agrees_with_scikit_image():
    metrics = pytest.importorskip("skimage.metrics")
    x, y = images(1, 1, 20, 20)[0, 0], torch.rand(20, 20)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    _, full = metrics.structural_similarity(
        x.numpy(), y.numpy(), data_range=1.0, full=True, **options
    )
    expected = 1 - full[5:-5, 5:-5].mean()
    assert MultiScaleSSIM(1, scales=1)(x[None, None], y[None, None]).item() == pytest.approx(
        expected, abs=1e-10
    )


@for_each(("distance", "shape"), CASES)
@for_each("dtype", [torch.float32, torch.float64])
def test_ssim_has_the_properties_of_a_distance(distance, shape, dtype):
    x, noise = images(4, *shape).to(dtype), torch.randn(4, *shape, dtype=dtype)
    x = distance.max_value * x
    assert torch.equal(distance(x, x), torch.zeros(4, dtype=dtype))
    scaled = [distance.max_value * size * noise for size in (0.01, 0.05, 0.2, 0.8)]
    distances = torch.stack([distance(x, x + n) for n in scaled])
    assert distances.dtype == dtype
    assert (distances.diff(dim=0) > 0).all()
    assert (distances > 0).all()
    other = torch.rand(4, *shape, dtype=dtype)
    torch.testing.assert_close(distance(x, other), distance(other, x))


def test_ssim_is_accurate_in_float32():
    x = images(4, 1, 28, 28)
    distance = MultiScaleSSIM(1, scales=2)
    for size in (0.001, 0.01, 0.3):
        y = noisy(x, size)
        single = distance(x.float(), y.float()).double()
        torch.testing.assert_close(single, distance(x, y), rtol=1e-3, atol=0)


@for_each("scales", [1, 2])
def test_ssim_clamps_negative_variances(scales):
    """Values far above ``max_value`` make rounding errors larger than the constants."""
    distance = MultiScaleSSIM(1, window=5, scales=scales)
    x = torch.linspace(50, 5000, 500).float().reshape(-1, 1, 1, 1).expand(-1, 1, 12, 12)
    for y in (x + 0.1, x + 1000):
        value = distance(x, y)
        assert ((value >= 0) & (value <= (2 if scales == 1 else 1))).all()


@for_each(("distance", "shape"), CASES[3:6])
def test_ssim_gradients_agree_with_differences(distance, shape):
    x = images(1, *shape)[..., :14, :14].requires_grad_()
    small = MultiScaleSSIM(shape[0], window=3, sigma=1.0, scales=distance.scales)
    opposite = (1 - 0.8 * x.detach()).requires_grad_()
    assert gradcheck(small, (x, noisy(x.detach(), 0.2).requires_grad_()))
    assert gradcheck(small, (x, opposite))


@for_each("dtype", [torch.float32, torch.float64])
@for_each("scales", [1, 2, 3])
def test_ssim_gradients_are_finite(scales, dtype):
    distance = MultiScaleSSIM(1, window=3, scales=scales)
    random = torch.rand(1, 1, 16, 16, dtype=dtype)
    zeros, ones = torch.zeros_like(random), torch.ones_like(random)
    pairs = [(a, b) for a in (zeros, ones, random, 1 - random) for b in (zeros, ones, random)]
    for x, y in pairs:
        y = y.clone().requires_grad_()
        value = distance(x, y)
        (gradient,) = torch.autograd.grad(value.sum(), y)
        assert torch.isfinite(value).all()
        assert (value >= 0).all()
        assert torch.isfinite(gradient).all()
        if torch.equal(x, y):
            assert torch.equal(gradient, torch.zeros_like(gradient))


def test_ssim_of_opposite_images_has_a_gradient():
    x = images(1, 1, 16, 16)
    y = (1 - x).requires_grad_()
    distance = MultiScaleSSIM(1, window=5, scales=2)
    (gradient,) = torch.autograd.grad(distance(x, y).sum(), y)
    step = 1e-3 * gradient / gradient.norm()
    assert distance(x, y - step) < distance(x, y)


# Features -----------------------------------------------------------------------------------------


class TwoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        hidden = self.first(x)
        return hidden, self.second(hidden)


def test_feature_distance_is_half_the_squared_distance():
    network = TwoLayers()
    x, y = torch.randn(5, 3), torch.randn(5, 3)
    expected = np.zeros(5)
    for a, b in zip(network(x), network(y), strict=True):
        expected += 0.5 * ((a - b) ** 2).sum(1).detach().numpy()
    actual = FeatureDistance(network)(x, y).numpy()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)
    one = FeatureDistance(nn.Identity())(x, y)
    torch.testing.assert_close(one, 0.5 * (x - y).square().sum(1))


def test_feature_distance_of_identity_is_a_gaussian_without_its_constant():
    x, decoded = torch.randn(5, 3), torch.randn(4, 5, 3)
    p = PerceptualLikelihood(FeatureDistance(nn.Identity()), weight=4.0, bounds=None)(decoded, 1)
    gaussian = GaussianLikelihood(0.5)(decoded, 1)
    torch.testing.assert_close(p.log_prob(x), gaussian.log_prob(x) - gaussian.log_prob(decoded))


def test_feature_distance_gradients_agree_with_differences():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten())
    x, y = torch.randn(2, 1, 5, 5, requires_grad=True), torch.randn(2, 1, 5, 5, requires_grad=True)
    assert gradcheck(FeatureDistance(network), (x, y))


def test_feature_distance_uses_float32_under_autocast():
    distance = FeatureDistance(nn.Linear(3, 4).float())
    x = torch.randn(5, 3, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert distance(x, x + 1).dtype == torch.float32


@pytest.mark.parametrize("wrapped", [True, False], ids=["FeatureDistance", "own"])
def test_feature_distance_network_does_not_change(wrapped):
    class Own(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, x, y):
            return (self.network(x) - self.network(y)).square().sum(1)

    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Dropout())
    before = copy.deepcopy(network.state_dict())
    vae = model(PerceptualLikelihood((FeatureDistance if wrapped else Own)(network), weight=0.1))
    vae.train()
    assert vae.decoder.training
    assert not any(module.training for module in vae.likelihood.distance.network.modules())
    optimizer = torch.optim.AdamW(vae.parameters(), 0.1)
    objective, batch = ELBO(), Batch(torch.rand(6, 1, 8, 8))
    for _ in range(3):
        optimizer.zero_grad()
        objective(vae, batch).losses["model"].backward()
        optimizer.step()
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(parameter.grad is not None for parameter in vae.decoder.parameters())
    after = network.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_feature_distance_keeps_its_network_in_evaluation_mode():
    distance = FeatureDistance(nn.Dropout()).train()
    assert distance.training
    assert not distance.network.training


# The likelihood -----------------------------------------------------------------------------------


def model(likelihood, side=8):
    encoder = GaussianEncoder(MLP((1, side, side), hidden=(32,)), latent_dim=4)
    return VAE(encoder, MLP(4, hidden=(32,), out_shape=(1, side, side)), likelihood)


def ssim(weight=64.0):
    return PerceptualLikelihood(MultiScaleSSIM(1, window=4, scales=2), weight=weight)


def smooth():
    """Smooth features, so that finite differences are accurate."""
    return MLP((2, 3), hidden=(8,), out_shape=4, activation=nn.Tanh)


LIKELIHOODS = [
    (ssim(), (1, 8, 8)),
    (
        PerceptualLikelihood(
            MultiScaleSSIM(3, window=3, scales=1), weight=2.0, bounds=(0.0, 255.0)
        ),
        (3, 5, 4),
    ),
    (PerceptualLikelihood(FeatureDistance(smooth()), weight=0.5, bounds=None), (2, 3)),
]


@for_each(("likelihood", "shape"), LIKELIHOODS)
def test_perceptual_keeps_its_contract(likelihood, shape):
    check_likelihood(likelihood, shape)


def test_contract_finds_a_perceptual_likelihood_that_claims_a_density():
    class Claims(PerceptualLikelihood):
        is_density = True

    with pytest.raises(AssertionError, match=r"is_density: the likelihood's is True, .* False"):
        check_likelihood(Claims(FeatureDistance(MLP(3))))


def test_perceptual_log_prob_is_the_weighted_distance():
    likelihood, params, x = ssim(3.0), torch.randn(2, 5, 1, 8, 8), torch.rand(5, 1, 8, 8)
    p = likelihood(params, 3)
    assert (p.batch_shape, p.event_shape) == ((2, 5), (1, 8, 8))
    for k in range(2):
        for b in range(5):
            image = torch.sigmoid(params[k, b])
            expected = -3.0 * likelihood.distance(x[b][None], image[None])[0]
            torch.testing.assert_close(p.log_prob(x)[k, b], expected)
    assert torch.equal(p.mean, torch.sigmoid(params))
    assert torch.equal(p.sample((3,)), p.mean.expand(3, 2, 5, 1, 8, 8))
    many = torch.rand(4, 1, 1, 1, 8, 8)
    assert p.log_prob(many).shape == (4, 2, 5)


def test_perceptual_bounds_limit_the_decoded_image():
    params = torch.randn(5, 1, 8, 8)
    distance = MultiScaleSSIM(1, window=4, scales=1, max_value=6.0)
    decoded = PerceptualLikelihood(distance, bounds=(-1.0, 5.0))(params, 3).mean
    torch.testing.assert_close(decoded, 6 * torch.sigmoid(params) - 1)
    free = PerceptualLikelihood(distance, bounds=None)
    assert torch.equal(free(params, 3).mean, params)
    assert free.check_support(1e6 * params)


@for_each("bounds", [(0.0, 1.0), (-2.0, 6.0), None])
def test_perceptual_params_for_mean_decode_to_the_mean(bounds):
    likelihood = PerceptualLikelihood(MultiScaleSSIM(1, window=4, scales=1), bounds=bounds)
    x = torch.rand(1000, 1, 8, 8)
    params = likelihood.params_for_mean(x)
    low, high = bounds or (0.0, 0.0)
    expected = (x.sum(0) + (low + high) / 2) / 1001 if bounds else x.mean(0)
    torch.testing.assert_close(likelihood(params, 3).mean, expected)


@for_each(
    "distance",
    [lambda: MultiScaleSSIM(1, window=8, scales=1), lambda: FeatureDistance(MLP((1, 8, 8)))],
)
def test_perceptual_reports_no_bound(distance):
    vae, x = model(PerceptualLikelihood(distance())), torch.rand(6, 1, 8, 8)
    assert not vae.is_density
    assert not ELBO().is_bound(vae)
    assert ELBO().check(vae, Batch(x)).endswith("not a bound on log p(x)")
    report = evaluate(vae, x, elbo_samples=2)
    assert not report.is_bound
    assert str(report).startswith("not a bound ")
    assert ELBO().is_bound(model(GaussianLikelihood()))


def test_perceptual_training_reduces_the_distance():
    x = datasets.digits().images[:16].double() / 16
    vae = model(ssim())
    optimizer = torch.optim.Adam(vae.parameters(), 1e-2)
    objective, losses = ELBO(), []
    for _ in range(51):
        optimizer.zero_grad()
        loss = objective(vae, Batch(x)).losses["model"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    near = vae.likelihood.distance(x, vae.reconstruct(x)).mean()
    far = vae.likelihood.distance(x, vae.reconstruct(x.roll(1, 0))).mean()
    assert near < far


def test_perceptual_model_round_trips(tmp_path):
    x = torch.rand(3, 1, 8, 8)
    vae = model(ssim()).float().eval()
    vae.save(tmp_path / "ssim.safetensors")
    twin = VAE.load(tmp_path / "ssim.safetensors")
    assert repr(twin.likelihood) == repr(vae.likelihood)
    assert same_scores(vae, twin, x.float())


def test_perceptual_model_with_a_custom_network_round_trips(tmp_path):
    def network():
        return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.BatchNorm1d(72)).float()

    vae = model(PerceptualLikelihood(FeatureDistance(network()), weight=0.1)).float().eval()
    vae.save(tmp_path / "features.safetensors")
    twin = VAE.load(
        tmp_path / "features.safetensors", replace={"likelihood.distance.network": network()}
    )
    assert same_scores(vae, twin, torch.rand(3, 1, 8, 8).float())
    assert not any(p.requires_grad for p in twin.likelihood.parameters())


def same_scores(vae, twin, x):
    with torch.no_grad():
        records = [m.decode(m.encode(x).mean) for m in (vae, twin)]
    return torch.equal(records[0].log_prob(x), records[1].log_prob(x))


# Errors -------------------------------------------------------------------------------------------


@for_each(
    ("build", "message"),
    [
        (lambda: MultiScaleSSIM(0), "channels >= 1, got 0"),
        (lambda: MultiScaleSSIM(1, window=1), "window of 2 pixels or more, got 1"),
        (lambda: MultiScaleSSIM(1, scales=6), "1 to 5 scales, got 6"),
        (lambda: MultiScaleSSIM(1, scales=0), "1 to 5 scales, got 0"),
        (lambda: MultiScaleSSIM(1, sigma=0.0), "finite sigma > 0, got 0.0"),
        (lambda: MultiScaleSSIM(1, max_value=math.inf), "finite max_value > 0, got inf"),
        (lambda: ssim(weight=-1.0), "PerceptualLikelihood expects a finite weight > 0, got -1.0"),
        (lambda: PerceptualLikelihood(nn.Identity(), bounds=(1.0, 0.0)), "low < high, got"),
    ],
)
def test_constructors_reject_invalid_arguments(build, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build()


def test_constructors_reject_functions():
    with pytest.raises(
        TypeError, match=r"FeatureDistance expects a module, got a builtin_function"
    ):
        FeatureDistance(torch.sin)
    with pytest.raises(TypeError, match=r"such as MultiScaleSSIM\(channels=1\), got a builtin"):
        PerceptualLikelihood(torch.dist)


@for_each(
    ("distance", "shape", "message"),
    [
        (
            MultiScaleSSIM(1),
            (1, 28, 40),
            "at least 176 x 176, got 28 x 40: use scales=4, window=3",
        ),
        (MultiScaleSSIM(1, scales=2), (1, 8, 8), "use scales=2, window=4 or scales=1, window=8"),
        (
            MultiScaleSSIM(1, scales=2),
            (1, 22, 21),
            "at least 22 x 22, got 22 x 21: use scales=2, w",
        ),
        (MultiScaleSSIM(1), (1, 1, 8), "use another distance"),
        (MultiScaleSSIM(3), (1, 200, 200), "C = 3, got (1, 200, 200): set channels=C"),
        (MultiScaleSSIM(1), (784,), "(C, H, W) with C = 1, got (784,)"),
    ],
)
def test_check_shape_rejects_images_that_do_not_fit(distance, shape, message):
    x = torch.rand(2, *shape)
    with pytest.raises(ValueError, match=re.escape(message)):
        distance(x, x)
    with pytest.raises(ValueError, match=re.escape(message)):
        PerceptualLikelihood(distance).check_support(x)


def test_check_shape_suggests_options_that_work():
    x = torch.rand(2, 1, 28, 28)
    with pytest.raises(ValueError, match="use scales=4") as error:
        MultiScaleSSIM(1)(x, x)
    remedies = re.findall(r"scales=(\d), window=(\d+)", str(error.value))
    assert remedies == [("4", "3"), ("3", "7"), ("2", "11"), ("1", "11")]
    for scales, window in remedies:
        assert MultiScaleSSIM(1, window=int(window), scales=int(scales))(x, x).shape == (2,)


@for_each(
    ("value", "message"),
    [
        (255.0, r"numbers in \[0, 1\], got 0\.\.255.* divide gray levels by their maximum, or"),
        (-0.1, r"numbers in \[0, 1\]"),
        (math.nan, "got NaN"),
    ],
)
def test_perceptual_rejects_data_out_of_bounds(value, message):
    x = torch.zeros(2, 1, 8, 8)
    x[1, 0, 3, 3] = value
    with pytest.raises(ValueError, match=message):
        model(ssim()).check(x)


def test_perceptual_rejects_masks_and_wrong_shapes():
    with pytest.raises(TypeError, match=r"no terms of single pixels, use GaussianLikelihood\(\)"):
        MaskedLikelihood(ssim())
    with pytest.raises(ValueError, match=r"event shape \(1, 8, 8\), got \(2, 1, 8, 7\)"):
        ssim()(torch.zeros(2, 1, 8, 8), 3).log_prob(torch.zeros(2, 1, 8, 7))

    class Pixels(Distance):
        def forward(self, x, y):
            return (x - y).abs()

    p = PerceptualLikelihood(Pixels())(torch.zeros(2, 1, 8, 8), 3)
    with pytest.raises(ValueError, match=r"shape \(N,\) = \(2,\), got \(2, 1, 8, 8\): sum or aver"):
        p.log_prob(torch.zeros(2, 1, 8, 8))
