"""Caltech101 (Fei-Fei et al. 2004): 100 classes of objects.

python -m vlmx.main --config configs/caltech101.py --config.data.root=DATA
"""

from configs import common


def get_config(arg=None):
    """`configs/caltech101.py[:method,...][,key=value,...]`, see configs/common.py."""
    return common.benchmark("caltech101", arg)
