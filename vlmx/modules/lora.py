"""Low-rank updates of linear maps (Hu et al. 2021, arXiv 2106.09685, equation (3)): W x + b + scale * B A x.

L layers, D width (both inputs and outputs), r rank. The updates are added at the tap behind a linear map, so that no
kernel is copied per seed; `merged` adds them to the weights, for use without a tap.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from vlmx.combine import Part
from vlmx.modules.adapters import uniform


class LowRank(nn.Module):
    """A `(L, D, r)` and B `(L, r, D)` for each of `maps` ("q", "k", "v", "o") of a tower's attention.

    A starts as PyTorch's linear layers do, B at zero: at the start nothing is changed. out: another width of outputs.
    """

    layers: int
    width: int
    rank: int
    maps: tuple[str, ...]
    out: int | None = None

    @nn.compact
    def __call__(self):
        def pair(name):
            A = self.param(f"{name}_A", uniform(self.width), (self.layers, self.width, self.rank))
            B = self.param(f"{name}_B", nn.initializers.zeros, (self.layers, self.rank, self.out or self.width))
            return {"A": A, "B": B}

        return {name: pair(name) for name in self.maps}


@functools.cache  # the same tap for the same settings, so that programs compiled for one serve all
def tap(scale, dropout=0.0):
    """The tap that adds the updates of theta = {"q": {"A", "B"}, ...}; those of cross-attention are "cross/q", ...

    With `dropout` the branch's input is dropped out, by a mask for each map of its own, where theta has the layer's
    "key".
    """

    def add(point, y, x, theta):
        name = point.removeprefix("attn/")
        if theta is None or name not in theta:
            return y
        if dropout and "key" in theta:
            number = "qkvo".index(name[-1]) + 4 * (name != name[-1])
            kept = jax.random.bernoulli(jax.random.fold_in(theta["key"], number), 1 - dropout, x.shape)
            x = jnp.where(kept, x / (1 - dropout), 0)
        A, B = (theta[name][k].astype(x.dtype) for k in "AB")
        return y + scale * (x @ A @ B)

    return add


def part(tower, rank, scale, dropout, maps, layers):
    """The part with updates of `maps`, letters out of "qkvo", in some layers of a tower, "vision" or "text".

    Args: layers: number of layers -> those that have updates, a list.
    """

    def updates(model):
        c = getattr(model.config, tower)
        return LowRank(len(layers(c.layers)), c.width, rank, tuple(maps))

    def insert(p, model, key):
        L = getattr(model.config, tower).layers
        theta = in_layers(updates(model).apply({"params": p}), layers(L), L)
        if key is not None and dropout:
            theta["key"] = jax.random.split(key, L)
        return tap(scale, dropout), theta

    def init(key, model, consts):
        return updates(model).init(key)["params"]

    if tower == "text":
        return Part(init=init, text=insert)
    return Part(init=init, image=insert, taps=tuple(f"attn/{name}" for name in maps))


def in_layers(updates, layers, L):
    """Updates, their leaves stacked over some layers, as a tower of L has them: 0 in all others."""
    if len(layers) == L:
        return updates
    return jax.tree.map(lambda a: jnp.zeros((L, *a.shape[1:]), a.dtype).at[jnp.asarray(layers)].set(a), updates)


def merged(params, updates, scale):
    """A tower's parameters with the updates {"q": {"A", "B"}, ...} added to the kernels of its attention."""
    blocks = dict(params["blocks"])
    for name, low in updates.items():
        attention, name = name.split("/") if "/" in name else ("attn", name)
        linear = blocks[attention][name]
        update = scale * jnp.einsum("LDr,LrE->LDE", low["A"], low["B"], precision="highest")
        linear = {**linear, "kernel": (linear["kernel"] + update).astype(linear["kernel"].dtype)}
        blocks[attention] = {**blocks[attention], name: linear}
    return {**params, "blocks": blocks}
