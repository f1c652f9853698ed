import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tinyvae import MLP, VAE, BernoulliLikelihood, ConvNet, GaussianEncoder, TransposedConvNet
from tinyvae.models.serialization import build_part, describe_part
from tinyvae.networks import ConcatContext, ResNet, TransposedResNet
from tinyvae.networks.base import group_norm
from tinyvae.networks.residual import ResidualBlock

sizes = st.integers(1, 4)
channel_lists = st.lists(sizes, min_size=1, max_size=3)
images = st.tuples(sizes, st.integers(1, 13), st.integers(1, 13))
shapes = st.lists(sizes, min_size=1, max_size=3)
kernels = st.sampled_from([1, 3, 5])
smooth = st.sampled_from([nn.SiLU, nn.Tanh])  # no dead units
any_images = st.tuples(sizes, st.integers(1, 33), st.integers(1, 33))
# A bias before the normalization of a single channel does nothing.
groups = st.lists(st.integers(2, 9), min_size=1, max_size=3)

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


def with_moved_parameters(net):
    """Move all parameters, because the zeros of a new residual block stop its gradients."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return net


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


@pytest.mark.parametrize("activation", [nn.Tanh(), "tanh"])
def test_mlp_refuses_an_activation_that_is_not_a_class(activation):
    with pytest.raises(TypeError, match="the class of an activation"):
        MLP(3, activation=activation)


def test_check_input_names_another_shape():
    with pytest.raises(ValueError, match=r"in_shape = \(1, 8, 8\), got \(2, 8, 8\)"):
        MLP((1, 8, 8))(torch.zeros(2, 8, 8))


# Files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
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


# Normalization ------------------------------------------------------------------------------------

NORMALIZED = [name for name in NETWORKS if name.startswith("normalized") or "ResNet" in name]


@pytest.mark.parametrize("name", NORMALIZED)
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
    x[1:] = 1e3  # changes what the first row would be normalized by
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


@pytest.mark.parametrize(
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


# Residual networks --------------------------------------------------------------------------------


def test_residual_block_starts_as_the_identity():
    nets = (ResNet((1, 9, 5), blocks=2), TransposedResNet(3, (1, 9, 5), blocks=3))
    for net, count in zip(nets, (4, 6), strict=True):
        blocks = [m for m in net.modules() if isinstance(m, ResidualBlock)]
        assert len(blocks) == count
        for block in blocks:
            x = torch.randn(2, block.layers[0].num_channels, 3, 2)
            assert torch.equal(block(x), x)
            assert not torch.equal(with_moved_parameters(block)(x), x)


def test_residual_block_equals_its_formula(float64):
    block = with_moved_parameters(ResidualBlock(8, (3, 4), nn.SiLU))
    x = torch.randn(2, 8, 3, 4)

    def half(x, norm, convolution):
        rows = x.reshape(2, 2, 4 * 12)  # two groups of four channels
        centered = rows - rows.mean(-1, keepdim=True)
        scaled = (centered / (rows.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()).view_as(x)
        scaled = scaled * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)
        patches = nn.functional.unfold(scaled * scaled.sigmoid(), 3, padding=1)  # (2, 8 * 9, 12)
        output = convolution.weight.flatten(1) @ patches + convolution.bias[:, None]
        return output.view_as(x)

    norm, _, convolution, last_norm, _, last = block.layers
    expected = x + half(half(x, norm, convolution), last_norm, last)
    torch.testing.assert_close(block(x), expected)


@settings(max_examples=40)
@given(any_images, groups)
def test_transposed_resnet_mirrors_resnet(image, channels):
    down, up = ResNet(image, channels), TransposedResNet(4, image, channels[::-1])
    assert up.out_shape == down.in_shape

    def recorded(net, chosen):
        maps = []
        for layer in filter(chosen, net.modules()):
            layer.register_forward_hook(lambda _, x, y: maps.append((x[0].shape, y.shape)))
        output = net(torch.zeros(2, *net.in_shape))
        assert output.shape == (2, *net.out_shape)
        return maps

    halved = recorded(down, lambda layer: getattr(layer, "stride", None) == (2, 2))
    doubled = recorded(up, lambda layer: isinstance(layer, nn.Upsample))
    assert [before for before, _ in doubled] == [after for _, after in halved][::-1]
    assert [after[2:] for _, after in doubled] == [before[2:] for before, _ in halved][::-1]


@given(st.integers(1, 300))
def test_transposed_resnet_doubling_repeats_each_pixel(size):
    layers = TransposedResNet(1, (1, size, 1), (1,)).layers
    doubling = next(layer for layer in layers if isinstance(layer, nn.Upsample))
    rows = torch.arange((size + 1) // 2, dtype=torch.float32).view(1, 1, -1, 1)
    assert torch.equal(doubling(rows).flatten(), torch.arange(size).div(2).floor())


def test_transposed_resnet_ends_in_a_bias():
    net = TransposedResNet(3, (2, 1, 5, 4), (4,))
    with torch.no_grad():
        net.layers[-1].bias[:] = torch.tensor([1.0, 2.0])
        net.layers[-1].weight.zero_()
    expected = torch.tensor([1.0, 2.0]).view(2, 1, 1, 1).expand(3, 2, 1, 5, 4)
    assert torch.equal(net(torch.randn(3, 3)), expected)


# Spatial latents ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [TransposedConvNet, TransposedResNet])
@settings(max_examples=20)
@given(any_images, groups)
def test_seed_layers_of_a_spatial_latent_are_a_convolution(kind, image, channels):
    *_, h, w = ResNet(image, channels).out_shape
    spatial = kind((3, h, w), image, channels[::-1])
    assert not any(isinstance(layer, nn.Linear) for layer in spatial.modules())
    assert isinstance(spatial.layers[0], nn.Conv2d)
    assert spatial.layers[0].kernel_size == (1, 1)
    z = torch.randn(2, 3, h, w)
    assert spatial(z).shape == (2, *image)

    # A linear layer that sees one place at a time is the 1x1 convolution.
    flat = kind(3 * h * w, image, channels[::-1])
    assert isinstance(flat.layers[0], nn.Linear)
    with torch.no_grad():
        weight, bias, *others = spatial.parameters()
        seed_weight, seed_bias, *seed_others = flat.parameters()
        seed_weight[:] = torch.kron(weight.flatten(1), torch.eye(h * w))
        seed_bias[:] = bias.repeat_interleave(h * w)
        for ours, theirs in zip(seed_others, others, strict=True):
            ours[:] = theirs
    torch.testing.assert_close(flat(z.flatten(1)), spatial(z), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [TransposedConvNet, TransposedResNet])
@pytest.mark.parametrize("in_shape", [6, (6,), (3, 2), (3, 1, 2), (3, 4, 2), (1, 3, 2, 1)])
def test_seed_layers_flatten_any_other_latent(kind, in_shape):
    net = kind(in_shape, (1, 5, 3), (4,))  # the seed's height and width are (3, 2)
    assert isinstance(net.layers[0], nn.Linear)
    assert net(torch.randn(2, *net.in_shape)).shape == (2, 1, 5, 3)


# Contexts -----------------------------------------------------------------------------------------


def test_concat_context_appends_numbers_to_a_vector():
    net = MLP(7, (4,), (2, 3))
    wrapped = ConcatContext(net, context_dim=3)
    assert wrapped.in_shape == (4,)
    assert wrapped.out_shape == (2, 3)
    images, context = torch.randn(5, 1, 2, 2), torch.randn(5, 3, 1)
    expected = net(torch.cat([images.flatten(1), context.flatten(1)], 1))
    assert torch.equal(wrapped(images, context), expected)
    assert torch.equal(wrapped(images.flatten(1), context.double()), expected)
    one = ConcatContext(net, context_dim=1)
    assert torch.equal(one(torch.ones(5, 6), torch.ones(5)), net(torch.ones(5, 7)))


def test_concat_context_appends_planes_to_an_image():
    net = ConvNet((3, 5, 4), (2,))
    wrapped = ConcatContext(net, context_dim=2)
    assert wrapped.in_shape == (1, 5, 4)
    x, context = torch.randn(3, 1, 5, 4), torch.randn(3, 2)
    both = torch.empty(3, 3, 5, 4)
    both[:, :1] = x
    for row in range(3):
        for value in range(2):
            both[row, 1 + value] = context[row, value]
    assert torch.equal(wrapped(x, context), net(both))


@pytest.mark.parametrize("net", [MLP(7, (4,)), ConvNet((4, 3, 2), (2,))])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_concat_context_maps_classes_to_one_hot_rows(net, dtype):
    classes, numbers = ConcatContext(net, num_classes=3), ConcatContext(net, context_dim=3)
    index = torch.tensor([2, 0, 1, 2], dtype=dtype)
    rows = torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    x = torch.randn(4, *classes.in_shape)
    assert torch.equal(classes(x, index), numbers(x, rows))
    assert not torch.equal(classes(x, index), classes(x, index.flip(0)))
    assert classes(x[:0], index[:0]).shape == (0, *net.out_shape)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
def test_concat_context_accepts_more_classes_than_a_byte_counts(dtype):
    wrapped = ConcatContext(MLP(301, (4,)), num_classes=300)
    index, x = torch.tensor([0, 127]), torch.ones(2, 1)
    assert torch.equal(wrapped(x, index.to(dtype)), wrapped(x, index))


@pytest.mark.parametrize("net", ["MLP", "ResNet", "1x1"])
def test_concat_context_gradients_reach_the_context(float64, net):
    nets = {
        "MLP": MLP(6, (4,), activation=nn.Tanh),
        "ResNet": ResNet((4, 5, 5)),
        "1x1": ResNet((4, 1, 1), (8,)),
    }
    wrapped = with_moved_parameters(ConcatContext(nets[net], context_dim=2))
    x = torch.randn(3, *wrapped.in_shape)
    context = torch.randn(3, 2, requires_grad=True)
    wrapped(x, context).square().sum().backward()
    assert (context.grad.abs() > 1e-6).all()
    assert all(p.grad.any() for p in wrapped.parameters())
    again = torch.randn(3, 2)
    with torch.no_grad():
        assert not torch.allclose(wrapped(x, again), wrapped(x, context), atol=1e-4)


@pytest.mark.parametrize(
    ("context_dim", "x", "context", "error", "message"),
    [
        (2, (5, 4), None, ValueError, r"numbers \(N, 2\), got none: give it as context="),
        (None, (5, 4), None, ValueError, r"indices \(N,\) of 0 to 1, got none: .* context="),
        (2, (5, 4), torch.zeros(5, 3), ValueError, r"2 values .* got \(5, 3\): .*context_dim=3"),
        (2, (5, 4), torch.zeros(4, 2), ValueError, r"got \(4, 2\) for 5 inputs: repeat it"),
        (2, (5, 4), torch.zeros(()), ValueError, r"got \(\) for 5 inputs"),
        (2, (5, 4), torch.zeros(5, 2).int(), TypeError, r"int32: .*float\(\); .* num_classes="),
        (2, (5, 3), torch.zeros(5, 2), ValueError, r"inputs of 4 values .*, got \(5, 3\): build"),
        (2, (), torch.zeros(5, 2), ValueError, r"inputs of 4 values .*, got \(\)"),
        (None, (5, 4), torch.zeros(5), TypeError, r"\(5,\) of torch.float32: give one integer"),
        (None, (5, 4), torch.zeros(5, 2).long(), TypeError, r"\(5, 2\) of .* context_dim="),
        (None, (2, 4), torch.tensor([0, 2]), ValueError, "classes 0 to 1, got 2 in row 1"),
        (None, (3, 4), torch.tensor([1, -1, 2]), ValueError, "classes 0 to 1, got -1 in row 1"),
    ],
)
def test_concat_context_refuses_a_context_that_does_not_fit(
    context_dim, x, context, error, message
):
    num_classes = 2 if context_dim is None else None
    net = ConcatContext(MLP(6, (3,)), context_dim=context_dim, num_classes=num_classes)
    with pytest.raises(error, match=message):
        net(torch.zeros(x), context)


def test_concat_context_refuses_an_image_of_another_shape():
    net = ConcatContext(ConvNet((3, 5, 4)), context_dim=2)
    with pytest.raises(ValueError, match=r"in_shape = \(1, 5, 4\), got \(2, 1, 4, 5\)"):
        net(torch.zeros(2, 1, 4, 5), torch.zeros(2, 2))


def test_concat_context_refuses_other_modules():
    with pytest.raises(TypeError, match=r"expects a Network, got a Linear: .* forward"):
        ConcatContext(nn.Linear(3, 2), context_dim=1)
    with pytest.raises(TypeError, match=r"got a ConcatContext: .*joined"):
        ConcatContext(ConcatContext(MLP(4), context_dim=1), context_dim=1)


def test_concat_context_maps_unknown_classes_to_nan_when_compiled(monkeypatch):
    net = ConcatContext(MLP(6, (3,), activation=nn.Tanh), num_classes=2)
    x = torch.randn(3, 4)
    expected = net(x, torch.tensor([0, 1, 1]))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    output = net(x, torch.tensor([0, 5, 1]))
    assert torch.equal(output[[0, 2]], expected[[0, 2]])
    assert output[1].isnan().all()


@pytest.mark.parametrize("num_classes", [None, 3])
def test_concat_context_in_a_conditional_vae(num_classes):
    options = {"num_classes": num_classes, "context_dim": None if num_classes else 3}
    encoder = GaussianEncoder(ConcatContext(ResNet((4, 5, 4), (4,)), **options), 2)
    decoder = ConcatContext(TransposedResNet(2 + 3, (1, 5, 4), (4,)), **options)
    vae = VAE(encoder, decoder, BernoulliLikelihood())
    x = torch.randint(2, (6, 1, 5, 4)).float()
    context = torch.arange(6) % 3
    context = context if num_classes else torch.eye(3)[context]
    vae.check(x, context)
    record = vae(x, context, num_samples=2)
    assert record.log_weight().shape == (2, 6)
    # Every sample meets the context of its own example.
    own = [
        decoder(record.latents[0].z[:, b], context[b : b + 1].repeat_interleave(2, 0))
        for b in range(6)
    ]
    logits = torch.stack(own, dim=1)  # (K, B, *E)
    expected = vae.likelihood(logits, 3).log_prob(x)
    torch.testing.assert_close(record.log_px, expected)
    assert vae.sample(4, context).shape == (4, 6, 1, 5, 4)
    with pytest.raises(ValueError, match="got none: give it as context="):
        vae(x)
