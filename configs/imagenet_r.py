"""ImageNet-R (Hendrycks et al. 2021): renditions of 200 ImageNet classes.
It has test images only.

    python -m vlmx.main --config configs/imagenet_r.py --config.data.root=DATA
"""

from configs import common


def get_config(arg=None):
    """`configs/imagenet_r.py[:method,...][,key=value,...]`, see configs/common.py."""
    return common.benchmark("imagenet_r", arg, methods=("zero_shot",), protocols=("few_shot",))
