"""ImageNet-Sketch (Wang et al. 2019): sketches of ImageNet's 1,000 classes.
It has test images only.

    python -m vlmx.main --config configs/imagenet_sketch.py --config.data.root=DATA
"""

from configs import common


def get_config(arg=None):
    """`configs/imagenet_sketch.py[:method,...][,key=value,...]`, see configs/common.py."""
    return common.benchmark("imagenet_sketch", arg, methods=("zero_shot",), protocols=("few_shot",))
