"""The four video-text tasks on clips of scenes: the published files and readers, tiny backbones, no download.

python -m vlmx.main --config configs/scenes_video_text.py:single_adapter[,single_lora,...|,all][,backbone=tiny_bart]

Clips and annotations are written to scenes/video first, and encoded there: 4 frames of 16 patches each, 64 rows.
"""

from configs import scenes_vl, vl_common
from vlmx.data.vl_forms import VIDEO_TEXT


def get_config(arg="single_adapter"):
    """arg: as vl_common.run says."""
    config = vl_common.run(
        "scenes_video_text", arg, VIDEO_TEXT, scenes_vl.recipe, epochs=2.5, batch=32, backbone="tiny_t5",
        tower="tiny_clip", root="scenes/video", scenes=1.0, length=108, target_length=16,  # no text is longer
    )  # fmt: skip
    config.model.dropout = 0.0  # as in scenes_vl
    return config
