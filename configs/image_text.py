"""VQAv2, GQA, NLVR2 and COCO captions together, as VL-Adapter was measured on them (arXiv 2112.06825).

python -m vlmx.main --config configs/image_text.py:single_adapter --config.data.root=$DATA \
    --config.data.features='("coco.h5", "vg.h5", "gqa_testdev.h5", "nlvr.h5")'

$DATA: vqa/, GQA/, nlvr/ and COCO/dataset_coco.json. Features: `python -m vlmx.extract --model RN101`, or the
reference's. backbone=t5-base takes T5's batches.
"""

from configs import vl_common
from configs.common import parse
from vlmx.data.vl_forms import IMAGE_TEXT

RATES = {"full": 1e-4, "multiple_adapters": 3e-4, "half_shared": 3e-4, "half_shared_down": 3e-4}
BATCHES = {
    "bart": {"vqa": 500, "gqa": 833, "nlvr": 166, "caption": 416},
    "t5": {"vqa": 300, "gqa": 500, "nlvr": 100, "caption": 250},
}


def get_config(arg="single_adapter"):
    """arg: as vl_common.run says."""
    sizes = BATCHES["t5" if "t5" in str(parse(arg)[1].get("backbone", "")) else "bart"]
    config = vl_common.run(
        "image_text", arg, IMAGE_TEXT, vl_common.published(RATES, 1e-3), epochs=20, batch=max(sizes.values()),
        batches=sizes, backbone="bart-base", tower="RN101",
    )  # fmt: skip
    config.model.visual_tokens = 36  # of 49
    return config
