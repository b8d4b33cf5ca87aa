"""Textures: fill patterns drawn by the embedded world, rarely named in the tiny CLIP's pre-training. No download.

python -m vlmx.main --config configs/textures.py
"""

from configs import common


def get_config(arg=None):
    """`configs/textures.py[:method,...][,key=value,...]`, see configs/common.py."""
    return common.benchmark("textures", arg, model="tiny_clip", augment="none")
