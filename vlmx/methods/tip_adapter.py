"""Tip-Adapter (Zhang et al. 2022, arXiv 2207.09519): the training images as a cache beside the zero-shot classifier.

Equations (3) to (5): logits = alpha * exp(-beta (1 - f . keys)) L + s * f . W, with unit image features f, the training
images' features as keys and their labels L; nothing is trained. Where an image has several views (section 3.1), its key
is their mean before it is made of unit length. The paper's s is 100, which is what exp(logit_scale) is in the released
CLIPs. alpha and beta are searched on validation, as in the released code; without validation images they stay as they
are in the config. `apply` says beside the logits "zero" `(B, C)`, the second term, and "affinity_image" `(B, M)`,
f . keys. B images, C classes, E feature size, M training images, V views.
"""

import functools

import jax.numpy as jnp
import numpy as np

from vlmx.errors import unknown
from vlmx.method import Method, image_features
from vlmx.methods.zero_shot import class_weights
from vlmx.models.clip import normalize
from vlmx.modules import retrieval


def build(
    where, name, alpha=1.17, beta=1.0, search_scale=(7.0, 3.0), search_step=(200, 20), templates="dataset", scale=0.0,
    k=0,
):  # fmt: skip
    """A cache whose keys are in the tree `where`, "fixed" or "train".

    Args: name: of the method. alpha, beta: before the search. search_scale, search_step: upper ends and numbers of the
    values of beta and of alpha that it visits; a number of 0 leaves both as they are. templates: "dataset" or
    "ensemble", as of zero_shot. scale: s; 0 is the model's own exp(logit_scale). k: nearest entries that are read; 0:
    all.
    """
    check_templates(name, templates)
    setup = lambda model, task: zero_shot_weights(model, task, templates)

    def init(key, model, consts, support):
        v = {"train": {}, "fixed": {"label": support["label"], "alpha": jnp.float32(alpha), "beta": jnp.float32(beta)}}
        v[where]["keys"] = keys_of(support)
        return v

    def parts(v, model, consts, batch):
        """Affinities `(B, M)` and zero-shot logits `(B, C)`."""
        f, keys = normalize(image_features(model, batch)), v[where]["keys"]
        affinity = retrieval.Keys(len(keys)).apply({"params": {"keys": keys}}, f)
        return affinity, zero_shot_logits(model, f, consts, scale)

    def apply(v, model, consts, batch, rng=None, train=False):
        affinity, zero = parts(v, model, consts, batch)
        return {"logits": with_cache(zero, affinity, v["fixed"], k), "zero": zero, "affinity_image": affinity}

    def finalize(v, model, consts, val):
        return searched(v, *parts(v, model, consts, val)[::-1], val["label"], search_scale, search_step, k)

    return Method(init=init, apply=apply, setup=setup, finalize=finalize, carries=False)


make = functools.partial(build, "fixed", "tip_adapter")


# -------------------------------------------------------------------- what methods with a cache share
def check_templates(name, templates):
    """UserError for templates that are not zero_shot's."""
    if templates not in ("dataset", "ensemble"):
        raise unknown(f"value of {name}.templates", templates, ("dataset", "ensemble"))


def zero_shot_weights(model, task, templates):
    """{"weights": the zero-shot classifier `(C, E)`}."""
    return {"weights": class_weights(model, task, task.templates if templates == "dataset" else task.ensemble)}


def keys_of(support):
    """Keys `(M, E)`: the features of each training image, the mean over "views" `(V, M, E)` where there are any."""
    return normalize(support["views"].mean(0) if "views" in support else support["features"])


def zero_shot_logits(model, f, consts, scale):
    """`(B, C)` of unit features `(B, E)`, with the factor `scale`, 0 for the model's own."""
    own = model.logits(f, consts["weights"])
    return own * (scale / jnp.exp(model.params["logit_scale"].astype(jnp.float32))) if scale else own


def with_cache(zero, affinity, fixed, k):
    """Zero-shot logits `(B, C)` and alpha times what the cache says; `fixed` holds "label" `(M,)`, "alpha", "beta"."""
    near, label = retrieval.nearest(affinity, fixed["label"], k)
    return zero + fixed["alpha"] * retrieval.read(near, label, fixed["beta"], zero.shape[-1])


def searched(v, zero, affinity, truth, search_scale, search_step, k):
    """`v` with the alpha and beta that are best on validation images; as it is where there are none."""
    if not len(truth) or not min(search_step):
        return v
    betas, alphas = (retrieval.grid(*one) for one in zip(search_scale, search_step, strict=True))
    alpha, beta, _ = retrieval.search(zero, affinity, v["fixed"]["label"], np.asarray(truth), alphas, betas, k=k)
    return {**v, "fixed": {**v["fixed"], "alpha": alpha, "beta": beta}}
