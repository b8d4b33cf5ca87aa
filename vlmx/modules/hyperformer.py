"""A network that makes the weights of adapters (Karimi Mahabadi et al. 2021, arXiv 2106.04489), out of a vector for the
task, one for the layer and, where one net serves all places, one for the place.

L layers, D width, r bottleneck, E width of these vectors, q width of what they are made into.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from vlmx.modules.adapters import Site

PLACES = ("mlp", "attn", "cross")  # the order of their vectors


class HyperNetwork(nn.Module):
    """The adapters of a tower, as modules.adapters.Adapters gives them, for a task's vector `(E,)`.

    start: (kernel(fan_in), bias(fan_in), table), initialisers. hidden: r. middle: units of the net that makes q
    numbers. one_net: one pair of generators for all places. norms: "pre", "post", made too.
    """

    site: Site
    hidden: int
    start: tuple[Callable, ...]
    middle: int = 128
    q: int = 8
    one_net: bool = False
    norms: tuple[str, ...] = ()

    @nn.compact
    def __call__(self, task):
        (L, D, places), r, E = self.site, self.hidden, len(task)
        kernel, bias, table = self.start

        def linear(name, width, x):
            start = {"kernel_init": kernel(x.shape[-1]), "bias_init": bias(x.shape[-1])}
            return nn.Dense(width, name=name, **start)(x)

        layer = self.param("layer_embed", table, (L, E))
        x = jnp.concatenate([jnp.broadcast_to(task, (L, E)), layer], axis=-1)
        if self.one_net:
            place = self.param("place_embed", table, (len(PLACES), E))[:, None]
            x = jnp.concatenate([jnp.broadcast_to(x, (len(PLACES), *x.shape)), place.repeat(L, axis=1)], axis=-1)
        z = linear("task_out", self.q, jax.nn.relu(linear("task_in", self.middle, x)))
        z = nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, name="task_norm")(z)  # [L,q] or [places,L,q]

        def weights(name, i, o):  # made as (o, i)
            W = linear(f"{name}_kernel", o * i, z)
            return {"kernel": W.reshape(*z.shape[:-1], o, i).swapaxes(-1, -2), "bias": linear(f"{name}_bias", o, z)}

        def norm(name):
            return {k: linear(f"{name}_{k}", D, z) for k in ("scale", "bias")}

        def adapter(prefix):
            maps = {"down": weights(f"{prefix}down", D, r), "up": weights(f"{prefix}up", r, D)}
            return maps | {n: norm(f"{prefix}{n}") for n in self.norms}

        if self.one_net:
            every = adapter("")
            return {place: jax.tree.map(lambda a, p=place: a[PLACES.index(p)], every) for place in places}
        return {place: adapter(f"{place}_") for place in places}
