import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from tinyvae.datasets import DynamicBinarization, digits, threshold
from tinyvae.datasets.binarization import ones

ALL_WORDS = torch.arange(-(2**15), 2**15, dtype=torch.int16)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True)
def _global_generator_untouched():
    state = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), state)


# --- Thresholds -----------------------------------------------------------------------------------


def test_threshold_is_strict_on_every_scale():
    x = torch.tensor([0, 127, 128, 255], dtype=torch.uint8)
    for level, expected in ((127, [0, 0, 1, 1]), (127.5, [0, 0, 1, 1]), (128, [0, 0, 0, 1])):
        assert threshold(x, level).tolist() == expected
        assert threshold(x / 255, level / 255).tolist() == expected
    # beyond the range of uint8, where torch itself would compare with the level modulo 256
    assert threshold(x, 300).tolist() == [0, 0, 0, 0]
    assert threshold(x, -1).tolist() == [1, 1, 1, 1]
    assert threshold(x, 0).dtype == torch.float32


# --- Probabilities, by enumeration ----------------------------------------------------------------


def count(x: torch.Tensor, max_value: int, fine: torch.Tensor) -> torch.Tensor:
    """Return the number of words that give a one for each level, ``(*fine, *x)``."""
    words = ALL_WORDS.expand(len(x), -1)
    binary = ones(words, fine[:, None, None], x[:, None], max_value)
    assert ((binary == 0) | (binary == 1)).all()
    return binary.sum(-1, dtype=torch.float64)


def all_fine(steps: int, max_value: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.arange(steps).to(dtype) * (max_value / steps / 2**16)


@pytest.mark.parametrize("v", [0, 1, 127, 253, 254])
def test_ones_count_every_byte_level_over_all_words(v):
    x = torch.arange(256)
    counts = count(x.to(torch.uint8), 255, all_fine(255, 255)[[v]])[0]
    assert counts[0] == 0
    assert counts[255] == 2**16
    assert torch.equal(counts, torch.ceil((x.double() * 2**16 - v) / 255))
    assert (counts / 2**16 - x / 255).abs().max() <= 2**-16


@pytest.mark.parametrize("max_value", [1, 2, 3, 15, 16])
def test_ones_are_exact_over_all_words_and_fine_digits(max_value):
    x = torch.arange(max_value + 1)
    counts = count(x.to(torch.uint8), max_value, all_fine(max_value, max_value)).sum(0)
    assert torch.equal(counts, (x * 2**16).double())  # of 2^16 M


@pytest.mark.parametrize(
    ("max_value", "level"), [(255, 1), (255, 100), (255, 254), (256, 77), (256, 255)]
)
def test_ones_are_exact_for_byte_levels(max_value, level):
    x = torch.tensor([level])
    assert count(x, max_value, all_fine(max_value, max_value)).sum() == level * 2**16


@pytest.mark.parametrize(("max_value", "level"), [(1000, 999), (65535, 65534), (2**37, 2**37 - 1)])
def test_ones_are_exact_for_wide_levels(max_value, level):
    """All fine digits were too many: the first and the last that make a one of the last word."""
    x, word = torch.tensor([level]), ALL_WORDS[-1:]
    last = 2**16 * level - (2**16 - 1) * max_value - 1  # w M + v < 2^16 x
    edges = torch.tensor([0, max(last, 0), max(last + 1, 0), max_value - 1], dtype=torch.float64)
    for fine in (edges * 2.0**-16, edges.long()):
        got = ones(word, fine, x, max_value)
        assert torch.equal(got, (edges <= last).float())


@pytest.mark.parametrize("numerator", [1, 12344.75, 12345, 2**23, 2**24 - 1])
def test_ones_are_exact_to_24_bits_for_float32(numerator):
    p = torch.tensor([numerator / 2**24])
    assert p.item() == numerator / 2**24
    assert count(p, 1, all_fine(2**8, 1)).sum() == math.ceil(numerator)


def test_ones_are_exact_to_53_bits_for_float64():
    p = torch.tensor([1 - 2**-53, 1 - 2**-53, 2**-53, 2**-53], dtype=torch.float64)
    v = torch.tensor([2**37 - 2, 2**37 - 1, 0, 1], dtype=torch.float64)
    words = ALL_WORDS[[-1, -1, 0, 0]]
    assert ones(words, v * 2.0**-53, p, 1).tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_ones_clamp_floats_out_of_range(dtype):
    x = torch.tensor([math.nan, -math.inf, -0.5, -0.0, 0.0, 1.0, 1.5, math.inf]).to(dtype)
    steps, fine_dtype = (2**37, dtype) if dtype == torch.float64 else (2**8, torch.float32)
    fine = torch.tensor([0, steps - 1], dtype=fine_dtype) / steps / 2**16
    assert (count(x, 1, fine) == torch.tensor([0] * 5 + [2**16] * 3)).all()


@pytest.mark.parametrize("max_value", [1, 16, 100])
def test_ones_clamp_levels_out_of_range(max_value):
    x = torch.tensor([-128, -1, 0, max_value, max_value + 1, 127], dtype=torch.int8)
    counts = count(x, max_value, all_fine(max_value, max_value)[[0, -1]])
    assert (counts == torch.tensor([0] * 3 + [2**16] * 3)).all()


# --- Random digits --------------------------------------------------------------------------------


class Spy:
    """Replacement of `ones` that records its random digits."""

    def __call__(self, words, fine, x, max_value):
        self.words, self.fine = words, fine
        return ones(words, fine, x, max_value)

    def digits(self, steps, max_value):
        """Return the fine digits v, float64."""
        is_whole = self.fine.dtype == torch.int64
        return self.fine.double() * (1 if is_whole else 2**16 * steps / (max_value or 1))


@pytest.fixture
def spy(monkeypatch):
    spy = Spy()
    monkeypatch.setattr("tinyvae.datasets.binarization.ones", spy)
    return spy


def test_binarization_words_are_uniform_in_every_lane(spy):
    DynamicBinarization(255)(torch.zeros(1000, 1000, dtype=torch.uint8), generator())
    lanes = spy.words.reshape(-1, 4).T
    assert not torch.equal(lanes[0], lanes[1])
    for lane in lanes.to(torch.int64):
        for byte in (lane >> 8, lane):
            assert chisquare(torch.bincount(byte & 255, minlength=256)).pvalue > 1e-4
        bits = (lane[:, None] >> torch.arange(16)) & 1
        frequency = bits.double().mean(0)
        assert (frequency - 0.5).abs().max() < 4.5 * 0.5 / math.sqrt(len(lane))
        both = torch.corrcoef(bits.T.double()) - torch.eye(16)
        assert both.abs().max() < 5 / math.sqrt(len(lane))


def test_binarization_words_are_independent_across_lanes(spy):
    DynamicBinarization(255)(torch.zeros(1000, 1000, dtype=torch.uint8), generator())
    lanes = spy.words.reshape(-1, 4).T.double()
    assert (torch.corrcoef(lanes) - torch.eye(4)).abs().max() < 4.5 / math.sqrt(lanes.shape[1])


@pytest.mark.parametrize("max_value", [None, 16, 255, 1000])
def test_binarization_draws_fine_digits_per_example(spy, max_value):
    x = torch.zeros(20_000, 2, 1, dtype=torch.float32 if max_value is None else torch.int16)
    DynamicBinarization(max_value)(x, generator())
    assert spy.fine.shape == (20_000, 1, 1)
    steps = max_value or 2**8
    v = spy.digits(steps, max_value).flatten()
    assert torch.equal(v, v.round())
    assert chisquare(torch.bincount(v.long(), minlength=steps)).pvalue > 1e-4


@pytest.mark.parametrize(
    ("dtype", "max_value", "fine_dtype", "steps"),
    [
        (torch.float16, None, torch.float32, 2**8),
        (torch.float32, None, torch.float32, 2**8),
        (torch.float64, None, torch.float64, 2**37),
        (torch.uint8, 255, torch.float32, 255),
        (torch.int16, 256, torch.float32, 256),
        (torch.int16, 257, torch.int64, 257),
        (torch.int64, 2**33, torch.int64, 2**33),
    ],
)
def test_binarization_fine_digits_fit_their_dtype(spy, dtype, max_value, fine_dtype, steps):
    DynamicBinarization(max_value)(torch.zeros(20_000, 1, dtype=dtype), generator())
    assert spy.fine.dtype == fine_dtype
    v = spy.digits(steps, max_value)
    assert torch.equal(v, v.round())
    assert (v % 2 == 1).any()  # down to the last digit
    assert 0 <= v.min() < 0.01 * steps
    assert 0.99 * steps < v.max() + 1 <= steps


# --- Draws ----------------------------------------------------------------------------------------


def check_frequencies(binary: torch.Tensor, p: torch.Tensor) -> None:
    """Check that each column of zeros and ones has frequency p, and so has their sum."""
    draws = len(binary)
    assert binary.dtype == torch.float32
    assert ((binary == 0) | (binary == 1)).all()
    errors, variances = binary.double().mean(0) - p, p * (1 - p) / draws
    assert (errors.abs() <= 4 * variances.sqrt()).all()  # exact where p is 0 or 1
    assert errors.sum().abs() <= 4 * variances.sum().sqrt()


@pytest.mark.parametrize(
    ("max_value", "dtype"),
    [
        (1, torch.bool),
        (1, torch.uint8),
        (16, torch.uint8),
        (255, torch.uint8),
        (255, torch.int16),
        (255, torch.int64),
        (256, torch.int64),
        (257, torch.int32),
        (1000, torch.int16),
    ],
)
def test_binarization_reads_gray_levels_as_probabilities(max_value, dtype):
    levels = torch.arange(max_value + 1)
    x = levels.to(dtype).expand(2_000 if max_value > 256 else 10_000, -1)
    binary = DynamicBinarization(max_value)(x, generator())
    check_frequencies(binary, levels.double() / max_value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_binarization_reads_floats_as_probabilities(dtype):
    p = torch.tensor([0, 2**-12, 0.1, 0.5, 0.9, 1 - 2**-8, 1]).to(dtype)
    check_frequencies(DynamicBinarization()(p.expand(100_000, -1), generator()), p.double())


def test_binarization_draws_independent_pixels():
    x = torch.tensor([64, 128, 200, 254], dtype=torch.uint8).expand(100_000, -1)
    binary = DynamicBinarization(255)(x, generator())
    both = torch.corrcoef(binary.T.double()) - torch.eye(4)
    following = torch.corrcoef(torch.stack((binary[1:, 0], binary[:-1, 3])).double())[0, 1]
    assert max(both.abs().max(), following.abs()) < 4.5 / math.sqrt(len(x))


@pytest.mark.parametrize("max_value", [None, 255])
def test_binarization_depends_on_the_generator_alone(max_value):
    x = torch.full((4, 1, 8, 8), 100, dtype=torch.uint8) if max_value else torch.full((4, 64), 0.4)
    transform = DynamicBinarization(max_value)
    one, two = generator(3), generator(3)
    first, second = transform(x, one), transform(x, one)
    assert first.shape == x.shape
    assert not torch.equal(first, second)  # a new draw
    assert torch.equal(first, transform(x, two))
    with torch.random.fork_rng():
        torch.manual_seed(99)
        assert torch.equal(second, DynamicBinarization(max_value)(x, two))
    assert torch.equal(one.get_state(), two.get_state())
    assert not torch.equal(first, transform(x, generator(4)))


def test_binarization_ignores_memory_layout():
    x = digits().images[:32]
    transposed = x.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(
        DynamicBinarization(16)(x, generator()), DynamicBinarization(16)(transposed, generator())
    )


@pytest.mark.parametrize(
    "shape", [(), (1,), (3,), (5, 1), (1, 5), (3, 7), (2, 1, 3, 3), (0, 1, 8, 8), (4, 0)]
)
@pytest.mark.parametrize("max_value", [None, 255, 1000])
def test_binarization_accepts_any_number_of_pixels(shape, max_value):
    dtype = torch.float32 if max_value is None else torch.int16
    black, white = torch.zeros(shape, dtype=dtype), torch.full(shape, max_value or 1, dtype=dtype)
    binarize = DynamicBinarization(max_value)
    for x, expected in ((black, 0.0), (white, 1.0)):
        binary = binarize(x, generator())
        assert binary.dtype == torch.float32
        assert torch.equal(binary, torch.full(shape, expected))


def test_binarization_rejects_max_value_that_does_not_fit():
    with pytest.raises(ValueError, match="max_value >= 1, got 0"):
        DynamicBinarization(0)
    with pytest.raises(ValueError, match=r"got torch\.uint8: .*max_value=255"):
        DynamicBinarization()(torch.zeros(2, dtype=torch.uint8), generator())
    with pytest.raises(ValueError, match=r"integers in 0\.\.255, got torch\.float32"):
        DynamicBinarization(255)(torch.zeros(2), generator())


# Missing and wrong values -------------------------------------------------------------------------


def test_binarization_keeps_missing_values():
    x = torch.tensor([[0.0, math.nan, 1.0]]).expand(50, 3)
    expected = torch.tensor([[0.0, math.nan, 1.0]]).expand(50, 3)
    for dtype in (torch.float16, torch.float32, torch.float64):
        binary = DynamicBinarization()(x.to(dtype), torch.Generator())
        assert torch.equal(binary.nan_to_num(7), expected.nan_to_num(7))
        assert torch.equal(threshold(x.to(dtype), 0.5).nan_to_num(7), expected.nan_to_num(7))


@pytest.mark.parametrize(
    ("max_value", "x"),
    [
        (None, torch.tensor([0.0, 128.0])),
        (None, torch.tensor([-0.5, 0.5])),
        (16, torch.tensor([0, 255], dtype=torch.uint8)),
        (255, torch.tensor([-1, 255])),
    ],
)
def test_dynamic_binarization_refuses_other_scales(max_value, x):
    with pytest.raises(ValueError, match=r"expects levels in 0\.\.\d+, got .*: scale the data"):
        DynamicBinarization(max_value)(x.unsqueeze(0), torch.Generator())


def test_threshold_refuses_arrays_whose_mask_would_be_lost():
    masked = np.ma.masked_array([1.0, 9.0], mask=[False, True])
    with pytest.raises(TypeError, match=r"got a MaskedArray: .*filled\(numpy.nan\)"):
        threshold(masked, 0.5)
