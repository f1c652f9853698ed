r"""The moves of bits-back coding: what the encoder pops and pushes, and in which order.

The encoder of a VAE pops z from q(z given x), pushes x to p(x given z) and pushes z to p(z), which
adds :math:`-\log p(x \mid z) - \log p(z) + \log q(z \mid x)` on average: minus the ELBO. The
decoder makes the same moves backwards, and pushes what the encoder popped.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor

from tinyvae.compression.codecs import Codec, Grid
from tinyvae.compression.latents import latent_of, posterior_codec, prior_codec
from tinyvae.compression.likelihoods import DataSummary, data_codec, symbols_of, values_of
from tinyvae.compression.stack import Array, Stack
from tinyvae.distributions import Distribution, JointDistribution
from tinyvae.encoders import Encoder
from tinyvae.models import VAE, BottomUpVAE, LadderVAE, TwoLevelVAE
from tinyvae.models.base import DecoderModel
from tinyvae.models.latents import conditional_density, draw_point_estimate

DATA = "x"


class BatchCoder:
    """Encoder and decoder of one batch.

    Args:
        model: Model of the examples, in float64.
        context: Context of the examples, ``(B, ...)``.
        num_rows: Number of examples ``B``.
        grids: Bins of the latents by name, None for discrete ones.

    Attributes:
        priors: Functions that return the prior of each latent, from the data upward.

    Raises:
        TypeError: If the model is of an unknown kind.
    """

    def __init__(
        self,
        model: DecoderModel,
        context: Tensor | None,
        num_rows: int,
        grids: Mapping[str, Grid | None],
    ) -> None:
        self.model, self.context = model, context
        self.num_rows, self.grids = num_rows, grids
        self.priors = self._priors()
        self.drawn = list(self.priors)  # in the order in which the model infers them
        if isinstance(model, (LadderVAE, TwoLevelVAE)):
            self.drawn.reverse()
        self._symbols: dict[str, Array] = {}
        self._x: Tensor | None = None

    def _priors(self) -> dict[str, Callable[[], Distribution]]:
        def top() -> Distribution:
            return self.model.prior_given(self.context)

        def generated(generator: Encoder, above: str) -> Callable[[], Distribution]:
            return lambda: conditional_density(generator, self._latent(above), self.context)

        match self.model:
            case VAE():
                prior = top()
                parts = prior.parts if isinstance(prior, JointDistribution) else {"z": prior}
                return {name: partial(_itself, part) for name, part in parts.items()}
            case TwoLevelVAE():
                return {"z1": generated(self.model.generator, "z2"), "z2": top}
            case BottomUpVAE() | LadderVAE():
                generators = cast("Sequence[Encoder]", self.model.generators)
                lower = {f"z{n}": generated(g, f"z{n + 1}") for n, g in enumerate(generators, 1)}
                return {**lower, f"z{len(generators) + 1}": top}
        raise TypeError(
            "compress expects a VAE, TwoLevelVAE, LadderVAE or BottomUpVAE, got "
            f"{type(self.model).__name__}"
        )

    def moves(self) -> Iterator[tuple[str, bool]]:
        """Yield the encoder's moves: names of latents or of the data, and True for a push."""
        if isinstance(self.model, BottomUpVAE):  # Bit-Swap: pushes come as early as they can
            for name, below in zip(self.drawn, (DATA, *self.drawn), strict=False):
                yield name, False
                yield below, True
            yield self.drawn[-1], True
            return
        yield from ((name, False) for name in self.drawn)
        yield from ((name, True) for name in (DATA, *self.priors))

    def encode(self, stack: Stack, x: Tensor, summary: DataSummary) -> None:
        """Push data ``(B, *E)``."""
        self._x = x
        for name, is_push in self.moves():
            codec = self._codec(name, is_push, summary)
            if name == DATA:
                codec.push(stack, symbols_of(self.likelihood(), x))
            elif is_push:
                codec.push(stack, self._symbols[name])
            else:
                self._symbols[name] = codec.pop(stack)

    def decode(self, stack: Stack, summary: DataSummary) -> Tensor:
        """Pop data ``(B, *E)``."""
        for name, is_push in reversed(list(self.moves())):
            codec = self._codec(name, is_push, summary)
            if name == DATA:
                self._x = values_of(self.likelihood(), codec.pop(stack))
            elif is_push:
                self._symbols[name] = codec.pop(stack)
            else:
                codec.push(stack, self._symbols[name])
        return cast("Tensor", self._x)

    def _codec(self, name: str, is_push: bool, summary: DataSummary) -> Codec:
        if name == DATA:
            return data_codec(self.likelihood(), summary)
        if is_push:
            return prior_codec(self.priors[name](), self.grids[name], self.num_rows)
        return posterior_codec(self._posterior(name), self.grids[name])

    def _latent(self, name: str) -> Tensor:
        return latent_of(self._symbols[name], self.priors[name](), self.grids[name])

    def likelihood(self) -> Distribution:
        """Return p(x given z), of batch shape ``(1, B)``."""
        z = [self._latent(name) for name in self.priors]
        if isinstance(self.model, TwoLevelVAE):
            decoder_input = torch.cat([part.flatten(2) for part in z], 2)
        else:
            prior = self.model.prior_given(self.context)
            decoder_input = prior.concatenate(z) if isinstance(prior, JointDistribution) else z[0]
        return self.model.likelihood_given(decoder_input, self.context)

    def _posterior(self, name: str) -> Distribution:
        """Return the posterior of a latent, given the data and the latents drawn before it."""
        seen: list[Distribution] = []

        def draw(shape: torch.Size, posterior: Distribution) -> tuple[Tensor, None]:
            seen.append(posterior)
            drawn = self.drawn[len(seen) - 1]
            if drawn in self._symbols:
                return self._latent(drawn), None
            return draw_point_estimate(shape, posterior)

        inputs = self.model.likelihood.encoder_input(cast("Tensor", self._x))
        self.model.infer(inputs, self.context, draw)
        return seen[self.drawn.index(name)]


def _itself(p: Distribution) -> Distribution:
    return p
