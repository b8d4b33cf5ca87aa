"""Questions about scenes, answered by a tiny language model that reads what the tiny CLIP sees: VL-Adapter's variants.

python -m vlmx.main --config configs/scenes_vl.py:single_adapter[,single_lora,...|,all][,backbone=tiny_t5]
"""

from ml_collections import ConfigDict

from configs.common import features, literal, parse
from vlmx.errors import unknown
from vlmx.variant import PUBLISHED

# Published sizes are for a width of 768; these are for one of 128. So are the published rates (1e-4 for full
# fine-tuning, 3e-4 for multiple adapters, 1e-3 for the others): these are higher, and not searched on validation.
SIZES = {
    "hyperformer": {"embed": 64, "middle": 64, "q": 8},
    "lora": {"rank": 16, "alpha": 16.0},
    "prompt": {"length": 10, "hidden": 128},
    "adapter_prompt": {"length": 10, "hidden": 128},
}
RATES = {"full": 1e-3}


def recipe(name):
    """The settings of a variant: hyper-parameters, epochs, warm-up, optimiser."""
    file, hyper = PUBLISHED[name]
    optimizer = {"lr": RATES.get(name, 3e-3), "wd": 0.01, "b1": 0.9, "b2": 0.999, "eps": 1e-6, "clip": 5.0}
    made = {"hyper": hyper | SIZES.get(file, {}), "epochs": 4, "warmup": "10 percent", "optimizer": optimizer}
    return ConfigDict(made)


def get_config(arg="single_adapter"):
    """arg: `variant[,variant...][,key=value...]`: names of vlmx.variant.PUBLISHED, or `all`; hyper-parameters of these,
    or backbone, epochs, lr, batch, seed; `smoke` makes everything small."""
    names, given, smoke = parse(arg)
    names = tuple(PUBLISHED) if "all" in names else names or ("single_adapter",)
    for name in names:
        if name not in PUBLISHED:
            raise unknown("variant", name, [*PUBLISHED, "all"])
    config = ConfigDict()
    config.title = "scenes_vl"
    config.family = "vl"
    config.methods, config.protocols = names, ()
    config.tasks = ("scenes_vqa",)
    config.seed = 1

    config.data = ConfigDict()
    config.data.scenes = ConfigDict({"train": 4000, "val": 250, "test": 500})
    config.data.questions = 4  # about each scene
    config.data.workers = 0

    config.tower = ConfigDict(dict(name="tiny_clip", dtype="float32", param_dtype="float32"))
    config.model = ConfigDict()
    config.model.name = "tiny_bart"  # or tiny_t5, bart-base, t5-base, flan-t5-base, a hub id, a directory
    config.model.visual_tokens = 0  # a square number to which grids of features are pooled; 0: as many as there are
    config.model.dropout = -1.0  # in training; -1: the checkpoint's
    config.model.dtype = "float32"  # of the computation: float32 or bfloat16
    config.model.param_dtype = "float32"  # of the frozen weights
    config.model.remat = False

    config.features = features()
    config.batch = 64
    config.batches = ConfigDict()  # of single tasks: {"scenes_vqa": 32}
    config.temperature = 1.0  # of the mixing of tasks: 1 in proportion to their sizes, large: all alike
    config.eval_batch = 250
    config.steps_per_call = 10
    config.checkpoint_every, config.checkpoint_keep = 500, 1
    config.nonfinite = "stop"  # at a loss or gradient that is not finite; or "skip" the step
    config.mesh = ConfigDict({"seed": 1, "data": -1, "fsdp": 1, "tensor": 1})
    config.shardings = ()  # rules that go before those of vlmx/shard.py: ("model/...", layout), ("tuned/...", layout)
    config.recipe = ConfigDict({name: recipe(name) for name in names})

    for key, value in given.items():
        _set(config, key, literal(value) if isinstance(value, str) else value)
    if smoke:
        config.data.scenes.update(train=40, val=10, test=10)
        config.batch, config.eval_batch, config.steps_per_call = 16, 20, 2
        for r in config.recipe.values():
            r.epochs = 1
    return config


def _set(config, key, value):
    owners = [r for r in config.recipe.values() if key in r.hyper]
    if key == "backbone":
        config.model.name = str(value)
    elif key in ("batch", "seed"):
        config[key] = value
    elif key == "epochs":
        for r in config.recipe.values():
            r.epochs = value
    elif key == "lr":
        for r in config.recipe.values():
            r.optimizer.lr = float(value)
    elif owners:
        for r in owners:
            r.hyper[key] = value
    else:
        hyper = sorted({k for r in config.recipe.values() for k in r.hyper})
        known = ["backbone", "batch", "epochs", "lr", "seed", *hyper]
        raise unknown("setting behind the colon of --config", key, known)
