"""Values that are known only by bounds: survival regression, support, encoder input, models."""

import math

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch
from helpers.cases import for_each
from torch import nn

from tinyvae import (
    ELBO,
    IWAE,
    MLP,
    VAE,
    CategoricalLikelihood,
    GaussianEncoder,
    GaussianLikelihood,
    Optimization,
    Trainer,
    evaluate,
    impute,
)
from tinyvae.likelihoods import (
    CensoredLikelihood,
    LaplaceLikelihood,
    Learned,
    LogitNormalLikelihood,
    LogNormalLikelihood,
    MaskedLikelihood,
    MixtureLikelihood,
    PoissonLikelihood,
    SelfMasking,
    StandardizedLikelihood,
    StudentTLikelihood,
)

pytestmark = pytest.mark.usefixtures("float64")
INF, NAN = math.inf, math.nan


def survival(num_rows=400):
    """Return a covariate, and log-normal times of which the long ones are right-censored."""
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(num_rows, generator=generator)
    noise = torch.randn(num_rows, generator=generator)
    time = torch.exp(0.5 + 0.8 * u + 0.6 * noise)
    end = 4 * torch.rand(num_rows, generator=generator)
    high = time.masked_fill(time > end, INF)
    return u, torch.stack([torch.minimum(time, end), high], -1).unsqueeze(1)  # (N, 1, 2)


def test_survival_regression_has_the_maximum_of_scipy():
    u, x = survival()
    low, is_censored = x[:, 0, 0].numpy(), torch.isinf(x[:, 0, 1]).numpy()
    assert 0.3 < is_censored.mean() < 0.7

    def minus_log_likelihood(theta):
        d = scipy.stats.lognorm(np.exp(theta[2]), scale=np.exp(theta[0] + theta[1] * u.numpy()))
        return -np.where(is_censored, d.logsf(low), d.logpdf(low)).sum()

    best = scipy.optimize.minimize(minus_log_likelihood, np.zeros(3))
    likelihood = CensoredLikelihood(LogNormalLikelihood(Learned())).double()
    coefficients = nn.Parameter(torch.zeros(2))
    parameters = [coefficients, *likelihood.parameters()]
    optimizer = torch.optim.LBFGS(parameters, max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        mean_log = (coefficients[0] + coefficients[1] * u).unsqueeze(1)
        loss = -likelihood(mean_log, event_ndim=1).log_prob(x).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert closure().item() == pytest.approx(best.fun, rel=1e-8)
    std = likelihood(torch.zeros(1), 1).base.base.log_distribution.stddev.item()
    got = [*coefficients.tolist(), math.log(std)]
    assert got == pytest.approx(best.x.tolist(), abs=1e-3)
    # Censored times that count as exact ones bias the fit.
    naive = scipy.stats.linregress(u, np.log(low))
    assert abs(naive.intercept - 0.5) > 0.3
    assert abs(got[0] - 0.5) < 0.1


# Data ---------------------------------------------------------------------------------------------

PAIRS = torch.tensor(
    [[[0.5, 0.5], [1.0, INF]], [[-INF, 2.0], [1.0, 3.0]], [[-INF, INF], [4.0, 4.0]]],
    dtype=torch.float64,
)


def test_encoder_input_has_a_value_and_two_flags():
    likelihood = CensoredLikelihood(GaussianLikelihood())
    assert likelihood.input_shape((2, 2)) == (6,)
    assert likelihood.param_shape((2, 2)) == (2,)
    want = [[0.5, 1, 1, 1, 1, 0], [2, 2, 0, 1, 1, 1], [0, 4, 0, 1, 0, 1]]
    assert likelihood.encoder_input(PAIRS).tolist() == want
    masked = MaskedLikelihood(likelihood)
    missing = PAIRS.clone()
    missing[0, 0] = NAN
    assert masked.encoder_input(missing)[0].tolist() == [0, 1, 0, 1, 0, 0]
    assert masked.num_dims(missing).tolist() == [1, 2, 2]


@for_each(
    ("likelihood", "pair"),
    [
        (GaussianLikelihood(), [2.0, 1.0]),
        (GaussianLikelihood(), [INF, INF]),
        (GaussianLikelihood(), [-INF, -INF]),
        (GaussianLikelihood(), [NAN, 1.0]),
        (LogNormalLikelihood(), [0.0, 0.0]),
        (LogNormalLikelihood(), [-INF, 0.0]),
        (CategoricalLikelihood(3, ordered=True), [3.0, 3.0]),
    ],
)
def test_pairs_without_density_or_mass_are_refused(likelihood, pair):
    censored = CensoredLikelihood(likelihood)
    x = torch.tensor([[[1.0, 1.0]], [pair]])
    with pytest.raises(ValueError, match=r"expects pairs low <= high of .*1 of 2"):
        censored.check_support(x)
    assert censored.in_support(x).all(-1).flatten().tolist() == [True, False]


def test_data_without_pairs_are_refused():
    with pytest.raises(ValueError, match=r"expects data \(N, \*E, 2\) of pairs .* torch.stack"):
        CensoredLikelihood(GaussianLikelihood()).check_support(torch.zeros(5, 3))


@for_each("wrap", [StandardizedLikelihood, lambda p: MixtureLikelihood(p, num_components=2)])
def test_other_wrappers_refuse_pairs(wrap):
    with pytest.raises(TypeError, match="got CensoredLikelihood: put it outside of the others"):
        wrap(CensoredLikelihood(GaussianLikelihood()))


def test_mechanism_refuses_pairs():
    with pytest.raises(TypeError, match="expects exact values, got CensoredLikelihood"):
        MaskedLikelihood(CensoredLikelihood(GaussianLikelihood()), mechanism=SelfMasking())


# Models -------------------------------------------------------------------------------------------

FAMILIES = {
    "gaussian": GaussianLikelihood(),
    "laplace": LaplaceLikelihood(),
    "logit-normal": LogitNormalLikelihood(0.5, low=-1.0, high=9.0),
    "log-normal": LogNormalLikelihood("predicted"),
    "standardized per column": StandardizedLikelihood(
        GaussianLikelihood(Learned((2,))), mean=[1.0, 2.0], std=[2.0, 0.5]
    ),
    "mixture": MixtureLikelihood(GaussianLikelihood(), num_components=2),
}


def make_vae(likelihood):
    encoder = GaussianEncoder(MLP(likelihood.input_shape((2, 2)), (8,)), 1)
    return VAE(encoder, MLP(1, (8,)), likelihood, data_shape=(2, 2)).double()


@for_each("name", FAMILIES)
@for_each("is_masked", [False, True])
def test_every_family_trains_on_pairs(name, is_masked):
    likelihood = CensoredLikelihood(FAMILIES[name])
    likelihood = MaskedLikelihood(likelihood) if is_masked else likelihood
    x = PAIRS.repeat(10, 1, 1) + torch.rand(30, 1, 1)
    if is_masked:
        x[::4, 1] = NAN
    vae = make_vae(likelihood)
    vae.init_output_bias(x)
    trainer = Trainer(vae, ELBO(), device="cpu", progress=False)
    trainer.fit(x, epochs=2, batch_size=10)
    report = evaluate(vae, x, elbo_samples=2, importance_samples=4)
    assert math.isfinite(report.elbo.mean)
    assert report.is_discrete is None
    draws = vae.sample(7)
    assert draws.shape == vae.reconstruct(x)[:7].shape == (7, 2, 2)
    assert torch.equal(draws[..., 0], draws[..., 1])
    if is_masked:
        filled = impute(vae, x, num_samples=20)
        assert torch.equal(filled[1], x[1])  # bounds stay
        assert torch.isfinite(filled[0, 1]).all()
        assert filled[0, 1, 0] == filled[0, 1, 1]


@for_each("likelihood", [StudentTLikelihood(), PoissonLikelihood()])
def test_family_without_a_distribution_function_is_refused_before_training(likelihood):
    vae = make_vae(CensoredLikelihood(likelihood))
    x = torch.ones(10, 2, 2)
    with pytest.raises((TypeError, ValueError), match="no distribution function"):
        Trainer(vae, ELBO(), device="cpu", progress=False).fit(x, epochs=1)


@pytest.mark.slow
def test_censored_model_recovers_the_mean_that_a_detection_limit_hides():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(3000, 1, generator=generator)
    value = 0.8 * z + 0.6 * torch.randn(3000, 2, generator=generator)
    limit = 0.2
    low = value.masked_fill(value < limit, -INF)
    x = torch.stack([low, value.clamp(min=limit)], -1)
    x[:, 0] = value[:, :1]
    vae = make_vae(CensoredLikelihood(GaussianLikelihood(Learned((2,)))))
    options = Optimization(learning_rate=3e-3)
    trainer = Trainer(vae, IWAE(5), optimization=options, device="cpu", progress=False)
    trainer.fit(x, epochs=30, batch_size=100)
    draws = vae.sample(20_000)[:, 1, 0]
    assert abs(draws.mean() - value[:, 1].mean()) < 0.1
    assert abs(value[:, 1].clamp(min=limit).mean() - value[:, 1].mean()) > 0.4
