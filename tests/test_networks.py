import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tinyvae import MLP, ConvNet, TransposedConvNet

sizes = st.integers(1, 4)
channel_lists = st.lists(sizes, min_size=1, max_size=3)
images = st.tuples(sizes, st.integers(1, 13), st.integers(1, 13))
shapes = st.lists(sizes, min_size=1, max_size=3)
kernels = st.sampled_from([1, 3, 5])
smooth = st.sampled_from([nn.SiLU, nn.Tanh])  # no dead units

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
}


@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=40)
@given(data=st.data(), batch=st.integers(1, 3))
def test_contract(name, data, batch):
    net = data.draw(NETWORKS[name])
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
def test_transposed_mirrors_conv(image, channels, kernel_size):
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


def test_mlp_is_its_formula():
    net = MLP((1, 2, 3), hidden=(4,), out_shape=(2, 1), activation=nn.Tanh)
    x = torch.randn(5, 1, 2, 3)
    first, last = (layer for layer in net.layers if isinstance(layer, nn.Linear))
    hidden = torch.tanh(x.reshape(5, 6) @ first.weight.T + first.bias)
    expected = (hidden @ last.weight.T + last.bias).reshape(5, 2, 1)
    torch.testing.assert_close(net(x), expected)


def test_examples_do_not_touch_each_other():
    for net in (ConvNet((1, 5, 4)), TransposedConvNet(3, (2, 5, 4)), MLP(3)):
        x = torch.randn(3, *net.in_shape)
        alone = torch.cat([net(row[None]) for row in x])
        torch.testing.assert_close(net(x), alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLP(0), r"MLP in_shape expects sizes of at least 1, got \(0,\)"),
        (lambda: MLP(4, hidden=(-1,)), r"MLP hidden expects .* got \(-1,\)"),
        (lambda: MLP(4, out_shape=(2, 0)), r"MLP out_shape expects .* got \(2, 0\)"),
        (lambda: MLP(4, hidden=()), "expects an out_shape, got None"),
        (lambda: ConvNet((28, 28)), r"ConvNet in_shape expects \(C, H, W\), got \(28, 28\)"),
        (lambda: ConvNet((1, 28, 28), ()), "ConvNet expects at least one number of channels"),
        (lambda: ConvNet((1, 28, 28), (0,)), "ConvNet channels expects sizes of at least 1"),
        (lambda: ConvNet((1, 28, 28), kernel_size=4), "odd kernel_size, got 4"),
        (lambda: ConvNet((1, 28, 28), kernel_size=-1), "odd kernel_size, got -1"),
        (lambda: TransposedConvNet(4, (28, 28)), r"expects out_shape \(C, H, W\) or"),
        (lambda: TransposedConvNet(4, (1, 28, 28), ()), "at least one number of channels"),
        (lambda: TransposedConvNet(4, (1, 28, 28), kernel_size=2), "odd kernel_size, got 2"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("activation", [nn.Tanh(), "tanh"])
def test_an_activation_is_a_class(activation):
    with pytest.raises(TypeError, match="the class of an activation"):
        MLP(3, activation=activation)


def test_an_input_of_another_shape_is_named():
    with pytest.raises(ValueError, match=r"in_shape = \(1, 8, 8\), got \(2, 8, 8\)"):
        MLP((1, 8, 8))(torch.zeros(2, 8, 8))
