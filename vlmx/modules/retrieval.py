"""Cache retrieval (Zhang et al. 2022, Tip-Adapter, arXiv 2207.09519, section 3.1): labels of the entries that are near.

A cache has a key, a unit feature, and a label for each of M training images. What it says of an image f is
exp(-beta (1 - A)) L: A = f . keys are the affinities, L the labels, one-hot. Exact by default; of a large cache the k
nearest entries alone may be read. Keys lie in pieces on the mesh's "tensor" axis (vlmx/shard.py).

B images, C classes, E feature size, M entries.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from vlmx.models.clip import normalize


class Keys(nn.Module):
    """The keys `(M, E)` of a cache, a parameter: unit features `(B, E)` -> affinities `(B, M)`."""

    entries: int

    @nn.compact
    def __call__(self, f):
        start = lambda key, *shape: normalize(jax.random.normal(key, shape))
        keys = self.param("keys", start, self.entries, f.shape[-1])
        return jnp.einsum("bE,mE->bm", f, keys, precision="highest")


FAR = -1e6  # an affinity with which an entry says nothing


def nearest(affinity, label, k, recall=0.95):
    """The k entries of the highest affinity: affinities and labels, `(B, k)`. For k = 0 all: `(B, M)` and `(M,)`.

    An entry of label -1 only fills up a cache: it is further away than any other.
    On a TPU an entry that belongs to them is found with probability `recall`, at a fraction of the time of sorting;
    elsewhere all are found. It can be differentiated.
    """
    if not k:
        return affinity, label
    affinity = jnp.where(label < 0, FAR, affinity)
    best, where = jax.lax.approx_max_k(affinity, min(k, affinity.shape[-1]), recall_target=recall)
    return best, label[where]


def read(affinity, label, beta, C):
    """What the cache says, exp(-beta (1 - A)) L, `(B, C)`, of affinities `(B, n)` and labels `(n,)` or `(B, n)`."""
    near = jnp.exp(-beta * (1 - affinity))
    if label.ndim == 1:
        return jnp.matmul(near, jax.nn.one_hot(label, C), precision="highest")
    return jax.vmap(lambda w, c: jax.ops.segment_sum(w, c, C))(near, label)


def grid(scale, steps):
    """The values that a search visits, `(steps,)`: from 0.1 on, even steps, without `scale` itself."""
    return 0.1 + jnp.arange(steps) * (scale - 0.1) / steps


@functools.partial(jax.jit, static_argnames="k")
def search(zero, affinity, label, truth, alphas, betas, k=0):
    """The alpha and beta with which most images are right, and the accuracies `(betas, alphas)` in percent.

    One program for the whole grid, of equals the first, beta before alpha (as in Tip-Adapter's released code). Only
    one beta's logits are held at a time. Args: zero: zero-shot logits `(n, C)`. affinity: `(n, M)`. truth: `(n,)`.
    """
    affinity, label = nearest(affinity, label, k)

    def of_beta(beta):
        cache = read(affinity, label, beta, zero.shape[1])
        right = lambda alpha: ((zero + alpha * cache).argmax(-1) == truth).sum()
        return jax.vmap(right)(alphas)

    right = jax.lax.map(of_beta, betas)
    i, j = jnp.unravel_index(right.argmax(), right.shape)
    return alphas[j], betas[i], 100 * right / len(truth)
