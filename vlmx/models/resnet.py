"""CLIP's modified ResNet image tower (Radford et al. 2021, section 2.4): three-convolution stem, average pooling before
strided convolutions (anti-aliasing), attention pooling at the end. Batch norm only ever runs on stored statistics, so
they are plain arrays beside the others.

Images are NHWC. B batch, H and W rows and columns, C channels, T positions, D width.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vlmx.models.layers import Tap, attend, no_tap

ones, zeros = nn.initializers.ones, nn.initializers.zeros


class BatchNorm(nn.Module):
    """`(B, H, W, C)` normalised by stored mean and variance, in float32; eps 1e-5."""

    param_dtype: Any

    @nn.compact
    def __call__(self, x):
        starts = {"scale": ones, "bias": zeros, "mean": zeros, "var": ones}
        p = {k: self.param(k, start, x.shape[-1:], self.param_dtype).astype(jnp.float32) for k, start in starts.items()}
        return (x.astype(jnp.float32) - p["mean"]) * (jax.lax.rsqrt(p["var"] + 1e-5) * p["scale"]) + p["bias"]


def conv_bn(module, conv, bn, x, features, size, stride=1):
    """Convolution without bias, then batch norm; `(B, H, W, C) -> (B, H', W', features)`.

    The parameters belong to `module`: `conv` `(size, size, C, features)` and `bn/{scale, bias, mean, var}`.
    """
    kernel = module.param(conv, nn.initializers.he_normal(), (size, size, x.shape[-1], features), module.param_dtype)
    padding = [(size // 2, size // 2)] * 2
    x = jax.lax.conv_general_dilated(
        x, kernel.astype(module.dtype), (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return BatchNorm(module.param_dtype, name=bn)(x).astype(module.dtype)


def pool(x, size):
    """Average pooling over `size` x `size` windows without overlap; the identity for size 1."""
    return nn.avg_pool(x, (size, size), (size, size)) if size > 1 else x


class Stem(nn.Module):
    """`(B, H, W, 3) -> (B, H/4, W/4, width)`."""

    width: int
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x):
        x = nn.relu(conv_bn(self, "conv1", "bn1", x, self.width // 2, 3, stride=2))
        x = nn.relu(conv_bn(self, "conv2", "bn2", x, self.width // 2, 3))
        x = nn.relu(conv_bn(self, "conv3", "bn3", x, self.width, 3))
        return pool(x, 2)


class Bottleneck(nn.Module):
    """`(B, H, W, C) -> (B, H/stride, W/stride, 4*width)`; `down` adds the projection on the residual branch."""

    width: int
    stride: int
    down: bool
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x):
        y = nn.relu(conv_bn(self, "conv1", "bn1", x, self.width, 1))
        y = nn.relu(conv_bn(self, "conv2", "bn2", y, self.width, 3))
        y = conv_bn(self, "conv3", "bn3", pool(y, self.stride), 4 * self.width, 1)
        if self.down:
            x = conv_bn(self, "down_conv", "down_bn", pool(x, self.stride), 4 * self.width, 1)
        return nn.relu(x + y)


class Layer(nn.Module):
    """A stage of `blocks` bottlenecks, the first with `stride` and a projected residual."""

    width: int
    blocks: int
    stride: int
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x):
        for i in range(self.blocks):
            stride = self.stride if i == 0 else 1
            x = Bottleneck(self.width, stride, i == 0, self.dtype, self.param_dtype, name=f"block{i}")(x)
        return x


class AttentionPool(nn.Module):
    """One attention layer whose only query is the mean position: `(B, H, W, D) -> (B, E)`."""

    heads: int
    embed_dim: int
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x):
        B, D = x.shape[0], x.shape[-1]
        x = x.reshape(B, -1, D)
        x = jnp.concatenate([x.mean(axis=1, keepdims=True), x], axis=1)  # [B,T,D]
        pos_embed = self.param("pos_embed", nn.initializers.normal(D**-0.5), x.shape[1:], self.param_dtype)
        x = x + pos_embed.astype(self.dtype)

        def heads(name, x):
            y = nn.Dense(D, dtype=self.dtype, param_dtype=self.param_dtype, name=name)(x)
            return y.reshape(B, -1, self.heads, D // self.heads).swapaxes(1, 2)

        y = attend(heads("q", x[:, :1]), heads("k", x), heads("v", x))  # [B,N,1,H]
        return nn.Dense(self.embed_dim, dtype=self.dtype, param_dtype=self.param_dtype, name="o")(y.reshape(B, D))


class ResNetTower(nn.Module):
    """Images `(B, S, S, 3)` -> features `(B, E)`. Tap: pooled. There is no per-layer theta: blocks differ in shape.

    grid: the last map, `(B, H*W, C)`, instead.
    """

    config: Any
    embed_dim: int
    dtype: Any
    param_dtype: Any
    tap: Tap = no_tap
    grid: bool = False

    @nn.compact
    def __call__(self, images, theta):
        c, dtypes = self.config, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = Stem(c.width, name="stem", **dtypes)(images.astype(self.dtype))
        for i, n in enumerate(c.layers):
            x = Layer(c.width * 2**i, n, 1 if i == 0 else 2, name=f"layer{i + 1}", **dtypes)(x)
        if self.grid:
            return x.reshape(len(x), -1, x.shape[-1])
        return self.tap("pooled", AttentionPool(c.heads, self.embed_dim, name="attnpool", **dtypes)(x), x, theta)
