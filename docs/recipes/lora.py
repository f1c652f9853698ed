"""Fine-tune a VAE by low-rank adapters of peft, and merge them."""

import peft
import torch
from torch import nn

from tinyvae import ELBO, VAE, BernoulliLikelihood, Trainer

x = (torch.rand(512, 16) < torch.rand(512, 1)).float()
vae = VAE.from_shapes(16, latent_dim=2, likelihood=BernoulliLikelihood())
linear = [name for name, layer in vae.named_modules() if isinstance(layer, nn.Linear)]
peft.inject_adapter_in_model(peft.LoraConfig(r=4, target_modules=linear), vae)
Trainer(vae, ELBO()).fit(x, epochs=5)  # trains the adapters alone: all else is frozen

before = vae.reconstruct(x)
for name in linear:  # saving and exporting need a model without adapters
    adapted = vae.get_submodule(name)
    adapted.merge()
    vae.set_submodule(name, adapted.base_layer)
vae.requires_grad_(True)
torch.testing.assert_close(vae.reconstruct(x), before)
vae.save("merged.safetensors")
