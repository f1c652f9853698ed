import math

import numpy as np
import pytest
import torch
from helpers.cases import for_each
from helpers.likelihoods import gaussian, mixture

from tinyvae import BernoulliLikelihood, CategoricalLikelihood, GaussianLikelihood
from tinyvae.likelihoods import (
    HurdleLikelihood,
    Learned,
    LogNormalLikelihood,
    MaskedLikelihood,
    MixtureLikelihood,
    MultinomialLikelihood,
    NegativeBinomialLikelihood,
    OneHotLikelihood,
    OptimalGaussianLikelihood,
    PoissonLikelihood,
    StandardizedLikelihood,
    ZeroInflatedLikelihood,
)

pytestmark = pytest.mark.usefixtures("float64")


@for_each(
    "wrap",
    [
        MaskedLikelihood,
        StandardizedLikelihood,
        HurdleLikelihood,
        lambda p: MixtureLikelihood(p, num_components=2),
    ],
)
@for_each(
    ("inner", "alternative"),
    [
        (OptimalGaussianLikelihood, "use GaussianLikelihood"),
        (lambda: MultinomialLikelihood(4), "use PoissonLikelihood"),
        (OneHotLikelihood, "use CategoricalLikelihood"),
        (lambda: MaskedLikelihood(GaussianLikelihood()), "put MaskedLikelihood outermost"),
    ],
)
def test_wrapper_expects_a_product_over_dimensions(wrap, inner, alternative):
    with pytest.raises(TypeError, match=f"product over data dimensions, got .*: {alternative}"):
        wrap(inner())


@for_each(
    ("make", "message"),
    [
        (lambda: MaskedLikelihood(GaussianLikelihood), "expects a likelihood, got a ABCMeta"),
        (lambda: ZeroInflatedLikelihood(GaussianLikelihood()), "of counts, such as .*got Gaussian"),
        (lambda: ZeroInflatedLikelihood(BernoulliLikelihood()), "got BernoulliLikelihood"),
        (lambda: StandardizedLikelihood(PoissonLikelihood()), "masses have no units"),
        (lambda: StandardizedLikelihood(CategoricalLikelihood(3)), "masses have no units"),
        (lambda: HurdleLikelihood(PoissonLikelihood()), "use ZeroInflatedLikelihood"),
        (lambda: HurdleLikelihood(HurdleLikelihood(GaussianLikelihood())), "give it all points"),
        (
            lambda: StandardizedLikelihood(HurdleLikelihood(GaussianLikelihood())),
            r"at all values, .*HurdleLikelihood\(StandardizedLikelihood\(...\), at=0.0\)",
        ),
        (
            lambda: StandardizedLikelihood(
                MixtureLikelihood(HurdleLikelihood(LogNormalLikelihood()), num_components=2)
            ),
            "standardize inside it",
        ),
    ],
)
def test_wrapper_rejects_other_parts(make, message):
    with pytest.raises(TypeError, match=message):
        make()


def test_mixture_rejects_categories():
    with pytest.raises(TypeError, match="any likelihood but CategoricalLikelihood"):
        MixtureLikelihood(CategoricalLikelihood(3), num_components=2)


def test_standardized_rejects_integers_and_masses():
    with pytest.raises(TypeError, match=r"expects floating-point data, got torch.uint8"):
        StandardizedLikelihood(GaussianLikelihood()).check_support(torch.zeros(3, 2).byte())
    with pytest.raises(TypeError, match="got BernoulliLikelihood: masses have no units"):
        StandardizedLikelihood(BernoulliLikelihood())


@for_each("per_component", [(2, 1, 1, 1), (2, 2, 1, 1), (2, 2, 3, 1)])
def test_mixture_components_may_have_different_scales(per_component):
    likelihood = MixtureLikelihood(
        GaussianLikelihood(Learned(per_component)), num_components=2
    ).double()
    with torch.no_grad():
        likelihood.likelihood.std.raw.normal_()
    params, x = torch.randn(3, 5, 4, 2, 3, 1), torch.randn(5, 2, 3, 1)
    expected = mixture(gaussian)(likelihood, params.numpy(), x.numpy(), 3, None).sum((2, 3, 4))
    np.testing.assert_allclose(likelihood(params, 3).log_prob(x).detach(), expected, rtol=1e-10)


@pytest.mark.parametrize(
    "likelihood",
    [
        PoissonLikelihood([1.0, 2.0, 3.0]),
        NegativeBinomialLikelihood(Learned((3,))),
        StandardizedLikelihood(GaussianLikelihood(), mean=[1.0, 2.0, 3.0]),
        StandardizedLikelihood(GaussianLikelihood(Learned((3,)))),
        MixtureLikelihood(GaussianLikelihood(Learned((3,))), num_components=2),
        OptimalGaussianLikelihood((3,)),
        HurdleLikelihood(GaussianLikelihood(Learned((3,)))),
        HurdleLikelihood(GaussianLikelihood(), at=[[0.0, 1.0, 2.0]]),
    ],
    ids=lambda likelihood: repr(likelihood)[:40],
)
def test_check_support_rejects_parameters_that_do_not_broadcast(likelihood):
    with pytest.raises(ValueError, match=r"does not broadcast over data of shape \(4,\)"):
        likelihood.check_support(torch.ones(5, 4))


def test_masked_encoder_input_holds_zeros_and_the_mask():
    x = torch.tensor([[1.0, math.nan, -2.0]])
    inputs = MaskedLikelihood(GaussianLikelihood()).encoder_input(x)
    assert inputs.tolist() == [[1.0, 0.0, -2.0]]
    inputs = MaskedLikelihood(GaussianLikelihood(), show_mask=True).encoder_input(x)
    assert inputs.tolist() == [[1.0, 0.0, -2.0, 1.0, 0.0, 1.0]]
