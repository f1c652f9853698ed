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
        self._z: dict[str, Tensor] = {}  # (1, B, *L)
        self._x: Tensor | None = None

    def _priors(self) -> dict[str, Callable[[], Distribution]]:
        def top() -> Distribution:
            return self.model.prior_given(self.context)

        def generated(generator: Encoder, above: str) -> Callable[[], Distribution]:
            return lambda: conditional_density(generator, self._z[above], self.context)

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
            if name == DATA:
                likelihood = self._likelihood()
                data_codec(likelihood, summary).push(stack, symbols_of(likelihood, x))
            elif is_push:
                self._prior_codec(name, self.priors[name]()).push(stack, self._symbols[name])
            else:
                posterior = self._posterior(name)
                symbols = posterior_codec(posterior, self.grids[name]).pop(stack)
                self._keep(name, symbols, posterior)

    def decode(self, stack: Stack, summary: DataSummary) -> Tensor:
        """Pop data ``(B, *E)``."""
        for name, is_push in reversed(list(self.moves())):
            if name == DATA:
                likelihood = self._likelihood()
                self._x = values_of(likelihood, data_codec(likelihood, summary).pop(stack))
            elif is_push:
                prior = self.priors[name]()
                self._keep(name, self._prior_codec(name, prior).pop(stack), prior)
            else:
                codec = posterior_codec(self._posterior(name), self.grids[name])
                codec.push(stack, self._symbols[name])
        return cast("Tensor", self._x)

    def _keep(self, name: str, symbols: Array, source: Distribution) -> None:
        self._symbols[name] = symbols
        self._z[name] = latent_of(symbols, source, self.grids[name])

    def _prior_codec(self, name: str, prior: Distribution) -> Codec:
        return prior_codec(prior, self.grids[name], self.num_rows)

    def _likelihood(self) -> Distribution:
        """Return p(x given z), of batch shape ``(1, B)``."""
        prior = self.model.prior_given(self.context)
        if isinstance(self.model, TwoLevelVAE):
            z = torch.cat([self._z[name].flatten(2) for name in self.priors], 2)
        elif isinstance(prior, JointDistribution):
            z = prior.concatenate([self._z[name] for name in self.priors])
        else:
            z = self._z[next(iter(self.priors))]
        return self.model.likelihood_given(z, self.context)

    def _posterior(self, name: str) -> Distribution:
        """Return the posterior of a latent, given the data and the latents drawn before it."""
        layer = self.drawn.index(name)
        if isinstance(self.model, BottomUpVAE) and layer:  # the decoder has no data yet
            encoder = cast("Encoder", self.model.encoders[layer])
            return conditional_density(encoder, self._z[self.drawn[layer - 1]], self.context)
        seen: list[Distribution] = []

        def draw(shape: torch.Size, posterior: Distribution) -> tuple[Tensor, None]:
            seen.append(posterior)
            drawn = self.drawn[len(seen) - 1]
            if drawn in self._z:
                return self._z[drawn], None
            return draw_point_estimate(shape, posterior)

        inputs = self.model.likelihood.encoder_input(cast("Tensor", self._x))
        self.model.infer(inputs, self.context, draw)
        return seen[layer]


def _itself(p: Distribution) -> Distribution:
    return p
