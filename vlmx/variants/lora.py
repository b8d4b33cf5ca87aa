"""LoRA (Hu et al. 2021, arXiv 2106.09685) on queries and values of every attention, as VL-Adapter (arXiv 2112.06825)
runs it: equation (3) with alpha / rank, and every bias of the backbone is tuned too.

The reference has it for BART alone; on T5 its flags train the biases only, which is `maps=""` here.
"""

import jax

from vlmx.errors import unknown
from vlmx.modules import lora
from vlmx.variant import BIASES, EACH, VISUAL, Insert, Variant, sharing


def make(tasks="single", rank=128, alpha=32.0, dropout=0.1, maps="qv", trains=(BIASES, VISUAL)):
    """Low-rank updates.

    Args: tasks: "single": one pair of matrices for all; "multiple": one for each. rank, alpha: of the updates, and
    their scale times the rank. dropout: of the updates' input, in training. maps: letters out of "qkv". trains:
    patterns of the backbone's parameters that are tuned too.
    """
    if bad := [name for name in maps if name not in "qkv"]:
        raise unknown("map in lora.maps", bad[0], "qkv")
    scale = alpha / rank
    own = sharing(tasks, EACH) if maps else ()

    def parts(model):  # name -> (tower, prefix of its maps in theta, module)
        c = model.config
        inner = c.heads * c.head_dim
        layers = {"encoder": c.layers[0], "decoder": c.layers[1], "cross": c.layers[1]}
        return {name: lora.LowRank(n, c.width, rank, tuple(maps), inner) for name, n in layers.items()}

    def init(key, model):
        made = parts(model)
        keys = jax.random.split(key, len(made))
        return {name: m.init(k).get("params", {}) for (name, m), k in zip(made.items(), keys)}

    def updates(tree, model):
        low = {name: m.apply({"params": tree[name]}) for name, m in parts(model).items()}
        cross = {f"cross/{name}": pair for name, pair in low.pop("cross").items()}
        return {"encoder": low["encoder"], "decoder": low["decoder"] | cross}

    def insert(tree, model, rng=None):
        theta = updates(tree, model)
        if rng is not None and dropout:
            for number, (tower, layers) in enumerate(zip(("encoder", "decoder"), model.config.layers)):
                theta[tower]["key"] = jax.random.split(jax.random.fold_in(rng, number), layers)
        return Insert(lora.tap(scale, dropout), theta)

    def merge(tree, model):
        folded = {t: lora.merged(model.params[t], low, scale) for t, low in updates(tree, model).items()}
        return model.replace(params=model.params | folded)

    return Variant(init, insert, own, tuple(trains), merge)
