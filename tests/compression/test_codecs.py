import numpy as np
import pytest
import torch

from tinyvae.compression.codecs import (
    MISSING,
    Columns,
    GaussianPosterior,
    GaussianPrior,
    Grid,
    Masked,
    Table,
)
from tinyvae.compression.stack import Stack, initial_words
from tinyvae.errors import CompressionError

GRID = Grid(exponent=5, highest=200)
rng = np.random.default_rng(0)


def table(*shape):
    return Table(torch.from_numpy(np.log(rng.dirichlet(np.ones(shape[-1]), shape[:-1]))))


def normal_params(*shape):
    mean, log_std = rng.standard_normal((2, *shape))
    return torch.from_numpy(mean), torch.from_numpy(np.exp(log_std))


def prior(*shape):
    return GaussianPrior(*(part.numpy() for part in normal_params(*shape)), GRID)


def restored(codec, symbols):
    stack = Stack(initial_words(1000))
    codec.push(stack, symbols)
    popped = codec.pop(stack)
    assert np.array_equal(stack.words(), initial_words(1000))
    return popped


@pytest.mark.parametrize(
    ("codec", "symbols"),
    [
        (table(5, 3, 2), rng.integers(0, 2, (5, 3))),
        (table(5, 3, 7), rng.integers(0, 7, (5, 3))),
        (table(5, 3, 1), np.zeros((5, 3), int)),
        (Table(torch.full((4, 3), -np.inf)), np.array([0, 1, 2, 2])),  # impossible symbols
        (Columns([(np.array([2, 0]), table(5, 2, 4)), (np.array([1]), table(5, 1, 2))]),
         rng.integers(0, 2, (5, 3))),
        (prior(5, 3), rng.integers(-200, 201, (5, 3))),
        (Masked(table(5, 3, 4), table(5, 3, 2)), rng.integers(MISSING, 4, (5, 3))),
    ],
    ids=["bits", "classes", "one class", "impossible", "columns", "prior", "masked"],
)  # fmt: skip
def test_codec_pops_what_it_pushed(codec, symbols):
    assert np.array_equal(restored(codec, symbols), symbols)


def test_table_escapes_numbers_of_any_size():
    sizes = np.array([0, 2, 3, 4, 5, 2**16, 2**16 + 5, 2**31, 2**52 - 1, 2**52, 2**60, 2**61 - 1])
    codec = Table(torch.zeros(len(sizes), 4), has_escape=True)
    assert np.array_equal(restored(codec, sizes), sizes)


def test_table_refuses_symbols_beyond_the_alphabet():
    with pytest.raises(CompressionError, match="values from 0 to 3, got 0 to 4"):
        table(2, 4).push(Stack(initial_words(9)), np.array([0, 4]))


@pytest.mark.parametrize("num_classes", [2, 10])
def test_table_takes_minus_log_mass(num_classes):
    log_masses = torch.from_numpy(np.log(rng.dirichlet(np.ones(num_classes), 20_000)))
    symbols = torch.distributions.Categorical(logits=log_masses).sample()
    stack = Stack(initial_words(100))
    Table(log_masses).push(stack, symbols.numpy())
    bits = 32 * (len(stack.words()) - 100)
    expected = -log_masses.gather(1, symbols[:, None]).sum() / np.log(2)
    assert bits == pytest.approx(float(expected), rel=2e-3)


def test_posterior_returns_the_bits_of_a_draw():
    codec = GaussianPosterior(*normal_params(40, 30), GRID)
    words = initial_words(3000)
    stack = Stack(words)
    drawn = codec.pop(stack)
    assert len(stack.words()) < 2900
    codec.push(stack, drawn)
    assert np.array_equal(stack.words(), words)


def test_posterior_draws_have_its_moments():
    shape = (20_000, 1)
    mean, std = torch.full(shape, 0.7).double(), torch.full(shape, 0.3).double()
    drawn = GRID.step * GaussianPosterior(mean, std, GRID).pop(Stack(initial_words(20_000)))
    assert abs(drawn.mean() - 0.7) < 4 * 0.3 / 20_000**0.5
    variance = 0.3**2 + GRID.step**2 / 12  # rounding adds that of a bin (Sheppard)
    assert abs(drawn.var() - variance) < 4 * variance * (2 / 20_000) ** 0.5


def test_posterior_draws_at_the_ends_of_the_grid():
    mean = torch.tensor([[-50.0, 50.0, 0.0]]).double()
    codec = GaussianPosterior(mean, torch.full_like(mean, 1e-3), GRID)
    assert codec.pop(Stack(initial_words(9))).tolist() == [[-200, 200, 0]]


def test_posterior_refuses_bins_without_mass():
    codec = GaussianPosterior(*normal_params(1, 1), GRID)
    with pytest.raises(CompressionError, match="latents that the encoder could have drawn"):
        codec.push(Stack(initial_words(9)), np.array([[200]]))


def test_posterior_and_prior_take_the_divergence_of_the_densities():
    torch.manual_seed(0)
    mean, std = 0.5 * torch.randn(500, 40).double(), torch.full((500, 40), 0.3).double()
    words = initial_words(20_000)
    stack = Stack(words)
    drawn = GaussianPosterior(mean, std, GRID).pop(stack)
    GaussianPrior(np.zeros((500, 40)), np.ones((500, 40)), GRID).push(stack, drawn)
    z = GRID.step * torch.from_numpy(drawn)
    normal = torch.distributions.Normal
    log_ratio = (normal(mean, std).log_prob(z) - normal(0.0, 1.0).log_prob(z)).sum() / np.log(2)
    assert 32 * (len(stack.words()) - len(words)) == pytest.approx(float(log_ratio), rel=5e-3)


def test_stack_refuses_to_pop_more_than_it_holds():
    with pytest.raises(CompressionError, match="too few"):
        table(500, 7).pop(Stack(initial_words(4)))
