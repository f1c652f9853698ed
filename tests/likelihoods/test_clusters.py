"""Clusters of data, from which the components of a mixture start."""

import itertools
import math

import pytest
import torch
from helpers.cases import for_each

from tinyvae import ELBO, VAE, GaussianLikelihood, Optimization, Trainer
from tinyvae.likelihoods import (
    BetaLikelihood,
    Column,
    DiscretizedLogisticLikelihood,
    HurdleLikelihood,
    Learned,
    LogNormalLikelihood,
    MaskedLikelihood,
    MixedLikelihood,
    MixtureLikelihood,
    PoissonLikelihood,
    StandardizedLikelihood,
    within_cluster_std,
)
from tinyvae.likelihoods.clusters import cluster_indices

pytestmark = pytest.mark.usefixtures("float64")

NAN = math.nan


def bimodal(n, share=0.3):
    """Return values around -2 (a share of them) and 1, with a standard deviation of 0.1."""
    mode = torch.where(torch.rand(n, 1) < share, -2.0, 1.0)
    return mode + 0.1 * torch.randn(n, 1)


def squared_distance(x, index, num_clusters):
    groups = [x[index == cluster] for cluster in range(num_clusters)]
    return sum((group - group.mean()).square().sum() for group in groups if len(group))


def least_squared_distance(x, num_clusters):
    """Try all clusters of sorted values."""
    x, results = x.sort().values, []
    for cuts in itertools.combinations(range(1, len(x)), num_clusters - 1):
        sizes = torch.tensor([0, *cuts, len(x)]).diff()
        index = torch.arange(num_clusters).repeat_interleave(sizes)
        results.append(squared_distance(x, index, num_clusters))
    return min(results)


@for_each("num_clusters", [2, 3])
@for_each("share", [0.5, 0.1])
def test_clusters_have_almost_the_least_squared_distance(num_clusters, share):
    for _ in range(5):
        x = bimodal(20, share)
        index = cluster_indices(x, num_clusters)
        got = squared_distance(x[:, 0], index[:, 0], num_clusters)
        assert got <= 2 * least_squared_distance(x[:, 0], num_clusters) + 1e-12
        order = x[:, 0].argsort()
        assert (index[order, 0].diff() >= 0).all()  # intervals


@for_each("share", [0.02, 0.3, 0.5, 0.98])
def test_clusters_of_each_dimension_are_its_modes(share):
    x = torch.stack([bimodal(500, share), 50 - 10 * bimodal(500, share)], 1)[:, :, 0]
    x[::7] = NAN
    index = cluster_indices(x, 2)
    observed = ~x.isnan()
    expected = torch.stack([x[:, 0] > -0.5, x[:, 1] > 55], 1)
    assert torch.equal(index[observed] == 1, expected[observed])
    assert torch.equal(cluster_indices(x.flip(1), 2), index.flip(1))


def test_clusters_leave_out_outliers():
    x = torch.cat([bimodal(2000), torch.tensor([[1e9], [-1e9]])])
    index = cluster_indices(x, 2)
    assert torch.equal(index == 1, x > -0.5)


def test_clusters_of_few_values_and_of_none():
    x = torch.tensor([[3.0, NAN, 1.0], [3.0, NAN, NAN], [3.0, NAN, 2.0]])
    index = cluster_indices(x, 4)
    assert len(index[:, 0].unique()) == 1
    assert index[0, 2] < index[2, 2]
    assert (index[:, 1] == 0).all()
    assert within_cluster_std(x, 4)[:2].tolist() == [1.0, 1.0]


def test_within_cluster_std_is_the_width_of_a_mode():
    x = bimodal(4000)
    assert within_cluster_std(x, 2).item() == pytest.approx(0.1, abs=0.005)
    x[::3] = NAN
    assert within_cluster_std(x, 2).item() == pytest.approx(0.1, abs=0.005)
    assert within_cluster_std(x.round(), 3).item() == pytest.approx(0.01 * 1.375, rel=0.1)


def equal_start(likelihood, x):
    """Return parameters of equal components at the mean."""
    each = likelihood.likelihood.params_for_mean(x)
    return torch.cat([torch.zeros(2, 1), each.reshape(-1, 1, 1).expand(-1, 2, 1).flatten(0, 1)])


def trained(params, likelihood, x):
    params = params.clone().requires_grad_()
    optimizer = torch.optim.Adam([params, *likelihood.parameters()], lr=0.05)
    for _ in range(150):
        loss = -likelihood(params, 1).log_prob(x).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return params.detach(), loss.item()


def test_short_training_finds_both_modes_from_clusters_and_not_from_equal_components():
    x = bimodal(1000)
    likelihood = MixtureLikelihood(GaussianLikelihood(), num_components=2).double()
    params, loss = trained(likelihood.params_for_mean(x), likelihood, x)
    share = (x < 0).double().mean().item()
    entropy = -share * math.log(share) - (1 - share) * math.log(1 - share)
    best = entropy + 0.5 * math.log(2 * math.pi * math.e) + math.log(0.1)
    assert loss == pytest.approx(best, abs=0.02)
    torch.testing.assert_close(params[2:, 0], torch.tensor([-2.0, 1.0]), rtol=0, atol=0.03)
    assert params[:2, 0].softmax(0)[0].item() == pytest.approx(share, abs=0.01)
    likelihood = MixtureLikelihood(GaussianLikelihood(), num_components=2).double()
    params, loss = trained(equal_start(likelihood, x), likelihood, x)
    assert params[2] == params[3]  # a saddle
    assert loss > best + 1


def test_model_finds_both_modes():
    x = bimodal(1000)
    scale = Learned((1,), initial=within_cluster_std(x, 2).tolist())
    mixture = MixtureLikelihood(GaussianLikelihood(scale), num_components=2)
    table = MixedLikelihood([Column("x", "number")], likelihoods={"x": mixture})
    vae = VAE.from_shapes(1, latent_dim=1, likelihood=MaskedLikelihood(table))
    vae.init_output_bias(x)
    Trainer(vae, ELBO(), Optimization(5e-3), progress=False).fit(x, epochs=15)
    drawn = vae.sample(4000)
    shares = [((drawn - mode).abs() < 0.5).double().mean().item() for mode in (-2, 1)]
    assert shares == pytest.approx([0.3, 0.7], abs=0.07)


FAMILIES = {
    "gaussian, predicted": (lambda: GaussianLikelihood("predicted"), torch.randn),
    "log-normal": (lambda: LogNormalLikelihood(1e-6), lambda *s: torch.randn(s).exp()),
    "beta": (BetaLikelihood, torch.rand),
    "poisson": (PoissonLikelihood, lambda *s: torch.poisson(torch.full(s, 2.0))),
    "levels": (
        lambda: DiscretizedLogisticLikelihood(5, scale=0.01),
        lambda *s: torch.randint(5, s).double(),
    ),
    "standardized": (
        lambda: StandardizedLikelihood(GaussianLikelihood(), mean=5.0, std=2.0),
        torch.randn,
    ),
    "hurdle": (
        lambda: HurdleLikelihood(GaussianLikelihood()),
        lambda *s: torch.randn(s).clamp(min=0),
    ),
}


@for_each("name", FAMILIES)
def test_components_of_any_likelihood_start_apart_at_the_mean(name):
    make, draw = FAMILIES[name]
    x = draw(600, 3)
    x[torch.rand(x.shape) < 0.2] = NAN
    x[:, 2] = NAN  # without observed values
    mixture = MixtureLikelihood(make(), num_components=3).double()
    params = mixture.params_for_mean(x)
    assert params.shape == mixture.param_shape((3,))
    assert params.isfinite().all()
    components = params.unflatten(0, (-1, 3))  # (1 + P, M, D)
    assert (components[1:, :2, :2] != components[1:, 1:, :2]).any(0).all()
    if name not in ("log-normal", "levels"):  # keep the mean of log x, round the mean
        mean = mixture(params, 1).mean[:2]
        torch.testing.assert_close(mean, x.nanmean(0)[:2], rtol=0.01, atol=0.01)


def test_components_without_values_start_at_the_mean():
    x = torch.full((50, 1), 7.0)
    params = MixtureLikelihood(GaussianLikelihood(), num_components=3).double().params_for_mean(x)
    assert params[3:].unique().tolist() == [7.0]
    assert params[:3].exp().sum().item() == pytest.approx(52 / 50)
