"""The parts of encoder-decoder transformers: T5 (Raffel et al. 2020, arXiv 1910.10683), BART (Lewis et al. 2020, arXiv
1910.13461), and the visual tokens that their encoder reads beside text (Cho et al. 2021, arXiv 2102.02779).

The two differ in where norms stand (before a sub-layer, behind it), in their kind, in biases, and in how positions
enter (a bias on attention, learned vectors); the rest is one code. Taps as in models/layers.py.

Shape letters: B examples, R decoder rows (B, or B times the beams), T tokens, S places of a cache, M encoder positions,
P prompts, N heads, H head dim, D width, F width of visual features, L layers.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vlmx.models.layers import ACTIVATIONS, Tap, no_tap

ACTS = ACTIVATIONS | {"relu": jax.nn.relu, "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True)}
HIDDEN = jnp.finfo(jnp.float32).min  # added to the scores of what may not be seen


def norm(c, name):
    """The family's norm, in float32 whatever the compute dtype: layer norm, or T5's without mean and bias."""
    if c.family == "t5":
        module = nn.RMSNorm(epsilon=c.eps, dtype=jnp.float32, name=name)
    else:
        module = nn.LayerNorm(epsilon=c.eps, dtype=jnp.float32, use_fast_variance=False, name=name)
    return lambda x: module(x).astype(c.dtype)


def added_start(family):
    """How linear maps and tables that are added to a backbone start: `(kernel(fan_in), bias(fan_in), table)`.

    BART's initialiser runs over all parts of a model, added ones too; T5's leaves them to PyTorch's defaults.
    """
    if family == "t5":
        return _uniform, _uniform, nn.initializers.normal(1.0)
    small = nn.initializers.normal(0.02)
    return (lambda fan_in: small), (lambda fan_in: nn.initializers.zeros), small


def _uniform(fan_in):
    bound = fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


class Attention(nn.Module):
    """Multi-head attention `(R, T, D) -> (R, T, D)`. Taps: {point}/q, /k, /v, /o; `point` is "attn" or "cross".

    Its weights `(B, N, R // B * T, S)` are sown as "weights": kept where "intermediates" is mutable, else they cost
    nothing.
    """

    config: Any
    point: str
    tap: Tap = no_tap

    @nn.compact
    def __call__(self, x, source, theta, bias, kept=None, index=0):
        """Attends from x to `source` `(B, M, D)`.

        Args: bias `(1 or B, 1 or N, T, S)` float32, added to the scores. kept: keys and values `(R, N, S, H)` computed
        before, those of source are written into them at `index`; where source is None, they are all there is. Where
        R is a multiple of B, rows that belong together share what they attend to.
        Returns y and the keys and values.
        """
        c = self.config
        R, T, D = x.shape
        inner = c.heads * c.head_dim

        def linear(name, width, x):
            std = c.width**-0.5 if name != "q" else (c.width * c.head_dim) ** -0.5  # T5's; q takes the scores' scale
            y = nn.Dense(width, use_bias=c.family == "bart", kernel_init=c.start(std), name=name, **c.dtypes)(x)
            return self.tap(f"{self.point}/{name}", y, x, theta)

        def heads(y):
            return y.reshape(*y.shape[:2], c.heads, c.head_dim).swapaxes(1, 2)

        q = heads(linear("q", inner, x))
        if source is not None:
            k, v = (heads(linear(name, inner, source)) for name in "kv")
            if kept is not None:
                k, v = (jax.lax.dynamic_update_slice(a, b, (0, 0, index, 0)) for a, b in zip(kept, (k, v)))
        else:
            k, v = kept
        B = len(k)
        q = q.reshape(B, R // B, c.heads, T, -1).swapaxes(1, 2).reshape(B, c.heads, R // B * T, -1)
        scores = jnp.einsum("BNTH,BNSH->BNTS", q, k, preferred_element_type=jnp.float32)
        if c.family == "bart":
            scores = scores * c.head_dim**-0.5
        weights = jax.nn.softmax(scores + bias, axis=-1).astype(v.dtype)
        self.sow("intermediates", "weights", weights)
        weights = nn.Dropout(c.attention_dropout, deterministic=not self.has_rng("dropout"))(weights)
        y = jnp.einsum("BNTS,BNSH->BNTH", weights, v)
        y = y.reshape(B, c.heads, R // B, T, -1).transpose(0, 2, 3, 1, 4).reshape(R, T, inner)
        return linear("o", D, y), (k, v)


class Mlp(nn.Module):
    """Linear, activation (or act(gate) * linear), linear: `(R, T, D) -> (R, T, D)`. Taps: mlp/fc, mlp/gate, mlp/proj.

    T5's last map is computed and stored in float32: its outputs are too large for bfloat16's steps.
    """

    config: Any
    tap: Tap = no_tap

    @nn.compact
    def __call__(self, x, theta):
        c = self.config

        def linear(name, width, x, dtypes=c.dtypes):
            start = c.start(x.shape[-1] ** -0.5)
            y = nn.Dense(width, use_bias=c.family == "bart", kernel_init=start, name=name, **dtypes)(x)
            return self.tap(f"mlp/{name}", y, x, theta)

        h = linear("fc", c.mlp, x)
        h = ACTS[c.act](linear("gate", c.mlp, x)) * h if c.gated else ACTS[c.act](h)
        h = nn.Dropout(c.activation_dropout, deterministic=not self.has_rng("dropout"))(h)
        full = {"dtype": jnp.float32, "param_dtype": jnp.float32}
        return linear("proj", x.shape[-1], h, full if c.family == "t5" else c.dtypes)


class Block(nn.Module):
    """A layer of the encoder or, with cross-attention, of the decoder: `(R, T, D) -> (R, T, D)`.

    Taps: block (its input); attn, cross, mlp (a sub-layer's output, before dropout and the residual sum; x its input);
    those of Attention and Mlp.
    """

    config: Any
    decoder: bool
    tap: Tap = no_tap

    @nn.compact
    def __call__(self, x, theta, cache, bias, memory, cross_bias, index):
        c = self.config
        kept = {}

        def sublayer(point, x, function):
            h = norm(c, f"ln_{point}")(x) if c.family == "t5" else x
            y = self.tap(point, function(h), h, theta)
            y = nn.Dropout(c.dropout, deterministic=not self.has_rng("dropout"))(y)
            return x + y if c.family == "t5" else norm(c, f"ln_{point}")(x + y)

        def attn(h):
            before = None if cache is None else (cache["k"], cache["v"])
            y, (kept["k"], kept["v"]) = Attention(c, "attn", self.tap, name="attn")(h, h, theta, bias, before, index)
            return y

        def cross(h):
            before = None if memory is not None else (cache["cross_k"], cache["cross_v"])
            y, (k, v) = Attention(c, "cross", self.tap, name="cross")(h, memory, theta, cross_bias, before)
            if memory is not None:
                kept.update(cross_k=k, cross_v=v)
            return y

        x = self.tap("block", x, None, theta)
        x = sublayer("attn", x, attn)
        if self.decoder and (memory is not None or "cross_k" in (cache or {})):
            x = sublayer("cross", x, cross)
        x = sublayer("mlp", x, lambda h: Mlp(c, self.tap, name="mlp")(h, theta))
        return x, kept if cache is not None else None


def blocks(c, layers, decoder, tap):
    """`layers` blocks as one scan over parameters, theta and caches stacked `[L, ...]`."""
    scan = nn.scan(
        nn.remat(Block, prevent_cse=False) if c.remat else Block,
        variable_axes={"params": 0, "intermediates": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(0, 0, nn.broadcast, nn.broadcast, nn.broadcast, nn.broadcast),
        length=layers,
        unroll=layers if c.unroll else 1,
    )
    return scan(c, decoder, tap, name="blocks")


def buckets(distance, n, furthest, both):
    """T5's bucket (arXiv 1910.10683, section 2.1) of a key's position minus the query's: int32, of `distance`'s shape.

    The nearer half of the buckets holds one distance each, the further half grows logarithmically up to `furthest`.
    both: keys behind the query count too, in buckets of their own.
    """
    start = jnp.zeros_like(distance)
    if both:
        n //= 2
        start = jnp.where(distance > 0, n, 0)
        distance = jnp.abs(distance)
    else:
        distance = jnp.maximum(-distance, 0)
    near = n // 2
    log = jnp.log(jnp.maximum(distance, near).astype(jnp.float32) / near) / jnp.log(furthest / near)
    far = jnp.minimum(near + (log * (n - near)).astype(jnp.int32), n - 1)
    return start + jnp.where(distance < near, distance, far)


class Stack(nn.Module):
    """The encoder or the decoder: embedded tokens to states `(R, T, D)`; positions, norms and layers are its own."""

    config: Any
    decoder: bool
    tap: Tap = no_tap

    @nn.compact
    def __call__(self, x, theta, seen, prompt=None, vis=None, memory=None, cache=None, index=0):
        """Args: x `(R, T, D)` token embeddings. seen `(B, M)` bool: which encoder positions are real. Encoder: prompt
        `(P, D)`, set before the text; vis `(B, N, D)`, behind it. Decoder: memory `(B, M, D)`; cache: keys and values
        computed before, stacked `[L, ...]`, x begins at position `index`.
        Returns states and, where there is a cache, what was computed for it."""
        c = self.config.tower(self.decoder)
        drop = nn.Dropout(c.dropout, deterministic=not self.has_rng("dropout"))
        x = x.astype(c.dtype)
        if c.family == "bart":
            table = self.param("pos_embed", c.start(0.02), (c.positions + 2, c.width), c.dtypes["param_dtype"])
            x = x * c.width**0.5 if c.scale_embedding else x
            x = x + jax.lax.dynamic_slice_in_dim(table, index + 2, x.shape[1]).astype(c.dtype)
        if prompt is not None:
            x = jnp.concatenate([jnp.broadcast_to(prompt.astype(c.dtype), (len(x), *prompt.shape)), x], axis=1)
        if c.family == "bart":
            x = norm(c, "ln_embed")(x)
        near = x.shape[1]  # prompts and text; what is behind them has no positions
        if vis is not None:
            x = jnp.concatenate([x, vis.astype(c.dtype)], axis=1)
        T = x.shape[1]
        S = T if cache is None else cache["k"].shape[3]

        query, key = index + jnp.arange(T)[:, None], jnp.arange(S)
        bias = jnp.zeros((1, 1, T, S))
        if c.family == "t5":
            table = self.param("rel_bias", c.start(c.width**-0.5), (c.buckets, c.heads), c.dtypes["param_dtype"])
            places = (query[:near], key[:near]) if not self.decoder else (query, key)
            by_head = table.astype(jnp.float32)[buckets(places[1] - places[0], c.buckets, c.distance, not self.decoder)]
            bias = by_head.transpose(2, 0, 1)[None]
            bias = jnp.pad(bias, ((0, 0), (0, 0), (0, T - bias.shape[2]), (0, S - bias.shape[3])))
        real = None if seen is None else seen[:, None, None, :]
        visible = key <= query if self.decoder else real
        bias = jnp.where(visible, bias, HIDDEN)
        cross_bias = jnp.where(real, 0.0, HIDDEN) if self.decoder and seen is not None else None

        # T5's sum over sub-layers grows into the thousands, where bfloat16's steps are whole numbers
        x = drop(x).astype(jnp.float32 if c.family == "t5" else c.dtype)
        layers = c.layers[self.decoder]
        x, kept = blocks(c, layers, self.decoder, self.tap)(x, theta, cache, bias, memory, cross_bias, index)
        if c.family == "t5":
            x = drop(norm(c, "ln_final")(x))
        return x, kept


class VisualEmbedding(nn.Module):
    """Visual tokens `(B, N, D)` of features `(B, N, F)`, boxes `(B, N, 4)` (x1, x2, y1, y2), ids of images `(N,)` and
    rows of the word embedding that stand for the order of objects `(N, D)`."""

    config: Any

    @nn.compact
    def __call__(self, features, boxes, image, objects):
        c = self.config
        kernel, bias, table = added_start(c.family)

        def linear(name, x):
            start = {"kernel_init": kernel(x.shape[-1]), "bias_init": bias(x.shape[-1])}
            y = nn.Dense(c.width, name=name, **start, **c.dtypes)(x)
            return y if c.visual.joint_norm else norm(c, f"ln_{name}")(y)

        area = (boxes[..., 3:] - boxes[..., 2:3]) * (boxes[..., 1:2] - boxes[..., :1])
        order = self.param("image_order", table, (2, c.width), c.dtypes["param_dtype"])
        x = linear("feature", features) + linear("box", jnp.concatenate([boxes, area], axis=-1))
        x = x + order[image].astype(c.dtype) + objects.astype(c.dtype)
        return norm(c, "ln")(x) if c.visual.joint_norm else x


def pool(x, rows):
    """Adaptive max pooling of a square grid `(B, n*n, F)`, row-major, to `(B, rows, F)`: cell i of m covers the rows
    floor(i n / m) to ceil((i + 1) n / m) - 1, so that cells overlap."""
    n, m = (round(r**0.5) for r in (x.shape[1], rows))
    x = x.reshape(len(x), n, n, -1)
    return _pool(_pool(x, m, 1), m, 2).reshape(len(x), rows, -1)


def frames(x, rows):
    """Features of a video's frames `(n, F)` as `(rows, F)`: zero rows behind fewer, adaptive max pooling of more."""
    n = len(x)
    return jnp.pad(jnp.asarray(x), ((0, rows - n), (0, 0))) if n <= rows else _pool(jnp.asarray(x), rows, 0)


def _pool(x, m, axis):
    n = x.shape[axis]
    if n == m:
        return x
    cells = [jax.lax.slice_in_dim(x, i * n // m, -(-(i + 1) * n // m), axis=axis) for i in range(m)]
    return jnp.stack([cell.max(axis=axis) for cell in cells], axis=axis)
