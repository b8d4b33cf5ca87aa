"""The four image-text tasks on scenes: the published files and readers, tiny backbones, no download.

python -m vlmx.main --config configs/scenes_image_text.py:single_adapter[,single_lora,...|,all][,backbone=tiny_t5]

Pictures and annotations are written to scenes/image first, and encoded there.
"""

from configs import scenes_vl, vl_common
from vlmx.data.vl_forms import IMAGE_TEXT


def recipe(name):
    """The settings of a variant: those of scenes_vl, but for the rate, which is the published one of all but full
    fine-tuning and multiple adapters. With a higher one NLVR2 is learned later."""
    found = scenes_vl.recipe(name)
    found.optimizer.lr = 1e-3
    return found


def get_config(arg="single_adapter"):
    """arg: as vl_common.run says."""
    config = vl_common.run(
        "scenes_image_text", arg, IMAGE_TEXT, recipe, epochs=1, batch=32, backbone="tiny_bart",
        tower="tiny_clip", root="scenes/image", scenes=1.0, options={"gqa": {"train": ("train",)}},
        length=22, target_length=24,  # no text of the tiny BART is longer; captions of T5 are cut
    )  # fmt: skip
    config.model.visual_tokens = 4  # to which the 16 are pooled: the quarters of a picture
    config.model.dropout = 0.0  # as in scenes_vl
    return config
