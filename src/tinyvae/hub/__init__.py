"""Sharing: a model as a folder with a model card, and the Hugging Face Hub.

The folder holds ``model.safetensors``, as ``model.save`` writes it, ``config.json``, a description
of the model for people and tools, and ``README.md``, the model card::

    save_pretrained(vae, "digits", data="binarized MNIST", license="mit", report=report)
    vae = from_pretrained("digits")
    push_to_hub(vae, "user/digits", data="binarized MNIST", license="mit", report=report)

The Hub needs the extra ``hub`` (``pip install 'tinyvae[hub]'``). Local folders need nothing.
"""

from tinyvae.hub.card import model_card as model_card
from tinyvae.hub.folder import from_pretrained as from_pretrained
from tinyvae.hub.folder import push_to_hub as push_to_hub
from tinyvae.hub.folder import save_pretrained as save_pretrained
