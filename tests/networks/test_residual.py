import torch
from helpers.cases import for_each
from helpers.networks import any_images, groups, with_moved_parameters
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tinyvae import TransposedConvNet
from tinyvae.networks import ResNet, TransposedResNet
from tinyvae.networks.residual import ResidualBlock


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


@for_each("kind", [TransposedConvNet, TransposedResNet])
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

    # A linear layer that is block-diagonal over positions equals the 1 x 1 convolution.
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


@for_each("kind", [TransposedConvNet, TransposedResNet])
@for_each("in_shape", [6, (6,), (3, 2), (3, 1, 2), (3, 4, 2), (1, 3, 2, 1)])
def test_seed_layers_flatten_any_other_latent(kind, in_shape):
    net = kind(in_shape, (1, 5, 3), (4,))  # the seed's height and width are (3, 2)
    assert isinstance(net.layers[0], nn.Linear)
    assert net(torch.randn(2, *net.in_shape)).shape == (2, 1, 5, 3)
