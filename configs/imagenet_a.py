"""ImageNet-A (Hendrycks et al. 2021): natural adversarial images of 200 ImageNet classes.
It has test images only.

    python -m vlmx.main --config configs/imagenet_a.py --config.data.root=DATA
"""

from configs import common


def get_config(arg=None):
    """`configs/imagenet_a.py[:method,...][,key=value,...]`, see configs/common.py."""
    return common.benchmark("imagenet_a", arg, methods=("zero_shot",), protocols=("few_shot",))
