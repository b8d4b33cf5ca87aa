"""Pre-training of the tiny BART on pictures and text: passages about scenes, told from pictures and some of the words.

python -m vlmx.main --config configs/pretrain_vl.py[:backbone=tiny_t5] --workdir DIR

`--config.model.start=DIR/full/tuned` then makes it the frozen backbone of another run: VL-Adapter's analysis of
pre-training on vision-and-language data (arXiv 2112.06825). Let both see as many visual tokens of an image: for
scenes_image_text, `--config.model.visual_tokens=4` here.
"""

from configs import scenes_vl, vl_common
from configs.common import parse


def get_config(arg=""):
    """arg: as vl_common.run says; the variant is full fine-tuning."""
    vl_common.refuse_settings(arg, "tasks")
    config = scenes_vl.get_config(",".join(filter(None, ("full", arg))))
    config.title, config.tasks = "pretrain_vl", ("scenes_told",)
    config.data.questions = 2  # passages about each scene
    if not parse(arg)[2]:
        config.data.scenes.update(train=16_000, val=50, test=100)
    return config
