"""Tip-Adapter-F (Zhang et al. 2022, arXiv 2207.09519, section 3.2): Tip-Adapter whose keys are trained.

They start as Tip-Adapter's and are trained with alpha and beta of the config, which are searched afterwards. The
released code keeps the epoch that is best on the test images; here it is the last one, or, with checkpoint_best, that
best on validation.
"""

import functools

from vlmx.methods import tip_adapter

make = functools.partial(tip_adapter.build, "train", "tip_adapter_f")
