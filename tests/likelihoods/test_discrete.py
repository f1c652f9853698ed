import warnings

import pytest
import torch
from helpers.cases import for_each

from tinyvae import BernoulliLikelihood
from tinyvae.likelihoods import OneHotLikelihood

pytestmark = pytest.mark.usefixtures("float64")


@for_each("rows", [[[1.0, 1.0, 0.0]], [[0.0, 0.0, 0.0]], [[0.5, 0.5, 0.0]], [[2.0, -1.0, 0.0]]])
def test_one_hot_rejects_other_rows(rows):
    with pytest.raises(ValueError, match=r"OneHotLikelihood expects one-hot rows.*1 of 1 examples"):
        OneHotLikelihood().check_support(torch.tensor(rows))


def test_one_hot_parameters_for_the_mean_count_each_class_once_more():
    x = torch.tensor([[1.0, 0.0, 0.0]] * 3 + [[0.0, 1.0, 0.0]])
    probabilities = OneHotLikelihood().params_for_mean(x).softmax(0)
    torch.testing.assert_close(probabilities, torch.tensor([4.0, 2.0, 1.0]) / 7)


@for_each(("low", "high"), [(0, 255), (-1, 1), (0, 1.5)])
def test_bernoulli_rejects_values_outside_the_unit_interval(low, high):
    x = torch.tensor([[0.0, low], [1.0, high]])
    with pytest.raises(ValueError, match=rf"in \[0, 1\], got {low}\.\.{high}.*: binarize"):
        BernoulliLikelihood().check_support(x)


def test_bernoulli_warns_about_gray_levels():
    with pytest.warns(UserWarning, match="no bound on log p.*DynamicBinarization"):
        assert BernoulliLikelihood().check_support(torch.tensor([[0.0, 0.5, 1.0]])) is False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert BernoulliLikelihood().check_support(torch.tensor([[0.0, 1.0]])) is True
