"""Objects as outline sketches, a domain shift of `objects`. No download.

python -m vlmx.main --config configs/objects_sketch.py
"""

from configs import common


def get_config(arg=None):
    """`configs/objects_sketch.py[:method,...][,key=value,...]`, see configs/common.py."""
    return common.benchmark("objects_sketch", arg, model="tiny_clip", augment="none")
