"""CLIP-LoRA (Zanella & Ben Ayed 2024, arXiv 2405.18541): low-rank updates of the attention in both towers.

Section 4: the maps q, k and v of every layer become W + (alpha / sqrt(r)) B A; the factor of the cosines is 100.
L layers, D width of a tower, r rank.
"""

import jax

from vlmx.errors import unknown
from vlmx.method import PHOTO, Method, class_texts
from vlmx.models.clip import cosine
from vlmx.models.layers import no_tap
from vlmx.modules import lora

TOWERS = {"both": ("vision", "text"), "vision": ("vision",), "text": ("text",)}


def make(rank=2, alpha=1.0, dropout=0.25, maps="qkv", towers="both"):
    """Low-rank adaptation.

    Args: rank: of the updates. alpha: their scale is alpha / sqrt(rank). dropout: of the updates' input, in training.
    maps: letters out of "qkvo". towers: "both", "vision" or "text".
    """
    if towers not in TOWERS:
        raise unknown("value of clip_lora.towers", towers, TOWERS)
    if bad := [name for name in maps if name not in "qkvo"]:
        raise unknown("map in clip_lora.maps", bad[0], "qkvo")
    tap = lora.tap(alpha / rank**0.5, dropout)

    def updates(model, tower):
        c = getattr(model.config, tower)
        return lora.LowRank(c.layers, c.width, rank, tuple(maps))

    def setup(model, task):
        ids, eot = class_texts(model, task, PHOTO)
        return {"emb": model.tokens(ids), "eot": eot}

    def init(key, model, consts, support):
        keys = jax.random.split(key, len(TOWERS[towers]))
        start = {t: updates(model, t).init(k)["params"] for t, k in zip(TOWERS[towers], keys, strict=True)}
        return {"train": start, "fixed": {}}

    def apply(v, model, consts, batch, rng=None, train=False):
        def inserted(tower):  # the tap and its theta
            if tower not in v["train"]:
                return no_tap, None
            theta = updates(model, tower).apply({"params": v["train"][tower]})
            if train and dropout:
                own = jax.random.fold_in(rng, ("vision", "text").index(tower))
                theta["key"] = jax.random.split(own, getattr(model.config, tower).layers)
            return tap, theta

        img = model.image(batch["image"], *inserted("vision"))
        txt = model.text(consts["emb"], consts["eot"], *inserted("text"))
        return {"logits": 100 * cosine(img, txt), "image_features": img, "text_features": txt}

    return Method(init=init, apply=apply, setup=setup, needs="pixels", taps=("attn/q", "attn/k", "attn/v", "attn/o"))
