"""Lightning's Trainer with a module that computes the loss from logits and logs it.

No checkpoints, no bar, no logger.
"""

from collections.abc import Callable

import lightning
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from workloads import Workload

from competitors.layers import decoder, encoder, pixels


class LightningVAE(lightning.LightningModule):
    """VAE, or IWAE if there are several draws."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self.encoder = encoder(workload)
        self.decoder = decoder(workload)
        self.gray = workload.gray
        self.num_samples = workload.num_samples

    def training_step(self, batch: list[Tensor], batch_index: int) -> Tensor:
        """Return the loss of a batch, mean over images."""
        x = torch.bernoulli(batch[0]) if self.gray else batch[0]
        mean, log_std = self.encoder(x).chunk(2, dim=1)
        loss = (self.iwae if self.num_samples > 1 else self.elbo)(x, mean, log_std)
        self.log("loss", loss)
        return loss

    def elbo(self, x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
        """Return the negative ELBO."""
        z = mean + log_std.exp() * torch.randn_like(mean)
        bce = F.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="sum")
        kl = 0.5 * (mean.square() + (2 * log_std).exp() - 1).sum() - log_std.sum()
        return (bce + kl) / len(x)

    def iwae(self, x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
        """Return the negative importance-weighted bound, up to a constant."""
        noise = torch.randn(self.num_samples, *mean.shape)  # (K, B, D)
        z = mean + log_std.exp() * noise
        logits = self.decoder(z.flatten(0, 1)).view(-1, *x.shape)
        bce = F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none")
        log_ratio = (0.5 * (noise.square() - z.square()) + log_std).sum(-1)
        return -torch.logsumexp(log_ratio - bce.flatten(2).sum(-1), dim=0).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class EndOfRound(lightning.Callback):
    """Callback that ends a round after every epoch."""

    def __init__(self, round_done: Callable[[], bool]) -> None:
        self.round_done = round_done

    def on_train_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """End the round."""
        trainer.should_stop = not self.round_done()


def run(workload: Workload, images: np.ndarray, round_done: Callable[[], bool]) -> None:
    """Train."""
    data = TensorDataset(pixels(torch.from_numpy(images), workload))
    loader = DataLoader(data, batch_size=workload.batch_size, shuffle=True)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=-1,
        callbacks=[EndOfRound(round_done)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(LightningVAE(workload), loader)
