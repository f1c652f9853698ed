"""What models with latent variables share: a decoder, a likelihood, and one pass."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace as replaced
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tinyvae.core.module_state import evaluating, frozen, preserved_statistics
from tinyvae.distributions import Distribution, ReshapedBatch, Wrapper
from tinyvae.distributions.special import at_least_float32
from tinyvae.encoders import Encoder
from tinyvae.likelihoods import Likelihood
from tinyvae.models.checks import (
    Draw,
    attempt,
    check_prior,
    check_supports,
    checked_point_estimate,
    expect,
    point_estimate,
    shape_of,
)
from tinyvae.models.output import LatentTerm, LatentVariableModel, VAEOutput
from tinyvae.models.serialization import describe_model, load_model, save_model

DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
LAYERS = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
Model = TypeVar("Model", bound="DecoderModel")


class DecoderModel(LatentVariableModel):
    """A model whose decoder turns a latent into p(x given z), however the latent came about.

    A model says by :meth:`infer` how latents are drawn given x, and by :meth:`generate` how they
    are drawn without. Everything else is here.

    Args:
        parts: The arguments that build it, in their order, by name.

    Attributes:
        decoder: Any module that maps latents ``(N, *L)`` to the likelihood's parameters
            ``(N, P, *E)``, or ``(N, *E)`` where ``P`` is 1. It is called with the context as
            second argument where there is one.
        likelihood: Module that turns them into p(x given z).
        latent_shape: Shape of the latent that the decoder reads.
    """

    decoder: nn.Module
    likelihood: Likelihood
    latent_shape: torch.Size
    inference = "encoder"  # for errors
    posterior_parts: tuple[str, ...] = ("encoder",)

    def __init__(self, parts: Mapping[str, nn.Module | Sequence[nn.Module]]) -> None:
        super().__init__()
        owner, such = type(self).__name__, "such as MLP(latent_dim, out_shape=data_shape)"
        expect(owner, parts["decoder"], nn.Module, "decoder", such)
        expect(owner, parts["likelihood"], Likelihood, "likelihood", "such as GaussianLikelihood()")
        self._arguments = tuple(parts)
        for name, part in parts.items():
            self.add_module(name, part if isinstance(part, nn.Module) else nn.ModuleList(part))

    @abstractmethod
    def infer(
        self, inputs: Tensor, context: Tensor | None, draw: Draw
    ) -> tuple[tuple[LatentTerm, ...], Tensor]:
        """Draw latents given what the encoder is fed.

        Args:
            inputs: What the encoder is fed, ``(B, ...)``.
            context: What the model is conditioned on, ``(B, ...)``.
            draw: Called for every posterior in turn.

        Returns:
            The latent terms, and the latent that the decoder reads, ``(K, B, *L)``.
        """

    @abstractmethod
    def generate(self, num_samples: int, context: Tensor | None) -> Tensor:
        """Draw latents for the decoder of the prior, ``(n, *L)``, or ``(n, B, *L)`` given context.

        (A prior that reads no context is drawn for each row of it.)
        """

    @abstractmethod
    def prior_given(self, context: Tensor | None) -> Distribution:
        """p(z) of the top layer, given the context where it reads one."""

    def config(self) -> dict[str, Any]:
        """Arguments that build an equal model, for its file."""
        parts = ((name, self.get_submodule(name)) for name in self._arguments)
        return {n: list(p) if isinstance(p, nn.ModuleList) else p for n, p in parts}

    @property
    def couples_batch(self) -> bool:
        """Whether an example's likelihood depends on the others of its batch."""
        return self.likelihood.couples_batch

    def elements(self, x: Tensor) -> int:
        """Elements of a datum, or of the decoder's output for it, whichever are more."""
        return max(super().elements(x), self.likelihood.param_shape(x.shape[1:]).numel())

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        num_samples: int = 1,
        frozen_posterior: bool = False,
    ) -> VAEOutput:
        """Draw ``num_samples`` latents for each of ``x`` ``(B, *E)`` and record the pass.

        Args:
            x: Data.
            context: What the model is conditioned on, ``(B, ...)``.
            mask: Which entries were observed, ``(B, *E)``; those that are NaN were not. The
                likelihood must be :class:`~tinyvae.likelihoods.MaskedLikelihood` then.
            num_samples: Number of draws ``K``.
            frozen_posterior: Score the draws by posteriors that have gradients in the latents, but
                none in the weights, as in "sticking the landing" (Roeder, Wu, Duvenaud 2017,
                arXiv:1703.09194). Posteriors whose draws are not reparameterized stay as they are.
        """
        if num_samples < 1:
            raise ValueError(f"{type(self).__name__} expects num_samples >= 1, got {num_samples}")
        x = self._observed(x, mask)
        inputs = self.likelihood.encoder_input(x)
        draws: list[Tensor] = []

        def draw(_: torch.Size, posterior: Distribution) -> tuple[Tensor, Tensor | None]:
            shape, log_q = (num_samples,)[len(posterior.batch_shape) - 1 :], None
            if posterior.yields_log_prob:
                z, log_q = posterior.sample_and_log_prob(shape)
            else:
                z = posterior.sample(shape)
            draws.append(z)
            return z, log_q

        terms, z = self.infer(inputs, context, draw)
        record = self._record(x, terms, z, context, draws)
        return self.freeze_posterior(record, x, context) if frozen_posterior else record

    def freeze_posterior(
        self,
        record: VAEOutput,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Tensor | None = None,
    ) -> VAEOutput:
        """Score a record's draws by posteriors without gradients in the weights.

        Args:
            record: What :meth:`forward` returned for the arguments that follow.
            x: Data.
            context: What the model is conditioned on.
            mask: Which entries were observed.
        """
        again = (part for name, part in self.named_children() if name != "decoder")
        layers = (layer for part in again for layer in part.modules())
        if any(isinstance(m, DROPOUT) and m.training and m.p for m in layers):
            raise ValueError(
                "draws are scored in a second pass, where dropout would leave out others: use "
                "estimator='pathwise', or no dropout but in the decoder"
            )
        inputs = self.likelihood.encoder_input(self._observed(x, mask))
        draws = iter(record.draws)
        with frozen(self), preserved_statistics(self):
            scored, _ = self.infer(inputs, context, lambda *_: (next(draws), None))
        latents = (
            # What is not scored by weights need not be frozen, and its codebook has moved since.
            replaced(term, posterior=_Frozen(again.posterior, self), drawn_log_q=None)
            if term.posterior.depends_on_parameters and term.posterior.has_rsample
            else term
            for term, again in zip(record.latents, scored, strict=True)
        )
        return replaced(record, latents=tuple(latents))

    def posterior_parameters(self) -> list[nn.Parameter]:
        """Parameters of the posterior, as against those of the generative model."""
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
        return VAEOutput(terms, likelihood, likelihood.log_prob(x), tuple(draws), z)

    def _observed(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Data as floating-point numbers, NaN where the mask says that they are missing."""
        if not x.is_floating_point():
            dtypes = (p.dtype for p in self.parameters() if p.is_floating_point())
            x = x.to(next(dtypes, torch.get_default_dtype()))
        return x if mask is None else self.likelihood.with_mask(x, mask)

    def decode(self, z: Tensor, context: Tensor | None = None) -> Distribution:
        """Return p(x given z) for ``z`` ``(*S, *L)``; with a context ``(B, ...)``, S ends in B."""
        params = at_least_float32(self._decoder_output(z, context))
        event_ndim = params.dim() - 1 - (self.likelihood.num_params > 1)
        batch_shape = z.shape[: z.dim() - len(self.latent_shape)]
        params = params.reshape(*batch_shape, *params.shape[1:])
        likelihood: Distribution = self.likelihood(params, event_ndim, context)
        return likelihood

    def _decoder_output(self, z: Tensor, context: Tensor | None) -> Tensor:
        rows = z.reshape(-1, *self.latent_shape)  # (K * B, *L)
        if context is None:
            output: Tensor = self.decoder(rows)
        else:
            batch = z.shape[: z.dim() - len(self.latent_shape)]
            if batch[-1:] != context.shape[:1]:
                raise ValueError(
                    f"a context of {len(context)} rows does not fit latents of batch shape "
                    f"{tuple(batch)}: expected one row per example, the last of these"
                )
            output = self.decoder(rows, repeated(context, len(rows)))
        return output

    def reconstruct(
        self, x: Tensor, context: Tensor | None = None, *, mask: Tensor | None = None
    ) -> Tensor:
        """Center of p(x given z) at the posterior's center, ``(B, *E)``, without gradients.

        The center is the mean, or of classes without an order the most probable one.
        """
        with torch.no_grad():
            inputs = self.likelihood.encoder_input(self._observed(x, mask))
            _, z = self.infer(inputs, context, point_estimate)
            return self.decode(z, context).point_estimate()[0]

    def sample(
        self, num_samples: int, context: Tensor | None = None, *, mean: bool = False
    ) -> Tensor:
        """Draw data from the model, without gradients.

        Args:
            num_samples: Number of draws ``n``.
            context: What to condition on, ``(B, ...)``.
            mean: Return the center of p(x given z) at the drawn z instead of a draw: its mean, or
                of classes without an order the most probable one.

        Returns:
            ``(n, *E)``, or ``(n, B, *E)`` with a context.
        """
        with torch.no_grad():
            likelihood = self.decode(self.generate(num_samples, context), context)
            return likelihood.point_estimate() if mean else likelihood.sample()

    def check(
        self, x: Tensor, context: Tensor | None = None, *, mask: Tensor | None = None
    ) -> VAEOutput:
        """Raise, with the remedy, if ``x`` and the parts do not fit together.

        Runs two examples through encoder and decoder, and all of ``x`` through the likelihood's
        check of its support. Draws nothing and leaves the model as it was.

        Returns:
            The record of the two examples at their posteriors' centers.
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
        self.likelihood.check_context(context)
        two, context = self._observed(x[:2], None), None if context is None else context[:2]
        with evaluating(self), torch.no_grad():
            self.likelihood.input_shape(x.shape[1:])
            inputs = self.likelihood.encoder_input(two)
            check_prior(lambda: self.prior_given(context))
            terms, z = attempt(
                self.inference,
                inputs,
                lambda: self.infer(inputs, context, checked_point_estimate(len(two))),
            )
            check_supports(terms)
            output = attempt("decoder", z[0], lambda: self._decoder_output(z, context))
            expected = self.likelihood.param_shape(x.shape[1:])
            if not isinstance(output, Tensor) or output.shape[1:] != expected:
                raise ValueError(
                    f"{self.likelihood} on data of shape {tuple(x.shape[1:])} needs a decoder that "
                    f"returns {tuple(expected)} per example, got {shape_of(output)}: "
                    f"give it out_shape={tuple(expected)}"
                )
            record = self._record(two, terms, z, context)
        if in_support is False:
            record.likelihood.is_density = False
        return record

    def init_output_bias(self, x: Tensor) -> None:
        """Set the bias of the decoder's last layer so that training starts from the data's mean.

        Where that layer is a convolution, which has one bias per channel, from the channels' means.

        Args:
            x: Data ``(N, *E)``, such as all training data.
        """
        x = self._observed(x, None)
        biases = [
            layer.bias
            for layer in self.decoder.modules()
            if isinstance(layer, LAYERS) and isinstance(layer.bias, nn.Parameter)
        ]
        last = biases[-1] if biases else None
        shape = self.likelihood.param_shape(x.shape[1:])
        if last is not None and x.dim() == 4 and last.numel() == shape[:-2].numel():
            x = x.movedim(1, -1).reshape(-1, x.shape[1], 1, 1)  # every pixel is a datum of its own
        params = self.likelihood.params_for_mean(x)
        if last is None or last.numel() != params.numel():
            raise ValueError(
                "init_output_bias expects a decoder that ends in a linear or convolutional layer with "
                f"a bias for {self.likelihood}'s {tuple(shape)}, got {self.decoder!r:.200}"
            )
        with torch.no_grad():
            last.copy_(params.flatten())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights and composition to one file (safetensors, no pickle), atomically."""
        save_model(self, self.config(), path)

    def description(self) -> dict[str, Any]:
        """What a file says of the model besides its weights.

        Raises:
            TypeError: If a file could not say how the parts hang together.
        """
        return describe_model(self, self.config())

    @classmethod
    def load(
        cls: type[Model],
        path: str | os.PathLike[str],
        *,
        parts: Iterable[type[nn.Module]] = (),
        replace: Mapping[str, nn.Module] | None = None,
    ) -> Model:
        """Read a model that :meth:`save` or a checkpoint wrote, on the CPU, in evaluation mode.

        Args:
            path: The file.
            parts: Your own classes that the file names.
            replace: Modules for those that are not the library's, by name:
                ``{"encoder.network": net}``. They take on the file's weights.

        Raises:
            CheckpointError: If the file is damaged, hostile or does not fit.
            ValueError: If ``replace`` names a module that the file describes itself.
        """
        return load_model(cls, path, tuple(parts), replace)

    def extra_repr(self) -> str:
        """Latent shape, for ``repr``."""
        return f"latent_shape={tuple(self.latent_shape)}"


class _Frozen(Wrapper):
    """A posterior that is scored without gradients in a model's weights.

    Some, such as those of flows, read their weights only then.
    """

    def __init__(self, base: Distribution, model: nn.Module) -> None:
        super().__init__(base)
        self.model = model

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density or mass, nats, with gradients in ``value`` alone."""
        with frozen(self.model):
            return self.base.log_prob(value)

    def elementwise_log_prob(self, value: Tensor) -> Tensor:
        """Log density of each element, nats, with gradients in ``value`` alone."""
        with frozen(self.model):
            return self.base.elementwise_log_prob(value)


def conditional(encoder: Encoder, z: Tensor, context: Tensor | None) -> ReshapedBatch:
    """Density that an encoder gives at each of ``z`` ``(K, B, *L)``."""
    rows = z.flatten(0, 1)
    given = None if context is None else repeated(context, len(rows))
    return ReshapedBatch(encoder(rows, given), z.shape[:2])


def drawn(prior: Distribution, num_samples: int, context: Tensor | None) -> Tensor:
    """Draws ``(n, *L)``, or ``(n, B, *L)`` given context, be it read or not."""
    batch = () if context is None else (len(context),)
    missing = batch[len(prior.batch_shape) :]
    return prior.sample((num_samples, *missing))


def repeated(context: Tensor, rows: int) -> Tensor:
    """Context of ``(K, B)`` latents in rows."""
    return context.repeat(rows // len(context), *[1] * (context.dim() - 1))
