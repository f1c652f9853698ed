"""JAX: a jitted scan over the steps of an epoch, with its own Adam and data on the device.

Convolutions are matrix products of shifted images, since the gradients of XLA's own are an order of
magnitude slower on CPUs.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise, product
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from workloads import Workload, halvings

TAPS = tuple(product(range(3), repeat=2))  # offsets in a kernel
LEARNING_RATE, BETAS, EPSILON = 1e-3, (0.9, 0.999), 1e-8

Layer = tuple[Array, Array]  # weight and bias
Network = list[Layer]


class State(NamedTuple):
    """State that a step changes."""

    parameters: tuple[Network, Network]
    first: tuple[Network, Network]
    second: tuple[Network, Network]
    count: Array


def _layer(key: Array, shape: tuple[int, ...], fan_in: int, n_out: int) -> Layer:
    weight_key, bias_key = jax.random.split(key)
    bound = fan_in**-0.5
    weight = jax.random.uniform(weight_key, shape, minval=-bound, maxval=bound)
    return weight, jax.random.uniform(bias_key, (n_out,), minval=-bound, maxval=bound)


def _network(key: Array, workload: Workload, sizes: list[int]) -> Network:
    """Return convolutions between channels, or linear layers between widths."""
    pairs = list(pairwise(sizes))
    kernel = (3, 3) if workload.convolutional else ()
    fan = 9 if workload.convolutional else 1
    return [
        _layer(k, (*kernel, n_in, n_out), fan * n_in, n_out)
        for k, (n_in, n_out) in zip(jax.random.split(key, len(pairs)), pairs, strict=True)
    ]


def initial(key: Array, workload: Workload) -> State:
    """Return initial weights and moments of zero."""
    keys = jax.random.split(key, 4)
    first = workload.data_shape[0] if workload.convolutional else workload.num_pixels
    sizes = [first, *workload.hidden]
    features, latent_dim = workload.num_features, workload.latent_dim
    head = _layer(keys[1], (features, 2 * latent_dim), features, 2 * latent_dim)
    seed = _layer(keys[2], (latent_dim, features), latent_dim, features)
    encoder = [*_network(keys[0], workload, sizes), head]
    decoder = [seed, *_network(keys[3], workload, sizes[::-1])]
    parameters = (encoder, decoder)
    zeros = jax.tree.map(jnp.zeros_like, parameters)
    return State(parameters, zeros, jax.tree.map(jnp.copy, zeros), jnp.zeros(()))


def _down(x: Array, weight: Array) -> Array:
    """Apply a 3 x 3 convolution with stride 2 and padding 1."""
    height, width = ((n + 1) // 2 for n in x.shape[1:3])
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    taps = [padded[:, i : i + 2 * height - 1 : 2, j : j + 2 * width - 1 : 2] for i, j in TAPS]
    return jnp.concatenate(taps, axis=-1) @ weight.reshape(-1, weight.shape[-1])


def _up(x: Array, weight: Array, size: tuple[int, int]) -> Array:
    """Apply a transposed 3 x 3 convolution with stride 2 and padding 1, to this size."""
    n_in, n_out = weight.shape[2:]
    products = x @ jnp.moveaxis(weight, 2, 0).reshape(n_in, -1)
    products = products.reshape(*x.shape[:3], 9, n_out)
    zero, output = jnp.zeros((), x.dtype), jnp.zeros((len(x), *size, n_out), x.dtype)
    for tap, offsets in enumerate(TAPS):
        around = [
            (offset - 1, new - 2 * old + 2 - offset, 1)
            for offset, old, new in zip(offsets, x.shape[1:3], size, strict=True)
        ]
        output += lax.pad(products[:, :, :, tap], zero, [(0, 0, 0), *around, (0, 0, 0)])
    return output


def encode(network: Network, x: Array, workload: Workload) -> tuple[Array, Array]:
    """Return the mean and the log scale of q(z given x)."""
    activation = jnp.tanh if workload.activation == "tanh" else jax.nn.relu
    *hidden, (weight, bias) = network
    h = x.reshape(len(x), *workload.data_shape[1:], -1) if workload.convolutional else x
    for w, b in hidden:
        h = activation((_down(h, w) if workload.convolutional else h @ w) + b)
    return tuple(jnp.split(h.reshape(len(x), -1) @ weight + bias, 2, axis=-1))


def decode(network: Network, z: Array, workload: Workload) -> Array:
    """Return logits ``(N, pixels)``."""
    activation = jnp.tanh if workload.activation == "tanh" else jax.nn.relu
    (weight, bias), *layers = network
    h = z @ weight + bias
    if workload.convolutional:
        smallest, *sizes = halvings(workload)[::-1]
        h = h.reshape(len(z), *smallest, -1)
        for (w, b), size in zip(layers, sizes, strict=True):
            h = _up(activation(h), w, size) + b
    else:
        for w, b in layers:
            h = activation(h) @ w + b
    return h.reshape(len(z), -1)


def loss(parameters: tuple[Network, Network], x: Array, key: Array, workload: Workload) -> Array:
    """Return the negative ELBO or importance-weighted bound, mean over images."""
    encoder, decoder = parameters
    mean, log_std = encode(encoder, x, workload)
    noise = jax.random.normal(key, (workload.num_samples, *mean.shape))  # (K, B, D)
    z = mean + jnp.exp(log_std) * noise
    logits = decode(decoder, z.reshape(-1, workload.latent_dim), workload)
    logits = logits.reshape(len(z), *x.shape)
    bce = (jax.nn.softplus(logits) - x * logits).sum(-1)
    if workload.num_samples == 1:
        kl = (0.5 * (mean**2 + jnp.exp(2 * log_std) - 1) - log_std).sum(-1)
        return (bce + kl).mean()
    log_ratio = (0.5 * (noise**2 - z**2) + log_std).sum(-1)
    return -jax.nn.logsumexp(log_ratio - bce, axis=0).mean()


def adam(state: State, gradients: tuple[Network, Network]) -> State:
    """Take one update."""
    (beta_1, beta_2), count = BETAS, state.count + 1
    first = jax.tree.map(lambda m, g: beta_1 * m + (1 - beta_1) * g, state.first, gradients)
    second = jax.tree.map(lambda v, g: beta_2 * v + (1 - beta_2) * g * g, state.second, gradients)
    rate, correction = LEARNING_RATE / (1 - beta_1**count), 1 - beta_2**count
    parameters = jax.tree.map(
        lambda p, m, v: p - rate * m / (jnp.sqrt(v / correction) + EPSILON),
        *(state.parameters, first, second),
    )
    return State(parameters, first, second, count)


@partial(jax.jit, static_argnames="workload", donate_argnames="state")
def epoch(state: State, images: Array, key: Array, workload: Workload) -> tuple[State, Array]:
    """Take all steps of an epoch."""

    def step(state: State, inputs: tuple[Array, Array]) -> tuple[State, Array]:
        index, key = inputs
        pixel_key, noise_key = jax.random.split(key)
        x = images[index].astype(jnp.float32)
        if workload.gray:
            x = jax.random.bernoulli(pixel_key, x / 255).astype(jnp.float32)
        value, gradients = jax.value_and_grad(loss)(state.parameters, x, noise_key, workload)
        return adam(state, gradients), value

    order_key, step_key = jax.random.split(key)
    order = jax.random.permutation(order_key, len(images)).reshape(workload.steps, -1)
    return lax.scan(step, state, (order, jax.random.split(step_key, workload.steps)))


def run(workload: Workload, images: np.ndarray, round_done: Callable[[], bool]) -> None:
    """Train."""
    key, initial_key = jax.random.split(jax.random.key(0))
    state = initial(initial_key, workload)
    data = jnp.asarray(images.reshape(len(images), -1))
    goes_on = True
    while goes_on:
        key, epoch_key = jax.random.split(key)
        state, losses = epoch(state, data, epoch_key, workload)
        losses.block_until_ready()
        goes_on = round_done()
