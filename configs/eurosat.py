"""EuroSAT (Helber et al. 2019): 10 kinds of land use seen from a satellite.

python -m vlmx.main --config configs/eurosat.py --config.data.root=DATA
"""

from configs import common


def get_config(arg=None):
    """`configs/eurosat.py[:method,...][,key=value,...]`, see configs/common.py."""
    return common.benchmark("eurosat", arg)
