"""Food101 (Bossard et al. 2014): 101 dishes.

python -m vlmx.main --config configs/food101.py --config.data.root=DATA
"""

from configs import common


def get_config(arg=None):
    """`configs/food101.py[:method,...][,key=value,...]`, see configs/common.py."""
    return common.benchmark("food101", arg)
