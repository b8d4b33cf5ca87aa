"""OxfordPets (Parkhi et al. 2012): 37 breeds of cats and dogs.

python -m vlmx.main --config configs/oxford_pets.py --config.data.root=DATA
"""

from configs import common


def get_config(arg=None):
    """`configs/oxford_pets.py[:method,...][,key=value,...]`, see configs/common.py."""
    return common.benchmark("oxford_pets", arg)
