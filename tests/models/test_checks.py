"""Parts that do not fit together."""

import math
import re

import pytest
import torch
from helpers.models import (
    MODELS,
    ContextLinear,
    binary,
    features,
    mlp_vae,
    small_vae,
    standard_normal,
    with_decoder,
)
from torch import nn

from tinyvae import (
    ELBO,
    MLP,
    VAE,
    Batch,
    BernoulliLikelihood,
    Encoder,
    GaussianEncoder,
    GaussianLikelihood,
    StandardNormal,
)
from tinyvae.encoders import (
    CategoricalEncoder,
    GumbelSoftmaxEncoder,
    JointEncoder,
    PowerSphericalEncoder,
)
from tinyvae.likelihoods import Learned
from tinyvae.priors import CategoricalPrior, GaussianPrior, JointPrior, SphereUniformPrior

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture(params=MODELS)
def model_case(request):
    return MODELS[request.param]


def test_check_returns_the_output_of_two_examples(model_case):
    make, data_shape, *_ = model_case
    vae, x = make(), binary(5, *data_shape)
    for rows in (x, x[:1]):
        record = vae.check(rows)
        first_rows = rows[:2]
        assert record.log_weight().shape == (1, len(first_rows))
        torch.testing.assert_close(record.latents[0].z[0], vae.encode(first_rows).mean)


class FunctionEncoder(Encoder):
    """An encoder that returns the value of a function."""

    def __init__(self, answer, latent_shape=(3,)):
        super().__init__()
        self.answer, self.latent_shape = answer, torch.Size(latent_shape)

    def forward(self, x, context=None):
        return self.answer(x)

    def config(self):
        return {"answer": None}


def with_encoder(answer):
    return lambda: VAE(FunctionEncoder(answer), MLP(3, out_shape=4), BernoulliLikelihood())


class FunctionDecoder(nn.Linear):
    """A decoder that returns the value of a function of four numbers."""

    def __init__(self, answer):
        super().__init__(3, 4)
        self.answer = answer

    def forward(self, z):
        return self.answer(super().forward(z))


def with_output(answer, likelihood):
    return lambda: VAE(GaussianEncoder(MLP(4), 3), FunctionDecoder(answer), likelihood)


def gray_levels():
    return torch.tensor([[0.0, 255.0, 3.0, 4.0]])


# name: (model, data, exception, message)
MISFITS = {
    "decoder too wide": (
        with_decoder(lambda: MLP(3, out_shape=5)),
        lambda: torch.zeros(2, 4),
        ValueError,
        r"data of shape (4,) needs a decoder that returns (4,) per example, got (5,): "
        r"give it out_shape=(4,)",
    ),
    "decoder misses a parameter": (
        lambda: VAE(
            GaussianEncoder(MLP(4), 3), MLP(3, out_shape=4), GaussianLikelihood("predicted")
        ),
        lambda: torch.zeros(2, 4),
        ValueError,
        "needs a decoder that returns (2, 4) per example, got (4,)",
    ),
    "decoder returns no tensor": (
        with_decoder(lambda: nn.LSTM(3, 4)),
        lambda: torch.zeros(2, 4),
        ValueError,
        "returns (4,) per example, got a tuple of 2 (Tensor, tuple): return one tensor, the",
    ),
    "decoder of other latents": (
        with_decoder(lambda: MLP(2, out_shape=4)),
        lambda: torch.zeros(2, 4),
        ValueError,
        "the decoder does not accept a batch of shape (2, 3) and torch.float64: MLP expects "
        "inputs of shape (N, *in_shape) with in_shape = (2,)",
    ),
    "encoder returns a tensor": (
        with_encoder(lambda x: x[:, :3]),
        lambda: torch.zeros(2, 4),
        TypeError,
        "an encoder must return a Distribution, q(z given x), got a tensor: wrap its network",
    ),
    "encoder returns mean and log variance": (
        with_encoder(lambda x: (x[:, :3], x[:, :3])),
        lambda: torch.zeros(2, 4),
        TypeError,
        "got a tuple of 2 (Tensor, Tensor): return Independent(Normal(mean, log_std), 1) of "
        "tinyvae.distributions, where log_std is half the log variance, or wrap its network",
    ),
    "encoder returns a dictionary": (
        with_encoder(lambda x: {"mu": x, "logvar": x}),
        lambda: torch.zeros(2, 4),
        TypeError,
        "got a dict of 'mu', 'logvar': return Independent(Normal(mean, log_std), 1)",
    ),
    "encoder returns a distribution of torch": (
        with_encoder(lambda x: torch.distributions.Normal(x[:, :3], 1.0)),
        lambda: torch.zeros(2, 4),
        TypeError,
        "got a torch.distributions.Normal: return TorchDistribution(torch.distributions."
        "Independent(q, 1)) of tinyvae.distributions",
    ),
    "encoder returns a joint distribution of torch": (
        with_encoder(lambda x: torch.distributions.Dirichlet(x[:, :3] + 1)),
        lambda: torch.zeros(2, 4),
        TypeError,
        "got a torch.distributions.Dirichlet: return TorchDistribution(q)",
    ),
    "encoder's network returns a pair": (
        lambda: VAE(
            GaussianEncoder(nn.LSTM(4, 3), 3, features=3), MLP(3, (), 4), BernoulliLikelihood()
        ),
        lambda: torch.zeros(2, 4),
        ValueError,
        "GaussianEncoder expects a network that returns features, a tensor (B, ...), got a tuple",
    ),
    "encoder gets labels": (
        lambda: VAE(
            GaussianEncoder(ContextLinear(4, 3, 7), 3, features=7),
            ContextLinear(3, 3, 4),
            BernoulliLikelihood(),
        ),
        lambda: (torch.zeros(2, 4), torch.tensor([0, 2])),
        ValueError,
        "(the context is (2,) of torch.int64: give rows, for classes torch.nn.functional.one_hot(",
    ),
    "encoder of other features": (
        lambda: VAE(
            GaussianEncoder(nn.Linear(4, 7), 3, features=8), MLP(3, (), 4), BernoulliLikelihood()
        ),
        lambda: torch.zeros(2, 4),
        ValueError,
        "GaussianEncoder expects a network that returns 8 features per example, got 7: give it "
        "features=7",
    ),
    "decoder returns mean and log scale": (
        with_output(lambda h: (h, h), GaussianLikelihood("predicted")),
        lambda: torch.zeros(2, 4),
        ValueError,
        "returns (2, 4) per example, got a tuple of 2 (Tensor, Tensor): return one tensor with its "
        "2 parameters along the first axis, in the order of the class's docstring, such as "
        "torch.stack((mean, log_scale), 1), where log_scale is half a log variance",
    ),
    "decoder returns too many parts": (
        with_output(lambda h: (h, h), GaussianLikelihood()),
        lambda: torch.zeros(2, 4),
        ValueError,
        "the likelihood's only parameter. If the decoder also predicts a scale, give a likelihood "
        "that reads it, such as GaussianLikelihood('predicted')",
    ),
    "decoder returns a distribution": (
        with_output(lambda h: torch.distributions.Bernoulli(logits=h), BernoulliLikelihood()),
        lambda: torch.zeros(2, 4),
        ValueError,
        "got a torch.distributions.Bernoulli: return its parameters; the likelihood makes the",
    ),
    "decoder returns parameters last": (
        with_output(lambda h: torch.stack((h, h), -1), GaussianLikelihood("predicted")),
        lambda: torch.zeros(2, 4),
        ValueError,
        "got (4, 2): put parameters, then channels first, output.movedim(-1, 1)",
    ),
    "decoder returns flat parameters": (
        with_output(lambda h: torch.cat((h, h), 1), GaussianLikelihood("predicted")),
        lambda: torch.zeros(2, 4),
        ValueError,
        "got (8,): return output.reshape(-1, 2, 4)",
    ),
    "decoder returns one parameter of two": (
        with_output(lambda h: h, GaussianLikelihood("predicted")),
        lambda: torch.zeros(2, 4),
        ValueError,
        "got (4,): give it out_shape=(2, 4), or return its 2 parameters along the first axis",
    ),
    "encoder of other data": (
        small_vae,
        lambda: torch.zeros(2, 3),
        ValueError,
        "VAE expects x of shape (B, 4), got (2, 3): give examples of shape (4,), or build VAE "
        "with data_shape=(3,) and networks for it",
    ),
    "encoder that reads no context": (
        small_vae,
        lambda: (torch.zeros(2, 4), torch.zeros(2, 1)),
        ValueError,
        "(does it take the context as its second argument?)",
    ),
    "posterior of another latent": (
        with_encoder(lambda x: standard_normal(len(x), 2, event_ndim=1)),
        lambda: torch.zeros(2, 4),
        ValueError,
        "event_shape latent_shape = (3,), got Independent(Normal, batch_shape=(2,), event_shape=(2",
    ),
    "posterior without a batch": (
        with_encoder(lambda _: standard_normal(3, event_ndim=1)),
        lambda: torch.zeros(2, 4),
        ValueError,
        "batch_shape (2,) and event_shape latent_shape = (3,), got",
    ),
    "posterior without an event": (
        with_encoder(lambda x: standard_normal(len(x), 3, event_ndim=0)),
        lambda: torch.zeros(2, 4),
        ValueError,
        "batch_shape (2,) and event_shape latent_shape = (3,), got",
    ),
    "pixels 0..255": (
        small_vae,
        gray_levels,
        ValueError,
        "values in [0, 1], got 0..255, such as 255, in 1 of 1 examples",
    ),
    "NaN": (small_vae, lambda: gray_levels() * math.nan, ValueError, "got NaN in 1 of 1 examples"),
    "levels": (small_vae, lambda: gray_levels().long(), ValueError, "values in [0, 1], got 0..255"),
    "integers": (
        lambda: mlp_vae(GaussianLikelihood(), (4,)),
        lambda: gray_levels().long(),
        TypeError,
        "floating-point data, got torch.int64",
    ),
    "no examples": (
        small_vae,
        lambda: torch.zeros(0, 4),
        ValueError,
        "x of shape (B, 4) with B >= 1, got (0, 4)",
    ),
    "no batch": (
        small_vae,
        lambda: torch.zeros(4),
        ValueError,
        "(B, 4) with B >= 1, got (4,): add",
    ),
    "learned scale of batches": (
        lambda: mlp_vae(GaussianLikelihood(Learned((2, 1))), (4,)),
        lambda: torch.zeros(2, 4),
        ValueError,
        "Learned(shape=(2, 1)) does not broadcast over data of shape (4,)",
    ),
    "learned scale of other data": (
        lambda: mlp_vae(GaussianLikelihood(Learned((3,))), (4,)),
        lambda: torch.zeros(2, 4),
        ValueError,
        "Learned(shape=(3,)) does not broadcast over data of shape (4,)",
    ),
}


def test_check_and_a_pass_name_the_part_that_does_not_fit():
    for make, data, exception, message in MISFITS.values():
        x = data()
        for look in (VAE.check, VAE.__call__):
            with pytest.raises(exception, match=re.escape(message)):
                look(make(), *(x if isinstance(x, tuple) else (x,)))


def test_check_checks_the_support_of_all_examples():
    x = torch.zeros(9, 4)
    x[8, 2] = 2.0
    with pytest.raises(ValueError, match=r"got 0\.\.2"):
        small_vae().check(x)


MEASURES = {
    "classes under a density": (
        lambda: CategoricalEncoder(features(), 3),
        lambda: StandardNormal((3, 1)),
    ),
    "relaxed classes under classes": (
        lambda: GumbelSoftmaxEncoder(features(), 3),
        lambda: CategoricalPrior(3),
    ),
    "reals under classes": (
        lambda: GaussianEncoder(features(), (3, 1)),
        lambda: CategoricalPrior(3),
    ),
    "directions under a density": (
        lambda: PowerSphericalEncoder(features(), 3),
        lambda: StandardNormal(3),
    ),
    "reals under directions": (
        lambda: GaussianEncoder(features(), 3),
        lambda: SphereUniformPrior(3),
    ),
}


def test_check_refuses_posterior_and_prior_on_different_spaces():
    for make_encoder, make_prior in MEASURES.values():
        encoder = make_encoder()
        decoder = MLP(encoder.latent_shape, (5,), 4)
        vae = VAE(encoder, decoder, BernoulliLikelihood(), make_prior())
        with pytest.raises(ValueError, match=r"give a prior over .*, such as"):
            ELBO().check(vae, Batch(binary(5, 4)))
        assert not vae(binary(5, 4)).is_density


def test_joint_prior_in_another_order_is_refused():
    encoder = JointEncoder([(name, GaussianEncoder(features(), 1)) for name in "ab"])
    prior = JointPrior([(name, GaussianPrior(1)) for name in "ba"])
    with pytest.raises(ValueError, match="latents in their order"):
        VAE(encoder, MLP(2, out_shape=4), BernoulliLikelihood(), prior).check(binary(3, 4))


def test_joint_prior_of_other_names_is_refused():
    def composed_with(sizes):
        encoder = JointEncoder({name: GaussianEncoder(features(), 1) for name in "ab"})
        prior = JointPrior({name: StandardNormal(size) for name, size in sizes.items()})
        return VAE(encoder, MLP(2, out_shape=4), BernoulliLikelihood(), prior)

    for sizes in ({"a": 1, "c": 1}, {"a": 2}, {"a": 1, "b": 1, "c": 0}):
        with pytest.raises(ValueError, match="latents"):
            composed_with(sizes).check(binary(3, 4))
