import itertools
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.cases import for_each
from helpers.oracles import (
    TwoLayers,
    linear_gaussian,
    log_evidence,
    random_linear_gaussian,
)
from torch import nn

from tinyvae import (
    MLP,
    VAE,
    BernoulliLikelihood,
    GaussianEncoder,
    GaussianLikelihood,
    evaluate,
    log_marginal,
)
from tinyvae.distributions import Bernoulli, Independent, Normal
from tinyvae.evaluation import Estimate, Report
from tinyvae.likelihoods import MaskedLikelihood
from tinyvae.models import LatentTerm, LatentVariableModel, VAEOutput

pytestmark = pytest.mark.usefixtures("float64")


# Against the evidence -----------------------------------------------------------------------------


@for_each(
    "make",
    [random_linear_gaussian, lambda: TwoLayers(top_down=True), lambda: TwoLayers(top_down=False)],
)
def test_evaluate_at_exact_posterior_gives_evidence(make):
    model = make()
    x = model.evidence.sample((7,))
    vae = getattr(model, "vae", model)
    exact = model.evidence.log_prob(x)
    for num_samples in (1, 10):
        torch.testing.assert_close(log_marginal(vae, x, num_samples=num_samples), exact)
    report = evaluate(vae, x, importance_samples=3)
    assert report.log_marginal.mean == pytest.approx(exact.mean().item(), abs=1e-10)


def test_evaluate_orders_elbo_importance_sampling_and_evidence():
    model = random_linear_gaussian()
    x = model.evidence.sample((200,))
    exact = model.evidence.log_prob(x).mean().item()
    report = evaluate(model.spoil_posterior(), x, elbo_samples=500, importance_samples=5)
    assert report.elbo.mean < report.log_marginal.mean < exact
    assert report.elbo.mean == pytest.approx(report.log_likelihood.mean - report.kl.mean)


def is_error(vae, x, num_samples):
    """Return the standard error of log p(x) by importance sampling, from separate samples."""
    with torch.no_grad():
        log_weight = vae(x, num_samples=num_samples).log_weight()
    weight = (log_weight - log_weight.logsumexp(0)).exp() * num_samples  # mean 1
    return weight.std(0) / math.sqrt(num_samples)


def test_log_marginal_converges_to_the_evidence():
    model = random_linear_gaussian()
    x = model.evidence.sample((20,))
    vae = model.spoil_posterior()
    gap = (log_marginal(vae, x, num_samples=20_000) - model.evidence.log_prob(x)).abs()
    error = is_error(vae, x, 20_000)
    assert (gap < 4 * error).all()
    assert error.max() < 0.05


def binary_vae(num_latents):
    encoder = GaussianEncoder(MLP(8, hidden=(6,)), num_latents)
    decoder = MLP(num_latents, hidden=(6,), out_shape=8, activation=nn.Tanh)
    vae = VAE(encoder, decoder, BernoulliLikelihood())
    with torch.no_grad():
        for parameter in decoder.layers[2].parameters():
            parameter.mul_(3)  # p(x) far from uniform
        encoder.head.weight.mul_(0.3)
        encoder.head.bias.copy_(
            torch.tensor([0.0, 0.2]).repeat_interleave(num_latents)
        )  # a wide posterior
    return vae


@for_each("num_latents", [1, 2])
def test_log_marginal_sums_to_one_over_all_images(num_latents):
    vae = binary_vae(num_latents)
    x = torch.tensor(list(itertools.product([0.0, 1.0], repeat=8)))
    with torch.no_grad():
        log_px = log_evidence(vae, x, num_nodes=40)
        finer = log_evidence(vae, x, num_nodes=80)
    assert log_px.exp().sum().item() == pytest.approx(1, abs=1e-10)
    torch.testing.assert_close(log_px, finer, rtol=0, atol=1e-6)
    assert log_px.std() > 0.5
    estimate = log_marginal(vae, x, num_samples=4000)
    assert ((estimate - finer).abs() < 4.5 * is_error(vae, x, 4000)).all()
    total = estimate.exp().sum().item()
    assert total == pytest.approx(1, abs=0.02)


def frey_faces():
    root = Path(__file__).parents[2]
    folders = [root / "../shared/data/freyfaces", root / "data/freyfaces"]
    found = [folder / "freyfaces.npy" for folder in folders if (folder / "freyfaces.npy").exists()]
    if not found:
        pytest.skip(f"no freyfaces.npy in {' or '.join(map(os.fspath, folders))}")
    return torch.from_numpy(np.load(found[0])).double() / 255


@for_each(
    ("num_latents", "nats"), [(2, 555.82779), (5, 667.68661), (10, 754.55074), (20, 861.56946)]
)
def test_log_marginal_of_probabilistic_pca(num_latents, nats):
    """A linear VAE with the closed-form weights of Tipping and Bishop (1999)."""
    x = frey_faces()
    bias = x.mean(0)
    values, vectors = torch.linalg.eigh((x - bias).T @ (x - bias) / len(x))  # ascending
    noise = values[:-num_latents].mean()
    scale = (values[-num_latents:] - noise).sqrt()
    model = linear_gaussian(vectors[:, -num_latents:] * scale, bias, noise.sqrt().item())
    report = evaluate(model.vae, x, elbo_samples=1, importance_samples=2)
    exact = model.evidence.log_prob(x).mean().item()
    assert exact == pytest.approx(nats, abs=1e-5)
    assert report.log_marginal.mean == pytest.approx(exact, abs=1e-6)
    assert report.num_dims == 560


# Chunks, seeds, global state ----------------------------------------------------------------------


class Tabulated(LatentVariableModel):
    """Model whose k-th sample of ``x[i, 0]`` has the log weight ``table[k, x[i, 0]]``."""

    is_density = True

    def __init__(self, num_draws, num_examples):
        super().__init__()
        self.table = torch.randn(num_draws, num_examples) * 5
        self.drawn = torch.zeros(num_examples, dtype=torch.long)
        self.calls = []

    def forward(self, x, context=None, *, mask=None, num_samples=1):
        index = x[:, 0].long()
        assert context is None or torch.equal(context[:, 0], x[:, 0])
        self.calls.append((num_samples, len(x)))
        draws = self.drawn[index] + torch.arange(num_samples)[:, None]
        self.drawn[index] += num_samples
        log_px = self.table[draws, index]
        mean = x[:, :1] / 10
        posterior = Independent(Normal(mean, torch.zeros_like(mean)), 1)
        prior = Independent(Normal(torch.zeros(1), torch.zeros(1)), 1)
        z = torch.zeros(num_samples, *mean.shape)
        return VAEOutput((LatentTerm("z", z, posterior, prior),), posterior, log_px)

    def check(self, x, context=None, *, mask=None):
        before = self.drawn.clone()
        record = self(x, context)
        self.drawn = before
        self.calls.clear()
        return record


def in_chunks_of(monkeypatch, elements):
    monkeypatch.setattr("tinyvae.evaluation.importance.CHUNK_ELEMENTS", elements)


@for_each("elements", [1, 12, 40, 150, 10**6])
@for_each("with_context", [False, True])
def test_evaluate_does_not_depend_on_chunks(monkeypatch, elements, with_context):
    model = Tabulated(16, 7)
    x = torch.arange(7.0)[:, None].repeat(1, 4)  # (7, 4)
    context = x[:, :2] if with_context else None
    table, shift = model.table, x[:, 0] ** 2 / 200  # log p(z) - log q(z) at z = 0 is the KL here
    in_chunks_of(monkeypatch, elements)
    report = evaluate(model, x, context, elbo_samples=5, importance_samples=11, latents=False)
    weights = (table[5:] + shift).numpy()
    evidence = np.log(np.exp(weights).mean(0))
    elbo = (table[:5].mean(0) - shift).numpy()
    assert report.log_marginal.mean == pytest.approx(evidence.mean(), abs=1e-12)
    assert report.elbo.mean == pytest.approx(elbo.mean(), abs=1e-12)
    assert report.elbo.standard_error == pytest.approx(elbo.std(ddof=1) / 7**0.5, abs=1e-12)
    assert report.kl.mean == pytest.approx(shift.mean().item(), abs=1e-12)
    sizes = [k * b * 4 for k, b in model.calls]
    assert all(size <= max(elements, 4) for size in sizes)
    assert sum(k * b for k, b in model.calls) == 7 * 16


def dropout_vae():
    encoder = GaussianEncoder(nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.5)), 2, features=6)
    return VAE(encoder, MLP(2, hidden=(), out_shape=5), GaussianLikelihood(0.5))


def test_evaluate_is_reproducible():
    vae, x = dropout_vae(), torch.randn(6, 5)
    options = {"elbo_samples": 3, "importance_samples": 4}
    first = evaluate(vae, x, **options)
    assert evaluate(vae, x, **options) == first
    other = evaluate(vae, x, seed=1, **options)
    assert other.log_likelihood.mean != first.log_likelihood.mean
    assert other.log_marginal.mean != first.log_marginal.mean
    assert other.kl == first.kl  # the closed form has no noise


@for_each(
    "call",
    [
        lambda vae, x: log_marginal(vae, x, num_samples=3),
        lambda vae, x: evaluate(vae, x, elbo_samples=2, importance_samples=3),
        lambda vae, x: vae.check(x),
    ],
)
def test_evaluate_leaves_no_trace(call):
    vae, x = dropout_vae(), torch.randn(6, 5)
    vae.encoder.eval()
    modes = [m.training for m in vae.modules()]
    state, dtype = torch.get_rng_state(), torch.get_default_dtype()
    weights = {name: t.clone() for name, t in vae.state_dict().items()}
    call(vae, x)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_default_dtype() == dtype
    assert torch.is_grad_enabled()
    assert [m.training for m in vae.modules()] == modes
    assert all(torch.equal(t, weights[name]) for name, t in vae.state_dict().items())
    assert all(p.grad is None for p in vae.parameters())


def test_evaluate_uses_evaluation_mode():
    vae, x = dropout_vae(), torch.randn(6, 5)
    options = {"elbo_samples": 3, "importance_samples": 4}
    assert evaluate(vae.train(), x, **options) == evaluate(vae.eval(), x, **options)


def test_evaluate_float32_model():
    model = random_linear_gaussian()
    x = model.evidence.sample((7,))
    exact = model.evidence.log_prob(x)
    estimate = log_marginal(model.vae.float(), x.float(), num_samples=10)
    assert estimate.dtype == torch.float32
    torch.testing.assert_close(estimate.double(), exact, rtol=1e-5, atol=1e-5)


def test_evaluate_uses_importance_examples():
    model = random_linear_gaussian()
    x = model.evidence.sample((7,))
    report = evaluate(model.vae, x, importance_samples=2, importance_examples=3)
    assert (report.elbo.num_examples, report.log_marginal.num_examples) == (7, 3)
    exact = model.evidence.log_prob(x[:3]).mean().item()
    assert report.log_marginal.mean == pytest.approx(exact, abs=1e-10)


@for_each(
    ("call", "message"),
    [
        (lambda vae, x: log_marginal(vae, x, num_samples=0), "num_samples >= 1, got 0"),
        (lambda vae, x: evaluate(vae, x, elbo_samples=0), "elbo_samples >= 1, got 0"),
        (lambda vae, x: evaluate(vae, x, importance_samples=0), "importance_samples >= 1, got 0"),
        (lambda vae, x: evaluate(vae, x * math.nan), "NaN"),
        (lambda vae, x: evaluate(vae, x[:, :3]), "encoder does not accept"),
    ],
)
def test_evaluate_refuses_invalid_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call(dropout_vae(), torch.randn(6, 5))


# The report ---------------------------------------------------------------------------------------


def test_estimate_agrees_with_numpy():
    values = np.random.default_rng(0).normal(size=50)
    estimate = Estimate.of(torch.from_numpy(values))
    assert estimate.mean == pytest.approx(values.mean(), abs=1e-14)
    assert estimate.standard_error == pytest.approx(values.std(ddof=1) / math.sqrt(50), abs=1e-14)
    assert estimate.num_examples == 50
    assert str(Estimate(-1.234, 0.056, 1000)) == "-1.23 +- 0.06 (1,000 examples)"


def test_estimate_of_one_example_has_no_error():
    estimate = Estimate.of(torch.tensor([3.0]))
    assert estimate.mean == 3.0
    assert math.isnan(estimate.standard_error)


def test_estimate_averages_float32_in_float64():
    values = torch.full((10_001,), 0.1, dtype=torch.float32)
    values[0] = 1e7
    expected = values.double().mean().item()
    assert Estimate.of(values).mean == pytest.approx(expected, rel=1e-15)


def small_report(is_bound=True):
    return Report(
        elbo=Estimate(-90.0, 0.3, 100, 784, 0.02, 64),
        log_likelihood=Estimate(-70.0, 0.2, 100, 784, num_samples=64),
        kl=Estimate(20.0, 0.1, 100, 784, num_samples=64),
        log_marginal=Estimate(-85.0, 0.4, 50, 784, 0.0001, 5000),
        is_bound=is_bound,
        seed=3,
    )


def test_report_bits_per_dim():
    def bits(nats):
        return small_report().bits_per_dim(Estimate(nats, 0.1, 100, num_dims=784))

    assert bits(-784 * math.log(2)) == pytest.approx(1, abs=1e-15)
    assert bits(560.0) < 0  # a density may exceed one
    with pytest.raises(TypeError, match="expects an Estimate"):
        small_report().bits_per_dim(-90.0)


@for_each("by_mask", [False, True])
def test_report_divides_by_the_dimensions_of_the_same_examples(by_mask):
    """Bits of the first examples do not depend on what others lack."""
    x = torch.rand(6, 4).round()
    observed = torch.tensor([[True] * 4] * 2 + [[True] + [False] * 3] * 4)
    encoder = GaussianEncoder(nn.Linear(4, 6), 2, features=6)
    vae = VAE(encoder, MLP(2, out_shape=4), MaskedLikelihood(BernoulliLikelihood()))
    with torch.no_grad():  # each entry has one bit
        for parameter in vae.decoder.parameters():
            parameter.zero_()
    options = {"elbo_samples": 2, "importance_samples": 2000, "importance_examples": 2}
    data = (x, {"mask": observed}) if by_mask else (x.masked_fill(~observed, math.nan), {})
    report = evaluate(vae, data[0], **data[1], **options)
    assert (report.num_dims, report.log_marginal.num_dims) == (2.0, 4)
    assert report.bits_per_dim(report.log_likelihood) == pytest.approx(1, abs=1e-12)
    bits = -report.log_marginal.mean / 4 / math.log(2)
    assert report.bits_per_dim(report.log_marginal) == bits == pytest.approx(1, abs=0.02)
    assert report.to_dict()["log_marginal"]["bits_per_dim"] == bits
    assert f"{bits:.4f} bits" in str(report)


def test_report_as_a_dictionary():
    def row(estimate, **bits):
        return {
            "nats": estimate.mean,
            "standard_error_nats": estimate.standard_error,
            "monte_carlo_error_nats": pytest.approx(estimate.monte_carlo_error, nan_ok=True),
            "num_examples": estimate.num_examples,
            "num_dims": 784,
            "num_samples": estimate.num_samples,
            **bits,
        }

    bits = {nats: pytest.approx(-nats / 784 / math.log(2)) for nats in (-90.0, -85.0)}
    report = small_report()
    assert report.to_dict() == {
        "elbo": row(report.elbo, bits_per_dim=bits[-90.0]),
        "log_likelihood": row(report.log_likelihood),
        "kl": row(report.kl),
        "iwae": None,
        "log_marginal": row(report.log_marginal, bits_per_dim=bits[-85.0]),
        "weights": None,
        "latents": {},
        "num_dims": 784,
        "bits_per_dim_unit": "a density, in the units of the data",
        "bits_measured": None,
        "is_bound": True,
        "is_discrete": False,
        "bin_width": None,
        "seed": 3,
        "data_digest": "",
    }


def test_report_as_text():
    lines = [
        "                                       nats std. error   MC error  examples",
        "ELBO (64 draws)                      -90.00      0.300      0.020       100",
        "  log-likelihood (-distortion)       -70.00      0.200                  100",
        "  KL (rate)                           20.00      0.100                  100",
        "log p(x) (IS, 5,000 draws)           -85.00      0.400      1e-04        50",
        "0.1564 bits per dimension of a density, in the units of the data",
    ]
    assert str(small_report()).splitlines() == lines
    lines[0] = "not a bound" + lines[0][11:]
    assert str(small_report(is_bound=False)).splitlines() == lines


def test_report_as_html():
    html = replace(small_report(), bits_measured=120.5)._repr_html_()
    assert html.count("<tr>") == 5
    assert "<td>-85.00</td><td>0.400</td><td>1e-04</td>" in html
    assert "120.50 bits per datum in a file, 129.84 by the ELBO" in html


def test_report_without_the_evidence():
    report = replace(small_report(), log_marginal=None)
    lines = str(small_report()).splitlines()
    bits = lines[-1].replace("0.1564", "0.1656")  # bits of the ELBO
    assert str(report).splitlines() == [*lines[:4], bits]


def test_evaluate_without_importance_samples():
    vae, x = dropout_vae(), torch.randn(6, 5)
    report = evaluate(vae, x, elbo_samples=3, importance_samples=None)
    whole = evaluate(vae, x, elbo_samples=3, importance_samples=2)
    assert report == replace(whole, log_marginal=None)


def test_report_saves_and_loads(tmp_path):
    model = random_linear_gaussian()
    x = model.evidence.sample((9,))
    report = evaluate(model.spoil_posterior(), x, elbo_samples=1, importance_samples=60)
    report = report.with_estimate("annealed", Estimate.of(torch.randn(9), num_samples=3))
    report = replace(report, bits_measured=3.25)
    report.save(tmp_path / "report.json")
    loaded = Report.load(tmp_path / "report.json")
    assert str(loaded) == str(report)
    assert str(loaded.to_dict()) == str(report.to_dict())  # NaN is not equal to itself
    for name, estimate in report.estimates().items():
        assert torch.equal(loaded.estimates()[name].values, estimate.values)
    assert torch.equal(loaded.weights.pareto_k, report.weights.pareto_k)
    (tmp_path / "other.json").write_text('{"format_version": 0}')
    with pytest.raises(ValueError, match="format 1, got 0: evaluate again"):
        Report.load(tmp_path / "other.json")


def test_report_is_bound():
    vae, x = dropout_vae(), torch.randn(6, 5)
    options = {"elbo_samples": 2, "importance_samples": 2}
    assert evaluate(vae, x, **options).is_bound
    vae.encoder.is_density = False
    assert not evaluate(vae, x, **options).is_bound


def test_evaluate_stays_below_the_entropy_bound():
    """A decoder that ignores z gives the evidence of a constant Bernoulli."""
    vae = binary_vae(2)
    with torch.no_grad():
        vae.decoder.layers[2].weight.zero_()
    x = (torch.rand(6, 8) > 0.5).double()
    exact = Independent(Bernoulli(vae.decoder.layers[2].bias), 1).log_prob(x)
    estimate = log_marginal(vae, x, num_samples=20_000)
    assert ((estimate - exact).abs() < 4 * is_error(vae, x, 20_000) + 1e-12).all()


def test_evaluate_casts_data_to_the_dtype_of_the_model(float64):
    model = random_linear_gaussian(num_data=5).vae.float()
    x = torch.randn(3, 5)
    assert x.dtype == torch.float64
    assert log_marginal(model, x, num_samples=10).dtype == torch.float32
    options = {"elbo_samples": 2, "importance_samples": 10}
    assert evaluate(model, x, **options) == evaluate(model, x.float(), **options)
