"""Total correlation by minibatch estimates."""

import itertools
import math
import re

import numpy as np
import pytest
import torch
from helpers.cases import for_each
from helpers.regularizers import DATA, LATENT, SIZE, assert_same, gradients, penalty_of, small_vae
from torch import nn

from tinyvae import ELBO, MLP, Batch, GaussianEncoder
from tinyvae.encoders import DeterministicEncoder, FullGaussianEncoder
from tinyvae.objectives import TotalCorrelationRegularizer
from tinyvae.objectives.regularizers.total_correlation import aggregate_log_weights

pytestmark = pytest.mark.usefixtures("float64")


def numpy_terms(record, size, sampling):
    """Return the three terms by loops over samples, examples and dimensions."""
    (term,) = record.latents
    z, log_p = term.z.detach().numpy(), term.log_p.detach().numpy()
    mean = term.posterior.base.mean.detach().numpy()
    std = np.exp(term.posterior.base.log_std.detach().numpy())
    num_samples, batch, dim = z.shape
    values = np.zeros((num_samples, batch, 3))
    for k, i in itertools.product(range(num_samples), range(batch)):
        density = np.zeros((batch, dim))
        weight = np.zeros(batch)
        for j in range(batch):
            if sampling == "weighted":
                weight[j] = 1 / (size * batch)
            else:
                weight[j] = 1 / size if i == j else (size - 1) / size / (batch - 1)
            for d in range(dim):
                square = ((z[k, i, d] - mean[j, d]) / std[j, d]) ** 2
                density[j, d] = math.exp(-square / 2) / std[j, d] / math.sqrt(2 * math.pi)
        q = sum(weight[j] * density[j].prod() for j in range(batch))
        product = math.prod(
            sum(weight[j] * density[j, d] for j in range(batch)) for d in range(dim)
        )
        values[k, i] = (
            math.log(density[i].prod() / q),
            math.log(q / product),
            math.log(product) - log_p[k, i],
        )
    return values.mean((0, 1))


@for_each("sampling", ["stratified", "weighted"])
@for_each("num_samples", [1, 3])
def test_total_correlation_agrees_with_numpy(sampling, num_samples):
    vae, x = small_vae(), 2 * torch.randn(7, DATA)
    options = {"mutual_information": 0.3, "dimension_kl": 0.7, "sampling": sampling}
    record, penalty = penalty_of(
        TotalCorrelationRegularizer(1.9, dataset_size=SIZE, **options), vae, x, num_samples
    )
    expected = numpy_terms(record, SIZE, sampling)
    names = ("mutual_information", "total_correlation", "dimension_kl")
    for name, value in zip(names, expected, strict=True):
        metric = penalty.metrics[f"batch_{name}_nats"]
        assert metric.item() == pytest.approx(value, rel=1e-12, abs=1e-12)
    total = expected @ np.array([0.3, 1.9, 0.7])
    assert penalty.loss.item() == pytest.approx(total, rel=1e-12)


@for_each("sampling", ["stratified", "weighted"])
@for_each("num_samples", [1, 3])
def test_total_correlation_terms_sum_to_the_kl(sampling, num_samples):
    vae, batch = small_vae(), Batch(torch.randn(7, DATA))
    ones = TotalCorrelationRegularizer(
        1.0,
        dataset_size=SIZE,
        mutual_information=1.0,
        dimension_kl=1.0,
        sampling=sampling,
    )
    record, penalty = penalty_of(ones, vae, batch.x, num_samples)
    (term,) = record.latents
    expected = (term.log_q - term.log_p).mean()
    torch.testing.assert_close(sum(penalty.metrics.values()), expected, rtol=0, atol=1e-12)
    losses = []
    for objective in (
        ELBO(0.0, num_samples=num_samples) + ones,
        ELBO(kl="sample", num_samples=num_samples),
    ):
        torch.manual_seed(3)
        losses.append(objective(vae, batch).losses["model"])
    torch.testing.assert_close(*losses, rtol=1e-13, atol=0)
    assert_same(*(gradients(loss, vae) for loss in losses))


@for_each("size", [1, 2, 3, 6])
def test_aggregate_log_weights_stratified_are_unbiased(size):
    """The mean over all batches with the example of z, at any position, is the density."""
    num = 6
    posterior = small_vae().encode(2 * torch.randn(num, DATA))
    z = posterior.sample()[2]
    density = posterior.log_prob(z).exp()  # (N,)
    others = [n for n in range(num) if n != 2]
    weights = aggregate_log_weights(num, "stratified", torch.empty(size, size)).exp()
    for place in range(size):
        estimates = []
        for rest in itertools.combinations(others, size - 1):
            batch = list(rest)
            batch.insert(place, 2)
            estimates.append((weights[place] * density[batch]).sum())
        mean = torch.stack(estimates).mean()
        if size > 1:
            torch.testing.assert_close(mean, density.mean(), rtol=1e-12, atol=0)
            assert weights[place].sum().item() == pytest.approx(1.0, rel=1e-13)
        assert weights[place, place].item() == pytest.approx(1 / num, rel=1e-13)


def test_aggregate_log_weights_weighted():
    weights = aggregate_log_weights(100, "weighted", torch.empty(5, 5))
    torch.testing.assert_close(weights, torch.full((5, 5), math.log(1 / 500)), rtol=1e-14, atol=0)


def test_total_correlation_of_all_data_is_exact():
    vae, x = small_vae(), 2 * torch.randn(6, DATA)
    record, penalty = penalty_of(TotalCorrelationRegularizer(1.0, dataset_size=6), vae, x, 3)
    (term,) = record.latents
    posterior = term.posterior
    log_q = posterior.log_prob(term.z.unsqueeze(2)).exp().mean(2).log()
    each = posterior.elementwise_log_prob(term.z.unsqueeze(2)).exp().mean(2).log().sum(-1)
    found = penalty.metrics
    for name, value in {
        "batch_mutual_information_nats": term.log_q - log_q,
        "batch_total_correlation_nats": log_q - each,
        "batch_dimension_kl_nats": each - term.log_p,
    }.items():
        torch.testing.assert_close(found[name], value.mean(), rtol=1e-12, atol=1e-12)


def test_total_correlation_of_independent_dimensions_is_zero():
    """Means on a grid and equal widths make q(z) a product."""
    vae = small_vae(DeterministicEncoder)
    vae.encoder = GaussianEncoder(nn.Identity(), LATENT, features=LATENT)
    with torch.no_grad():
        vae.encoder.head.weight.copy_(torch.eye(4)[:, :LATENT])
        vae.encoder.head.bias.copy_(torch.tensor([0.0, 0.0, -0.5, -0.5]))
    grid = torch.cartesian_prod(torch.linspace(-2, 2, 4), torch.linspace(-1, 3, 5))
    vae.decoder = MLP(LATENT, hidden=(), out_shape=LATENT)
    _, penalty = penalty_of(TotalCorrelationRegularizer(1.0, dataset_size=len(grid)), vae, grid, 3)
    assert penalty.loss.item() == pytest.approx(0.0, abs=1e-13)
    tilted = grid.clone()
    tilted[:, 1] += grid[:, 0]
    _, penalty = penalty_of(
        TotalCorrelationRegularizer(1.0, dataset_size=len(grid)), vae, tilted, 3
    )
    assert penalty.loss.item() > 0.1


def test_total_correlation_refuses_large_batches_and_dependent_dimensions():
    batch = Batch(torch.randn(7, DATA))
    with pytest.raises(
        ValueError, match="at most dataset_size=6 examples, got 7: set dataset_size"
    ):
        (ELBO() + TotalCorrelationRegularizer(1.0, dataset_size=6))(small_vae(), batch)
    objective = ELBO() + TotalCorrelationRegularizer(1.0, dataset_size=SIZE)
    remedy = re.compile(
        "TotalCorrelationRegularizer expects posteriors with independent dimensions, got an error: "
        "elementwise_log_prob expects independent elements, got FullNormal"
    )
    with pytest.raises(ValueError, match=remedy):
        objective.check(small_vae(FullGaussianEncoder), batch)
