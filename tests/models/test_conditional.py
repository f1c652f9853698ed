"""Conditional draws: against exact conditionals, for any encoder, and in every model."""

import itertools
import math

import pytest
import torch
from helpers.cases import for_each
from helpers.oracles import gauss_hermite
from torch import nn
from torch.distributions import MultivariateNormal

from tinyvae import (
    MLP,
    VAE,
    BernoulliLikelihood,
    BottomUpVAE,
    Encoder,
    GaussianEncoder,
    GaussianLikelihood,
    LadderVAE,
    TwoLevelVAE,
)
from tinyvae.distributions import Independent, Normal
from tinyvae.encoders import CategoricalEncoder, DeterministicEncoder
from tinyvae.evaluation import conditional_draws, impute
from tinyvae.likelihoods import Column, MaskedLikelihood, MixedLikelihood
from tinyvae.models.conditional import tempered_latents
from tinyvae.models.moves import Moves
from tinyvae.models.particles import (
    Particles,
    effective_sample_size,
    replaying,
    systematic_resampling,
)
from tinyvae.networks import ConcatContext
from tinyvae.priors import CategoricalPrior

pytestmark = pytest.mark.usefixtures("float64")

D, STD = 4, 0.5
NAN = math.nan
ROW = torch.tensor([1.5, NAN, -0.5, NAN], dtype=torch.float64)


class PoorPosterior(Encoder):
    """A normal posterior that knows at most the sum of the data."""

    def __init__(self, num_latents, mean, std, slope=0.0):
        super().__init__()
        self.latent_shape = torch.Size((num_latents,))
        self.mean, self.std, self.slope = mean, std, slope

    def forward(self, x, context=None):
        mean = x.new_full((len(x), *self.latent_shape), self.mean)
        mean = mean + self.slope * x.sum(1, keepdim=True)
        return Independent(Normal(mean, torch.full_like(mean, math.log(self.std))), 1)

    def config(self):
        return {}


class LinearGaussian:
    """z ~ N(0, I), x given z ~ N(W z, STD^2 I), and an encoder that does not know it."""

    def __init__(self, num_latents, mean=1.5, std=0.5):
        torch.manual_seed(1)
        self.weight = torch.randn(D, num_latents)
        decoder = MLP(num_latents, hidden=(), out_shape=D)
        with torch.no_grad():
            decoder.layers[0].weight.copy_(self.weight)
            decoder.layers[0].bias.zero_()
        encoder = PoorPosterior(num_latents, mean, std)
        self.vae = VAE(encoder, decoder, MaskedLikelihood(GaussianLikelihood(STD)))

    def conditional(self, row):
        """Return mean and covariance of the missing entries given the observed ones."""
        missing = row.isnan()
        total = self.weight @ self.weight.T + STD**2 * torch.eye(D)
        gain = total[missing][:, ~missing] @ torch.linalg.inv(total[~missing][:, ~missing])
        return gain @ row[~missing], total[missing][:, missing] - gain @ total[~missing][:, missing]

    def posterior(self, row):
        """Return mean and covariance of z given the observed entries."""
        weight = self.weight[~row.isnan()]
        covariance = torch.linalg.inv(torch.eye(weight.shape[1]) + weight.T @ weight / STD**2)
        return covariance @ weight.T @ row[~row.isnan()] / STD**2, covariance


def assert_moments(draws, mean, covariance, *, size):
    """Assert mean and covariance of draws ``(n, D)`` that are worth ``size`` independent ones."""
    scale = covariance.diagonal().sqrt()
    assert ((draws.mean(0) - mean).abs() < 4.5 * scale / math.sqrt(size)).all()
    error = ((torch.outer(scale, scale).square() + covariance.square()) / size).sqrt()
    assert ((draws.T.cov() - covariance).abs() < 4.5 * error).all()


# Exactness ----------------------------------------------------------------------------------------


@pytest.mark.slow
@for_each("num_latents", [1, 2, 6])
@for_each("std", [0.3, 1.0])
def test_conditional_draws_are_exact_with_a_poor_encoder(num_latents, std):
    model = LinearGaussian(num_latents, std=std)
    draws = conditional_draws(model.vae, ROW.expand(200, D), num_draws=50)
    missing = ROW.isnan()
    assert torch.equal(draws.values[:, :, ~missing], ROW[~missing].expand(50, 200, 2))
    values = draws.values[:, :, missing].flatten(0, 1)
    # Half of the draws that there are: 50 of the 200 latents of a row are dependent.
    assert_moments(values, *model.conditional(ROW), size=5000)
    assert (draws.effective_sample_size >= 100).all()
    moved = ~draws.acceptance_rate.isnan()
    if num_latents == 6 and std < 0.5:
        assert moved.all()
    assert (draws.acceptance_rate[moved] > 0.1).all()


@pytest.mark.slow
def test_conditional_draws_without_moves_are_wrong():
    """The encoder of these tests is poor enough that importance weights alone fail."""
    model = LinearGaussian(6, std=0.3)
    mean, covariance = model.conditional(ROW)
    filled = impute(model.vae, ROW.expand(100, D), num_samples=9)[:, ROW.isnan()]  # no moves
    error = ((filled - mean) / covariance.diagonal().sqrt()).square().mean().sqrt()
    assert error > 0.3
    filled = impute(model.vae, ROW.expand(100, D), num_samples=1000)[:, ROW.isnan()]
    error = ((filled - mean) / covariance.diagonal().sqrt()).square().mean().sqrt()
    assert error < 0.15


@pytest.mark.slow
@for_each("power", [0.3, 1.0])
@for_each("shared", [False, True])
def test_moves_leave_the_target_invariant(power, shared):
    """Start from exact draws of the tempered target, which is Gaussian, and move them.

    Few particles: a proposal that is fitted to the particle itself would show.
    """
    num_latents, count = 2, 8
    model = LinearGaussian(num_latents, mean=0.5, std=0.8)
    encoder = model.vae.encoder
    encoder.slope = 0.3
    mean, covariance = model.posterior(ROW)
    precision, q_precision = torch.linalg.inv(covariance), torch.eye(num_latents) / encoder.std**2
    total = power * precision + (1 - power) * q_precision
    q_mean = torch.full((2,), encoder.mean + encoder.slope * ROW.nansum().item())
    shift = power * precision @ mean + (1 - power) * q_precision @ q_mean
    target = MultivariateNormal(torch.linalg.solve(total, shift), torch.linalg.inv(total))
    rows, repeats = (4, 300) if shared else (5000, 1)
    for kind in ("sweep",) if shared else ("sweep", "gibbs"):
        samples = []
        for _ in range(repeats):  # examples with the same noise are dependent
            x = ROW.expand(rows, D)
            points = target.sample((count, rows))
            with torch.no_grad():
                output = model.vae.output_with(x, None, replaying([points]))
                particles = Particles.of(output, (points,))
                moves = Moves(model.vae, x, None, torch.full((rows,), power), shared)
                for _ in range(5):
                    particles, rate = getattr(moves, kind)(particles)
            assert rate.mean() > 0.05
            samples.append(particles.points[0])
        draws = torch.cat(samples, 1).flatten(0, 1)
        assert_moments(draws, target.mean, target.covariance_matrix, size=len(draws) / 4)


class Binary(nn.Module):
    """Decoder with logits of six binary columns that bend in z."""

    def __init__(self, num_latents):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.slope = 3 * torch.randn(num_latents, 6, generator=generator, dtype=torch.float64)
        self.bend = torch.randn(num_latents, 6, generator=generator, dtype=torch.float64)

    def forward(self, z):
        return z @ self.slope + (z.square() - 1) @ self.bend


def binary_vae(num_latents):
    torch.manual_seed(0)
    encoder = GaussianEncoder(MLP(6, (8,)), num_latents)
    likelihood = MaskedLikelihood(BernoulliLikelihood())
    return VAE(encoder, Binary(num_latents), likelihood, data_shape=(6,))


CELLS = torch.tensor(list(itertools.product([0.0, 1.0], repeat=6)), dtype=torch.float64)


def cell_probabilities(vae):
    """Return the probabilities of all 64 rows by quadrature over the latents."""
    nodes, log_weights = gauss_hermite(60)
    size = vae.latent_shape.numel()
    grid = torch.cartesian_prod(*[nodes[:, 0]] * size).reshape(-1, size)
    weights = torch.cartesian_prod(*[log_weights] * size).reshape(-1, size).sum(1)
    with torch.no_grad():
        log_px = vae.decode(grid[:, None]).log_prob(CELLS)
    return (log_px + weights[:, None]).logsumexp(0).exp()


@pytest.mark.slow
@for_each("num_latents", [1, 2])
def test_conditional_draws_of_a_thousand_conditions_are_exact(num_latents):
    """Conditions on 1 to 4 of 6 binary columns; the others are drawn."""
    vae = binary_vae(num_latents)
    joint = cell_probabilities(vae)
    assert joint.sum().item() == pytest.approx(1, abs=1e-6)
    generator = torch.Generator().manual_seed(5)
    x = (torch.rand(1000, 6, generator=generator) < 0.5).double()
    order = torch.rand(1000, 6, generator=generator).argsort(1)
    seen = order < torch.randint(1, 5, (1000, 1), generator=generator)
    x = x.masked_fill(~seen, NAN)
    count = 100
    draws = conditional_draws(vae, x, num_draws=count, num_samples=1000)
    assert (draws.effective_sample_size >= 100).all()  # no failures
    fits = ((x[:, None] == CELLS) | ~seen[:, None]).all(2)  # (1000, 64)
    p = fits * joint
    p = (p / p.sum(1, keepdim=True)) @ CELLS  # marginals, (1000, 6)
    error = (p * (1 - p) / count).sqrt()
    z = ((draws.values.mean(0) - p) / error)[~seen & (p * (1 - p) > 0.01)]
    assert z.numel() > 2000
    # Resampling from about 100 effective latents or more makes draws a bit dependent.
    assert z.square().mean() < 1.5
    assert abs(z.mean().item()) < 4.5 * 1.3 / math.sqrt(z.numel() / 3)
    assert z.abs().max() < 6.5
    assert torch.equal(draws.values[:, seen], x[seen].expand(count, -1))


# Effective sample size, resampling ----------------------------------------------------------------


def test_effective_sample_size_is_that_of_the_formula():
    log_weight = torch.randn(30, 4) * 3
    w = log_weight.exp()
    expected = w.sum(0).square() / w.square().sum(0)
    torch.testing.assert_close(effective_sample_size(log_weight), expected)
    torch.testing.assert_close(effective_sample_size(log_weight - 1e5), expected)  # no underflow
    assert effective_sample_size(torch.zeros(7, 1)).item() == pytest.approx(7)
    assert effective_sample_size(torch.full((7, 1), -math.inf)).item() == 0


@for_each("shared", [False, True])
def test_systematic_resampling_is_unbiased(shared):
    weights = torch.rand(5, 3)
    weights = (weights / weights.sum(0)).repeat(1, 2000)
    counts = torch.zeros(5, 3)
    repeats = 2000 if shared else 1
    for _ in range(repeats):
        part = weights[:, :3] if shared else weights
        index = systematic_resampling(part, 4, shared=shared)  # (4, B)
        one_hot = nn.functional.one_hot(index, 5).double().sum(0)  # (B, 5)
        counts += one_hot.reshape(-1, 3, 5).sum(0).T
        assert ((one_hot - 4 * part.T).abs() < 1).all()
    error = (counts / 2000 - 4 * weights[:, :3]).abs()
    assert (error < 4.5 * 0.5 / math.sqrt(2000)).all()


# Models -------------------------------------------------------------------------------------------


def gaussian_encoder(inputs, outputs):
    return GaussianEncoder(MLP(inputs, (8,)), outputs)


def make_models():
    likelihood = MaskedLikelihood(GaussianLikelihood(0.3))
    layers = {
        "encoders": [gaussian_encoder(D, 3), gaussian_encoder(3, 2)],
        "generators": [gaussian_encoder(2, 3)],
        "decoder": MLP(3, (8,), out_shape=D),
        "likelihood": likelihood,
    }
    ladder = {**layers, "encoders": [gaussian_encoder(D, 3), gaussian_encoder(8, 2)]}
    yield "vae", VAE(gaussian_encoder(D, 2), MLP(2, (8,), out_shape=D), likelihood), None
    yield "bottom-up", BottomUpVAE(**layers), None
    yield "ladder", LadderVAE(**ladder), None
    bottom = GaussianEncoder(ConcatContext(MLP(D + 2, (8,)), context_dim=2), 3)
    two = TwoLevelVAE(
        top=gaussian_encoder(D, 2),
        bottom=bottom,
        generator=gaussian_encoder(2, 3),
        decoder=MLP(5, (8,), out_shape=D),
        likelihood=likelihood,
    )
    yield "two-level", two, None
    encoder = GaussianEncoder(ConcatContext(MLP(D + 3, (8,)), context_dim=3), 2)
    decoder = ConcatContext(MLP(2 + 3, (8,), out_shape=D), context_dim=3)
    yield "conditional", VAE(encoder, decoder, likelihood), torch.eye(3)[[0, 1, 2, 0, 1]]
    classes = CategoricalEncoder(MLP(D, (8,)), num_classes=4, num_variables=2)
    prior = CategoricalPrior(4, num_variables=2)
    yield "classes", VAE(classes, MLP((4, 2), (8,), out_shape=D), likelihood, prior), None


def by_rejection(model, context, row, count=400_000):
    """Return unconditional draws whose first entry is next to that of a row."""
    condition = None if context is None else context[:1]
    draws = model.sample(count, condition).reshape(count, D)
    return draws[(draws[:, 0] - row[0]).abs() < 0.02]


@pytest.mark.slow
def test_sample_given_agrees_with_rejection_in_every_model():
    for name, model, context in make_models():
        torch.manual_seed(2)
        x = torch.full((5, D), NAN)
        x[:, 0] = model.sample(1, context).reshape(-1, D)[0, 0]
        draws = model.sample(2000, context, given=x)
        assert draws.shape == (2000, 5, D), name
        assert torch.equal(draws[:, :, 0], x[:, 0].expand(2000, 5)), name
        accepted = by_rejection(model, context, x[0])[:, 1:]
        assert len(accepted) > 500
        error = (accepted.var(0) / len(accepted) + accepted.var(0) / 1000).sqrt()
        assert ((draws[:, 0, 1:].mean(0) - accepted.mean(0)).abs() < 4.5 * error + 0.01).all(), name
        ratio = draws[:, 0, 1:].std(0) / accepted.std(0)
        assert ((ratio - 1).abs() < 0.15).all(), name


def test_tempered_latents_with_classes_use_the_encoder():
    """Latents that are not real move by Mattei's and Frellsen's proposals."""
    (vae,) = (model for name, model, _ in make_models() if name == "classes")
    x = torch.tensor([[0.5, NAN, NAN, NAN]]).expand(50, D)
    classes = torch.eye(4)[torch.cartesian_prod(torch.arange(4), torch.arange(4))].mT  # (16, 4, 2)
    with torch.no_grad():
        log_px = vae.decode(classes[:, None]).log_prob(x[:1])[:, 0]
        exact = (log_px.softmax(0)[:, None, None] * classes).sum(0)
        latents = tempered_latents(vae, x, None, 400, 100.0)
    assert not latents.particles.are_real
    share = latents.particles.points[0].mean((0, 1))
    assert (latents.acceptance_rate > 0.2).all()
    torch.testing.assert_close(share, exact, rtol=0, atol=0.02)


# Values that come back, and errors ----------------------------------------------------------------


def test_sample_given_keeps_entries_bit_for_bit():
    vae = LinearGaussian(2, mean=0.0, std=1.0).vae.float()
    row = torch.tensor([1 / 3, NAN, 0.1, NAN], dtype=torch.float64)  # float32 would round it
    draws = vae.sample(3, given=row)
    assert draws.shape == (3, D)
    assert draws.dtype == torch.float64
    assert torch.equal(draws[:, [0, 2]], row[[0, 2]].expand(3, 2))
    assert draws.isfinite().all()
    assert len(draws[:, 1].unique()) == 3
    centers = vae.sample(3, given=row, mean=True)
    assert (centers[:, 1] - draws[:, 1]).abs().min() > 0
    everything = vae.sample(2, given=torch.zeros(1, D))
    assert torch.equal(everything, torch.zeros(2, 1, D))


def test_sample_given_draws_rows_of_a_table():
    columns = [
        Column("a", "category", ("u", "v", "w")),
        Column("b", "number"),
        Column("c", "count"),
    ]
    likelihood = MaskedLikelihood(MixedLikelihood(columns))
    vae = VAE.from_shapes(3, latent_dim=2, likelihood=likelihood)
    draws = vae.sample(50, given=torch.tensor([NAN, 0.3, NAN]))
    assert set(draws[:, 0].tolist()) <= {0.0, 1.0, 2.0}
    assert torch.equal(draws[:, 2], draws[:, 2].round())


def test_conditional_draws_depend_on_their_seed_only():
    model = LinearGaussian(2)
    state = torch.get_rng_state()
    first = conditional_draws(model.vae, ROW[None], num_draws=3, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    again = conditional_draws(model.vae, ROW[None], num_draws=3, seed=1)
    other = conditional_draws(model.vae, ROW[None], num_draws=3, seed=2)
    assert torch.equal(first.values, again.values)
    assert not torch.equal(first.values, other.values)


def test_sample_given_draws_different_rows_independently():
    model = LinearGaussian(1)
    draws = model.vae.sample(4000, given=ROW.expand(2, D))[:, :, 1]
    assert abs(torch.corrcoef(draws.T)[0, 1].item()) < 4.5 / math.sqrt(2000)


def test_sample_refuses_given_entries_without_a_masked_likelihood():
    vae = VAE(gaussian_encoder(D, 2), MLP(2, (8,), out_shape=D), GaussianLikelihood())
    with pytest.raises(TypeError, match=r"MaskedLikelihood\(GaussianLikelihood\(...\)\)"):
        vae.sample(1, given=ROW)
    with pytest.raises(TypeError, match=r"conditional_draws .* expects a MaskedLikelihood"):
        conditional_draws(vae, ROW[None])


def test_sample_refuses_posteriors_without_density():
    encoder = DeterministicEncoder(MLP(D, (8,)), 2)
    vae = VAE(encoder, MLP(2, (8,), out_shape=D), MaskedLikelihood(GaussianLikelihood()))
    with pytest.raises(TypeError, match="expects posteriors with a density"):
        vae.sample(1, given=ROW)


def test_sample_refuses_impossible_entries():
    vae = LinearGaussian(2, mean=0.0, std=1.0).vae.float()
    x = torch.zeros(3, D)
    x[1:, 0] = 1e25
    x[:, 1] = NAN
    with pytest.raises(ValueError, match=r"VAE.sample expects .* size of 0.0 in rows 1, 2: "):
        vae.sample(2, given=x)
    draws = conditional_draws(vae, x)
    assert (draws.effective_sample_size == 0).tolist() == [False, True, True]


def test_sample_given_refuses_other_shapes():
    vae = LinearGaussian(2).vae
    with pytest.raises(ValueError, match="does not accept a batch of shape"):
        vae.sample(1, given=torch.zeros(2, D, D))
    with pytest.raises(ValueError, match="num_draws >= 1"):
        conditional_draws(vae, ROW[None], num_draws=0)
