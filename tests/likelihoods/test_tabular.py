import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
from helpers.cases import for_each
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyvae import (
    MLP,
    VAE,
    BernoulliLikelihood,
    CategoricalLikelihood,
    GaussianEncoder,
    GaussianLikelihood,
)
from tinyvae.likelihoods import (
    Column,
    HurdleLikelihood,
    Learned,
    LogitNormalLikelihood,
    LogNormalLikelihood,
    MaskedLikelihood,
    MixedLikelihood,
    MixtureLikelihood,
    NegativeBinomialLikelihood,
    OneHotLikelihood,
    OptimalGaussianLikelihood,
    OrdinalLikelihood,
    PoissonLikelihood,
    StandardizedLikelihood,
    StudentTLikelihood,
    ZeroInflatedLikelihood,
)
from tinyvae.models.serialization import build_part, describe_part
from tinyvae.testing import check_likelihood

pytestmark = pytest.mark.usefixtures("float64")

AGE = Column("age", "number", shift=40.0, scale=12.0)
COLOR = Column("color", "category", ("blue", "green", "red"))
VISITS = Column("visits", "count", scale=2.5)
HEIGHT = Column("height", "number", shift=170.0, scale=9.0)
INCOME = Column("income", "positive", scale=2e4)
SMOKES = Column("smokes", "binary", ("no", "yes"))
COLUMNS = [AGE, COLOR, VISITS, HEIGHT, INCOME, SMOKES]
ROWS = torch.tensor(
    [[35.0, 2.0, 0.0, 160.0, 1.5e4, 1.0], [51.0, 0.0, 7.0, 181.0, 9e4, 0.0]],
    dtype=torch.float64,
)


def drawn(likelihood, *batch):
    """Random decoder output, after noise on the learned parameters."""
    with torch.no_grad():
        for parameter in likelihood.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    width = likelihood.param_shape((len(likelihood.modeled),))
    return torch.randn(*batch, *width)


def columns_of(likelihood, params, x):
    """Log density of each column."""
    return likelihood.factors(params, 1).log_prob(x)


def blocks_of(likelihood):
    """Each block, with the names of its columns."""
    for block, at in likelihood._indexed_blocks():
        yield block, [likelihood.modeled[position].name for position in at]


def in_order(likelihood, params):
    """Parameters ``(..., P)`` of each column, by name, read from the blocks."""
    by_name, start = {}, 0
    for block, names in blocks_of(likelihood):
        shape = block.param_shape((len(names),))
        part = params.narrow(-1, start, shape.numel()).unflatten(-1, shape)
        start += shape.numel()
        by_name |= {name: part[..., i].detach().numpy() for i, name in enumerate(names)}
    return by_name


def learned_of(likelihood, name):
    """The learned scale or concentration of a column."""
    ((block, names),) = (pair for pair in blocks_of(likelihood) if name in pair[1])
    (raw,) = block.parameters()
    return 1e-3 + raw.detach().exp()[names.index(name)].item()  # softplus about log 1e-3


def by_scipy(likelihood, params, x):
    """Log density of each column in the units of the table."""
    p, x = in_order(likelihood, params), x.numpy()
    density = []
    for i, column in enumerate(likelihood.columns):
        name, value = column.name, x[..., i]
        if column.levels:
            logits = np.moveaxis(p[name], -1, 0)
            logs = scipy.special.log_softmax(logits, 0)
            value = np.broadcast_to(value, logs.shape[1:]).astype(int)
            density.append(np.take_along_axis(logs, value[None], 0)[0])
        elif column.kind == "count":
            mean, r = column.scale * np.exp(p[name]), learned_of(likelihood, name)
            density.append(scipy.stats.nbinom.logpmf(value, r, r / (r + mean)))
        elif column.kind == "positive":
            scale = column.scale * np.exp(p[name])
            density.append(
                scipy.stats.lognorm.logpdf(value, learned_of(likelihood, name), 0, scale)
            )
        else:
            mean = column.shift + column.scale * p[name]
            std = column.scale * learned_of(likelihood, name)
            density.append(scipy.stats.norm.logpdf(value, mean, std))
    return np.stack(density, -1)


# The density --------------------------------------------------------------------------------------


def test_log_prob_sums_over_columns_in_their_units():
    likelihood = MixedLikelihood(COLUMNS)
    params = drawn(likelihood, 3, 2)
    expected = by_scipy(likelihood, params, ROWS)
    p = likelihood(params, 1)
    assert (p.batch_shape, p.event_shape) == ((3, 2), (6,))
    np.testing.assert_allclose(columns_of(likelihood, params, ROWS).detach(), expected, rtol=1e-10)
    np.testing.assert_allclose(p.log_prob(ROWS).detach(), expected.sum(-1), rtol=1e-10)


@for_each("name", ["age", "income"])
@given(unit=st.sampled_from([1e-3, 0.5, 1000.0]))
def test_log_prob_shifts_with_the_unit_of_a_column(name, unit):
    def in_unit(c):
        if c.name != name:
            return c
        return Column(c.name, c.kind, c.levels, unit * c.shift, unit * c.scale)

    likelihood = MixedLikelihood(COLUMNS)
    other = MixedLikelihood([in_unit(c) for c in COLUMNS])
    params = drawn(likelihood, 2)
    other.load_state_dict(
        {k: v for k, v in likelihood.state_dict().items() if k.endswith("raw")}, strict=False
    )
    x = ROWS.clone()
    x[:, [c.name for c in COLUMNS].index(name)] *= unit
    difference = other(params, 1).log_prob(x) - likelihood(params, 1).log_prob(ROWS)
    torch.testing.assert_close(difference, torch.full((2,), -math.log(unit)), rtol=0, atol=1e-10)


@for_each(("position", "low", "high"), [(0, -300.0, 400.0), (3, -100.0, 440.0), (4, 1e-3, 1e7)])
def test_density_integrates_to_one_in_the_units_of_the_table(position, low, high):
    likelihood = MixedLikelihood(COLUMNS)
    params = torch.zeros(likelihood.param_shape((6,)))
    log = position == 4  # integrate over the logarithm
    grid = torch.linspace(math.log(low), math.log(high), 20_001) if log else None
    grid = torch.linspace(low, high, 20_001) if grid is None else grid
    x = ROWS[:1].repeat(len(grid), 1)
    x[:, position] = grid.exp() if log else grid
    density = columns_of(likelihood, params, x)[:, position].detach()
    density = (density + grid if log else density).exp()
    assert torch.trapezoid(density, grid).item() == pytest.approx(1, abs=1e-7)


@for_each(("position", "size"), [(1, 3), (2, 2000), (5, 2)])
def test_masses_of_levels_sum_to_one(position, size):
    likelihood = MixedLikelihood(COLUMNS)
    params = drawn(likelihood)
    x = ROWS[:1].repeat(size, 1)
    x[:, position] = torch.arange(float(size))
    masses = columns_of(likelihood, params, x)[:, position].exp()
    assert masses.sum().item() == pytest.approx(1, abs=1e-9)


def test_is_discrete_if_all_columns_are():
    def p(columns):
        likelihood = MixedLikelihood(columns)
        return likelihood(drawn(likelihood, 1), 1)

    assert p([COLOR, VISITS, SMOKES]).is_discrete
    assert not p(COLUMNS).is_discrete
    assert p(COLUMNS).is_density


# Order --------------------------------------------------------------------------------------------

CUSTOM = {
    "height": StudentTLikelihood(9.0, df=4.0),
    "visits": ZeroInflatedLikelihood(PoissonLikelihood(2.5)),
}


@for_each("custom", [{}, CUSTOM])
@settings(max_examples=25)
@given(order=st.permutations(range(6)))
def test_permuted_columns_permute_all_results(custom, order):
    one = MixedLikelihood(COLUMNS, likelihoods=custom)
    other = MixedLikelihood([COLUMNS[i] for i in order], likelihoods=custom)
    per_column = {}  # outputs of both decoders, each in the order of its blocks

    def params_of(likelihood):
        pieces = []
        for block, names in blocks_of(likelihood):
            rows = block.param_shape((len(names),)).numel() // len(names)
            for name in names:
                per_column.setdefault(name, torch.randn(rows))
            pieces.append(torch.stack([per_column[name] for name in names], -1).flatten())
        return torch.cat(pieces)

    x, p, q = ROWS[0], one(params_of(one), 1), other(params_of(other), 1)
    each, permute_dims = p.base.log_prob(x), q.base.log_prob(x[order])
    torch.testing.assert_close(permute_dims, each[order])
    torch.testing.assert_close(q.log_prob(x[order]), p.log_prob(x))
    torch.testing.assert_close(q.mean, p.mean[order])
    torch.testing.assert_close(q.point_estimate(), p.point_estimate()[order])
    assert torch.equal(other.fill_value, one.fill_value[order])
    bad = torch.tensor([[math.inf, 3.0, -1.0, math.nan, 0.0, 0.5]])
    assert not one.in_support(bad).any()
    assert torch.equal(other.in_support(x[None, order]), one.in_support(x[None])[:, order])
    assert one.in_support(x[None]).all()
    fed, fed_other = (m.encoder_input(v) for m, v in ((one, x[None]), (other, x[None, order])))
    torch.testing.assert_close(fed_other.sort(1).values, fed.sort(1).values)


def test_columns_of_one_kind_share_a_block():
    assert len(MixedLikelihood(COLUMNS).blocks) == 5
    assert len(MixedLikelihood(COLUMNS, likelihoods=CUSTOM).blocks) == 6
    assert len(MixedLikelihood([AGE, HEIGHT, Column("z", "number")]).blocks) == 1
    two = Column("two", "category", ("u", "v"))
    assert len(MixedLikelihood([two, SMOKES, COLOR]).blocks) == 2  # one block per number of levels


# Draws and centers --------------------------------------------------------------------------------


def test_sample_returns_rows_of_a_table():
    likelihood = MixedLikelihood(COLUMNS)
    x = likelihood(drawn(likelihood, 4, 5), 1).sample((100,))
    assert x.shape == (100, 4, 5, 6)
    assert likelihood.in_support(x.flatten(0, 2)).all()
    assert likelihood.check_support(x.flatten(0, 2))
    rows = likelihood.to_arrays(x[0, 0])
    assert set(rows["color"]) <= {"blue", "green", "red"}
    assert set(rows["smokes"]) <= {"no", "yes"}


def test_sample_agrees_with_the_mean():
    likelihood = MixedLikelihood(COLUMNS)
    with torch.no_grad():  # std of log income 0.5: otherwise the mean of draws converges slowly
        likelihood.get_submodule("blocks.3").likelihood.std.raw.fill_(math.log(0.5))
    params = torch.randn(likelihood.param_shape((6,)))
    p = likelihood(params, 1)
    x = p.sample((40_000,))
    error = x.std(0) / math.sqrt(len(x))
    assert ((x.mean(0) - p.mean).abs() < 4.5 * error).all()
    assert (abs(p.mean - torch.tensor([40.0, 1.0, 2.5, 170.0, 2e4, 0.5])) < 5 * x.std(0)).all()


def test_sample_agrees_with_the_density_of_a_number():
    likelihood = MixedLikelihood(COLUMNS)
    params = drawn(likelihood)
    x = likelihood(params, 1).sample((5_000,))[:, 0].detach().numpy()
    mean = 40 + 12 * in_order(likelihood, params)["age"].item()
    std = 12 * learned_of(likelihood, "age")
    assert scipy.stats.kstest(x, scipy.stats.norm(mean, std).cdf).pvalue > 1e-4


def test_center_of_a_category_is_its_mode():
    columns = [Column("a", "category", ("u", "v", "w")), AGE]
    likelihood = MixedLikelihood(columns)
    logits = torch.tensor([0.4, 0.25, 0.35]).log()  # its mean is 0.95
    params = torch.cat([logits, torch.tensor([0.5])])
    p = likelihood(params, 1)
    torch.testing.assert_close(p.point_estimate(), torch.tensor([0.0, 46.0]))
    weights = torch.tensor([[0.5], [0.5]])  # two rows for one datum
    other = torch.cat([torch.tensor([0.2, 0.42, 0.38]).log(), torch.tensor([-0.5])])
    pooled = likelihood(torch.stack([params, other])[:, None], 1).point_estimate(weights)
    # (0.3, 0.335, 0.365): the mode of the mixture differs from those of the rows.
    torch.testing.assert_close(pooled, torch.tensor([[2.0, 40.0]]))


# Shapes and the encoder's input -------------------------------------------------------------------


def test_param_shape_and_input_shape():
    likelihood = MixedLikelihood(COLUMNS)
    assert likelihood.param_shape((6,)) == (1 + 3 + 1 + 1 + 1 + 2,)
    assert likelihood.input_shape((6,)) == (1 + 3 + 1 + 1 + 1 + 2,)
    custom = MixedLikelihood(
        COLUMNS, likelihoods={"age": GaussianLikelihood("predicted"), **CUSTOM}
    )
    assert custom.param_shape((6,)) == (2 + 3 + 2 + 1 + 1 + 2,)
    assert custom.input_shape((6,)) == likelihood.input_shape((6,))


@for_each("shape", [(5,), (7,), (6, 1), ()])
def test_shapes_reject_rows_of_another_width(shape):
    likelihood = MixedLikelihood(COLUMNS)
    for call in (likelihood.param_shape, likelihood.input_shape):
        with pytest.raises(ValueError, match=r"rows of 6 columns \['age',.*to_tensor\(table\)"):
            call(shape)
    with pytest.raises(ValueError, match="rows of 6 columns"):
        likelihood.check_support(torch.zeros(2, *shape))


def test_encoder_input_of_each_kind():
    likelihood = MixedLikelihood(COLUMNS)
    fed = likelihood.encoder_input(ROWS)
    expected = np.column_stack(
        [
            np.eye(2)[[1, 0]],  # blocks in the order of their kinds: categories,
            np.eye(3)[[2, 0]],
            np.log1p([0, 7]),  # counts,
            [(35 - 40) / 12, (51 - 40) / 12],  # numbers,
            [(160 - 170) / 9, (181 - 170) / 9],
            np.log(np.array([1.5e4, 9e4]) / 2e4),  # positive ones
        ]
    )
    np.testing.assert_allclose(fed, expected, rtol=1e-14)


@for_each(
    ("column", "fed_at"),
    [(0, [6]), (1, [2, 3, 4]), (2, [5]), (3, [7]), (4, [8]), (5, [0, 1])],
)
def test_encoder_input_holds_zeros_for_missing_values(column, fed_at):
    likelihood = MaskedLikelihood(MixedLikelihood(COLUMNS), show_mask=True)
    expected = likelihood.encoder_input(ROWS)
    expected[1, fed_at] = 0
    expected[1, 9 + column] = 0  # the mask
    x = ROWS.clone()
    x[1, column] = math.nan
    assert torch.equal(likelihood.encoder_input(x), expected)


# Custom likelihoods -------------------------------------------------------------------------------


def test_custom_likelihoods_replace_the_default():
    custom = {"height": StudentTLikelihood(9.0, df=4.0), "smokes": BernoulliLikelihood()}
    likelihood = MixedLikelihood(COLUMNS, likelihoods=custom)
    params = drawn(likelihood, 2)
    p = in_order(likelihood, params)
    each = columns_of(likelihood, params, ROWS).detach().numpy()
    expected = scipy.stats.t.logpdf(ROWS[:, 3], 4, p["height"], 9.0)
    np.testing.assert_allclose(each[:, 3], expected, rtol=1e-10)
    expected = scipy.stats.bernoulli.logpmf(ROWS[:, 5], scipy.special.expit(p["smokes"]))
    np.testing.assert_allclose(each[:, 5], expected, rtol=1e-10)


def test_table_is_no_bound_if_one_column_has_no_probability():
    likelihood = MixedLikelihood(COLUMNS, likelihoods={"smokes": BernoulliLikelihood()})
    assert likelihood.check_support(ROWS) is True
    with pytest.warns(UserWarning, match="between 0 and 1"):
        assert likelihood.check_support(torch.where(torch.arange(6) == 5, 0.5, ROWS)) is False


def test_custom_likelihood_may_have_several_parameters():
    custom = {"age": StandardizedLikelihood(GaussianLikelihood("predicted"), mean=40.0, std=12.0)}
    likelihood = MixedLikelihood(COLUMNS, likelihoods=custom)
    params = drawn(likelihood, 2)
    mean, raw = in_order(likelihood, params)["age"].T
    std = 12 * (1e-3 + np.exp(raw))  # softplus about log 1e-3
    expected = scipy.stats.norm.logpdf(ROWS[:, 0], 40 + 12 * mean, std)
    got = columns_of(likelihood, params, ROWS)[:, 0].detach()
    np.testing.assert_allclose(got, expected, rtol=1e-10)


# Errors -------------------------------------------------------------------------------------------


@for_each(
    ("position", "value", "message"),
    [
        (0, math.inf, "column 'age' expects finite numbers"),
        (0, math.nan, r"column 'age' expects .* got NaN.*MaskedLikelihood\("),
        (1, 3.0, "column 'color' expects integers 0 to 2, got .* 3"),
        (1, 0.5, "column 'color' expects integers 0 to 2, got .* 0.5"),
        (2, -1.0, "column 'visits' expects integers >= 0, got .*-1"),
        (2, 2.5, "column 'visits' expects integers >= 0, got .* 2.5"),
        (3, -math.inf, "column 'height' expects finite numbers"),
        (4, 0.0, "column 'income' expects finite numbers.*, got .* 0"),
        (5, 2.0, "column 'smokes' expects integers 0 to 1, got .* 2"),
    ],
)
def test_check_support_names_the_column(position, value, message):
    x = ROWS.repeat(3, 1)
    x[4, position] = value
    with pytest.raises(ValueError, match=message) as error:
        MixedLikelihood(COLUMNS).check_support(x)
    assert "in 1 of 6 examples, first in example 4" in str(error.value)


def test_check_support_with_missing_values_names_the_column():
    x = ROWS.clone()
    x[0] = math.nan
    likelihood = MaskedLikelihood(MixedLikelihood(COLUMNS))
    assert likelihood.check_support(x)
    x[1, 4] = -5.0
    with pytest.raises(ValueError, match=r"column 'income' expects .* got .*-5"):
        likelihood.check_support(x)


@for_each(
    ("columns", "custom", "message"),
    [
        ([], {}, r"columns with different names, got \[\]"),
        ([AGE, AGE], {}, r"columns with different names, got \['age', 'age'\]"),
        ([AGE], {"agee": GaussianLikelihood()}, r"columns in \['age'\], got \['agee'\]"),
    ],
)
def test_constructor_rejects_invalid_columns(columns, custom, message):
    with pytest.raises(ValueError, match=message):
        MixedLikelihood(columns, likelihoods=custom)


# From a table -------------------------------------------------------------------------------------


def table(rows=40):
    generator = np.random.default_rng(0)

    def holes(values):
        return [None if i % 7 == 3 else value for i, value in enumerate(values.tolist())]

    return {
        "age": holes(generator.normal(40, 12, rows)),
        "code": holes(generator.choice([3, 5, 8], rows)),
        "member": [*generator.choice([False, True], rows - 2).tolist(), True, False],
        "visits": holes(generator.poisson(3, rows)),
        "income": holes(generator.lognormal(10, 1, rows)),
        "color": holes(generator.choice(["red", "blue", "green"], rows)),
    }


def from_table(show_mask=False):
    kinds = {"code": "category", "income": "positive", "visits": "count"}
    likelihood = MaskedLikelihood(
        MixedLikelihood.from_table(table(), kinds=kinds), show_mask=show_mask
    )
    encoder = GaussianEncoder(MLP(likelihood.input_shape((6,)), (8,)), 2)
    decoder = MLP(2, (8,), out_shape=likelihood.param_shape((6,)))
    return VAE(encoder, decoder, likelihood)


def test_from_table_infers_and_converts():
    mixed = from_table().likelihood.likelihood
    assert [c.kind for c in mixed.columns] == [
        *("number", "category", "binary", "count", "positive", "category")
    ]
    x = mixed.to_tensor(table())
    back = mixed.to_arrays(x)
    for name, values in table().items():
        got = [None if v is None or v != v else v for v in back[name].tolist()]
        assert got == values
    age, income = mixed.encoder_input(x)[:, -2:].T.numpy()  # numbers, then positive ones
    assert (np.nanmean(age), np.nanstd(age)) == pytest.approx((0, 1), abs=1e-12)
    assert np.nanmean(income) == pytest.approx(0, abs=1e-12)


def test_from_table_accepts_custom_likelihoods():
    custom = {"color": CategoricalLikelihood(3, ordered=True)}
    likelihood = MixedLikelihood.from_table({"color": ["a", "b", "c"]}, likelihoods=custom)
    assert likelihood.blocks[0] is custom["color"]


@pytest.mark.parametrize("show_mask", [False, True])
def test_model_round_trips_bitwise(tmp_path, show_mask):
    vae = from_table(show_mask)
    with torch.no_grad():
        for parameter in vae.likelihood.parameters():
            parameter.normal_()
    vae.save(tmp_path / "vae.safetensors")
    twin = VAE.load(tmp_path / "vae.safetensors")
    mixed, other = vae.likelihood.likelihood, twin.likelihood.likelihood
    assert other.columns == mixed.columns
    for column, copy in zip(mixed.columns, other.columns, strict=True):
        assert [type(v) for v in copy.levels] == [type(v) for v in column.levels]
    x = other.to_tensor(table())
    torch.testing.assert_close(x, mixed.to_tensor(table()), rtol=0, atol=0, equal_nan=True)
    torch.manual_seed(1)
    log_px = vae(x, num_samples=3).log_px
    torch.manual_seed(1)
    assert torch.equal(twin(x, num_samples=3).log_px, log_px)
    assert repr(twin.likelihood) == repr(vae.likelihood)


def test_description_holds_custom_likelihoods():
    likelihood = MixedLikelihood(COLUMNS, likelihoods=CUSTOM)
    params = drawn(likelihood, 2)
    twin = build_part(describe_part(likelihood))
    twin.load_state_dict(likelihood.state_dict())
    assert torch.equal(twin(params, 1).log_prob(ROWS), likelihood(params, 1).log_prob(ROWS))


# Learned parameters and dtype ---------------------------------------------------------------------


def test_each_column_has_a_learned_parameter_with_gradients():
    likelihood = MixedLikelihood(COLUMNS)
    shapes = sorted(p.shape[0] for p in likelihood.parameters())
    assert shapes == [1, 1, 2]  # visits, income, and age with height
    params = drawn(likelihood, 3, 2).requires_grad_()
    likelihood(params, 1).log_prob(ROWS).sum().backward()
    for tensor in (params, *likelihood.parameters()):
        assert (tensor.grad != 0).all()
        assert torch.isfinite(tensor.grad).all()


def test_columns_learn_separate_scales():
    """By maximum likelihood, each scale is the standard deviation of its column."""
    std = torch.tensor([3.0, 50.0])
    x = torch.tensor([10.0, -200.0]) + std * torch.randn(2000, 2)
    likelihood = MixedLikelihood.from_table(x.numpy(), kinds={"x0": "number", "x1": "number"})
    optimizer = torch.optim.LBFGS(likelihood.parameters(), max_iter=100, tolerance_grad=1e-12)
    mean = torch.zeros(2)

    def loss():
        optimizer.zero_grad()
        value = -likelihood(mean, 1).log_prob(x).mean()
        value.backward()
        return value

    optimizer.step(loss)
    draws = likelihood(mean, 1).sample((100_000,))
    torch.testing.assert_close(draws.std(0), x.std(0), rtol=0.02, atol=0)
    assert likelihood(mean, 1).mean.tolist() == pytest.approx(x.mean(0).tolist())


@for_each("dtype", [torch.float32, torch.float64])
def test_results_have_the_dtype_of_the_parameters(dtype):
    likelihood = MixedLikelihood(COLUMNS)
    params = drawn(likelihood, 3, 2)
    exact = likelihood(params, 1).log_prob(ROWS)
    p = likelihood.to(dtype)(params.to(dtype), 1)
    for tensor in (p.log_prob(ROWS.to(dtype)), p.sample(), p.mean, p.point_estimate()):
        assert tensor.dtype == dtype
    assert likelihood.encoder_input(ROWS.to(dtype)).dtype == dtype
    log_prob = p.log_prob(ROWS.to(dtype)).double()
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(log_prob, exact, rtol=tolerance, atol=tolerance)


def test_fill_value_is_in_the_support():
    likelihood = MixedLikelihood(COLUMNS)
    assert likelihood.check_support(likelihood.fill_value[None])


def test_each_kind_agrees_with_its_documented_likelihood():
    """Each kind agrees with the likelihood in the documentation."""
    plain = {
        "age": StandardizedLikelihood(GaussianLikelihood(Learned((1,))), mean=40.0, std=12.0),
        "color": CategoricalLikelihood(3),
        "visits": NegativeBinomialLikelihood(Learned((1,)), baseline=2.5),
        "height": StandardizedLikelihood(GaussianLikelihood(Learned((1,))), mean=170.0, std=9.0),
        "income": StandardizedLikelihood(LogNormalLikelihood(Learned((1,))), mean=0.0, std=2e4),
        "smokes": CategoricalLikelihood(2),
    }
    likelihood = MixedLikelihood(COLUMNS)
    params = torch.randn(likelihood.param_shape((6,)))
    by_name = in_order(likelihood, params)
    expected = [
        plain[c.name](torch.from_numpy(by_name[c.name][..., None]), 1).log_prob(ROWS[:, [i]])
        for i, c in enumerate(COLUMNS)
    ]
    torch.testing.assert_close(columns_of(likelihood, params, ROWS), torch.stack(expected, -1))


MORE = {
    "rate": Column("rate", "heavy", shift=2.0, scale=3.0),
    "peaks": Column("peaks", "modes", shift=-1.0, scale=2.0, num_components=3, initial=0.3),
    "gain": Column("gain", "amount", scale=20.0, points=(0.0, 99.0), rest="positive"),
    "loss": Column("loss", "amount", shift=5.0, scale=2.0, points=(0.0,), rest="number"),
    "waste": Column("waste", "amount", shift=5.0, scale=2.0, points=(0.0,), rest="heavy"),
    "share": Column("share", "bounded", bounds=(0.0, 1.0), points=(0.0, 1.0)),
    "score": Column("score", "bounded", bounds=(0.0, 100.0), initial=2.0),
    "grade": Column("grade", "ordinal", (1, 2, 5), frequencies=(0.5, 0.3, 0.2)),
    "day": Column("day", "date", shift=30.0, scale=9.0, dtype="datetime64[D]"),
    "unit": Column("unit", "constant", ("cm",)),
}


def test_other_kinds_agree_with_their_documented_likelihoods():
    learned = Learned((1,))
    heavy = StudentTLikelihood(learned, df=Learned((1,), initial=4.0, minimum=1.0))
    within = MixtureLikelihood(GaussianLikelihood(Learned((1,), initial=[0.3])), num_components=3)
    log_normal = StandardizedLikelihood(LogNormalLikelihood(learned), std=20.0)
    gaussian = StandardizedLikelihood(GaussianLikelihood(learned), mean=5.0, std=2.0)
    logit = LogitNormalLikelihood(learned)
    plain = {
        "rate": StandardizedLikelihood(heavy, mean=2.0, std=3.0),
        "peaks": StandardizedLikelihood(within, mean=-1.0, std=2.0),
        "gain": HurdleLikelihood(log_normal, at=(0.0, 99.0)),
        "loss": HurdleLikelihood(gaussian),
        "waste": HurdleLikelihood(StandardizedLikelihood(heavy, mean=5.0, std=2.0)),
        "share": HurdleLikelihood(logit, at=(0.0, 1.0)),
        "score": LogitNormalLikelihood(Learned((1,), initial=[2.0]), high=100.0),
        "grade": OrdinalLikelihood(3, frequencies=(0.5, 0.3, 0.2)),
        "day": StandardizedLikelihood(GaussianLikelihood(learned), mean=30.0, std=9.0),
    }
    likelihood = MixedLikelihood(MORE.values())
    rows = torch.tensor(
        [
            [0.5, -1.5, 0.0, 4.0, 0.0, 0.25, 40.0, 0.0, 31.0],
            [80.0, 3.0, 99.0, 0.0, 6.5, 1.0, 99.0, 2.0, 7.0],
            [-2.0, 0.0, 12.0, -3.0, 5.0, 0.0, 0.5, 1.0, 60.0],
        ]
    )
    params = torch.randn(3, *likelihood.param_shape((9,)))
    by_name = in_order(likelihood, params)
    each = columns_of(likelihood, params, rows)
    for i, column in enumerate(likelihood.modeled):
        part = torch.from_numpy(by_name[column.name][..., None])
        own = plain[column.name]
        part = part.reshape(3, *own.param_shape((1,)))
        torch.testing.assert_close(each[:, [i]], own.factors(part, 1).log_prob(rows[:, [i]]))
    assert likelihood.check_support(rows)
    assert len(likelihood.blocks) == 9


@pytest.mark.slow
@for_each("name", [name for name, column in MORE.items() if column.is_modeled])
def test_other_kinds_keep_the_contract(name):
    check_likelihood(MixedLikelihood([MORE[name], MORE["unit"]]), (1,), spread=0.5)


def test_columns_of_the_earlier_format_are_read():
    stored = [("age", "number", (), 40.0, 12.0), ("sex", "binary", ("f", "m"), 0.0, 1.0, "", 1.0)]
    likelihood = MixedLikelihood(stored)
    assert likelihood.modeled == likelihood.columns
    assert likelihood.config()["columns"][0][:5] == stored[0]


def test_columns_of_other_kinds_share_blocks():
    twins = [replace(column, name=f"{column.name}{i}") for column in MORE.values() for i in (0, 1)]
    likelihood = MixedLikelihood(twins)
    assert len(likelihood.blocks) == 9
    x = torch.tensor([[0.5, -1.5, 0.0, 4.0, 0.0, 0.25, 40.0, 0.0, 31.0]]).repeat_interleave(2, 1)
    params = drawn(likelihood, 1)
    assert torch.isfinite(likelihood(params, 1).log_prob(x)).all()
    assert likelihood.encoder_input(x).shape[1:] == likelihood.input_shape((18,))


def test_custom_scale_must_broadcast():
    wide = {"a": GaussianLikelihood(Learned((3,)))}
    likelihood = MixedLikelihood([("a", "number"), ("b", "number")], likelihoods=wide)
    with pytest.raises(ValueError, match=r"shape=\(3,\)\) does not broadcast over data of shape"):
        likelihood.check_support(torch.randn(4, 2))


@pytest.mark.parametrize(
    "custom",
    [
        OptimalGaussianLikelihood(),
        OneHotLikelihood(),
        MaskedLikelihood(GaussianLikelihood()),
        MixedLikelihood([("a", "number")]),
    ],
    ids=lambda custom: type(custom).__name__,
)
def test_custom_likelihood_must_factorize(custom):
    with pytest.raises(TypeError, match="column 'a' expects a likelihood that is a product"):
        MixedLikelihood([("a", "number")], likelihoods={"a": custom})


def test_check_support_is_false_for_gray_levels():
    likelihood = MixedLikelihood([("a", "number")], likelihoods={"a": BernoulliLikelihood()})
    assert likelihood.check_support(torch.tensor([[0.0], [1.0]]))
    with pytest.warns(UserWarning, match="no bound on log p"):
        assert not likelihood.check_support(torch.tensor([[0.5], [1.0]]))


def test_check_support_describes_positive_columns():
    likelihood = MixedLikelihood([("income", "positive", (), 0.0, 100.0)])
    with pytest.raises(
        ValueError, match=r"column 'income' expects finite numbers > 0, got -5\.\.-5"
    ):
        likelihood.check_support(torch.tensor([[-5.0]]))


def test_check_support_accepts_integers():
    likelihood = MixedLikelihood.from_table({"a": [1.5, 2.0, 3.0], "b": [1, 2, 3]})
    assert likelihood.check_support(torch.tensor([[1, 2], [3, 4]]))
