import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tinyvae import (
    ELBO,
    MLP,
    VAE,
    BernoulliLikelihood,
    BottomUpVAE,
    GaussianEncoder,
    GaussianLikelihood,
    LadderVAE,
    Trainer,
    TwoLevelVAE,
)
from tinyvae.compression import compress, decompress, read_header
from tinyvae.compression.coding import batches
from tinyvae.datasets import digits
from tinyvae.encoders import (
    CategoricalEncoder,
    FlowEncoder,
    FullGaussianEncoder,
    JointEncoder,
    VectorQuantizedEncoder,
)
from tinyvae.errors import CompressionError
from tinyvae.flows import PlanarFlow
from tinyvae.likelihoods import (
    BetaBinomialLikelihood,
    CategoricalLikelihood,
    Column,
    DiscretizedLogisticLikelihood,
    MaskedLikelihood,
    MixedLikelihood,
    MixtureLikelihood,
    NegativeBinomialLikelihood,
    OneHotLikelihood,
    OrdinalLikelihood,
    PoissonLikelihood,
    ZeroInflatedLikelihood,
)
from tinyvae.networks import ConcatContext
from tinyvae.priors import (
    CategoricalPrior,
    CodePrior,
    GaussianPrior,
    JointPrior,
    MixturePrior,
    StandardNormal,
)

ROWS = 40


def bits(*shape):
    return torch.bernoulli(torch.full(shape, 0.3))


def levels(size, *shape):
    return torch.randint(size, shape)


def vae_of(likelihood, data_shape=5):
    return VAE.from_shapes(data_shape, latent_dim=2, likelihood=likelihood)


def one_hot(size, *shape):
    return torch.nn.functional.one_hot(levels(size, *shape), size).movedim(-1, 1).float()


def missing(x):
    return torch.where(torch.rand(x.shape) < 0.3, torch.nan, x.float())


MASSES = {
    "bernoulli": (BernoulliLikelihood, lambda: bits(ROWS, 5)),
    "categorical": (lambda: CategoricalLikelihood(4), lambda: levels(4, ROWS, 5)),
    "levels": (lambda: DiscretizedLogisticLikelihood(17), lambda: levels(17, ROWS, 5)),
    "mixture of levels": (
        lambda: MixtureLikelihood(DiscretizedLogisticLikelihood(17), num_components=3),
        lambda: levels(17, ROWS, 5),
    ),
    "ordinal": (lambda: OrdinalLikelihood(4), lambda: levels(4, ROWS, 5)),
    "poisson": (PoissonLikelihood, lambda: levels(30, ROWS, 5)),
    "large counts": (PoissonLikelihood, lambda: levels(10**6, ROWS, 5)),
    "negative binomial": (NegativeBinomialLikelihood, lambda: levels(30, ROWS, 5)),
    "zero-inflated": (
        lambda: ZeroInflatedLikelihood(PoissonLikelihood()),
        lambda: levels(30, ROWS, 5),
    ),
    "trials": (lambda: BetaBinomialLikelihood(9), lambda: levels(10, ROWS, 5)),
    "masked": (lambda: MaskedLikelihood(BernoulliLikelihood()), lambda: missing(bits(ROWS, 5))),
    "zeros": (PoissonLikelihood, lambda: torch.zeros(ROWS, 5)),
}


def latents():
    """Return models of bits by their kind of latents."""

    def vae(encoder, prior=None):
        return VAE(encoder, MLP(encoder.latent_shape, (8,)), BernoulliLikelihood(), prior)

    codes = {"num_codes": 6, "latent_dim": (2, 3), "num_quantizers": 2}
    joint = {
        "style": GaussianEncoder(MLP(5, (8,)), 2),
        "kind": CategoricalEncoder(MLP(5, (8,)), 3, num_variables=2),
    }
    layers = {
        "encoders": [GaussianEncoder(MLP(5, (8,)), 3), GaussianEncoder(MLP(3, (8,)), 2)],
        "generators": [GaussianEncoder(MLP(2, (8,)), 3)],
    }
    ladder = layers | {
        "encoders": [GaussianEncoder(MLP(5, (8,)), 3), GaussianEncoder(MLP(8, (8,)), 2)]
    }
    rest = {"decoder": MLP(3, (8,), out_shape=5), "likelihood": BernoulliLikelihood()}
    return {
        "learned prior": vae(GaussianEncoder(MLP(5, (8,)), 2), GaussianPrior(2)),
        "classes": vae(CategoricalEncoder(MLP(5, (8,)), 3, num_variables=2),
                       CategoricalPrior(3, num_variables=2)),
        "codes": vae(VectorQuantizedEncoder(MLP(5, (8,)), **codes), CodePrior(6, latent_dim=(2, 3),
                     num_quantizers=2)),
        "joint": vae(JointEncoder(joint), JointPrior({
            "style": StandardNormal(2), "kind": CategoricalPrior(3, num_variables=2)})),
        "bottom-up": BottomUpVAE(**layers, **rest),
        "ladder": LadderVAE(**ladder, **rest),
        "two-level": TwoLevelVAE(
            top=GaussianEncoder(MLP(5, (8,)), 2),
            bottom=GaussianEncoder(ConcatContext(MLP(5 + 2, (8,)), context_dim=2), 3),
            generator=GaussianEncoder(MLP(2, (8,)), 3),
            decoder=MLP(3 + 2, (8,), out_shape=5),
            likelihood=BernoulliLikelihood(),
        ),
    }  # fmt: skip


KINDS = list(latents())


def assert_lossless(model, x, context=None):
    file = compress(model, x, context)
    restored = decompress(model, file, context)
    assert restored.dtype == x.dtype
    assert torch.equal(restored.nan_to_num(-1), x.nan_to_num(-1))
    return file


@pytest.mark.parametrize("name", MASSES)
def test_compress_is_lossless_for_every_mass(name):
    likelihood, data = MASSES[name]
    assert_lossless(vae_of(likelihood()), data())


@pytest.mark.parametrize("name", KINDS)
def test_compress_is_lossless_for_every_latent(name):
    assert_lossless(latents()[name], bits(ROWS, 5))


def test_compress_is_lossless_for_one_hot_data():
    assert_lossless(vae_of(OneHotLikelihood(), (4, 2, 2)), one_hot(4, ROWS, 2, 2))


def test_compress_is_lossless_with_a_context():
    encoder = GaussianEncoder(ConcatContext(MLP(5 + 3, (8,)), context_dim=3), 2)
    decoder = ConcatContext(MLP(2 + 3, (8,), out_shape=5), context_dim=3)
    vae, context = (
        VAE(encoder, decoder, BernoulliLikelihood(), data_shape=(5,)),
        torch.rand(ROWS, 3),
    )
    x = bits(ROWS, 5)
    file = assert_lossless(vae, x, context)
    with pytest.raises(CompressionError, match="expects the context of the file"):
        decompress(vae, file, 1 - context)
    with pytest.raises(CompressionError, match="expects the context of the file"):
        decompress(vae, file)


@pytest.mark.parametrize("has_missing", [False, True])
def test_compress_is_lossless_for_a_table(has_missing):
    likelihood = MixedLikelihood(
        [
            Column("kind", "category", levels=("a", "b", "c")),
            Column("visits", "count"),
            Column("grade", "ordinal", levels=("low", "fair", "good", "best")),
            Column("member", "binary", levels=("no", "yes")),
        ]
    )
    columns = levels(3, ROWS), levels(20, ROWS), levels(4, ROWS), levels(2, ROWS)
    x = torch.stack(columns, 1).double()
    if has_missing:
        likelihood, x = MaskedLikelihood(likelihood), missing(x)
    assert_lossless(vae_of(likelihood, 4), x)


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int64, torch.bfloat16, torch.float64]
)
def test_decompress_returns_the_dtype(dtype):
    assert_lossless(vae_of(BernoulliLikelihood()), bits(ROWS, 5).to(dtype))


def test_compress_takes_arrays_and_changes_nothing():
    vae, x = vae_of(BernoulliLikelihood()).train(), bits(ROWS, 5)
    weights = {name: w.clone() for name, w in vae.state_dict().items()}
    generator, threads = torch.get_rng_state(), torch.get_num_threads()
    file = compress(vae, x.numpy().astype(bool))
    assert torch.equal(decompress(vae, file), x.bool())
    assert vae.training
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(w, weights[name]) for name, w in vae.state_dict().items())


def test_decompress_takes_the_model_in_any_dtype():
    vae, x = vae_of(BernoulliLikelihood()), bits(ROWS, 5)
    file = compress(vae, x)
    assert torch.equal(decompress(vae.double(), file), x)


def test_impossible_data_are_lossless():
    vae, x = vae_of(BernoulliLikelihood()), bits(ROWS, 5)
    with torch.no_grad():
        vae.decoder.layers[-1].bias.fill_(1000.0)
    assert_lossless(vae, x)


# Size ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gaussian", *KINDS])
def test_size_is_minus_the_elbo(kind):
    x = bits(8000, 5)
    x[:, 1] = x[:, 0]
    model = vae_of(BernoulliLikelihood()) if kind == "gaussian" else latents()[kind]
    Trainer(model, ELBO(), seed=0).fit(x, epochs=1)
    header = read_header(compress(model, x))
    torch.manual_seed(1)
    with torch.no_grad():
        log_weight = model(x).log_weight()[0].double()
    if kind == "codes":  # the model maximizes a distance to codes, whose mass is one
        log_weight = log_weight.masked_fill(log_weight.isnan(), 0)
    error = float(log_weight.std()) / len(x) ** 0.5
    overhead = (8 * 700 + header.initial_bits) / len(x) * np.log(2)
    bound = -float(log_weight.mean())
    assert bound - 6 * error - 0.01 * bound < header.nats_per_datum
    assert header.nats_per_datum < bound + 6 * error + 0.01 * bound + overhead


def test_initial_bits_are_those_of_the_first_examples():
    vae = vae_of(BernoulliLikelihood())
    few, many = (read_header(compress(vae, bits(n, 5))).initial_bits for n in (1, 2000))
    assert few <= many <= few + 2000


def test_batches_partition_the_examples():
    for count, size in ((1, 1), (7, 3), (1000, 64)):
        parts = list(batches(count, size))
        covered = [index for part in parts for index in range(part.start, part.stop)]
        assert covered == list(range(count))
        assert max(part.stop - part.start for part in parts) <= size


# The same file in every process -------------------------------------------------------------------

CHILD = """
import sys, json, torch
from pathlib import Path
from tinyvae import VAE
from tinyvae.compression import compress, decompress
threads, batch_size, model, data, file, result = json.loads(sys.argv[1])
torch.set_num_threads(threads)
torch.manual_seed(threads)
torch.set_default_dtype(torch.float64 if threads == 3 else torch.float32)
vae = VAE.load(model)
x = torch.frombuffer(bytearray(Path(data).read_bytes()), dtype=torch.uint8).reshape(-1, 1, 8, 8)
assert torch.equal(decompress(vae, Path(file).read_bytes()), x)
Path(result).write_bytes(compress(vae, x, batch_size=batch_size))
assert torch.get_num_threads() == threads
"""


@pytest.mark.slow
def test_files_do_not_depend_on_processes_threads_and_batch_sizes(tmp_path):
    x = digits().images
    vae = VAE.from_shapes(
        (1, 8, 8), latent_dim=8, likelihood=DiscretizedLogisticLikelihood(17), network="conv"
    )
    Trainer(vae, ELBO(), seed=0).fit(x, epochs=2)
    paths = {name: tmp_path / name for name in ("model", "data", "file")}
    vae.save(paths["model"])
    paths["data"].write_bytes(x.numpy().tobytes())
    for batch_size in (64, 17):
        file = compress(vae, x, batch_size=batch_size)
        paths["file"].write_bytes(file)
        for threads in (1, 2, 3):
            result = tmp_path / "result"
            arguments = [threads, batch_size, *map(str, paths.values()), str(result)]
            subprocess.run(
                [sys.executable, "-c", CHILD, json.dumps(arguments)],
                env=os.environ | {"OMP_NUM_THREADS": str(threads)},
                check=True,
            )
            assert Path(result).read_bytes() == file


def test_rounding_of_weights_in_another_order_is_noticed(monkeypatch):
    vae, x = vae_of(BernoulliLikelihood()), bits(ROWS, 5)
    file = compress(vae, x)
    forward = MLP.forward
    monkeypatch.setattr(MLP, "forward", lambda self, x, *rest: forward(self, x * 1.01, *rest))
    with pytest.raises(CompressionError, match=r"other numbers here|damaged"):
        decompress(vae, file)


# What is refused ----------------------------------------------------------------------------------


def test_compress_refuses_densities():
    with pytest.raises(TypeError, match=r"product of masses.*DiscretizedLogisticLikelihood"):
        compress(vae_of(GaussianLikelihood()), torch.randn(ROWS, 5))


@pytest.mark.parametrize(
    ("encoder", "prior", "match"),
    [
        (FullGaussianEncoder(MLP(5, (8,)), 2), None, "posteriors with independent Gaussian"),
        (FlowEncoder(GaussianEncoder(MLP(5, (8,)), 2), PlanarFlow(2)), None, "posteriors with"),
        (
            GaussianEncoder(MLP(5, (8,)), 2),
            MixturePrior(2, num_components=3),
            "a prior with independent Gaussian",
        ),
    ],
    ids=["full", "flow", "mixture"],
)
def test_compress_refuses_other_latents(encoder, prior, match):
    vae = VAE(encoder, MLP(2, (8,), out_shape=5), BernoulliLikelihood(), prior)
    with pytest.raises(TypeError, match=match):
        compress(vae, bits(ROWS, 5))


def test_compress_refuses_data_without_mass():
    gray = pytest.raises(ValueError, match=r"expects integers .* binarize")
    with gray, pytest.warns(UserWarning, match="between 0 and 1"):
        compress(vae_of(BernoulliLikelihood()), torch.rand(ROWS, 5))
    with pytest.raises(ValueError, match="one-hot rows"):
        compress(vae_of(OneHotLikelihood(), (3, 2)), torch.full((ROWS, 3, 2), 1 / 3))


def test_decompress_refuses_another_model():
    vae, x = vae_of(BernoulliLikelihood()), bits(ROWS, 5)
    file = compress(vae, x)
    with torch.no_grad():
        next(vae.parameters()).view(-1)[0] += 1e-6
    with pytest.raises(CompressionError, match="expects the model of the file"):
        decompress(vae, file)
