import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from helpers.cases import for_each

from tinyvae import VAE, BernoulliLikelihood, evaluate
from tinyvae.likelihoods import CategoricalLikelihood, OneHotLikelihood

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


def test_categorical_parameters_for_the_mean_have_the_digits_of_the_data():
    x = torch.tensor([[0.0], [1.0], [1.0]])
    torch.set_default_dtype(torch.float32)
    params = CategoricalLikelihood(3).params_for_mean(x)
    assert params.flatten().tolist() == [math.log(2 / 6), math.log(3 / 6), math.log(1 / 6)]


@for_each("shape", [(), (1,), (3,), (3, 2)])
def test_one_hot_rows_have_the_bits_per_dim_of_class_indices(shape):
    """One variable is one dimension. Four equally probable classes have two bits."""
    classes = torch.randint(4, (6, *(shape or (1,))))
    rows = F.one_hot(classes, 4).movedim(-1, 1).double()  # (6, 4, *shape)
    rows = rows if shape else rows.squeeze(2)
    reports = []
    for x, likelihood in (
        (classes.double(), CategoricalLikelihood(4)),
        (rows, OneHotLikelihood()),
    ):
        vae = VAE.from_shapes(x.shape[1:], latent_dim=1, likelihood=likelihood)
        for parameter in vae.parameters():
            parameter.data.zero_()
        reports.append(evaluate(vae, x, elbo_samples=2, importance_samples=3).to_dict())
    for report in reports:
        assert report["num_dims"] == math.prod(shape)
        assert report["elbo"]["bits_per_dim"] == pytest.approx(2)
        assert report["log_marginal"]["bits_per_dim"] == pytest.approx(2)
