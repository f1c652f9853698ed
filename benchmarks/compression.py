"""Size of binarized MNIST as bits-back files, next to gzip, bz2, xz and PNG.

    python benchmarks/compression.py --data data            # trains the model for some minutes
    python benchmarks/compression.py --data data --model runs/mnist.safetensors

The model has 784-200-200-50 units and a mirrored decoder. The 10,000 test images are binarized
once, with the gray level of a pixel as the probability of a one. The general compressors get eight
pixels per byte. PNG gets all images as one, of one bit per pixel, so that it pays for one header.
"""

import argparse
import bz2
import gzip
import json
import lzma
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import torch
from reporting import head
from torch import Tensor

from tinyvae import ELBO, MLP, VAE, BernoulliLikelihood, GaussianEncoder, Optimization, Trainer
from tinyvae.compression import compress, decompress, read_header
from tinyvae.datasets import DynamicBinarization, mnist

BINARIZE = DynamicBinarization(255)
DRAWS = 16


def train(data: str, epochs: int) -> VAE:
    """Return the model, trained on images that are binarized again for each batch."""
    torch.manual_seed(0)
    encoder = GaussianEncoder(MLP((1, 28, 28), hidden=(200, 200)), latent_dim=50)
    vae = VAE(encoder, MLP(50, hidden=(200, 200)), BernoulliLikelihood())
    trainer = Trainer(vae, ELBO(), Optimization(2e-3, schedule="cosine"), seed=0)
    images = mnist(data).images
    trainer.fit(images, epochs=epochs, batch_size=128, transform=BINARIZE)
    return vae


def minus_elbo(vae: VAE, x: Tensor) -> float:
    """Return the mean of minus the ELBO over images and draws, nats."""
    torch.manual_seed(1)
    with torch.no_grad():
        parts = [vae(rows, num_samples=DRAWS).log_weight().mean(0) for rows in x.split(500)]
    return -float(torch.cat(parts).mean())


def png(rows: np.ndarray) -> bytes:
    """Return a PNG file of one bit per pixel."""
    height, width = rows.shape
    packed = np.packbits(rows, axis=1)
    lines = b"".join(b"\0" + line.tobytes() for line in packed)  # filter 0, as for few colors
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b""))
    parts = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def others(x: Tensor) -> dict[str, int]:
    """Return the sizes of general compressors, bytes."""
    pixels = x.to(torch.uint8).numpy()
    packed = np.packbits(pixels.reshape(-1)).tobytes()
    return {
        "packed": len(packed),
        "gzip": len(gzip.compress(packed, 9)),
        "bz2": len(bz2.compress(packed, 9)),
        "xz": len(lzma.compress(packed, preset=9 | lzma.PRESET_EXTREME)),
        "PNG": len(png(pixels.reshape(-1, 28))),
    }


def main() -> None:
    """Train or load the model, measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="data", help="folder of MNIST/raw")
    parser.add_argument("--model", type=Path, help="file of the model; trained if it is missing")
    parser.add_argument("--epochs", type=int, default=220)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    if args.model is not None and args.model.exists():
        vae = VAE.load(args.model)
    else:
        vae = train(args.data, args.epochs)
        if args.model is not None:
            vae.save(args.model)
    x = BINARIZE(mnist(args.data, train=False).images, torch.Generator().manual_seed(0))
    bound = minus_elbo(vae, x)

    start = time.perf_counter()
    file = compress(vae, x)
    encoding = time.perf_counter() - start
    start = time.perf_counter()
    restored = decompress(vae, file)
    decoding = time.perf_counter() - start
    if not torch.equal(restored, x):
        raise RuntimeError("decompress expects to return the images, got others")
    header = read_header(file)
    sizes = {"tinyvae": len(file)} | others(x)
    per_pixel = {name: 8 * size / x.numel() for name, size in sizes.items()}
    per_pixel["-ELBO"] = bound / x[0].numel() / np.log(2)
    for name, bits in per_pixel.items():
        print(f"  {name:<8}{bits:8.4f} bits per pixel")
    net = 8 * len(file) - header.initial_bits
    excess = net / (bound * len(x) / np.log(2)) - 1
    print(f"initial bits {header.initial_bits}; without them {excess:+.2%} of -ELBO")
    print(f"{encoding:.1f} s to compress, {decoding:.1f} s to decompress")
    record = head(torch.get_num_threads()) | {"torch": torch.__version__, "bytes": sizes}
    record |= {"bits_per_pixel": per_pixel, "initial_bits": header.initial_bits}
    record |= {"excess": excess, "seconds": {"compress": encoding, "decompress": decoding}}
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "compression.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
