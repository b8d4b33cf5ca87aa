"""CoOp (Zhou et al. 2022, arXiv 2109.01134): the words around a class name become learned vectors.

Equation (2) and (3): t = [V]_1 ... [V]_n [CLASS], with the class name at the end, in the middle or in front, and the
vectors common to all classes (unified) or a set per class (CSC). The text tower reads t, the image tower is untouched.
C classes, T tokens, D width of the text tower, n context vectors.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vlmx.method import Method, check_room, check_word, cut, image_features

POSITIONS = ("end", "middle", "front")


def make(n_ctx=16, ctx_init="", class_token_position="end", csc=False):
    """Context optimisation.

    Args: n_ctx: number of vectors, drawn from N(0, 0.02^2). ctx_init: words that the vectors start from instead; their
    number then is n_ctx and csc is off, as in the official code. class_token_position: "end", "middle" or "front".
    csc: class-specific context `(C, n, D)` instead of unified `(n, D)`; it cannot be carried to other classes.
    """
    check_word("coop.class_token_position", class_token_position, POSITIONS)
    words = ctx_init.replace("_", " ").split()
    n = len(words) or int(n_ctx)
    csc = csc and not words
    alike = 0 if csc else in_front(n, class_token_position)  # vectors that every prompt begins with

    def setup(model, task):
        check_room("ctx_init" if words else "n_ctx", n, model)
        names = [name.replace("_", " ") for name in task.classnames]
        what = [f"class {name!r} behind {n} context vectors" for name in task.classnames]
        # Words hold the places of the vectors: the embeddings of the first n tokens are never read.
        ids = task.tokenize([" ".join([*(words or ["a"] * n), f"{name}."]) for name in names], what)
        ids, eot = cut(model, ids)
        length = model.eot(np.asarray(task.tokenize(names, what))) - 1  # tokens of each name
        length = np.minimum(length, eot - 1 - n)  # of a text that was cut, what is left of it
        consts = {"emb": model.tokens(ids), "eot": eot, "order": order(ids.shape[1], n, length, class_token_position)}
        if words:
            first = jnp.asarray(task.tokenize([" ".join(words)], ["coop.ctx_init"]))[:1, 1 : 1 + n]
            consts["ctx_init"] = model.tokens(first)[0].astype(jnp.float32)
        return consts

    def init(key, model, consts, support):
        C, _, D = consts["emb"].shape
        shape = (C, n, D) if csc else (n, D)
        ctx = consts["ctx_init"] if words else 0.02 * jax.random.normal(key, shape)
        return {"train": {"ctx": ctx}, "fixed": {}}

    def apply(v, model, consts, batch, rng=None, train=False):
        img = image_features(model, batch)
        prompts, P = assemble(v["train"]["ctx"], consts), 1 + alike
        if alike:
            txt = model.text_behind(prompts[0, :P], prompts[:, P:], consts["eot"] - P)
        else:
            txt = model.text(prompts, consts["eot"])
        return {"logits": model.logits(img, txt), "image_features": img, "text_features": txt}

    return Method(init=init, apply=apply, setup=setup, carries=not csc)


def in_front(n, position):
    """How many of n context vectors stand in front of the class name."""
    return {"end": n, "middle": n // 2, "front": 0}[position]


def order(T, n, length, position):
    """Where each place of the prompt is read from, `(C, T)`, in the sequence [start, ctx, name, '.', end, padding].

    Args: length: tokens of each class name `(C,)`. position: "end" (as it is), "middle" (start, ctx[:n//2], name,
    ctx[n//2:], rest) or "front" (start, name, ctx, rest).
    """
    places, before = np.tile(np.arange(T), (len(length), 1)), in_front(n, position)
    for row, m in zip(places, np.asarray(length), strict=True):
        name, after = range(1 + n, 1 + n + m), range(1 + before, 1 + n)
        row[1 + before : 1 + n + m] = [*name, *after]
    return jnp.asarray(places)


def assemble(ctx, consts):
    """Input embeddings `(C, T, D)` of the prompts, without positions; ctx is `(n, D)` or `(C, n, D)`."""
    emb = consts["emb"]
    C, _, D = emb.shape
    ctx = jnp.broadcast_to(ctx, (C, *ctx.shape[-2:])).astype(emb.dtype)
    n = ctx.shape[1]
    sequence = jnp.concatenate([emb[:, :1], ctx, emb[:, 1 + n :]], axis=1)
    return jnp.take_along_axis(sequence, consts["order"][..., None], axis=1)
