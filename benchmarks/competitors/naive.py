"""The textbook loop: a DataLoader, a sigmoid and its cross-entropy, `.item()` at every step."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from workloads import Workload

from competitors.layers import decoder, encoder, pixels


class NaiveVAE(nn.Module):
    """Encoder, decoder and losses as in papers, summed over the batch."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self.encoder = encoder(workload)
        self.decoder = decoder(workload)
        self.num_samples = workload.num_samples

    def forward(self, x: Tensor) -> Tensor:
        """Return the loss of a batch."""
        mean, log_var = self.encoder(x).chunk(2, dim=1)
        return self.iwae(x, mean, log_var) if self.num_samples > 1 else self.elbo(x, mean, log_var)

    def elbo(self, x: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
        """Return the negative ELBO."""
        z = mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)
        reconstruction = torch.sigmoid(self.decoder(z))
        bce = F.binary_cross_entropy(reconstruction, x, reduction="sum")
        return bce - 0.5 * torch.sum(1 + log_var - mean.pow(2) - log_var.exp())

    def iwae(self, x: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
        """Return the negative importance-weighted bound."""
        noise = torch.randn(self.num_samples, *mean.shape)  # (K, B, D)
        z = mean + torch.exp(0.5 * log_var) * noise
        reconstruction = torch.sigmoid(self.decoder(z.flatten(0, 1))).view(-1, *x.shape)
        bce = F.binary_cross_entropy(reconstruction, x.expand_as(reconstruction), reduction="none")
        log_p = -0.5 * z.pow(2).sum(-1)
        log_q = -0.5 * (log_var + noise.pow(2)).sum(-1)
        log_weight = log_p - log_q - bce.flatten(2).sum(-1)  # (K, B)
        return -torch.logsumexp(log_weight, dim=0).sum()


def run(workload: Workload, images: np.ndarray, round_done: Callable[[], bool]) -> None:
    """Train."""
    data = TensorDataset(pixels(torch.from_numpy(images), workload))
    loader = DataLoader(data, batch_size=workload.batch_size, shuffle=True)
    model = NaiveVAE(workload)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    total, goes_on = 0.0, True
    while goes_on:
        for (batch,) in loader:
            x = torch.bernoulli(batch) if workload.gray else batch
            loss = model(x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        goes_on = round_done()
