"""XMAdapter (Cross-Modal Adapter, arXiv 2404.12588): Tip-Adapter-F with a text cache beside the image cache.

No code is public. [paper] marks what its six equations fix, [ours] what they leave open; each [ours] is an argument.

1. Image cache [paper], as Tip-Adapter-F's: A_img = f . keys. Whether the keys are trained [ours].
2. Text cache [paper]: A_txt = Img2Txt(f) . (L MetaNet(T)), two linear maps E -> D; T are the class features of prompts
   that CoOp learned on the same shots. D = E / `reduction`, no biases, both outputs of unit length, both maps from one
   semi-orthogonal matrix, so that A_txt starts near the cosine of image and text; T of templates instead [ours].
3. A = gamma A_img + (1 - gamma) A_txt, gamma is adapted [paper]: the sigmoid of a scalar, or of one number a class,
   from `gamma` on [ours].
4. logits = alpha exp(-beta (1 - A)) L + s f . W; alpha and beta are searched on validation afterwards [paper].
5. Images about which the caches disagree count more [paper]: h = |P_img - P_txt|_1 / 2 with P the softmax of
   `hard_scale` times what one cache alone says, without gradient; image i's weight is (1 + lam h_i), divided by the
   mean of these [ours].
6. An image meets its own entry in training, as in Tip-Adapter-F; or not, with `mask_self` [ours].

`apply` says beside the logits: "zero" `(B, C)`, the second term of 4; "affinity_image", "affinity_text" `(B, M)`, of
the caches that there are; "hard" `(B,)`, h.

B images, C classes, D width of the two maps, E feature size, M training images.
"""

import jax
import jax.numpy as jnp

from vlmx.errors import unknown
from vlmx.method import Method, cross_entropy, image_features
from vlmx.methods import tip_adapter
from vlmx.models.clip import cosine, normalize
from vlmx.modules import retrieval

ADAPTED = ("scalar", "per_class", "no")


def make(
    alpha=1.17, beta=1.0, search_scale=(7.0, 3.0), search_step=(200, 20), templates="dataset", scale=0.0, k=0,
    train_keys=True, text_cache="coop", reduction=4, gamma=0.8, adapt_gamma="scalar", lam=1.0,
    hard_scale=1.0, mask_self=False,
):  # fmt: skip
    """Cache of two modalities. Args, the first seven as of tip_adapter:

    train_keys: or leave them as they are. text_cache: T is of this method, trained on the same shots ("coop"), or of
    "templates". reduction: E / D. gamma: the image cache's share at the start; with 0 or 1 there is one cache alone,
    nothing to adapt and no disagreement. adapt_gamma: "scalar", "per_class" or "no". lam: of the hard samples; 0: every
    image counts alike. hard_scale: within h. mask_self: leave an image's own entry out in training.
    """
    tip_adapter.check_templates("xmadapter", templates)
    if adapt_gamma not in ADAPTED:
        raise unknown("value of xmadapter.adapt_gamma", adapt_gamma, ADAPTED)
    image, text = gamma > 0, gamma < 1  # the caches that there are
    setup = lambda model, task: tip_adapter.zero_shot_weights(model, task, templates)

    def init(key, model, consts, support):
        train, fixed = {}, {"label": support["label"], "alpha": jnp.float32(alpha), "beta": jnp.float32(beta)}
        C, E = consts["weights"].shape
        if image:
            (train if train_keys else fixed)["keys"] = tip_adapter.keys_of(support)
        if text:
            fixed["text"] = consts["weights"] if text_cache == "templates" else support["prior"]["text_features"]
            start = semi_orthogonal(key, E, max(E // reduction, 1))
            train |= {"meta": start, "img2txt": start}
        if image and text and adapt_gamma != "no":
            train["gamma"] = jnp.full(C if adapt_gamma == "per_class" else (), jnp.log(gamma / (1 - gamma)))
        return {"train": train, "fixed": fixed}

    def affinities(v, f):
        """{"image", "text"} `(B, M)` of unit features, of the caches that there are."""
        p, label, found = v["fixed"] | v["train"], v["fixed"]["label"], {}
        if image:
            found["image"] = retrieval.Keys(len(label)).apply({"params": {"keys": p["keys"]}}, f)
        if text:
            found["text"] = cosine(f @ p["img2txt"], p["text"] @ p["meta"])[:, label]
        return found

    def both(v, found):
        """The affinity `(B, M)` of both caches together."""
        if len(found) == 1:
            return next(iter(found.values()))
        share = jax.nn.sigmoid(v["train"]["gamma"]) if adapt_gamma != "no" else jnp.float32(gamma)
        share = share[v["fixed"]["label"]] if share.ndim else share
        return share * found["image"] + (1 - share) * found["text"]

    def disagreement(v, found, C):
        """h `(B,)` in [0, 1]; 0 where there is one cache alone."""
        label, beta = v["fixed"]["label"], v["fixed"]["beta"]
        p = [jax.nn.softmax(hard_scale * retrieval.read(A, label, beta, C)) for A in found.values()]
        return jax.lax.stop_gradient(0.5 * jnp.abs(p[0] - p[-1]).sum(-1))

    def apply(v, model, consts, batch, rng=None, train=False):
        f = normalize(image_features(model, batch))
        found = affinities(v, f)
        if train and mask_self:
            own = batch["index"][:, None] == jnp.arange(len(v["fixed"]["label"]))
            found = {name: jnp.where(own, retrieval.FAR, A) for name, A in found.items()}
        zero = tip_adapter.zero_shot_logits(model, f, consts, scale)
        out = {"logits": tip_adapter.with_cache(zero, both(v, found), v["fixed"], k), "zero": zero}
        out |= {f"affinity_{name}": A for name, A in found.items()}
        return out | {"hard": disagreement(v, found, zero.shape[-1])}

    def loss(out, batch):
        plain, metrics = cross_entropy(out, batch)
        real, weight = batch["weight"], 1 + lam * out["hard"]
        mean = (real * weight).sum() / jnp.maximum(real.sum(), 1)
        total, _ = cross_entropy(out, batch | {"weight": real * weight / jnp.where(mean > 0, mean, 1)})
        return total, metrics

    def finalize(v, model, consts, val):
        f = normalize(image_features(model, val))
        zero, affinity = tip_adapter.zero_shot_logits(model, f, consts, scale), both(v, affinities(v, f))
        return tip_adapter.searched(v, zero, affinity, val["label"], search_scale, search_step, k)

    prior = None if text_cache == "templates" or not text else text_cache
    return Method(
        init=init, apply=apply, loss=loss, setup=setup, finalize=finalize, carries=False, prior=prior
    )  # fmt: skip


def semi_orthogonal(key, rows, columns, steps=40):
    """A random matrix `(rows, columns)` with orthonormal columns: Newton and Schulz's iteration on a Gaussian one.

    Not by QR: LAPACK's of several seeds at once, on several CPU devices of a process, waits for threads that all of
    them hold, for ever.
    """
    x = jax.random.normal(key, (rows, columns)) / (rows**0.5 + columns**0.5)  # singular values up to about 1
    gram = lambda x: jnp.matmul(x.T, x, precision="highest")
    return jax.lax.fori_loop(0, steps, lambda _, x: 1.5 * x - 0.5 * jnp.matmul(x, gram(x), precision="highest"), x)
