import pytest
import torch
from helpers.cases import for_each
from helpers.networks import (
    any_images,
    channel_lists,
    groups,
    images,
    kernels,
    shapes,
    sizes,
    smooth,
    with_moved_parameters,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tinyvae import MLP, ConvNet, TransposedConvNet
from tinyvae.models.serialization import build_part, describe_part
from tinyvae.networks import ConcatContext, ResNet, TransposedResNet
from tinyvae.networks.base import group_norm

# name: networks of any shape
NETWORKS = {
    "MLP": st.builds(
        MLP,
        shapes,
        hidden=st.lists(sizes, max_size=2),
        out_shape=shapes | sizes,
        activation=smooth,
    ),
    "MLP of features": st.builds(
        MLP, shapes | sizes, hidden=st.lists(sizes, min_size=1, max_size=2), activation=smooth
    ),
    "ConvNet": st.builds(ConvNet, images, channel_lists, kernel_size=kernels, activation=smooth),
    "TransposedConvNet": st.builds(
        TransposedConvNet,
        shapes | sizes,
        images | st.tuples(sizes, sizes, st.integers(1, 13), st.integers(1, 13)),
        channel_lists,
        kernel_size=kernels,
        activation=smooth,
    ),
    "ResNet": st.builds(ResNet, any_images, groups, blocks=st.integers(1, 2), activation=smooth),
    "TransposedResNet": st.builds(
        TransposedResNet,
        shapes | sizes,
        any_images | st.tuples(sizes, sizes, st.integers(1, 33), st.integers(1, 33)),
        groups,
        blocks=st.integers(1, 2),
        activation=smooth,
    ),
    "normalized MLP": st.builds(
        MLP, shapes, hidden=groups, out_shape=shapes, activation=smooth, normalize=st.just(True)
    ),
    "normalized ConvNet": st.builds(
        ConvNet, images, groups, kernel_size=kernels, activation=smooth, normalize=st.just(True)
    ),
    "normalized TransposedConvNet": st.builds(
        TransposedConvNet,
        shapes,
        images,
        groups,
        kernel_size=kernels,
        activation=smooth,
        normalize=st.just(True),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=40)
@given(data=st.data(), batch=st.integers(1, 3))
def test_network_contract(name, data, batch):
    net = with_moved_parameters(data.draw(NETWORKS[name]))
    x = torch.randn(batch, *net.in_shape)
    output = net(x)
    assert output.shape == (batch, *net.out_shape)

    output.square().sum().backward()
    untouched = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert not untouched

    twin = type(net)(**net.config())
    twin.load_state_dict(net.state_dict())
    assert torch.equal(twin(x), output)
    assert repr(twin) == repr(net)


@settings(max_examples=40)
@given(images, channel_lists, kernels)
def test_transposed_conv_net_mirrors_conv_net(image, channels, kernel_size):
    down = ConvNet(image, channels, kernel_size=kernel_size)
    up = TransposedConvNet(4, image, channels[::-1], kernel_size=kernel_size)
    assert up.out_shape == down.in_shape
    assert up(torch.zeros(2, 4)).shape == (2, *image)

    def recorded(net, kind):
        maps = []
        for layer in net.modules():
            if isinstance(layer, kind):
                layer.register_forward_hook(lambda _, x, y: maps.append((x[0].shape, y.shape)))
        net(torch.zeros(2, *net.in_shape))
        return maps

    mirrored = [(b, a) for a, b in recorded(down, nn.Conv2d)][::-1]
    assert recorded(up, nn.ConvTranspose2d) == mirrored


def test_mlp_equals_its_formula():
    net = MLP((1, 2, 3), hidden=(4,), out_shape=(2, 1), activation=nn.Tanh)
    x = torch.randn(5, 1, 2, 3)
    first, last = (layer for layer in net.layers if isinstance(layer, nn.Linear))
    hidden = torch.tanh(x.reshape(5, 6) @ first.weight.T + first.bias)
    expected = (hidden @ last.weight.T + last.bias).reshape(5, 2, 1)
    torch.testing.assert_close(net(x), expected)


def test_networks_treat_each_example_by_itself():
    for net in (ConvNet((1, 5, 4)), TransposedConvNet(3, (2, 5, 4)), MLP(3)):
        x = torch.randn(3, *net.in_shape)
        alone = torch.cat([net(row[None]) for row in x])
        torch.testing.assert_close(net(x), alone, rtol=1e-5, atol=1e-6)


ERRORS = [
    (lambda: MLP(0), r"MLP in_shape expects sizes of at least 1, got \(0,\)"),
    (lambda: MLP(4, hidden=(-1,)), r"MLP hidden expects .* got \(-1,\)"),
    (lambda: MLP(4, out_shape=(2, 0)), r"MLP out_shape expects .* got \(2, 0\)"),
    (lambda: ConvNet((28, 28)), r"ConvNet in_shape expects \(C, H, W\), got \(28, 28\)"),
    (lambda: ConvNet((1, 28, 28), ()), "ConvNet expects at least one number of channels"),
    (lambda: ConvNet((1, 28, 28), (0,)), "ConvNet channels expects sizes of at least 1"),
    (lambda: ConvNet((1, 28, 28), kernel_size=4), "odd kernel_size, got 4"),
    (lambda: ConvNet((1, 28, 28), kernel_size=-1), "odd kernel_size, got -1"),
    (lambda: TransposedConvNet(4, (28, 28)), r"expects out_shape \(C, H, W\) or"),
    (lambda: TransposedConvNet(4, (1, 28, 28), ()), "at least one number of channels"),
    (lambda: TransposedConvNet(4, (1, 28, 28), kernel_size=2), "odd kernel_size, got 2"),
    (lambda: ResNet((28, 28)), r"ResNet in_shape expects \(C, H, W\), got \(28, 28\)"),
    (lambda: ResNet((1, 28, 28), ()), "ResNet expects at least one number of channels"),
    (lambda: ResNet((1, 8, 8), (0,)), r"ResNet channels expects .* at least 1, got \(0,\)"),
    (lambda: ResNet((1, 8, 8), blocks=0), "ResNet expects 1 to 100 blocks, got 0: ConvNet has"),
    (lambda: TransposedResNet(0, (1, 8, 8)), r"TransposedResNet in_shape expects sizes"),
    (lambda: TransposedResNet(4, (8, 8)), r"TransposedResNet expects out_shape \(C, H, W\) or"),
    (
        lambda: TransposedResNet(4, (1, 8, 8), ()),
        "TransposedResNet expects at least one number",
    ),
    (lambda: TransposedResNet(4, (1, 8, 8), blocks=-1), "got -1: TransposedConvNet has none"),
    (
        lambda: ConcatContext(MLP(4)),
        "expects one of context_dim .* None and num_classes = None",
    ),
    (lambda: ConcatContext(MLP(4), context_dim=2, num_classes=2), "= 2 and num_classes = 2"),
    (lambda: ConcatContext(MLP(4), context_dim=0), "context_dim >= 1 .* context_dim = 0"),
    (lambda: ConcatContext(MLP(4), num_classes=0), "num_classes >= 1 .* num_classes = 0"),
    (lambda: ConcatContext(MLP(4), num_classes=4), r"in_shape \(4,\) has no room .* 4 values"),
    (lambda: ConcatContext(ConvNet((2, 5, 5)), context_dim=3), r"\('inputs \+ 3', 5, 5\)"),
    (lambda: ConcatContext(MLP((2, 2)), context_dim=1), r"\(D \+ 1,\) .*, got \(2, 2\)"),
]


def test_network_constructors_name_the_remedy():
    for make, message in ERRORS:
        with pytest.raises(ValueError, match=message):
            make()


@for_each("activation", [nn.Tanh(), "tanh"])
def test_mlp_refuses_an_activation_that_is_not_a_class(activation):
    with pytest.raises(TypeError, match="the class of an activation"):
        MLP(3, activation=activation)


def test_check_input_names_another_shape():
    with pytest.raises(ValueError, match=r"in_shape = \(1, 8, 8\), got \(2, 8, 8\)"):
        MLP((1, 8, 8))(torch.zeros(2, 8, 8))


@for_each(
    ("net", "keys"),
    [
        (MLP(3, (4, 5), 2), ("layers.0", "layers.2", "layers.4")),
        (ConvNet((1, 5, 5), (2, 3)), ("layers.0", "layers.2")),
        (TransposedConvNet(3, (1, 5, 5), (3, 2)), ("layers.0", "layers.3", "layers.5")),
    ],
)
def test_normalize_defaults_to_false(net, keys):
    expected = [f"{key}.{name}" for key in keys for name in ("weight", "bias")]
    assert list(net.state_dict()) == expected
    description = describe_part(net)
    del description["config"]["normalize"]
    assert repr(build_part(description)) == repr(net)


@pytest.mark.parametrize(
    "net",
    [
        MLP((2, 3), (4, 5), (2, 1), activation=nn.Tanh, normalize=True),
        ConvNet((2, 5, 4), (4, 3), kernel_size=5, activation=nn.Tanh, normalize=True),
        TransposedConvNet((3, 2, 1), (2, 1, 5, 4), (4, 3), activation=nn.Tanh, normalize=True),
        ResNet((2, 5, 4), (4, 3), blocks=2, activation=nn.Tanh),
        TransposedResNet(3, (2, 1, 5, 4), (4, 3), blocks=2, activation=nn.Tanh),
        ConcatContext(MLP(5, (4,), normalize=True), context_dim=2),
        ConcatContext(ResNet((5, 5, 4), (4,)), num_classes=3),
    ],
    ids=lambda net: type(net).__name__,
)
def test_network_descriptions_round_trip(net):
    twin = build_part(describe_part(net))
    assert describe_part(twin) == describe_part(net)
    assert repr(twin) == repr(net)
    assert (twin.in_shape, twin.out_shape) == (net.in_shape, net.out_shape)
    twin.load_state_dict(net.state_dict())


NORMALIZED = [name for name in NETWORKS if name.startswith("normalized") or "ResNet" in name]


@for_each("name", NORMALIZED)
@settings(max_examples=25)
@given(data=st.data())
def test_normalization_is_the_same_in_training_and_for_each_example(float64, name, data):
    net = with_moved_parameters(data.draw(NETWORKS[name]))
    assert any(isinstance(m, (nn.GroupNorm, nn.LayerNorm)) for m in net.modules())
    x = torch.randn(3, *net.in_shape)
    output = net.train()(x)
    assert torch.equal(net.eval()(x), output)
    alone = torch.cat([net.train()(row[None]) for row in x])
    torch.testing.assert_close(output, alone)
    x[1:] = 1e3  # Statistics over the batch would change the first row.
    torch.testing.assert_close(net(x)[0], output[0])


def test_normalization_comes_before_each_activation():
    nets = (
        MLP(3, (4, 5), 2, normalize=True),
        ConvNet((1, 5, 4), (4, 5), normalize=True),
        TransposedConvNet(3, (1, 5, 4), (5, 4), normalize=True),
    )
    for net in nets:
        layers = list(net.layers)
        before = [layers[n - 1] for n, m in enumerate(layers) if isinstance(m, nn.ReLU)]
        assert len(before) == 2
        assert all(isinstance(m, (nn.GroupNorm, nn.LayerNorm)) for m in before)


@for_each(
    ("channels", "expected"),
    [(1, 1), (2, 1), (7, 1), (8, 2), (10, 2), (20, 5), (24, 6), (32, 8), (64, 8), (100, 5)],
)
def test_group_norm_has_at_least_four_channels_per_group(channels, expected):
    assert group_norm(channels, (3, 3)).num_groups == expected


def test_normalization_keeps_a_single_value():
    nets = (
        MLP(1, (1, 1), 1, activation=nn.Tanh, normalize=True),
        ConvNet((1, 2, 1), (1,), activation=nn.Tanh, normalize=True),
        TransposedConvNet(1, (1, 2, 2), (1,), activation=nn.Tanh, normalize=True),
        with_moved_parameters(ResNet((1, 1, 1), (1,), activation=nn.Tanh)),
        with_moved_parameters(TransposedResNet(1, (1, 1, 1), (1,), activation=nn.Tanh)),
    )
    for net in nets:
        x = torch.tensor([0.0, 1.0]).view(2, *[1] * len(net.in_shape)).expand(2, *net.in_shape)
        assert not torch.equal(net(x)[0], net(x)[1])
        net(x[:1])  # an example by itself
