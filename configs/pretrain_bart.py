"""Denoising of the embedded world's text, spans masked and sentences shuffled, and reading, for the tiny BART, 1.6
million parameters.

python -m vlmx.main --config configs/pretrain_bart.py --workdir DIR

It made the weights in vlmx/assets/tiny_bart, whose figures on held-out texts are in their pretrain.json.
"""

from configs import pretrain_t5


def get_config(arg=""):
    """`:smoke` runs everything in seconds, to see that it works; its model is worth nothing."""
    config = pretrain_t5.get_config(arg)
    config.title, config.kind, config.vocab = "pretrain_bart", "bart", 896
    config.noise.update(density=0.3, mean=3.0)  # BART's own
    return config
