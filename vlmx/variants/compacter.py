"""Compacter (Karimi Mahabadi et al. 2021, arXiv 2106.04647): adapters whose projections are sums of Kronecker products.

H = sum_i kron(A_i, W_i), i = 1..n (equation (5)). VL-Adapter stores each W_i and a rule A for each projection; the
paper's own Compacter shares one A in the whole model and factorises W_i with rank 1: n=4, rule="model", rank=1.
"""

import functools

from vlmx.modules.compacter import RULE, Kronecker
from vlmx.variant import NORMS, VISUAL, sharing
from vlmx.variants.adapter import with_maps

EACH = {"single": (), "multiple": (r".*_(down|up)/.*",)}
RULES = {"projection": EACH, "tasks": EACH | {"multiple": (r".*_(down|up)/(?!rule).*",)}, "model": EACH}


def make(tasks="single", reduction=8, n=2, rule="projection", rank=None, cross=True, norms=(), trains=(NORMS, VISUAL)):
    """Compacter.

    Args as those of adapters; n: Kronecker products of a projection. rule: A is of each "projection" and task, of each
    projection for all "tasks", or one of the "model". rank: of the factors of W_i; None: W_i is stored.
    """
    own = sharing(tasks, sharing(rule, RULES, "rule"))
    common = {"rule": (RULE, (n, n, n))} if rule == "model" else {}
    return with_maps(
        lambda model: functools.partial(Kronecker, n=n, rank=rank), own, reduction, cross, norms, trains, common
    )  # fmt: skip
