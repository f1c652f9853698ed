r"""Paths of densities of the latents, from one that can be drawn from to the posterior.

.. math:: \pi_\beta(z) \propto p_0(z) \Big(\frac{p(x, z)}{p_0(z)}\Big)^{\beta}, \qquad
    0 \le \beta \le 1, \qquad p_0(z) = p(z) \text{ or } q(z \mid x)
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from tinyvae.core.objective import checked_data
from tinyvae.core.random import forked_rng
from tinyvae.evaluation.importance import Chunk
from tinyvae.models.latents import recording
from tinyvae.models.output import LatentTerm, LatentVariableModel, VAEOutput
from tinyvae.models.particles import replaying

Start: TypeAlias = Literal["prior", "posterior"]


@dataclass(frozen=True)
class AnnealingPath:
    """Path for the examples of a chunk, over all latents together as vectors ``(K, B, D)``.

    Attributes:
        model: The model, in evaluation mode.
        data: Checked data, context and mask of the examples.
        start: ``"prior"`` or ``"posterior"``, the density :math:`p_0`.
        shapes: Shape ``L`` of each latent, in the order in which the model draws them.

    Example:
        >>> path = AnnealingPath.of(vae, (x, None, None), "prior")
        >>> z = path.draw(5)
        >>> [tuple(tensor.shape) for tensor in (z, *path.log_densities(z))]
        [(5, 8, 2), (5, 8), (5, 8)]
    """

    model: LatentVariableModel
    data: Chunk
    start: Start
    shapes: tuple[torch.Size, ...]

    @classmethod
    def of(cls, model: LatentVariableModel, data: Chunk, start: Start) -> "AnnealingPath":
        """Return the path for data.

        Raises:
            TypeError: If a latent is not a vector of real numbers with a density.
        """
        points: list[Tensor] = []
        x, context, mask = data
        with checked_data():
            output = model.output_with(x, context, recording(1, points), mask=mask)
        for term in output.latents:
            _require_real(term, start)
        return cls(model, data, start, tuple(point.shape[2:] for point in points))

    def output(self, z: Tensor) -> VAEOutput:
        """Return the model's output at latents ``(K, B, D)``."""
        return self._output(self._points(z))

    def log_densities(self, z: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return :math:`\log p_0` and :math:`\log p(x, z) / p_0`, ``(K, B)`` each, nats."""
        output = self.output(z)
        zeros = torch.zeros_like(output.log_px)
        if self.start == "prior":
            return sum((term.log_p for term in output.latents), zeros), output.log_px
        return sum((term.log_q for term in output.latents), zeros), output.log_weight()

    def draw(self, num_chains: int) -> Tensor:
        """Draw from the start of the path, ``(K, B, D)``."""
        points: list[Tensor] = []
        x, context, mask = self.data
        with checked_data(), torch.no_grad():
            output = self.model.output_with(x, context, recording(num_chains, points), mask=mask)
        if self.start == "prior":
            points = self._prior_points(output, points)
        return torch.cat([point.flatten(2) for point in points], 2)

    def _prior_points(self, output: VAEOutput, points: list[Tensor]) -> list[Tensor]:
        """Return draws from the prior, in the order of ``points``.

        The prior of a layer depends on the layers above. All layers are drawn as often as there are
        layers, each time from the same random numbers, so that one more layer from the top does not
        change any more.
        """
        seed = int(torch.randint(2**62, ()))
        for _ in points:
            drawn = list(points)
            with forked_rng(points[0].device, seed), torch.no_grad():
                for term in output.latents:
                    prior = term.prior.log_form()
                    index = next(n for n, point in enumerate(points) if _belongs(point, term))
                    drawn[index] = prior.sample(points[0].shape[: 2 - len(prior.batch_shape)])
                points = drawn
            with torch.no_grad():
                output = self._output(points)
        return points

    def _points(self, z: Tensor) -> list[Tensor]:
        parts = z.split([shape.numel() for shape in self.shapes], 2)
        return [p.reshape(*z.shape[:2], *s) for p, s in zip(parts, self.shapes, strict=True)]

    def _output(self, points: list[Tensor]) -> VAEOutput:
        x, context, mask = self.data
        with checked_data():
            return self.model.output_with(x, context, replaying(points), mask=mask)


def _belongs(point: Tensor, term: LatentTerm) -> bool:
    return point is term.point or point is term.z


def _require_real(term: LatentTerm, start: Start) -> None:
    density = term.prior if start == "prior" else term.posterior
    supports = {term.prior.log_form().support, term.posterior.log_form().support}
    if supports != {"reals"} or not (density.is_density and term.prior.is_density):
        raise TypeError(
            f"annealing from the {start} expects latents that are vectors of real numbers with a "
            f"density, got {term.name!r} with posterior {term.posterior} and prior {term.prior}: "
            "use log_marginal, or a GaussianEncoder and a prior of real vectors"
        )
