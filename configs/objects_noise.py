"""Objects under heavy noise, a domain shift of `objects`. No download.

python -m vlmx.main --config configs/objects_noise.py
"""

from configs import common


def get_config(arg=None):
    """`configs/objects_noise.py[:method,...][,key=value,...]`, see configs/common.py."""
    return common.benchmark("objects_noise", arg, model="tiny_clip", augment="none")
