"""A prior fitted to the aggregate posterior after training."""

import math

import torch
from torch import Tensor

from tinyvae.distributions import Affine
from tinyvae.priors.base import PosteriorOf, Prior
from tinyvae.priors.learned import FullGaussianPrior, MixturePrior

# Least scale of a component, relative to all latents. A component on a single latent would shrink
# to a point.
LEAST_STD = 1e-2
# Number of runs of expectation maximization; the best one is kept.
STARTS = 5


class FittedPrior(Prior):
    r"""A prior that is fitted to draws from the posteriors after training.

    Samples from a VAE look like data only if its prior is close to the aggregate posterior
    :math:`q(z) = \mathbb{E}_{x} [q(z \mid x)]`. A deterministic encoder has no other useful prior.
    Replace the prior after training: ``vae.prior = FittedPrior.fit(vae.encode(x).sample(), p)``.

    Args:
        density: Prior of the standardized latents. :meth:`fit` sets the standardization and the
            parameters.

    References:
        Ghosh, Sajjadi, Vergari, Black, Schoelkopf (2020). From Variational to Deterministic
        Autoencoders. arXiv:1903.12436, section 4 (ex-post density estimation).

    Example:
        >>> z = vae.encode(x).sample()
        >>> vae.prior = FittedPrior.fit(z, MixturePrior(2, num_components=2))
        >>> vae.sample(5).shape
        torch.Size([5, 4])
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, density: Prior) -> None:
        super().__init__()
        if not isinstance(density, Prior):
            raise TypeError(
                f"FittedPrior expects a prior, got a {type(density).__name__}: "
                "give MixturePrior(latent_dim, num_components=10)"
            )
        self.density = density
        self.latent_shape = density.latent_shape
        self.register_buffer("shift", torch.zeros(self.latent_shape))
        self.register_buffer("scale", torch.ones(self.latent_shape))

    @classmethod
    def fit(
        cls,
        z: Tensor,
        density: Prior,
        context: Tensor | None = None,
        *,
        steps: int = 2000,
        learning_rate: float = 2e-3,
    ) -> "FittedPrior":
        """Fit by maximum likelihood.

        A :class:`FullGaussianPrior` is fitted in closed form, a :class:`MixturePrior` by
        expectation maximization from several starts, and any other prior by Adam on mini-batches.
        The fit draws from torch's default generator. The result is in evaluation mode.

        Args:
            z: Latents ``(N, *L)``, drawn from the posteriors of the training data.
            density: The prior to fit, in place.
            context: Context of the prior, ``(N, ...)``, if it reads one.
            steps: Maximum number of steps.
            learning_rate: Initial learning rate of Adam. It decays to zero along a cosine.
        """
        if z.shape[1:] != density.latent_shape or len(z) < 2:
            raise ValueError(
                f"FittedPrior.fit expects two or more latents (N, *{tuple(density.latent_shape)})"
                f", got {tuple(z.shape)}: z = vae.encode(x).sample()"
            )
        fitted = cls(density).to(z)
        z = z.detach()
        fitted.shift, fitted.scale = z.mean(0), z.std(0, correction=0)
        if not (fitted.scale > 0).all():
            raise ValueError(
                "FittedPrior.fit expects latents that vary in every dimension, got a constant "
                "dimension: lower latent_dim"
            )
        y = (z - fitted.shift) / fitted.scale
        if isinstance(density, FullGaussianPrior):
            _fit_gaussian(density, y)
        elif isinstance(density, MixturePrior):
            _fit_mixture(density, y, steps)
        else:
            with torch.enable_grad():
                _fit_by_gradient(density, y, context, steps, learning_rate)
        return fitted.requires_grad_(False).eval()

    def forward(
        self, context: Tensor | None = None, *, encoder: PosteriorOf | None = None
    ) -> Affine:
        """Return the fitted density, given the context if it reads one."""
        return Affine(self.density(context), self.shift, self.scale)


def _fit_gaussian(density: FullGaussianPrior, y: Tensor) -> None:
    factor, failed = torch.linalg.cholesky_ex(y.T @ y / len(y))  # y is centered
    if failed:
        raise ValueError(
            f"FittedPrior.fit expects latents that span all dimensions, got {len(y)} latents of "
            f"{y.shape[1]} dimensions in a plane: give more latents, or fit a MixturePrior with "
            "num_components=1"
        )
    density.mean.data = torch.zeros_like(density.mean)
    density.log_diagonal.data = factor.diagonal().log()
    density.lower.data = factor


def _fit_mixture(density: MixturePrior, y: Tensor, steps: int) -> None:
    """Set the parameters to the best of several fits by expectation maximization."""
    if len(y) < density.num_components:
        raise ValueError(
            f"FittedPrior.fit expects at least as many latents as the mixture has components, "
            f"{density.num_components}, got {len(y)}"
        )
    flat = y.flatten(1)
    fits = [_maximize(flat, _spread(flat, density.num_components), steps) for _ in range(STARTS)]
    _, weights, means, log_std = max(fits, key=lambda fit: fit[0])
    density.logits.data = weights.log()
    density.means.data = means.reshape(density.means.shape)
    density.log_std.data = log_std.reshape(density.log_std.shape)


def _spread(rows: Tensor, count: int) -> Tensor:
    """Return rows far from each other (k-means++, Arthur and Vassilvitskii 2007)."""
    chosen = rows[torch.randint(len(rows), (1,), device=rows.device)]
    for _ in range(count - 1):
        distance = torch.cdist(rows, chosen).min(1).values.square()
        chosen = torch.cat([chosen, rows[torch.multinomial(distance + 1e-12, 1)]])
    return chosen


def _maximize(rows: Tensor, means: Tensor, steps: int) -> tuple[float, Tensor, Tensor, Tensor]:
    """Run expectation maximization until the mean log-likelihood stops increasing."""
    log_std = torch.zeros_like(means)
    weights = rows.new_full((len(means),), 1 / len(means))
    latest = -math.inf
    for _ in range(steps):
        standardized = (rows.unsqueeze(1) - means) * torch.exp(-log_std)  # (N, M, D)
        joint = weights.log() - (0.5 * standardized.square() + log_std).sum(2)
        evidence = joint.logsumexp(1).mean().item()
        if evidence < latest + 1e-7:
            break
        latest = evidence
        shares = joint.softmax(1)  # (N, M)
        mass = shares.sum(0).clamp(min=1e-12).unsqueeze(1)
        means = shares.T @ rows / mass
        spread = (shares.T @ rows.square()) / mass - means.square()
        log_std = 0.5 * spread.clamp(min=LEAST_STD**2).log()
        weights = mass.squeeze(1) / len(rows)
    return latest, weights, means, log_std


def _fit_by_gradient(
    density: Prior, y: Tensor, context: Tensor | None, steps: int, learning_rate: float
) -> None:
    if not any(parameter.requires_grad for parameter in density.parameters()):
        raise ValueError(
            f"FittedPrior.fit expects a prior with parameters, got a {type(density).__name__}: "
            "give a MixturePrior, FullGaussianPrior or FlowPrior"
        )
    optimizer = torch.optim.Adam(density.parameters(), learning_rate)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = torch.randint(len(y), (min(256, len(y)),), device=y.device)
        prior = density(None if context is None else context[rows])
        loss = -prior.log_prob(y[rows]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
