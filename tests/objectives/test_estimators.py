"""Gradient estimators: unbiased as documented, and zero at the exact posterior."""

import itertools
import math

import pytest
import torch
from helpers.cases import for_each
from helpers.oracles import exact_iwae, gauss_hermite, one_latent, random_linear_gaussian
from torch import nn

from tinyvae import (
    ELBO,
    IWAE,
    MLP,
    VAE,
    Batch,
    BottomUpVAE,
    Encoder,
    GaussianEncoder,
    GaussianLikelihood,
    LadderVAE,
    StandardNormal,
)
from tinyvae.distributions import Independent, Normal, OneHotCategorical, ReshapedBatch
from tinyvae.encoders import CategoricalEncoder, FlowEncoder, JointEncoder
from tinyvae.flows import Flow
from tinyvae.objectives import CIWAE, PIWAE, TVO, MultiplyIWAE, RenyiBound
from tinyvae.priors import CategoricalPrior, JointPrior

pytestmark = pytest.mark.usefixtures("float64")

MEAN, LOG_STD = 0.4, 0.5 * math.log(2 / 3)


def per_draw_gradients(objective, rows, weight=1.0):
    """Return gradients ``(rows, 3)`` of each example's bound in mean, log std and weight."""
    vae = one_latent(rows, MEAN, LOG_STD, weight)
    (-objective(vae, Batch(torch.ones(rows, 1))).losses["model"]).backward()
    parameters = (vae.encoder.mean, vae.encoder.log_std, vae.decoder.weight)
    return rows * torch.cat([parameter.grad for parameter in parameters], 1)


def exact_gradient(num_samples, weight=1.0):
    """Return the gradient of IWAE_K in the same three numbers by quadrature."""
    numbers = [torch.tensor(v, requires_grad=True) for v in (MEAN, LOG_STD, weight)]
    value = exact_iwae(*numbers, num_samples)
    return torch.stack(torch.autograd.grad(value, numbers))


def assert_mean(draws, expected):
    error = draws.std(0) / math.sqrt(len(draws))
    assert ((draws.mean(0) - expected).abs() < 4 * error + 1e-12).all(), (draws.mean(0), expected)


# Reparameterized draws ----------------------------------------------------------------------------


@for_each("estimator", ["pathwise", "dreg"])
@for_each("num_samples", [1, 2, 5, 20])
def test_iwae_gradient_is_unbiased(estimator, num_samples):
    draws = per_draw_gradients(IWAE(num_samples, estimator=estimator), 40_000)
    assert_mean(draws, exact_gradient(num_samples))


def test_stl_is_biased_for_several_samples():
    """For K = 2 the expected STL gradient in the mean is 0.169 instead of 0.0768."""
    draws = per_draw_gradients(IWAE(2, estimator="stl"), 40_000)
    assert_mean(per_draw_gradients(IWAE(1, estimator="stl"), 40_000), exact_gradient(1))
    assert draws[:, 0].mean().item() == pytest.approx(0.169, abs=0.005)
    assert exact_gradient(2)[0].item() == pytest.approx(0.0768, abs=1e-4)
    assert_mean(draws[:, 2:], exact_gradient(2)[2:])  # the decoder's gradient is the bound's


@for_each("estimator", ["pathwise", "stl", "dreg"])
def test_elbo_gradient_is_unbiased(estimator):
    objective = ELBO(num_samples=3, kl="auto" if estimator == "stl" else "sample")
    objective.estimator = estimator
    assert_mean(per_draw_gradients(objective, 40_000), exact_gradient(1))


def test_dreg_equals_stl_for_one_sample():
    results = []
    for estimator in ("stl", "dreg"):
        torch.manual_seed(0)
        results.append(per_draw_gradients(IWAE(1, estimator=estimator), 50))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


OTHERS = {
    "multiply": lambda e: MultiplyIWAE(3, num_bounds=2, estimator=e),
    "ciwae": lambda e: CIWAE(4, elbo_weight=0.3, estimator=e),
    "renyi .5": lambda e: RenyiBound(4, alpha=0.5, estimator=e),
    "renyi 2": lambda e: RenyiBound(4, alpha=2.0, estimator=e),
    "renyi -1": lambda e: RenyiBound(4, alpha=-1.0, estimator=e),
    "tvo": lambda e: TVO(4, num_partitions=3, smallest=0.1, estimator=e),
    "beta": lambda e: IWAE(4, beta=0.6, estimator=e),
}


BIASED = ("multiply", "ciwae", "renyi .5", "renyi -1", "tvo")


@for_each("name", OTHERS)
def test_dreg_has_the_mean_of_the_pathwise_gradient(name):
    draws = [per_draw_gradients(OTHERS[name](e), 200_000) for e in ("pathwise", "dreg")]
    means = [d.mean(0) for d in draws]
    errors = [d.std(0) / math.sqrt(len(d)) for d in draws]
    assert ((means[0] - means[1]).abs() < 4 * (errors[0] ** 2 + errors[1] ** 2).sqrt()).all()
    assert (errors[1][:2] < errors[0][:2]).all()
    if name in BIASED:  # DReG differs from the gradient without the score
        stl = per_draw_gradients(OTHERS[name]("stl"), 200_000)[:, :2]
        assert ((stl.mean(0) - means[1][:2]).abs() > 8 * errors[1][:2]).any()


def test_piwae_losses_have_unbiased_gradients():
    rows = 40_000
    vae = one_latent(rows, MEAN, LOG_STD)
    losses = PIWAE(2, num_bounds=3, estimator="dreg")(vae, Batch(torch.ones(rows, 1))).losses
    posterior = torch.autograd.grad(losses["posterior"], vae.encoder.mean, retain_graph=True)[0]
    assert_mean(-rows * posterior, exact_gradient(2)[0])
    generative = torch.autograd.grad(losses["generative"], vae.decoder.weight)[0]
    assert_mean(-rows * generative, exact_gradient(6)[2])


def slope(num_samples, ratios):
    x, y = (torch.tensor([math.log(v) for v in values]) for values in (num_samples, ratios))
    x, y = x - x.mean(), y - y.mean()
    return ((x * y).sum() / (x * x).sum()).item()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("estimator", "number", "expected"),
    [("pathwise", 2, 0.5), ("pathwise", 0, -0.5), ("dreg", 0, 0.5), ("dreg", 2, 0.5)],
)
def test_signal_to_noise_ratio_of_gradients(estimator, number, expected):
    """|mean| / std grows as K^0.5 for the decoder, K^-0.5 for the encoder, K^0.5 with DReG."""
    sizes, ratios = (16, 32, 64, 128, 256), []
    for num_samples in sizes:
        draws = per_draw_gradients(IWAE(num_samples, estimator=estimator), 10_000)
        ratios.append((exact_gradient(num_samples)[number].abs() / draws[:, number].std()).item())
    assert slope(sizes, ratios) == pytest.approx(expected, abs=0.1)


def encoder_gradient(vae, objective, x, parts=("encoder",)):
    vae.zero_grad()
    objective(vae, Batch(x)).losses["model"].backward()
    modules = [vae.get_submodule(name) for name in parts]
    grads = [p.grad for m in modules for p in m.parameters() if p.grad is not None]
    return max(g.abs().max().item() for g in grads)


QUIET = {
    "elbo stl": ELBO(estimator="stl", num_samples=2),
    "elbo dreg": ELBO(estimator="dreg"),
    "stl": IWAE(4, estimator="stl"),
    "dreg": IWAE(4, estimator="dreg"),
    "multiply": MultiplyIWAE(4, num_bounds=2, estimator="dreg"),
    "ciwae": CIWAE(4, elbo_weight=0.3, estimator="dreg"),
    "renyi": RenyiBound(4, alpha=0.5, estimator="dreg"),
    "tvo": TVO(4, num_partitions=3, estimator="dreg"),
}


@for_each("name", QUIET)
def test_stl_and_dreg_vanish_at_the_exact_posterior(name):
    model = random_linear_gaussian()
    for _ in range(5):
        x = model.evidence.sample((6,))
        assert encoder_gradient(model.vae, QUIET[name], x) <= 1e-12
    assert encoder_gradient(model.vae, IWAE(4), x) > 1e-3


def exact_two_layers(cls):
    """Return a model of the scalar chain z2 -> z1 -> x with exact posteriors."""
    a, s1, w, s = 0.8, 0.6, 1.3, 0.7
    generator = GaussianEncoder(nn.Identity(), 1, features=1)
    encoders = [GaussianEncoder(nn.Identity(), 1, features=1) for _ in range(2)]
    decoder = nn.Linear(1, 1)
    with torch.no_grad():
        decoder.weight.fill_(w)
        decoder.bias.zero_()
        set_head(generator, a, s1)
        if cls is BottomUpVAE:
            v1 = a**2 + s1**2  # variance of z1
            precision = 1 / v1 + w**2 / s**2
            set_head(encoders[0], w / s**2 / precision, precision**-0.5)
            precision = 1 + a**2 / s1**2
            set_head(encoders[1], a / s1**2 / precision, precision**-0.5)
        else:  # messages of x on z1, and of x on z2
            set_head(encoders[0], 1 / w, s / w)
            noise = s**2 + (w * s1) ** 2
            precision = 1 + (w * a) ** 2 / noise
            set_head(encoders[1], w * a / noise / precision, precision**-0.5)
    vae = cls(encoders, [generator], decoder, GaussianLikelihood(s))
    evidence = torch.distributions.Normal(0.0, math.sqrt(w**2 * (a**2 + s1**2) + s**2))
    return vae, evidence


def set_head(encoder, gain, std):
    encoder.head.weight.copy_(torch.tensor([[gain], [0.0]]))
    encoder.head.bias.copy_(torch.tensor([0.0, math.log(std)]))


@for_each("cls", [BottomUpVAE, LadderVAE])
@for_each("name", QUIET)
def test_stl_and_dreg_vanish_at_two_exact_posteriors(cls, name):
    vae, evidence = exact_two_layers(cls)
    x = evidence.sample((6, 1))
    log_weight = vae(x, num_samples=3).log_weight()
    torch.testing.assert_close(log_weight, evidence.log_prob(x).T.expand(3, 6), rtol=0, atol=1e-12)
    assert encoder_gradient(vae, QUIET[name], x, ("encoders",)) <= 1e-12
    assert encoder_gradient(vae, IWAE(4), x, ("encoders",)) > 1e-3


@for_each("name", QUIET)
def test_stl_and_dreg_vanish_through_a_flow(name):
    """The flow is the identity on the exact posterior."""
    model = random_linear_gaussian()
    model.vae.encoder = FlowEncoder(model.vae.encoder, Flow(2, transforms=2, kind="affine"))
    x = model.evidence.sample((6,))
    assert encoder_gradient(model.vae, QUIET[name], x) <= 1e-12
    assert encoder_gradient(model.vae, IWAE(4), x) > 1e-3


@for_each("cls", [BottomUpVAE, LadderVAE])
@for_each("estimator", ["stl", "dreg"])
def test_gradient_of_layers_is_unbiased(cls, estimator):
    """The mean gradient agrees with the pathwise one, for weights that all samples share."""
    torch.manual_seed(3)
    vae, evidence = exact_two_layers(cls)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    x = evidence.sample((1, 1)).expand(500, 1)
    make = (
        (lambda e: ELBO(kl="auto" if e == "stl" else "sample", estimator=e))
        if (estimator == "stl")
        else (lambda e: IWAE(3, estimator=e))
    )
    first, second = (replicates(vae, make(e), x, 150) for e in ("pathwise", estimator))
    error = (first.var(0) / len(first) + second.var(0) / len(second)).sqrt()
    assert ((first.mean(0) - second.mean(0)).abs() < 4 * error + 1e-12).all()


def replicates(vae, objective, x, count):
    """Return the gradients ``(count, number of weights)`` of ``count`` passes."""
    gradients = []
    for _ in range(count):
        vae.zero_grad()
        objective(vae, Batch(x)).losses["model"].backward()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in vae.parameters()]
        gradients.append(torch.cat([g.flatten() for g in grads]))
    return torch.stack(gradients)


@for_each("estimator", ["stl", "dreg"])
def test_validation_runs_one_pass(estimator):
    vae = random_linear_gaussian().vae
    calls = []
    vae.freeze_posterior = lambda *_, **__: calls.append(1)
    with torch.no_grad():
        IWAE(2, estimator=estimator)(vae, Batch(torch.randn(3, 5)))
    assert not calls


# Other draws --------------------------------------------------------------------------------------

CLASSES = 3


class RowsOfClasses(Encoder):
    """Class posteriors with separate logits for each example."""

    latent_shape = torch.Size((CLASSES,))

    def __init__(self, rows):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.3, -0.5, 1.0]).repeat(rows, 1))

    def forward(self, x, context=None):
        return OneHotCategorical(self.logits, 1)

    def config(self):
        return {}


class Table(nn.Module):
    """Decoder of classes with a separate number per class and example."""

    def __init__(self, rows):
        super().__init__()
        self.values = nn.Parameter(torch.tensor([-1.0, 0.2, 2.0]).repeat(rows, 1))

    def forward(self, z):
        return (z.reshape(-1, len(self.values), CLASSES) * self.values).sum(-1).reshape(-1, 1)


def classes_vae(rows):
    prior = CategoricalPrior(CLASSES)
    prior.latent_shape = torch.Size((CLASSES,))

    class Flat(type(StandardNormal(CLASSES))):
        def forward(self, context=None, *, encoder=None):
            return OneHotCategorical(torch.zeros(CLASSES), 1)

    return VAE(RowsOfClasses(rows), Table(rows), GaussianLikelihood(1.0), Flat(CLASSES))


def enumerated(bound, num_samples):
    """Return the bound and its gradients by the sum over all samples of K classes, for x = 1."""
    logits = torch.tensor([0.3, -0.5, 1.0], requires_grad=True)
    values = torch.tensor([-1.0, 0.2, 2.0], requires_grad=True)
    log_q = logits.log_softmax(0)
    log_px = -0.5 * (1 - values) ** 2 - 0.5 * math.log(2 * math.pi)
    log_weight = log_px - math.log(CLASSES) - log_q
    draws = torch.tensor(list(itertools.product(range(CLASSES), repeat=num_samples))).T
    probs = log_q[draws].sum(0).exp()
    expected = (probs * bound.value(log_weight[draws])).sum()
    return expected, torch.cat(torch.autograd.grad(expected, (logits, values)))


class Mean(RenyiBound):
    """The ELBO as a bound of log weights."""

    def __init__(self, num_samples):
        super().__init__(num_samples, alpha=1.0)


BOUNDS = {
    "elbo": (lambda b: ELBO(num_samples=3, kl="sample", baseline=b), Mean(3)),
    "elbo analytic": (lambda b: ELBO(num_samples=3, baseline=b), Mean(3)),
    "iwae": (lambda b: IWAE(3, baseline=b), IWAE(3)),
    "iwae 2": (lambda b: IWAE(2, baseline=b), IWAE(2)),
    "multiply": (lambda b: MultiplyIWAE(2, num_bounds=2, baseline=b), IWAE(2)),
    "ciwae": (lambda b: CIWAE(3, elbo_weight=0.3, baseline=b), CIWAE(3, elbo_weight=0.3)),
    "renyi": (lambda b: RenyiBound(3, alpha=0.5, baseline=b), RenyiBound(3, alpha=0.5)),
    "tvo": (lambda b: TVO(3, num_partitions=3, baseline=b), TVO(3, num_partitions=3)),
    "iwae dreg": (lambda b: IWAE(3, baseline=b, estimator="dreg"), IWAE(3)),
}


@for_each("name", BOUNDS)
@for_each("baseline", ["vimco", "leave_one_out"])
def test_score_gradient_of_classes_is_unbiased(name, baseline):
    make, bound = BOUNDS[name]
    rows = 40_000
    vae = classes_vae(rows)
    objective = make(baseline)
    output = objective(vae, Batch(torch.ones(rows, 1)))
    output.losses["model"].backward()
    value, gradient = enumerated(bound, bound.num_samples)
    draws = -rows * torch.cat([vae.encoder.logits.grad, vae.decoder.values.grad], 1)
    assert_mean(draws, gradient)
    reported = objective.terms(vae, Batch(torch.ones(rows, 1)))
    metric = "elbo" if name.startswith("elbo") else objective.metric
    each = reported[metric].reshape(-1, rows).mean(0)
    assert_mean(each.unsqueeze(1), value.detach())
    bias_without = gradient[:CLASSES] - draws.mean(0)[:CLASSES]
    assert gradient[:CLASSES].abs().max() > 20 * bias_without.abs().max()


@for_each("name", BOUNDS)
def test_bound_at_exact_posterior_of_classes_equals_evidence(name):
    """q(z given x) = p(z given x): every weight is p(x)."""
    vae = classes_vae(5)
    log_px = -0.5 * (1 - vae.decoder.values[0]) ** 2 - 0.5 * math.log(2 * math.pi)
    with torch.no_grad():
        vae.encoder.logits.copy_(log_px)
    evidence = (log_px.logsumexp(0) - math.log(CLASSES)).detach()
    output = BOUNDS[name][0]("vimco")(vae, Batch(torch.ones(5, 1)))
    if name != "elbo analytic":  # only its likelihood term is random
        torch.testing.assert_close(-output.losses["model"], evidence, rtol=0, atol=1e-12)
        torch.testing.assert_close(output.metrics["elbo_nats"], evidence, rtol=0, atol=1e-12)


def test_baselines_agree_with_the_paper():
    """VIMCO replaces a weight by the others' geometric mean; leave-one-out uses their bound."""
    torch.manual_seed(0)
    rows, num_samples = 4, 3
    vae, batch = classes_vae(rows), Batch(torch.ones(rows, 1))
    for baseline in ("vimco", "leave_one_out"):
        torch.manual_seed(1)
        output = vae(batch.x, num_samples=num_samples)
        log_w = output.log_weight().detach().numpy()
        term = output.latents[0]
        expected = torch.zeros(())
        for row in range(rows):
            ell = log_w[:, row]
            bound = math.log(sum(math.exp(v) for v in ell) / num_samples)
            for k in range(num_samples):
                others = [v for j, v in enumerate(ell) if j != k]
                mean = [sum(others) / len(others)]
                stand_in = others + (mean if baseline == "vimco" else [])
                without = math.log(sum(math.exp(v) for v in stand_in) / len(stand_in))
                log_q = vae.encoder.logits[row].log_softmax(0)
                expected = expected + (bound - without) * (log_q * term.z[k, row]).sum()
        direct = IWAE(num_samples).value(output.log_weight()).sum()
        (want,) = torch.autograd.grad(expected + direct, vae.encoder.logits)
        torch.manual_seed(1)
        loss = IWAE(num_samples, baseline=baseline)(vae, batch).losses["model"]
        (got,) = torch.autograd.grad(-rows * loss, vae.encoder.logits)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_baselines_reduce_the_variance():
    def spread(objective):
        vae = classes_vae(20_000)
        objective(vae, Batch(torch.ones(20_000, 1))).losses["model"].backward()
        return (20_000 * vae.encoder.logits.grad).std(0).sum()

    class Without(IWAE):
        def loss(self, batch, weights, output, num_bounds):
            signal = self.value(weights.log_px - weights.kl)
            extra = (signal.detach() * weights.log_q).sum(0)
            return -(signal + extra - extra.detach()).mean()

    for baseline in ("vimco", "leave_one_out"):
        assert spread(IWAE(3, baseline=baseline)) < 0.7 * spread(Without(3))


# Both kinds ---------------------------------------------------------------------------------------


def mixed_vae():
    encoder = JointEncoder(
        {
            "style": GaussianEncoder(nn.Identity(), 1, features=1),
            "kind": CategoricalEncoder(nn.Identity(), 2, temperature=None, features=1),
        }
    )
    prior = JointPrior({"style": StandardNormal(1), "kind": CategoricalPrior(2)})
    return VAE(encoder, nn.Linear(3, 1), GaussianLikelihood(1.0), prior)


def mixed_exact(vae, bound, num_samples, x):
    """Return the gradient of the bound by quadrature over style and enumeration of kind."""
    style, kind = vae.encode(x).parts.values()
    grid, log_mass = gauss_hermite(16, num_samples)
    kinds = torch.tensor(list(itertools.product(range(2), repeat=num_samples)))
    log_q_kind = kind.logits[0, :, 0].log_softmax(0)
    total = 0.0
    for choice in kinds:
        z = style.mean[0] + style.base.log_std[0].exp() * grid  # (n, K)
        one_hot = torch.eye(2)[choice].expand(len(grid), num_samples, 2)
        latent = torch.cat([z.unsqueeze(-1), one_hot], -1).movedim(1, 0)  # (K, n, 3)
        log_px = vae.decode(latent).log_prob(x.expand(len(grid), 1))
        log_style = -0.5 * z.T**2 + 0.5 * grid.T**2 + style.base.log_std[0]
        log_kind = (-math.log(2) - log_q_kind[choice]).unsqueeze(1)
        value = bound.value(log_px + log_style + log_kind)
        total = total + (log_mass.exp() * value).sum() * log_q_kind[choice].sum().exp()
    return gradient_of(total, vae)


def gradient_of(value, vae):
    grads = torch.autograd.grad(value, list(vae.parameters()), allow_unused=True)
    pairs = zip(grads, vae.parameters(), strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])


MIXED = {
    "elbo": (lambda: ELBO(num_samples=2), Mean(2)),
    "elbo stl": (lambda: ELBO(num_samples=2, estimator="stl"), Mean(2)),
    "pathwise": (lambda: IWAE(2), IWAE(2)),
    "dreg": (lambda: IWAE(2, estimator="dreg"), IWAE(2)),
    "leave one out": (lambda: IWAE(2, estimator="dreg", baseline="leave_one_out"), IWAE(2)),
    "renyi dreg": (lambda: RenyiBound(2, alpha=0.5, estimator="dreg"), RenyiBound(2, alpha=0.5)),
    "tvo dreg": (lambda: TVO(2, num_partitions=2, estimator="dreg"), TVO(2, num_partitions=2)),
}


@for_each("name", MIXED)
def test_gradient_of_mixed_latents_is_unbiased(name):
    torch.manual_seed(5)
    vae, x = mixed_vae(), torch.ones(1, 1)
    make, bound = MIXED[name]
    exact = mixed_exact(vae, bound, 2, x)
    draws = -replicates(vae, make(), x.expand(400, 1), 200)
    assert_mean(draws, exact)
    assert exact.abs().min() > 1e-4


class KindOfStyle(nn.Module):
    """Network from z1 to the features of the class above."""

    def forward(self, z):
        return 3.0 * z


def chain_vae():
    """z1 is Gaussian and z2 a class given z1, so the score of z2 depends on the sample of z1."""
    encoders = [
        GaussianEncoder(nn.Identity(), 1, features=1),
        CategoricalEncoder(KindOfStyle(), 2, temperature=None, features=1),
    ]
    generator = GaussianEncoder(nn.Flatten(), 1, features=2)
    return BottomUpVAE(
        encoders, [generator], nn.Linear(1, 1), GaussianLikelihood(1.0), CategoricalPrior(2)
    )


def chain_exact(vae, bound, num_samples, x):
    q1 = vae.encoders[0](x)
    grid, log_mass = gauss_hermite(100, num_samples)
    z = q1.mean[0] + q1.base.log_std[0].exp() * grid  # (n, K)
    logits = vae.encoders[1](z.reshape(-1, 1)).logits.reshape(*z.shape, 2).log_softmax(-1)
    generated = vae.generators[0](torch.eye(2).unsqueeze(-1)).base
    total = 0.0
    for choice in itertools.product(range(2), repeat=num_samples):
        kinds = torch.tensor(choice)
        log_q2 = logits[:, torch.arange(num_samples), kinds]  # (n, K)
        mean, log_std = generated.mean[kinds, 0], generated.log_std[kinds, 0]
        log_p1 = -0.5 * ((z - mean) / log_std.exp()) ** 2 - log_std
        log_px = vae.decode(z.T.unsqueeze(-1)).log_prob(x.expand(len(grid), 1))
        rest = log_p1 + 0.5 * grid**2 + q1.base.log_std[0] - math.log(2) - log_q2
        value = bound.value(log_px + rest.T)
        total = total + ((log_mass + log_q2.sum(1)).exp() * value).sum()
    return gradient_of(total, vae)


@for_each("name", ["elbo", "elbo stl", "pathwise", "dreg", "leave one out"])
def test_gradient_of_a_class_above_a_gaussian_is_unbiased(name):
    torch.manual_seed(6)
    vae, x = chain_vae(), torch.ones(1, 1)
    make, bound = MIXED[name]
    exact = chain_exact(vae, bound, 2, x)
    draws = -replicates(vae, make(), x.expand(8000, 1), 100)
    assert_mean(draws, exact)


def test_mixed_samples_keep_their_gradients():
    vae = mixed_vae()
    output = vae(torch.ones(4, 1), num_samples=2)
    style, kind = output.latents
    assert style.z.requires_grad
    assert not kind.z.requires_grad


CONSTRAINTS = [
    {"capacity": 0.3},
    {"capacity": 3.0},
    {"capacity": 3.0, "kl": "sample"},
    {"free_bits": 0.2, "free_bits_per": "layer"},
]


@for_each("option", CONSTRAINTS)
def test_score_gradient_with_constraints(option):
    """The score-function gradient of a KL term with a capacity or free bits."""
    torch.manual_seed(5)
    vae, x = mixed_vae(), torch.ones(1, 1)
    style, kind = vae.encode(x).parts.values()
    grid, log_mass = gauss_hermite(30)
    log_q = kind.logits[0, :, 0].log_softmax(0)
    log_px = 0.0
    for choice in range(2):
        z = style.mean[0] + style.base.log_std[0].exp() * grid
        latent = torch.cat([z, torch.eye(2)[choice].expand(len(grid), 2)], 1).unsqueeze(1)
        likelihood = vae.decode(latent).log_prob(x)[:, 0]
        log_px = log_px + (log_mass.exp() * likelihood).sum() * log_q[choice].exp()
    log_std = style.base.log_std[0]
    kl_style = 0.5 * ((2 * log_std).exp() - 2 * log_std + style.mean[0] ** 2 - 1).sum()
    kl_kind = (log_q.exp() * (log_q + math.log(2))).sum()
    if "capacity" in option:
        rate = (kl_style + kl_kind - option["capacity"]).abs()
    else:
        rate = kl_style.clamp(min=0.2) + kl_kind.clamp(min=0.2)
    exact = gradient_of(log_px - rate, vae)
    draws = -replicates(vae, ELBO(num_samples=3, **option), x.expand(400, 1), 200)
    assert_mean(draws, exact)


def test_gradients_do_not_depend_on_unflattening():
    """A posterior of (K, B) rows, like those of upper layers, gives the same gradients."""
    rows = Independent(Normal(torch.randn(6, 2), torch.randn(6, 2)), 1)
    values = torch.randn(3, 2, 2)
    shaped = ReshapedBatch(rows, (3, 2)).elementwise_log_prob(values)
    flat = rows.elementwise_log_prob(values.reshape(6, 2)).reshape(3, 2, 2)
    torch.testing.assert_close(shaped, flat, rtol=0, atol=0)
    summed = ReshapedBatch(rows, (3, 2)).log_prob(values)
    torch.testing.assert_close(shaped.sum(-1), summed, rtol=1e-12, atol=1e-12)


def test_mlp_vae_trains_with_classes():
    torch.manual_seed(0)
    encoder = CategoricalEncoder(MLP(4, (16,)), 4, temperature=None)
    vae = VAE(encoder, MLP((4, 1), out_shape=4), GaussianLikelihood(0.5), CategoricalPrior(4))
    x = 2 * torch.eye(4).repeat(16, 1)
    optimizer = torch.optim.Adam(vae.parameters(), 0.02)
    objective = IWAE(8)
    before = objective(vae, Batch(x)).metrics["iwae_nats"]
    for _ in range(300):
        optimizer.zero_grad()
        output = objective(vae, Batch(x))
        output.losses["model"].backward()
        optimizer.step()
    assert output.metrics["iwae_nats"] > before + 5
    assert len(vae.encode(torch.eye(4) * 2).point_estimate().argmax(1).unique()) == 4
