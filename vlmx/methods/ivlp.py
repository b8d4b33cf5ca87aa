"""IVLP, independent vision-language prompting (Rasheed et al. 2022, arXiv 2212.03640, and the baseline of MaPLe,
arXiv 2210.03117, section 3.2): learned vectors in both towers, without a link between them.

The text vectors take the places of the first n words of "a photo of a <class>." and start from these; all others start
from noise. n vectors of a layer, J layers with vectors, D width of a tower.
"""

import jax

from vlmx.method import Method
from vlmx.modules import prompts


def make(n_ctx_text=2, n_ctx_vision=2, depth_text=12, depth_vision=12, ctx_init="a photo of a"):
    """Prompts in both towers.

    Args: n_ctx_text, n_ctx_vision: vectors of a layer. depth_text, depth_vision: how many layers have vectors of their
    own. ctx_init: the words in front of the class; more vectors than words start from noise.
    """

    def setup(model, task):
        return prompts.class_prompts(model, task, n_ctx_text, ctx_init)

    def init(key, model, consts, support):
        k_text, k_vision = jax.random.split(key)
        c = model.config
        text = prompts.words_first(k_text, consts, depth_text, n_ctx_text, c.text)
        vision = prompts.noise(k_vision, depth_vision, n_ctx_vision, c.vision)
        return {"train": {"text": text, "vision": vision}, "fixed": {}}

    def apply(v, model, consts, batch, rng=None, train=False):
        txt = prompts.encode_text(model, consts, v["train"]["text"])
        img = prompts.encode_image(model, batch["image"], v["train"]["vision"])
        return {"logits": model.logits(img, txt), "image_features": img, "text_features": txt}

    return Method(init=init, apply=apply, setup=setup, needs="pixels", taps=("tokens", "block"))
