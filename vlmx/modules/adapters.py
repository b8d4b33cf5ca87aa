"""Small networks on features and inside layers, and the start of linear layers in the methods' published code.

Adapters inside layers (Houlsby et al. 2019, arXiv 1902.00751) are functions of the output x of a sub-layer,
x + up(gelu(down(x))). A backbone knows them as arrays stacked by layer; where these come from (stored, low-rank,
Kronecker products, made by a network) is up to a module that returns them. L layers, D width, r bottleneck.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vlmx.combine import Part

# Glorot's uniform start with a gain of sqrt(2), of each layer for itself.
GLOROT = nn.initializers.variance_scaling(2.0, "fan_avg", "uniform", in_axis=-2, out_axis=-1, batch_axis=0)


def uniform(fan_in):
    """PyTorch's default start of a linear layer, weights and biases: U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    bound = fan_in**-0.5
    return lambda key, shape, dtype="float32": jax.random.uniform(key, shape, dtype, -bound, bound)


class Bottleneck(nn.Module):
    """Linear, ReLU, linear: `(..., D) -> (..., width)` through `hidden` units."""

    hidden: int
    width: int
    bias: bool = True

    @nn.compact
    def __call__(self, x):
        def linear(name, width, x):
            start = uniform(x.shape[-1])
            return nn.Dense(width, use_bias=self.bias, kernel_init=start, bias_init=start, name=name)(x)

        return linear("up", self.width, nn.relu(linear("down", self.hidden, x)))


# -------------------------------------------------------------------- adapters inside layers
class Site(NamedTuple):
    """A tower that takes adapters: its layers, its width, and the taps of the sub-layers behind which they stand."""

    layers: int
    width: int
    places: tuple[str, ...]


def tap(point, y, x, theta):
    """The tap that applies the adapter theta[point] = {"down", "up": {"kernel", "bias"}}, with norms "pre" and "post"
    where it has them, to the output y of a sub-layer."""
    if theta is None or point not in theta:
        return y
    a = jax.tree.map(lambda leaf: leaf.astype(y.dtype), theta[point])
    h = _layer_norm(y, a["pre"]) if "pre" in a else y
    h = jax.nn.gelu(h @ a["down"]["kernel"] + a["down"]["bias"], approximate=True)
    h = h @ a["up"]["kernel"] + a["up"]["bias"]
    return y + (_layer_norm(h, a["post"]) if "post" in a else h)


def _layer_norm(x, p):
    full = x.astype(jnp.float32)
    full = full - full.mean(-1, keepdims=True)
    return (full * jax.lax.rsqrt((full**2).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]).astype(x.dtype)


class Stored(nn.Module):
    """Linear maps of L layers, kernels `(L, i, o)` and biases `(L, o)`, that are parameters themselves.

    `start` is (kernel(fan_in), bias(fan_in)), initialisers.
    """

    layers: int
    i: int
    o: int
    start: tuple[Callable, ...]

    @nn.compact
    def __call__(self):
        kernel, bias = (start(self.i) for start in self.start[:2])
        return {
            "kernel": self.param("kernel", kernel, (self.layers, self.i, self.o)),
            "bias": self.param("bias", bias, (self.layers, self.o)),
        }


class LowRankMap(nn.Module):
    """Linear maps of L layers whose kernels `(L, i, o)` are products of two of rank `rank`."""

    layers: int
    i: int
    o: int
    rank: int

    @nn.compact
    def __call__(self):
        left = self.param("left", GLOROT, (self.layers, self.i, self.rank))
        right = self.param("right", GLOROT, (self.layers, self.rank, self.o))
        return {"kernel": left @ right, "bias": self.param("b", nn.initializers.zeros, (self.layers, self.o))}


class Adapters(nn.Module):
    """The adapters of a tower, {place: {"down", "up"}}: two linear maps each, `linear(layers, i, o)` a module.

    norms: which of "pre" and "post" each adapter has. What it is called with goes on to the linear maps.
    """

    site: Site
    hidden: int
    linear: Callable
    norms: tuple[str, ...] = ()

    @nn.compact
    def __call__(self, *shared):
        L, D, places = self.site

        def norm(name):
            scale = self.param(f"{name}_scale", nn.initializers.ones, (L, D))
            return {"scale": scale, "bias": self.param(f"{name}_bias", nn.initializers.zeros, (L, D))}

        def adapter(place):
            down = self.linear(L, D, self.hidden, name=f"{place}_down")(*shared)
            up = self.linear(L, self.hidden, D, name=f"{place}_up")(*shared)
            return {"down": down, "up": up, **{n: norm(f"{place}_{n}") for n in self.norms}}

        return {place: adapter(place) for place in places}


def on_text():
    """The part t W + b on text features `(C, E)`, that starts as the identity (APEX, arXiv 2311.15569, section 3.2)."""

    def init(key, model, consts):
        E = model.config.embed_dim
        return {"W": jnp.eye(E), "b": jnp.zeros(E)}

    return Part(init=init, adapt=lambda p, txt: txt @ p["W"] + p["b"])
