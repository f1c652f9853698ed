"""Exported files compute what the model computes, without tinyvae and torch."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from tinyvae import (
    MLP,
    VAE,
    BernoulliLikelihood,
    BottomUpVAE,
    CategoricalLikelihood,
    ConvNet,
    GaussianEncoder,
    GaussianLikelihood,
    LadderVAE,
    TransposedConvNet,
)
from tinyvae.encoders import (
    CategoricalEncoder,
    FlowEncoder,
    GumbelSoftmaxEncoder,
    LaplaceEncoder,
    PowerSphericalEncoder,
)
from tinyvae.export import export
from tinyvae.export.noise import ExplicitNoise, RandomDraw, find_draws
from tinyvae.flows import Flow
from tinyvae.likelihoods import MaskedLikelihood
from tinyvae.networks import ConcatContext
from tinyvae.priors import (
    CategoricalPrior,
    ConditionalPrior,
    FlowPrior,
    GumbelSoftmaxPrior,
    MixturePrior,
    SphereUniformPrior,
    StandardLaplace,
)


def gaussian(size, latent_dim):
    return GaussianEncoder(MLP(size, hidden=(8,)), latent_dim)


def compose(encoder, latent, prior=None):
    return VAE(encoder, MLP(latent, hidden=(8,)), BernoulliLikelihood(), prior, data_shape=(6,))


def layers(cls, second):
    return cls(
        encoders=[gaussian(6, 3), gaussian(second, 2)],
        generators=[gaussian(2, 3)],
        decoder=MLP(3, (8,)),
        likelihood=BernoulliLikelihood(),
    )


NETWORK = {"hidden": (8,)}
MODELS = {
    "mlp": lambda: VAE.from_shapes(6, latent_dim=2, likelihood=GaussianLikelihood()),
    "conv": lambda: VAE(
        GaussianEncoder(ConvNet((1, 8, 8), channels=(4, 8)), 2),
        TransposedConvNet(2, channels=(8, 4)),
        BernoulliLikelihood(),
    ),
    "bottom_up": lambda: layers(BottomUpVAE, 3),
    "ladder": lambda: layers(LadderVAE, 8),
    "classes": lambda: compose(
        CategoricalEncoder(MLP(6, **NETWORK), num_classes=4, num_variables=3),
        (4, 3),
        CategoricalPrior(4, num_variables=3),
    ),
    "gumbel": lambda: compose(
        GumbelSoftmaxEncoder(MLP(6, **NETWORK), num_classes=4, num_variables=3),
        (4, 3),
        GumbelSoftmaxPrior(4, num_variables=3),
    ),
    "flow": lambda: compose(
        FlowEncoder(gaussian(6, 2), Flow(2, context_dim=8)), 2, FlowPrior(Flow(2))
    ),
    "laplace": lambda: compose(LaplaceEncoder(MLP(6, **NETWORK), 2), 2, StandardLaplace(2)),
    "mixture": lambda: compose(gaussian(6, 2), 2, MixturePrior(2, num_components=5)),
    "masked": lambda: VAE.from_shapes(
        6, latent_dim=2, likelihood=MaskedLikelihood(GaussianLikelihood())
    ),
    "categorical_data": lambda: VAE.from_shapes(
        6, latent_dim=2, likelihood=CategoricalLikelihood(5)
    ),
}
PARAMS = [
    pytest.param(
        *(name, part, suffix),
        marks=() if name == "mlp" and suffix == ".pt2" else pytest.mark.slow,
    )
    for name in MODELS
    for part in ("encoder", "decoder", "sampler")
    for suffix in (".pt2", ".onnx")
]


def data_of(model, size):
    # Not drawn by torch, because draws are counted.
    x = torch.as_tensor(np.random.default_rng(size).integers(2, size=(size, *model.data_shape)))
    x = x.float()
    if isinstance(model.likelihood, MaskedLikelihood):
        x[0, 0] = torch.nan
    return x


def run_file(path, inputs):
    if path.suffix == ".pt2":
        return torch.export.load(path).module()(*inputs.values())
    session = pytest.importorskip("onnxruntime").InferenceSession(path)
    outputs = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    return [torch.as_tensor(output) for output in outputs]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("name", "part", "suffix"), PARAMS)
def test_file_computes_what_the_model_computes(name, part, suffix, tmp_path):
    if suffix == ".onnx":
        pytest.importorskip("onnxscript")
    model = MODELS[name]()
    for parameter in model.parameters():  # far from the values of a new model
        nn.init.normal_(parameter, std=0.5)
    path = tmp_path / f"part{suffix}"
    shapes = export(model, part, path)
    for size in (1, 7):
        inputs = {key: torch.randn(size, *shape) for key, shape in shapes.items()}
        if part == "encoder":
            x = inputs["x"] = data_of(model, size)
            draws = find_draws(lambda n: model.eval()(data_of(model, n)))
            with ExplicitNoise(inputs["noise"], draws):
                expected = {"z": model(x).z[0]}
        elif part == "decoder":
            p = model.decode(inputs["z"])
            expected = {"center": model.likelihood.values_of(p, center=True)}
        else:
            draws = find_draws(lambda n: model.sample(n, mean=True))
            with ExplicitNoise(inputs["noise"], draws):
                expected = {"center": model.sample(size, mean=True)}
        names = {"encoder": ["center", "z"], "decoder": ["center", "parameters"]}
        got = dict(zip(names.get(part, ["center"]), run_file(path, inputs), strict=True))
        for output, value in expected.items():
            assert got[output].shape == value.shape
            torch.testing.assert_close(got[output], value, rtol=1e-5, atol=1e-5)
        if part == "encoder" and isinstance(model, VAE) and name != "gumbel":
            center = model.encode(x).point_estimate()
            torch.testing.assert_close(got["center"], center, rtol=1e-5, atol=1e-5)
        if part == "decoder":
            parameters = model.decoder(inputs["z"])
            torch.testing.assert_close(got["parameters"], parameters, rtol=1e-5, atol=1e-5)


def test_exported_draws_follow_the_distribution(tmp_path):
    """Bernoulli, uniform and exponential draws from normal numbers have the right moments."""
    noise = torch.randn(40_000, 3)
    draws = [RandomDraw((1,), 0)] * 3
    with ExplicitNoise(noise, draws):
        uniform = torch.rand(40_000, 1)
        exponential = torch.empty(40_000, 1).exponential_()
        bits = torch.bernoulli(torch.full((40_000, 1), 0.3))
    error = 4 / 200  # standard errors of 40,000 draws
    assert abs(uniform.mean() - 1 / 2) < error * 12**-0.5
    assert abs(uniform.var() - 1 / 12) < error / 12
    assert abs(exponential.mean() - 1) < error
    assert abs(bits.mean() - 0.3) < error * 0.46
    assert set(bits.unique().tolist()) == {0.0, 1.0}


def test_conditional_model_reads_its_context(tmp_path):
    context = torch.randn(2, 3)
    vae = VAE(
        GaussianEncoder(ConcatContext(MLP(9, **NETWORK), context_dim=3), latent_dim=2),
        ConcatContext(MLP(5, hidden=(8,), out_shape=6), context_dim=3),
        BernoulliLikelihood(),
        ConditionalPrior(GaussianEncoder(MLP(3, hidden=(4,)), latent_dim=2)),
    )
    shapes = export(vae, "sampler", tmp_path / "sampler.pt2", context=context)
    assert shapes == {"context": (3,), "noise": (2,)}
    c, noise = torch.randn(5, 3), torch.randn(5, 2)
    (center,) = torch.export.load(tmp_path / "sampler.pt2").module()(c, noise)
    with ExplicitNoise(noise, [RandomDraw((1, 2), 1)]):
        expected = vae.sample(1, c, mean=True)[0]
    torch.testing.assert_close(center, expected)


def test_model_does_not_change(tmp_path):
    vae = MODELS["mlp"]().train()
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    state = torch.get_rng_state()
    export(vae, "decoder", tmp_path / "decoder.pt2")
    assert vae.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.requires_grad for p in vae.parameters())
    assert all(torch.equal(before[name], value) for name, value in vae.state_dict().items())


def test_float64_model_keeps_its_dtype(tmp_path):
    vae = MODELS["mlp"]().double()
    export(vae, "sampler", tmp_path / "sampler.pt2")
    program = torch.export.load(tmp_path / "sampler.pt2").module()
    assert program(torch.randn(3, 2).double())[0].dtype == torch.float64


@pytest.mark.parametrize("part", ["encoder", "sampler"])
def test_draws_that_need_other_noise_are_refused(part, tmp_path):
    encoder = PowerSphericalEncoder(MLP(6, **NETWORK), 3)
    model = compose(encoder, 3, SphereUniformPrior(3))
    if part == "sampler":  # a prior of normal draws, normalized, can be exported
        assert export(model, part, tmp_path / "part.pt2") == {"noise": (3,)}
        return
    with pytest.raises(NotImplementedError, match=r"encoder of this VAE: .*_standard_gamma"):
        export(model, part, tmp_path / "part.pt2")
    assert not (tmp_path / "part.pt2").exists()


def test_branches_on_values_are_refused(tmp_path):
    class Branch(nn.Module):
        def forward(self, z):
            return z.repeat(1, 3) if z.sum() > 0 else -z.repeat(1, 3)

    vae = VAE(gaussian(6, 2), Branch(), BernoulliLikelihood())
    with pytest.raises(NotImplementedError, match="cannot write the decoder of this VAE"):
        export(vae, "decoder", tmp_path / "decoder.pt2")


def test_wrong_arguments_are_refused(tmp_path):
    vae = MODELS["mlp"]()
    with pytest.raises(ValueError, match=r"ends in \.onnx or \.pt2"):
        export(vae, "decoder", tmp_path / "decoder.pt")
    with pytest.raises(ValueError, match=r"part from \['decoder', 'encoder', 'sampler'\]"):
        export(vae, "prior", tmp_path / "prior.pt2")
    network = nn.Sequential(nn.Linear(6, 4))
    vae = VAE(GaussianEncoder(network, 2, features=4), MLP(2, out_shape=6), BernoulliLikelihood())
    with pytest.raises(ValueError, match="give examples, x="):
        export(vae, "encoder", tmp_path / "encoder.pt2")
    assert export(vae, "encoder", tmp_path / "encoder.pt2", x=torch.zeros(1, 6))["x"] == (6,)


def test_onnx_names_the_extra_if_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"tinyvae\[export\].*\.pt2"):
        export(MODELS["mlp"](), "decoder", tmp_path / "decoder.onnx")


SCRIPT = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "tinyvae"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Block())
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(sys.argv[1])
noise = np.load(sys.argv[2])
(images,) = session.run(None, {"noise": noise})
np.save(sys.argv[3], images)
assert not {"torch", "tinyvae"} & set(sys.modules)
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_onnxruntime_alone_runs_a_file(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    vae = MODELS["conv"]()
    export(vae, "sampler", tmp_path / "sampler.onnx")
    noise = np.random.default_rng(0).standard_normal((5, 2), dtype=np.float32)
    np.save(tmp_path / "noise.npy", noise)
    files = [str(tmp_path / name) for name in ("sampler.onnx", "noise.npy", "images.npy")]
    subprocess.run([sys.executable, "-c", SCRIPT, *files], check=True)
    expected = vae.decode(torch.as_tensor(noise)).mean
    np.testing.assert_allclose(np.load(files[2]), expected.detach(), rtol=1e-5, atol=1e-5)
