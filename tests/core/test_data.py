import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from helpers.cases import for_each
from torch.distributions import Normal
from torch.utils.data import DataLoader, TensorDataset

from tinyvae import (
    VAE,
    BernoulliLikelihood,
    GaussianLikelihood,
    evaluate,
    log_marginal,
)
from tinyvae.core.data import as_tensor, rounding_of, to_dtype, warn_about_rounding
from tinyvae.datasets import LabeledImages
from tinyvae.likelihoods import MaskedLikelihood, PoissonLikelihood

X = (torch.arange(24.0).reshape(6, 4) % 7) / 8  # exact in half precision
MASK = np.arange(24).reshape(6, 4) % 5 == 0
PACKED = np.zeros((6, 4), dtype=np.dtype([("flag", "u1"), ("x", "f4")]))
PACKED["x"] = X


class Tagged(torch.Tensor):
    """Subclass of a tensor."""


def masked_tensor():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces a prototype
        return torch.masked.masked_tensor(X, torch.from_numpy(~MASK))


# Kinds that become a tensor -----------------------------------------------------------------------


@for_each(
    "data",
    [
        X.numpy(),
        X.numpy().astype(">f8"),
        X.numpy().astype(np.longdouble),
        X.numpy()[::-1].copy()[::-1],
        np.broadcast_to(X.numpy(), (6, 4)),
        np.asfortranarray(X.numpy()),
        PACKED["x"],
        X.half(),
        X.bfloat16(),
        X.as_subclass(Tagged),
        torch.nn.Parameter(X),
        X.tolist(),
        pd.DataFrame(X.numpy()),
    ],
)
def test_as_tensor_keeps_the_numbers_of_every_kind(data):
    tensor = as_tensor(data, "fit")
    assert type(tensor) in (torch.Tensor, torch.nn.Parameter)
    assert torch.equal(tensor.float(), X)


@for_each("dtype", ["b1", "u1", "i1", "<i2", ">i4", "i8", "<u2", ">u4", "u8"])
def test_as_tensor_keeps_integers_exactly(dtype):
    largest = 1 if dtype == "b1" else np.iinfo(dtype).max
    array = np.array([[0, 1], [1, largest]], dtype=dtype)
    if dtype == "u8":
        with pytest.raises(ValueError, match=r"integers below 2\*\*63, got larger ones: subtract"):
            as_tensor(array, "fit")
        array = array // 2
    tensor = as_tensor(array, "fit")
    assert tensor.tolist() == array.tolist()
    assert torch.equal(tensor.index_select(0, torch.tensor([1])), tensor[1:])  # not of uint16
    if array.dtype.isnative and dtype != "b1":
        assert torch.equal(as_tensor(torch.from_numpy(array), "fit"), tensor)


@for_each(
    "dtype, result", [("f4", "float32"), ("f8", "float64"), ("u1", "float32"), ("i8", "float64")]
)
@for_each("mask", [MASK, False])
def test_as_tensor_makes_nan_of_masked_values(dtype, result, mask):
    values = (8 * X).numpy().astype(dtype)
    tensor = as_tensor(np.ma.masked_array(values, mask, fill_value=3), "fit")
    assert tensor.dtype == getattr(torch, result)
    assert np.array_equal(tensor, np.where(mask, np.nan, values), equal_nan=True)


def test_as_tensor_makes_nan_of_a_masked_tensor():
    tensor = as_tensor(masked_tensor(), "fit")
    assert np.array_equal(tensor.isnan().numpy(), MASK)


def test_as_tensor_shares_read_only_memory_without_a_warning():
    array = X.numpy().copy()
    array.flags.writeable = False
    assert as_tensor(array, "fit").data_ptr() == array.ctypes.data


# Kinds that are refused, with the remedy ----------------------------------------------------------


class Rows:
    """Data set of another library, with the methods of Hugging Face's."""

    __module__ = "datasets.arrow_dataset"

    def __init__(self, *rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]

    def with_format(self, name):
        raise NotImplementedError


LABELED = LabeledImages(
    torch.zeros(5, 1, 2, 2, dtype=torch.uint8), torch.zeros(5, dtype=torch.int64), 255, "black"
)
REFUSED = {
    "sparse": (X.to_sparse(), r"got a sparse tensor: pass x.to_dense\(\)"),
    "complex": (X.to(torch.complex64), r"got complex numbers: pass torch.view_as_real"),
    "complex array": (X.numpy() + 1j, "got dtype complex64: pass real and imaginary parts"),
    "text": (np.array([["a"]]), "got dtype <U1: encode it as numbers"),
    "objects": (np.array([[1.0, None]]), r"got dtype object: convert it by x.astype\(float\)"),
    "structured": (PACKED, r"got dtype \[.*: pick a field by its name"),
    "dates": (np.zeros((2, 2), "M8[D]"), "got dtype datetime64.*days since a date"),
    "scipy": (scipy.sparse.csr_array(X.numpy()), r"a scipy.csr_array: pass data.toarray\(\)"),
    "table": (pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}), r"MixedLikelihood.from_table\(data\)"),
    "text column": (pd.Series(["a", "b"]), r"a pandas.Series: pass data.to_numpy\(float"),
    "loader": (DataLoader(X), r"a torch.DataLoader: .*torch.cat\(\[x for x, label in loader\]\)"),
    "dataset": (TensorDataset(X), r"TensorDataset: .*torch.stack\(\[x for x, label in dataset\]\)"),
    "hugging face": (Rows(X), r"a datasets.Rows: use data.with_format\('torch'\)"),
    "list of tensors": (list(X), r"got a list: stack its tensors, such as torch.stack\(data\)"),
    "pair": ((X, X), r"got a tuple: pass x alone, data\[0\]\. A context .*context=data\[1\]"),
    "distribution": (Normal(X, 1.0), r"pass its mean or a draw, data\.sample\(\)"),
    "ragged": (
        [[1.0], [1.0, 2.0]],
        "a list: pass a tensor of all examples, with rows of one length",
    ),
    "dictionary": ({"image": X}, r"got a dict: pick x by its name, such as data\['image'\]"),
    "path": ("x.npy", r"got a str: load the file first"),
    "generator": (iter(X), "an iterator is used up after one epoch, so collect it"),
    "labeled": (LABELED, r"got a LabeledImages: pass its tensor, such as data\.images"),
    "number": (3, "got an int: pass a tensor"),
    "nothing": (None, "got None: pass a tensor"),
}


@for_each("data, message", REFUSED.values())
def test_as_tensor_refuses_other_kinds_with_the_remedy(data, message):
    with pytest.raises(TypeError, match=message) as caught:
        as_tensor(data, "evaluate")
    assert "evaluate expects" in str(caught.value)


# Conversions to the model's dtype -----------------------------------------------------------------


def test_to_dtype_refuses_numbers_that_become_infinite():
    assert (
        to_dtype(torch.tensor([1.0, torch.inf, torch.nan]).double(), torch.float32)[1] == torch.inf
    )
    for x, dtype in (
        (torch.tensor([1e300], dtype=torch.float64), torch.float32),
        (X + 7e4, torch.float16),
    ):
        with pytest.raises(ValueError, match=r"numbers up to .*: scale the data, or use"):
            to_dtype(x, dtype)


@for_each("offset, rounds", [(0.0, False), (1e3, False), (1.7e9, True)])
def test_rounding_of_finds_a_large_offset(offset, rounds):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 2, dtype=torch.float64, generator=generator)
    x[:, 1] += offset
    x[3] = torch.nan
    rows = x.numpy()
    expected = np.nanmax(np.abs(rows.astype("f4") - rows) / np.nanstd(rows, 0))
    assert rounding_of(x, torch.float32) == pytest.approx(expected)
    assert (expected > 1e-3) == rounds
    assert rounding_of(x.float(), torch.float32) == 0.0


def test_warn_about_rounding_accepts_the_rounding_of_half_precision():
    x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float16, torch.bfloat16):
        assert rounding_of(x, dtype) > 5e-4
        warn_about_rounding(x, dtype)
        with pytest.warns(UserWarning, match="rounds a dimension"):
            warn_about_rounding(x + 100, dtype)


def test_rounding_of_ignores_constant_dimensions():
    x = torch.full((9, 1), 0.1, dtype=torch.float64)
    x[0] += 2e-17
    assert rounding_of(x, torch.float32) == 0.0


# The same rule in evaluation and in models --------------------------------------------------------


def make_vae(likelihood):
    torch.manual_seed(0)
    return VAE.from_shapes(4, latent_dim=2, likelihood=likelihood)


@for_each("data", [X.numpy(), X.double(), X.tolist(), pd.DataFrame(X.numpy())])
def test_evaluate_gives_the_same_report_for_every_kind_of_data(data):
    vae = make_vae(GaussianLikelihood())
    options = {"elbo_samples": 2, "importance_samples": 3}
    assert evaluate(vae, data, **options) == evaluate(vae, X, **options)


def test_evaluate_takes_masked_values_as_missing():
    data = np.ma.masked_array(X.numpy(), MASK)
    x = X.masked_fill(torch.from_numpy(MASK), torch.nan)
    masked = make_vae(MaskedLikelihood(GaussianLikelihood()))
    assert torch.equal(
        log_marginal(masked, data, num_samples=3), log_marginal(masked, x, num_samples=3)
    )
    with pytest.raises(ValueError, match=r"got NaN in 5 of 6 .*MaskedLikelihood\(likelihood\)"):
        evaluate(make_vae(GaussianLikelihood()), data)


def test_evaluate_warns_about_rounded_data():
    x = 1.7e9 + 100 * torch.arange(40, dtype=torch.float64).reshape(10, 4)
    with pytest.warns(UserWarning, match=r"float32 rounds a dimension .* Subtract an origin"):
        log_marginal(make_vae(GaussianLikelihood()), x, num_samples=1)


def test_check_refuses_integers_that_the_model_would_round():
    x = torch.tensor([[2**24 + 1, 0, 1, 2]])
    vae = make_vae(PoissonLikelihood())
    with pytest.raises(ValueError, match=r"integers that torch.float32 can hold, got 16777217"):
        vae.check(x)
    vae.check(x.clamp(max=2**24))
    vae.double().check(x)
    with pytest.raises(ValueError, match=r"expects values in \[0, 1\]"):
        make_vae(BernoulliLikelihood()).check(x)
