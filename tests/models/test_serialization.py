import math

import numpy as np
import pytest
import torch
from helpers.cases import for_each
from helpers.names import public_names
from torch import nn

from tinyvae import (
    MLP,
    BernoulliLikelihood,
    CategoricalLikelihood,
    ConvNet,
    GaussianEncoder,
    GaussianLikelihood,
    Likelihood,
    ResNet,
    StandardNormal,
    TransposedConvNet,
    TransposedResNet,
    VampPrior,
)
from tinyvae.distributions import Normal
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
from tinyvae.errors import CheckpointError
from tinyvae.flows import Flow, PlanarFlow, RadialFlow
from tinyvae.io import load_tensors, save_tensors
from tinyvae.likelihoods import (
    BetaBinomialLikelihood,
    BetaLikelihood,
    CensoredLikelihood,
    Column,
    ContinuousBernoulliLikelihood,
    DiscretizedLogisticLikelihood,
    FeatureDistance,
    Fixed,
    HurdleLikelihood,
    LaplaceLikelihood,
    Learned,
    LogitNormalLikelihood,
    LogNormalLikelihood,
    MaskedLikelihood,
    MixedLikelihood,
    MixtureLikelihood,
    MultinomialLikelihood,
    MultiScaleSSIM,
    NegativeBinomialLikelihood,
    OneHotLikelihood,
    OptimalGaussianLikelihood,
    OrdinalLikelihood,
    PerceptualLikelihood,
    PoissonLikelihood,
    Predicted,
    RowMasking,
    SelfMasking,
    StandardizedLikelihood,
    StudentTLikelihood,
    ZeroInflatedLikelihood,
)
from tinyvae.models.serialization import ACTIVATIONS, PARTS, build_part, describe_part
from tinyvae.networks import ConcatContext
from tinyvae.priors import (
    AutoregressivePrior,
    CategoricalPrior,
    CodePrior,
    ConditionalPrior,
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

# Every part, with no argument at its default.
EXAMPLES = [
    BernoulliLikelihood(),
    ConvNet((2, 5, 3), (3, 4), kernel_size=5, activation=nn.GELU),
    GaussianEncoder(MLP(4, hidden=(7,), activation=nn.SiLU), 3, features=7),
    GaussianEncoder(ConvNet((1, 5, 4), (2,)), 3),
    BetaBinomialLikelihood([4, 7], "predicted"),
    BetaLikelihood(3.0),
    MultinomialLikelihood(12),
    CategoricalLikelihood(5, ordered=True),
    ContinuousBernoulliLikelihood(),
    DiscretizedLogisticLikelihood(16, scale="learned"),
    GaussianLikelihood(Learned((2, 1, 1), initial=0.5, minimum=0.1, num_classes=3)),
    GaussianLikelihood(Fixed(0.3)),
    GaussianLikelihood(Predicted(minimum=0.2)),
    HurdleLikelihood(BetaLikelihood(), at=(0.0, 1.0)),
    HurdleLikelihood(LogNormalLikelihood("predicted"), at=[[0.0, -1.0, 0.5]]),
    LaplaceLikelihood(0.5),
    Fixed(0.4),
    Learned((4,), initial=2.0),
    LogNormalLikelihood("predicted"),
    LogitNormalLikelihood("predicted", low=[-1.0, 0.0], high=2.0),
    OrdinalLikelihood(5, shape=(4,), frequencies=[1.0, 2.0, 3.0, 2.0, 1.0]),
    CensoredLikelihood(LaplaceLikelihood(0.5)),
    MaskedLikelihood(PoissonLikelihood(), show_mask=True, mechanism=SelfMasking()),
    SelfMasking(
        (2,),
        sign=(1, None),
        mean=[1.0, 2.0],
        std=3.0,
        missing_rate=[0.1, 0.2],
        intercept="predicted",
    ),
    RowMasking(MLP(2, (), 2), mean=[1.0, 2.0], std=3.0),
    MixedLikelihood(
        [
            Column("age", "number", shift=40.0, scale=12.0),
            ("income", "positive", (), 0.0, 3e4),
            Column("visits", "count", scale=2.5),
            Column("smokes", "binary", levels=(False, True)),
            Column("color", "category", levels=("red", "green", "blue")),
            Column("size", "category", levels=(1, 2.5, 4)),
            Column("odd", "number"),
            Column("gain", "amount", points=(0.0, 5.0), rest="positive", dtype="int64"),
            Column("loss", "amount", points=(0.0,), rest="heavy", key=7),
            Column("share", "bounded", bounds=(0.0, 1.0), points=(1.0,), initial=2.0),
            Column("grade", "ordinal", levels=(1, 2, 3), frequencies=(0.5, 0.25, 0.25)),
            Column("peaks", "modes", num_components=3, initial=0.2),
            Column("rate", "heavy", shift=1.0, scale=3.0, reason="declared"),
            Column("day", "date", dtype="datetime64[ns]", origin=5, step=86_400 * 10**9),
            Column("unit", "constant", levels=("cm",), key=("a", 1)),
            Column("id", "identifier"),
        ],
        likelihoods={"odd": StudentTLikelihood(0.5, df="learned")},
    ),
    MixtureLikelihood(DiscretizedLogisticLikelihood(256), num_components=3),
    NegativeBinomialLikelihood("predicted", baseline=[2.0, 3.0]),
    OneHotLikelihood(),
    OptimalGaussianLikelihood((2, 1, 1), minimum=0.01),
    PerceptualLikelihood(FeatureDistance(MLP(4)), weight=2.0, bounds=(-1.0, 3.0)),
    FeatureDistance(ConvNet((1, 4, 4), (2,))),
    MultiScaleSSIM(3, window=7, sigma=1.2, scales=2, max_value=4.0),
    PoissonLikelihood(baseline=2.0),
    Predicted(minimum=0.5),
    StandardizedLikelihood(GaussianLikelihood(), mean=[1.0, 2.0], std=3.0),
    StudentTLikelihood("predicted", df=7.0),
    ZeroInflatedLikelihood(NegativeBinomialLikelihood()),
    MLP((2, 3), hidden=(5, 6), out_shape=(2, 1), activation=nn.ELU),
    MLP(3, hidden=(5,)),
    MLP(3, hidden=(), out_shape=2),
    StandardLaplace((2, 3)),
    StandardNormal((2, 3)),
    GaussianEncoder(ConvNet((1, 4, 4), (2,)), (3, 2, 2)),
    LaplaceEncoder(MLP(4), 3, features=400),
    FullGaussianEncoder(MLP(4), 3),
    LowRankGaussianEncoder(MLP(4), 5, rank=2),
    DeterministicEncoder(MLP(4), (2, 3)),
    PowerSphericalEncoder(MLP(4), 3),
    CategoricalEncoder(MLP(4), 5, num_variables=(2, 3), temperature=0.5),
    GumbelSoftmaxEncoder(MLP(4), 5, num_variables=2, temperature=0.5),
    JointEncoder(
        [("a", GaussianEncoder(MLP(6), 2)), ("b", CategoricalEncoder(MLP(6), 3))],
        network=MLP(4, (6,)),
    ),
    FlowEncoder(GaussianEncoder(MLP(4, (6,)), 2), Flow(2, context_dim=6)),
    VectorQuantizedEncoder(
        MLP(4),
        num_codes=8,
        latent_dim=(2, 3),
        commitment=0.5,
        decay=None,
        restart_below=0.1,
        features=400,
    ),
    VectorQuantizedEncoder(MLP(4), num_codes=8, latent_dim=(2, 3), num_quantizers=2),
    Flow(3, context_dim=2, transforms=2, hidden=(5,), kind="affine", coupling=True),
    PlanarFlow(3, context_dim=2, transforms=4),
    RadialFlow(3, context_dim=2, transforms=4),
    FlowPrior(Flow(3, hidden=(5,))),
    GaussianPrior((2, 3)),
    FullGaussianPrior(3),
    MixturePrior((2, 3), num_components=4),
    AutoregressivePrior(3, hidden=(5,), num_components=2),
    FittedPrior(MixturePrior(2, num_components=3)),
    VampPrior(2, input_shape=(1, 4, 4), num_components=3, context_shape=(2,), learned_weights=True),
    VampPrior(2, input_shape=5, num_components=3),
    ConditionalPrior(GaussianEncoder(MLP(4), 2)),
    CategoricalPrior(5, num_variables=(2, 3), learned=True),
    GumbelSoftmaxPrior(5, num_variables=2, temperature=0.3, learned=True),
    JointPrior([("a", StandardNormal(2)), ("b", CategoricalPrior(3))]),
    SphereUniformPrior(3),
    CodePrior(8, latent_dim=(2, 3), num_quantizers=2),
    ConcatContext(MLP(7), context_dim=3),
    ConcatContext(MLP(7), num_classes=3),
    ResNet((2, 5, 3), (8, 4), blocks=2, activation=nn.GELU),
    TransposedResNet((4, 2, 1), (2, 1, 5, 3), (4, 8), blocks=2, activation=nn.GELU),
    MLP(3, hidden=(5,), normalize=True),
    TransposedConvNet((3, 1), (2, 1, 5, 7), (3, 4), kernel_size=5, activation=nn.Tanh),
]


def test_every_part_has_an_example():
    assert {type(part) for part in EXAMPLES} == set(PARTS), (
        "EXAMPLES needs an instance of every public part: add one with no argument at its default"
    )


def test_parts_holds_every_public_part():
    import tinyvae

    bases = (
        tinyvae.likelihoods.Distance,
        tinyvae.Encoder,
        tinyvae.Likelihood,
        tinyvae.networks.Network,
        tinyvae.likelihoods.Mechanism,
        tinyvae.likelihoods.PositiveParameter,
        tinyvae.encoders.NetworkEncoder,
        tinyvae.flows.NormalizingFlow,
        tinyvae.Prior,
    )
    classes = [value for value in public_names().values() if isinstance(value, type)]
    part_classes = {c for c in classes if issubclass(c, bases) and c not in bases}
    assert part_classes == set(PARTS)


@for_each("part", EXAMPLES)
def test_build_part_inverts_describe_part(part, tmp_path):
    save_tensors(tmp_path / "part.safetensors", part.state_dict(), {"part": describe_part(part)})
    tensors, info = load_tensors(tmp_path / "part.safetensors")
    twin = build_part(info["part"])
    twin.load_state_dict(tensors)
    assert type(twin) is type(part)
    assert repr(twin) == repr(part)
    assert describe_part(twin) == describe_part(part)
    shapes = ("in_shape", "out_shape", "latent_shape", "shape")
    for name in shapes:
        assert getattr(twin, name, None) == getattr(part, name, None)
    assert twin.state_dict().keys() == part.state_dict().keys()
    assert all(torch.equal(t, twin.state_dict()[name]) for name, t in part.state_dict().items())


def test_activations_round_trip():
    x = torch.randn(5, 3)
    for activation in ACTIVATIONS:
        net = MLP(3, hidden=(4,), activation=activation)
        twin = build_part(describe_part(net))
        twin.load_state_dict(net.state_dict())
        assert twin.activation is activation
        assert torch.equal(twin(x), net(x))


def test_describe_part_returns_json():
    assert describe_part(GaussianEncoder(nn.Tanh(), 3, features=4)) == {
        "part": "GaussianEncoder",
        "config": {"network": {"foreign": "Tanh"}, "latent_dim": 3, "features": 4},
    }
    assert describe_part((1, 2.5, "a", None, True, (3,))) == [1, 2.5, "a", None, True, [3]]


class UserLikelihood(Likelihood):
    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def elementwise(self, *params):
        return Normal(params[0], torch.zeros(()))

    def config(self):
        return {"scale": self.scale}


@for_each(
    ("value", "expected"),
    [
        (np.float32(0.1), float(np.float32(0.1))),
        (np.int64(3), 3),
        (np.bool_(True), True),
        ([1, (2, [3])], (1, (2, (3,)))),
        (torch.Size([2]), (2,)),
        (math.inf, math.inf),
        (-math.inf, -math.inf),
        (-0.0, -0.0),
        (2**70, 2**70),
        ("\u00fc \U0001f600", "\u00fc \U0001f600"),
    ],
)
def test_build_part_returns_the_arguments(value, expected, tmp_path):
    save_tensors(tmp_path / "part", {}, {"part": describe_part(UserLikelihood(value))})
    description = load_tensors(tmp_path / "part")[1]["part"]
    built = build_part(description, [UserLikelihood]).scale
    assert (built, repr(built), type(built)) == (expected, repr(expected), type(expected))


def test_build_part_returns_nan():
    assert math.isnan(build_part(describe_part((math.nan,)))[0])


def test_describe_part_refuses_other_values():
    part = UserLikelihood(torch.ones(2))
    for value in (object(), 1j, b"ab", torch.Tensor, lambda: nn.ReLU(), {"a": 1}, part):
        with pytest.raises(TypeError, match=r"cannot describe .*such as an activation"):
            describe_part(value)


def test_describe_part_needs_every_argument_in_config():
    part = UserLikelihood(1.0)
    for config in ({}, {"scale": 1, "more": 2}, {"Scale": 1}):
        part.config = lambda config=config: config
        message = r"UserLikelihood.config\(\) must return every.*\['scale'\], got"
        with pytest.raises(TypeError, match=message):
            describe_part(part)


def test_build_part_needs_the_classes_of_user_parts():
    description = describe_part(UserLikelihood(2.0))
    with pytest.raises(
        CheckpointError,
        match=r"unknown part 'UserLikelihood' as 'likelihood'.*parts=\[UserLikelihood",
    ):
        build_part(description, name="likelihood")
    assert build_part(description, [UserLikelihood]).scale == 2.0


def test_build_part_replaces_foreign_modules_by_name():
    net = nn.Linear(4, 5)
    description = describe_part(GaussianEncoder(net, 3, features=5))
    built = build_part(description, replace={"encoder.network": net}, name="encoder")
    assert built.network is net
    with pytest.raises(CheckpointError, match=r"weights of 'encoder.network' \(a Linear\)"):
        build_part(description, replace={"network": net}, name="encoder")


def test_build_part_refuses_invalid_descriptions():
    for description in ({}, {"part": "MLP"}, {"part": 5, "config": {}}, {"class": None}):
        with pytest.raises(CheckpointError, match="'decoder' has an invalid description"):
            build_part(description, name="decoder")


def test_build_part_needs_the_class_of_a_user_activation():
    net = MLP(3, hidden=(4,), activation=nn.Hardswish)
    description = describe_part(net)
    with pytest.raises(CheckpointError, match=r"unknown part 'Hardswish' .*parts=\[Hardswish\]"):
        build_part(description)
    assert build_part(description, parts=[nn.Hardswish]).activation is nn.Hardswish
