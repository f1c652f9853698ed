import copy
import itertools
import math
import re
import time

import pytest
import torch
from helpers.oracles import random_linear_gaussian
from torch import nn
from torch.distributions import MultivariateNormal

from tinyvae import (
    ELBO,
    MLP,
    VAE,
    Batch,
    BernoulliLikelihood,
    ConvNet,
    Encoder,
    GaussianEncoder,
    GaussianLikelihood,
    Likelihood,
    Prior,
    StandardNormal,
    Trainer,
    TransposedConvNet,
    VampPrior,
    evaluate,
    log_marginal,
)
from tinyvae.distributions import Independent, Normal
from tinyvae.encoders import (
    CategoricalEncoder,
    DeterministicEncoder,
    FlowEncoder,
    FullGaussianEncoder,
    GumbelSoftmaxEncoder,
    JointEncoder,
    LaplaceEncoder,
    LowRankGaussianEncoder,
    PowerSphericalEncoder,
)
from tinyvae.encoders.quantized import VectorQuantizedEncoder
from tinyvae.errors import CheckpointError, NoClosedFormError
from tinyvae.flows import Flow
from tinyvae.io import load_tensors, save_tensors
from tinyvae.likelihoods import Learned
from tinyvae.models import LatentTerm
from tinyvae.priors import (
    CategoricalPrior,
    FittedPrior,
    FlowPrior,
    FullGaussianPrior,
    GaussianPrior,
    GumbelSoftmaxPrior,
    JointPrior,
    MixturePrior,
    SphereUniformPrior,
    StandardLaplace,
)
from tinyvae.priors.codes import CodePrior

pytestmark = pytest.mark.usefixtures("float64")


def standard_normal(*batch_and_event, event_ndim):
    zero = torch.zeros(batch_and_event)
    return Independent(Normal(zero, zero), event_ndim)


class SpatialEncoder(Encoder):
    """A posterior over maps (2, H, W), of modules that are not the library's."""

    def __init__(self, height, width):
        super().__init__()
        self.latent_shape = torch.Size((2, height, width))
        self.head = nn.Conv2d(1, 4, 1)

    def forward(self, x, context=None):
        return Independent(Normal(*self.head(x).chunk(2, 1)), 3)

    def config(self):
        return {"height": self.latent_shape[1], "width": self.latent_shape[2]}


def mlp_vae(likelihood=None, data=(2, 3, 1)):
    likelihood = BernoulliLikelihood() if likelihood is None else likelihood
    encoder = GaussianEncoder(MLP(data, hidden=(6,)), latent_dim=3)
    return VAE(encoder, MLP(3, hidden=(6,), out_shape=likelihood.param_shape(data)), likelihood)


def conv_vae():
    encoder = GaussianEncoder(ConvNet((1, 5, 4), (2, 3)), latent_dim=3)
    decoder = TransposedConvNet(3, (2, 1, 5, 4), (3, 2))
    return VAE(encoder, decoder, GaussianLikelihood("predicted"), StandardNormal(3))


def spatial_vae():
    decoder = nn.Conv2d(2, 1, 3, padding=1)
    return VAE(SpatialEncoder(3, 4), decoder, GaussianLikelihood(Learned((1, 3, 4))))


# name: (model, data shape, latent shape, own parts, foreign modules)
MODELS = {
    "mlp, bernoulli": (mlp_vae, (2, 3, 1), (3,), (), ()),
    "mlp, learned scale": (
        lambda: mlp_vae(GaussianLikelihood(Learned((2, 1, 1)))),
        (2, 3, 1),
        (3,),
        (),
        (),
    ),
    "vectors, fixed scale": (
        lambda: mlp_vae(GaussianLikelihood(0.2), (4,)),
        (4,),
        (3,),
        (),
        (),
    ),
    "conv, predicted scale": (conv_vae, (1, 5, 4), (3,), (), ()),
    "own spatial encoder, foreign decoder": (
        spatial_vae,
        (1, 3, 4),
        (2, 3, 4),
        (SpatialEncoder,),
        ("decoder",),
    ),
    "foreign networks": (
        lambda: VAE(
            GaussianEncoder(nn.Flatten(), 3, features=6),
            nn.Sequential(nn.Linear(3, 6), nn.Unflatten(1, (2, 3, 1))),
            BernoulliLikelihood(),
        ),
        (2, 3, 1),
        (3,),
        (),
        ("encoder.network", "decoder"),
    ),
}


def binary(*shape):
    return (torch.rand(shape) > 0.5).to(torch.get_default_dtype())


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]


# Shapes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_samples", "batch"), [(1, 5), (3, 5), (3, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_and_dtypes(model, num_samples, batch, dtype):
    make, data_shape, latent_shape, *_ = model
    vae, x = make().to(dtype), binary(batch, *data_shape).to(dtype)
    assert vae.latent_shape == latent_shape
    output = vae(x, num_samples=num_samples)
    (term,) = output.latents
    assert term.name == "z"
    tensors = {
        (num_samples, batch, *latent_shape): [term.z],
        (num_samples, batch): [output.log_px, term.log_q, term.log_p, output.log_weight()],
        (batch,): [term.kl(), term.kl("sample")],
        (num_samples, batch, *data_shape): [output.likelihood.mean, vae.decode(term.z).sample()],
        (batch, *data_shape): [vae.reconstruct(x), vae.decode(term.z[0]).mean],
        (7, *data_shape): [vae.sample(7), vae.sample(7, mean=True)],
        data_shape: [vae.decode(term.z[0, 0, None]).mean[0]],
    }
    for shape, values in tensors.items():
        assert [v.shape for v in values] == [shape] * len(values)
        assert {v.dtype for v in values} == {dtype}
    assert output.likelihood.batch_shape == (num_samples, batch)
    assert output.likelihood.event_shape == data_shape
    assert term.posterior.batch_shape == (batch,)
    assert not vae.sample(2).requires_grad


def test_log_weight_is_the_sum_of_its_terms(model):
    make, data_shape, *_ = model
    vae, x = make(), binary(5, *data_shape)
    output = vae(x, num_samples=3)
    z = output.latents[0].z
    expected = vae.decode(z).log_prob(x) + vae.prior().log_prob(z) - vae.encode(x).log_prob(z)
    torch.testing.assert_close(output.log_weight(), expected, rtol=1e-12, atol=1e-12)


def test_draws_are_row_by_row(model):
    """p(x given z) of K x B latents is that of each alone: nothing is mixed up in folding."""
    make, _, latent_shape, *_ = model
    vae, z = make(), torch.randn(3, 5, *latent_shape)
    together = vae.decode(z).mean
    alone = torch.stack(
        [torch.stack([vae.decode(z[k, b][None]).mean[0] for b in range(5)]) for k in range(3)]
    )
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)


def test_gradients_reach_every_parameter(model):
    make, data_shape, *_ = model
    vae = make()
    vae(binary(5, *data_shape), num_samples=3).log_weight().sum().backward()
    dead = [n for n, p in vae.named_parameters() if p.grad is None or not p.grad.any()]
    assert not dead


def test_check_accepts_what_fits(model):
    make, data_shape, *_ = model
    vae, x = make(), binary(5, *data_shape)
    for rows in (x, x[:1]):
        record = vae.check(rows)
        two = rows[:2]
        assert record.log_weight().shape == (1, len(two))
        torch.testing.assert_close(record.latents[0].z[0], vae.encode(two).mean)


def test_sample_follows_the_model():
    """The mean of draws is that of p(x), by the decoder's mean over prior draws."""
    vae = mlp_vae(GaussianLikelihood(0.5), (4,))
    draws, means = vae.sample(20_000), vae.sample(20_000, mean=True)
    error = (draws.var(0) / 20_000 + means.var(0) / 20_000).sqrt()
    assert ((draws.mean(0) - means.mean(0)).abs() < 4 * error).all()
    noise = draws.var(0) - means.var(0)
    torch.testing.assert_close(noise, torch.full((4,), 0.25), rtol=0.1, atol=0)


def test_reconstruct_draws_nothing(model):
    make, data_shape, *_ = model
    vae, x = make(), binary(5, *data_shape)
    state = torch.get_rng_state()
    reconstruction = vae.reconstruct(x)
    assert torch.equal(torch.get_rng_state(), state)
    expected = vae.decode(vae.encode(x).mean).mean
    assert torch.equal(reconstruction, expected)


def test_kl_estimators():
    q, p = standard_normal(5, 3, event_ndim=1), standard_normal(2, 5, 3, event_ndim=1)
    q = Independent(Normal(q.mean + 2, q.base.log_std), 1)
    term = LatentTerm("z", q.sample((2,)), q, p)
    assert term.has_analytic_kl
    torch.testing.assert_close(term.kl("analytic"), torch.full((5,), 6.0))  # 3 x 2^2 / 2
    assert torch.equal(term.kl("sample"), (term.log_q - term.log_p).mean(0))
    assert torch.equal(term.kl(), term.kl("analytic"))
    flat = LatentTerm("z", term.z, q, Independent(p.base, 2))
    assert not flat.has_analytic_kl
    with pytest.raises(NoClosedFormError):
        flat.kl("analytic")


# Context ------------------------------------------------------------------------------------------


class WithContext(nn.Module):
    """A linear layer of input and context together."""

    def __init__(self, n_in, n_context, n_out):
        super().__init__()
        self.linear = nn.Linear(n_in + n_context, n_out)

    def forward(self, x, context):
        return self.linear(torch.cat([x, context], 1))


class ContextPrior(Prior):
    def __init__(self, latent_dim, n_context):
        super().__init__()
        self.latent_shape = torch.Size((latent_dim,))
        self.linear = nn.Linear(n_context, latent_dim)

    def forward(self, context=None, *, encoder=None):
        mean = self.linear(context)
        return Independent(Normal(mean, torch.zeros_like(mean)), 1)

    def config(self):
        return {"latent_dim": self.latent_shape[0], "n_context": self.linear.in_features}


def conditional_vae(prior=True):
    encoder = GaussianEncoder(WithContext(4, 2, 6), latent_dim=3, features=6)
    prior = ContextPrior(3, 2) if prior else None
    return VAE(encoder, WithContext(3, 2, 4), GaussianLikelihood(0.1), prior)


@pytest.mark.parametrize("with_prior", [False, True])
def test_context_flows_through_every_part(with_prior):
    vae, x, context = conditional_vae(with_prior), torch.randn(5, 4), torch.randn(5, 2)
    output = vae(x, context, num_samples=3)
    (term,) = output.latents
    assert output.log_weight().shape == (3, 5)
    for b in range(5):  # each example with its own context, and no other
        row, own = x[b : b + 1], context[b : b + 1]
        z = term.z[:, b : b + 1]
        head = vae.encoder.head(vae.encoder.network(row, own))
        torch.testing.assert_close(term.posterior.mean[b], head[0, :3])
        decoded = torch.stack([vae.decoder(z[k], own) for k in range(3)])
        torch.testing.assert_close(output.likelihood.mean[:, b : b + 1], decoded)
        prior = vae.prior.linear(own) if with_prior else torch.zeros(1, 3)
        log_p = -0.5 * ((z - prior) ** 2).sum(-1) - 1.5 * math.log(2 * math.pi)
        torch.testing.assert_close(term.log_p[:, b : b + 1], log_p)
    reconstruction = vae.decoder(term.posterior.mean, context)
    torch.testing.assert_close(vae.reconstruct(x, context), reconstruction)
    vae.check(x, context)
    assert log_marginal(vae, x, context, num_samples=4).shape == (5,)
    objective, batch = ELBO(num_samples=2), Batch(x, context)
    objective.check(vae, batch)
    objective(vae, batch).losses["model"].backward()
    assert all(p.grad.any() for p in vae.parameters())


@pytest.mark.parametrize("with_prior", [False, True])
def test_samples_given_a_context(with_prior):
    vae, context = conditional_vae(with_prior), torch.tensor([[0.0, 0.0], [30.0, -30.0]])
    draws = vae.sample(4000, context)
    assert draws.shape == (4000, 2, 4)
    with torch.no_grad():
        z = vae.prior.linear(context) if with_prior else torch.zeros(2, 3)
        expected = vae.decoder(z, context)  # linear, so that the mean passes through
    error = draws.std(0) / math.sqrt(4000)
    assert ((draws.mean(0) - expected).abs() < 4.5 * error).all()
    assert vae.sample(6, context, mean=True).shape == (6, 2, 4)


# Misfits ------------------------------------------------------------------------------------------


class Returning(Encoder):
    """An encoder that returns what it is told."""

    def __init__(self, answer, latent_shape=(3,)):
        super().__init__()
        self.answer, self.latent_shape = answer, torch.Size(latent_shape)

    def forward(self, x, context=None):
        return self.answer(x)

    def config(self):
        return {"answer": None}


def with_encoder(answer):
    return lambda: VAE(Returning(answer), MLP(3, out_shape=4), BernoulliLikelihood())


def with_decoder(decoder):
    return lambda: VAE(GaussianEncoder(MLP(4), 3), decoder(), BernoulliLikelihood())


def plain():
    return mlp_vae(data=(4,))


def gray():
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
        "returns (4,) per example, got tuple",
    ),
    "decoder of other latents": (
        with_decoder(lambda: MLP(2, out_shape=4)),
        lambda: torch.zeros(2, 4),
        ValueError,
        "the decoder does not accept a batch of shape (2, 3) and torch.float64 "
        "(is its in_shape (3,)",
    ),
    "encoder returns a tensor": (
        with_encoder(lambda x: x[:, :3]),
        lambda: torch.zeros(2, 4),
        TypeError,
        "an encoder must return a Distribution, q(z given x), got a Tensor: wrap its network",
    ),
    "encoder of other data": (
        plain,
        lambda: torch.zeros(2, 3),
        ValueError,
        "the encoder does not accept a batch of shape (2, 3) and torch.float64 "
        "(is its in_shape (3,)",
    ),
    "encoder of another dtype": (
        plain,
        lambda: torch.zeros(2, 4, dtype=torch.float32),
        ValueError,
        "the encoder does not accept a batch of shape (2, 4) and torch.float32",
    ),
    "encoder that reads no context": (
        plain,
        lambda: (torch.zeros(2, 4), torch.zeros(2, 1)),
        ValueError,
        "does it take the context?",
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
        plain,
        gray,
        ValueError,
        "values in [0, 1], got 0..255, such as 255, in 1 of 1 examples",
    ),
    "NaN": (plain, lambda: gray() * math.nan, ValueError, "got NaN in 1 of 1 examples"),
    "levels": (plain, lambda: gray().long(), ValueError, "values in [0, 1], got 0..255"),
    "integers": (
        lambda: mlp_vae(GaussianLikelihood(), (4,)),
        lambda: gray().long(),
        TypeError,
        "floating-point data, got torch.int64",
    ),
    "no examples": (
        plain,
        lambda: torch.zeros(0, 4),
        ValueError,
        "(B, *E) with B >= 1, got (0, 4)",
    ),
    "no batch": (plain, lambda: torch.zeros(4), ValueError, "(B, *E) with B >= 1, got (4,)"),
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


@pytest.mark.parametrize("name", MISFITS)
def test_check_tells_misfits_apart(name):
    make, data, exception, message = MISFITS[name]
    x = data()
    with pytest.raises(exception, match=re.escape(message)):
        make().check(*(x if isinstance(x, tuple) else (x,)))


def test_support_is_checked_beyond_the_first_examples():
    x = torch.zeros(9, 4)
    x[8, 2] = 2.0
    with pytest.raises(ValueError, match=r"got 0\.\.2"):
        plain().check(x)


def test_constructor_names_the_remedy():
    encoder, decoder, likelihood = GaussianEncoder(MLP(4), 3), MLP(3), BernoulliLikelihood()
    for arguments, error, message in [
        ((MLP(4), decoder, likelihood), TypeError, r"encoder a Encoder, got a MLP: wrap a network"),
        ((encoder, torch.tanh, likelihood), TypeError, r"decoder a Module, got a builtin.*MLP\("),
        ((encoder, decoder, "bernoulli"), TypeError, r"likelihood a Likelihood, got a str: such"),
        ((encoder, decoder, BernoulliLikelihood), TypeError, r"likelihood a Likelihood, got a AB"),
        ((encoder, decoder, likelihood, decoder), TypeError, r"prior a Prior, got a MLP: such as"),
        (
            (encoder, decoder, likelihood, StandardNormal(2)),
            ValueError,
            r"encoder's latents \(3,\), got one over \(2,\)",
        ),
    ]:
        with pytest.raises(error, match=message):
            VAE(*arguments)


def test_density_needs_both_parts():
    for part in ("encoder", "likelihood"):
        vae = plain()
        assert vae.is_density
        getattr(vae, part).is_density = False
        assert not vae.is_density


def test_default_prior_and_repr():
    vae = spatial_vae()
    assert isinstance(vae.prior, StandardNormal)
    assert vae.prior.latent_shape == (2, 3, 4)
    assert repr(vae).startswith("VAE(\n  latent_shape=(2, 3, 4)")


# Files --------------------------------------------------------------------------------------------


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_file_round_trip_is_bitwise(model, dtype, tmp_path):
    make, data_shape, _, own, foreign = model
    vae = make().to(dtype).train()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.normal_()
    vae.save(tmp_path / "vae.safetensors")
    replacements = {name: make().get_submodule(name) for name in foreign}
    state = torch.get_rng_state()
    loaded = VAE.load(tmp_path / "vae.safetensors", parts=own, replace=replacements)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_default_dtype() == torch.float64
    assert vae.training
    assert not any(m.training for m in loaded.modules())
    assert all(p.requires_grad for p in loaded.parameters())
    assert repr(loaded) == repr(vae)
    states = vae.state_dict(), loaded.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(same_bits(t, states[1][name]) for name, t in states[0].items())
    if dtype != torch.bfloat16:
        x = binary(5, *data_shape).to(dtype)
        outputs = []
        for each in (vae, loaded):
            torch.manual_seed(1)
            outputs.append(each(x, num_samples=3).log_weight())
        assert same_bits(*outputs)


def test_file_keeps_mixed_dtypes(tmp_path):
    vae = mlp_vae(GaussianLikelihood(), (4,)).float()
    vae.likelihood.double()
    vae.decoder.layers[2].half()
    vae.save(tmp_path / "vae.safetensors")
    loaded = VAE.load(tmp_path / "vae.safetensors").state_dict()
    assert len({t.dtype for t in loaded.values()}) == 3
    assert all(same_bits(t, loaded[name]) for name, t in vae.state_dict().items())


def test_file_keeps_options(tmp_path):
    encoder = GaussianEncoder(MLP(4, hidden=(5, 6), activation=nn.Tanh), 3)
    decoder = MLP(3, hidden=(), out_shape=(4,))
    likelihood = GaussianLikelihood(Learned((4,), minimum=0.25))
    VAE(encoder, decoder, likelihood).save(tmp_path / "vae.safetensors")
    loaded = VAE.load(tmp_path / "vae.safetensors")
    assert loaded.likelihood.std.minimum == 0.25
    assert loaded.encoder.network.activation is nn.Tanh
    assert loaded.encoder.network.config() == encoder.network.config()


def test_conditional_model_round_trip(tmp_path):
    vae = conditional_vae()
    vae.save(tmp_path / "vae.safetensors")
    loaded = VAE.load(
        tmp_path / "vae.safetensors",
        parts=[ContextPrior],
        replace={"encoder.network": WithContext(4, 2, 6), "decoder": WithContext(3, 2, 4)},
    )
    x, context = torch.randn(5, 4), torch.randn(5, 2)
    assert torch.equal(loaded.reconstruct(x, context), vae.reconstruct(x, context))


class OwnLikelihood(Likelihood):
    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = scale

    def elementwise(self, *params):
        return Normal(params[0], torch.zeros(()))


class Forgetful(OwnLikelihood):
    """Does not store its argument."""

    def __init__(self, width=1.0):
        super().__init__()


def test_own_part(tmp_path):
    vae = mlp_vae(OwnLikelihood(2.5), (4,))
    vae.save(tmp_path / "vae.safetensors")
    message = r"vae.safetensors: .*unknown part 'OwnLikelihood' as 'likelihood'.*parts=\[OwnLike"
    with pytest.raises(CheckpointError, match=message):
        VAE.load(tmp_path / "vae.safetensors")
    loaded = VAE.load(tmp_path / "vae.safetensors", parts=[OwnLikelihood])
    assert type(loaded.likelihood) is OwnLikelihood
    assert loaded.likelihood.scale == 2.5


def test_forgotten_argument_is_told_at_save(tmp_path):
    vae = mlp_vae(Forgetful(2.5), (4,))
    with pytest.raises(
        TypeError, match=r"Forgetful needs.*store each argument.*self.width = width"
    ):
        vae.save(tmp_path / "vae.safetensors")
    assert not list(tmp_path.iterdir())


def test_foreign_module_is_asked_for(tmp_path):
    vae = VAE(
        GaussianEncoder(nn.Identity(), 3, features=4), MLP(3, out_shape=4), BernoulliLikelihood()
    )
    vae.save(tmp_path / "vae.safetensors")
    message = r"'encoder.network' \(a Identity\).*replace=\{'encoder.network': module\}"
    for replace in (None, {"network": nn.Identity()}):
        with pytest.raises(CheckpointError, match=message):
            VAE.load(tmp_path / "vae.safetensors", replace=replace)


def test_misfitting_foreign_module_is_refused(tmp_path):
    vae = with_decoder(lambda: nn.Linear(3, 4))()
    vae.save(tmp_path / "vae.safetensors")
    wrong = nn.Linear(3, 5)
    before = wrong.weight
    message = r"2 tensors do not fit .* 'decoder.bias': expected \(5,\), got \(4,\)"
    with pytest.raises(CheckpointError, match=message):
        VAE.load(tmp_path / "vae.safetensors", replace={"decoder": wrong})
    assert wrong.weight is before


def forged(path, change):
    """A whole file with a right digest whose description is another."""
    plain().save(path)
    tensors, info = load_tensors(path)
    change(info)
    save_tensors(path, tensors, info)


def set_config(part, **values):
    def change(info):
        *parents, last = part.split(".")
        description = info["parts"]
        for name in parents:
            description = description[name]["config"]
        description[last]["config"].update(values)

    return change


# name: (change of the file's description, message)
FORGERIES = {
    "a billion units": (
        set_config("decoder", hidden=[10**9]),
        r"expected \(1000000000,\), got \(6,\)",
    ),
    "a billion times a billion": (
        set_config("decoder", hidden=[10**9, 10**9]),
        "tensors do not fit|cannot be built",
    ),
    "too many to count": (set_config("decoder", hidden=[2**62, 2**62]), "cannot be built of what"),
    "more than an index": (set_config("decoder", hidden=[10**30]), "cannot be built of what"),
    "a billion latents": (
        set_config("encoder", latent_dim=10**9),
        "tensors do not fit|make no VAE",
    ),
    "another latent": (set_config("encoder", latent_dim=2), r"parts make no VAE: .*\(2,\)"),
    "negative size": (set_config("decoder", hidden=[-5]), "sizes of at least 1"),
    "text for a size": (set_config("encoder", latent_dim="many"), "cannot be built of what"),
    "unknown argument": (set_config("decoder", eval="x"), "cannot be built of what"),
    "unknown activation": (
        set_config("encoder.network", activation={"class": "Module"}),
        "unknown part 'Module' as 'encoder.network.activation'",
    ),
    "import path": (
        lambda info: info["parts"].update(decoder={"part": "os.system", "config": {}}),
        "unknown part 'os.system' as 'decoder'",
    ),
    "no part": (lambda info: info["parts"].update(decoder={"a": 1}), "'decoder' is described by"),
    "number for a part": (lambda info: info["parts"].update(decoder=5), "parts make no VAE"),
    "missing part": (lambda info: info["parts"].pop("decoder"), "parts make no VAE"),
    "surplus part": (lambda info: info["parts"].update(more=5), "parts make no VAE"),
    "swapped parts": (
        lambda info: info["parts"].update(encoder=info["parts"]["decoder"]),
        "parts make no VAE",
    ),
    "no parts": (lambda info: info.pop("parts"), "expected the file of a VAE, got 'VAE'"),
    "another model": (lambda info: info.update(model="GAN"), "file of a VAE, got 'GAN'"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forged_file_is_refused_quickly(name, tmp_path):
    change, message = FORGERIES[name]
    path = tmp_path / "vae.safetensors"
    forged(path, change)
    resource = pytest.importorskip("resource")
    state, start = torch.get_rng_state(), time.perf_counter()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match=message) as caught:
        VAE.load(path)
    assert str(caught.value).startswith(str(path))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 100 * 2**10  # KiB
    assert time.perf_counter() - start < 5
    assert torch.equal(torch.get_rng_state(), state)


def test_missing_and_surplus_tensors_are_refused(tmp_path):
    path = tmp_path / "vae.safetensors"
    plain().save(path)
    tensors, info = load_tensors(path)
    bias = tensors.pop("decoder.layers.0.bias")
    save_tensors(path, tensors, info)
    with pytest.raises(CheckpointError, match=r"'decoder.layers.0.bias': expected \(6,\), got no"):
        VAE.load(path)
    save_tensors(path, {**tensors, "decoder.layers.0.bias": bias, "more": bias}, info)
    with pytest.raises(CheckpointError, match=r"'more': expected none, got \(6,\)"):
        VAE.load(path)


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_truncated_file_is_refused(keep, tmp_path):
    path = tmp_path / "vae.safetensors"
    plain().save(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError):
        VAE.load(path)


def test_a_context_must_have_a_row_per_example():
    vae = VAE(GaussianEncoder(MLP(4), 2), MLP(2, out_shape=4), BernoulliLikelihood())
    with pytest.raises(ValueError, match="one row of context per example, got 2 for 3"):
        vae.check(torch.ones(3, 4), torch.ones(2, 1))
    with pytest.raises(ValueError, match=r"context of 2 rows does not fit .* batch shape \(4,\)"):
        vae.decode(torch.zeros(4, 2), torch.ones(2, 1))


def test_one_latent_alone_is_decoded():
    vae = VAE(GaussianEncoder(MLP(4), 2), MLP(2, out_shape=4), BernoulliLikelihood())
    assert vae.decode(torch.zeros(2)).mean.shape == (4,)


def test_what_a_file_cannot_say_is_refused_at_save(tmp_path):
    shared = nn.Linear(4, 4)
    encoder = GaussianEncoder(shared, 4, features=4)
    with pytest.raises(TypeError, match="are one parameter, which a file cannot say"):
        VAE(encoder, shared, BernoulliLikelihood()).save(tmp_path / "shared")
    vae = VAE(GaussianEncoder(MLP(4), 2), MLP(2, out_shape=4), BernoulliLikelihood())
    vae.teacher = nn.Linear(2, 2)
    with pytest.raises(TypeError, match=r"got also \['teacher'\]"):
        vae.save(tmp_path / "teacher")
    assert not list(tmp_path.iterdir())


def test_a_replacement_that_the_file_does_not_ask_for_is_refused(tmp_path):
    vae = VAE(GaussianEncoder(MLP(4), 2), MLP(2, out_shape=4), BernoulliLikelihood())
    vae.save(tmp_path / "vae")
    with pytest.raises(ValueError, match=r"replace names \['decoder'\]"):
        VAE.load(tmp_path / "vae", replace={"decoder": MLP(2, out_shape=4)})


# Encoders and priors ------------------------------------------------------------------------------


def features(size=4):
    return MLP(size, hidden=(5,), activation=nn.Tanh)


def perturbed_flow(dim, **options):
    """A flow that is not the identity."""
    flow = Flow(dim, transforms=2, hidden=(8,), **options)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return flow


def joint_encoder():
    style = GaussianEncoder(features(5), latent_dim=2)
    kind = CategoricalEncoder(features(5), num_classes=3)
    return JointEncoder({"style": style, "kind": kind}, network=features())


def joint_prior():
    return JointPrior({"style": GaussianPrior(2), "kind": CategoricalPrior(3, learned=True)})


REAL_ENCODERS = {
    "gaussian": lambda: GaussianEncoder(features(), 2),
    "full": lambda: FullGaussianEncoder(features(), 2),
    "low rank": lambda: LowRankGaussianEncoder(features(), 2, rank=1),
    "laplace": lambda: LaplaceEncoder(features(), 2),
    "spline": lambda: FlowEncoder(features_encoder(), perturbed_flow(2, context_dim=5)),
    "affine": lambda: FlowEncoder(features_encoder(), perturbed_flow(2, kind="affine")),
}
REAL_PRIORS = {
    "normal": lambda: StandardNormal(2),
    "laplace": lambda: StandardLaplace(2),
    "gaussian": lambda: GaussianPrior(2),
    "full": lambda: FullGaussianPrior(2),
    "mixture": lambda: MixturePrior(2, num_components=3),
    "vamp": lambda: VampPrior(2, input_shape=4, num_components=3, learned_weights=True),
    "flow": lambda: FlowPrior(perturbed_flow(2)),
    "density": lambda: FittedPrior.fit(torch.randn(50, 2), FullGaussianPrior(2)),
}


def features_encoder():
    return GaussianEncoder(features(), 2)


COMBINATIONS = {
    **{
        f"{name}, {prior}": (encoder, REAL_PRIORS[prior])
        for (name, encoder), prior in itertools.product(REAL_ENCODERS.items(), REAL_PRIORS)
    },
    "sphere, uniform": (
        lambda: PowerSphericalEncoder(features(), 3),
        lambda: SphereUniformPrior(3),
    ),
    "sphere, vamp": (
        lambda: PowerSphericalEncoder(features(), 3),
        lambda: VampPrior(3, input_shape=4, num_components=3),
    ),
    "classes, uniform": (
        lambda: CategoricalEncoder(features(), 3, num_variables=2),
        lambda: CategoricalPrior(3, num_variables=2),
    ),
    "classes, learned": (
        lambda: CategoricalEncoder(features(), 3, num_variables=2),
        lambda: CategoricalPrior(3, num_variables=2, learned=True),
    ),
    "classes, vamp": (
        lambda: CategoricalEncoder(features(), 3, num_variables=2),
        lambda: VampPrior((3, 2), input_shape=4, num_components=3),
    ),
    "relaxed, symmetric": (
        lambda: GumbelSoftmaxEncoder(features(), 3, num_variables=2),
        lambda: GumbelSoftmaxPrior(3, num_variables=2),
    ),
    "relaxed, learned": (
        lambda: GumbelSoftmaxEncoder(features(), 3, num_variables=2),
        lambda: GumbelSoftmaxPrior(3, num_variables=2, learned=True),
    ),
    "codes": (
        lambda: VectorQuantizedEncoder(features(), num_codes=5, latent_dim=(2, 3), decay=None),
        lambda: CodePrior(5, latent_dim=(2, 3)),
    ),
    "joint": (joint_encoder, joint_prior),
}


SLOW = ("spline, vamp", "affine, vamp")
# Each encoder with a prior of its own and with one that borrows it, each prior with one encoder.
DIVERSE = [
    name
    for name in COMBINATIONS
    if name.startswith("gaussian")
    or not name.endswith(tuple(set(REAL_PRIORS) - {"normal", "vamp"}))
]


def combined(name, dtype=torch.float64):
    encoder, prior = (build() for build in COMBINATIONS[name])
    decoder = MLP(encoder.latent_shape, hidden=(6,), out_shape=4, activation=nn.Tanh)
    return VAE(encoder, decoder, BernoulliLikelihood(), prior).to(dtype)


def all_images(pixels, dtype=torch.float64):
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=pixels)), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", COMBINATIONS)
def test_every_encoder_goes_with_every_prior(name, dtype, tmp_path):
    vae, x = combined(name, dtype), all_images(4, dtype)
    assert ELBO().check(vae, Batch(x)).endswith(": a lower bound on log p(x)")
    history = Trainer(vae, ELBO(), progress=False).fit(x, x, epochs=2, batch_size=8)
    assert all(math.isfinite(value) for value in history["validation/elbo_nats"])
    vae.eval()
    report = evaluate(vae, x, elbo_samples=64, importance_samples=64)
    assert report.is_bound
    with torch.no_grad():
        log_weight = vae(x, num_samples=500).log_weight()
    assert log_weight.dtype == dtype
    log_weight = log_weight.double()
    elbo = log_weight.mean(0)
    draws = 500 if name in SLOW or dtype == torch.float32 else 5000
    evidence = log_marginal(vae, x, num_samples=draws).double()
    weight = (log_weight - evidence).exp()
    error = (log_weight.var(0) / 500 + weight.var(0) / draws).sum().sqrt() / 16
    assert (elbo - evidence).mean() <= 4 * error + 1e-5
    assert report.elbo.mean == pytest.approx(elbo.mean().item(), abs=0.2)
    # Other weights have heavier tails, and a certain posterior leaves most of the mass out.
    if draws == 5000 and (name.startswith(("sphere", "classes")) or name.endswith(", normal")):
        spread = (weight.var(0) / draws * (2 * evidence).exp()).sum().sqrt()
        assert abs(evidence.exp().sum().item() - 1) < 4.5 * spread + 1e-3
    assert vae.sample(7).shape == vae.sample(7, mean=True).shape == (7, 4)
    assert vae.sample(7).dtype == dtype
    assert vae.reconstruct(x).shape == x.shape
    vae.save(tmp_path / "vae")
    loaded = VAE.load(tmp_path / "vae")
    states = vae.state_dict(), loaded.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(same_bits(t, states[1][key]) for key, t in states[0].items())
    assert repr(loaded) == repr(vae)
    weights, draws = [], []
    for each in (vae, loaded):
        torch.manual_seed(1)
        weights.append(each(x, num_samples=3).log_weight())
        draws.append(each.sample(5))
    assert same_bits(*weights)
    assert same_bits(*draws)


@pytest.mark.parametrize("name", DIVERSE)
def test_every_parameter_of_a_combination_is_trained(name):
    vae = combined(name).train()
    objective = ELBO(num_samples=3)
    objective(vae, Batch(all_images(4))).losses["model"].backward()
    trained = [(key, p) for key, p in vae.named_parameters() if p.requires_grad]
    # A flow's last bijection may leave its first bin's parameters without a say.
    assert not [key for key, p in trained if p.grad is None]
    alive = [key for key, p in trained if p.grad.any()]
    assert len(alive) >= len(trained) - 1


def test_a_point_is_no_posterior(tmp_path):
    vae, x = combined("gaussian, normal"), all_images(4)
    vae.encoder = DeterministicEncoder(features(), 2)
    assert "not a bound" in ELBO().check(vae, Batch(x))
    history = Trainer(vae, ELBO(), progress=False).fit(x, x, epochs=2)
    assert len(history) == 2
    assert not evaluate(vae, x, elbo_samples=2, importance_samples=None).is_bound
    vae.save(tmp_path / "vae")
    assert torch.equal(VAE.load(tmp_path / "vae").reconstruct(x), vae.reconstruct(x))


# Posteriors that are exact ------------------------------------------------------------------------


def full_linear_gaussian(num_data=5, num_latents=3, flow=False):
    """z ~ N(0, I), x given z ~ N(W z + b, s^2 I) whose posterior hangs together."""
    weight, bias, std = torch.randn(num_data, num_latents), torch.randn(num_data), 0.6
    cov = torch.linalg.inv(torch.eye(num_latents) + weight.T @ weight / std**2)
    gain, factor = cov @ weight.T / std**2, torch.linalg.cholesky(cov)
    encoder = FullGaussianEncoder(nn.Identity(), num_latents, features=num_data)
    decoder = MLP(num_latents, hidden=(), out_shape=num_data)
    rows, columns = torch.tril_indices(num_latents, num_latents, -1)
    with torch.no_grad():
        encoder.head.weight.zero_()
        encoder.head.weight[:num_latents] = gain
        spread = (factor.diagonal().log(), factor[rows, columns])
        encoder.head.bias.copy_(torch.cat([-gain @ bias, *spread]))
        decoder.layers[0].weight.copy_(weight)
        decoder.layers[0].bias.copy_(bias)
    if flow:
        encoder = FlowEncoder(encoder, Flow(num_latents, transforms=2, hidden=(4,)))
    evidence = MultivariateNormal(bias, weight @ weight.T + std**2 * torch.eye(num_data))
    return VAE(encoder, decoder, GaussianLikelihood(std)), evidence, cov


@pytest.mark.parametrize("flow", [False, True])
def test_exact_full_posterior_attains_the_evidence(flow):
    vae, evidence, cov = full_linear_gaussian(flow=flow)
    assert (cov - cov.diagonal().diag()).abs().max() > 0.02
    x = evidence.sample((6,))
    exact = evidence.log_prob(x)
    with torch.no_grad():
        output = vae(x, num_samples=20_000)
    log_weight = output.log_weight()
    torch.testing.assert_close(log_weight, exact.expand_as(log_weight), rtol=0, atol=1e-10)
    torch.testing.assert_close(log_marginal(vae, x, num_samples=3), exact, rtol=0, atol=1e-10)
    if not flow:
        elbo = output.log_px - output.latents[0].kl("analytic")
        error = elbo.std(0) / math.sqrt(20_000)
        assert error.max() < 0.02
        assert ((elbo.mean(0) - exact).abs() < 4 * error).all()


def test_flow_that_is_the_identity_changes_nothing():
    gaussian = GaussianEncoder(features(), 2)
    decoder, x = MLP(2, (6,), 4), binary(5, 4)
    plain_vae = VAE(gaussian, decoder, BernoulliLikelihood())
    flows = [Flow(2, context_dim=5), Flow(2, kind="affine"), Flow(2, coupling=True)]
    for flow in flows:
        flowing = VAE(FlowEncoder(gaussian, flow), decoder, BernoulliLikelihood())
        records = []
        for vae in (plain_vae, flowing):
            torch.manual_seed(1)
            records.append(vae(x, num_samples=3))
        (a,), (b,) = (record.latents for record in records)
        close = {"rtol": 1e-12, "atol": 1e-12}
        torch.testing.assert_close(b.z, a.z, **close)
        torch.testing.assert_close(b.kl("sample"), a.kl("sample"), **close)
        torch.testing.assert_close(b.kl(), a.kl("sample"), **close)
        torch.testing.assert_close(records[1].log_weight(), records[0].log_weight(), **close)
        torch.testing.assert_close(flowing.reconstruct(x), plain_vae.reconstruct(x), **close)
        # Scored at latents from elsewhere, by the way back.
        z = torch.randn(3, 5, 2)
        there = flowing.encode(x).log_prob(z)
        torch.testing.assert_close(there, plain_vae.encode(x).log_prob(z), **close)


@pytest.mark.parametrize("kind", ["spline", "affine"])
def test_flow_knows_the_density_of_its_draws_and_the_way_back(kind):
    encoder, x = REAL_ENCODERS[kind](), binary(5, 4)
    posterior, prior = encoder(x), FlowPrior(perturbed_flow(2, kind=kind))()
    for distribution in (posterior, prior):
        z = distribution.sample((3,))
        there = distribution.log_prob(z.clone())
        torch.testing.assert_close(distribution.log_prob(z), there, rtol=1e-6, atol=1e-6)
    side = torch.linspace(-8, 8, 161)
    with torch.no_grad():
        density = prior.log_prob(torch.cartesian_prod(side, side)).exp()
    assert density.sum().item() * 0.1**2 == pytest.approx(1, abs=0.01)


# Frozen posteriors --------------------------------------------------------------------------------


def test_sticking_the_landing():
    exact = random_linear_gaussian()
    models = [(exact.vae, exact.evidence), full_linear_gaussian()[:2]]
    for vae, evidence in models:
        x, parameters = evidence.sample((6,)), list(vae.encoder.parameters())

        def gradient(frozen, vae=vae, x=x, parameters=parameters):
            log_weight = vae(x, frozen_posterior=frozen).log_weight().mean()
            grads = torch.autograd.grad(log_weight, parameters)
            return torch.cat([g.flatten() for g in grads])

        assert max(gradient(True).abs().max() for _ in range(10)) <= 1e-12
        assert torch.stack([gradient(False) for _ in range(30)]).std(0).max() > 0.1
        assert all(p.requires_grad for p in vae.parameters())


@pytest.mark.parametrize("name", DIVERSE)
def test_frozen_posterior_scores_by_a_frozen_copy(name):
    vae, x = combined(name).eval(), all_images(4)[:6]
    parameters = [p for p in vae.parameters() if p.requires_grad]

    def gradients(log_weight):
        grads = torch.autograd.grad(log_weight.mean(), parameters, allow_unused=True)
        pairs = zip(parameters, grads, strict=True)
        return [torch.zeros_like(p) if g is None else g for p, g in pairs]

    torch.manual_seed(1)
    plain_record = vae(x, num_samples=3)
    torch.manual_seed(1)
    record = vae(x, num_samples=3, frozen_posterior=True)
    torch.testing.assert_close(record.log_weight(), plain_record.log_weight())
    found = gradients(record.log_weight())
    twin = copy.deepcopy(vae.encoder).requires_grad_(False)
    torch.manual_seed(1)
    posterior = vae.encode(x)
    z = posterior.sample((3,))
    prior = vae.prior(encoder=vae.encoder)
    log_px = vae.decode(z).log_prob(x)
    expected = gradients(log_px + prior.log_prob(z) - twin(x).log_prob(z))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)
    own = {id(p) for p in vae.encoder.parameters()}
    before = gradients(plain_record.log_weight())
    for p, a, b in zip(parameters, found, before, strict=True):
        if id(p) not in own:  # what generates is not concerned
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_frozen_posterior_leaves_what_was_frozen():
    vae = combined("gaussian, normal")
    vae.encoder.network.requires_grad_(False)
    before = {name: p.requires_grad for name, p in vae.named_parameters()}
    vae(binary(3, 4), frozen_posterior=True)
    assert {name: p.requires_grad for name, p in vae.named_parameters()} == before
    vae.prior = ContextPrior(2, 2)
    with pytest.raises(TypeError):
        vae(binary(3, 4), frozen_posterior=True)  # no context
    found = {name: p.requires_grad for name, p in vae.named_parameters()}
    assert found.items() >= before.items()


# Latents side by side -----------------------------------------------------------------------------


def test_joint_latents_are_terms_of_their_own():
    vae, x = combined("joint").eval(), binary(6, 4)
    output = vae(x, num_samples=3)
    style, kind = output.latents
    assert (style.name, kind.name) == ("style", "kind")
    assert style.z.shape == (3, 6, 2)
    assert kind.z.shape == (3, 6, 3, 1)
    assert style.has_analytic_kl
    assert kind.has_analytic_kl
    z = torch.cat([style.z, kind.z.flatten(2)], 2)
    torch.testing.assert_close(output.log_px, vae.decode(z).log_prob(x))
    read = vae.encoder.network(x)
    torch.testing.assert_close(style.log_q, vae.encoder.encoders["style"](read).log_prob(style.z))
    torch.testing.assert_close(kind.log_q, vae.encoder.encoders["kind"](read).log_prob(kind.z))
    whole = LatentTerm("z", z, vae.encode(x), vae.prior())
    torch.testing.assert_close(style.log_q + kind.log_q, whole.log_q)
    torch.testing.assert_close(style.log_p + kind.log_p, whole.log_p)
    expected = output.log_px + whole.log_p - whole.log_q
    torch.testing.assert_close(output.log_weight(), expected)
    metrics = ELBO(num_samples=3)(vae, Batch(x)).metrics
    own = metrics["kl_style_nats"] + metrics["kl_kind_nats"]
    assert own.item() == pytest.approx(metrics["kl_nats"].item(), abs=1e-12)
    q = vae.encode(x).parts["kind"].mean.squeeze(2)
    p = vae.prior().parts["kind"].mean.squeeze(1)
    assert metrics["kl_kind_nats"].item() == pytest.approx((q * (q / p).log()).sum(1).mean().item())
    history = Trainer(vae, ELBO(), progress=False).fit(x, x, epochs=1)
    assert {"train/kl_style_nats", "validation/kl_kind_nats"} <= history.epochs[0].keys()


def test_joint_latents_under_another_prior_are_one_term():
    encoder = JointEncoder(
        {"a": GaussianEncoder(features(), 2), "b": LaplaceEncoder(features(), 1)}
    )
    vae, x = VAE(encoder, MLP(3, (5,), 4), BernoulliLikelihood()), binary(6, 4)
    (term,) = vae(x, num_samples=3).latents
    assert term.name == "z"
    assert term.z.shape == (3, 6, 3)
    a, b = (encoder.encoders[name](x) for name in "ab")
    log_q = a.log_prob(term.z[..., :2]) + b.log_prob(term.z[..., 2:])
    torch.testing.assert_close(term.log_q, log_q)
    assert not term.has_analytic_kl
    assert torch.equal(term.kl(), (term.log_q - term.log_p).mean(0))
    assert "kl_z_nats" not in ELBO()(vae, Batch(x)).metrics
    one = VAE(features_encoder(), MLP(2, (5,), 4), BernoulliLikelihood(), joint_of_normals())
    (term,) = one(x).latents
    assert term.name == "z"


def joint_of_normals():
    return JointPrior({"a": StandardNormal(1), "b": StandardNormal(1)})


def test_joint_latents_of_a_conditional_model():
    encoder = JointEncoder(
        {"a": GaussianEncoder(WithContext(4, 2, 5), 1, features=5), "b": LaplaceEncoder(wide(), 1)}
    )
    vae = VAE(encoder, WithContext(2, 2, 4), BernoulliLikelihood(), joint_of_normals())
    x, context = binary(5, 4), torch.randn(5, 2)
    assert vae(x, context, num_samples=3).log_weight().shape == (3, 5)
    assert vae.sample(7, context).shape == (7, 5, 4)
    assert evaluate(vae, x, context, elbo_samples=2, importance_samples=2).is_bound


def wide():
    class OfBoth(MLP):
        def forward(self, x, context=None):
            return super().forward(torch.cat([x, context], 1))

    return OfBoth(6, (5,))


# Classes, by enumeration --------------------------------------------------------------------------


def test_discrete_latents_by_enumeration():
    encoder = CategoricalEncoder(MLP(3, (5,), activation=nn.Tanh), num_classes=4)
    prior = CategoricalPrior(4, learned=True)
    vae = VAE(encoder, MLP((4, 1), (6,), 3, activation=nn.Tanh), BernoulliLikelihood(), prior)
    x = all_images(3)
    with torch.no_grad():
        prior.logits.normal_()
        for parameter in (*vae.decoder.parameters(), *encoder.parameters()):
            parameter.mul_(2)
        classes = torch.eye(4)[:, None, :, None]  # (4, 1, 4, 1)
        log_px = vae.decode(classes).log_prob(x)  # (4, 8)
        log_p = prior.logits.log_softmax(0)  # (4, 1)
        exact = (log_px + log_p).logsumexp(0)
        log_q = encoder(x).logits.log_softmax(1).squeeze(2).T  # (4, 8)
        elbo = (log_q.exp() * (log_px + log_p - log_q)).sum(0)
        output = vae(x, num_samples=20_000)
    assert exact.exp().sum().item() == pytest.approx(1, abs=1e-12)
    assert exact.std() > 0.1
    assert (elbo < exact).all()
    (term,) = output.latents
    assert set(term.z.unique().tolist()) == {0.0, 1.0}
    found = output.log_px.mean(0) - term.kl("analytic")
    error = output.log_px.std(0) / math.sqrt(20_000)
    assert ((found - elbo).abs() < 4 * error).all()
    torch.testing.assert_close(term.kl("analytic"), (log_q.exp() * (log_q - log_p)).sum(0))
    weight = (output.log_weight() - exact).exp()
    error = weight.std(0) / math.sqrt(20_000)
    assert ((weight.mean(0) - 1).abs() < 4.5 * error).all()
    assert error.max() < 0.02
    found = log_marginal(vae, x, num_samples=20_000)
    assert ((found - exact).abs() < 5 * error).all()
    assert log_marginal(vae, x, num_samples=20_000).exp().sum().item() == pytest.approx(1, abs=0.01)
    draws = vae.sample(20_000) @ torch.tensor([4.0, 2.0, 1.0])
    shares = torch.bincount(draws.long(), minlength=8) / 20_000
    error = (exact.exp() * (1 - exact.exp()) / 20_000).sqrt()
    assert ((shares - exact.exp()).abs() < 4.5 * error).all()


# What once went wrong -----------------------------------------------------------------------------


def test_joint_prior_in_another_order():
    encoder = JointEncoder([(name, GaussianEncoder(features(), 1)) for name in "ab"])
    prior = JointPrior([(name, GaussianPrior(1)) for name in "ba"])
    with pytest.raises(ValueError, match="latents in their order"):
        VAE(encoder, MLP(2, out_shape=4), BernoulliLikelihood(), prior).check(binary(3, 4))


@pytest.mark.parametrize("prior", [{"a": 1, "c": 1}, {"a": 2}, {"a": 1, "b": 1, "c": 0}])
def test_joint_prior_of_other_names_is_refused(prior):
    encoder = JointEncoder({name: GaussianEncoder(features(), 1) for name in "ab"})
    prior = JointPrior({name: StandardNormal(size) for name, size in prior.items()})
    with pytest.raises(ValueError, match="latents"):
        VAE(encoder, MLP(2, out_shape=4), BernoulliLikelihood(), prior).check(binary(3, 4))


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


@pytest.mark.parametrize("name", MEASURES)
def test_posterior_and_prior_on_different_spaces_are_refused(name):
    encoder, prior = (build() for build in MEASURES[name])
    vae = VAE(encoder, MLP(encoder.latent_shape, (5,), 4), BernoulliLikelihood(), prior)
    with pytest.raises(ValueError, match="give a prior of its kind, such as"):
        ELBO().check(vae, Batch(binary(5, 4)))
    assert not vae(binary(5, 4)).is_density


@pytest.mark.parametrize(
    "encoder",
    [
        lambda: PowerSphericalEncoder(features(), 3),
        lambda: VectorQuantizedEncoder(features(), num_codes=5, latent_dim=3),
    ],
)
def test_flow_of_what_is_no_real_vector_is_refused(encoder):
    flow = FlowEncoder(encoder(), Flow(3, transforms=1, hidden=(4,)))
    with pytest.raises(TypeError, match=r"densities on R\^D"):
        flow(binary(5, 4))
