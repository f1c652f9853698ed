"""Parts of a model as functions of tensors."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tinyvae.core.objective import checked_data
from tinyvae.distributions import Distribution
from tinyvae.export.noise import ExplicitNoise, RandomDraw
from tinyvae.models.base import DecoderModel
from tinyvae.models.latents import draw_point_estimate


class ExportedPart(nn.Module, ABC):
    """A function of named tensors, with noise as its last input.

    Attributes:
        draws: Random draws that ``noise`` replaces.
        outputs: Names of the outputs.
    """

    outputs: tuple[str, ...] = ()

    def __init__(self, model: DecoderModel, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, tuple(names)
        self.draws: Sequence[RandomDraw] = ()

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs, ``(B, ...)`` each."""
        named = dict(zip(self.names, inputs, strict=True))
        with checked_data(), torch.no_grad():
            if not self.draws:
                return self.compute(named)
            with ExplicitNoise(named["noise"], self.draws):
                return self.compute(named)

    @abstractmethod
    def compute(self, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Return the outputs. Draws may come from torch's default generator."""

    def _centers(self, p: Distribution) -> Tensor:
        return self.model.likelihood.values_of(p, center=True)


class ExportedEncoder(ExportedPart):
    """From data to the center of q(z given x), and a draw: latents for the decoder."""

    outputs = ("center", "z")

    def compute(self, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Return center and draw, ``(B, *L)`` each."""
        model, context = self.model, inputs.get("context")
        x = model.likelihood.encoder_input(inputs["x"])

        def draw(_: torch.Size, posterior: Distribution) -> tuple[Tensor, None]:
            return posterior.log_form().sample((1,)[len(posterior.batch_shape) - 1 :]), None

        center = model.infer(x, context, draw_point_estimate)[1]
        return center.squeeze(0), model.infer(x, context, draw)[1].squeeze(0)


class ExportedDecoder(ExportedPart):
    """From latents to the center of p(x given z), and the likelihood's parameters."""

    outputs = ("center", "parameters")

    def compute(self, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Return the center ``(B, *E)`` and the parameters ``(B, P, *E)``."""
        z, context = inputs["z"], inputs.get("context")
        rows = (z,) if context is None else (z, context)
        parameters: Tensor = self.model.decoder(*rows)
        return self._centers(self.model.likelihood_given(z, context)), parameters


class ExportedSampler(ExportedPart):
    """From noise to the center of p(x given z), at a draw z of the prior."""

    outputs = ("center",)

    def compute(self, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Return the center, ``(B, *E)``."""
        context = inputs.get("context")
        if context is None:
            z = self.model.generate(inputs["noise"].shape[0], None)
        else:
            z = self.model.generate(1, context).squeeze(0)
        return (self._centers(self.model.likelihood_given(z, context)),)
