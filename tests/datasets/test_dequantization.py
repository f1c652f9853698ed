import math
from dataclasses import replace

import pytest
import torch
from helpers.oracles import linear_gaussian, random_linear_gaussian
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import kstest, norm

from tinyvae import (
    ELBO,
    MLP,
    VAE,
    BernoulliLikelihood,
    CategoricalLikelihood,
    GaussianEncoder,
    GaussianLikelihood,
    Trainer,
    evaluate,
)
from tinyvae.datasets import Dequantization
from tinyvae.evaluation import Report
from tinyvae.likelihoods import (
    ContinuousBernoulliLikelihood,
    DiscretizedLogisticLikelihood,
    MaskedLikelihood,
    MixedLikelihood,
    StandardizedLikelihood,
)

pytestmark = pytest.mark.usefixtures("float64")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# The transform ------------------------------------------------------------------------------------


@given(st.integers(2, 1000), st.integers(0, 2**31))
def test_dequantization_values_are_in_the_bins_of_their_levels(num_levels, seed):
    x = torch.randint(0, num_levels, (50,))
    y = Dequantization(num_levels)(x.double(), seeded(seed))
    assert torch.equal((y * num_levels).floor(), x.double())
    assert ((y >= 0) & (y < 1)).all()


def test_dequantization_noise_is_uniform_in_a_bin():
    x = torch.randint(0, 16, (5000,))
    noise = Dequantization(16)(x.double(), seeded()) * 16 - x
    assert kstest(noise.numpy(), "uniform").pvalue > 1e-4
    assert abs(torch.corrcoef(torch.stack([noise, x.double()]))[0, 1]) < 4.5 / math.sqrt(5000)


def test_dequantization_depends_on_the_generator_alone():
    dequantize, x = Dequantization(8), torch.randint(0, 8, (3, 2, 4))
    state = torch.get_rng_state()
    one, other = dequantize(x, seeded(1)), dequantize(x, seeded(1))
    assert torch.equal(one, other)
    assert not torch.equal(dequantize(x, seeded(2)), one)
    generator = seeded(1)
    dequantize(x, generator)
    assert not torch.equal(dequantize(x, generator), one)
    assert torch.equal(torch.get_rng_state(), state)
    assert one.shape == x.shape


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.uint8, torch.float32),
        (torch.int64, torch.float32),
        (torch.bool, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_dequantization_dtypes(dtype, expected):
    x = torch.tensor([0, 1, 1]).to(dtype)
    assert Dequantization(2)(x, seeded()).dtype == expected


@pytest.mark.parametrize("num_levels", [1, 0, -3])
def test_dequantization_rejects_too_few_levels(num_levels):
    with pytest.raises(ValueError, match=f"num_levels >= 2, got {num_levels}"):
        Dequantization(num_levels)


@pytest.mark.parametrize("num_levels", [2, 16, 256])
def test_dequantization_bin_width(num_levels):
    assert Dequantization(num_levels).bin_width == 1 / num_levels


def test_dequantization_keeps_missing_levels():
    x = torch.tensor([[0.0, math.nan, 3.0]])
    assert Dequantization(4)(x, seeded()).isnan().tolist() == [[False, True, False]]


# Bits of the levels -------------------------------------------------------------------------------


def uniform_vae(num_dims=3):
    """Return a VAE with p(x given z) uniform on [0, 1] and q(z given x) equal to the prior."""
    encoder = GaussianEncoder(MLP(num_dims, (4,)), 2)
    decoder = MLP(2, hidden=(), out_shape=num_dims)
    with torch.no_grad():
        for parameter in (*encoder.head.parameters(), *decoder.parameters()):
            parameter.zero_()
    return VAE(encoder, decoder, ContinuousBernoulliLikelihood())


@pytest.mark.parametrize("num_levels", [2, 16, 255, 256])
def test_evaluate_bits_of_a_uniform_density(num_levels):
    dequantize = Dequantization(num_levels)
    x = dequantize(torch.randint(0, num_levels, (20, 3)).double(), seeded())
    report = evaluate(
        uniform_vae(), x, elbo_samples=2, importance_samples=2, bin_width=dequantize.bin_width
    )
    for estimate in (report.elbo, report.log_marginal):
        assert estimate.mean == pytest.approx(0, abs=1e-12)
        assert report.bits_per_dim(estimate) == pytest.approx(math.log2(num_levels), abs=1e-12)


def gaussian_vae(std):
    """Return a VAE with x ~ N(0.5, std^2) in each of four dimensions, for every z."""
    return linear_gaussian(torch.zeros(4, 1), torch.full((4,), 0.5), std).vae


@pytest.mark.parametrize("std", [0.1, 0.3])
def test_evaluate_bits_exceed_those_of_the_masses(std):
    """Check Jensen's inequality, with its gap by quadrature."""
    dequantize, width = Dequantization(8), 1 / 8
    levels = torch.arange(8).repeat(1000).reshape(-1, 4)[torch.randperm(2000)]
    x = dequantize(levels.double(), seeded())
    report = evaluate(
        gaussian_vae(std), x, elbo_samples=1, importance_samples=None, bin_width=width
    )
    p = norm(0.5, std)
    masses = [p.cdf((k + 1) * width) - p.cdf(k * width) for k in range(8)]
    exact = -sum(map(math.log2, masses)) / 8
    mean_nats = [
        quad(lambda y: p.logpdf(y) / width, k * width, (k + 1) * width)[0] for k in range(8)
    ]
    expected = -sum(mean_nats) / 8 / math.log(2) - math.log2(width)
    assert expected > exact
    bits = report.bits_per_dim(report.elbo)
    error = report.elbo.standard_error / 4 / math.log(2)
    assert abs(bits - expected) < 4 * error
    assert error < (expected - exact) / 4 or std == 0.3
    assert bits > exact - 4 * error


@settings(max_examples=20)
@given(st.floats(1e-3, 1e3))
def test_evaluate_bits_do_not_depend_on_units(unit):
    """Check that data and bins in other units give the same bits."""
    model = random_linear_gaussian(num_data=4)
    x = model.evidence.sample((5,))
    options = {"elbo_samples": 2, "importance_samples": 2}
    before = evaluate(model.vae, x, bin_width=0.1, **options)
    scaled = VAE(
        model.vae.encoder,
        model.vae.decoder,
        StandardizedLikelihood(model.vae.likelihood, std=unit),
    )
    after = evaluate(scaled, unit * x, bin_width=0.1 * unit, **options)
    bits = [r.bits_per_dim(r.elbo) for r in (before, after)]
    assert bits[0] == pytest.approx(bits[1], abs=1e-6)
    plain = evaluate(scaled, unit * x, **options)
    density = plain.bits_per_dim(plain.elbo)
    assert bits[1] - density == pytest.approx(-math.log2(0.1 * unit), abs=1e-9)


def test_evaluate_bits_count_observed_dimensions():
    vae = uniform_vae()
    vae.likelihood = MaskedLikelihood(ContinuousBernoulliLikelihood())
    x = torch.rand(6, 3)
    x[:3, 1] = math.nan
    report = evaluate(vae, x, elbo_samples=2, importance_samples=2, bin_width=1 / 16)
    assert report.num_dims == 2.5
    assert report.bits_per_dim(report.elbo) == pytest.approx(4, abs=1e-12)


@pytest.mark.parametrize(
    "likelihood",
    [
        BernoulliLikelihood(),
        CategoricalLikelihood(2, ordered=True),
        DiscretizedLogisticLikelihood(2, scale=0.5),
        MaskedLikelihood(BernoulliLikelihood()),
    ],
)
def test_evaluate_rejects_bin_width_for_masses(likelihood):
    vae = VAE(
        GaussianEncoder(MLP(3, (4,)), 2),
        MLP(2, (4,), out_shape=likelihood.param_shape((3,))),
        likelihood,
    )
    x = torch.randint(0, 2, (4, 3)).double()
    with pytest.raises(ValueError, match="leave it out if dimensions have masses"):
        evaluate(vae, x, bin_width=0.5)
    report = evaluate(vae, x, elbo_samples=2, importance_samples=2)
    assert report.is_discrete
    assert report.bits_unit == "exact masses"
    nats = report.elbo.mean
    assert report.bits_per_dim(report.elbo) == pytest.approx(-nats / 3 / math.log(2))


@pytest.mark.parametrize("bin_width", [0.0, -0.1, math.nan])
def test_evaluate_rejects_bin_width_of_zero(bin_width):
    with pytest.raises(ValueError, match="expects bin_width > 0"):
        evaluate(uniform_vae(), torch.rand(4, 3), bin_width=bin_width)


# Reports ------------------------------------------------------------------------------------------


def report(**options):
    options = {"elbo_samples": 2, "importance_samples": 2, **options}
    return evaluate(uniform_vae(), torch.rand(4, 3, generator=seeded()), **options)


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (lambda: report(), "a density, in the units of the data"),
        (lambda: report(bin_width=1 / 256), "levels, dequantized uniformly in bins of 0.00390625"),
        (lambda: replace(report(), is_discrete=True), "exact masses"),
    ],
)
def test_report_names_the_bits(one, words):
    one = one()
    assert isinstance(one, Report)
    assert one.bits_unit == words
    assert one.to_dict()["bits_per_dim_unit"] == words
    assert str(one).splitlines()[-1].endswith(f"bits per dimension of {words}")


def test_report_bits_are_those_of_the_levels():
    with_bins = report(bin_width=1 / 16)
    assert "4.0000 bits per dimension" in str(with_bins)
    for name in ("elbo", "log_marginal"):
        assert with_bins.to_dict()[name]["bits_per_dim"] == pytest.approx(4, abs=1e-9)
        assert report().to_dict()[name]["bits_per_dim"] == pytest.approx(0, abs=1e-9)


def test_evaluate_nats_ignore_bin_width():
    with_bins, without = report(bin_width=0.1), report()
    assert (with_bins.elbo, with_bins.log_marginal) == (without.elbo, without.log_marginal)


# In training --------------------------------------------------------------------------------------


def test_fit_draws_new_noise_per_epoch_and_repeats_it_for_a_seed():
    x = torch.randint(0, 8, (20, 3), dtype=torch.uint8)
    dequantize = Dequantization(8)
    seen = []

    def spying(levels, generator):
        seen.append(dequantize(levels, generator))
        assert torch.equal((seen[-1].double() * 8).floor(), levels.double())
        return seen[-1]

    def trained(transform):
        torch.manual_seed(0)
        vae = VAE(GaussianEncoder(MLP(3, (4,)), 2), MLP(2, (4,), out_shape=3), GaussianLikelihood())
        trainer = Trainer(vae, ELBO(), device="cpu", progress=False)
        trainer.fit(x, epochs=2, batch_size=20, transform=transform)
        return vae.state_dict()

    weights = trained(spying)
    assert len({tuple(batch.flatten().tolist()) for batch in seen}) == len(seen) >= 2
    assert all(torch.equal(t, weights[name]) for name, t in trained(dequantize).items())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32])
def test_dequantization_keeps_the_highest_levels_in_their_bins(dtype):
    x = torch.full((1_000_000,), 255).to(dtype)
    y = Dequantization(256)(x, torch.Generator().manual_seed(0))
    assert y.dtype == torch.float32
    assert torch.equal((y * 256).floor(), x.float())


def test_evaluate_bits_of_missing_data_are_none():
    vae = VAE(
        GaussianEncoder(MLP(2, (4,)), 1),
        MLP(1, (4,), out_shape=2),
        MaskedLikelihood(GaussianLikelihood()),
    )
    report = evaluate(vae, torch.full((3, 2), math.nan), elbo_samples=2, importance_samples=2)
    assert "nan bits per dimension" in str(report)


def test_evaluate_rejects_bin_width_for_tables():
    table = MixedLikelihood([("a", "number"), ("b", "count")])
    vae = VAE(GaussianEncoder(MLP(2, (4,)), 1), MLP(1, (4,), out_shape=2), table)
    x = torch.tensor([[0.5, 3.0]])
    assert "masses and densities" in str(evaluate(vae, x, elbo_samples=2, importance_samples=2))
    with pytest.raises(ValueError, match="leave it out if dimensions have masses"):
        evaluate(vae, x, bin_width=0.5)


def test_evaluate_rejects_data_without_noise():
    vae = VAE(GaussianEncoder(MLP(2, (4,)), 1), MLP(1, (4,), out_shape=2), GaussianLikelihood())
    x = torch.tensor([[0.0, 3.0], [7.0, 1.0]]) / 16
    with pytest.raises(ValueError, match="expects data with noise in the bins"):
        evaluate(vae, x, bin_width=1 / 16)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.tensor([[0, 4]]), r"levels in 0\.\.3, got 0\.\.4"),
        (torch.tensor([[-1.0, 2.0]]), r"levels in 0\.\.3, got -1\.\.2"),
        (torch.tensor([[0.0, 2 / 3]]), "got fractions: pass the levels themselves"),
    ],
)
def test_dequantization_refuses_other_scales(x, message):
    with pytest.raises(ValueError, match=message):
        Dequantization(4)(x, seeded())
