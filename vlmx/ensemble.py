"""The adaptive ensemble of APEX (Yang et al. 2023, arXiv 2311.15569, section 3.3), on top of any method.

Equations (5) to (7): alpha_c = exp(-beta d_c) where the nearest class trained on is further than epsilon, else 1; d_c
is the mean distance from the classes trained on. Distances are cosine distances of the pre-trained text features. Of
the text feature the tuned one counts alpha_c and the other one 1 - alpha_c: with a text adapter, the other one is that
before the adapter, as in APEX; without, that of the pre-trained model. Of the image feature the tuned one counts the
mean of alpha, that of the pre-trained model the rest. B images, C classes, C_tr classes trained on, E feature size.
"""

import jax.numpy as jnp

from vlmx.errors import UserError
from vlmx.method import PHOTO, image_features, template_features
from vlmx.models.clip import cosine


def make(method, beta=4.0, threshold=0.05):
    """`method`, in testing mixed with the pre-trained model. Args: beta: of alpha. threshold: epsilon.

    The method's outputs need "image_features" `(B, E)` and "text_features" `(C, E)`, or `(B, C, E)` where each image
    has its own. Raises UserError for a method without, or one that changes the pre-trained weights.
    """
    return over(method, beta, threshold, PHOTO)


def over(method, beta, threshold, template):
    """`make`, where the pre-trained model reads the classes in another template."""
    if method.trains:
        raise UserError("the ensemble needs the pre-trained model beside the tuned one, and this method changes it.")

    def setup(model, task):
        return {**method.setup(model, task), "plain": template_features(model, task, (template,))[:, 0]}

    def init(key, model, consts, support):
        v = method.init(key, model, consts, support)
        return {**v, "fixed": {**v["fixed"], "trained_classes": consts["plain"]}}

    def describe(v, consts):
        """{"alpha", "diff_nn", "diff_avg"} `(C,)` of the classes of `consts`."""
        distance = distances(consts["plain"], v["fixed"]["trained_classes"])
        return {**distance, "alpha": jnp.exp(-beta * distance["diff_avg"] * (distance["diff_nn"] > threshold))}

    def apply(v, model, consts, batch, rng=None, train=False):
        out = method.apply(v, model, consts, batch, rng, train)
        if train:
            return out
        if "text_features" not in out:
            raise UserError("the ensemble mixes text features, and this method has none.")
        facts = describe(v, consts)
        alpha, img, txt = facts["alpha"][:, None], out["image_features"], out["text_features"]
        tuned, other = (out["adapted_text_features"], txt) if "adapted_text_features" in out else (txt, consts["plain"])
        txt = alpha * tuned + (1 - alpha) * other
        img = alpha.mean() * img + (1 - alpha.mean()) * image_features(model, batch)
        final = {"final_image_features": img, "final_text_features": txt, "logits": model.logits(img, txt)}
        return {**out, **facts, **final}

    return method._replace(init=init, apply=apply, setup=setup, describe=describe, parts=None)


def distances(test, trained):
    """Cosine distance of each test class `(C, E)` from the nearest class trained on `(C_tr, E)`, and the mean over all.

    Returns {"diff_nn", "diff_avg"}, both `(C,)`.
    """
    d = 1 - cosine(test, trained)
    return {"diff_nn": jnp.maximum(d.min(axis=1), 0), "diff_avg": d.mean(axis=1)}
