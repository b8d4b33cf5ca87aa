"""ImageNet (Deng et al. 2009): 1,000 classes.
It has no validation split, so methods that search on validation images do not run on it.

    python -m vlmx.main --config configs/imagenet.py --config.data.root=DATA
"""

from configs import common


def get_config(arg=None):
    """`configs/imagenet.py[:method,...][,key=value,...]`, see configs/common.py."""
    config = common.benchmark("imagenet", arg, methods=("zero_shot", "coop"))
    if "coop" in config.recipe:
        config.recipe.coop.epochs = 50  # at every number of shots
    return config
