"""Adapters whose two projections are products of low rank (VL-Adapter, arXiv 2112.06825, appendix)."""

import functools

from vlmx.modules.adapters import LowRankMap
from vlmx.variant import NORMS, VISUAL, sharing
from vlmx.variants import adapter


def make(tasks="single", reduction=8, rank=1, cross=True, norms=(), trains=(NORMS, VISUAL)):
    """Low-rank adapters. Args as those of adapters; rank: of each projection."""
    own = sharing(tasks, adapter.TASKS)
    return adapter.with_maps(
        lambda model: functools.partial(LowRankMap, rank=rank), own, reduction, cross, norms, trains
    )
