"""APEX (Yang et al. 2023, arXiv 2311.15569): prompts, a text adapter, and an ensemble with the pre-trained model that
adapts to how far each class is from those trained on.

Training: vectors in every layer of the image tower, two at the input of the text tower, and the linear adapter
t W + b on the prompted text feature. Testing, equations (5) to (7): the adaptive ensemble of vlmx/ensemble.py, between
adapted and prompted text features, and between prompted and pre-trained image features.

The released code takes for the pre-trained model a copy with random prompts of its own; here it is the pre-trained
model.
"""

from vlmx import ensemble
from vlmx.combine import combine
from vlmx.modules import adapters, prompts


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
    parts = prompts.in_both("apex", n_ctx_text, n_ctx_vision, depth_text, depth_vision, ctx_init, most=16)
    template = prompts.in_front_of_class(ctx_init)
    parts["adapter"] = adapters.on_text()._replace(template=lambda task: template)
    return ensemble.over(combine(parts), beta, threshold, template)
