"""FGVCAircraft (Maji et al. 2013): 100 variants of aircraft.

python -m vlmx.main --config configs/fgvc_aircraft.py --config.data.root=DATA
"""

from configs import common


def get_config(arg=None):
    """`configs/fgvc_aircraft.py[:method,...][,key=value,...]`, see configs/common.py."""
    return common.benchmark("fgvc_aircraft", arg)
