r"""The published MNIST VAE, rerun, and the bounds of the same weights.

It reports :math:`E \log p(x \mid z) - KL(N(m, s^2) \| N(0, I))` but draws z as the mean of two
draws from :math:`N(m, s^2)`, which has the distribution :math:`\tilde q = N(m, s^2/2)`. The
reported number is the ELBO of :math:`\tilde q` plus :math:`\tfrac D2 \ln 2 - \tfrac14 \sum_j
s_j^2`: not a bound.

https://github.com/williamcfrancis/Variational-Autoencoder-for-MNIST
"""

import math
from typing import Any

import torch
from mnist_images import MNISTImages, report_test_images
from torch import Tensor, nn

from tinyvae import MLP, VAE, Batch, BernoulliLikelihood, Encoder, Objective, Optimization, Trainer
from tinyvae.core import ObjectiveOutput
from tinyvae.distributions import Independent, Normal, kl_divergence
from tinyvae.evaluation import Estimate

PUBLISHED = -32.8346
EPOCHS = 19


class TwoDrawEncoder(Encoder):
    """Posterior of the mean of two draws from N(m, s^2); s is the absolute value of an output."""

    def __init__(self, data_shape: torch.Size, latent_dim: int = 8) -> None:
        super().__init__()
        self.data_shape, self.latent_shape = data_shape, torch.Size((latent_dim,))
        self.network = MLP(data_shape, hidden=(128,), activation=nn.Tanh)
        self.head = nn.Linear(128, 2 * latent_dim)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Independent:
        """Return N(m, s^2 / 2)."""
        mean, std = self.head(self.network(x)).chunk(2, dim=1)
        return Independent(Normal(mean, std.abs().log() - 0.5 * math.log(2)), 1)

    def config(self) -> dict[str, Any]:
        """Return the arguments that build an equal encoder."""
        return {"data_shape": self.data_shape, "latent_dim": self.latent_shape[0]}


def charged_kl(posterior: Independent, prior: Independent) -> Tensor:
    """Return the KL of N(m, s^2), which the published objective uses for N(m, s^2 / 2)."""
    log_std = posterior.base.log_std + 0.5 * math.log(2)
    return kl_divergence(Independent(Normal(posterior.mean, log_std), 1), prior)


class PublishedObjective(Objective):
    """The published quantity, summed over the batch."""

    def forward(self, model: nn.Module, batch: Batch) -> ObjectiveOutput:
        """Return the negative sum of the quantity over images."""
        reported = published_quantity(model, batch.x, num_samples=1)
        metrics = {"reported_nats": reported.mean().detach()}
        return ObjectiveOutput({"model": -reported.sum()}, metrics)


def published_quantity(vae: VAE, x: Tensor, num_samples: int) -> Tensor:
    """Return the published quantity of each image, ``(B,)``, nats; it is not a bound."""
    output = vae(x, num_samples=num_samples)
    (term,) = output.latents
    return output.log_px.mean(0) - charged_kl(term.posterior, term.prior)


def report_reference(data: MNISTImages, *, full: bool, seed: int) -> dict[str, Any]:
    """Train as published; report the published quantity and the bounds of the same weights."""
    shape = data.train.shape[1:]
    decoder = MLP(8, hidden=(128,), out_shape=shape, activation=nn.Tanh)
    vae = VAE(TwoDrawEncoder(shape), decoder, BernoulliLikelihood())
    trainer = Trainer(vae, PublishedObjective(), Optimization(learning_rate=2e-3), seed=seed)
    trainer.fit(data.train, epochs=EPOCHS, batch_size=32)
    vae.cpu()  # the Trainer moves it to a GPU if there is one
    published = {}
    for count in (1000, len(data.test)):
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            reported = Estimate.of(published_quantity(vae, data.test[:count], num_samples=64))
        published[f"published_quantity_not_a_bound_{count}_nats"] = reported.mean
        print(f"{count:,} test images, the published quantity, NOT A BOUND")
        print(f"{f'  (published: {PUBLISHED})':<32} {reported} nats")
    print("Bounds of the same weights:")
    bounds = report_test_images(vae, data, full=full, seed=seed)
    return {"published": PUBLISHED, "seed": seed, "updates": trainer.step, **published, **bounds}
