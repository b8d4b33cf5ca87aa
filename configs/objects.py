"""Objects: coloured things drawn by the embedded world, as named in the tiny CLIP's pre-training. No download.

python -m vlmx.main --config configs/objects.py
"""

from configs import common


def get_config(arg=None):
    """`configs/objects.py[:method,...][,key=value,...]`, see configs/common.py."""
    return common.benchmark("objects", arg, model="tiny_clip", augment="none")
