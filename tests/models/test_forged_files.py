"""Forged model files: each is refused with a CheckpointError, or gives a model that works.

A forged file has a correct digest. Its description, tensors and header hold anything.
"""

import os
import random

import pytest
from helpers.forgeries import assert_clean, bounded, forge
from helpers.models import DIVERSE, combined, conv_vae, mlp_vae, same_bits

from tinyvae import MLP, VAE, GaussianEncoder, GaussianLikelihood
from tinyvae.errors import CheckpointError
from tinyvae.io import load_tensors
from tinyvae.likelihoods import (
    BetaLikelihood,
    Column,
    DiscretizedLogisticLikelihood,
    Learned,
    MaskedLikelihood,
    MixedLikelihood,
    MixtureLikelihood,
    NegativeBinomialLikelihood,
    OptimalGaussianLikelihood,
    StandardizedLikelihood,
    StudentTLikelihood,
)
from tinyvae.models import BottomUpVAE, LadderVAE

IS_SOAK = os.environ.get("HYPOTHESIS_PROFILE") == "soak"
FORGERIES = 2_500 if IS_SOAK else 150


def hierarchical(cls):
    return cls(
        [GaussianEncoder(MLP(4, (8,)), 3), GaussianEncoder(MLP(3, (8,)), 2)],
        [GaussianEncoder(MLP(2, (8,)), 3)],
        MLP(3, (8,), out_shape=4),
        StandardizedLikelihood(GaussianLikelihood(), mean=[1.0, 2.0, 0.0, 1.0], std=3.0),
    )


def mixed():
    columns = [("a", "number"), ("b", "count"), ("c", "category", ("x", "y"))]
    encoder = GaussianEncoder(MLP(4, (6,)), latent_dim=3)
    return VAE(encoder, MLP(3, (6,), out_shape=4), MixedLikelihood([Column(*c) for c in columns]))


LIKELIHOODS = {
    "beta": lambda: BetaLikelihood(3.0),
    "logistic": lambda: DiscretizedLogisticLikelihood(16, scale="learned"),
    "gaussian": lambda: GaussianLikelihood(Learned((4,), minimum=0.1)),
    "mixture": lambda: MixtureLikelihood(GaussianLikelihood("predicted"), num_components=2),
    "masked": lambda: MaskedLikelihood(GaussianLikelihood(0.3), show_mask=False),
    "counts": lambda: NegativeBinomialLikelihood("predicted", baseline=[2.0, 3.0, 1.0, 1.0]),
    "optimal": lambda: OptimalGaussianLikelihood((4,), minimum=0.01),
    "student": lambda: StudentTLikelihood("predicted", df=7.0),
}
MODELS = {
    **{name: lambda name=name: combined(name) for name in DIVERSE},
    **{f"with {n}": lambda make=make: mlp_vae(make(), (4,)) for n, make in LIKELIHOODS.items()},
    "mixed": mixed,
    "conv": conv_vae,
    "bottom up": lambda: hierarchical(BottomUpVAE),
    "ladder": lambda: hierarchical(LadderVAE),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A file of each model, and the model's class."""
    folder = tmp_path_factory.mktemp("files")
    saved = []
    for index, make in enumerate(MODELS.values()):
        model = make()
        model.save(folder / f"{index}.safetensors")
        saved.append((folder / f"{index}.safetensors", type(model)))
    return saved


def test_load_refuses_a_forged_file_or_returns_its_tensors(files, tmp_path):
    source, count, path = random.Random(None if IS_SOAK else 0), 0, tmp_path / "forged"
    for _ in range(FORGERIES):
        file, cls = source.choice(files)
        path.unlink(missing_ok=True)
        path.write_bytes(forge(file, source))
        with bounded(megabytes=1000, cpu_seconds=20):
            try:
                model = cls.load(path)
            except CheckpointError as error:
                assert_clean(str(error), path)
                continue
            count += 1
            tensors, _ = load_tensors(path)
            state = model.state_dict()
            assert state.keys() == tensors.keys()
            assert all(same_bits(state[name], tensor) for name, tensor in tensors.items())
            repr(model)
            model.save(tmp_path / "again")  # the file describes the model that it gives
            again = cls.load(tmp_path / "again").state_dict()
            assert all(same_bits(again[name], tensor) for name, tensor in tensors.items())
    assert count > FORGERIES / 100
