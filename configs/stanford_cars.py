"""StanfordCars (Krause et al. 2013): 196 models of cars.

python -m vlmx.main --config configs/stanford_cars.py --config.data.root=DATA
"""

from configs import common


def get_config(arg=None):
    """`configs/stanford_cars.py[:method,...][,key=value,...]`, see configs/common.py."""
    return common.benchmark("stanford_cars", arg)
