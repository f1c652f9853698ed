"""Distributions over the codes of a codebook."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
import torch
from helpers.cases import for_each
from helpers.distributions import CODEBOOK, codes

from tinyvae.distributions import CodebookCategorical

pytestmark = pytest.mark.usefixtures("float64")


def test_draws_of_codes():
    p = codes(torch.randn(3, 2, 2))
    z = p.sample((4000,))
    assert not z.requires_grad
    index = torch.cdist(z.movedim(1, -1), p.codebook).argmin(-1)
    assert torch.equal(p.codebook[index].movedim(-1, 1), z)
    for i, j in itertools.product(range(2), repeat=2):
        counts = torch.bincount(index[:, i, j], minlength=3)
        mass = p.logits[:, i, j].softmax(0)
        assert scipy.stats.chisquare(counts, 4000 * mass).pvalue > 1e-4
    pairs = torch.bincount(index[:, 0, 0] * 3 + index[:, 0, 1], minlength=9).reshape(3, 3)
    assert scipy.stats.chi2_contingency(pairs).pvalue > 1e-4


@for_each(("num_codes", "positions"), [(2, (3,)), (3, (2,)), (2, (2, 2)), (4, (1,))])
def test_masses_of_all_codes_sum_to_one(num_codes, positions):
    codebook = torch.randn(num_codes, 2)
    p = CodebookCategorical(torch.randn(num_codes, *positions), codebook)
    count = math.prod(positions)
    index = torch.tensor([*itertools.product(range(num_codes), repeat=count)])
    index = index.reshape(-1, *positions)
    values = codebook[index].movedim(-1, 1)
    log_prob = p.log_prob(values)
    assert len(values) == num_codes**count
    assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(p.log_mass(index), log_prob)
    each = p.logits.flatten(1).log_softmax(0).numpy()
    expected = [sum(each[k, s] for s, k in enumerate(row)) for row in index.flatten(1).tolist()]
    np.testing.assert_allclose(log_prob, expected, rtol=1e-12)
    values[0, 1].flatten()[-1] += 1e-9
    assert p.log_prob(values)[0] == -math.inf
    assert p.log_prob(values)[1:].isfinite().all()


def test_code_of_one_vector():
    # Regression: codes without positions, (J,), could neither be drawn nor scored.
    p = CodebookCategorical(torch.randn(3), torch.tensor(CODEBOOK))
    assert p.sample((4,)).shape == (4, 2)
    assert p.sample().shape == (2,)
    torch.testing.assert_close(p.log_prob(p.codebook[1]), p.log_probs[1])
