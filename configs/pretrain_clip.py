"""Contrastive pre-training of the tiny CLIP on the embedded world's scenes, 1.5 million parameters.

python -m vlmx.main --config configs/pretrain_clip.py --workdir DIR

20 minutes on two CPU cores that other work was using too: 4 of drawing, 16 of training, at up to 7 steps a second.
It made the weights in vlmx/assets/tiny_clip, whose zero-shot accuracy is (percent): digits 70.0, objects 71.4, textures
51.0; objects as sketches 62.3, with noise 58.9, inverted 69.2, at low resolution 69.1. The world was made so that these
lie between chance and saturation, with these test sets in view: they say that the benchmarks can be used, not how good
the model is.
"""

from ml_collections import ConfigDict

from vlmx.errors import unknown


def get_config(arg=""):
    """`:smoke` runs everything in seconds, to see that it works; its model is worth nothing."""
    if arg not in ("", "smoke"):
        raise unknown("setting behind the colon of --config", arg, ["smoke"])
    config = ConfigDict()
    config.title = "pretrain_clip"
    config.family = "pretrain"
    config.seed = 0
    config.data = ConfigDict(dict(views=100_000, captions=4, shares=(0.4, 0.25), length=14, seed=0, workers=2))
    config.vision = ConfigDict(dict(width=128, layers=4, heads=2, patch=16))
    config.text = ConfigDict(dict(width=128, layers=2, heads=2, context=32, vocab=1536))
    config.embed_dim = 128
    config.batch, config.steps, config.first = 64, 5500, 1200
    config.optimizer = ConfigDict(dict(name="adamw", lr=1e-3, wd=0.1, b2=0.98, eps=1e-6, clip=1.0))
    config.optimizer.schedule = ConfigDict(dict(name="cosine", warmup=200))
    config.optimizer.groups = (("(.*/)?(kernel|proj|token_embed)", {}), (".*", {"wd": 0.0}))  # decay is for matrices
    config.log_every, config.checkpoint_every = 20, 500
    if arg == "smoke":
        config.data.update(views=300, workers=0)
        config.batch, config.steps, config.first, config.optimizer.schedule.warmup = 16, 4, 2, 1
        config.checkpoint_every = 2
    return config
