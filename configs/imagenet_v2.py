"""ImageNetV2 (Recht et al. 2019), matched frequency: a second ImageNet test set.
It has test images only.

    python -m vlmx.main --config configs/imagenet_v2.py --config.data.root=DATA
"""

from configs import common


def get_config(arg=None):
    """`configs/imagenet_v2.py[:method,...][,key=value,...]`, see configs/common.py."""
    return common.benchmark("imagenet_v2", arg, methods=("zero_shot",), protocols=("few_shot",))
