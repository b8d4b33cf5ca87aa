"""Contrastive language-image pre-training (Radford et al. 2021, arXiv 2103.00020, section 2.3 and figure 3).

The whole backbone is the tuned tree: vlmx/pretrain.py makes the embedded world's own CLIP with it.
"""

import jax.numpy as jnp
import optax

from vlmx.method import Method
from vlmx.models.clip import init_params


def make(max_scale=100.0):
    """Symmetric InfoNCE over a batch of pairs: "image" `(B, S, S, 3)`, "ids" `(B, T)`; the temperature is learnt.

    Args: max_scale: the learnt factor of the cosines is kept at or below it, as CLIP's authors found necessary.
    """

    def init(key, model, consts, support):
        return {"train": init_params(model.config, key), "fixed": {}}

    def apply(v, model, consts, batch, rng=None, train=False):
        model = model.replace(params=v["train"])
        return {"logits": model.logits(model.image(batch["image"]), model.encode_text(batch["ids"]))}  # (B, B)

    def after(v, step, total, per_epoch=None):
        scale = jnp.minimum(v["train"]["logit_scale"], jnp.log(max_scale))
        return {**v, "train": {**v["train"], "logit_scale": scale}}

    return Method(apply=apply, init=init, loss=loss, after=after, needs="pixels", trains=(".*",))


def loss(out, batch):
    """Mean of the cross-entropies image -> its text and text -> its image; the pair is on the diagonal."""
    logits = out["logits"]
    pair = jnp.arange(len(logits))
    ways = [optax.softmax_cross_entropy_with_integer_labels(x, pair).mean() for x in (logits, logits.T)]
    return sum(ways) / 2, {"accuracy": 100 * (logits.argmax(-1) == pair).mean()}
