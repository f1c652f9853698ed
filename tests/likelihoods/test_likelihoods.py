import itertools
import math

import numpy as np
import pytest
import torch
from helpers.apple import MPS, in_float32, on_device
from helpers.cases import for_each
from helpers.likelihoods import (
    COLUMNS,
    LIKELIHOODS,
    Sample,
    Unconditioned,
    make_vae,
)
from helpers.oracles import log_evidence

from tinyvae import VAE, BernoulliLikelihood, CategoricalLikelihood, GaussianLikelihood
from tinyvae.likelihoods import (
    BetaBinomialLikelihood,
    BetaLikelihood,
    ContinuousBernoulliLikelihood,
    DiscretizedLogisticLikelihood,
    HurdleLikelihood,
    LaplaceLikelihood,
    LogitNormalLikelihood,
    LogNormalLikelihood,
    MixtureLikelihood,
    NegativeBinomialLikelihood,
    OneHotLikelihood,
    OrdinalLikelihood,
    PoissonLikelihood,
    StandardizedLikelihood,
    StudentTLikelihood,
    ZeroInflatedLikelihood,
)
from tinyvae.testing import check_likelihood

pytestmark = pytest.mark.usefixtures("float64")


def sample_of(name):
    family = LIKELIHOODS[name]
    return Sample(family, family.events[min(1, len(family.events) - 1)])


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_likelihood_keeps_its_contract(name):
    family = LIKELIHOODS[name]
    options = {"data_shape": family.events[0], "spread": family.spread} | dict(family.options)
    event = options["data_shape"]
    check_likelihood(
        Sample(family, event).likelihood, context=family.context and family.context(5), **options
    )


@for_each("name", LIKELIHOODS)
def test_likelihood_log_prob_agrees_with_scipy(name):
    family = LIKELIHOODS[name]
    for event in family.events:
        sample = Sample(family, event)
        likelihood = sample.likelihood
        assert likelihood.param_shape(event) == sample.param_shape
        assert likelihood.is_density
        if family.params is None:
            assert likelihood.num_params == family.num_params
            scales = [] if family.scales is None else [family.scales(event)]
            assert [p.shape for p in likelihood.parameters()] == scales
        for num_draws, batch in [(1, 5), (3, 5), (3, 1)]:
            params, x = sample.params(num_draws, batch), sample.data(batch)
            context = sample.context(batch)
            p = sample(params, context)
            expected = sample.expected(params, x, context)
            torch.testing.assert_close(p.log_prob(x), expected, rtol=1e-10, atol=1e-10)
            inputs = likelihood.encoder_input(x)
            assert inputs.shape == (batch, *likelihood.input_shape(event))
            assert inputs.isfinite().all()


@pytest.mark.slow
@for_each("name", LIKELIHOODS)
def test_likelihood_needs_no_float64(apple, name):
    sample = sample_of(name)
    likelihood = sample.likelihood.float()
    params, x = in_float32(sample.params(3, 5)), in_float32(sample.data(5))
    context = in_float32(sample.context(5))
    impossible = x.masked_fill(torch.rand(x.shape) < 0.3, -1.5)
    expected, message = sample(params, context).log_prob(x), refusal(likelihood, impossible)
    likelihood.to("mps")
    p = sample(on_device(params), on_device(context))
    torch.testing.assert_close(p.log_prob(on_device(x)).cpu(), expected, rtol=1e-4, atol=1e-4)
    assert refusal(likelihood, on_device(impossible)) == message
    assert {p.sample().device, p.mean.device} == {MPS}


def refusal(likelihood, x):
    """Return the error for data outside the support, or None."""
    try:
        likelihood.check_support(x)
    except ValueError as error:
        return str(error)
    return None


@for_each("name", LIKELIHOODS)
def test_likelihood_converted_from_float32_is_exact(name):
    sample = sample_of(name)
    torch.set_default_dtype(torch.float32)
    converted = sample.family.make(sample.event)
    torch.set_default_dtype(torch.float64)
    converted = converted.double().eval()
    learned = [name for name, _ in converted.named_parameters()] + ["mean_square"]
    state = sample.likelihood.state_dict()
    converted.load_state_dict({n: state[n] for n in state if n in learned}, strict=False)
    params, x, context = sample.params(3, 5), sample.data(5), sample.context(5)
    got = converted(params, len(sample.event), context).log_prob(x)
    torch.testing.assert_close(got, sample(params, context).log_prob(x), rtol=1e-14, atol=0)


@for_each("name", LIKELIHOODS)
def test_likelihood_parameters_for_the_mean(name):
    sample = sample_of(name)
    x = sample.data(400)
    params = sample.likelihood.params_for_mean(x)
    assert params.shape == sample.param_shape
    got = sample(params[None], sample.context(1)).mean[0]
    off = (got - torch.nanmean(x, 0)).abs() / sample.observed(400).std(0)
    has_log_normal = "-normal" in name or "mixed" in name  # keeps the mean of log x
    assert (off < (0.4 if has_log_normal else 0.06)).all()


def name_in_errors(sample):
    """Name that errors about the support start with: that of the innermost likelihood."""
    inner = sample.likelihood
    outermost = (HurdleLikelihood, StandardizedLikelihood)  # they know the units of the data
    while hasattr(inner, "likelihood") and not isinstance(inner, outermost):
        inner = inner.likelihood
    return sample.family.name_in_errors or type(inner).__name__


@for_each("name", LIKELIHOODS)
def test_check_support_rejects_values_outside_the_support(name):
    sample = sample_of(name)
    for index in np.ndindex(sample.event):
        flat_index = int(np.ravel_multi_index(index, sample.event))
        support = sample.support(flat_index)
        for value in (math.nan, math.inf, -math.inf, *support.outside):
            x = sample.observed(5)
            x[([1, 3], *index)] = value
            if math.isnan(value) and sample.is_masked:
                assert sample.likelihood.check_support(x) is True
                continue
            message = (
                rf"{name_in_errors(sample)} expects .* in 2 of 5 examples, first in example 1: "
            )
            with pytest.raises(ValueError, match=message) as error:
                sample.likelihood.check_support(x)
            assert ("MaskedLikelihood" in str(error.value)) == math.isnan(value)


@for_each("name", LIKELIHOODS)
def test_check_support_of_integers(name):
    sample = sample_of(name)
    for dtype in (torch.uint8, torch.int64, torch.int32):
        x = torch.randint(min(200, sample.support(0).num_integers or 2), (5, *sample.event)).to(
            dtype
        )
        if not sample.likelihood.takes_integers:
            with pytest.raises(TypeError, match=rf"floating-point data, got {dtype}: for gray"):
                sample.likelihood.check_support(x)
        elif sample.family.params is None:  # integers fit only some columns of a table
            assert sample.likelihood.check_support(x) is True
            p = sample(sample.params(3, 5), sample.context(5))
            assert torch.equal(p.log_prob(x), p.log_prob(x.double()))


@for_each("name", LIKELIHOODS)
def test_with_mask_needs_a_masked_likelihood(name):
    sample = sample_of(name)
    x = sample.observed(3)
    mask = torch.rand_like(x) < 0.5
    if sample.is_masked:
        masked = sample.likelihood.with_mask(x, mask)
        assert torch.equal(masked.isnan(), ~mask)
        assert torch.equal(masked[mask], x[mask])
    else:
        with pytest.raises(ValueError, match=r"got a mask.*wrap it, MaskedLikelihood\("):
            sample.likelihood.with_mask(x, mask)


@for_each("name", ["categorical", "masked categorical", "mixed", "masked mixed"])
def test_center_of_classes_is_the_most_probable_class(name):
    sample = Sample(LIKELIHOODS[name], LIKELIHOODS[name].events[0])
    x, p = sample.observed(1)[0], sample(sample.params(1))
    center = p.point_estimate().flatten(1)[0]
    for index in range(math.prod(sample.event)):
        is_column = sample.family.params is not None
        if is_column and not list(COLUMNS.values())[index][0].levels:
            torch.testing.assert_close(center[index], p.mean.flatten(1)[0, index])
            continue
        num_classes = sample.support(index).num_integers
        rows = x.repeat(num_classes, 1, *[1] * len(sample.event))
        rows.flatten(1)[:, index] = torch.arange(num_classes)
        assert center[index] == p.log_prob(rows)[:, 0].argmax()
    torch.testing.assert_close(p.point_estimate(torch.ones(1)), p.point_estimate()[0])


@for_each("name", ["gaussian, learned", "beta", "poisson", "categorical, gray"])
def test_center_of_numbers_is_the_mean(name):
    sample = Sample(LIKELIHOODS[name], (4,))
    p = sample(sample.params(3, 5))
    torch.testing.assert_close(p.point_estimate(), p.mean)


@for_each("name", LIKELIHOODS)
def test_model_round_trips_bitwise(name, tmp_path):
    sample = sample_of(name)
    vae = make_vae(sample.likelihood, sample.event)
    vae.save(tmp_path / "vae.safetensors")
    twin = VAE.load(tmp_path / "vae.safetensors", parts=[Unconditioned])
    assert repr(twin) == repr(vae)
    x, context = sample.data(5), sample.context(5)
    state = torch.random.get_rng_state()
    outputs = []
    for model in (vae, twin):
        torch.random.set_rng_state(state)
        model.check(x, context)
        output = model(x, context, num_samples=3)
        assert output.log_px.shape == (3, 5)
        outputs.append((output.log_weight(), model.reconstruct(x, context)))
        outputs[-1] += (model.sample(2, context), model.sample(2, context, mean=True))
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))


# name: (likelihood, true parameters of one entry)
FITS = {
    "gaussian": (GaussianLikelihood("predicted"), [0.7, -0.4]),
    "laplace": (LaplaceLikelihood("predicted"), [0.7, -0.4]),
    "student t": (StudentTLikelihood("predicted", df="predicted"), [0.7, -0.4, 1.0]),
    "log-normal": (LogNormalLikelihood("predicted"), [0.7, -0.4]),
    "logit-normal": (LogitNormalLikelihood("predicted", high=9.0), [0.7, -0.4]),
    "ordinal": (OrdinalLikelihood(4), [0.7]),
    "beta": (BetaLikelihood("predicted"), [-0.5, 1.5]),
    "continuous bernoulli": (ContinuousBernoulliLikelihood(), [1.3]),
    "bernoulli": (BernoulliLikelihood(), [0.6]),
    "categorical": (CategoricalLikelihood(4), [0.5, -0.9, 0.6, -0.2]),
    "poisson": (PoissonLikelihood(2.0), [0.8]),
    "negative binomial": (NegativeBinomialLikelihood("predicted", baseline=2.0), [0.8, 0.3]),
    "beta-binomial": (BetaBinomialLikelihood(9, "predicted"), [0.8, 0.7]),
    "zero-inflated negative binomial": (
        ZeroInflatedLikelihood(NegativeBinomialLikelihood("predicted")),
        [-0.5, 2.0, 1.0],
    ),
    "log-normal hurdle": (HurdleLikelihood(LogNormalLikelihood("predicted")), [0.4, 0.7, -0.4]),
    "discretized logistic": (DiscretizedLogisticLikelihood(16), [0.2, -1.2]),
    "mixture of gaussian": (
        MixtureLikelihood(GaussianLikelihood(0.5), num_components=2),
        [0.5, -0.5, -1.0, 1.5],
    ),
}


def fitted(likelihood, start, x):
    params = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([params], max_iter=300, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = -likelihood(params, 1).log_prob(x).mean()
        value.backward()
        return value

    optimizer.step(loss)
    return params.detach()


@pytest.mark.parametrize("name", FITS)
def test_maximum_likelihood_recovers_parameters(name):
    """The tolerance is 4.5 standard errors, from the outer products of the scores."""
    likelihood, true = FITS[name]
    true = torch.tensor(true)[:, None] if len(true) > 1 else torch.tensor(true)
    x = likelihood.double()(true, 1).sample((5000,))
    fit = fitted(likelihood, true + 0.3 * torch.randn_like(true), x)
    each = fit.expand(len(x), *fit.shape).clone().requires_grad_()
    (scores,) = torch.autograd.grad(likelihood(each, 1).log_prob(x).sum(), each)
    scores = scores.reshape(len(x), -1)
    covariance = torch.linalg.pinv(scores.T @ scores, rtol=1e-8)
    difference = (fit - true).flatten()
    if name in ("categorical", "mixture of gaussian"):  # logits up to a constant
        num_logits = 4 if name == "categorical" else 2
        difference[:num_logits] -= difference[:num_logits].mean()
    assert (difference.abs() < 4.5 * covariance.diagonal().sqrt()).all()


@for_each(
    ("likelihood", "num_values", "event", "latent_dim"),
    [
        (BernoulliLikelihood(), 2, (1, 3, 3), 1),
        (BernoulliLikelihood(), 2, (10,), 2),
        (CategoricalLikelihood(3), 3, (4,), 2),
        (DiscretizedLogisticLikelihood(4), 4, (2, 2), 1),
        (OrdinalLikelihood(4, shape=(2, 2)), 4, (2, 2), 1),
        (OrdinalLikelihood(3), 3, (4,), 2),
        (BetaBinomialLikelihood([3, 3, 3], "predicted"), 4, (3,), 1),
        (DiscretizedLogisticLikelihood(3, scale="learned"), 3, (4,), 2),
        (MixtureLikelihood(DiscretizedLogisticLikelihood(4), num_components=2), 4, (4,), 2),
    ],
)
def test_evidence_of_all_data_sums_to_one(likelihood, num_values, event, latent_dim):
    vae = make_vae(likelihood, event, latent_dim)
    values = [torch.arange(num_values, dtype=torch.float64).tolist()] * math.prod(event)
    x = torch.tensor(list(itertools.product(*values))).reshape(-1, *event)
    with torch.no_grad():
        log_px = log_evidence(vae, x, num_nodes=12)
        finer = log_evidence(vae, x[:5], num_nodes=13)
    assert log_px.exp().sum().item() == pytest.approx(1, abs=1e-10)
    assert (finer - log_px[:5]).abs().max() < 0.1
    assert log_px.std() > 0


def test_evidence_of_one_hot_data_sums_to_one():
    vae = make_vae(OneHotLikelihood(), (3, 4))
    index = torch.tensor(list(itertools.product(range(3), repeat=4)))
    x = torch.nn.functional.one_hot(index, 3).movedim(-1, 1).double()
    with torch.no_grad():
        assert log_evidence(vae, x, num_nodes=12).exp().sum().item() == pytest.approx(1, abs=1e-10)


def test_log_prob_is_float32_under_autocast():
    vae = make_vae(PoissonLikelihood(300.0), (4,)).float()
    z, x = torch.randn(1, 5, 2).float(), torch.poisson(torch.full((5, 4), 300.0)).float()
    with torch.autocast("cpu", torch.bfloat16):
        assert vae.decode(z).log_prob(x).dtype == torch.float32
