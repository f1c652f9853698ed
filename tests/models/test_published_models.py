"""Every model on the page of models learns, and equals its published formula."""

import math
import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers.names import public_names

import tinyvae
from tinyvae import Batch
from tinyvae.datasets import digits, threshold
from tinyvae.likelihoods import MaskedLikelihood, MixedLikelihood

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore:BernoulliLikelihood got values"),
]

PAGE = (Path(__file__).parents[2] / "docs" / "models.rst").read_text()
MODELS = dict(re.findall(r"^   \* - (.+?) \(`.*?\n     - ``(.+)``$", PAGE, flags=re.MULTILINE))
(SET_UP,) = re.findall(r"\.\. code-block:: python\n\n(.*?)\n\n\.\. list-table", PAGE, re.DOTALL)


def compose(name):
    """Return model, objective and batch of a line of the page."""
    torch.manual_seed(0)
    names = public_names()
    names |= {"digits": digits, "threshold": threshold}
    exec("\n".join(line[3:] for line in SET_UP.splitlines()), names)
    model, objective = eval(MODELS[name], names)
    images = names["x"].to(torch.get_default_dtype())
    names["x"] = images
    return model.double(), objective.double(), data(name, images, names["table"])


def data(name, x, table):
    """Return the data for a model, by default zeros and ones."""
    if name == "Conditional VAE":
        return Batch(x, context=torch.eye(4).repeat(len(x) // 4, 1))
    if name == "Continuous Bernoulli VAE":
        return Batch(0.6 * x + 0.4 * torch.rand_like(x))
    if name == "Count VAE":
        return Batch((10 * x + torch.poisson(torch.full_like(x, 2.0))).round())
    if name == "HI-VAE":
        rows = {"age": [31.0, None, 54.0, 47.0] * 16, "kind": ["a", "b", "b", None] * 16}
        return Batch(table.likelihood.to_tensor(rows).double())
    if name.startswith("MIWAE"):
        return Batch(x.masked_fill(torch.rand(x.shape) < 0.3, torch.nan))
    return Batch(x)


def step(model, objective, batch, seed=1):
    torch.manual_seed(seed)
    return objective(model, batch)


def optimizers(model, objective):
    groups = objective.parameter_groups(model)
    rates = {name: 2e-4 if name == "discriminator" else 5e-3 for name in groups}
    return {name: torch.optim.Adam(group, rates[name]) for name, group in groups.items()}


def test_models_page_lists_all_models():
    assert len(MODELS) >= 45
    assert MODELS.keys() == IDENTITIES.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_published_model_learns_in_fifty_steps(name):
    model, objective, batch = compose(name)
    objective.set_step(0, 50)
    objective.check(model, batch)
    trained = optimizers(model, objective)
    bounds = [group for group in trained if group != "discriminator"]
    objective.set_step(49, 50)  # at the end of its schedules, so that losses compare
    losses = []
    for _ in range(51):
        output = step(model, objective, batch)
        losses.append(sum(output.losses[group].item() for group in bounds))
        for group, optimizer in trained.items():
            parameters = optimizer.param_groups[0]["params"]
            gradients = torch.autograd.grad(
                output.losses[group], parameters, retain_graph=True, allow_unused=True
            )
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
        for optimizer in trained.values():
            optimizer.step()
    assert losses[-1] <= losses[0] - 0.1 * abs(losses[0]), (losses[0], losses[-1])


# Identities ---------------------------------------------------------------------------------------


def close(actual, expected, atol=1e-9):
    torch.testing.assert_close(actual, torch.as_tensor(expected), rtol=1e-9, atol=atol)


def bce(logits, x):
    """Return the Bernoulli log-likelihood ``(..., B)`` from torch."""
    each = F.binary_cross_entropy_with_logits(logits, x.expand(logits.shape), reduction="none")
    return -each.flatten(-3).sum(-1)


def gaussian_kl(posterior):
    """Return the KL to N(0, I), written out."""
    mean, log_std = posterior.base.mean, posterior.base.log_std
    return 0.5 * ((2 * log_std).exp() + mean**2 - 1 - 2 * log_std).sum(-1)


class Pass:
    """One pass, its record and the objective's output, on the same noise."""

    def __init__(self, name, num_samples=1):
        self.model, self.objective, self.batch = compose(name)
        self.objective.set_step(20, 50)
        self.x = self.batch.x
        self.output = step(self.model, self.objective, self.batch)
        self.loss = self.output.losses.get("model")
        self.metrics = self.output.metrics
        torch.manual_seed(1)
        self.record = self.model(
            self.x, self.batch.context, mask=self.batch.mask, num_samples=num_samples
        )
        self.term = self.record.latents[0]
        self.log_w = self.record.log_weight()


def autoencoder(name):
    run = Pass(name)
    z = run.model.encode(run.x).mean
    close(run.loss, -bce(run.model.decoder(z), run.x).mean())
    repeated = step(run.model, run.objective, run.batch, seed=2).losses["model"]
    close(run.loss, repeated, atol=0.0)  # nothing is drawn


def plain(name, beta=1.0):
    run = Pass(name)
    kl = gaussian_kl(run.model.encode(run.x))
    likelihood = bce(run.model.decoder(run.record.draws[0][0]), run.x)
    close(run.loss, (beta * kl - likelihood).mean())


def capacity(name):
    run = Pass(name)
    kl, target = gaussian_kl(run.model.encode(run.x)).mean(), 5.0 * 20 / 49
    close(run.loss, 10 * (kl - target).abs() - run.record.log_px.mean())


def annealed(name):
    values = {0: 0.0, 12: 0.5, 24: 1.0, 40: 1.0} if name == "Annealed VAE" else {0: 0.0, 6: None}
    run = Pass(name)
    for step_index in values:
        run.objective.set_step(step_index, 49)
        output = step(run.model, run.objective, run.batch)
        beta = (
            values[step_index]
            if values[step_index] is not None
            else run.objective.beta.schedule(step_index, 49)
        )
        close(output.losses["model"], beta * output.metrics["kl_nats"] - run.record.log_px.mean())
    close(output.metrics["beta"], beta)


def free_bits(name):
    run = Pass(name)
    mean, log_std = run.term.posterior.base.mean, run.term.posterior.base.log_std
    each = 0.5 * ((2 * log_std).exp() + mean**2 - 1 - 2 * log_std).mean(0)
    close(run.loss, each.clamp(min=0.1).sum() - run.record.log_px.mean())


def jacobian_of_flow(name):
    """log q(z) is that of the noise minus the log determinant of autograd's Jacobian."""
    model, _, batch = compose(name)
    with torch.no_grad():
        for parameter in model.encoder.flow.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    posterior = model.encode(batch.x[:1])
    y = posterior.base.sample()[0]
    jacobian = torch.autograd.functional.jacobian(lambda v: posterior.transform(v[None])[0], y)
    z = posterior.transform(y[None])
    expected = posterior.base.log_prob(y[None]) - jacobian.det().abs().log()
    close(posterior.log_prob(z), expected, atol=1e-8)


def vamp(name):
    run = Pass(name)
    encoder = run.model.encoder if name == "VampPrior" else run.model.top
    posterior, z = encoder(run.model.prior.inputs), run.record.latents[-1].z
    each = torch.stack([posterior.log_prob(row) for row in z.flatten(0, 1)])  # (K B, M)
    expected = each.logsumexp(1) - math.log(each.shape[1])
    close(run.record.latents[-1].log_p.flatten(), expected)


def ladder(name):
    """q(z1 given z2, x) is the product of the message and the prior, normalized."""
    run = Pass(name)
    z1 = run.record.latents[0]
    features = run.model.encoders[0].encode(run.x)
    mean, log_std = run.model.encoders[0].location_and_scale(features)
    prior, message = (-2 * z1.prior.base.log_std).exp(), (-2 * log_std).exp()
    product_mean = (message * mean + prior * z1.prior.base.mean) / (message + prior)
    close(z1.posterior.mean, product_mean)
    close((-2 * z1.posterior.base.log_std).exp(), message + prior)


def log_mean_weight(name):
    run = Pass(name, 8)
    close(run.loss, -run.log_w.exp().mean(0).log().mean())


def multiply(name):
    run = Pass(name, 8)
    close(run.loss, -run.log_w.exp().reshape(4, 2, -1).mean(0).log().mean())


def partial(name):
    run = Pass(name, 8)
    close(run.output.losses["generative"], -run.log_w.exp().mean(0).log().mean())
    close(run.output.losses["posterior"], -run.log_w.exp().reshape(4, 2, -1).mean(0).log().mean())


def combined(name):
    run = Pass(name, 8)
    close(run.loss, -(0.05 * run.log_w.mean() + 0.95 * run.log_w.exp().mean(0).log().mean()))


def power_mean(name):
    run = Pass(name, 8)
    close(run.loss, -2 * run.log_w.exp().sqrt().mean(0).log().mean())


def riemann(name):
    run = Pass(name, 8)
    points = [0.0, *(0.03 ** (i / 4) for i in range(4, -1, -1))]
    total = 0.0
    for left, right in pairwise(points):
        total = total + (right - left) * ((left * run.log_w).softmax(0) * run.log_w).sum(0)
    close(run.loss, -total.mean())


def no_score(name):
    """The encoder's gradient is the pathwise one minus that of log q at fixed draws."""
    run = Pass(name)
    parameters = list(run.model.encoder.parameters())
    pathwise = torch.autograd.grad(-run.log_w.mean(), parameters, retain_graph=True)
    posterior, z = run.model.encode(run.x), run.term.z.detach()
    score = torch.autograd.grad(posterior.log_prob(z).mean(), parameters)
    got = torch.autograd.grad(run.loss, parameters)
    for g, w, s in zip(got, pathwise, score, strict=True):
        close(g, w - s)


def doubly(name):
    """The gradient in the draws is weighted by squares of the normalized weights."""
    run = Pass(name, 8)
    parameters = list(run.model.encoder.parameters())
    z = run.term.z
    fixed = run.model.encode(run.x)
    fixed.base._mean, fixed.base.log_std = fixed.base.mean.detach(), fixed.base.log_std.detach()
    log_w = run.record.log_px + run.term.log_p - fixed.log_prob(z)
    slope = torch.autograd.grad((log_w.softmax(0).detach() ** 2 * log_w).sum(), z)[0]
    z = run.model.encode(run.x)
    noise = (run.term.z - z.mean).detach() / z.base.log_std.exp().detach()
    drawn = z.mean + z.base.log_std.exp() * noise
    expected = torch.autograd.grad(-(slope * drawn).sum() / len(run.x), parameters)
    for g, e in zip(torch.autograd.grad(run.loss, parameters), expected, strict=True):
        close(g, e)


def one_hot(name):
    run = Pass(name, 8 if name == "VIMCO" else 1)
    assert ((run.term.z == 0) | (run.term.z == 1)).all()
    assert (run.term.z.sum(2) == 1).all()
    probs = run.term.posterior.mean
    kl = (probs * (probs * 4).log()).sum((1, 2))
    close(run.term.kl("analytic"), kl)
    assert run.term.z.requires_grad is (name != "VIMCO")


def simplex(name):
    run = Pass(name)
    close(run.term.z.sum(2), torch.ones(1, len(run.x), 3))
    close(run.loss, -run.log_w.mean())


def two_capacities(name):
    run = Pass(name)
    kls = {term.name: term.kl().mean() for term in run.record.latents}
    rate = (kls["style"] - 5.0 * 20 / 49).abs() + (kls["kind"] - 1.0).abs()
    close(run.loss, 30 * rate - run.record.log_px.mean())


def taken_apart(name):
    run = Pass(name)
    parts = [f"batch_{n}_nats" for n in ("mutual_information", "total_correlation", "dimension_kl")]
    close(sum(run.metrics[part] for part in parts), (run.term.log_q - run.term.log_p).mean())
    elbo = run.metrics["elbo_nats"]
    close(run.loss, 5.0 * run.metrics["batch_total_correlation_nats"] - elbo)


def density_ratio(name):
    run = Pass(name)
    (regularizer,) = run.objective.regularizers
    log_odds = regularizer.discriminator(run.term.z[0])
    close(run.loss, 6.0 * log_odds.mean() - run.metrics["elbo_nats"])


def covariance(name, *, total):
    run = Pass(name)
    posterior = run.term.posterior
    expected = torch.cov(posterior.mean.T)
    if total:
        expected = expected + (2 * posterior.base.log_std).exp().mean(0).diag()
    off = (expected - expected.diag().diag()).square().sum()
    diagonal = (expected.diag() - 1).square().sum()
    close(run.loss, off + (1 if total else 10) * diagonal - run.metrics["elbo_nats"])


def info(name):
    run = Pass(name)
    metrics = run.metrics
    terms = 0.5 * metrics["kl_nats"] + 9.5 * metrics["mmd"] - metrics["log_likelihood_nats"]
    close(run.loss, terms)


def wasserstein(name):
    run = Pass(name)
    squares = 0.5 * ((run.x - run.record.likelihood.mean[0]) / 0.3).square().flatten(1).sum(1)
    constant = 64 * (math.log(0.3) + 0.5 * math.log(2 * math.pi))
    close(run.loss, squares.mean() + constant + 10.0 * run.metrics["mmd"])


def fooling(name):
    run = Pass(name)
    (regularizer,) = run.objective.regularizers
    log_odds = regularizer.discriminator(run.model.encode(run.x).mean)
    close(run.loss, -F.logsigmoid(log_odds).mean() - run.metrics["log_likelihood_nats"])


def regularized(name):
    run = Pass(name)
    z = run.model.encode(run.x).mean
    terms = 0.05 * z.square().sum(1).mean() - run.metrics["log_likelihood_nats"]
    if name == "RAE-L2":
        weights = sum(p.square().sum() for p in run.model.decoder.parameters())
        close(run.loss, terms + 1e-3 * weights)
        return
    jacobian = torch.func.vmap(torch.func.jacrev(lambda v: run.model.decoder(v[None])[0]))(z)
    exact = jacobian.square().flatten(1).sum(1).mean()
    torch.manual_seed(0)
    draws = [step(run.model, run.objective, run.batch, s).losses["model"] for s in range(60)]
    draws = (torch.stack(draws) - terms).detach() / 1e-3
    assert (draws.mean() - exact).abs() < 4 * draws.std() / math.sqrt(60)


def learned_similarity(name):
    run = Pass(name)
    (regularizer,) = run.objective.regularizers
    body = regularizer.discriminator[0]
    distance = 0.5 * (body(run.x) - body(run.record.likelihood.mean[0])).square().sum(1).mean()
    fooled = run.metrics["adversarial_data"]
    close(run.loss, run.metrics["kl_nats"] + distance + 0.1 * fooled)


def perceptual(name):
    run = Pass(name)
    assert not run.objective.is_bound(run.model)
    likelihood = run.model.likelihood
    images = torch.sigmoid(run.model.decoder(run.record.draws[0][0]))
    expected = likelihood.weight * likelihood.distance(run.x, images)
    close(run.record.log_px[0], -expected)
    repeated = run.model.likelihood(run.model.decoder(run.record.draws[0][0]), 3).log_prob(images)
    close(repeated, torch.zeros(len(run.x)), atol=1e-7)


def sphere(name):
    run = Pass(name)
    close(run.term.z.norm(dim=2), torch.ones(1, len(run.x)))
    log_area = math.log(2 * math.pi**2)  # of the unit sphere in four dimensions
    close(run.term.log_p, torch.full((1, len(run.x)), -log_area))


def codes(name):
    run = Pass(name)
    levels = 2 if name.startswith("Residual") else 1
    close(run.metrics["kl_nats"], levels * 4 * math.log(16))
    losses = sum(value.mean() for value in run.record.losses().values())
    assert losses > 0
    torch.manual_seed(1)
    fresh = compose(name)[0]
    torch.manual_seed(1)
    record = fresh(run.x)
    commitment = sum(value.mean() for value in record.losses().values())
    expected = commitment + levels * 4 * math.log(16) - record.log_px.mean()
    close(step(compose(name)[0], run.objective, run.batch).losses["model"], expected)


def optimal_scale(name):
    run = Pass(name)
    decoded = run.model.decoder(run.record.draws[0][0])
    variance = (run.x - decoded).square().mean()
    expected = -0.5 * run.x.numel() * (math.log(2 * math.pi) + variance.log() + 1)
    close(run.record.log_px.sum(), expected)


def continuous_bernoulli(name):
    run = Pass(name)
    logits = run.model.decoder(run.record.draws[0][0])
    reference = torch.distributions.ContinuousBernoulli(logits=logits, validate_args=False)
    expected = reference.log_prob(run.x).flatten(1).sum(1)
    torch.testing.assert_close(run.record.log_px[0], expected, rtol=1e-5, atol=1e-3)


def mixture(name):
    run = Pass(name)
    p = run.model.prior()
    log_p = p.log_prob(run.term.z)
    nodes = torch.linspace(-12, 12, 60)
    grid = torch.cartesian_prod(nodes[::3], nodes[::3], nodes[::3], nodes[::3])
    mass = p.log_prob(grid).exp().sum() * (3 * (nodes[1] - nodes[0])) ** 4
    assert mass.item() == pytest.approx(1.0, abs=2e-2)
    close(run.loss, -(run.record.log_px + log_p - run.term.log_q).mean())


def flow_prior(name):
    """The flow starts as the identity: the plain VAE with a sampled KL."""
    run = Pass(name)
    torch.manual_seed(0)
    plain_vae = tinyvae.VAE(run.model.encoder, run.model.decoder, run.model.likelihood)
    loss = step(plain_vae, tinyvae.ELBO(kl="sample"), run.batch).losses["model"]
    close(run.loss, loss)


def conditional(name):
    run = Pass(name)
    c = run.batch.context
    features = run.model.encoder.network.network(torch.cat([run.x.flatten(1), c], 1))
    close(run.model.encode(run.x, c).mean, run.model.encoder.posterior(features).mean)
    prior = run.model.prior(c)
    assert (prior.mean[0] - prior.mean[1]).abs().max() > 1e-3
    kl = torch.distributions.kl_divergence(
        *(
            torch.distributions.Normal(d.base.mean, d.base.log_std.exp())
            for d in (run.term.posterior, prior)
        )
    ).sum(1)
    close(run.loss, kl.mean() - run.record.log_px.mean())


def counts(name):
    run = Pass(name)
    params = run.record.likelihood.base
    mean = params.mean[0]
    variance_excess = run.x.var() / run.x.mean()
    assert variance_excess > 1
    total = sum(
        run.record.likelihood.base.log_prob(torch.full_like(mean, float(n))).exp()
        for n in range(400)
    )
    torch.testing.assert_close(total[0], torch.ones_like(mean), rtol=1e-6, atol=1e-6)


def mixed_table(name):
    """Missing entries have no effect."""
    run = Pass(name)
    likelihood = run.record.likelihood
    other = torch.where(run.x.isnan(), torch.nan, run.x)
    close(likelihood.log_prob(other), run.record.log_px)
    missing = run.x.isnan()
    assert missing.any()
    assert not missing.all(1).any()
    assert run.record.log_px.isfinite().all()
    assert isinstance(run.model.likelihood, MaskedLikelihood)
    assert isinstance(run.model.likelihood.likelihood, MixedLikelihood)


def missing_data(name):
    run = Pass(name, 8)
    seen = ~run.x.isnan()
    z = run.term.z
    mean = run.model.decoder(z.flatten(0, 1)).unflatten(0, z.shape[:2])
    each = -0.5 * ((run.x.nan_to_num() - mean) / 0.3) ** 2 - math.log(0.3)
    each = torch.where(seen, each - 0.5 * math.log(2 * math.pi), 0.0)
    log_w = each.flatten(2).sum(2) + run.term.log_p - run.term.log_q
    close(run.loss, -log_w.exp().mean(0).log().mean())


IDENTITIES = {
    "Autoencoder": autoencoder,
    "VAE": plain,
    "beta-VAE": lambda name: plain(name, beta=4.0),
    "Disentangled beta-VAE": capacity,
    "Annealed VAE": annealed,
    "Cyclical annealing": annealed,
    "Free bits": free_bits,
    "VAE with planar flows": jacobian_of_flow,
    "VAE with radial flows": jacobian_of_flow,
    "IAF-VAE": jacobian_of_flow,
    "VampPrior": vamp,
    "Hierarchical VampPrior": vamp,
    "Ladder VAE": ladder,
    "IWAE": log_mean_weight,
    "IWAE of two layers": log_mean_weight,
    "Multiply IWAE (Rainforth's MIWAE)": multiply,
    "PIWAE": partial,
    "CIWAE": combined,
    "Sticking the landing": no_score,
    "DReG": doubly,
    "Variational Renyi": power_mean,
    "TVO": riemann,
    "VIMCO": one_hot,
    "Categorical VAE, straight through": one_hot,
    "Gumbel-softmax VAE": simplex,
    "JointVAE": two_capacities,
    "beta-TC-VAE": taken_apart,
    "FactorVAE": density_ratio,
    "DIP-VAE-I": lambda name: covariance(name, total=False),
    "DIP-VAE-II": lambda name: covariance(name, total=True),
    "InfoVAE": info,
    "WAE-MMD": wasserstein,
    "Adversarial autoencoder": fooling,
    "RAE-L2": regularized,
    "RAE-GP": regularized,
    "VAE-GAN": learned_similarity,
    "MS-SSIM VAE": perceptual,
    "Feature-consistent VAE": perceptual,
    "Hyperspherical VAE": sphere,
    "VQ-VAE": codes,
    "Residual VQ-VAE": codes,
    "sigma-VAE": optimal_scale,
    "Continuous Bernoulli VAE": continuous_bernoulli,
    "Gaussian-mixture prior": mixture,
    "Flow prior": flow_prior,
    "Conditional VAE": conditional,
    "Count VAE": counts,
    "HI-VAE": mixed_table,
    "MIWAE (of missing data)": missing_data,
}


@pytest.mark.parametrize("name", IDENTITIES)
def test_published_model_equals_its_formula(name):
    IDENTITIES[name](name)
