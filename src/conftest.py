"""Names that the examples in docstrings may use."""

from types import ModuleType
from typing import Any

import pytest
import torch

import tinyvae


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace: dict[str, Any]) -> None:
    torch.manual_seed(0)
    submodules = [module for module in vars(tinyvae).values() if isinstance(module, ModuleType)]
    for module in (*submodules, tinyvae):
        doctest_namespace |= {n: v for n, v in vars(module).items() if not n.startswith("_")}
    network = tinyvae.MLP(4, hidden=(8,))
    doctest_namespace |= {
        "torch": torch,
        "vae": tinyvae.VAE(
            tinyvae.GaussianEncoder(network, latent_dim=2),
            tinyvae.MLP(2, hidden=(8,), out_shape=4),
            tinyvae.BernoulliLikelihood(),
        ),
        "x": torch.tensor([[0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]]).repeat(4, 1),
    }
