import pytest
import torch
from helpers.cases import for_each
from torch import nn

from tinyvae import (
    MLP,
    VAE,
    ConvNet,
    Decoder,
    GaussianEncoder,
    GaussianLikelihood,
    TransposedConvNet,
    TransposedResNet,
)
from tinyvae.networks import ConcatContext, Network

# name: network without an output shape, the same network with one, its output shape
NETWORKS = {
    "MLP": (lambda: MLP(3, (4,)), lambda s: MLP(3, (4,), s), (2, 1, 5)),
    "linear MLP": (lambda: MLP((3, 2), ()), lambda s: MLP((3, 2), (), s), (7,)),
    "normalized MLP": (
        lambda: MLP(3, (4,), normalize=True),
        lambda s: MLP(3, (4,), s, normalize=True),
        (7,),
    ),
    "TransposedConvNet": (
        lambda: TransposedConvNet(3, channels=(4, 3), kernel_size=5, normalize=True),
        lambda s: TransposedConvNet(3, s, (4, 3), kernel_size=5, normalize=True),
        (2, 1, 7, 5),
    ),
    "TransposedResNet": (
        lambda: TransposedResNet((3, 2, 2), channels=(4, 3), blocks=2),
        lambda s: TransposedResNet((3, 2, 2), s, (4, 3), blocks=2),
        (1, 7, 5),
    ),
    "ConcatContext": (
        lambda: ConcatContext(TransposedConvNet(5), context_dim=2),
        lambda s: ConcatContext(TransposedConvNet(5, s), context_dim=2),
        (1, 7, 5),
    ),
}


@for_each("name", NETWORKS)
def test_build_equals_the_constructor(name):
    make, make_with_shape, out_shape = NETWORKS[name]
    torch.manual_seed(1)
    built = make()
    assert built.needs_out_shape
    built.build(out_shape)
    state = torch.get_rng_state()
    torch.manual_seed(1)
    expected = make_with_shape(out_shape)
    assert torch.equal(torch.get_rng_state(), state)
    assert not built.needs_out_shape
    assert not expected.needs_out_shape
    assert built.out_shape == expected.out_shape == out_shape
    assert repr(built) == repr(expected)
    assert repr(built.config()) == repr(expected.config())
    states = built.state_dict(), expected.state_dict()
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(tensor, states[1][key]) for key, tensor in states[0].items())


def test_build_follows_the_dtype_of_the_other_layers():
    net = MLP(3, (4,)).double()
    net.build(2)
    assert {p.dtype for p in net.parameters()} == {torch.float64}


def test_mlp_without_out_shape_returns_features():
    net = MLP(3, (4,))
    assert net.out_shape == (4,)
    assert net.config()["out_shape"] is None
    assert net(torch.randn(2, 3)).shape == (2, 4)
    x = torch.randn(2, 3, 2)
    assert torch.equal(MLP((3, 2), ())(x), x.flatten(1))


def test_transposed_network_without_out_shape_names_the_remedy():
    wrapped = ConcatContext(TransposedResNet(3), num_classes=2)
    for net in (TransposedConvNet(3), TransposedResNet(3), wrapped):
        assert "(3,) -> out_shape" in repr(net) or "(1,) and 2 classes -> out_shape" in repr(net)
        with pytest.raises(ValueError, match="no output shape yet: give it out_shape="):
            net.out_shape  # noqa: B018
    with pytest.raises(ValueError, match="TransposedConvNet has no output shape yet"):
        TransposedConvNet(3)(torch.zeros(1, 3))


def test_build_checks_the_shape():
    with pytest.raises(ValueError, match=r"TransposedConvNet expects out_shape \(C, H, W\) or"):
        TransposedConvNet(3).build((4,))
    with pytest.raises(ValueError, match="MLP out_shape expects sizes of at least 1"):
        MLP(3).build(0)
    message = r"ConvNet has the output shape \(64, 1, 1\) already: make a new network"
    with pytest.raises(ValueError, match=message):
        ConvNet((1, 4, 4)).build((1,))
    for net in (MLP(3, out_shape=(2, 2)), TransposedResNet(3, (2, 4, 4))):
        before = repr(net)
        with pytest.raises(ValueError, match="already: make a new network"):
            net.build((2, 4, 4))
        assert repr(net) == before


class LazyDecoder(Decoder):
    """A decoder that gets its shape from the model."""

    def __init__(self, latent_dim, out_shape=None):
        super().__init__()
        self.latent_dim, self.out_shape = latent_dim, out_shape
        self.needs_out_shape = True
        if out_shape is not None:
            self.build(out_shape)

    def build(self, out_shape):
        self.out_shape = tuple(out_shape)
        self.linear = nn.Linear(self.latent_dim, torch.Size(out_shape).numel())
        self.needs_out_shape = False

    def forward(self, z, context=None):
        return self.linear(z).unflatten(1, self.out_shape)


class ForgetfulDecoder(Decoder):
    needs_out_shape = True

    def forward(self, z, context=None):
        return z


def test_decoder_gets_its_shape_from_the_model_and_is_saved(tmp_path):
    encoder = GaussianEncoder(MLP((1, 2, 3)), 2)
    vae = VAE(encoder, LazyDecoder(2), GaussianLikelihood("predicted"))
    assert vae.decoder.out_shape == (2, 1, 2, 3)
    x = torch.randn(4, 1, 2, 3)
    vae.check(x)
    vae.save(tmp_path / "vae")
    loaded = VAE.load(tmp_path / "vae", parts=[LazyDecoder])
    assert loaded.decoder.config() == {"latent_dim": 2, "out_shape": (2, 1, 2, 3)}
    assert torch.equal(loaded.reconstruct(x), vae.reconstruct(x))


class ForgetfulNetwork(Network):
    needs_out_shape = True

    def forward(self, x):
        return x


def test_decoder_that_needs_a_shape_must_define_build():
    for kind in (ForgetfulDecoder, ForgetfulNetwork):
        message = rf"{kind.__name__} must define build\(out_shape\)"
        with pytest.raises(NotImplementedError, match=message):
            VAE(GaussianEncoder(MLP(2), 2), kind(), GaussianLikelihood())


def test_decoder_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Decoder()
