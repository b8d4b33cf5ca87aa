"""CLIP (Radford et al. 2021, arXiv 2103.00020): frozen parameters and pure functions on them.

Shape letters: B images, C texts, T tokens, D width, E feature size, L layers, S image side, p patch side.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from vlmx.models.layers import Tap, blocks, layer_norm, no_tap
from vlmx.models.resnet import ResNetTower

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class Tower:
    """Sizes of a transformer: `mlp` is the hidden width, `act` one of layers.ACTIVATIONS, `eps` the layer norms'."""

    width: int
    layers: int
    heads: int
    mlp: int
    act: str = "quick_gelu"
    eps: float = 1e-5


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViT(Tower):
    """A vision transformer on `image_size` pixels a side, cut into patches of `patch` pixels a side."""

    image_size: int
    patch: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text(Tower):
    """The causal text transformer. `eot` is the id read out; None: the highest id of the row, as in CLIP's release."""

    context: int
    vocab: int
    eot: int | None = None
    bos: int
    pad: int = 0


@dataclasses.dataclass(frozen=True)
class ResNet:
    """Modified ResNet: stem width, blocks per stage, heads of the attention pooling."""

    image_size: int
    width: int
    layers: tuple[int, ...]
    heads: int


@dataclasses.dataclass(frozen=True)
class Resize:
    """How pictures become the image tower's square, as a checkpoint states it; data/transforms.py does it.

    `mode`: "shortest" (shorter side to `scale` times the square's, then the center is cut out), "longest" (longer side
    to the square's, then borders of `fill`, a gray level or red, green and blue) or "squash" (both sides).
    """

    mode: str = "shortest"
    interpolation: str = "bicubic"
    scale: float = 1.0
    fill: int | tuple[int, ...] = 0


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """Everything static about a CLIP. `dtype` is that of the computation, `param_dtype` that of the stored weights."""

    embed_dim: int
    vision: ViT | ResNet
    text: Text
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    resize: Resize = Resize()
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: bool = False
    unroll: bool = False


def normal(module, name, std, *shape):
    """A parameter of `module` that starts from N(0, std^2), in its compute dtype."""
    return module.param(name, nn.initializers.normal(std), shape, module.param_dtype).astype(module.dtype)


class Patches(nn.Module):
    """Images `(B, S, S, 3)` -> patch embeddings `(B, T, D)`: a convolution with `kernel` `(p, p, 3, D)`, as one matrix
    product, for patches do not overlap."""

    width: int
    patch: int
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, images):
        B, S, p = images.shape[0], images.shape[1], self.patch
        n = S // p
        x = images[:, : n * p, : n * p].astype(self.dtype).reshape(B, n, p, n, p, 3).swapaxes(2, 3)
        kernel = normal(self, "kernel", 0.02, p, p, 3, self.width)
        return x.reshape(B, n * n, p * p * 3) @ kernel.reshape(-1, self.width)


class ViTTower(nn.Module):
    """Images `(B, S, S, 3)` -> features `(B, E)`. Taps: tokens (before ln_pre), each block's, pooled.

    grid: the last block's output `(B, N, D)` for the N patches instead, row by row, before ln_post.
    """

    config: ViT
    embed_dim: int
    dtype: Any
    param_dtype: Any
    remat: bool
    unroll: bool
    tap: Tap = no_tap
    grid: bool = False

    @nn.compact
    def __call__(self, images, theta):
        c, dtype = self.config, self.dtype
        x = Patches(c.width, c.patch, dtype, self.param_dtype, name="patch_embed")(images)
        cls = normal(self, "class_embed", c.width**-0.5, c.width)
        x = jnp.concatenate([jnp.broadcast_to(cls, (len(x), 1, c.width)), x], axis=1)  # [B,T,D]
        x = x + normal(self, "pos_embed", c.width**-0.5, *x.shape[1:])
        x = self.tap("tokens", x, None, theta)
        x = layer_norm(c.eps, dtype, "ln_pre")(x)
        x, _ = blocks(c, dtype, self.param_dtype, self.tap, self.remat, self.unroll)(x, theta, None)
        if self.grid:
            return x[:, 1:]
        x = layer_norm(c.eps, dtype, "ln_post")(x[:, 0])
        return self.tap("pooled", x @ normal(self, "proj", c.width**-0.5, c.width, self.embed_dim), x, theta)


class TextTower(nn.Module):
    """Input embeddings `(C, T, D)` without positions, where to read `(C, n)` -> features `(C, n, E)`.

    Taps: tokens (after positions), each block's, pooled. T may be shorter than the context: attention is causal, so
    what follows the EOT cannot change the result and need not be computed. places: of the tokens, `(T,)`; visible:
    which tokens each one sees, `(T, T)`; None: one text a row.
    """

    config: Text
    embed_dim: int
    dtype: Any
    param_dtype: Any
    remat: bool
    unroll: bool
    tap: Tap = no_tap

    @nn.compact
    def __call__(self, emb, read, theta, places=None, visible=None):
        c, dtype, T = self.config, self.dtype, emb.shape[1]
        positions = normal(self, "pos_embed", 0.01, c.context, c.width)
        x = emb.astype(dtype) + (positions[:T] if places is None else positions[places])
        x = self.tap("tokens", x, None, theta)
        visible = jnp.tril(jnp.ones((T, T), bool)) if visible is None else visible
        x, _ = blocks(c, dtype, self.param_dtype, self.tap, self.remat, self.unroll)(x, theta, visible)
        x = jnp.take_along_axis(x, read[..., None], axis=1)
        x = layer_norm(c.eps, dtype, "ln_final")(x)
        return self.tap("pooled", x @ normal(self, "proj", c.width**-0.5, c.width, self.embed_dim), x, theta)


def normalize(x, axis=-1):
    """`x / ||x||` along `axis`, in float32."""
    x = x.astype(jnp.float32)
    return x / jnp.linalg.norm(x, axis=axis, keepdims=True)


def cosine(a, b):
    """Cosines `(m, n)` float32 of rows `(m, E)` and `(n, E)`, or `(m, n, E)` where each row has its own."""
    return jnp.einsum("mE,mnE->mn" if b.ndim == 3 else "mE,nE->mn", normalize(a), normalize(b), precision="highest")


@flax.struct.dataclass
class Clip:
    """A frozen CLIP: `params`, a pytree, and functions that read it. Passed to jit as an argument, never donated."""

    params: Any
    config: ClipConfig = flax.struct.field(pytree_node=False)

    def image(self, images, tap=no_tap, theta=None):
        """Image features `(B, E)` float32, projected, not normalised.

        Args: images `(B, S, S, 3)`, uint8 (normalised here with the config's mean and std) or float, already
        normalised; tap and theta as in models/layers.py, the leaves of theta stacked `[L, ...]`.
        """
        tower, params = _image_tower(self.config, tap), {"params": self.params["vision"]}
        return tower.apply(params, self.normalized(images), theta).astype(jnp.float32)

    def grid(self, images):
        """What the image tower knows of each place, `(B, N, F)` float32, row by row: a language model's visual tokens.

        A ViT's patches after its last block, without the class token and before its last norm; a ResNet's last map,
        before attention pooling. images as `image` takes them.
        """
        tower, params = _image_tower(self.config, grid=True), {"params": self.params["vision"]}
        return tower.apply(params, self.normalized(images), None).astype(jnp.float32)

    def normalized(self, images):
        """Images with the config's mean and std taken out, where they are uint8; others are so already."""
        c = self.config
        if images.dtype != jnp.uint8:
            return images
        return (images.astype(jnp.float32) / 255 - jnp.array(c.mean)) / jnp.array(c.std)

    @property
    def image_points(self):
        """The points at which the image tower can be tapped."""
        linear = ("attn/q", "attn/k", "attn/v", "attn/o", "attn", "mlp/fc", "mlp/proj", "mlp")
        return ("pooled",) if isinstance(self.config.vision, ResNet) else ("tokens", "block", *linear, "pooled")

    def tokens(self, ids):
        """Token embeddings `(C, T, D)` of ids `(C, T)`, without positions."""
        return self.params["text"]["token_embed"][ids].astype(self.config.dtype)

    def text(self, emb, eot, tap=no_tap, theta=None):
        """Text features `(C, E)` float32, projected, not normalised, of input embeddings `(C, T, D)`; eot `(C,)`."""
        return self._text(emb, eot[:, None], theta, tap=tap)[:, 0]

    def text_behind(self, prefix, emb, eot, most=16):
        """`text` of texts that all begin with `prefix` `(P, D)` and go on with emb `(C, T, D)`; eot: in emb, `(C,)`.

        Attention is causal, so what comes of the prefix is the same in every text. A row of the computation is the
        prefix once and what `most` texts go on with, side by side; none of these sees another.
        """
        (C, T, D), P = emb.shape, len(prefix)
        rows = -(-C // most)
        n = -(-C // rows)  # texts of a row; the last row is filled up
        emb, eot = jnp.pad(emb, ((0, rows * n - C), (0, 0), (0, 0))), jnp.pad(jnp.asarray(eot), (0, rows * n - C))
        x = jnp.concatenate([jnp.broadcast_to(prefix, (rows, P, D)), emb.reshape(rows, n * T, D)], axis=1)
        places = np.concatenate([np.arange(P), np.tile(P + np.arange(T), n)])
        text = np.concatenate([np.full(P, -1), np.repeat(np.arange(n), T)])  # -1: of all
        visible = (places[:, None] >= places) & ((text == -1) | (text[:, None] == text))
        read = eot.reshape(rows, n) + P + T * jnp.arange(n)
        return self._text(x, read, None, places, visible).reshape(rows * n, -1)[:C]

    def _text(self, *args, tap=no_tap):
        params = {k: v for k, v in self.params["text"].items() if k != "token_embed"}
        return _text_tower(self.config, tap).apply({"params": params}, *args).astype(jnp.float32)

    def eot(self, ids):
        """Position of the end-of-text token in each row of ids `(C, T)`: `(C,)` int32, a numpy array where ids are."""
        c = self.config.text
        return (ids if c.eot is None else ids == c.eot).argmax(axis=-1).astype("int32")

    def encode_text(self, ids):
        """Text features `(C, E)` of token ids `(C, T)`."""
        return self.text(self.tokens(ids), self.eot(ids))

    def logits(self, img, txt):
        """`exp(logit_scale) * cosine`, `(B, C)` float32, of features `(B, E)` and `(C, E)` or `(B, C, E)`."""
        return jnp.exp(self.params["logit_scale"].astype(jnp.float32)) * cosine(img, txt)


def _image_tower(c, tap=no_tap, grid=False):
    if isinstance(c.vision, ResNet):
        return ResNetTower(c.vision, c.embed_dim, jnp.dtype(c.dtype), jnp.dtype(c.param_dtype), tap, grid)
    return ViTTower(c.vision, c.embed_dim, jnp.dtype(c.dtype), jnp.dtype(c.param_dtype), c.remat, c.unroll, tap, grid)


def _text_tower(c, tap=no_tap):
    return TextTower(c.text, c.embed_dim, jnp.dtype(c.dtype), jnp.dtype(c.param_dtype), c.remat, c.unroll, tap)


def init_params(config, key):
    """Random parameters for pre-training: a tree `{"vision", "text", "logit_scale"}` in `config.param_dtype`."""
    c, (k_vision, k_text, k_token) = config, jax.random.split(key, 3)
    images = jnp.zeros((1, c.vision.image_size, c.vision.image_size, 3))
    vision = _image_tower(c).init(k_vision, images, None)["params"]
    emb = jnp.zeros((1, c.text.context, c.text.width))
    text = _text_tower(c).init(k_text, emb, jnp.zeros((1, 1), jnp.int32), None)["params"]
    token_embed = 0.02 * jax.random.normal(k_token, (c.text.vocab, c.text.width))
    text["token_embed"] = token_embed.astype(c.param_dtype)
    return {"vision": vision, "text": text, "logit_scale": jnp.log(jnp.asarray(1 / 0.07, jnp.float32))}


def param_shapes(config):
    """The exact tree of `jax.ShapeDtypeStruct` that a checkpoint of this config must fill; allocates nothing."""
    return jax.eval_shape(lambda key: init_params(config, key), jax.random.key(0))
