"""UCF101 (Soomro et al. 2012): 101 human actions, the middle frame of each video.

python -m vlmx.main --config configs/ucf101.py --config.data.root=DATA
"""

from configs import common


def get_config(arg=None):
    """`configs/ucf101.py[:method,...][,key=value,...]`, see configs/common.py."""
    return common.benchmark("ucf101", arg)
