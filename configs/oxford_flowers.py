"""Flowers102 (Nilsback and Zisserman 2008): 102 species of flowers.

python -m vlmx.main --config configs/oxford_flowers.py --config.data.root=DATA
"""

from configs import common


def get_config(arg=None):
    """`configs/oxford_flowers.py[:method,...][,key=value,...]`, see configs/common.py."""
    return common.benchmark("oxford_flowers", arg, published={"taskres": {"hyper": {"alpha": 1.0}}})
