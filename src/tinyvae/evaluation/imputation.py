r"""Imputation of missing entries, and draws of them given the observed ones.

.. math:: p(x_{\text{mis}} \mid x_{\text{obs}}) \approx
    \sum_k \tilde w_k \, p(x_{\text{mis}} \mid z_k), \qquad
    \tilde w_k \propto \frac{p(x_{\text{obs}} \mid z_k)\, p(z_k)}{q(z_k \mid x_{\text{obs}})},
    \quad z_k \sim q(z \mid x_{\text{obs}})

Where few weights dominate, Markov chain Monte Carlo moves the latents.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tinyvae.core.data import as_tensor
from tinyvae.core.generators import exclusive_generators
from tinyvae.core.module_state import evaluating
from tinyvae.core.objective import checked_data
from tinyvae.core.random import Stream, derive_seed, forked_rng
from tinyvae.core.warnings import warn
from tinyvae.distributions import Distribution
from tinyvae.evaluation.data import read_tensors
from tinyvae.evaluation.importance import (
    CHUNK_ELEMENTS,
    Chunk,
    Noise,
    drawing_rule,
    iterate_chunks,
    require_noise,
    to_model,
)
from tinyvae.evaluation.progress import Progress
from tinyvae.models.base import DecoderModel
from tinyvae.models.conditional import (
    ENOUGH,
    FEWEST,
    ConditionalDraws,
    draw_given,
    likelihood_given,
    listed,
    poor_examples,
    require_masked,
    tempered_latents,
    tempered_size,
)
from tinyvae.models.inputs import require_count
from tinyvae.models.output import VAEOutput
from tinyvae.models.particles import (
    Particles,
    effective_sample_size,
    replaying,
    systematic_resampling,
)
from tinyvae.training.data.sources import PickBatch


@exclusive_generators("impute")
def impute(
    model: DecoderModel,
    data: Any,
    context: Any = None,
    *,
    mask: Any = None,
    batch: PickBatch | None = None,
    num_imputations: int | None = None,
    num_samples: int = 1000,
    seed: int = 0,
    noise: Noise = "independent",
    moves: bool = True,
    progress: bool = True,
) -> Tensor:
    """Fill missing entries given the observed ones.

    Without ``num_imputations``, an entry gets its conditional mean, which minimizes the squared
    error. An entry of unordered classes gets the most probable class. With ``num_imputations``, it
    gets that many samples of the conditional distribution (sampling importance resampling). Their
    spread shows the uncertainty: analyze each completed data set, and pool the results.

    Examples whose effective sample size is below 100, or a tenth of ``num_samples`` if that is
    less, get latents that Markov chain Monte Carlo moves, as in
    :func:`~tinyvae.evaluation.conditional_draws`, which also reports effective sample sizes. A
    warning names the examples for which that fails, too.

    Args:
        model: A model with a :class:`~tinyvae.likelihoods.MaskedLikelihood`. It is used in
            evaluation mode.
        data: Data, see :func:`~tinyvae.evaluate`. All of them are in memory, as the result is.
        context: Input of a conditional model, ``(N, ...)``, if data are x alone.
        mask: True for the observed entries, ``(N, *E)``, if data are x alone. NaN is missing.
        batch: See :func:`~tinyvae.evaluate`.
        num_imputations: Number of samples ``M``. None gives one best value.
        num_samples: Latents per example, which are resampled by their weights.
        seed: Seed of the samples. The global random state does not change.
        noise: ``"shared"`` for the same quasi-random noise in all examples, so that the value of an
            example does not depend on the others. See :func:`~tinyvae.log_marginal`.
        moves: False to leave out Markov chain Monte Carlo, which takes much longer than the
            weighted samples.
        progress: True to report draws and time left, if it takes longer than a second.

    Returns:
        ``(N, *E)``, or ``(M, N, *E)`` with ``num_imputations``, on the device of the data.
        Observed entries are unchanged, also those that the model's dtype rounds: the result is
        float64 if a tensor or an array is.

    References:
        Mattei, Frellsen (2019). MIWAE: Deep Generative Modeling and Imputation of Incomplete Data
        Sets. arXiv:1812.02633, section 3. Rubin (1987). Multiple Imputation for Nonresponse in
        Surveys.

    Example:
        >>> table = MaskedLikelihood(GaussianLikelihood())
        >>> vae = VAE(GaussianEncoder(MLP(3, (8,)), 2), MLP(2, (8,), out_shape=3), table)
        >>> impute(vae, torch.tensor([[1.0, torch.nan, 3.0]]), num_imputations=5).shape
        torch.Size([5, 1, 3])
    """
    require_count("impute", num_samples)
    require_noise("impute", noise)
    if num_imputations is not None:
        require_count("impute", num_imputations, "num_imputations")
        if noise == "shared":
            raise ValueError(
                "impute expects noise='independent' for num_imputations, got 'shared': the draws "
                "of different examples must not depend on each other"
            )
    data, context, mask = read_tensors(model, data, context, mask, batch)
    x, context, mask = to_model(model, data), to_model(model, context), to_model(model, mask)
    model.check(x, context, mask=mask)
    x = model.observed(x, mask)
    examples = max(1, CHUNK_ELEMENTS // (model.peak_elements(x) * num_samples))
    chunks = _Imputation(model, num_samples, num_imputations, seed, noise, moves)
    filled, sizes = [], []
    with (
        torch.no_grad(),
        evaluating(model),
        checked_data(),
        forked_rng(x.device, derive_seed(seed, Stream.IMPUTATION)),
        Progress("impute", num_samples * len(x), shown=progress) as report,
    ):
        for index, part in enumerate(iterate_chunks(x, context, None, examples)):
            values, size = chunks.impute(part, index)
            filled.append(values)
            sizes.append(size)
            report.add(num_samples * len(part[0]))
    _warn_of_failures(torch.cat(sizes), min(FEWEST, num_samples / 10))
    completed = torch.cat(filled, dim=0 if num_imputations is None else 1).to(data.device)
    # Not x, because the model's dtype may round observed values, and its device may lack float64.
    observed = ~torch.isnan(data)
    if mask is not None:
        observed &= mask.to(data.device).bool()
    return torch.where(observed, data, completed)


@dataclass(frozen=True)
class _Imputation:
    """Imputation of chunks of data, see :func:`impute`."""

    model: DecoderModel
    num_samples: int
    num_imputations: int | None
    seed: int
    noise: Noise
    moves: bool

    def impute(self, chunk: Chunk, index: int) -> tuple[Tensor, Tensor]:
        """Return values ``(B, *E)`` or ``(M, B, *E)``, and effective sample sizes ``(B,)``."""
        x, context, _ = chunk
        draw = drawing_rule(self.noise, derive_seed(self.seed, Stream.IMPUTATION))
        points: list[Tensor] = []
        output = self.model.output_with(x, context, draw(self.num_samples, points))
        particles = Particles.of(output, tuple(points))
        log_weight = particles.log_weight()  # (K, B)
        size = effective_sample_size(log_weight)
        weights = log_weight.masked_fill(size == 0, 0.0).softmax(0)
        if self.num_imputations is None:
            values = self._given(output, x).point_estimate(weights)  # (B, *E)
        else:
            count = self.num_imputations
            chosen = torch.multinomial(weights.T, count, replacement=True).T  # (M, B)
            values = self._values(chunk, particles.select(chosen))
        enough = min(ENOUGH, self.num_samples / 10)
        if self.moves and len(poor := poor_examples(size, enough)):
            part = (x[poor], None if context is None else context[poor], None)
            # Their own random numbers, so that the values of the other examples do not change.
            part_index = 0 if self.noise == "shared" else index
            stream = derive_seed(self.seed, Stream.IMPUTATION, 1, part_index)
            with forked_rng(x.device, stream):
                moved, moved_size = self._moved(part, tempered_size(particles, enough), enough)
            axis = 0 if self.num_imputations is None else 1
            values = values.index_copy(axis, poor, moved.to(values))
            size = size.index_copy(0, poor, moved_size)
        return values, size

    def _moved(self, chunk: Chunk, num_latents: int, enough: float) -> tuple[Tensor, Tensor]:
        """Return values and effective sample sizes of latents that a Markov chain has moved."""
        x, context, _ = chunk
        draw = drawing_rule(self.noise, derive_seed(self.seed, Stream.IMPUTATION, 1))
        shared = self.noise == "shared"
        latents = tempered_latents(self.model, x, context, num_latents, enough, draw, shared=shared)
        if self.num_imputations is not None:
            index = systematic_resampling(latents.weights, self.num_imputations)
            return self._values(chunk, latents.particles.select(index)), (
                latents.effective_sample_size
            )
        points = replaying(latents.particles.points)
        output = self.model.output_with(x, context, points)
        values = self._given(output, x).point_estimate(latents.weights)
        return values, latents.effective_sample_size

    def _values(self, chunk: Chunk, particles: Particles) -> Tensor:
        """Return draws of all entries at the latents, ``(M, B, *E)``."""
        x, context, _ = chunk
        output = self.model.output_with(x, context, replaying(particles.points))
        return self._given(output, x).sample()

    def _given(self, output: VAEOutput, x: Tensor) -> Distribution:
        """Return p(x given z, observed entries) of a pass."""
        return likelihood_given(self.model.likelihood, output.likelihood, x)


def _warn_of_failures(sizes: Tensor, fewest: float) -> None:
    impossible = (sizes == 0).nonzero()[:, 0].tolist()
    poor = ((sizes > 0) & (sizes < fewest)).nonzero()[:, 0].tolist()
    if impossible:
        warn(
            f"impute found no latents that fit the observed entries of {listed(impossible)}, whose "
            "density under the model is zero or nearly so: the imputed values there come from "
            "latents that do not fit. Check units and values, or leave these entries out"
        )
    if poor:
        warn(
            f"impute has an effective sample size below {fewest:g} in {listed(poor)}: the imputed "
            "values there are inexact. Give moves=True, more num_samples, or train longer"
        )


@exclusive_generators("conditional_draws")
def conditional_draws(
    model: DecoderModel,
    x: Tensor,
    context: Tensor | None = None,
    *,
    num_draws: int = 1,
    num_samples: int = 1000,
    seed: int = 0,
) -> ConditionalDraws:
    """Draw missing entries given the observed ones, and report the effective sample sizes.

    It returns the draws of ``model.sample(num_draws, context, given=x)``, for a seed, and refuses
    nothing. Latents of the encoder are resampled by their importance weights. Where the effective
    sample size is below ``num_draws``, or 100 if that is more, they are drawn by a sequence of
    targets from the encoder's distribution to that of the model. At each target they are resampled
    and moved: by Metropolis-Hastings steps that are fitted to the latents themselves and do not
    need a good encoder, or, if latents are not real numbers, by those of Mattei and Frellsen
    through the encoder.

    Args:
        model: A model with a :class:`~tinyvae.likelihoods.MaskedLikelihood`. It is used in
            evaluation mode.
        x: Data ``(N, *E)``, NaN for what is to be drawn.
        context: Input of a conditional model, ``(N, ...)``.
        num_draws: Draws ``n`` per example.
        num_samples: Latents per example before moves. At least twice ``n`` are drawn.
        seed: Seed of the draws. The global random state does not change.

    References:
        Del Moral, Doucet, Jasra (2006). Sequential Monte Carlo samplers. Mattei, Frellsen (2018).
        Leveraging the Exact Likelihood of Deep Latent Variable Models. arXiv:1802.04826.

    Example:
        >>> table = MaskedLikelihood(GaussianLikelihood())
        >>> vae = VAE(GaussianEncoder(MLP(3, (8,)), 2), MLP(2, (8,), out_shape=3), table)
        >>> draws = conditional_draws(vae, torch.tensor([[1.0, torch.nan, 3.0]]), num_draws=5)
        >>> draws.values.shape
        torch.Size([5, 1, 3])
        >>> draws.effective_sample_size.shape
        torch.Size([1])
    """
    require_count("conditional_draws", num_samples)
    require_count("conditional_draws", num_draws, "num_draws")
    data = as_tensor(x, "conditional_draws")
    require_masked("conditional_draws", model.likelihood)
    x, context = to_model(model, data), to_model(model, context)
    model.check(x, context)
    stream = derive_seed(seed, Stream.IMPUTATION, 2)
    with torch.no_grad(), evaluating(model), forked_rng(x.device, stream):
        drawn = draw_given(model, model.likelihood, x, context, num_draws, num_samples)
    values = torch.where(torch.isnan(data), drawn.values.to(data), data)
    return replace(drawn, values=values)
