"""Your own images, without code: a table `path,label[,split]`.

    python -m vlmx.main --config configs/csv.py --config.data.root=IMAGES --config.data.file=TABLE.csv

A split that is missing is made by a seeded rule and written to the workdir.
"""

from configs import common


def get_config(arg=None):
    """`configs/csv.py[:method,...][,key=value,...]`, see configs/common.py."""
    return common.benchmark("csv", arg, augment="none")
