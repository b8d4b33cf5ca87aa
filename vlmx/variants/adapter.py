"""Adapters (Houlsby et al. 2019, arXiv 1902.00751) behind every attention and feed-forward, one set for all tasks or
shared by halves (VL-Adapter, arXiv 2112.06825, sections 3.1 and 3.2).

x + up(gelu(down(x))), x the sub-layer's output; the layer norms of the backbone are tuned too.
"""

import functools

import jax

from vlmx.modules.adapters import Adapters, Stored, tap
from vlmx.variant import NORMS, VISUAL, Insert, Variant, sharing, sites, starts

TASKS = {
    "single": (),
    "multiple": (r".*_(down|up)/.*",),
    "share_up": (r".*_down/.*",),
    "share_down": (r".*_up/.*",),
}


def make(tasks="single", reduction=8, cross=True, norms=(), trains=(NORMS, VISUAL)):
    """Bottleneck adapters.

    Args: tasks: "single": one set for all; "multiple": one for each; "share_up", "share_down": each has its own, but
    for one of the two projections. reduction: the bottleneck has width // reduction units. cross: also behind
    cross-attention. norms: out of "pre", "post", layer norms inside. trains: patterns of the backbone's parameters.
    """

    def linear(model):
        return functools.partial(Stored, start=starts(model))

    return with_maps(linear, sharing(tasks, TASKS), reduction, cross, norms, trains)


def with_maps(linear, own, reduction, cross, norms, trains, common=None):
    """The variant of adapters whose projections are `linear(model)(layers, i, o)`, a module that gives their arrays.

    common: name -> (initialiser, shape) of parameters of the whole model, which each of the modules is called with.
    """
    common = common or {}

    def towers(model):
        return {
            name: Adapters(site, site.width // reduction, linear(model), tuple(norms))
            for name, site in sites(model, cross).items()
        }

    def init(key, model):
        made = towers(model)
        k_common, *keys = jax.random.split(key, 1 + len(made))
        shared = {name: start(k_common, shape) for name, (start, shape) in common.items()}
        return shared | {t: m.init(k, *shared.values())["params"] for (t, m), k in zip(made.items(), keys)}

    def insert(tree, model, rng=None):
        shared = [tree[name] for name in common]
        return Insert(tap, {t: m.apply({"params": tree[t]}, *shared) for t, m in towers(model).items()})

    return Variant(init, insert, own, tuple(trains))
