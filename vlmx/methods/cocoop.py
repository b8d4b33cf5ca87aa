"""CoCoOp (Zhou et al. 2022, arXiv 2203.05557): CoOp whose context vectors are shifted by each image.

Equation (3): v_m(x) = v_m + pi, with pi = h(N(f(x))) from a small network, linear, ReLU, linear. Every image then has
prompts, and text features, of its own. B images, C classes, n context vectors, D width of the text tower, E feature
size.
"""

import jax
import jax.numpy as jnp

from vlmx.method import Method, image_features
from vlmx.methods import coop
from vlmx.models.clip import normalize
from vlmx.modules.adapters import Bottleneck


def make(n_ctx=4, ctx_init="a photo of a", reduction=16, microbatch=1024):
    """Conditional context optimisation.

    Args: n_ctx, ctx_init: as in CoOp. reduction: the network has E // reduction hidden units. microbatch: at most so
    many prompts (images x classes, but at least those of one class) go through the text tower at once; more are
    computed one after the other, and again in the backward pass. Classes are taken apart, not images, as images may lie
    on different devices.
    """
    context = coop.make(n_ctx=n_ctx, ctx_init=ctx_init)

    def meta_net(model):
        E = model.config.embed_dim
        return Bottleneck(max(E // reduction, 1), model.config.text.width)

    def init(key, model, consts, support):
        k_ctx, k_net = jax.random.split(key)
        net = meta_net(model).init(k_net, jnp.zeros((1, model.config.embed_dim)))["params"]
        ctx = context.init(k_ctx, model, consts, support)["train"]["ctx"]
        return {"train": {"ctx": ctx, "meta_net": net}, "fixed": {}}

    def apply(v, model, consts, batch, rng=None, train=False):
        img, ctx = image_features(model, batch), v["train"]["ctx"]
        pi = meta_net(model).apply({"params": v["train"]["meta_net"]}, normalize(img))  # [B,D]

        def text(words):  # of one class: [B,E]
            words = jax.tree.map(lambda a: a[None], words)
            return jax.vmap(lambda pi: model.text(coop.assemble(ctx + pi, words), words["eot"])[0])(pi)

        words = {k: jnp.asarray(consts[k]) for k in ("emb", "order", "eot")}
        classes = max(microbatch // len(pi), 1)
        if classes >= len(words["eot"]):
            txt = jax.vmap(text, out_axes=1)(words)  # [B,C,E]
        else:
            txt = jax.lax.map(jax.checkpoint(text), words, batch_size=classes).swapaxes(0, 1)
        return {"logits": model.logits(img, txt), "image_features": img, "text_features": txt, "meta_bias": pi}

    return Method(init=init, apply=apply, setup=context.setup)
