"""Your own images, without code: a folder `class/*.jpg`, or `split/class/*.jpg` with splits train, val and test.

    python -m vlmx.main --config configs/folder.py --config.data.root=DIR --config.model.name=ViT-B/16

Class names are the folders'; --config.data.classnames=FILE gives others, and
--config.data.templates='("a picture of {}.",)' other prompts. A split that is missing is made by a seeded rule and
written to the workdir; --config.data.split_file=FILE names a file in CoOp's format (split_zhou_*.json) instead, with
paths below the root.
"""

from configs import common


def get_config(arg=None):
    """`configs/folder.py[:method,...][,key=value,...]`, see configs/common.py."""
    return common.benchmark("folder", arg, augment="none")
