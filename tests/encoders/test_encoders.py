"""The contract of encoders, and references for each one."""

import math
from functools import partial

import numpy as np
import pytest
import scipy.stats
import torch
from helpers.apple import in_float32, on_device
from helpers.cases import for_each
from torch import nn
from torch.autograd import gradcheck

from tinyvae import MLP, ConvNet, Encoder, GaussianEncoder, ResNet, StandardNormal
from tinyvae.distributions import has_closed_form, kl_divergence
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
    VectorQuantizedEncoder,
)
from tinyvae.flows import Flow
from tinyvae.networks import ConcatContext
from tinyvae.priors import (
    CategoricalPrior,
    FullGaussianPrior,
    GaussianPrior,
    JointPrior,
    SphereUniformPrior,
    StandardLaplace,
)
from tinyvae.testing import check_encoder

pytestmark = pytest.mark.usefixtures("float64")

VECTOR, IMAGE = (4,), (1, 6, 4)
NUMBERS = torch.linspace(-1, 1, 15, dtype=torch.float64).reshape(5, 3)
CLASSES = torch.tensor([0, 3, 2, 1, 1])


def mlp(size=4):
    return MLP(size, hidden=(6,), activation=nn.Tanh)


def conv():
    return ConvNet(IMAGE, (2, 3), activation=nn.Tanh)  # (3, 2, 1)


def of_numbers():
    return ConcatContext(mlp(4 + 3), context_dim=3)


def of_classes():
    return ConcatContext(mlp(4 + 4), num_classes=4)


def flow(dim, *, like=GaussianEncoder, network=mlp, **options):
    return FlowEncoder(like(network(), dim), Flow(dim, hidden=(8,), **options))


def joint(network=None, size=4):
    parts = {
        "style": GaussianEncoder(mlp(size), 2),
        "kind": CategoricalEncoder(mlp(size), 3),
        "pose": PowerSphericalEncoder(mlp(size), 2),
    }
    return JointEncoder(parts, network=network)


# name: (encoder, data shape, context, other options of the check)
ENCODERS = {
    "gaussian": (lambda: GaussianEncoder(mlp(), 2), VECTOR, None, {"prior": GaussianPrior(2)}),
    "gaussian, 1": (lambda: GaussianEncoder(mlp(), 1), VECTOR, None, {}),
    "gaussian, many": (lambda: GaussianEncoder(mlp(), 7), VECTOR, None, {}),
    "gaussian, conv": (lambda: GaussianEncoder(conv(), 3), IMAGE, None, {}),
    "gaussian, spatial": (lambda: GaussianEncoder(conv(), (2, 2, 1)), IMAGE, None, {}),
    "gaussian, of rows": (lambda: GaussianEncoder(mlp(), (2, 3)), VECTOR, None, {}),
    "gaussian, resnet": (
        lambda: GaussianEncoder(ResNet(IMAGE, (4,), activation=nn.Tanh), 2),
        IMAGE,
        None,
        {},
    ),
    "gaussian, foreign": (
        lambda: GaussianEncoder(nn.Identity(), 3, features=6),
        (2, 3),
        None,
        {},
    ),
    "gaussian, foreign, spatial": (
        lambda: GaussianEncoder(nn.Conv2d(1, 2, 3), (1, 2, 2), features=2 * 4 * 2),
        IMAGE,
        None,
        {},
    ),
    "gaussian, of numbers": (lambda: GaussianEncoder(of_numbers(), 2), VECTOR, NUMBERS, {}),
    "gaussian, of classes": (lambda: GaussianEncoder(of_classes(), 2), VECTOR, CLASSES, {}),
    "gaussian, planes of classes": (
        lambda: GaussianEncoder(
            ConcatContext(ConvNet((1 + 4, 6, 4), (2,), activation=nn.Tanh), num_classes=4), 2
        ),
        IMAGE,
        CLASSES,
        {},
    ),
    "laplace": (lambda: LaplaceEncoder(mlp(), 2), VECTOR, None, {}),
    "laplace, spatial": (lambda: LaplaceEncoder(conv(), (2, 2, 1)), IMAGE, None, {}),
    "full gaussian": (
        lambda: FullGaussianEncoder(mlp(), 3),
        VECTOR,
        None,
        {"prior": FullGaussianPrior(3)},
    ),
    "full gaussian, 1": (lambda: FullGaussianEncoder(mlp(), 1), VECTOR, None, {}),
    "full gaussian, of classes": (
        lambda: FullGaussianEncoder(of_classes(), 2),
        VECTOR,
        CLASSES,
        {},
    ),
    "low rank": (
        lambda: LowRankGaussianEncoder(mlp(), 3, rank=2),
        VECTOR,
        None,
        {"prior": GaussianPrior(3)},
    ),
    "low rank, more ranks than dimensions": (
        lambda: LowRankGaussianEncoder(mlp(), 1, rank=2),
        VECTOR,
        None,
        {},
    ),
    "low rank, foreign": (
        lambda: LowRankGaussianEncoder(nn.Flatten(), 4, rank=1, features=6),
        (2, 3),
        None,
        {},
    ),
    "deterministic": (lambda: DeterministicEncoder(mlp(), 2), VECTOR, None, {}),
    "deterministic, spatial": (lambda: DeterministicEncoder(conv(), (2, 2, 1)), IMAGE, None, {}),
    "categorical": (
        lambda: CategoricalEncoder(mlp(), 4),
        VECTOR,
        None,
        {"prior": CategoricalPrior(4)},
    ),
    "categorical, several": (
        lambda: CategoricalEncoder(mlp(), 3, num_variables=(2, 2), temperature=0.5),
        VECTOR,
        None,
        {"prior": CategoricalPrior(3, num_variables=(2, 2))},
    ),
    "categorical, spatial": (
        lambda: CategoricalEncoder(conv(), 3, num_variables=(2, 1)),
        IMAGE,
        None,
        {},
    ),
    "categorical, of numbers": (lambda: CategoricalEncoder(of_numbers(), 3), VECTOR, NUMBERS, {}),
    "gumbel-softmax, 2": (lambda: GumbelSoftmaxEncoder(mlp(), 2), VECTOR, None, {}),
    "gumbel-softmax, 3": (
        lambda: GumbelSoftmaxEncoder(mlp(), 3, temperature=0.5),
        VECTOR,
        None,
        {},
    ),
    "gumbel-softmax, several": (
        lambda: GumbelSoftmaxEncoder(mlp(), 2, num_variables=3),
        VECTOR,
        None,
        {},
    ),
    "power spherical, 2": (
        lambda: PowerSphericalEncoder(mlp(), 2),
        VECTOR,
        None,
        {"prior": SphereUniformPrior(2)},
    ),
    "power spherical, 3": (
        lambda: PowerSphericalEncoder(mlp(), 3),
        VECTOR,
        None,
        {"prior": SphereUniformPrior(3)},
    ),
    "power spherical, 8": (lambda: PowerSphericalEncoder(of_numbers(), 8), VECTOR, NUMBERS, {}),
    "joint": (
        joint,
        VECTOR,
        None,
        {
            "prior": JointPrior(
                {
                    "style": StandardNormal(2),
                    "kind": CategoricalPrior(3),
                    "pose": SphereUniformPrior(2),
                }
            )
        },
    ),
    "joint, one network": (lambda: joint(MLP(4, hidden=(5,)), 5), VECTOR, None, {}),
    "joint, one network, of classes": (lambda: joint(of_classes(), 6), VECTOR, CLASSES, {}),
    "joint, of numbers": (
        lambda: JointEncoder(
            [("a", GaussianEncoder(of_numbers(), 2)), ("b", LaplaceEncoder(of_numbers(), (1, 2)))]
        ),
        VECTOR,
        NUMBERS,
        {},
    ),
    "joint, of a flow and codes": (
        lambda: JointEncoder(
            {
                "a": flow(2),
                "b": VectorQuantizedEncoder(mlp(), num_codes=6, latent_dim=2, decay=None),
            }
        ),
        VECTOR,
        None,
        {},
    ),
    "joint, foreign": (
        lambda: JointEncoder(
            {"a": GaussianEncoder(nn.Tanh(), 1, features=4)}, network=nn.Linear(4, 4)
        ),
        VECTOR,
        None,
        {},
    ),
    "flow, 1": (lambda: flow(1), VECTOR, None, {}),
    "flow, 1, affine": (lambda: flow(1, kind="affine"), VECTOR, None, {}),
    "flow, 1, of features": (lambda: flow(1, context_dim=6), VECTOR, None, {}),
    "flow": (lambda: flow(2), VECTOR, None, {}),
    "flow, affine": (lambda: flow(2, kind="affine", transforms=2), VECTOR, None, {}),
    "flow, coupling": (lambda: flow(3, coupling=True), VECTOR, None, {}),
    "flow, affine coupling": (lambda: flow(2, kind="affine", coupling=True), VECTOR, None, {}),
    "flow, of features": (lambda: flow(2, context_dim=6, transforms=1), VECTOR, None, {}),
    "flow, of full gaussian": (lambda: flow(2, like=FullGaussianEncoder), VECTOR, None, {}),
    "flow, of laplace": (lambda: flow(2, like=LaplaceEncoder), VECTOR, None, {}),
    "flow, of classes": (
        lambda: flow(2, network=of_classes, context_dim=6),
        VECTOR,
        CLASSES,
        {},
    ),
    "codes": (lambda: VectorQuantizedEncoder(mlp(), num_codes=6, latent_dim=2), VECTOR, None, {}),
    "codes, spatial": (
        lambda: VectorQuantizedEncoder(conv(), num_codes=6, latent_dim=(3, 2, 1)),
        IMAGE,
        None,
        {"prior": None},
    ),
    "codes, by the loss": (
        lambda: VectorQuantizedEncoder(mlp(), num_codes=6, latent_dim=(2, 3), decay=None),
        VECTOR,
        None,
        {},
    ),
    "codes, no restarts": (
        lambda: VectorQuantizedEncoder(
            mlp(), num_codes=6, latent_dim=2, decay=0.9, restart_below=0.0
        ),
        VECTOR,
        None,
        {},
    ),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_encoder_contract(name):
    make, data_shape, context, options = ENCODERS[name]
    check_encoder(make(), torch.randn(6, *data_shape), context, **options)


@pytest.mark.slow
@for_each("name", ENCODERS)
def test_encoder_needs_no_float64(apple, name):
    make, shape, context, _ = ENCODERS[name]
    encoder = make().float().eval()
    inputs = [torch.randn(5, *shape), *([] if context is None else [in_float32(context)])]
    with torch.no_grad():
        expected = encoder(*inputs)
        z, mean = expected.sample((3,)), expected.mean
        log_q = expected.log_prob(z)
        q = encoder.to("mps")(*map(on_device, inputs))
    torch.testing.assert_close(q.mean.cpu(), mean, equal_nan=True)
    torch.testing.assert_close(q.log_prob(on_device(z)).cpu(), log_q)
    assert q.sample((3,)).is_mps


# Formulas -----------------------------------------------------------------------------------------


def head_of(encoder, x):
    """Return the output of the head, a linear layer on the flattened features, in numpy."""
    weight, bias = (p.detach().numpy() for p in (encoder.head.weight, encoder.head.bias))
    return x.flatten(1).numpy() @ weight.T + bias


def of_identity(cls, *args, **options):
    """Return an encoder whose features are x, with three values."""
    return cls(nn.Identity(), *args, features=3, **options), torch.randn(4, 3)


def assert_equal(got, expected):
    np.testing.assert_allclose(got.detach().numpy(), expected, rtol=1e-11, atol=1e-12)


@for_each(
    ("cls", "family"), [(GaussianEncoder, scipy.stats.norm), (LaplaceEncoder, scipy.stats.laplace)]
)
def test_location_comes_before_log_scale(cls, family):
    encoder, x = of_identity(cls, 2)
    head, z = head_of(encoder, x), torch.randn(4, 2)
    location, scale = head[:, :2], np.exp(head[:, 2:])
    assert_equal(encoder(x).mean, location)
    assert_equal(encoder(x).log_prob(z), family.logpdf(z.numpy(), location, scale).sum(1))


def test_spatial_parameters_are_channels_of_a_convolution():
    encoder, x = GaussianEncoder(conv(), (2, 2, 1)), torch.randn(5, *IMAGE)
    assert isinstance(encoder.head, nn.Conv2d)
    maps = encoder.head(encoder.network(x))  # (B, 4, 2, 1)
    posterior, z = encoder(x), torch.randn(5, 2, 2, 1)
    assert torch.equal(posterior.mean, maps[:, :2])
    expected = torch.distributions.Normal(maps[:, :2], maps[:, 2:].exp()).log_prob(z).sum((1, 2, 3))
    torch.testing.assert_close(posterior.log_prob(z), expected, rtol=1e-12, atol=1e-12)


def test_head_is_linear_if_sizes_differ():
    assert isinstance(GaussianEncoder(conv(), (2, 1, 2)).head, nn.Linear)
    assert isinstance(GaussianEncoder(mlp(), (2, 2, 1)).head, nn.Linear)


def test_full_gaussian_encoder_reads_the_head():
    encoder, x = of_identity(FullGaussianEncoder, 3)
    head = head_of(encoder, x)
    assert head.shape[1] == 3 + 3 + 3
    z = torch.randn(4, 3)
    for row, params in enumerate(head):
        lower = np.diag(np.exp(params[3:6]))
        lower[1, 0], lower[2, 0], lower[2, 1] = params[6:]
        p = encoder(x[row : row + 1])
        assert_equal(p.mean[0], params[:3])
        assert_equal(p.scale_tril[0], lower)
        expected = scipy.stats.multivariate_normal(params[:3], lower @ lower.T).logpdf(z[row])
        assert_equal(p.log_prob(z[row]), [expected])


def test_low_rank_encoder_reads_the_head():
    encoder, x = of_identity(LowRankGaussianEncoder, 4, rank=2)
    z = torch.randn(4, 4)
    for row, params in enumerate(head_of(encoder, x).reshape(4, 4, 4)):
        mean, log_std, factor = params[0], params[1], params[2:].T
        covariance = factor @ factor.T + np.diag(np.exp(2 * log_std))
        expected = scipy.stats.multivariate_normal(mean, covariance).logpdf(z[row])
        p = encoder(x[row : row + 1])
        assert_equal(p.mean[0], mean)
        assert_equal(p.log_prob(z[row]), [expected])


def test_deterministic_encoder_reads_the_head():
    encoder, x = of_identity(DeterministicEncoder, (2, 2))
    assert_equal(encoder(x).sample((2,))[1].flatten(1), head_of(encoder, x))
    assert not encoder.is_density


def test_class_encoders_read_the_head():
    encoder, x = of_identity(CategoricalEncoder, 3, num_variables=2, temperature=0.3)
    logits = head_of(encoder, x).reshape(4, 3, 2)
    assert_equal(encoder(x).mean, scipy.special.softmax(logits, 1))
    assert encoder(x).temperature == 0.3
    relaxed, x = of_identity(GumbelSoftmaxEncoder, 3, num_variables=2, temperature=0.3)
    softmax = scipy.special.softmax(head_of(relaxed, x).reshape(4, 3, 2) / 0.3, 1)
    assert_equal(relaxed(x).point_estimate(), softmax)


def test_power_spherical_encoder_reads_the_head():
    encoder, x = of_identity(PowerSphericalEncoder, 3)
    head, p = head_of(encoder, x), encoder(x)
    direction = head[:, :3] / np.linalg.norm(head[:, :3], axis=1, keepdims=True)
    assert_equal(p.point_estimate(), direction)
    z = torch.nn.functional.normalize(torch.randn(4, 3), dim=1)
    kappa = np.exp(head[:, 3])
    # In three dimensions (1 + mu . z) is uniform under the uniform distribution.
    log_constant = np.log(kappa + 1) - (kappa + 1) * np.log(2) - np.log(2 * np.pi)
    expected = kappa * np.log1p((direction * z.numpy()).sum(1)) + log_constant
    assert_equal(p.log_prob(z), expected)


def test_joint_encoder_multiplies_its_parts():
    encoder, x = joint(MLP(4, hidden=(5,)), 5), torch.randn(5, 4)
    q, features = encoder(x), encoder.network(x)
    z = q.sample((3,)).detach()
    parts = [part(features) for part in encoder.encoders.values()]
    values = z[..., :2], z[..., 2:5].unsqueeze(-1), z[..., 5:]
    expected = sum(part.log_prob(v) for part, v in zip(parts, values, strict=True))
    torch.testing.assert_close(q.log_prob(z), expected, rtol=1e-12, atol=1e-12)
    assert q.is_discrete is None


@for_each("options", [{}, {"kind": "affine"}, {"coupling": True}])
@for_each("dim", [1, 2, 3])
def test_flow_encoder_includes_the_jacobian(dim, options):
    encoder, x = flow(dim, **options), torch.randn(1, 4)
    for parameter in encoder.flow.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    y = torch.randn(1, dim)
    bijection = encoder.flow()
    jacobian = torch.autograd.functional.jacobian(bijection, y)[0, :, 0]
    expected = encoder.encoder(x).log_prob(y) - torch.linalg.slogdet(jacobian).logabsdet
    got = encoder(x).log_prob(bijection(y).detach())
    torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-7)


def test_flow_encoder_log_prob_of_draws_without_gradients():
    q = flow(2)(torch.randn(5, 4))
    with torch.no_grad():
        z = q.sample()
    assert q.log_prob(z).requires_grad


def test_flow_encoder_log_prob_of_a_changed_draw():
    q = flow(2)(torch.randn(5, 4))
    z = q.sample().detach()
    z = q.sample()
    with torch.no_grad():
        z += 1.0
    torch.testing.assert_close(q.log_prob(z), q.log_prob(z.clone()))


def test_gradients_of_the_input():
    encoder = GaussianEncoder(mlp(), 3)
    x = torch.randn(6, 4, requires_grad=True)
    assert gradcheck(lambda x: encoder(x).log_prob(torch.ones(3)), x)


def test_encoder_passes_the_context_as_second_argument():
    class Sum(nn.Module):
        def forward(self, x, context):
            return x + context

    encoder = GaussianEncoder(Sum(), 2, features=3)
    x, context = torch.randn(2, 4, 3)
    plain = GaussianEncoder(nn.Identity(), 2, features=3)
    plain.load_state_dict(encoder.state_dict())
    assert torch.equal(encoder(x, context).mean, plain(x + context).mean)


# Divergences --------------------------------------------------------------------------------------

CLOSED = {
    "gaussian to gaussian": (GaussianEncoder, StandardNormal),
    "gaussian to full": (GaussianEncoder, FullGaussianPrior),
    "full to gaussian": (FullGaussianEncoder, GaussianPrior),
    "full to full": (FullGaussianEncoder, FullGaussianPrior),
    "low rank to gaussian": (partial(LowRankGaussianEncoder, rank=2), GaussianPrior),
    "laplace to laplace": (LaplaceEncoder, StandardLaplace),
    "spherical to uniform": (PowerSphericalEncoder, SphereUniformPrior),
    "classes to classes": (CategoricalEncoder, CategoricalPrior),
}


@for_each("dtype", [torch.float32, torch.float64])
@for_each("scale", [0.0, 1e-4, 1.0, 5.0])
@for_each("pair", CLOSED)
def test_closed_forms_are_not_negative(pair, scale, dtype):
    make, prior = CLOSED[pair]
    encoder, p = make(mlp(), 3), prior(3)
    with torch.no_grad():
        for parameter in (*encoder.head.parameters(), *p.parameters()):
            parameter.copy_(scale * torch.randn_like(parameter))
        q, p = encoder.to(dtype)(torch.randn(100, 4, dtype=dtype)), p.to(dtype)()
        assert has_closed_form(q, p)
        kl = kl_divergence(q, p)
    least = 0.0 if dtype == torch.float64 else -1e-6  # rounding of large terms
    assert (kl >= least - 1e-12).all()
    assert (kl > 0).all() or scale < 1
    if scale == 0 and "spherical" not in pair:
        assert (kl.abs() < 1e-6).all()


# Errors -------------------------------------------------------------------------------------------

ERRORS = {
    "no features": (
        lambda: GaussianEncoder(nn.Linear(3, 4), 2),
        TypeError,
        "GaussianEncoder cannot read the number of features from a Linear: give features=",
    ),
    "latent_dim 0": (
        lambda: GaussianEncoder(mlp(), 0),
        ValueError,
        "GaussianEncoder expects latent_dim >= 1, got 0",
    ),
    "an empty side": (
        lambda: LaplaceEncoder(mlp(), (2, 0)),
        ValueError,
        "LaplaceEncoder expects latent_dim >= 1, got 2, 0",
    ),
    "full, 0": (
        lambda: FullGaussianEncoder(mlp(), 0),
        ValueError,
        "FullGaussianEncoder expects latent_dim >= 1, got 0",
    ),
    "point, 0": (
        lambda: DeterministicEncoder(mlp(), 0),
        ValueError,
        "DeterministicEncoder expects latent_dim >= 1, got 0",
    ),
    "rank": (
        lambda: LowRankGaussianEncoder(mlp(), 3, rank=0),
        ValueError,
        "LowRankGaussianEncoder expects rank >= 1, got 0",
    ),
    "sphere of points": (
        lambda: PowerSphericalEncoder(mlp(), 1),
        ValueError,
        "PowerSphericalEncoder expects latent_dim >= 2, got 1",
    ),
    "one class": (
        lambda: CategoricalEncoder(mlp(), 1),
        ValueError,
        "CategoricalEncoder expects num_classes >= 2, got 1",
    ),
    "no variables": (
        lambda: CategoricalEncoder(mlp(), 3, num_variables=0),
        ValueError,
        "CategoricalEncoder expects latent_dim >= 1, got 3, 0",
    ),
    "temperature": (
        lambda: GumbelSoftmaxEncoder(mlp(), 3, temperature=0.0),
        ValueError,
        "GumbelSoftmaxEncoder expects a finite temperature > 0, got 0.0",
    ),
    "temperature, NaN": (
        lambda: CategoricalEncoder(mlp(), 3, temperature=math.nan),
        ValueError,
        "CategoricalEncoder expects a finite temperature > 0, got nan",
    ),
    "joint of nothing": (
        lambda: JointEncoder({}),
        TypeError,
        r"JointEncoder expects encoders by name, got \{\}",
    ),
    "joint of networks": (
        lambda: JointEncoder({"a": mlp()}),
        TypeError,
        "JointEncoder expects encoders by name, got .*MLP",
    ),
    "flow of another size": (
        lambda: FlowEncoder(GaussianEncoder(mlp(), 2), Flow(3)),
        ValueError,
        r"vectors of 3, such as GaussianEncoder\(network, 3\), got GaussianEncoder",
    ),
    "flow of a flow": (
        lambda: FlowEncoder(flow(2), Flow(2)),
        ValueError,
        "FlowEncoder expects an encoder of vectors of 2.* got FlowEncoder",
    ),
    "flow of other features": (
        lambda: FlowEncoder(GaussianEncoder(mlp(), 2), Flow(2, context_dim=5)),
        ValueError,
        "expects a flow with context_dim=6, .* or 0, got context_dim=5",
    ),
    "flow of nothing": (
        lambda: Flow(0),
        ValueError,
        "Flow expects dim >= 1, context_dim >= 0 and 1 to 100 transforms, got 0, 0 and 3",
    ),
    "flow of some kind": (
        lambda: Flow(2, kind="planar"),
        ValueError,
        "Flow expects kind 'spline' or 'affine', got 'planar'",
    ),
    "huge flow": (
        lambda: Flow(10_000, hidden=(10_000,)),
        ValueError,
        "Flow expects at most 100,000,000 weights: make it smaller",
    ),
}


@for_each("case", ERRORS)
def test_encoder_constructors_reject_invalid_arguments(case):
    make, error, message = ERRORS[case]
    with pytest.raises(error, match=message):
        make()


def test_encoder_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Encoder()


def test_gumbel_softmax_encoder_needs_a_temperature():
    with pytest.raises(TypeError, match="expects a temperature > 0, got None"):
        GumbelSoftmaxEncoder(mlp(), 3, temperature=None)
