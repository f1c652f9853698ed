r"""The variational autoencoder.

.. math:: x \to q(z \mid x) \to z \to p(x \mid z), \qquad
    \log w = \log p(x \mid z) + \log p(z) - \log q(z \mid x)

One pass returns one record, :class:`~tinyvae.VAEOutput`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tinyvae import files, parts
from tinyvae.distributions import Distribution
from tinyvae.encoders import Encoder
from tinyvae.likelihoods import Likelihood
from tinyvae.priors import Prior, StandardNormal
from tinyvae.record import LatentTerm, LatentVariableModel, VAEOutput
from tinyvae.scopes import evaluating, forked_rng

__all__ = ["VAE"]

PART_NAMES = ("encoder", "decoder", "likelihood", "prior")


class VAE(LatentVariableModel):
    """Variational autoencoder with one stochastic layer.

    Args:
        encoder: Module that returns q(z given x).
        decoder: Any module that maps latents ``(N, *L)`` to the likelihood's parameters
            ``(N, P, *E)``, or ``(N, *E)`` where ``P`` is 1. It is called with the context as
            second argument where there is one.
        likelihood: Module that turns them into p(x given z).
        prior: Module that returns p(z), by default N(0, I).

    Shape:
        x: ``(B, *E)``; z: ``(K, B, *L)``; log densities: ``(K, B)``, nats.

    References:
        Kingma, Welling (2014). Auto-Encoding Variational Bayes. arXiv:1312.6114.

    Example:
        >>> encoder = GaussianEncoder(MLP((1, 28, 28), hidden=(400,)), latent_dim=20)
        >>> vae = VAE(encoder, MLP(20, out_shape=(1, 28, 28)), BernoulliLikelihood())
        >>> vae(torch.zeros(5, 1, 28, 28), num_samples=3).log_weight().shape
        torch.Size([3, 5])
        >>> vae.sample(64).shape
        torch.Size([64, 1, 28, 28])
    """

    def __init__(
        self,
        encoder: Encoder,
        decoder: nn.Module,
        likelihood: Likelihood,
        prior: Prior | None = None,
    ) -> None:
        super().__init__()
        _expect(encoder, Encoder, "encoder", "wrap a network: GaussianEncoder(network, latent_dim)")
        _expect(decoder, nn.Module, "decoder", "such as MLP(latent_dim, out_shape=data_shape)")
        _expect(likelihood, Likelihood, "likelihood", "such as BernoulliLikelihood()")
        prior = StandardNormal(encoder.latent_shape) if prior is None else prior
        _expect(prior, Prior, "prior", "such as StandardNormal(encoder.latent_shape)")
        if prior.latent_shape != encoder.latent_shape:
            raise ValueError(
                f"VAE expects a prior over the encoder's latents {tuple(encoder.latent_shape)}, "
                f"got one over {tuple(prior.latent_shape)}"
            )
        self.encoder = encoder
        self.decoder = decoder
        self.likelihood = likelihood
        self.prior = prior

    @property
    def latent_shape(self) -> torch.Size:
        """Shape of one latent."""
        return self.encoder.latent_shape

    @property
    def is_density(self) -> bool:
        """Whether posterior and likelihood are densities."""
        return self.encoder.is_density and self.likelihood.is_density

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
    ) -> VAEOutput:
        """Draw ``num_samples`` latents for each of ``x`` ``(B, *E)`` and record the pass.

        What ``mask`` ``(B, *E)`` leaves out is missing, as is what is NaN: the likelihood must be
        :class:`~tinyvae.Masked` then.
        """
        if num_samples < 1:
            raise ValueError(f"VAE expects num_samples >= 1, got {num_samples}")
        x = self._observed(x, mask)
        posterior = self._posterior(x, context)
        z = posterior.sample((num_samples,))  # (K, B, *L)
        return self._record(x, z, posterior, context)

    def _record(
        self, x: Tensor, z: Tensor, posterior: Distribution, context: Tensor | None
    ) -> VAEOutput:
        likelihood = self.decode(z, context)
        term = LatentTerm("z", z, posterior, self.prior(context, encoder=self.encoder))
        return VAEOutput((term,), likelihood, likelihood.log_prob(x))

    def _observed(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Data as floating-point numbers, NaN where the mask says that they are missing."""
        if not x.is_floating_point():
            dtypes = (p.dtype for p in self.parameters() if p.is_floating_point())
            x = x.to(next(dtypes, torch.get_default_dtype()))
        return x if mask is None else self.likelihood.with_mask(x, mask)

    def encode(
        self, x: Tensor, context: Tensor | None = None, *, mask: Tensor | None = None
    ) -> Distribution:
        """Return q(z given x)."""
        return self._posterior(self._observed(x, mask), context)

    def _posterior(self, observed: Tensor, context: Tensor | None) -> Distribution:
        inputs = self.likelihood.encoder_input(observed)
        posterior: Distribution = self.encoder(inputs, context)
        return posterior

    def decode(self, z: Tensor, context: Tensor | None = None) -> Distribution:
        """Return p(x given z) for ``z`` ``(*S, *L)``; with a context ``(B, ...)``, S ends in B."""
        params = self._decoder_output(z, context)
        if params.dtype in (torch.float16, torch.bfloat16):  # of autocast: densities need digits
            params = params.float()
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
            repeats = len(rows) // len(context)
            output = self.decoder(rows, context.repeat(repeats, *[1] * (context.dim() - 1)))
        return output

    def reconstruct(
        self, x: Tensor, context: Tensor | None = None, *, mask: Tensor | None = None
    ) -> Tensor:
        """Center of p(x given z) at the posterior's mean, ``(B, *E)``, without gradients.

        The center is the mean, or of classes without an order the most probable one.
        """
        with torch.no_grad():
            return self.decode(self.encode(x, context, mask=mask).mean, context).center()

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
            prior: Distribution = self.prior(context, encoder=self.encoder)
            batch = () if context is None else (len(context),)
            missing = batch[len(prior.batch_shape) :]  # a prior that reads no context has none
            z = prior.sample((num_samples, *missing))
            likelihood = self.decode(z, context)
            return likelihood.center() if mean else likelihood.sample()

    def check(
        self, x: Tensor, context: Tensor | None = None, *, mask: Tensor | None = None
    ) -> VAEOutput:
        """Raise, with the remedy, if ``x`` and the parts do not fit together.

        Runs two examples through encoder and decoder, and all of ``x`` through the likelihood's
        check of its support. Draws nothing and leaves the model as it was.

        Returns:
            The record of the two examples at their posteriors' means.
        """
        if x.dim() < 2 or len(x) == 0:
            raise ValueError(f"VAE expects x of shape (B, *E) with B >= 1, got {tuple(x.shape)}")
        if context is not None and len(context) != len(x):
            raise ValueError(
                f"VAE expects one row of context per example, got {len(context)} for {len(x)}"
            )
        if mask is not None:
            x = self._observed(x, mask)
        in_support = self.likelihood.check_support(x)
        self.likelihood.check_context(context)
        two, context = self._observed(x[:2], None), None if context is None else context[:2]
        with evaluating(self), torch.no_grad():
            self.likelihood.input_shape(x.shape[1:])
            inputs = self.likelihood.encoder_input(two)
            posterior = _attempt("encoder", inputs, lambda: self._posterior(two, context))
            self._check_posterior(posterior, len(two))
            z = posterior.mean.unsqueeze(0)  # (1, B, *L)
            output = _attempt("decoder", z[0], lambda: self._decoder_output(z, context))
            expected = self.likelihood.param_shape(x.shape[1:])
            if not isinstance(output, Tensor) or output.shape[1:] != expected:
                raise ValueError(
                    f"{self.likelihood} on data of shape {tuple(x.shape[1:])} needs a decoder that "
                    f"returns {tuple(expected)} per example, got {_shape(output)}: "
                    f"give it out_shape={tuple(expected)}"
                )
            record = self._record(two, z, posterior, context)
        if in_support is False:
            record.likelihood.is_density = False
        return record

    def _check_posterior(self, posterior: object, batch: int) -> None:
        if not isinstance(posterior, Distribution):
            raise TypeError(
                f"an encoder must return a Distribution, q(z given x), got a "
                f"{type(posterior).__name__}: wrap its network as GaussianEncoder(network, "
                "latent_dim), or return Independent(Normal(mean, log_std), 1)"
            )
        got = (posterior.batch_shape, posterior.event_shape)
        if got != (torch.Size((batch,)), self.latent_shape):
            raise ValueError(
                f"the encoder's posterior should have batch_shape {(batch,)} and event_shape "
                f"latent_shape = {tuple(self.latent_shape)}, got {posterior}"
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights and composition to one file (safetensors, no pickle), atomically."""
        self._check_savable()
        composition = {name: parts.describe(part) for name, part in self.named_children()}
        files.save_tensors(path, self.state_dict(), {"model": "VAE", "parts": composition})

    def _check_savable(self) -> None:
        """Raise where a file could not say how the parts hang together."""
        extra = {name for name, _ in self.named_children()} - set(PART_NAMES)
        if extra:
            raise TypeError(f"a VAE's file holds {PART_NAMES}, got also {sorted(extra)}: remove it")
        names: dict[nn.Parameter, str] = {}
        for name, parameter in self.named_parameters(remove_duplicate=False):
            if parameter in names:
                raise TypeError(
                    f"'{names[parameter]}' and '{name}' are one parameter, which a file cannot "
                    "say: give each part its own, or save the state_dict"
                )
            names[parameter] = name

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        parts: Iterable[type[nn.Module]] = (),
        replace: Mapping[str, nn.Module] | None = None,
    ) -> VAE:
        """Read a model that :meth:`save` wrote, on the CPU, in evaluation mode.

        Args:
            path: The file.
            parts: Your own classes that the file names.
            replace: Modules for those that are not the library's, by name:
                ``{"encoder.network": net}``. They take on the file's weights.

        Raises:
            CheckpointError: If the file is damaged, hostile or does not fit.
            ValueError: If ``replace`` names a module that the file describes itself.
        """
        tensors, info = files.load_tensors(path)
        try:
            return _from_file(cls, tensors, info, tuple(parts), replace).eval()
        except (files.CheckpointError, RecursionError) as error:
            raise files.CheckpointError(f"{os.fspath(path)}: {error}") from error

    def extra_repr(self) -> str:
        """Latent shape, for ``repr``."""
        return f"latent_shape={tuple(self.latent_shape)}"


def _from_file(
    cls: type[VAE],
    tensors: dict[str, Tensor],
    info: dict[str, Any],
    own_parts: tuple[type[nn.Module], ...],
    replace: Mapping[str, nn.Module] | None,
) -> VAE:
    composition = info.get("parts")
    if info.get("model") != "VAE" or not isinstance(composition, dict):
        raise files.CheckpointError(f"expected the file of a VAE, got {info.get('model')!r:.80}")

    def build() -> VAE:
        built = {
            name: parts.build(description, own_parts, replace, name=name)
            for name, description in composition.items()
        }
        try:
            return cls(**built)
        except (TypeError, ValueError) as error:
            raise files.CheckpointError(f"the file's parts make no VAE: {error}") from error

    # Sizes are compared before anything is allocated: a file may claim any number of weights.
    with torch.device("meta"):
        parts.matching_state(build(), tensors)
    unused = set(replace or ()) - parts.foreign_names(composition)
    if unused:
        raise ValueError(
            f"replace names {sorted(unused)}, which are no foreign modules of this file: expected "
            f"of {sorted(parts.foreign_names(composition))}"
        )
    with forked_rng(torch.device("cpu")):
        vae = build()
    floating = [t.dtype for t in tensors.values() if t.is_floating_point()]
    if floating:
        vae.to(dtype=floating[0])
    vae.load_state_dict(tensors, assign=True)
    return vae


def _expect(value: object, cls: type, name: str, remedy: str) -> None:
    if not isinstance(value, cls):
        raise TypeError(
            f"VAE expects as {name} a {cls.__name__}, got a {type(value).__name__}: {remedy}"
        )


def _shape(value: object) -> str:
    return str(tuple(value.shape[1:])) if isinstance(value, Tensor) else type(value).__name__


def _attempt(role: str, value: Tensor, call: Any) -> Any:
    """Call a part; say which one failed on what."""
    try:
        return call()
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise ValueError(
            f"the {role} does not accept a batch of shape {tuple(value.shape)} and {value.dtype}"
            f" (is its in_shape {tuple(value.shape[1:])}, does it take the context?): {error}"
        ) from error
