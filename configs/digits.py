"""Handwritten digits: the UCI optical digits (real handwriting, 1,797 images) on the packaged tiny CLIP. No download.

python -m vlmx.main --config configs/digits.py
"""

from configs import common


def get_config(arg=None):
    """`configs/digits.py[:method,...][,key=value,...]`, see configs/common.py."""
    return common.benchmark("digits", arg, model="tiny_clip", augment="none")
