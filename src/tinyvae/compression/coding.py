"""Compression and decompression of data by a model."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from tinyvae.compression.codecs import Grid
from tinyvae.compression.container import (
    DTYPES,
    Header,
    assemble,
    digest_of_data,
    digest_of_model,
    environment,
    parse,
)
from tinyvae.compression.latents import grid_of
from tinyvae.compression.likelihoods import DataSummary, is_table, largest_alphabet
from tinyvae.compression.moves import BatchCoder
from tinyvae.compression.stack import Array, Stack, initial_words
from tinyvae.core.data import as_tensor, to_module
from tinyvae.errors import CompressionError, printable
from tinyvae.models.base import DecoderModel
from tinyvae.models.latents import draw_point_estimate

_MOST_MASSES = 2**24  # of a batch
_MOST_ROWS = 256
_SAMPLE = 1024  # examples whose posteriors determine the bins
_SPARE_WORDS = 4  # two are in the head of the coder
_GROWTH = 8  # a batch takes its latents from the bits of 8 times as many examples


def compress(
    model: DecoderModel, x: Any, context: Any = None, *, batch_size: int | None = None
) -> bytes:
    r"""Return a file of about minus the ELBO bits, from which a model restores data exactly.

    .. math:: \text{bits} \approx \frac{1}{\ln 2} \sum_n -\mathrm{ELBO}(x_n) + \text{initial bits}

    The file is that of bits-back coding with asymmetric numeral systems: latents are drawn by bits
    of the examples before, and give these bits back when the file is read. The first examples draw
    from initial bits, which :func:`read_header` reports.

    Args:
        model: A VAE, :class:`~tinyvae.TwoLevelVAE`, :class:`~tinyvae.LadderVAE` or
            :class:`~tinyvae.BottomUpVAE`. Its likelihood is a mass. Its latents are Gaussian with
            independent dimensions, classes, or codes.
        x: Data ``(N, *E)``: integers in any dtype, NaN for missing values if the likelihood is a
            :class:`~tinyvae.likelihoods.MaskedLikelihood`.
        context: Context of the examples, ``(N, ...)``.
        batch_size: Number of examples that the networks compute at once, by default up to 256. The
            file contains it.

    Raises:
        TypeError: If the model's likelihood is a density, or its latents are of another kind.
        ValueError: If the data have no mass.

    References:
        Townsend, Bird, Barber (2019). Practical lossless compression with latent variables using
        bits back coding. arXiv:1901.04866. Kingma, Abbeel, Ho (2019). Bit-Swap. arXiv:1905.06845.

    Example:
        >>> file = compress(vae, x)
        >>> torch.equal(decompress(vae, file), x)
        True
    """
    x = as_tensor(x, "compress").detach().cpu()
    if str(x.dtype).removeprefix("torch.") not in DTYPES or not x.numel():
        raise ValueError(
            f"compress expects at least one number, got shape {tuple(x.shape)} of {x.dtype}"
        )
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"compress expects batch_size >= 1, got {batch_size}")
    model.check(x, context)
    with _reproducible(model) as twin:
        values = x.double()
        values = torch.where(torch.isnan(values), torch.nan, values + 0.0)  # no -0.0
        context = None if context is None else to_module(context, twin, "compress")
        inputs = twin.likelihood.encoder_input(values[:_SAMPLE])
        terms, z = twin.infer(inputs, _rows(context, slice(_SAMPLE)), draw_point_estimate)
        grids = {term.name: grid_of(term.posterior, term.prior) for term in terms}
        first = twin.likelihood_given(z[:, :1], _rows(context, slice(1)))
        summary = DataSummary.of(values, by_column=is_table(first))
        if batch_size is None:
            num_masses = values[0].numel() * largest_alphabet(first, summary)
            batch_size = min(_MOST_ROWS, max(1, _MOST_MASSES // num_masses))
        num_words = _SPARE_WORDS + batch_size * sum(term.z[0, 0].numel() for term in terms)
        stack = Stack(initial_words(num_words))
        for rows in batches(len(x), batch_size):
            coder = BatchCoder(twin, _rows(context, rows), rows.stop - rows.start, grids)
            coder.encode(stack, values[rows], summary)
        num_unused = max(0, stack.lowest - _SPARE_WORDS)
        header = Header(
            shape=list(x.shape),
            dtype=str(x.dtype).removeprefix("torch."),
            batch_size=batch_size,
            grids={n: None if g is None else [g.exponent, g.highest] for n, g in grids.items()},
            highest=list(summary.highest),
            missing=list(summary.missing),
            initial_words=num_words - num_unused,
            model=digest_of_model(twin),
            data=digest_of_data(values.to(x.dtype)),
            context=None if context is None else digest_of_data(context),
            environment=environment(),
        )
        return assemble(header, stack.words()[num_unused:])


def decompress(model: DecoderModel, file: bytes, context: Any = None) -> Tensor:
    """Return the data of a file of :func:`compress`, with their shape and dtype, on the CPU.

    Args:
        model: The model that compressed the data, in any dtype and on any device.
        file: The file.
        context: The context, if there was one.

    Raises:
        CompressionError: If the file is damaged, or model, context or data are not those of the
            file. No data are returned then.

    Example:
        >>> decompress(vae, compress(vae, x)).shape
        torch.Size([8, 4])
    """
    header, words = parse(file)
    with _reproducible(model) as twin:
        _require_equal("model", digest_of_model(twin), header.model)
        context = None if context is None else to_module(context, twin, "decompress")
        context_digest = None if context is None else digest_of_data(context)
        _require_equal("context", context_digest, header.context)
        try:
            x = _decoded(twin, header, words, context)
        except CompressionError:
            raise
        except (LookupError, RuntimeError, TypeError, ValueError) as error:
            raise CompressionError(
                f"decompress expects a header that fits the model, got {printable(str(error))}: "
                "the file is damaged"
            ) from error
    if digest_of_data(x) != header.data:
        raise CompressionError(
            f"decompress expects data with the digest {header.data}, got others: the networks gave "
            f"other numbers here ({environment()}) than there ({printable(header.environment)})"
        )
    return x


def _decoded(model: DecoderModel, header: Header, words: Array, context: Tensor | None) -> Tensor:
    grids = {n: None if pair is None else Grid(*pair) for n, pair in header.grids.items()}
    num_values = math.prod(header.shape) // len(header.highest)
    summary = DataSummary(header.highest, header.missing, num_values)
    stack, parts = Stack(words), []
    for rows in reversed(list(batches(header.shape[0], header.batch_size))):
        coder = BatchCoder(model, _rows(context, rows), rows.stop - rows.start, grids)
        parts.append(coder.decode(stack, summary))
    rest = stack.words()
    if len(rest) != header.initial_words or (rest != initial_words(len(rest))).any():
        raise CompressionError(
            "decompress expects the initial bits at the end, got others: the file is damaged"
        )
    return torch.cat(parts[::-1]).to(DTYPES[header.dtype])


def _rows(context: Tensor | None, rows: slice) -> Tensor | None:
    return None if context is None else context[rows]


def batches(num_examples: int, batch_size: int) -> Iterator[slice]:
    """Yield the batches, of which the first ones are small.

    The bits of the examples before pay for the latents of a batch, so that only the first example
    needs initial bits.

    Example:
        >>> [part.stop - part.start for part in batches(32, batch_size=3)]
        [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 2]
    """
    start = 0
    while start < num_examples:
        stop = min(num_examples, start + min(batch_size, max(1, start // _GROWTH)))
        yield slice(start, stop)
        start = stop


@contextmanager
def _reproducible(model: DecoderModel) -> Iterator[DecoderModel]:
    """Give a copy of the model whose results do not depend on the process that computes them.

    It is in float64, so that masses, which are rounded to 22 bits, hardly depend on the order of
    additions. One thread computes it, so that this order is the same. The number of threads is
    restored.
    """
    num_threads = torch.get_num_threads()
    twin = deepcopy(model).cpu().double().eval()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            yield twin
    finally:
        torch.set_num_threads(num_threads)


def _require_equal(name: str, got: object, expected: object) -> None:
    if got != expected:
        raise CompressionError(
            f"decompress expects the {name} of the file, {printable(repr(expected))}, got "
            f"{printable(repr(got))}: pass what compress got"
        )
