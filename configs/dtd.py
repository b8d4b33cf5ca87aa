"""DTD (Cimpoi et al. 2014): 47 describable textures.

python -m vlmx.main --config configs/dtd.py --config.data.root=DATA
"""

from configs import common


def get_config(arg=None):
    """`configs/dtd.py[:method,...][,key=value,...]`, see configs/common.py."""
    return common.benchmark("dtd", arg)
