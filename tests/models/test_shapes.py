"""Output shapes that decoders get from the model, and VAE.from_shapes."""

import pytest
import torch
from helpers.cases import for_each
from torch import nn

from tinyvae import (
    ELBO,
    MLP,
    VAE,
    Batch,
    BernoulliLikelihood,
    BottomUpVAE,
    CategoricalLikelihood,
    ConvNet,
    GaussianEncoder,
    GaussianLikelihood,
    LadderVAE,
    ResNet,
    Trainer,
    TransposedConvNet,
    TransposedResNet,
    TwoLevelVAE,
    VampPrior,
    impute,
    summary,
)
from tinyvae.encoders import FlowEncoder, JointEncoder
from tinyvae.flows import Flow
from tinyvae.likelihoods import (
    DiscretizedLogisticLikelihood,
    MaskedLikelihood,
    MixedLikelihood,
    MixtureLikelihood,
    OneHotLikelihood,
    OptimalGaussianLikelihood,
    StandardizedLikelihood,
)
from tinyvae.networks import ConcatContext


def same_model(model, expected):
    states = model.state_dict(), expected.state_dict()
    return (
        repr(model) == repr(expected)
        and model.description() == expected.description()
        and list(states[0]) == list(states[1])
        and all(torch.equal(tensor, states[1][key]) for key, tensor in states[0].items())
    )


# name: model, whose decoder has an output shape or not
MODELS = {
    "mlp": lambda shape: VAE(
        GaussianEncoder(MLP((1, 6, 5), (4,)), 3),
        MLP(3, (4,), (1, 6, 5) if shape else None),
        BernoulliLikelihood(),
    ),
    "two parameters": lambda shape: VAE(
        GaussianEncoder(ConvNet((1, 6, 5), (4,)), 3),
        TransposedConvNet(3, (2, 1, 6, 5) if shape else None, (4,)),
        GaussianLikelihood("predicted"),
    ),
    "masked": lambda shape: VAE(
        GaussianEncoder(ResNet((1, 6, 5), (4,)), 3),
        TransposedResNet(3, (1, 6, 5) if shape else None, (4,)),
        MaskedLikelihood(GaussianLikelihood()),
    ),
    "flow": lambda shape: VAE(
        FlowEncoder(GaussianEncoder(MLP(5, (4,)), 3), Flow(3)),
        MLP(3, (4,), (4, 5) if shape else None),
        MixtureLikelihood(GaussianLikelihood(), num_components=2),
    ),
    "given": lambda shape: VAE(
        GaussianEncoder(nn.Sequential(nn.Flatten(), nn.Linear(30, 4)), 3, features=4),
        MLP(3, (4,), (1, 6, 5) if shape else None),
        BernoulliLikelihood(),
        data_shape=(1, 6, 5),
    ),
    "one-hot input": lambda shape: VAE(
        GaussianEncoder(MLP((7, 6), (4,)), 3),
        MLP(3, (4,), (7, 6) if shape else None),
        CategoricalLikelihood(7),
        data_shape=(6,),
    ),
    "context": lambda shape: VAE(
        GaussianEncoder(ConcatContext(ConvNet((3, 6, 5), (4,)), context_dim=2), 3),
        ConcatContext(TransposedConvNet(5, (1, 6, 5) if shape else None, (4,)), context_dim=2),
        BernoulliLikelihood(),
    ),
    "bottom-up": lambda shape: BottomUpVAE(
        [GaussianEncoder(MLP(5, (4,)), 3), GaussianEncoder(MLP(3, (4,)), 2)],
        [GaussianEncoder(MLP(2, (4,)), 3)],
        MLP(3, (4,), 5 if shape else None),
        BernoulliLikelihood(),
    ),
    "ladder": lambda shape: LadderVAE(
        [GaussianEncoder(MLP(5, (4,)), 3), GaussianEncoder(MLP(4, (4,)), 2)],
        [GaussianEncoder(MLP(2, (4,)), 3)],
        MLP(3, (4,), 5 if shape else None),
        BernoulliLikelihood(),
    ),
    "two levels": lambda shape: TwoLevelVAE(
        GaussianEncoder(MLP(5, (4,)), 2),
        bottom=GaussianEncoder(ConcatContext(MLP(5 + 2, (4,)), context_dim=2), 3),
        generator=GaussianEncoder(MLP(2, (4,)), 3),
        decoder=MLP(5, (4,), 5 if shape else None),
        likelihood=BernoulliLikelihood(),
    ),
}


@for_each("name", MODELS)
def test_decoder_without_a_shape_equals_one_with_it(name, tmp_path):
    models = []
    for shape in (True, False):
        torch.manual_seed(1)
        models.append(MODELS[name](shape))
    assert same_model(models[1], models[0])
    if name != "given":  # its network is foreign
        models[1].save(tmp_path / "model")
        assert same_model(type(models[1]).load(tmp_path / "model"), models[0].eval())


def test_decoder_without_a_shape_needs_the_data_shape():
    encoders = {
        "any module": (GaussianEncoder(nn.Linear(5, 4), 2, features=4), BernoulliLikelihood()),
        "any module, then networks": (
            JointEncoder({"a": GaussianEncoder(MLP(5), 2)}, network=nn.Linear(4, 5)),
            BernoulliLikelihood(),
        ),
        "one-hot input": (GaussianEncoder(MLP((7, 6)), 2), CategoricalLikelihood(7)),
        "table": (GaussianEncoder(MLP(3), 2), MixedLikelihood([("a", "category", (0, 1, 2))])),
    }
    for encoder, likelihood in encoders.values():
        message = r"VAE expects data_shape .*: give VAE\(\.\.\., data_shape=\(C, H, W\)\), or the"
        with pytest.raises(ValueError, match=message):
            VAE(encoder, MLP(2), likelihood)
        shape = likelihood.param_shape((1,))
        assert VAE(encoder, MLP(2, out_shape=shape), likelihood).data_shape is None
        assert VAE(encoder, MLP(2), likelihood, data_shape=(1,)).decoder.out_shape == shape


def test_check_names_the_data_shape_of_another_decoder():
    encoder = GaussianEncoder(ConcatContext(MLP(6 + 1), context_dim=1), 2)
    vae = VAE(encoder, ConcatContext(MLP(2 + 1), context_dim=1), BernoulliLikelihood())
    x, context = torch.zeros(2, 1, 3, 2), torch.zeros(2, 1)
    message = (
        r"x of shape \(B, 6\), got \(2, 1, 3, 2\): .* or build VAE with data_shape=\(1, 3, 2\)"
    )
    with pytest.raises(ValueError, match=message):
        vae.check(x, context)


def test_summary_uses_the_data_shape():
    encoder = GaussianEncoder(nn.Linear(5, 4), 2, features=4)
    vae = VAE(encoder, MLP(2), BernoulliLikelihood(), data_shape=(5,))
    assert summary(vae) == summary(vae, (5,))
    assert summary(vae).startswith("VAE of data (5,), latent (2,)")


# from_shapes --------------------------------------------------------------------------------------

WRITTEN_OUT = {
    "mlp": (lambda shape: MLP(shape), lambda latent, shape: MLP(latent, out_shape=shape)),
    "conv": (ConvNet, TransposedConvNet),
    "resnet": (ResNet, TransposedResNet),
}
# name: (likelihood, data shape, latent shape, networks)
ALL, ONLY_MLP = tuple(WRITTEN_OUT), ("mlp",)
FIRST_MODELS = {
    "images": (BernoulliLikelihood, (1, 9, 6), 4, ALL),
    "two parameters": (lambda: GaussianLikelihood("predicted"), (3, 9, 6), 4, ALL),
    "spatial latents": (BernoulliLikelihood, (1, 8, 8), (2, 2, 2), ALL),
    "mixture": (
        lambda: MixtureLikelihood(DiscretizedLogisticLikelihood(256), num_components=3),
        (1, 9, 6),
        4,
        ALL,
    ),
    "masked": (lambda: MaskedLikelihood(BernoulliLikelihood(), show_mask=True), (1, 9, 6), 4, ALL),
    "segmentation": (lambda: CategoricalLikelihood(3), (9, 6), 4, ALL),
    "ordered levels": (lambda: CategoricalLikelihood(16, ordered=True), (1, 9, 6), 4, ALL),
    "classes of images": (lambda: CategoricalLikelihood(3), (1, 9, 6), 4, ONLY_MLP),
    "vectors": (GaussianLikelihood, (5,), 2, ONLY_MLP),
    "a size": (lambda: StandardizedLikelihood(GaussianLikelihood()), 5, 2, ONLY_MLP),
    "optimal scale": (OptimalGaussianLikelihood, (5,), 2, ONLY_MLP),
    "one-hot rows": (OneHotLikelihood, (4, 5), 2, ONLY_MLP),
}


@for_each("name", FIRST_MODELS)
def test_from_shapes_equals_the_composition_written_out(name):
    make, data_shape, latent_dim, networks = FIRST_MODELS[name]
    shape = (data_shape,) if isinstance(data_shape, int) else data_shape
    for network in networks:
        torch.manual_seed(1)
        vae = VAE.from_shapes(data_shape, latent_dim=latent_dim, likelihood=make(), network=network)
        torch.manual_seed(1)
        likelihood, (encoder_network, decoder) = make(), WRITTEN_OUT[network]
        encoder = GaussianEncoder(encoder_network(likelihood.input_shape(shape)), latent_dim)
        expected = VAE(encoder, decoder(latent_dim, likelihood.param_shape(shape)), likelihood)
        assert same_model(vae, expected)
        assert vae.data_shape == shape
        data = torch.randint(2, (3, *shape)).float()
        if name == "one-hot rows":
            data = torch.eye(4)[:, torch.tensor([[0, 1, 2, 3, 0]] * 3)].movedim(0, 1)
        vae.check(data)
        assert vae(data, num_samples=2).log_weight().shape == (2, 3)
        assert summary(vae).startswith(f"VAE of data {shape}, latent {tuple(vae.latent_shape)}")


def test_from_shapes_trains_on_a_table():
    table = {"age": [41.0, None, 35.0, 62.0] * 8, "smokes": ["no", "yes", None, "no"] * 8}
    columns = MixedLikelihood.from_table(table)
    x = columns.to_tensor(table)
    vae = VAE.from_shapes(2, latent_dim=2, likelihood=MaskedLikelihood(columns))
    history = Trainer(vae, ELBO(), progress=False).fit(x, epochs=4, batch_size=8)
    assert history["train/loss"][-1] < history["train/loss"][0]
    assert not impute(vae, x, num_samples=5).isnan().any()


def test_from_shapes_takes_a_prior():
    prior = VampPrior(3, input_shape=(1, 5, 5), num_components=2)
    vae = VAE.from_shapes(
        (1, 5, 5), latent_dim=3, likelihood=BernoulliLikelihood(), network="conv", prior=prior
    )
    assert vae.prior is prior
    ELBO().check(vae, Batch(torch.zeros(2, 1, 5, 5)))


def test_from_shapes_returns_a_subclass():
    class OwnVAE(VAE):
        pass

    vae = OwnVAE.from_shapes(4, latent_dim=2, likelihood=BernoulliLikelihood())
    assert type(vae) is OwnVAE


def test_from_shapes_names_the_remedy():
    gray = CategoricalLikelihood(256)
    columns = MixedLikelihood([("a", "number"), ("b", "count")])
    cases = [
        ((4,), BernoulliLikelihood(), "transformer", r"network from .*'mlp', .* got 'transformer'"),
        ((4,), BernoulliLikelihood(), "conv", r"network='conv', got .* \(4,\): use network='mlp'"),
        ((1, 9, 9), gray, "resnet", r"network='resnet', got encoder inputs of shape \(256, 1, 9"),
        ((3,), columns, "mlp", "2 columns"),
        ((4, 0), BernoulliLikelihood(), "mlp", "sizes of at least 1"),
    ]
    for shape, likelihood, network, message in cases:
        with pytest.raises(ValueError, match=message):
            VAE.from_shapes(shape, latent_dim=2, likelihood=likelihood, network=network)
    with pytest.raises(TypeError, match="expects as likelihood a Likelihood, got the class"):
        VAE.from_shapes((4,), latent_dim=2, likelihood=BernoulliLikelihood)
    with pytest.raises(ValueError, match=r"over the encoder's latents \(2,\), got one over \(3,\)"):
        VAE.from_shapes(
            (4,),
            latent_dim=2,
            likelihood=BernoulliLikelihood(),
            prior=VampPrior(3, input_shape=4, num_components=2),
        )
