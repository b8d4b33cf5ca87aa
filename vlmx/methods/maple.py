"""MaPLe (Khattak et al. 2022, arXiv 2210.03117): image vectors are linear functions of the text vectors.

Equations (4) to (7): layer i < J has text vectors P_i and the image vectors F_i(P_i); placement is that of IVLP.
n vectors of a layer, J layers with vectors, D width of a tower.
"""

import jax

from vlmx.method import Method
from vlmx.modules import prompts


def make(n_ctx=2, depth=9, ctx_init="a photo of a"):
    """Coupled prompts.

    Args: n_ctx: vectors of a layer. depth: how many layers have vectors of their own (J). ctx_init: the words in front
    of the class, which the first layer's vectors start from; more vectors than words, or than four, start from noise.
    """

    def coupling(model):
        return prompts.Coupling(model.config.vision.width)

    def setup(model, task):
        return prompts.class_prompts(model, task, n_ctx, ctx_init)

    def init(key, model, consts, support):
        k_text, k_coupling = jax.random.split(key)
        J = min(depth, model.config.vision.layers)
        text = prompts.words_first(k_text, consts, J, n_ctx, model.config.text)
        return {"train": {"text": text, "F": coupling(model).init(k_coupling, text)["params"]}, "fixed": {}}

    def apply(v, model, consts, batch, rng=None, train=False):
        text = v["train"]["text"]
        vision = coupling(model).apply({"params": v["train"]["F"]}, text)
        txt = prompts.encode_text(model, consts, text)
        img = prompts.encode_image(model, batch["image"], vision)
        out = {"image_features": img, "text_features": txt, "vision_prompts": vision}
        return {"logits": model.logits(img, txt), **out}

    return Method(init=init, apply=apply, setup=setup, needs="pixels", taps=("tokens", "block"))
