"""Base class of models: a decoder with its likelihood, and the pass through all parts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tinyvae.core.data import require_exact
from tinyvae.core.module_state import evaluating, frozen, mixes_examples, preserved_statistics
from tinyvae.distributions import Distribution
from tinyvae.distributions.special import at_least_float32
from tinyvae.likelihoods import Likelihood
from tinyvae.models.checks import (
    call_part,
    check_prior,
    check_supports,
    describe_output,
    mixes_rows,
    require_part,
)
from tinyvae.models.decoding import build_decoder, infer_data_shape, set_output_bias
from tinyvae.models.latents import (
    Draw,
    FrozenPosterior,
    draw_checked_point_estimate,
    draw_point_estimate,
    repeat_rows,
)
from tinyvae.models.output import Inference, LatentTerm, LatentVariableModel, VAEOutput
from tinyvae.models.saving import SavableModel
from tinyvae.networks.base import within_range

DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


class DecoderModel(SavableModel, LatentVariableModel):
    """A model whose decoder maps latents to p(x given z).

    A subclass defines how latents are drawn: :meth:`infer` given x, :meth:`generate` from the
    prior. Its constructor's arguments are the parts, and ``data_shape``.

    Args:
        parts: Parts by the names of the constructor's arguments, in their order. The first one is
            the encoder, or the list of encoders, that reads the data.
        data_shape: Shape of one datum, see :class:`~tinyvae.VAE`.

    Attributes:
        decoder: Module that maps latents to the likelihood's parameters, see :class:`~tinyvae.VAE`.
        likelihood: Module that maps these parameters to p(x given z).
        latent_shape: Shape of the latent that the decoder reads.
        data_shape: Shape of one datum, or None if it is unknown.
    """

    decoder: nn.Module
    likelihood: Likelihood
    latent_shape: torch.Size
    inference = "encoder"  # name of the parts that infer, for errors
    posterior_parts: tuple[str, ...] = ("encoder",)

    def __init__(
        self,
        parts: Mapping[str, nn.Module | Sequence[nn.Module]],
        data_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        owner, example = type(self).__name__, "such as MLP(latent_dim)"
        require_part(owner, parts["decoder"], nn.Module, "decoder", example)
        example = "such as GaussianLikelihood()"
        require_part(owner, parts["likelihood"], Likelihood, "likelihood", example)
        for name, part in parts.items():
            self.add_module(name, part if isinstance(part, nn.Module) else nn.ModuleList(part))
        self.data_shape = (
            infer_data_shape(next(self.children()), self.likelihood)
            if data_shape is None
            else torch.Size(data_shape)
        )
        build_decoder(owner, self.decoder, self.likelihood, self.data_shape)

    @abstractmethod
    def infer(self, inputs: Tensor, context: Tensor | None, draw: Draw) -> Inference:
        """Draw latents given the encoder's input.

        Args:
            inputs: Input of the encoder, ``(B, ...)``.
            context: Context of the examples, ``(B, ...)``.
            draw: Rule that is called for each posterior in turn. It returns points, which
                :meth:`~tinyvae.models.LatentTerm.of` takes.

        Returns:
            The latent terms, and the latent that the decoder reads, ``(K, B, *L)``.
        """

    @abstractmethod
    def generate(self, num_samples: int, context: Tensor | None) -> Tensor:
        """Draw latents for the decoder from the prior.

        Returns:
            ``(n, *L)``, or ``(n, B, *L)`` with a context, even if the prior does not read it.
        """

    @abstractmethod
    def prior_given(self, context: Tensor | None) -> Distribution:
        """Return p(z) of the top layer, given the context if the prior reads it."""

    def config(self) -> dict[str, Any]:
        """Return the parts that build an equal model, by name."""
        config = super().config()
        config.pop("data_shape", None)  # the decoder has its output shape already
        return {n: list(p) if isinstance(p, nn.ModuleList) else p for n, p in config.items()}

    @property
    def couples_batch(self) -> bool:
        """True if p(x, z) of an example depends on the others of its batch, in the model's mode."""
        # The posterior may depend on them: the ELBO is a bound for any q.
        parts = (part for name, part in self.named_children() if name not in self.posterior_parts)
        return self.likelihood.couples_batch or any(map(mixes_examples, parts))

    def num_dims(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the number of dimensions of each example that the likelihood scores, ``(B,)``."""
        return self.likelihood.num_dims(self._observed(x, mask))

    def peak_elements(self, x: Tensor) -> int:
        """Return the number of elements of a datum or of the decoder's output, the larger one."""
        return max(super().peak_elements(x), self.likelihood.param_shape(x.shape[1:]).numel())

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        num_samples: int = 1,
        frozen_posterior: bool = False,
    ) -> VAEOutput:
        """Draw ``num_samples`` latents for each of ``x`` ``(B, *E)`` and return the output.

        Args:
            x: Data.
            context: Context of the examples, ``(B, ...)``.
            mask: True for observed entries, ``(B, *E)``. Entries that are NaN are missing, too. A
                mask needs a :class:`~tinyvae.likelihoods.MaskedLikelihood`.
            num_samples: Number of draws ``K``.
            frozen_posterior: True scores the draws by posteriors with gradients in the latents,
                but not in the weights ("sticking the landing": Roeder, Wu, Duvenaud 2017,
                arXiv:1703.09194). Posteriors without reparameterized draws do not change.
        """
        if num_samples < 1:
            raise ValueError(f"{type(self).__name__} expects num_samples >= 1, got {num_samples}")
        x = self._observed(x, mask)
        terms, z, draws = self._drawn(x, context, num_samples)
        record = self._record(x, terms, z, context, draws)
        return self.freeze_posterior(record, x, context) if frozen_posterior else record

    def latent_terms(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        num_samples: int = 1,
    ) -> tuple[LatentTerm, ...]:
        """Return the latent terms of :meth:`forward`, without decoding."""
        return self._drawn(self._observed(x, mask), context, num_samples)[0]

    def _drawn(
        self, x: Tensor, context: Tensor | None, num_samples: int
    ) -> tuple[tuple[LatentTerm, ...], Tensor, list[Tensor]]:
        """Draw latents. Return their terms, the decoder's input, and the draws in their order."""
        draws: list[Tensor] = []

        def draw(_: torch.Size, posterior: Distribution) -> tuple[Tensor, Tensor | None]:
            shape, log_q = (num_samples,)[len(posterior.batch_shape) - 1 :], None
            form = posterior.log_form()
            if form.yields_log_prob:
                point, log_q = form.sample_and_log_prob(shape)
            else:
                point = form.sample(shape)
            draws.append(point)
            return point, log_q

        terms, z = self.infer(self.likelihood.encoder_input(x), context, draw)
        return terms, z, draws

    def freeze_posterior(
        self,
        record: VAEOutput,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Tensor | None = None,
    ) -> VAEOutput:
        """Score the draws of a pass by posteriors without gradients in the weights.

        ``record`` is the output of :meth:`forward` for the same ``x``, ``context`` and ``mask``.
        """
        parts = (part for name, part in self.named_children() if name != "decoder")
        layers = (layer for part in parts for layer in part.modules())
        if any(isinstance(m, DROPOUT) and m.training and m.p for m in layers):
            raise ValueError(
                "freeze_posterior scores draws in a second pass, in which dropout would drop other "
                "units: use estimator='pathwise', or dropout in the decoder only"
            )
        inputs = self.likelihood.encoder_input(self._observed(x, mask))
        draws = iter(record.draws)
        with frozen(self), preserved_statistics(self):
            scored, _ = self.infer(inputs, context, lambda *_: (next(draws), None))
        latents = (
            # Other posteriors stay, because their codebook may have moved since the draw.
            replace(term, posterior=FrozenPosterior(scored_term.posterior, self), drawn_log_q=None)
            if term.posterior.depends_on_parameters and term.posterior.has_rsample
            else term
            for term, scored_term in zip(record.latents, scored, strict=True)
        )
        return replace(record, latents=tuple(latents))

    def posterior_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the posterior, without those of the generative model."""
        parts = (self.get_submodule(name) for name in self.posterior_parts)
        return [parameter for part in parts for parameter in part.parameters()]

    def _record(
        self,
        x: Tensor,
        terms: tuple[LatentTerm, ...],
        z: Tensor,
        context: Tensor | None,
        draws: Sequence[Tensor] = (),
    ) -> VAEOutput:
        likelihood = self.decode(z, context)
        log_px = likelihood.log_prob(x)
        self.likelihood.update_statistics(likelihood, x)
        return VAEOutput(terms, likelihood, log_px, tuple(draws), z)

    def _observed(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Return the data as floating-point numbers, NaN for entries that the mask leaves out."""
        if not x.is_floating_point():
            dtypes = (p.dtype for p in self.parameters() if p.is_floating_point())
            x = x.to(next(dtypes, torch.get_default_dtype()))
        return x if mask is None else self.likelihood.with_mask(x, mask)

    def decode(self, z: Tensor, context: Tensor | None = None) -> Distribution:
        """Return p(x given z) for ``z`` ``(*S, *L)``. With a context ``(B, ...)``, S ends in B."""
        params = at_least_float32(self._decoder_output(z, context))
        event_ndim = params.dim() - 1 - (self.likelihood.num_params > 1)
        batch_shape = z.shape[: z.dim() - len(self.latent_shape)]
        params = params.reshape(*batch_shape, *params.shape[1:])
        likelihood: Distribution = self.likelihood(params, event_ndim, context)
        return likelihood

    def _decoder_output(self, z: Tensor, context: Tensor | None) -> Any:
        rows = within_range(z.reshape(-1, *self.latent_shape))  # (K * B, *L)
        if context is None:
            return self.decoder(rows)
        batch_shape = z.shape[: z.dim() - len(self.latent_shape)]
        if batch_shape[-1:] != context.shape[:1]:
            raise ValueError(
                f"a context of {len(context)} rows does not fit latents of batch shape "
                f"{tuple(batch_shape)}: give one row per example, the last of these sizes"
            )
        return self.decoder(rows, repeat_rows(within_range(context), len(rows)))

    def reconstruct(
        self, x: Tensor, context: Tensor | None = None, *, mask: Tensor | None = None
    ) -> Tensor:
        """Return the center of p(x given z) at the posterior's center, ``(B, *E)``.

        The center is the mean, or the most probable of unordered classes (int64). It has no
        gradients.
        """
        with torch.no_grad():
            inputs = self.likelihood.encoder_input(self._observed(x, mask))
            _, z = self.infer(inputs, context, draw_point_estimate)
            return self._values(self.decode(z, context), center=True)[0]

    def sample(
        self, num_samples: int, context: Tensor | None = None, *, mean: bool = False
    ) -> Tensor:
        """Draw data from the model, without gradients.

        Args:
            num_samples: Number of draws ``n``.
            context: Context of the draws, ``(B, ...)``.
            mean: True returns the center of p(x given z) at the drawn z instead of a draw: its
                mean, or the most probable of unordered classes.

        Returns:
            ``(n, *E)``, or ``(n, B, *E)`` with a context. Draws of classes, levels and counts, and
            centers of unordered classes, are int64, all others are floating-point numbers.
        """
        with torch.no_grad():
            likelihood = self.decode(self.generate(num_samples, context), context)
            return self._values(likelihood, center=mean)

    def _values(self, likelihood: Distribution, *, center: bool) -> Tensor:
        """Return the center or a draw of p(x given z), int64 if it holds classes or counts."""
        values = likelihood.point_estimate() if center else likelihood.sample()
        part = self.likelihood
        is_integer = part.centers_are_integers if center else part.draws_integers
        return values.long() if is_integer else values

    def check(
        self, x: Tensor, context: Tensor | None = None, *, mask: Tensor | None = None
    ) -> VAEOutput:
        """Raise, with the remedy, if ``x`` and the parts do not fit together.

        Two examples pass through encoder and decoder, and all of ``x`` through the likelihood's
        check of its support. Nothing is drawn, and the model does not change.

        Returns:
            The output for the two examples at their posteriors' centers.
        """
        name = type(self).__name__
        if x.dim() < 2 or len(x) == 0:
            raise ValueError(f"{name} expects x of shape (B, *E) with B >= 1, got {tuple(x.shape)}")
        if context is not None and len(context) != len(x):
            raise ValueError(
                f"{name} expects one row of context per example, got {len(context)} for {len(x)}"
            )
        if mask is not None:
            x = self._observed(x, mask)
        in_support = self.likelihood.check_support(x)
        require_exact(x, self._observed(x[:1], None).dtype, name)
        self.likelihood.check_context(context)
        two, context = self._observed(x[:2], None), None if context is None else context[:2]
        with evaluating(self), torch.no_grad():
            self.likelihood.input_shape(x.shape[1:])
            inputs = self.likelihood.encoder_input(two)
            check_prior(lambda: self.prior_given(context))
            terms, z = call_part(
                self.inference,
                inputs,
                lambda: self.infer(inputs, context, draw_checked_point_estimate(len(two))),
            )
            check_supports(terms)
            output = call_part("decoder", z[0], lambda: self._decoder_output(z, context))
            expected = self.likelihood.param_shape(x.shape[1:])
            if not isinstance(output, Tensor) or output.shape[1:] != expected:
                raise ValueError(
                    f"{self.likelihood} on data of shape {tuple(x.shape[1:])} needs a decoder that "
                    f"returns {tuple(expected)} per example, got {describe_output(output)}: "
                    f"give it out_shape={tuple(expected)}, or build {name} with "
                    f"data_shape={tuple(x.shape[1:])}"
                )
            record = self._record(two, terms, z, context)
            mixes = mixes_rows(lambda rows: self._decoder_output(rows, context), z[0])
        if mixes or in_support is False:
            record.likelihood.is_density = False
        return record

    def init_output_bias(self, x: Tensor) -> None:
        """Set the bias of the decoder's last layer so that training starts from the data's mean.

        A convolution (1-d, 2-d or 3-d, also transposed) has one bias per channel, which the mean of
        the channel sets.

        Args:
            x: Data ``(N, *E)``, such as all training data.
        """
        set_output_bias(self.decoder, self.likelihood, self._observed(x, None))

    def extra_repr(self) -> str:
        """Return the latent shape, for ``repr``."""
        return f"latent_shape={tuple(self.latent_shape)}"
