"""Train a VAE by Accelerate, in one process or in several."""

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tinyvae import ELBO, VAE, Batch, BernoulliLikelihood, evaluate


class Loss(nn.Module):
    """Model and objective as one module: Accelerate wraps its forward pass."""

    def __init__(self, vae, objective):
        super().__init__()
        self.vae, self.objective = vae, objective

    def forward(self, x):
        return self.objective(self.vae, Batch(x)).losses["model"]


x = (torch.rand(512, 16) < torch.rand(512, 1)).float()
vae = VAE.from_shapes(16, latent_dim=2, likelihood=BernoulliLikelihood())
accelerator = Accelerator(cpu=True)
loss, optimizer, loader = accelerator.prepare(
    Loss(vae, ELBO()),
    torch.optim.Adam(vae.parameters(), lr=1e-3),
    DataLoader(TensorDataset(x), batch_size=64, shuffle=True),
)
for _ in range(10):
    for (batch,) in loader:
        optimizer.zero_grad()
        accelerator.backward(loss(batch))
        optimizer.step()
report = evaluate(accelerator.unwrap_model(loss).vae, x)
