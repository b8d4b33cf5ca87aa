"""Hyperformer (Karimi Mahabadi et al. 2021, arXiv 2106.04489): a network makes each task's adapters, layer by layer.

Section 2: the network reads a vector of the task and one of the layer; tasks have nothing of their own but this vector.
One network for the encoder, one for the decoder.
"""

import jax
from flax import linen as nn

from vlmx.modules.adapters import tap
from vlmx.modules.hyperformer import HyperNetwork
from vlmx.variant import NORMS, VISUAL, Insert, Variant, family, sites, starts


def make(reduction=8, embed=512, middle=128, q=8, one_net=False, norms=(), trains=(NORMS, VISUAL)):
    """Adapters made by a network.

    Args: reduction, norms, trains: as those of adapters. embed: width of the vectors. middle, q: units of the network's
    two layers in front of the generators. one_net: one pair of generators for all places in a layer (Hyperformer++).
    """

    def towers(model):
        kernel, bias, table = starts(model)
        if family(model) == "t5":  # BART's initialiser runs over the network too
            kernel, bias = lambda fan_in: nn.initializers.normal(0.01), lambda fan_in: nn.initializers.zeros
        return {
            name: HyperNetwork(site, site.width // reduction, (kernel, bias, table), middle, q, one_net, tuple(norms))
            for name, site in sites(model).items()
        }

    def init(key, model):
        made = towers(model)
        k_task, *keys = jax.random.split(key, 1 + len(made))
        task = jax.random.normal(k_task, (embed,))
        return {name: m.init(k, task)["params"] for (name, m), k in zip(made.items(), keys)} | {"task_embed": task}

    def insert(tree, model, rng=None):
        task = tree["task_embed"]
        return Insert(tap, {name: m.apply({"params": tree[name]}, task) for name, m in towers(model).items()})

    return Variant(init, insert, ("task_embed",), tuple(trains))
