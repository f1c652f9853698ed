"""The style of a published notebook: a list of images, z the mean of two draws, two `.item()`.

Its scale is an output of a linear layer as it is, of either sign.

https://github.com/williamcfrancis/Variational-Autoencoder-for-MNIST
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from workloads import Workload

from competitors.layers import decoder, encoder, pixels


class NotebookVAE(nn.Module):
    """Encoder, and a decoder that ends in a sigmoid."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self.encoder = encoder(workload)
        self.decoder = nn.Sequential(decoder(workload), nn.Sigmoid())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return reconstruction, mean and scale."""
        mean, scale = self.encoder(x).chunk(2, dim=1)
        draws = [mean + scale * torch.randn_like(scale) for _ in range(2)]
        return self.decoder((draws[0] + draws[1]) / 2), mean, scale


def run(workload: Workload, images: np.ndarray, round_done: Callable[[], bool]) -> None:
    """Train."""
    data = list(pixels(torch.from_numpy(images), workload))
    loader = DataLoader(data, batch_size=workload.batch_size, shuffle=True)
    model = NotebookVAE(workload)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    goes_on = True
    while goes_on:
        reconstruction_losses, kl_losses = [], []
        for x in loader:
            optimizer.zero_grad()
            reconstruction, mean, scale = model(x)
            bce = F.binary_cross_entropy(reconstruction, x, reduction="sum")
            variance = scale.pow(2)
            kl = -0.5 * torch.sum(1 + torch.log(variance) - mean.pow(2) - variance)
            (bce + kl).backward()
            optimizer.step()
            reconstruction_losses.append(bce.item())
            kl_losses.append(kl.item())
        goes_on = round_done()
