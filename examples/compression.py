"""Images as files of about minus the ELBO, next to gzip, bz2 and xz.

    python examples/compression.py

The script trains a VAE on binary digits of 14 x 14 pixels for half a minute, compresses the 10,000
test images to one file, restores them, and compares the sizes with those of general compressors,
which get eight pixels per byte.
"""

import argparse
import bz2
import gzip
import lzma
import math
import time
from pathlib import Path

import numpy as np
import torch

from tinyvae import ELBO, MLP, VAE, BernoulliLikelihood, GaussianEncoder, Optimization, Trainer
from tinyvae.compression import compress, decompress, read_header
from tinyvae.datasets import mnist14


def main() -> None:
    """Train, compress, restore and compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--output", type=Path, default=Path("runs/compression"))
    args = parser.parse_args()
    torch.manual_seed(0)
    train, _, test = mnist14()
    encoder = GaussianEncoder(MLP((1, 14, 14), hidden=(200,)), latent_dim=12)
    vae = VAE(encoder, MLP(12, hidden=(200,)), BernoulliLikelihood())
    trainer = Trainer(vae, ELBO(), Optimization(3e-3, schedule="cosine"), seed=0)
    trainer.fit(train.images.float(), epochs=args.epochs, batch_size=128)
    vae.cpu()  # the Trainer moves it to a GPU if there is one

    x = test.images
    start = time.perf_counter()
    file = compress(vae, x)
    print(f"{len(x):,} images compressed in {time.perf_counter() - start:.1f} s")
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "digits.vae").write_bytes(file)
    if not torch.equal(decompress(vae, file), x):
        raise RuntimeError("the file does not restore the images")

    header, packed = read_header(file), np.packbits(x.numpy()).tobytes()
    with torch.no_grad():
        bound = -float(vae(x.float(), num_samples=8).log_weight().mean())
    sizes = {
        "one bit per pixel": len(packed),
        "gzip": len(gzip.compress(packed, 9)),
        "xz": len(lzma.compress(packed, preset=9)),
        "bz2": len(bz2.compress(packed, 9)),
        "tinyvae": len(file),
        "-ELBO": round(bound * len(x) / math.log(2) / 8),
    }
    for name, size in sizes.items():
        print(f"  {name:<18}{size:>9,} bytes {8 * size / x.numel():6.3f} bits per pixel")
    print(f"{header.initial_bits} initial bits; {header.nats_per_datum:.2f} nats per image")


if __name__ == "__main__":
    main()
