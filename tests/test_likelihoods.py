import itertools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import scipy.stats
import torch
from torch.autograd import gradcheck

from tinyvae import BernoulliLikelihood, GaussianLikelihood, Likelihood
from tinyvae.parts import build, describe

pytestmark = pytest.mark.usefixtures("float64")

E = (2, 3, 1)


def bernoulli(x, params, likelihood):
    p = 1 / (1 + np.exp(-params))
    return x * np.log(p) + (1 - x) * np.log(1 - p)


def floor(raw, minimum):
    return minimum + np.log1p(np.exp(raw - minimum))


def gaussian(log_std):
    def log_prob(x, params, likelihood):
        mean, s = log_std(params, likelihood)
        return -((x - mean) ** 2) / (2 * np.exp(2 * s)) - s - math.log(2 * math.pi) / 2

    return log_prob


def learned(params, likelihood):
    raw = likelihood.raw_log_std.detach().double().numpy()
    return params, floor(raw, math.log(likelihood.min_std))


def predicted(params, likelihood):
    mean, raw = params[..., 0, :, :, :], params[..., 1, :, :, :]
    return mean, floor(raw, math.log(likelihood.min_std))


@dataclass(frozen=True)
class Case:
    make: Callable[[], Likelihood]
    log_prob: Callable  # of each element, numpy
    params: tuple[int, ...] = E
    scales: tuple[int, ...] | None = None  # shape of the learned scale
    binary: bool = False


LIKELIHOODS = {
    "bernoulli": Case(BernoulliLikelihood, bernoulli, binary=True),
    "gaussian, fixed": Case(
        lambda: GaussianLikelihood(0.3), gaussian(lambda params, _: (params, math.log(0.3)))
    ),
    "gaussian, learned": Case(GaussianLikelihood, gaussian(learned), scales=()),
    "gaussian, per channel": Case(
        lambda: GaussianLikelihood(std_shape=(2, 1, 1)), gaussian(learned), scales=(2, 1, 1)
    ),
    "gaussian, per dimension": Case(
        lambda: GaussianLikelihood(std_shape=E, min_std=0.1), gaussian(learned), scales=E
    ),
    "gaussian, predicted": Case(
        lambda: GaussianLikelihood("predicted", min_std=0.2), gaussian(predicted), params=(2, *E)
    ),
}


@dataclass(frozen=True)
class Drawn:
    case: Case
    likelihood: Likelihood

    def params(self, *batch):
        return torch.randn(*batch, *self.case.params)

    def x(self, *batch):
        x = torch.randn(*batch, *E)
        return (x > 0).to(x.dtype) if self.case.binary else x

    def log_prob(self, params, x):
        return self.likelihood(params, len(E)).log_prob(x)


@pytest.fixture(params=LIKELIHOODS)
def drawn(request):
    case = LIKELIHOODS[request.param]
    likelihood = case.make()
    with torch.no_grad():
        for parameter in likelihood.parameters():
            parameter.normal_()
    return Drawn(case, likelihood)


def test_shapes(drawn):
    likelihood, case = drawn.likelihood, drawn.case
    assert likelihood.param_shape(E) == case.params
    assert likelihood.num_params == math.prod(case.params) / math.prod(E)
    assert [p.shape for p in likelihood.parameters()] == (
        [] if case.scales is None else [case.scales]
    )
    assert likelihood.is_density


@pytest.mark.parametrize("batch", [(1, 1), (1, 5), (3, 5), (3, 1)])
def test_log_prob_agrees_with_numpy(drawn, batch):
    params, x = drawn.params(*batch), drawn.x(batch[1])
    p = drawn.likelihood(params, len(E))
    assert p.batch_shape == batch
    assert p.event_shape == E
    elements = drawn.case.log_prob(x.numpy(), params.numpy(), drawn.likelihood)
    expected = torch.from_numpy(elements.sum((-3, -2, -1)))
    torch.testing.assert_close(p.log_prob(x), expected, rtol=1e-12, atol=1e-12)


def test_float32(drawn):
    params, x = drawn.params(3, 5).float(), drawn.x(5).float()
    exact = drawn.log_prob(params.double(), x.double())
    drawn.likelihood.float()
    p = drawn.likelihood(params, len(E))
    assert p.log_prob(x).dtype == p.sample().dtype == p.mean.dtype == torch.float32
    torch.testing.assert_close(p.log_prob(x).double(), exact, rtol=1e-5, atol=1e-5)


def test_batch_may_be_permuted_chunked_and_strided(drawn):
    params, x = drawn.params(3, 6), drawn.x(6)
    log_prob = drawn.log_prob(params, x)
    order = torch.randperm(6)
    torch.testing.assert_close(drawn.log_prob(params[:, order], x[order]), log_prob[:, order])
    chunks = [drawn.log_prob(params[:, i : i + 4], x[i : i + 4]) for i in (0, 4)]
    torch.testing.assert_close(torch.cat(chunks, 1), log_prob)
    strided = [t.transpose(-1, -3).contiguous().transpose(-1, -3) for t in (params, x)]
    assert not any(t.is_contiguous() for t in strided)
    torch.testing.assert_close(drawn.log_prob(*strided), log_prob)


def test_gradients(drawn):
    params, x = drawn.params(2, 3).requires_grad_(), drawn.x(3)
    learned = dict(drawn.likelihood.named_parameters())

    def log_prob(params, *values):
        call = torch.func.functional_call
        state = dict(zip(learned, values, strict=True))
        return call(drawn.likelihood, state, (params, len(E))).log_prob(x)

    assert gradcheck(log_prob, (params, *learned.values()))
    drawn.log_prob(params, x).sum().backward()
    assert all((p.grad != 0).all() for p in (params, *learned.values()))


def test_round_trip_is_bitwise(drawn):
    twin = build(describe(drawn.likelihood))
    twin.load_state_dict(drawn.likelihood.state_dict())
    params, x = drawn.params(3, 5), drawn.x(5)
    assert torch.equal(twin(params, len(E)).log_prob(x), drawn.log_prob(params, x))
    assert repr(twin) == repr(drawn.likelihood)


def test_draws_agree_with_log_prob(drawn):
    """E log p(x) by draws is the sum over values, or the closed form of the entropy."""
    params = drawn.params(1)
    p = drawn.likelihood(params, len(E))
    x = p.sample((20_000,))
    assert x.shape == (20_000, 1, *E)
    error = x.std(0) / math.sqrt(len(x))
    assert ((x.mean(0) - p.mean).abs() < 4.5 * error).all()
    if drawn.case.binary:
        probs = p.mean.numpy()
        entropy = scipy.stats.bernoulli.entropy(probs).sum()
    else:
        standardised = drawn.case.log_prob(
            p.mean.detach().numpy(), params.numpy(), drawn.likelihood
        )
        entropy = (0.5 - standardised).sum()  # log density at the mean is -log std - log(2 pi) / 2
    log_prob = p.log_prob(x)[:, 0]
    error = log_prob.std() / math.sqrt(len(x))
    assert abs(log_prob.mean() + entropy) < 4 * error


def test_integrates_to_one(drawn):
    """The product of the elements' total masses is one."""
    p = drawn.likelihood(drawn.params(), len(E))
    if drawn.case.binary:
        x = torch.tensor(list(itertools.product([0.0, 1.0], repeat=math.prod(E)))).view(-1, *E)
        assert p.log_prob(x).exp().sum().item() == pytest.approx(1, abs=1e-12)
        return
    grid = torch.linspace(-40, 40, 20_001)
    rows = p.mean.detach().expand(*grid.shape, *E).clone()  # all others at their means
    at_mean = p.log_prob(p.mean)
    masses = []
    for i in range(math.prod(E)):
        x = rows.clone()
        x.flatten(1)[:, i] = grid
        masses.append(torch.trapezoid((p.log_prob(x) - at_mean).exp(), grid))
    log_total = at_mean + torch.stack(masses).log().sum()
    assert log_total.item() == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("std", ["learned", "predicted"])
def test_min_std_is_a_smooth_floor(std):
    likelihood = GaussianLikelihood(std, min_std=0.05)
    raw = torch.tensor([-1e3, -20.0, math.log(0.05), 0.0, 8.0])
    if std == "learned":
        likelihood.raw_log_std.data = raw
        params = torch.zeros(5)
    else:
        params = torch.stack([torch.zeros(5), raw])
    scale = likelihood(params, 1).base.log_std.exp()
    torch.testing.assert_close(scale, 0.05 + raw.exp())  # exp(softplus(a - b) + b) = e^a + e^b
    assert (scale >= 0.05 * (1 - 1e-12)).all()


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_fit_recovers_the_parameters(name):
    """Maximum likelihood of i.i.d. draws is known: the draws' own mean and scale."""
    case = LIKELIHOODS[name]
    likelihood, params = case.make(), torch.zeros(case.params, requires_grad=True)
    x = torch.randn(400, *E) * 0.8 + 0.5
    x = (x > 0).double() if case.binary else x
    everything = [params, *likelihood.parameters()]
    optimizer = torch.optim.LBFGS(
        everything, max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe"
    )

    def loss():
        optimizer.zero_grad()
        value = -likelihood(params, len(E)).log_prob(x).mean()
        value.backward()
        return value

    optimizer.step(loss)
    p = likelihood(params, len(E))
    torch.testing.assert_close(p.mean, x.mean(0), rtol=1e-5, atol=1e-5)
    assert (x.mean(0) - (0.734 if case.binary else 0.5)).abs().max() < 4.5 * 0.8 / math.sqrt(400)
    if case.scales is None and likelihood.num_params == 1:
        return
    residuals = (x - x.mean(0)).square().mean(0)  # (*E), over its shared dimensions:
    scales = E if case.scales is None else (1,) * (3 - len(case.scales)) + case.scales
    shared = [d for d, size in enumerate(scales) if size == 1]
    expected = residuals.mean(shared, keepdim=True) if shared else residuals
    fitted = p.base.log_std.mul(2).exp().expand(E)
    torch.testing.assert_close(fitted, expected.expand(E), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussianLikelihood(0.0), "finite std > 0, got 0.0"),
        (lambda: GaussianLikelihood(-1.0), "finite std > 0, got -1.0"),
        (lambda: GaussianLikelihood(math.inf), "finite std > 0, got inf"),
        (lambda: GaussianLikelihood(math.nan), "finite std > 0, got nan"),
        (lambda: GaussianLikelihood("fixed"), "'learned' or 'predicted' as std, got 'fixed'"),
        (lambda: GaussianLikelihood(min_std=0.0), "min_std > 0, got 0.0"),
        (lambda: GaussianLikelihood(0.1, std_shape=(3,)), "learned scale, got std=0.1"),
        (lambda: GaussianLikelihood("predicted", std_shape=(3,)), "learned scale, got std='pred"),
    ],
)
def test_constructor_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_support_is_let_through(drawn):
    x = drawn.x(5)
    drawn.likelihood.check_support(x)
    drawn.likelihood.check_support(x[::2])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_not_finite(drawn, value):
    x = drawn.x(5)
    x[3, 1, 0, 0] = value
    with pytest.raises(ValueError, match=r"in 1 of 5 examples, first in example 3: drop or impute"):
        drawn.likelihood.check_support(x)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_not_floating(drawn, dtype):
    with pytest.raises(TypeError, match=rf"{dtype}: divide grey levels by their maximum"):
        drawn.likelihood.check_support(drawn.x(5).to(dtype))


@pytest.mark.parametrize(("low", "high"), [(0, 255), (-1, 1), (0, 1.5)])
def test_bernoulli_outside_the_unit_interval(low, high):
    x = torch.tensor([[0.0, low], [1.0, high]])
    with pytest.raises(ValueError, match=rf"in \[0, 1\], got {low}\.\.{high}: binarise"):
        BernoulliLikelihood().check_support(x)


def test_bernoulli_warns_of_grey():
    with pytest.warns(UserWarning, match="no bound on log p.*DynamicBinarisation"):
        BernoulliLikelihood().check_support(torch.tensor([[0.0, 0.5, 1.0]]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        BernoulliLikelihood().check_support(torch.tensor([[0.0, 1.0]]))


def test_own_likelihood_needs_one_hook():
    from torch.distributions import Laplace

    from tinyvae import TorchDistribution

    class LaplaceLikelihood(Likelihood):
        num_params = 2

        def elementwise(self, mean, log_scale):
            return TorchDistribution(Laplace(mean, log_scale.exp(), validate_args=False))

    likelihood, params, x = LaplaceLikelihood(), torch.randn(3, 5, 2, *E), torch.randn(5, *E)
    assert likelihood.param_shape(E) == (2, *E)
    mean, log_scale = params.unbind(2)
    expected = scipy.stats.laplace.logpdf(x, mean, log_scale.exp()).sum((2, 3, 4))
    np.testing.assert_allclose(likelihood(params, 3).log_prob(x), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("likelihood", "expected"),
    [
        (BernoulliLikelihood(), "BernoulliLikelihood()"),
        (GaussianLikelihood(0.1), "GaussianLikelihood(std=0.1)"),
        (GaussianLikelihood(std_shape=(3,)), "GaussianLikelihood(std='learned', std_shape=(3,))"),
    ],
)
def test_repr(likelihood, expected):
    assert repr(likelihood) == expected


@pytest.mark.parametrize("initial_std", [0.01, 0.2, 3.0])
def test_a_learned_scale_starts_where_it_is_told(initial_std):
    likelihood = GaussianLikelihood(initial_std=initial_std).double()
    log_std = likelihood.elementwise(torch.zeros(3)).log_std
    assert log_std.exp().item() == pytest.approx(initial_std, rel=1e-5)
    with pytest.raises(ValueError, match="initial_std above min_std"):
        GaussianLikelihood(initial_std=1e-3)


def test_a_torch_distribution_must_be_wrapped():
    class Unwrapped(Likelihood):
        def elementwise(self, *params):
            return torch.distributions.Laplace(params[0], 1.0)

    with pytest.raises(TypeError, match=r"must return a tinyvae Distribution, got a Laplace: wrap"):
        Unwrapped()(torch.zeros(2, 3), 1)
