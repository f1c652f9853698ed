import pytest
import scipy.stats
import torch

from tinyvae import Prior, StandardNormal

pytestmark = pytest.mark.usefixtures("float64")

# name: (prior, log density of z in numpy)
PRIORS = {
    "standard normal": (lambda: StandardNormal(3), scipy.stats.norm.logpdf),
    "standard normal, spatial": (lambda: StandardNormal((2, 3, 1)), scipy.stats.norm.logpdf),
}


@pytest.fixture(params=PRIORS)
def prior_and_log_density(request):
    make, log_density = PRIORS[request.param]
    return make(), log_density


@pytest.mark.parametrize("sample_shape", [(), (5,), (3, 5)])
def test_log_prob(prior_and_log_density, sample_shape):
    prior, log_density = prior_and_log_density
    z = torch.randn(*sample_shape, *prior.latent_shape)
    event = tuple(range(-len(prior.latent_shape), 0))
    expected = torch.from_numpy(log_density(z.numpy())).sum(event)
    torch.testing.assert_close(prior().log_prob(z), expected, rtol=1e-12, atol=1e-12)


def test_draws_follow_the_density(prior_and_log_density):
    prior, _ = prior_and_log_density
    draws = prior().sample((2000,))
    assert draws.shape == (2000, *prior.latent_shape)
    assert (scipy.stats.kstest(draws.flatten(1), "norm").pvalue > 1e-4).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_follows_the_dtype(prior_and_log_density, dtype):
    prior, _ = prior_and_log_density
    prior.to(dtype)
    assert prior().mean.dtype == prior().sample().dtype == dtype
    assert not prior.state_dict()


def test_config_builds_an_equal_prior(prior_and_log_density):
    prior, _ = prior_and_log_density
    twin = type(prior)(**prior.config())
    z = torch.randn(*prior.latent_shape)
    assert torch.equal(twin().log_prob(z), prior().log_prob(z))
    assert repr(twin) == repr(prior)


def test_standard_normal_reads_no_context():
    prior = StandardNormal(2)
    assert prior(torch.randn(7, 3)).batch_shape == ()
    assert repr(prior) == "StandardNormal((2,))"


def test_prior_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Prior()
