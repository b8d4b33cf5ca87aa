"""Questions about scenes, answered by a tiny language model that reads what the tiny CLIP sees: VL-Adapter's variants.

python -m vlmx.main --config configs/scenes_vl.py:single_adapter[,single_lora,...|,all][,backbone=tiny_t5]
"""

from ml_collections import ConfigDict

from configs import vl_common
from configs.common import parse
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
    """The settings of a variant: hyper-parameters, warm-up, optimiser."""
    file, hyper = PUBLISHED[name]
    optimizer = {"lr": RATES.get(name, 3e-3), "wd": 0.01, "b1": 0.9, "b2": 0.999, "eps": 1e-6, "clip": 5.0}
    return ConfigDict({"hyper": hyper | SIZES.get(file, {}), "warmup": "10 percent", "optimizer": optimizer})


def get_config(arg="single_adapter"):
    """arg: as vl_common.run says."""
    vl_common.refuse_settings(arg, "root")  # there are no files
    config = vl_common.run(
        "scenes_vl", arg, ("scenes_vqa",), recipe, epochs=2, batch=32, backbone="tiny_bart", tower="tiny_clip"
    )  # fmt: skip
    train, val, test = (40, 10, 10) if parse(arg)[2] else (4000, 250, 500)
    config.data = ConfigDict({"scenes": {"train": train, "val": val, "test": test}})  # drawn: there are no files
    config.data.questions = 4  # about each scene
    config.data.workers = 0
    config.model.dropout = 0.0  # in so few steps nothing is learned by heart
    return config
