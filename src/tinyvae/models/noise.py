"""Noise that all examples share."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from tinyvae.distributions import Distribution, Independent, Normal
from tinyvae.models.output import Draw

HALF_STEP = 2.0**-31  # of the grid of a Sobol sequence, which contains 0


def sharing_noise(seed: int, start: int = 0) -> Callable[[int, list[Tensor]], Draw]:
    r"""Return the rules that draw the same normal noise for all examples.

    .. math:: z_{kb} = \mu_b + \sigma_b \, \Phi^{-1}(u_k), \qquad
        u_1, u_2, \dots \text{ a scrambled Sobol sequence}

    The latents of an example do not depend on the others of its batch. Quasi-Monte Carlo points
    cover the cube more evenly than random ones, so that means have less variance.

    Args:
        seed: Seed of the scrambling.
        start: Index of the first point of the sequence.

    Returns:
        A function of ``num_samples`` and of a list for the points, which returns the rule.

    References:
        Owen (1998). Scrambling Sobol' and Niederreiter-Xing points. Buchholz, Wenzel, Mandt (2018).
        Quasi-Monte Carlo Variational Inference. arXiv:1807.01604.
    """

    def rule(num_samples: int, points: list[Tensor]) -> Draw:
        num_used = 0  # dimensions of the sequence

        def draw(latent_shape: torch.Size, posterior: Distribution) -> tuple[Tensor, None]:
            nonlocal num_used
            base = posterior.base if isinstance(posterior, Independent) else posterior
            if not isinstance(base, Normal):
                raise TypeError(
                    f"noise='shared' expects Gaussian posteriors with independent dimensions, got "
                    f"{posterior}: use noise='independent', or a GaussianEncoder"
                )
            first, num_used = num_used, num_used + latent_shape.numel()
            engine = SobolEngine(num_used, scramble=True, seed=seed)
            engine.fast_forward(start)
            uniform = engine.draw(num_samples, dtype=torch.float64)[:, first:] + HALF_STEP
            noise = torch.special.ndtri(uniform).reshape(num_samples, 1, *latent_shape)
            points.append(base.mean + base.log_std.exp() * noise.to(base.mean))
            return points[-1], None

        return draw

    return rule
