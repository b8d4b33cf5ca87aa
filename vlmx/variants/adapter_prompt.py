"""Adapters common to all tasks together with prompts of each task: what a task is told apart by is learned."""

import jax

from vlmx.variant import NORMS, VISUAL, Variant
from vlmx.variants import adapter, prompt


def make(tasks="single", reduction=8, cross=True, length=40, hidden=800, trains=(NORMS, VISUAL)):
    """Adapters (`tasks`, `reduction`, `cross` as there) and one set of `length` prompt vectors for each task."""
    a = adapter.make(tasks, reduction, cross, (), trains)
    p = prompt.make("multiple", length, hidden)

    def init(key, model):
        k_adapter, k_prompt = jax.random.split(key)
        return {"adapter": a.init(k_adapter, model), "prompt": p.init(k_prompt, model)}

    def insert(tree, model, rng=None):
        return a.insert(tree["adapter"], model)._replace(prompt=p.insert(tree["prompt"], model).prompt)

    return Variant(init, insert, (*(f"adapter/{pattern}" for pattern in a.own), "prompt/.*"), tuple(trains))
