"""Base class of models: a decoder with its likelihood, and the pass through all parts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tinyvae.core.data import as_tensor, to_module
from tinyvae.core.generators import generator_lock
from tinyvae.core.module_state import evaluating, frozen, mixes_examples, preserved_statistics
from tinyvae.core.objective import data_are_checked
from tinyvae.core.random import forked_rng
from tinyvae.distributions import Distribution
from tinyvae.likelihoods import Likelihood
from tinyvae.models.checks import (
    call_part,
    check_prior,
    check_supports,
    mixes_rows,
    refuse_dropout,
    require_part,
)
from tinyvae.models.conditional import draw_given, require_masked
from tinyvae.models.decoding import (
    DecodingModel,
    build_decoder,
    infer_data_shape,
    set_output_bias,
)
from tinyvae.models.inputs import ModelInputs, require_count, table_to_tensor
from tinyvae.models.latents import (
    checked,
    draw_point_estimate,
    frozen_terms,
    recording,
)
from tinyvae.models.output import Draw, Inference, LatentTerm, LatentVariableModel, VAEOutput
from tinyvae.models.saving import SavableModel


class DecoderModel(SavableModel, ModelInputs, DecodingModel, LatentVariableModel):
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
        return self.likelihood.num_dims(self.observed(x, mask))

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

        The parts compute in the modes that they are in, as those of any module. In training mode
        with gradients, running statistics and codebooks move. ``fit`` ends in evaluation mode.

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
        require_count(type(self).__name__, num_samples)
        x, context = self._inputs(x, context, mask)
        draws: list[Tensor] = []
        record = self.output_with(x, context, recording(num_samples, draws))
        self.likelihood.update_statistics(record.likelihood, x)
        record = replace(record, draws=tuple(draws))
        return self.freeze_posterior(record, x, context) if frozen_posterior else record

    def output_with(
        self, x: Tensor, context: Tensor | None, draw: Draw, *, mask: Tensor | None = None
    ) -> VAEOutput:
        """Return the output for points that a rule returns, see :meth:`infer`."""
        x = self.observed(x, mask)
        terms, z = self._inferred(x, context, draw)
        likelihood = (
            self.likelihood_given(z, context)
            if data_are_checked()
            else self._checked_likelihood(z, context, x.shape[1:])
        )
        return VAEOutput(terms, likelihood, likelihood.log_prob(x), z=z)

    def latent_terms(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        num_samples: int = 1,
    ) -> tuple[LatentTerm, ...]:
        """Return the latent terms of :meth:`forward`, without decoding."""
        x, context = self._inputs(x, context, mask)
        return self._inferred(x, context, recording(num_samples, []))[0]

    def _inferred(self, x: Tensor, context: Tensor | None, draw: Draw) -> Inference:
        infer = self.infer if data_are_checked() else self._checked_infer
        return infer(self.likelihood.encoder_input(x), context, draw)

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
        refuse_dropout(part for name, part in self.named_children() if name != "decoder")
        x, context = self._inputs(x, context, mask)
        inputs = self.likelihood.encoder_input(x)
        draws = iter(record.draws)
        with frozen(self), preserved_statistics(self):
            scored, _ = self.infer(inputs, context, lambda *_: (next(draws), None))
        return replace(record, latents=frozen_terms(record.latents, scored, self))

    def posterior_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the posterior, without those of the generative model."""
        parts = (self.get_submodule(name) for name in self.posterior_parts)
        return [parameter for part in parts for parameter in part.parameters()]

    def _checked_infer(self, inputs: Tensor, context: Tensor | None, draw: Draw) -> Inference:
        """Draw latents. Errors name the part that fails, and the remedy."""
        call = partial(self.infer, inputs, context, checked(draw, len(inputs)))
        return call_part(
            self.inference, inputs, call, partial(self._advise_inputs, inputs, context)
        )

    def reconstruct(
        self, x: Tensor, context: Tensor | None = None, *, mask: Tensor | None = None
    ) -> Tensor:
        """Return the center of p(x given z) at the posterior's center, ``(B, *E)``.

        The center is the mean, or the most probable of unordered classes (int64). It has no
        gradients, and is computed in evaluation mode.
        """
        x, context = self._inputs(x, context, mask)
        with evaluating(self), torch.no_grad():
            inputs = self.likelihood.encoder_input(x)
            _, z = self._checked_infer(inputs, context, draw_point_estimate)
            likelihood = self._checked_likelihood(z, context, x.shape[1:])
            return self.likelihood.values_of(likelihood, center=True)[0]

    def sample(
        self,
        num_samples: int,
        context: Tensor | None = None,
        *,
        mean: bool = False,
        given: Tensor | None = None,
    ) -> Tensor:
        """Draw data from the model in evaluation mode, without gradients.

        Args:
            num_samples: Number of draws ``n``.
            context: Context of the draws, ``(B, ...)``.
            mean: True returns the center of p(x given z) at the drawn z instead of a draw: its
                mean, or the most probable of unordered classes.
            given: Examples ``(B, *E)``, or one ``(*E)``, whose NaN entries are drawn given the
                others. It needs a :class:`~tinyvae.likelihoods.MaskedLikelihood`.
                :func:`~tinyvae.evaluation.conditional_draws` also reports how good the draws are.

        Returns:
            ``(n, *E)``, or ``(n, B, *E)`` with a context. Draws of classes, levels and counts, and
            centers of unordered classes, are int64, all others are floating-point numbers. With
            ``given`` it is ``(n, B, *E)``, or ``(n, *E)`` for one example, in the dtype of
            ``given``, whose entries are kept.

        Raises:
            ValueError: If the model gives ``given`` density zero, or no latents that fit it.

        Example:
            >>> vae = VAE.from_shapes(3, latent_dim=2, likelihood=MaskedLikelihood(
            ...     GaussianLikelihood()))
            >>> vae.sample(5, given=torch.tensor([1.0, torch.nan, torch.nan])).shape
            torch.Size([5, 3])
        """
        name = f"{type(self).__name__}.sample"
        require_count(name, num_samples)
        generator_lock().refuse_run_elsewhere(name)
        context = None if context is None else to_module(context, self, name)
        with evaluating(self), torch.no_grad():
            if given is not None:
                data = as_tensor(table_to_tensor(self, given), name)
                return self._sample_given(data, num_samples, context, mean=mean)
            z = self.generate(num_samples, context)
            likelihood = self._checked_likelihood(z, context)
            return self.likelihood.values_of(likelihood, center=mean)

    def _sample_given(
        self, given: Tensor, num_samples: int, context: Tensor | None, *, mean: bool
    ) -> Tensor:
        is_one = given.dim() == 1 or given.shape == self.data_shape
        data = given.unsqueeze(0) if is_one else given
        require_masked(f"{type(self).__name__}.sample", self.likelihood)
        self.check(data, context)
        x = self.observed(to_module(data, self, type(self).__name__), None)
        drawn = draw_given(self, self.likelihood, x, context, num_samples, center=mean)
        drawn.require_enough(f"{type(self).__name__}.sample")
        values = drawn.values.to(data)
        values = torch.where(torch.isnan(data), values, data)  # the model may round data
        return values.squeeze(1) if is_one else values

    def check(
        self, x: Tensor, context: Tensor | None = None, *, mask: Tensor | None = None
    ) -> VAEOutput:
        """Raise, with the remedy, if ``x`` and the parts do not fit together.

        Two examples pass through encoder and decoder, and all of ``x`` through the likelihood's
        check of its support. Nothing is drawn, and the model does not change.

        Returns:
            The output for the two examples at their posteriors' centers.
        """
        x, context, in_support = self._accepted(x, context, mask)
        two, context = x[:2], None if context is None else context[:2]
        with evaluating(self), torch.no_grad():
            self.likelihood.input_shape(x.shape[1:])
            inputs = self.likelihood.encoder_input(two)
            check_prior(lambda: self.prior_given(context))
            terms, z = self._checked_infer(inputs, context, draw_point_estimate)
            check_supports(terms)
            likelihood = self._checked_likelihood(z, context, x.shape[1:])
            mixes = mixes_rows(lambda rows: self._decoder_output(rows, context), z[0])
            with forked_rng(x.device, 0):  # a mechanism may draw missing values
                log_px = likelihood.log_prob(two)
            record = VAEOutput(terms, likelihood, log_px, (), z)
        if mixes or not in_support:
            record.likelihood.is_density = False
        return record

    def init_output_bias(self, x: Tensor) -> None:
        """Set the bias of the decoder's last layer so that training starts from the data's mean.

        A convolution (1-d, 2-d or 3-d, also transposed) has one bias per channel, which the mean of
        the channel sets.

        Args:
            x: Data ``(N, *E)``, such as all training data.
        """
        x, _ = self._accepted_data(x, None)
        set_output_bias(self.decoder, self.likelihood, x)

    def extra_repr(self) -> str:
        """Return the latent shape, for ``repr``."""
        return f"latent_shape={tuple(self.latent_shape)}"
