"""Adapters (Houlsby et al. 2019, arXiv 1902.00751) inside CLIP's towers, behind every attention and feed-forward.

Where their weights come from is a file of vlmx/variants/: stored ("adapter"), sums of Kronecker products ("compacter"),
of low rank ("low_rank_adapter"), made by a network ("hyperformer"). The same files serve T5 and BART.
"""

from collections.abc import Mapping

from vlmx import variant
from vlmx.combine import Part, combine
from vlmx.errors import UserError
from vlmx.method import check_word


def make(source="adapter", options=None):
    """Adapters in both towers. Args: source: a file of vlmx/variants/. options: its hyper-parameters, by name."""
    check_word("adapters.source", source, variant.names())  # a checkpoint can say it: no module from outside
    if options is not None and not isinstance(options, Mapping):
        raise UserError(f"adapters.options are hyper-parameters by name; got {options!r}.")
    chosen = variant.make(source, **dict(options or {}))

    def init(key, model, consts):
        return chosen.init(key, model)

    def hook(tower):
        def insert(p, model, key):
            into = chosen.insert(p, model, key)
            return into.tap, into.theta[tower]

        return insert

    return combine({"adapters": Part(init=init, image=hook("vision"), text=hook("text"), taps=("attn", "mlp"))})
