"""TaskRes (Yu et al. 2022, arXiv 2211.10277): a learned residual per class on the frozen text classifier.

Equation (5): t' = t + alpha * x. t is the mean of the templates' text features, not normalised; the image side is
untouched. The released code keeps the "_" of class names; here they become spaces, as with every other method.
C classes, E feature size.
"""

import jax.numpy as jnp

from vlmx.errors import unknown
from vlmx.method import Method, image_features, template_features


def make(alpha=0.5, templates="dataset"):
    """Task residual.

    Args: alpha: the residual's scale (0.5; 1.0 for Oxford Flowers). templates: "dataset", the data set's own, or
    "ensemble", these and the seven selected on ImageNet, which the released code takes there.
    """
    if templates not in ("dataset", "ensemble"):
        raise unknown("value of taskres.templates", templates, ("dataset", "ensemble"))

    def setup(model, task):
        both = tuple(dict.fromkeys((*task.ensemble, *task.templates)))
        chosen = task.templates if templates == "dataset" else both
        return {"base": template_features(model, task, chosen).mean(axis=1)}

    def init(key, model, consts, support):
        return {"train": {"x": jnp.zeros_like(consts["base"])}, "fixed": {}}

    def apply(v, model, consts, batch, rng=None, train=False):
        img, txt = image_features(model, batch), consts["base"] + alpha * v["train"]["x"]
        return {"logits": model.logits(img, txt), "image_features": img, "text_features": txt}

    return Method(init=init, apply=apply, setup=setup, carries=False)
