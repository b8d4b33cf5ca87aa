"""TVQA, How2QA, TVC and YC2C together, as VL-Adapter was measured on them (arXiv 2112.06825).

python -m vlmx.main --config configs/video_text.py:single_adapter --config.data.root=$DATA/ann \
    --config.data.features='("vis_features/tv/clip-vit", "vis_features/how2/clip-vit", "vis_features/yc2/clip-vit")'

$DATA: as the VALUE release's download scripts leave it. backbone=t5-base goes with batch=30.
"""

from configs import vl_common
from vlmx.data.vl_forms import VIDEO_TEXT


def get_config(arg="single_adapter"):
    """arg: as vl_common.run says."""
    return vl_common.run(
        "video_text", arg, VIDEO_TEXT, vl_common.published({"full": 3e-5}, 3e-4), epochs=7, batch=50,
        backbone="bart-base", tower="ViT-B/32", what="pooled",
    )  # fmt: skip
