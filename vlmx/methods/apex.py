"""APEX (Yang et al. 2023, arXiv 2311.15569): prompts, a text adapter, and an ensemble with the pre-trained model that
adapts to how far each class is from those trained on.

Training: vectors in every layer of the image tower, two at the input of the text tower, and the linear adapter
t W + b on the prompted text feature. Evaluation on other classes, equations (5) to (7): alpha_c = exp(-beta d_c) where
the nearest training class is further than epsilon, else 1; the adapted text feature counts alpha_c, the prompted one
1 - alpha_c; the prompted image feature counts the mean of alpha, the pre-trained one the rest. Distances are cosine
distances of the pre-trained text features; d_c is the mean over the training classes.

The released code takes for the pre-trained model a copy with random prompts of its own; here it is the pre-trained
model. B images, C classes, C_tr classes trained on, E feature size.
"""

import jax.numpy as jnp

from vlmx.method import PHOTO, image_features, template_features
from vlmx.methods import ivlp
from vlmx.models.clip import cosine


def make(
    n_ctx_text=2,
    n_ctx_vision=2,
    depth_text=1,
    depth_vision=12,
    ctx_init="a photo of a",
    beta=4.0,
    threshold=0.05,
):
    """Prompts, text adapter and adaptive ensemble.

    Args: n_ctx_text to ctx_init: as in IVLP. beta: of alpha. threshold: epsilon, below which a class counts as trained.
    """
    prompted = ivlp.make(n_ctx_text, n_ctx_vision, depth_text, depth_vision, ctx_init)

    def setup(model, task):
        return {**prompted.setup(model, task), "plain": template_features(model, task, (PHOTO,))[:, 0]}

    def init(key, model, consts, support):
        E = model.config.embed_dim
        adapter = {"W": jnp.eye(E), "b": jnp.zeros(E)}
        train = prompted.init(key, model, consts, support)["train"]
        return {"train": {**train, "adapter": adapter}, "fixed": {"trained_classes": consts["plain"]}}

    def apply(v, model, consts, batch, rng=None, train=False):
        out = prompted.apply(v, model, consts, batch, rng, train)
        img, txt = out["image_features"], out["text_features"]
        adapted = txt @ v["train"]["adapter"]["W"] + v["train"]["adapter"]["b"]
        if train:
            return {**out, "logits": model.logits(img, adapted)}
        distance = distances(consts["plain"], v["fixed"]["trained_classes"])
        alpha = jnp.exp(-beta * distance["diff_avg"] * (distance["diff_nn"] > threshold))  # [C]
        txt = alpha[:, None] * adapted + (1 - alpha[:, None]) * txt
        img = alpha.mean() * img + (1 - alpha.mean()) * image_features(model, batch)
        final = {"final_image_features": img, "final_text_features": txt, "adapted_text_features": adapted}
        return {**out, **final, **distance, "alpha": alpha, "logits": model.logits(img, txt)}

    return prompted._replace(init=init, apply=apply, setup=setup)


def distances(test, trained):
    """Cosine distance of each test class `(C, E)` from the nearest class trained on `(C_tr, E)`, and the mean over all.

    Returns {"diff_nn", "diff_avg"}, both `(C,)`.
    """
    d = 1 - cosine(test, trained)
    return {"diff_nn": jnp.maximum(d.min(axis=1), 0), "diff_avg": d.mean(axis=1)}
