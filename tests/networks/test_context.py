import pytest
import torch
from helpers.cases import for_each
from helpers.networks import with_moved_parameters
from torch import nn

from tinyvae import MLP, VAE, BernoulliLikelihood, ConvNet, GaussianEncoder
from tinyvae.networks import ConcatContext, ResNet, TransposedResNet


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
    joined = torch.empty(3, 3, 5, 4)
    joined[:, :1] = x
    for row in range(3):
        for value in range(2):
            joined[row, 1 + value] = context[row, value]
    assert torch.equal(wrapped(x, context), net(joined))


@for_each("net", [MLP(7, (4,)), ConvNet((4, 3, 2), (2,))])
@for_each("dtype", [torch.int64, torch.int32, torch.uint8])
def test_concat_context_maps_classes_to_one_hot_rows(net, dtype):
    classes, numbers = ConcatContext(net, num_classes=3), ConcatContext(net, context_dim=3)
    index = torch.tensor([2, 0, 1, 2], dtype=dtype)
    rows = torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    x = torch.randn(4, *classes.in_shape)
    assert torch.equal(classes(x, index), numbers(x, rows))
    assert not torch.equal(classes(x, index), classes(x, index.flip(0)))
    assert classes(x[:0], index[:0]).shape == (0, *net.out_shape)


@for_each("dtype", [torch.int8, torch.uint8])
def test_concat_context_accepts_more_classes_than_a_byte_counts(dtype):
    wrapped = ConcatContext(MLP(301, (4,)), num_classes=300)
    index, x = torch.tensor([0, 127]), torch.ones(2, 1)
    assert torch.equal(wrapped(x, index.to(dtype)), wrapped(x, index))


@for_each("net", ["MLP", "ResNet", "1x1"])
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
    other_context = torch.randn(3, 2)
    with torch.no_grad():
        assert not torch.allclose(wrapped(x, other_context), wrapped(x, context), atol=1e-4)


@for_each(
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


@for_each("num_classes", [None, 3])
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
    # Every sample is decoded with the context of its own example.
    params = [
        decoder(record.latents[0].z[:, b], context[b : b + 1].repeat_interleave(2, 0))
        for b in range(6)
    ]
    logits = torch.stack(params, dim=1)  # (K, B, *E)
    expected = vae.likelihood(logits, 3).log_prob(x)
    torch.testing.assert_close(record.log_px, expected)
    assert vae.sample(4, context).shape == (4, 6, 1, 5, 4)
    with pytest.raises(ValueError, match="got none: give it as context="):
        vae(x)
