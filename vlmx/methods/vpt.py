"""VPT (Jia et al. 2022, arXiv 2203.12119) on CLIP: learned vectors in the image tower, fixed text.

Equations (4) to (6): shallow prompts enter with the patches (depth 1); deep ones are replaced in each layer. The CLIP
variant, and its placement of the vectors behind the patches, is that of MaPLe's comparison (Khattak et al. 2022, arXiv
2210.03117). n vectors of a layer, J layers with vectors, D width of the image tower.
"""

from vlmx.method import PHOTO, Method, template_features
from vlmx.modules import prompts


def make(n_ctx=8, depth=12):
    """Visual prompts. Args: n_ctx: vectors of a layer. depth: how many layers have vectors of their own; 1: shallow."""

    def setup(model, task):
        return {"text": template_features(model, task, (PHOTO,))[:, 0]}

    def init(key, model, consts, support):
        return {"train": {"vision": prompts.noise(key, depth, n_ctx, model.config.vision)}, "fixed": {}}

    def apply(v, model, consts, batch, rng=None, train=False):
        img, txt = prompts.encode_image(model, batch["image"], v["train"]["vision"]), consts["text"]
        return {"logits": model.logits(img, txt), "image_features": img, "text_features": txt}

    return Method(init=init, apply=apply, setup=setup, needs="pixels", taps=("tokens", "block"))
