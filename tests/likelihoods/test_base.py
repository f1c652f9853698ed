import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from helpers.cases import for_each
from helpers.likelihoods import learned

from tinyvae import CategoricalLikelihood, GaussianLikelihood, Likelihood
from tinyvae.distributions import Normal, TorchDistribution
from tinyvae.likelihoods import (
    BetaLikelihood,
    Column,
    DiscretizedLogisticLikelihood,
    Fixed,
    LaplaceLikelihood,
    Learned,
    LogNormalLikelihood,
    MaskedLikelihood,
    MixedLikelihood,
    MixtureLikelihood,
    NegativeBinomialLikelihood,
    OptimalGaussianLikelihood,
    PoissonLikelihood,
    Predicted,
    StandardizedLikelihood,
    StudentTLikelihood,
    as_positive,
)

pytestmark = pytest.mark.usefixtures("float64")


@for_each(
    ("make", "message"),
    [
        *[(lambda v=v: GaussianLikelihood(v), f"number > 0, got {v}") for v in (0.0, -1.0)],
        *[(lambda v=v: Fixed(v), f"number > 0, got {v}") for v in (math.inf, math.nan)],
        (lambda: GaussianLikelihood("fixed"), r"'predicted', Learned\(\.\.\.\).*got 'fixed'"),
        (lambda: LaplaceLikelihood("optimal"), "got 'optimal'"),
        (lambda: StudentTLikelihood(df="none"), "got 'none'"),
        (lambda: LogNormalLikelihood(-0.5), "number > 0, got -0.5"),
        (lambda: BetaLikelihood(0.0), "number > 0, got 0.0"),
        (lambda: NegativeBinomialLikelihood(-2.0), "number > 0, got -2.0"),
        (lambda: Learned(minimum=0.0), "minimum > 0, got 0.0"),
        (lambda: Learned(minimum=math.inf), "minimum > 0, got inf"),
        (lambda: Learned(initial=1e-3), "initial value above minimum = 0.001, got 0.001"),
        (lambda: Learned(initial=math.inf), "got inf"),
        (lambda: Learned(num_classes=0), "num_classes >= 1 or None, got 0"),
        (lambda: Predicted(minimum=-1.0), "minimum > 0, got -1.0"),
        (lambda: OptimalGaussianLikelihood(minimum=0.0), "minimum > 0, got 0.0"),
        (lambda: CategoricalLikelihood(1), "num_classes >= 2, got 1"),
        (lambda: DiscretizedLogisticLikelihood(1), "num_levels >= 2, got 1"),
        (lambda: PoissonLikelihood(0.0), "finite counts > 0, got 0.0"),
        (lambda: PoissonLikelihood([1.0, math.nan]), r"finite counts > 0, got \[1.0, nan\]"),
        (lambda: NegativeBinomialLikelihood(baseline=-1.0), "finite counts > 0, got -1.0"),
        (
            lambda: MixtureLikelihood(GaussianLikelihood(), num_components=1),
            "num_components >= 2, got 1",
        ),
        (
            lambda: StandardizedLikelihood(GaussianLikelihood(), std=0.0),
            "leave out constant",
        ),
        (lambda: StandardizedLikelihood(GaussianLikelihood(), mean=math.nan), "finite means"),
        (lambda: StandardizedLikelihood(GaussianLikelihood(), std=[1.0, -1.0]), "finite std > 0"),
        (lambda: MixedLikelihood([]), "columns with different names"),
        (
            lambda: MixedLikelihood([("a", "number"), ("a", "count")]),
            "columns with different names",
        ),
        (
            lambda: MixedLikelihood([("a", "number")], likelihoods={"b": GaussianLikelihood()}),
            r"got \['b'\]",
        ),
        (lambda: Column("a", "text"), "kind in .*got 'text'"),
        (lambda: Column("a", "category", ("x",)), "two or more levels, got 1"),
        (lambda: Column("a", "number", scale=0.0), "finite scale > 0"),
    ],
)
def test_constructors_reject_invalid_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


class OwnLaplace(Likelihood):
    num_params = 2

    def elementwise(self, mean, log_scale):
        base = torch.distributions.Laplace(mean, log_scale.exp(), validate_args=False)
        return TorchDistribution(base)


class OwnGumbel(Likelihood):
    def __init__(self, shape):
        super().__init__()
        self.scale = Learned(shape)

    def elementwise(self, loc, log_scale):
        base = torch.distributions.Gumbel(loc, log_scale.exp(), validate_args=False)
        return TorchDistribution(base)


def test_custom_likelihood_needs_one_hook():
    likelihood, params, x = OwnLaplace(), torch.randn(3, 5, 2, 2, 3, 1), torch.randn(5, 2, 3, 1)
    assert likelihood.param_shape((2, 3, 1)) == (2, 2, 3, 1)
    mean, log_scale = params.unbind(2)
    expected = scipy.stats.laplace.logpdf(x, mean, log_scale.exp()).sum((2, 3, 4))
    np.testing.assert_allclose(likelihood(params, 3).log_prob(x), expected, rtol=1e-12)
    assert likelihood.check_support(x) is True


@for_each("shape", [(), (2, 1, 1), (2, 3, 1)])
def test_custom_likelihood_with_a_learned_scale(shape):
    likelihood = OwnGumbel(shape).double()
    with torch.no_grad():
        likelihood.scale.raw.normal_()
    params, x = torch.randn(3, 5, 2, 3, 1), torch.randn(5, 2, 3, 1)
    scale = np.exp(learned(likelihood.scale, None, 3))
    expected = scipy.stats.gumbel_r.logpdf(x, params, scale).sum((2, 3, 4))
    log_prob = likelihood(params, 3).log_prob(x)
    np.testing.assert_allclose(log_prob.detach(), expected, rtol=1e-12)
    log_prob.sum().backward()
    assert (likelihood.scale.raw.grad != 0).all()
    with pytest.raises(ValueError, match="does not broadcast"):
        OwnGumbel((7,)).check_support(x)


def test_custom_likelihood_can_be_wrapped():
    params, x = torch.randn(3, 5, 6, 4), torch.randn(5, 4)
    likelihood = MixtureLikelihood(OwnLaplace(), num_components=2)
    parts = params.unflatten(2, (3, 2))
    each = scipy.stats.laplace.logpdf(x[:, None], parts[:, :, 1], parts[:, :, 2].exp())
    mixed = scipy.special.logsumexp(each + parts[:, :, 0].log_softmax(2).numpy(), axis=2)
    np.testing.assert_allclose(likelihood(params, 1).log_prob(x), mixed.sum(-1), rtol=1e-12)
    seen = x.clone()
    seen[:, 1] = math.nan
    log_prob = MaskedLikelihood(likelihood)(params, 1).log_prob(seen)
    np.testing.assert_allclose(log_prob, mixed[..., [0, 2, 3]].sum(-1), rtol=1e-12)


def test_elementwise_must_return_a_tinyvae_distribution():
    class Unwrapped(Likelihood):
        def elementwise(self, *params):
            return torch.distributions.Laplace(params[0], 1.0)

    with pytest.raises(TypeError, match=r"must return a tinyvae Distribution, got a Laplace: wrap"):
        Unwrapped()(torch.zeros(2, 3), 1)


def test_elementwise_needs_as_many_arguments_as_there_are_parameters():
    class Scaled(Likelihood):
        def __init__(self, num_params, scale):
            super().__init__()
            self.num_params, self.scale = num_params, as_positive(scale)

        def elementwise(self, mean, log_scale):
            return Normal(mean, log_scale)

    for num_params, scale, got in (
        (1, "predicted", "0 parameters of the decoder and 1 log"),
        (3, "learned", "3 parameters of the decoder and 1 log"),
    ):
        message = rf"Scaled.elementwise expects \(mean, log_scale\), got {got}.*1 \+ self.scale"
        likelihood = Scaled(num_params, scale)
        with pytest.raises(TypeError, match=message):
            likelihood(torch.zeros(2, *likelihood.param_shape((3,))), 1)
    assert Scaled(2, "predicted")(torch.zeros(5, 2, 3), 1).log_prob(torch.zeros(3)).shape == (5,)


def test_elementwise_keeps_its_own_errors():
    class Failing(Likelihood):
        def elementwise(self, mean):
            raise TypeError("planted")

    with pytest.raises(TypeError, match=r"^planted$"):
        Failing()(torch.zeros(2, 3), 1)


def test_elementwise_must_be_defined():
    with pytest.raises(NotImplementedError, match="must define elementwise"):
        type("Nothing", (Likelihood,), {})()(torch.zeros(2, 3), 1)
