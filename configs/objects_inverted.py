"""Objects in inverted colours, a domain shift of `objects`. No download.

python -m vlmx.main --config configs/objects_inverted.py
"""

from configs import common


def get_config(arg=None):
    """`configs/objects_inverted.py[:method,...][,key=value,...]`, see configs/common.py."""
    return common.benchmark("objects_inverted", arg, model="tiny_clip", augment="none")
