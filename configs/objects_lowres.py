"""Objects at low resolution, a domain shift of `objects`. No download.

python -m vlmx.main --config configs/objects_lowres.py
"""

from configs import common


def get_config(arg=None):
    """`configs/objects_lowres.py[:method,...][,key=value,...]`, see configs/common.py."""
    return common.benchmark("objects_lowres", arg, model="tiny_clip", augment="none")
