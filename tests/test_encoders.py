import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import gradcheck

from tinyvae import MLP, ConvNet, Encoder, GaussianEncoder

pytestmark = pytest.mark.usefixtures("float64")

# name: (encoder, data shape)
ENCODERS = {
    "gaussian, mlp": (lambda: GaussianEncoder(MLP(4, hidden=(5,), activation=nn.Tanh), 3), (4,)),
    "gaussian, conv": (
        lambda: GaussianEncoder(ConvNet((1, 5, 4), (2, 3), activation=nn.Tanh), 3),
        (1, 5, 4),
    ),
    "gaussian, foreign": (lambda: GaussianEncoder(nn.Identity(), 3, features=6), (2, 3)),
}


@pytest.fixture(params=ENCODERS)
def encoder_and_x(request):
    make, data_shape = ENCODERS[request.param]
    return make(), torch.randn(6, *data_shape)


def test_posterior_has_the_shapes_it_says(encoder_and_x):
    encoder, x = encoder_and_x
    posterior = encoder(x)
    assert posterior.batch_shape == (6,)
    assert posterior.event_shape == encoder.latent_shape == (3,)
    assert posterior.sample((2,)).shape == (2, 6, 3)


def test_examples_do_not_touch_each_other(encoder_and_x):
    encoder, x = encoder_and_x
    z = torch.randn(6, *encoder.latent_shape)
    together = encoder(x).log_prob(z)
    order = torch.randperm(6)
    torch.testing.assert_close(encoder(x[order]).log_prob(z[order]), together[order])
    chunks = [encoder(a).log_prob(b) for a, b in zip(x.split(4), z.split(4), strict=True)]
    torch.testing.assert_close(torch.cat(chunks), together)


def test_gradients_reach_every_parameter(encoder_and_x):
    encoder, x = encoder_and_x
    encoder(x).log_prob(torch.randn(3)).sum().backward()
    assert all(p.grad.abs().max() > 0 for p in encoder.parameters())


def test_gradients(encoder_and_x):
    encoder, x = encoder_and_x
    assert gradcheck(lambda x: encoder(x).log_prob(torch.ones(3)), x.requires_grad_())


def test_config_builds_an_equal_encoder(encoder_and_x):
    encoder, x = encoder_and_x
    twin = type(encoder)(**encoder.config())
    twin.load_state_dict(encoder.state_dict())
    assert torch.equal(twin(x).log_prob(torch.ones(3)), encoder(x).log_prob(torch.ones(3)))


def test_gaussian_is_its_formula():
    encoder, x = GaussianEncoder(nn.Identity(), 2, features=3), torch.randn(4, 3)
    head = (x @ encoder.head.weight.T + encoder.head.bias).detach().numpy()
    mean, log_std = head[:, :2], head[:, 2:]
    posterior, z = encoder(x), torch.randn(4, 2)
    np.testing.assert_allclose(posterior.mean.detach(), mean, rtol=1e-12)
    log_q = -0.5 * ((z.numpy() - mean) / np.exp(log_std)) ** 2 - log_std - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(posterior.log_prob(z).detach(), log_q.sum(1), rtol=1e-12)


def test_context_is_the_networks_second_argument():
    class Sum(nn.Module):
        def forward(self, x, context):
            return x + context

    encoder = GaussianEncoder(Sum(), 2, features=3)
    x, context = torch.randn(2, 4, 3)
    plain = GaussianEncoder(nn.Identity(), 2, features=3)
    plain.load_state_dict(encoder.state_dict())
    assert torch.equal(encoder(x, context).mean, plain(x + context).mean)


def test_foreign_network_needs_features():
    with pytest.raises(TypeError, match=r"number of features off a Linear: give features="):
        GaussianEncoder(nn.Linear(3, 4), latent_dim=2)


def test_latent_dim_is_positive():
    with pytest.raises(ValueError, match="latent_dim >= 1, got 0"):
        GaussianEncoder(MLP(4), latent_dim=0)


def test_encoder_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Encoder()
