"""Prompt tuning (Lester et al. 2021, arXiv 2104.08691) in front of the encoder's text, reparametrised as in prefix
tuning (Li & Liang 2021, arXiv 2101.00190); VL-Adapter, arXiv 2112.06825, section 3.1.

Vectors in front of the decoder too (`decoder_length`): they run through it alone, once, and its self-attention sees
their keys and values.
"""

import jax

from vlmx.modules.prompts import Reparametrised
from vlmx.variant import EACH, VISUAL, Insert, Variant, sharing, starts


def make(tasks="single", length=40, hidden=800, decoder_length=0, trains=(VISUAL,)):
    """Prompts.

    Args: tasks: "single": one set of vectors for all; "multiple": one for each. length, decoder_length: vectors in
    front of the encoder's text and of the decoder's. hidden: units of the network that makes them. trains: patterns of
    the backbone's parameters that are tuned too.
    """

    def nets(model):
        lengths = {"encoder": length, "decoder": decoder_length}
        return {
            name: Reparametrised(P, model.config.width, hidden, starts(model)) for name, P in lengths.items() if P
        }  # fmt: skip

    def init(key, model):
        made = nets(model)
        keys = jax.random.split(key, len(made))
        return {name: net.init(k)["params"] for (name, net), k in zip(made.items(), keys)}

    def insert(tree, model, rng=None):
        prompts = {name: net.apply({"params": tree[name]}) for name, net in nets(model).items()}
        return Insert(prompt=prompts.get("encoder"), decoder_prompt=prompts.get("decoder"))

    return Variant(init, insert, sharing(tasks, EACH), tuple(trains))
