"""Transformer layers shared by every backbone.

Shape letters: B batch, T tokens, N heads, H head dim, D width, F hidden width, L layers.

A backbone names no method. It offers *taps*: at named points of its forward it calls `tap(point, y, x, theta)`, where
`y` is the value at that point, `x` the input of the linear map that made it (None where there is none) and `theta` this
layer's slice of a tree that the method owns, its leaves stacked `[L, ...]`. The tap returns the value to go on with.
`point` is a Python string, so an unused tap costs nothing in the compiled program.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array
PyTree = Any
Tap = Callable[[str, Array, Array | None, PyTree], Array]


def no_tap(point, y, x, theta):
    """The tap that inserts nothing."""
    del point, x, theta
    return y


ACTIVATIONS = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}


def layer_norm(eps, dtype, name):
    """Layer norm whose statistics are float32 whatever the compute dtype; two passes, as one pass cancels badly."""
    norm = nn.LayerNorm(epsilon=eps, dtype=jnp.float32, use_fast_variance=False, name=name)
    return lambda x: norm(x).astype(dtype)


def attend(q, k, v, mask=None):
    """Softmax attention over heads, the softmax in float32.

    Args: q `(B, N, T, H)`, k and v `(B, N, S, H)`, mask broadcastable to `(B, N, T, S)`, True where visible.
    Returns `(B, N, T, H)` in v's dtype. Batched matrix products on (B, N) are the fastest layout measured on CPUs.
    """
    scores = jnp.einsum("BNTH,BNSH->BNTS", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    return jnp.einsum("BNTS,BNSH->BNTH", jax.nn.softmax(scores, axis=-1).astype(v.dtype), v)


class Attention(nn.Module):
    """Multi-head self-attention `(B, T, D) -> (B, T, D)`. Taps: attn/q, attn/k, attn/v, attn/o."""

    heads: int
    dtype: Any
    param_dtype: Any
    tap: Tap = no_tap

    @nn.compact
    def __call__(self, x, theta, mask):
        B, T, D = x.shape

        def linear(name, x):
            y = nn.Dense(D, dtype=self.dtype, param_dtype=self.param_dtype, name=name)(x)
            return self.tap(f"attn/{name}", y, x, theta)

        def heads(y):
            return y.reshape(B, T, self.heads, D // self.heads).swapaxes(1, 2)

        q, k, v = (heads(linear(name, x)) for name in "qkv")
        return linear("o", attend(q, k, v, mask).swapaxes(1, 2).reshape(B, T, D))


class Mlp(nn.Module):
    """Linear, activation, linear: `(B, T, D) -> (B, T, D)`. Taps: mlp/fc (before the activation), mlp/proj."""

    hidden: int
    act: str
    dtype: Any
    param_dtype: Any
    tap: Tap = no_tap

    @nn.compact
    def __call__(self, x, theta):
        def linear(name, width, x):
            y = nn.Dense(width, dtype=self.dtype, param_dtype=self.param_dtype, name=name)(x)
            return self.tap(f"mlp/{name}", y, x, theta)

        return linear("proj", x.shape[-1], ACTIVATIONS[self.act](linear("fc", self.hidden, x)))


class Block(nn.Module):
    """Pre-norm transformer block `(B, T, D) -> (B, T, D)`.

    Taps: block (its input), those of Attention and Mlp, attn and mlp (the whole sub-layer's output, x its input).
    """

    heads: int
    hidden: int
    act: str
    eps: float
    dtype: Any
    param_dtype: Any
    tap: Tap = no_tap

    @nn.compact
    def __call__(self, x, theta, mask):
        common = {"dtype": self.dtype, "param_dtype": self.param_dtype, "tap": self.tap}
        x = self.tap("block", x, None, theta)
        h = layer_norm(self.eps, self.dtype, "ln_1")(x)
        x = x + self.tap("attn", Attention(self.heads, name="attn", **common)(h, theta, mask), h, theta)
        h = layer_norm(self.eps, self.dtype, "ln_2")(x)
        x = x + self.tap("mlp", Mlp(self.hidden, self.act, name="mlp", **common)(h, theta), h, theta)
        return x, None


def blocks(tower, dtype, param_dtype, tap, remat, unroll):
    """`tower.layers` blocks as one scan over stacked parameters `[L, ...]`: `(x, theta, mask) -> (x, None)`.

    `remat` recomputes each block in the backward pass; `unroll` writes the loop out (slow to compile).
    """
    block = nn.remat(Block, prevent_cse=False) if remat else Block
    scan = nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(0, nn.broadcast),
        length=tower.layers,
        unroll=tower.layers if unroll else 1,
    )
    return scan(tower.heads, tower.mlp, tower.act, tower.eps, dtype, param_dtype, tap, name="blocks")
