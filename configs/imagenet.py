"""ImageNet (Deng et al. 2009): 1,000 classes.
It has no validation split: a linear probe, which searches on validation images, does not run on it, and methods with a
cache keep the alpha and beta of their recipe.

    python -m vlmx.main --config configs/imagenet.py --config.data.root=DATA
"""

from configs import common


def get_config(arg=None):
    """`configs/imagenet.py[:method,...][,key=value,...]`, see configs/common.py."""
    published = {
        "coop": {"epochs": 50},  # at every number of shots
        "apex": {"epochs": 5},
        "taskres": {"hyper": {"templates": "ensemble"}, "optimizer": {"lr": 2e-4}},
    }
    return common.benchmark("imagenet", arg, methods=("zero_shot", "coop"), published=published)
