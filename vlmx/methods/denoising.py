"""Denoising: an encoder-decoder makes of a corrupted text what was taken out, or the text (T5, arXiv 1910.10683; BART,
arXiv 1910.13461).

The whole backbone is the tuned tree: vlmx/pretrain_text.py makes the embedded world's own T5 and BART with it.
"""

import jax.numpy as jnp

from vlmx.method import Method
from vlmx.models.vlseq import init_params
from vlmx.multitask import token_losses, token_weights
from vlmx.variant import Insert, forward


def make():
    """Cross-entropy of "labels" `(B, T)`, -100 where there is nothing to learn, given "ids" `(B, L)`."""

    def init(key, model, consts, support):
        params = init_params(model.config, key)
        params.pop("logits_bias", None)  # a constant of BART
        return {"train": params, "fixed": {}}

    def apply(v, model, consts, batch, rng=None, train=False):
        model = model.replace(params=v["train"])
        return {"logits": forward(model, Insert(), batch["ids"], None, batch["labels"], rng if train else None)}

    return Method(apply=apply, init=init, loss=loss, needs="pixels", trains=(".*",))


def loss(out, batch):
    """Mean over the batch's tokens; the share of tokens that are likeliest, in percent."""
    logits, labels = out["logits"], batch["labels"]
    weight = token_weights(labels, by_token=True)
    right = (logits.argmax(-1) == labels) * weight
    return (token_losses(logits, labels) * weight).sum(), {"accuracy": 100 * jnp.sum(right)}
