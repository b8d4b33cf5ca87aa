"""CLIP-Adapter (Gao et al. 2021, arXiv 2110.04544): a bottleneck on the image feature, mixed with the feature itself.

Equations (4) to (6) on the image side: A(f) = ReLU(ReLU(f W1) W2), f* = ratio * A(f) + (1 - ratio) * f. f is the
projected feature, not normalised; the linear maps have no biases. The released code has no text adapter, and shares no
settings of training. B images, C classes, E feature size.
"""

import jax

from vlmx.method import Method, image_features, template_features
from vlmx.models.clip import normalize
from vlmx.modules.adapters import Bottleneck


def make(ratio=0.2, reduction=4):
    """Feature adapter.

    Args: ratio: share of the adapted feature. reduction: the hidden layer has E // reduction units.
    """

    def adapter(E):
        return Bottleneck(max(E // reduction, 1), E, bias=False)

    def setup(model, task):
        return {"text": template_features(model, task, task.templates).mean(axis=1)}

    def init(key, model, consts, support):
        text = consts["text"]
        return {"train": adapter(text.shape[-1]).init(key, text)["params"], "fixed": {}}

    def apply(v, model, consts, batch, rng=None, train=False):
        f, text = image_features(model, batch), consts["text"]
        adapted = jax.nn.relu(adapter(f.shape[-1]).apply({"params": v["train"]}, f))
        mixed = normalize(ratio * adapted + (1 - ratio) * f)
        out = {"adapter_output": adapted, "mixed_image_features": mixed, "image_features": f, "text_features": text}
        return {"logits": model.logits(mixed, text), **out}

    return Method(init=init, apply=apply, setup=setup)
