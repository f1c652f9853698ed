"""Train a VAE by Lightning."""

import lightning
import torch
from torch.utils.data import DataLoader, TensorDataset

from tinyvae import ELBO, VAE, Batch, BernoulliLikelihood, evaluate
from tinyvae.schedules import Linear


class VAEModule(lightning.LightningModule):
    def __init__(self, vae, objective):
        super().__init__()
        self.vae, self.objective = vae, objective

    def training_step(self, batch, _):
        self.objective.set_step(self.global_step, int(self.trainer.estimated_stepping_batches))
        output = self.objective(self.vae, Batch(batch[0]))
        self.log_dict(output.metrics)
        return output.losses["model"]

    def configure_optimizers(self):
        return torch.optim.Adam(self.vae.parameters(), lr=1e-3)


x = (torch.rand(512, 16) < torch.rand(512, 1)).float()
vae = VAE.from_shapes(16, latent_dim=2, likelihood=BernoulliLikelihood())
module = VAEModule(vae, ELBO(beta=Linear(0.0, 1.0, fraction=0.5)))
trainer = lightning.Trainer(
    max_epochs=10, accelerator="cpu", logger=False, enable_checkpointing=False
)
trainer.fit(module, DataLoader(TensorDataset(x), batch_size=64, shuffle=True))
report = evaluate(vae, x)
