import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers.cases import for_each
from helpers.oracles import (
    TwoLayers,
    conjugate_normal,
    gauss_hermite,
    log_weight_at,
    one_latent,
    random_linear_gaussian,
)
from torch import nn

from tinyvae import (
    ELBO,
    MLP,
    VAE,
    Batch,
    BernoulliLikelihood,
    Encoder,
    GaussianEncoder,
    GaussianLikelihood,
    StandardNormal,
    evaluate,
)
from tinyvae.distributions import Bernoulli, Independent, TorchDistribution
from tinyvae.encoders import CategoricalEncoder, FullGaussianEncoder, JointEncoder
from tinyvae.errors import NoClosedFormError
from tinyvae.priors import CategoricalPrior, JointPrior
from tinyvae.schedules import Constant, Cosine, Linear

pytestmark = pytest.mark.usefixtures("float64")

LIKELIHOODS = {"bernoulli": BernoulliLikelihood, "gaussian": lambda: GaussianLikelihood(0.4)}


def small_vae(likelihood=BernoulliLikelihood, data=5):
    encoder = GaussianEncoder(MLP(data, hidden=(6,), activation=nn.Tanh), 2)
    return VAE(encoder, MLP(2, hidden=(6,), out_shape=data, activation=nn.Tanh), likelihood())


def binary(*shape):
    return (torch.rand(shape) > 0.5).to(torch.get_default_dtype())


def seeded(objective, model, x, context=None):
    torch.manual_seed(3)
    return objective(model, Batch(x, context))


class LaplaceEncoder(Encoder):
    """A posterior whose KL to a normal has no closed form here."""

    def __init__(self, data):
        super().__init__()
        self.latent_shape = torch.Size((2,))
        self.head = nn.Linear(data, 2)

    def forward(self, x, context=None):
        laplace = torch.distributions.Laplace(self.head(x), 0.5, validate_args=False)
        return Independent(TorchDistribution(laplace), 1)

    def config(self):
        return {"data": self.head.in_features}


def laplace_vae():
    return VAE(LaplaceEncoder(5), MLP(2, out_shape=5), BernoulliLikelihood())


# The value ----------------------------------------------------------------------------------------


def numpy_loss(vae, x, num_samples, beta, kl):
    """Return the ELBO of a small VAE by NumPy, with the same noise."""
    parameters = {name: p.detach().numpy() for name, p in vae.named_parameters()}

    def linear(name, values):
        return values @ parameters[f"{name}.weight"].T + parameters[f"{name}.bias"]

    torch.manual_seed(3)
    noise = torch.randn(num_samples, len(x), 2).numpy()
    x = x.numpy()
    features = np.tanh(linear("encoder.network.layers.0", x))
    mean, log_std = np.split(linear("encoder.head", features), 2, axis=1)
    z = mean + np.exp(log_std) * noise
    params = linear("decoder.layers.2", np.tanh(linear("decoder.layers.0", z)))
    if isinstance(vae.likelihood, BernoulliLikelihood):
        p = 1 / (1 + np.exp(-params))
        log_px = np.log(np.where(x == 1, p, 1 - p)).sum(2)
    else:
        log_px = (-(((x - params) / 0.4) ** 2) / 2 - np.log(0.4 * np.sqrt(2 * np.pi))).sum(2)
    if kl == "sample":
        log_q = -(noise**2) / 2 - log_std
        rate = (log_q + z**2 / 2).sum(2).mean(0)
    else:
        rate = (np.exp(2 * log_std) + mean**2 - 1 - 2 * log_std).sum(1) / 2
    elbo = log_px.mean() - rate.mean()
    terms = {"log_likelihood_nats": log_px.mean(), "kl_nats": rate.mean(), "elbo_nats": elbo}
    return beta * rate.mean() - log_px.mean(), terms


@for_each("likelihood", LIKELIHOODS)
@for_each("num_samples", [1, 3])
@for_each("beta", [1.0, 0.0, 4.0])
@for_each("kl", ["auto", "analytic", "sample"])
def test_elbo_agrees_with_numpy(likelihood, num_samples, beta, kl):
    vae, x = small_vae(LIKELIHOODS[likelihood]), binary(7, 5)
    output = seeded(ELBO(beta, num_samples=num_samples, kl=kl), vae, x)
    loss, terms = numpy_loss(vae, x, num_samples, beta, kl)
    assert output.losses["model"].item() == pytest.approx(loss, abs=1e-12)
    assert {n: v.item() for n, v in output.metrics.items()} == pytest.approx(terms, abs=1e-12)
    assert not any(v.requires_grad for v in output.metrics.values())


class FixedNoise:
    """An encoder with fixed samples, so that the composition of a batch changes nothing."""

    def __init__(self, vae, x):
        self.vae, self.x, self.noise = vae, x, torch.randn(3, len(x), 2)

    def loss(self, index, monkeypatch):
        monkeypatch.setattr(torch, "randn", lambda *_, **__: self.noise[:, index])
        return ELBO(num_samples=3)(self.vae, Batch(self.x[index])).losses["model"]


def test_elbo_loss_is_a_mean_over_the_batch(monkeypatch):
    fixed = FixedNoise(small_vae(), binary(6, 5))
    everything = torch.arange(6)
    loss = fixed.loss(everything, monkeypatch)
    for same in (everything.repeat(2), everything.flip(0)):
        torch.testing.assert_close(fixed.loss(same, monkeypatch), loss, rtol=1e-12, atol=1e-12)
    chunks = [fixed.loss(chunk, monkeypatch) * len(chunk) for chunk in everything.split(4)]
    torch.testing.assert_close(sum(chunks) / 6, loss, rtol=1e-12, atol=1e-12)


def test_elbo_log_likelihood_is_a_sum_over_dimensions():
    """A datum that is repeated has twice the log-likelihood."""
    once, x = small_vae(), binary(6, 5)
    twice = VAE(once.encoder, Twice(once.decoder), BernoulliLikelihood())
    twice.encoder.network = nn.Sequential(FirstHalf(), once.encoder.network)
    doubled = seeded(ELBO(), twice, x.repeat(1, 2)).metrics
    once.encoder.network = once.encoder.network[1]
    single = seeded(ELBO(), once, x).metrics
    torch.testing.assert_close(doubled["log_likelihood_nats"], 2 * single["log_likelihood_nats"])
    torch.testing.assert_close(doubled["kl_nats"], single["kl_nats"])


class Twice(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, z):
        return self.net(z).repeat(1, 2)


class FirstHalf(nn.Module):
    def forward(self, x):
        return x[:, : x.shape[1] // 2]


def test_elbo_gradients_reach_every_parameter():
    vae = small_vae(GaussianLikelihood)
    ELBO(num_samples=3)(vae, Batch(torch.randn(7, 5))).losses["model"].backward()
    assert all(p.grad.abs().max() > 0 for p in vae.parameters())


@for_each("dtype", [torch.float32, torch.float64])
@for_each("beta", [0.1, Linear(0.0, 1.0, steps=10)])
def test_elbo_has_the_dtype_of_the_model(dtype, beta):
    vae, objective = small_vae().to(dtype), ELBO(beta)
    objective.set_step(5, None)
    output = objective(vae, Batch(binary(7, 5).to(dtype)))
    assert output.losses["model"].dtype == dtype
    assert {v.dtype for n, v in output.metrics.items() if n != "beta"} == {dtype}


# Against the evidence -----------------------------------------------------------------------------


@for_each("num_samples", [1, 3])
def test_elbo_at_exact_posterior_equals_evidence(num_samples):
    model = random_linear_gaussian()
    x = model.evidence.sample((7,))
    log_px = model.evidence.log_prob(x)
    log_weight = model.vae(x, num_samples=num_samples).log_weight()
    close = {"rtol": 0, "atol": 1e-10}
    torch.testing.assert_close(log_weight, log_px.expand(num_samples, 7), **close)
    output = ELBO(num_samples=num_samples, kl="sample")(model.vae, Batch(x))
    torch.testing.assert_close(output.metrics["elbo_nats"], log_px.mean(), **close)


def expectation_noise(monkeypatch, nodes):
    """A posterior that samples quadrature nodes, so that a mean over samples is an expectation."""
    grid, log_weights = gauss_hermite(nodes)
    torch.testing.assert_close(log_weights, log_weights[:1].expand(nodes))  # equal for n = 2
    monkeypatch.setattr(torch, "randn", lambda *_, **__: grid[:, None])


@pytest.mark.parametrize("kl", ["analytic", "sample"])
@pytest.mark.parametrize("spoilt", [False, True])
def test_elbo_expectation_is_the_closed_form(monkeypatch, kl, spoilt):
    """Every term is quadratic in z, so two nodes of equal weight give the expectation."""
    model = random_linear_gaussian(num_latents=1)
    x = model.evidence.sample((7,))
    exact = model.vae.encode(x)
    vae = model.spoil_posterior() if spoilt else model.vae
    gap = 0.0
    if spoilt:  # log p(x) - ELBO = KL(q || posterior)
        scale = math.exp(0.2)
        shift = (0.3 * torch.exp(-exact.base.log_std[:1])).item()
        gap = 0.5 * (scale**2 + shift**2 - 1) - 0.2
    expectation_noise(monkeypatch, 2)
    elbo = ELBO(num_samples=2, kl=kl)(vae, Batch(x)).metrics["elbo_nats"]
    expected = model.evidence.log_prob(x).mean() - gap
    torch.testing.assert_close(elbo, expected, rtol=0, atol=1e-10)


def test_bounds_of_conjugate_normal():
    """L_1, L_2, L_3 and log p(x) of the one-dimensional model, by quadrature over the samples."""
    model = conjugate_normal()
    x, bounds = torch.ones(1, 1), []
    q = model.vae.encode(x).base
    for k in (1, 2, 3):
        noise, log_weights = gauss_hermite(60, k)  # (n, k)
        z = (q.mean + q.log_std.exp() * noise).T[..., None]  # (k, n, 1)
        log_weight = log_weight_at(model.vae, x, z)  # (k, n)
        log_mean = log_weight.logsumexp(0) - math.log(k)
        bounds.append((log_weights.exp() * log_mean).sum().item())
    assert bounds == pytest.approx([-1.5483377539, -1.5287606841, -1.5238475556], abs=1e-9)
    log_px = model.evidence.log_prob(x).item()
    assert log_px == pytest.approx(-1.5155121235, abs=1e-10)
    assert all(lower < upper for lower, upper in pairwise([*bounds, log_px]))


def test_elbo_of_conjugate_normal(monkeypatch):
    expectation_noise(monkeypatch, 2)
    elbo = ELBO(num_samples=2)(conjugate_normal().vae, Batch(torch.ones(1, 1)))
    assert elbo.metrics["elbo_nats"].item() == pytest.approx(-1.5483377539, abs=1e-9)


# Several latents ----------------------------------------------------------------------------------


@for_each("top_down", [True, False])
@for_each("num_samples", [1, 3])
def test_elbo_of_two_exact_layers_equals_evidence(top_down, num_samples):
    model = TwoLayers(top_down=top_down)
    x = model.evidence.sample((7,))
    log_px = model.evidence.log_prob(x)
    log_weight = model(x, num_samples=num_samples).log_weight()
    torch.testing.assert_close(log_weight, log_px.expand(num_samples, 7), rtol=0, atol=1e-12)
    metrics = ELBO(num_samples=num_samples, kl="sample")(model, Batch(x)).metrics
    torch.testing.assert_close(metrics["elbo_nats"], log_px.mean(), rtol=0, atol=1e-12)


def test_elbo_reports_the_kl_of_each_layer():
    model = TwoLayers(top_down=True)
    x = model.evidence.sample((7,))
    metrics = seeded(ELBO(num_samples=3), model, x).metrics
    names = {"elbo_nats", "log_likelihood_nats", "kl_nats", "kl_z1_nats", "kl_z2_nats"}
    assert metrics.keys() == names
    assert metrics["kl_nats"] == metrics["kl_z1_nats"] + metrics["kl_z2_nats"]
    torch.manual_seed(3)
    for term in model(x, num_samples=3).latents:
        q, p = (
            torch.distributions.Normal(d.base.mean, d.base.log_std.exp())
            for d in (term.posterior, term.prior)
        )
        kl = torch.distributions.kl_divergence(q, p).sum(-1).mean()
        torch.testing.assert_close(metrics[f"kl_{term.name}_nats"], kl, rtol=0, atol=1e-12)


def test_elbo_of_two_exact_layers_with_analytic_kl_equals_evidence_in_expectation():
    model = TwoLayers(top_down=True)
    x = model.evidence.sample((7,))
    output = model(x, num_samples=20_000)
    q, p = (getattr(output.latents[0], name).base for name in ("posterior", "prior"))
    kl_z1 = torch.distributions.kl_divergence(
        torch.distributions.Normal(q.mean, q.log_std.exp()),
        torch.distributions.Normal(p.mean, p.log_std.exp()),
    ).sum(-1)
    draws = output.log_px - kl_z1 - output.latents[1].kl()
    error = draws.std(0) / math.sqrt(len(draws))
    assert ((draws.mean(0) - model.evidence.log_prob(x)).abs() < 4 * error).all()
    kl = ELBO(num_samples=20_000, kl="analytic")(model, Batch(x)).metrics["kl_z1_nats"]
    assert kl.item() == pytest.approx(kl_z1.mean().item(), abs=0.01)


# Check, bound, schedules, words -------------------------------------------------------------------


@for_each(
    ("objective", "vae", "text", "is_bound"),
    [
        (ELBO(), small_vae, "ELBO, beta 1, 1 draw, analytic KL: a lower", True),
        (ELBO(kl="sample"), small_vae, "beta 1, 1 draw, sampled KL: a lower", True),
        (ELBO(num_samples=5), laplace_vae, "beta 1, 5 draws, sampled KL: a lower", True),
        (ELBO(0.5), small_vae, "beta 0.5, 1 draw, analytic KL: not a", False),
        (ELBO(Constant(1.0)), small_vae, "beta 1, 1 draw, analytic KL: a lower", True),
        (
            ELBO(Linear(0.0, 1.0, steps=5)),
            small_vae,
            "beta Linear(0, 1, steps=5), 1 draw, an",
            False,
        ),
        (ELBO(Linear(1.0, 1.0, steps=5)), small_vae, "KL: not a bound", False),
    ],
)
def test_elbo_check_describes_the_objective(objective, vae, text, is_bound):
    model = vae()
    report = objective.check(model, Batch(binary(7, 5)))
    assert text in report
    assert report.endswith("bound on log p(x)")
    assert objective.is_bound(model) is is_bound


@for_each("part", ["encoder", "likelihood"])
def test_elbo_is_no_bound_without_densities(part):
    vae = small_vae()
    getattr(vae, part).is_density = False
    assert not ELBO().is_bound(vae)
    assert "not a bound" in ELBO().check(vae, Batch(binary(7, 5)))


def test_elbo_check_of_two_layers_and_of_another_module():
    model = TwoLayers(top_down=True)
    assert "analytic KL: a lower bound" in ELBO().check(model, Batch(torch.randn(7, 4)))
    with pytest.raises(TypeError, match="ELBO expects a VAE, got a Linear"):
        ELBO().check(nn.Linear(5, 5), Batch(binary(7, 5)))


def test_elbo_check_refuses_analytic_kl_without_closed_form():
    with pytest.raises(NoClosedFormError, match=r"latent 'z' has no closed form: use kl='auto'"):
        ELBO(kl="analytic").check(laplace_vae(), Batch(binary(7, 5)))
    with pytest.raises(NoClosedFormError):
        ELBO(kl="analytic")(laplace_vae(), Batch(binary(7, 5)))


def test_elbo_auto_kl_falls_back_to_samples():
    vae, x = laplace_vae(), binary(7, 5)
    assert seeded(ELBO(), vae, x) == seeded(ELBO(kl="sample"), vae, x)


def test_elbo_refuses_a_mask():
    x = binary(7, 5)
    with pytest.raises(ValueError, match=r"wrap it, MaskedLikelihood\(BernoulliLikelihood"):
        ELBO().check(small_vae(), Batch(x, mask=torch.ones_like(x)))


def test_elbo_beta_follows_its_schedule():
    vae, x, objective = small_vae(), binary(7, 5), ELBO(Cosine(0.0, 2.0, fraction=0.5))
    for step, beta in {0: 0.0, 5: 1.0, 10: 2.0, 20: 2.0}.items():
        objective.set_step(step, 20)
        output = seeded(objective, vae, x)
        metrics = output.metrics
        expected = beta * metrics["kl_nats"] - metrics["log_likelihood_nats"]
        torch.testing.assert_close(output.losses["model"], expected, rtol=1e-12, atol=1e-12)
        assert metrics["beta"].item() == pytest.approx(beta, abs=1e-15)
        reported = metrics["log_likelihood_nats"] - metrics["kl_nats"]
        torch.testing.assert_close(metrics["elbo_nats"], reported, rtol=1e-12, atol=1e-12)
    assert metrics["beta"] is not objective.beta  # metrics do not change with the next step


def test_elbo_does_not_report_a_constant_beta():
    output = ELBO(4.0)(small_vae(), Batch(binary(7, 5)))
    assert output.losses.keys() == {"model"}
    assert output.metrics.keys() == {"elbo_nats", "log_likelihood_nats", "kl_nats"}


@for_each(
    ("options", "message"),
    [({"num_samples": 0}, "num_samples >= 1, got 0"), ({"kl": "exact"}, "'sample', got 'exact'")],
)
def test_elbo_refuses_invalid_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        ELBO(**options)


def test_elbo_repr():
    assert repr(ELBO(0.5, num_samples=3)) == "ELBO(beta=0.5, num_samples=3, kl='auto')"
    assert (
        repr(ELBO(Linear(0, 1, steps=5)))
        == "ELBO(beta=Linear(0, 1, steps=5), num_samples=1, kl='auto')"
    )


@for_each("top_down", [True, False])
def test_elbo_auto_kl_uses_the_closed_form_only_if_it_is_exact(top_down: bool):
    """At exact posteriors the ELBO is log p(x), for both directions of inference."""
    model = TwoLayers(top_down=top_down)
    x = model.evidence.sample((5,))
    elbo = ELBO(num_samples=20_000)(model, Batch(x)).metrics["elbo_nats"]
    assert abs(elbo - model.evidence.log_prob(x).mean()) < 0.02
    term = model(x).latents[0]
    assert term.has_analytic_kl is top_down
    if not top_down:
        with pytest.raises(NoClosedFormError, match="z1"):
            term.kl("analytic")


class DiscreteEncoder(Encoder):
    latent_shape = torch.Size((2,))

    def __init__(self):
        super().__init__()
        self.logits = nn.Linear(4, 2)

    def forward(self, x, context=None):
        return Independent(Bernoulli(self.logits(x)), 1)

    def config(self):
        return {}


def test_elbo_refuses_one_sample_without_rsample():
    vae = VAE(DiscreteEncoder(), nn.Linear(2, 4), BernoulliLikelihood())
    with pytest.raises(ValueError, match=r"num_samples >= 2 .*not reparameterized"):
        ELBO().check(vae, Batch(torch.ones(3, 4)))


def test_elbo_is_no_bound_without_a_proper_density():
    class Unnormalized(GaussianLikelihood):
        def forward(self, params, event_ndim, context=None):
            distribution = super().forward(params, event_ndim, context)
            distribution.is_density = False
            return distribution

    vae = small_vae(lambda: Unnormalized(0.4))
    x = torch.randn(3, 5)
    assert ELBO().check(vae, Batch(x)).endswith("not a bound on log p(x)")
    assert not evaluate(vae, x, elbo_samples=2, importance_samples=2).is_bound


def test_elbo_refuses_latents_of_equal_names():
    class Twins(TwoLayers):
        def forward(self, *args, **options):
            output = super().forward(*args, **options)
            return replace(output, latents=tuple(replace(t, name="z") for t in output.latents))

    model = Twins(top_down=True)
    x = model.evidence.sample((5,))
    metrics = ELBO(kl="sample")(model, Batch(x)).metrics
    expected = model.evidence.log_prob(x).mean()
    torch.testing.assert_close(metrics["elbo_nats"], expected, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="different names"):
        ELBO().check(model, Batch(x))


@pytest.mark.filterwarnings("ignore:BernoulliLikelihood got values between")
def test_elbo_is_no_bound_of_gray_pixels_under_bernoulli():
    vae, gray = small_vae(), torch.rand(6, 5)
    assert ELBO().check(vae, Batch(gray)).endswith("not a bound on log p(x)")
    assert not evaluate(vae, gray, elbo_samples=2, importance_samples=2).is_bound
    assert ELBO().check(vae, Batch(gray.round())).endswith("a lower bound on log p(x)")


# What is charged for the KL -----------------------------------------------------------------------


def spatial_vae(shape=(3, 2, 2)):
    encoder = GaussianEncoder(MLP(5, hidden=(6,)), shape)
    return VAE(encoder, MLP(shape, hidden=(6,), out_shape=5), GaussianLikelihood(0.4))


def mean_kl(term):
    """Return the KL to N(0, I) of each dimension, the mean over the batch."""
    q = term.posterior.base
    return 0.5 * ((2 * q.log_std).exp() + q.mean**2 - 1 - 2 * q.log_std).mean(0)


@for_each(
    ("per", "groups"),
    [
        ("dimension", lambda kl: kl),
        ("channel", lambda kl: kl.sum((1, 2))),
        ("layer", lambda kl: kl.sum()),
        (6, lambda kl: kl.reshape(2, 6).sum(1)),
        (1, lambda kl: kl),
    ],
)
@for_each("num_samples", [1, 3])
def test_elbo_free_bits_of_groups(per, groups, num_samples):
    vae, x = spatial_vae(), torch.randn(7, 5)
    each = groups(mean_kl(vae(x).latents[0])).detach()
    free = each.median().item() if each.dim() else each.item() / 2
    objective = ELBO(2.0, num_samples=num_samples, free_bits=free, free_bits_per=per)
    output = seeded(objective, vae, x)
    torch.manual_seed(3)
    log_px = vae(x, num_samples=num_samples).log_px.mean()
    torch.testing.assert_close(output.losses["model"], 2 * each.clamp(min=free).sum() - log_px)
    # Metrics report the bound without free bits.
    torch.testing.assert_close(
        output.metrics["elbo_nats"], log_px - mean_kl(vae(x).latents[0]).sum()
    )


def test_elbo_free_bits_of_sampled_terms_add_up():
    vae, x = spatial_vae((1,)), torch.randn(64, 5)
    free = ELBO(kl="sample", num_samples=3, free_bits=0.0, free_bits_per="dimension")
    got, plain = seeded(free, vae, x), seeded(ELBO(kl="sample", num_samples=3), vae, x)
    assert plain.metrics["kl_nats"] > 0
    torch.testing.assert_close(got.losses["model"], plain.losses["model"])


def test_elbo_stl_samples_only_the_kl_that_it_needs():
    """The KL of classes keeps its closed form, and so does every KL in validation."""
    encoders = {
        "style": GaussianEncoder(MLP(5), 2),
        "kind": CategoricalEncoder(MLP(5), 3, temperature=None),
    }
    prior = JointPrior({"style": StandardNormal(2), "kind": CategoricalPrior(3)})
    vae = VAE(JointEncoder(encoders), MLP(5, out_shape=5), GaussianLikelihood(0.4), prior)
    x = torch.randn(7, 5)
    objective = ELBO(num_samples=2, estimator="stl")
    assert "mixed KL, STL gradient" in objective.check(vae, Batch(x))
    metrics, plain = (seeded(o, vae, x).metrics for o in (objective, ELBO(num_samples=2)))
    assert metrics["kl_kind_nats"] == plain["kl_kind_nats"]
    assert metrics["kl_style_nats"] != plain["kl_style_nats"]
    with torch.no_grad():
        metrics, plain = (seeded(o, vae, x).metrics for o in (objective, ELBO(num_samples=2)))
    assert metrics == plain


def test_elbo_free_bits_give_no_gradient():
    """Below its free nats a dimension has only the gradient of the likelihood."""
    vae, x = spatial_vae((2,)), torch.randn(7, 5)
    head = vae.encoder.head.bias
    free = seeded(ELBO(free_bits=1e3), vae, x).losses["model"]
    none = seeded(ELBO(0.0), vae, x).losses["model"]
    pulled = seeded(ELBO(), vae, x).losses["model"]
    grads = [torch.autograd.grad(loss, head)[0] for loss in (free, none, pulled)]
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-12, atol=1e-12)
    assert (grads[0] - grads[2]).abs().max() > 1e-3


@for_each(("options", "slope"), [({"free_bits": 0.5}, 0.5), ({"capacity": 0.5}, 0.0)])
def test_elbo_gradient_at_a_kink_is_the_mean_of_both_sides(options, slope):
    vae = one_latent(1, mean=1.0, log_std=0.0, weight=0.0)
    output = ELBO(**options)(vae, Batch(torch.zeros(1, 1)))
    assert output.metrics["kl_nats"] == 0.5  # whose gradient in the mean is 1
    gradient = torch.autograd.grad(output.losses["model"], vae.encoder.mean)[0]
    torch.testing.assert_close(gradient, torch.tensor([[slope]]))


def two_latents():
    encoder = JointEncoder(
        {name: GaussianEncoder(MLP(5, hidden=(6,)), width) for name, width in (("a", 2), ("b", 3))}
    )
    prior = JointPrior({"a": StandardNormal(2), "b": StandardNormal(3)})
    return VAE(encoder, MLP(5, out_shape=5), GaussianLikelihood(0.4), prior)


@pytest.mark.parametrize(
    ("options", "rate"),
    [
        ({"capacity": 3.0}, lambda a, b: (a + b - 3).abs()),
        ({"beta": 5.0, "capacity": 30.0}, lambda a, b: 5 * (a + b - 30).abs()),
        ({"beta": {"a": 2.0, "b": 0.5}}, lambda a, b: 2 * a + 0.5 * b),
        (
            {"beta": {"b": 2.0, "a": 0.5}, "capacity": {"a": 1.0, "b": 9.0}},
            lambda a, b: 0.5 * (a - 1).abs() + 2 * (b - 9).abs(),
        ),
        (
            {"beta": 3.0, "capacity": {"a": 1.0, "b": 9.0}},
            lambda a, b: 3 * ((a - 1).abs() + (b - 9).abs()),
        ),
        (
            {"free_bits": 0.7, "free_bits_per": "layer"},
            lambda a, b: a.clamp(min=0.7) + b.clamp(min=0.7),
        ),
        ({"likelihood_weight": 0.25}, lambda a, b: a + b),
    ],
    ids=map(str, range(7)),
)
def test_elbo_weights_of_several_latents(options, rate):
    vae, x = two_latents(), torch.randn(7, 5)
    output = seeded(ELBO(**options), vae, x)
    metrics = output.metrics
    kls = metrics["kl_a_nats"], metrics["kl_b_nats"]
    weight = options.get("likelihood_weight", 1.0)
    expected = rate(*kls) - weight * metrics["log_likelihood_nats"]
    torch.testing.assert_close(output.losses["model"], expected, rtol=1e-12, atol=1e-12)
    elbo = metrics["log_likelihood_nats"] - sum(kls)
    torch.testing.assert_close(metrics["elbo_nats"], elbo, rtol=1e-12, atol=1e-12)


def test_elbo_weights_follow_schedules_and_are_reported():
    vae, x = two_latents(), torch.randn(7, 5)
    ramp = Linear(0.0, 2.0, steps=10)
    objective = ELBO({"a": ramp, "b": 1.0}, capacity={"a": 1.0, "b": ramp}, likelihood_weight=ramp)
    objective.set_step(5, None)
    metrics = seeded(objective, vae, x).metrics
    scheduled = {"beta_a": 1.0, "capacity_b": 1.0, "likelihood_weight": 1.0}
    assert {n: metrics[n].item() for n in scheduled} == scheduled
    assert "beta_b" not in metrics
    names = objective.unfinished_schedules(4, None)
    assert [name.split()[0] for name in names] == list(scheduled)


def test_elbo_constraints_couple_the_batch():
    assert not ELBO(3.0).couples_batch
    assert ELBO(capacity=1.0).couples_batch
    assert ELBO(free_bits=1.0).couples_batch


def test_elbo_check_refuses_weights_that_do_not_fit_the_latents():
    x = torch.randn(7, 5)
    with pytest.raises(ValueError, match=r"beta for the latents \['a', 'b'\], got \['a', 'c'\]"):
        ELBO({"a": 1.0, "c": 1.0}).check(two_latents(), Batch(x))
    with pytest.raises(ValueError, match=r"capacity for the latents \['z'\], got \['a'\]"):
        ELBO(capacity={"a": 1.0}).check(spatial_vae(), Batch(x))
    with pytest.raises(
        ValueError, match=r"free_bits_per=5 can divide, got 'z' .*free_bits_per='layer'"
    ):
        ELBO(free_bits=1.0, free_bits_per=5).check(spatial_vae(), Batch(x))
    full = VAE(FullGaussianEncoder(MLP(5), 2), MLP(2, out_shape=5), GaussianLikelihood())
    with pytest.raises(ValueError, match=r"free_bits_per='dimension' can divide, got 'z'"):
        ELBO(free_bits=1.0).check(full, Batch(x))
    assert "free nats per layer" in ELBO(free_bits=1.0, free_bits_per="layer").check(full, Batch(x))


def test_elbo_terms_of_several_latents():
    vae, x = two_latents(), torch.randn(7, 5)
    terms = ELBO(num_samples=3, kl="sample").terms(vae, Batch(x))
    assert {name: tuple(term.shape) for name, term in terms.items()} == {
        "log_likelihood": (3, 7),
        "kl": (3, 7),
        "kl_a": (3, 7),
        "kl_b": (3, 7),
        "elbo": (3, 7),
    }
    torch.testing.assert_close(terms["kl"], terms["kl_a"] + terms["kl_b"])
    torch.testing.assert_close(terms["elbo"], terms["log_likelihood"] - terms["kl"])
