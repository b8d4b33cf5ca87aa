"""SUN397 (Xiao et al. 2010): 397 scenes.

python -m vlmx.main --config configs/sun397.py --config.data.root=DATA
"""

from configs import common


def get_config(arg=None):
    """`configs/sun397.py[:method,...][,key=value,...]`, see configs/common.py."""
    return common.benchmark("sun397", arg)
