"""Latents on a stack: codecs of posteriors and priors, and the tensors of their symbols."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tinyvae.compression.codecs import (
    Certain,
    Codec,
    GaussianPosterior,
    GaussianPrior,
    Grid,
    Table,
)
from tinyvae.compression.stack import Array
from tinyvae.distributions import (
    CodebookCategorical,
    Distribution,
    Independent,
    OneHotDistribution,
    Quantized,
    ReshapedBatch,
)
from tinyvae.distributions.continuous import ElementwiseNormal

_BINS_PER_STD = 4
_MOST_BINS = 2**19  # of the 2^24 multiples of a mass that the coder has


def grid_of(posterior: Distribution, prior: Distribution) -> Grid | None:
    """Return bins that are narrow for most posteriors and cover nearly all of the prior.

    Args:
        posterior: Posteriors of some examples.
        prior: Priors of the same latent.

    Returns:
        The bins, None if the posterior is not Gaussian.

    Raises:
        TypeError: If the posterior is Gaussian and the prior is not.
    """
    q, p = _normal(posterior), _normal(prior)
    if q is None:
        return None
    if p is None:
        raise _refused_prior(prior)
    stds = q[1].flatten()
    narrow = float(stds[:: max(1, len(stds) // 2**20)].quantile(0.05))
    reach = max(float((mean.abs() + 8 * std).max()) for mean, std in (q, p))
    exponent = math.ceil(math.log2(_BINS_PER_STD / narrow))
    exponent = min(exponent, math.floor(math.log2(_MOST_BINS / 2 / reach)))
    return Grid(exponent, math.ceil(reach * 2.0**exponent))


def posterior_codec(q: Distribution, grid: Grid | None) -> Codec:
    """Return the codec of one posterior per example.

    Raises:
        TypeError: If the family has no codec.
    """
    q, normal = _rows(q), _normal(q)
    if normal is not None and grid is not None:
        return GaussianPosterior(*normal, grid)
    if isinstance(q, OneHotDistribution):
        return _classes(q, len(q.logits))
    if isinstance(q, Quantized):
        return Certain(q.codes.numpy())
    raise TypeError(
        f"compress expects posteriors with independent Gaussian dimensions, classes or codes, got "
        f"{q}: use a GaussianEncoder, a CategoricalEncoder or a VectorQuantizedEncoder"
    )


def prior_codec(p: Distribution, grid: Grid | None, num_rows: int) -> Codec:
    """Return the codec of a prior, or of one prior per example.

    Raises:
        TypeError: If the family has no codec.
    """
    p, normal = _rows(p), _normal(p)
    if normal is not None and grid is not None:
        shape = (num_rows, *p.event_shape)
        mean, std = (part.expand(shape).numpy() for part in normal)
        return GaussianPrior(mean, std, grid)
    if isinstance(p, OneHotDistribution):
        return _classes(p, num_rows)
    if isinstance(p, CodebookCategorical):
        log_masses = p.log_probs.movedim(0, -1)  # (*S, J)
        return Table(log_masses.expand(num_rows, *log_masses.shape))
    raise _refused_prior(p)


def latent_of(symbols: Array, source: Distribution, grid: Grid | None) -> Tensor:
    """Return the latents that symbols stand for, ``(1, B, *L)``.

    Args:
        symbols: Numbers of bins, classes or codes, ``(B, *S)``.
        source: Posterior or prior from which the symbols were drawn.
        grid: Bins of Gaussian latents.
    """
    source, index = _rows(source), torch.from_numpy(symbols)
    if isinstance(source, OneHotDistribution):
        one_hot = F.one_hot(index, source.logits.shape[source.dim])
        z = one_hot.movedim(-1, 1).double()
    elif isinstance(source, CodebookCategorical):
        z = source.vectors(index)
    elif isinstance(source, Quantized):
        z = source.mean
    else:
        z = (1.0 if grid is None else grid.step) * index.double()
    return z.unsqueeze(0)


def _classes(p: OneHotDistribution, num_rows: int) -> Table:
    log_masses = p.logits.log_softmax(p.dim).movedim(p.dim, -1)
    num_batch = len(p.batch_shape)
    return Table(log_masses.expand(num_rows, *log_masses.shape[num_batch:]))


def _refused_prior(p: Distribution) -> TypeError:
    return TypeError(
        "compress expects a prior with independent Gaussian dimensions, classes or codes, got "
        f"{p}: use StandardNormal, GaussianPrior, CategoricalPrior or CodePrior"
    )


def _rows(p: Distribution) -> Distribution:
    """Return the distribution with one batch dimension, or none."""
    return p.base if isinstance(p, ReshapedBatch) else p


def _normal(p: Distribution) -> tuple[Tensor, Tensor] | None:
    """Return means and standard deviations ``(B, *L)`` or ``(*L)``, None for other families."""
    p = _rows(p)
    base = p.base if isinstance(p, Independent) else p
    if not isinstance(base, ElementwiseNormal):
        return None
    has_draws = len(p.batch_shape) == 2  # (1, B)
    return tuple(x.squeeze(0) if has_draws else x for x in (base.mean, base.stddev))  # type: ignore[return-value]
