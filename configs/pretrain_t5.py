"""Span corruption of the embedded world's text, and reading, for the tiny T5, 1.5 million parameters.

python -m vlmx.main --config configs/pretrain_t5.py --workdir DIR

It made the weights in vlmx/assets/tiny_t5, whose figures on held-out texts are in their pretrain.json.
"""

from ml_collections import ConfigDict

from vlmx.errors import unknown


def get_config(arg=""):
    """`:smoke` runs everything in seconds, to see that it works; its model is worth nothing."""
    if arg not in ("", "smoke"):
        raise unknown("setting behind the colon of --config", arg, ["smoke"])
    config = ConfigDict()
    config.title = "pretrain_t5"
    config.family = "pretrain_text"
    config.kind = "t5"
    config.seed = 0
    config.data = ConfigDict(dict(texts=30_000, readings=300_000, held_out=512, seed=0, workers=7))
    config.data.length, config.data.target_length = 144, 48  # longer ones are left out
    config.noise = ConfigDict(dict(density=0.25, mean=2.0))  # texts are short: more, and shorter spans than T5's own
    config.width, config.heads, config.layers, config.vocab = 128, 4, 3, 640
    config.dropout = 0.0
    config.batch, config.steps = 128, 20_000
    config.optimizer = ConfigDict(dict(name="adamw", lr=1e-3, wd=0.01, b2=0.98, eps=1e-6, clip=1.0))
    config.optimizer.schedule = ConfigDict(dict(name="cosine", warmup=500))
    config.optimizer.groups = ((".*(kernel|embed)", {}), (".*", {"wd": 0.0}))  # decay is for matrices
    config.log_every, config.checkpoint_every = 100, 5000
    if arg == "smoke":
        config.data.update(texts=200, readings=200, held_out=160, workers=0, length=48, target_length=24)
        config.width, config.heads, config.layers = 32, 2, 1
        config.batch, config.steps, config.optimizer.schedule.warmup, config.checkpoint_every = 8, 4, 1, 2
    return config
