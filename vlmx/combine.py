"""Methods made of parts: what each part inserts into the towers of one frozen CLIP, or does to their features.

A method that says its `parts` can be combined with others by name, "vpt+clip_lora+text_adapter"; and any method can
stand under the adaptive ensemble, "coop+ensemble" (vlmx/ensemble.py). What no part touches is computed once: without a
part in the text tower the text features are constants, without one in the image tower stored features are enough.

B images, C classes, T tokens, D width of a tower, E feature size.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax

from vlmx.errors import UserError
from vlmx.method import PHOTO, Method, class_texts, image_features, template_features
from vlmx.models.clip import Clip
from vlmx.models.layers import no_tap


class Part(NamedTuple):
    """What a tuned tree `p` does to a CLIP; a hook that is None does nothing.

    init:     (key, model, consts) -> p.
    prompts:  (model, task) -> consts "emb" `(C, T, D)` and "eot" `(C,)`: class prompts with room for what `enter` puts
              there. At most one part of a method has these two.
    enter:    (p, emb) -> emb, before positions are added.
    text, image: (p, model, key) -> (tap, theta) of that tower; `key` is None where nothing is to be drawn.
    adapt:    (p, txt) -> txt `(C, E)`, what comes out of the text tower.
    template: task -> the template of the class names, where no part has `prompts`. The first part that has one decides;
              without any it is "a photo of a {}.".
    taps:     the points of the image tower at which it inserts something.
    """

    init: Callable
    prompts: Callable | None = None
    enter: Callable | None = None
    text: Callable | None = None
    image: Callable | None = None
    adapt: Callable | None = None
    template: Callable | None = None
    taps: tuple[str, ...] = ()


def combine(parts, logits=Clip.logits):
    """The method whose tuned tree has a branch for each of `parts`, {name: Part}, in the order in which they act.

    logits: (model, img, txt) -> `(B, C)`. The features of the prompted towers are "image_features", "text_features";
    what the parts' `adapt` make of the latter is "adapted_text_features". Raises UserError where two parts want the
    same places among the tokens of a tower, or where there is no part.
    """
    if not parts:
        raise UserError("0 vectors, or 0 layers with vectors, in both towers: there is nothing to train.")
    for tower, same in (
        ("text", [name for name, part in parts.items() if part.prompts]),
        ("image", [name for name, part in parts.items() if "tokens" in part.taps]),
    ):
        if len(same) > 1:
            raise UserError(f"{' and '.join(same)} both put vectors among the tokens of the {tower} tower: leave one.")
    template = next((part.template for part in parts.values() if part.template), lambda task: PHOTO)
    words = lambda model, task: class_words(model, task, template(task))
    prompts = next((part.prompts for part in parts.values() if part.prompts), words)
    in_text = any(part.prompts or part.text for part in parts.values())
    in_image = any(part.image for part in parts.values())

    def setup(model, task):
        return prompts(model, task) if in_text else {"text": template_features(model, task, (template(task),))[:, 0]}

    def init(key, model, consts, support):
        keys = jax.random.split(key, len(parts))
        train = {name: part.init(k, model, consts) for k, (name, part) in zip(keys, parts.items(), strict=True)}
        return {"train": train, "fixed": {}}

    def apply(v, model, consts, batch, rng=None, train=False):
        p = v["train"]

        draws = train and rng is not None
        keys = {name: jax.random.fold_in(rng, i) if draws else None for i, name in enumerate(parts)}

        def inserted(tower):
            hooks = {name: hook for name, part in parts.items() if (hook := getattr(part, tower))}
            return chain([hook(p[name], model, keys[name]) for name, hook in hooks.items()])

        img = model.image(batch["image"], *inserted("image")) if in_image else image_features(model, batch)
        if in_text:
            emb = consts["emb"]
            for name, part in parts.items():
                emb = part.enter(p[name], emb) if part.enter else emb
            txt = model.text(emb, consts["eot"], *inserted("text"))
        else:
            txt = consts["text"]
        out, adapted = {"image_features": img, "text_features": txt}, txt
        for name, part in parts.items():
            if part.adapt:
                out["adapted_text_features"] = adapted = part.adapt(p[name], adapted)
        return {**out, "logits": logits(model, img, adapted)}

    return Method(
        init=init, apply=apply, setup=setup, needs="pixels" if in_image else "features",
        taps=tuple(dict.fromkeys(point for part in parts.values() for point in part.taps)), parts=parts,
    )  # fmt: skip


def class_words(model, task, template):
    """Class prompts without learned vectors."""
    ids, eot = class_texts(model, task, template)
    return {"emb": model.tokens(ids), "eot": eot}


def chain(insertions):
    """(tap, theta) of several insertions (tap, theta), which act one after the other."""
    if len(insertions) < 2:
        return insertions[0] if insertions else (no_tap, None)
    taps, thetas = zip(*insertions, strict=True)

    def tap(point, y, x, theta):
        for one, own in zip(taps, theta, strict=True):
            y = one(point, y, x, own)
        return y

    return tap, thetas


def several(methods):
    """The combination of {name: Method}, each made of parts. Raises UserError for one that is not."""
    for name, method in methods.items():
        if method.parts is None:
            can = "vpt, ivlp, clip_lora, adapters, text_adapter"
            raise UserError(f"{name} is not made of parts, so it cannot be combined; only '+ensemble' can. Can: {can}.")
    return combine({f"{name}_{part}": p for name, method in methods.items() for part, p in method.parts.items()})
