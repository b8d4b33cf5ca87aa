"""What a tuned method says about a test set. S seeds, B images of a batch, C classes, n images."""

import functools

import jax
import numpy as np

from vlmx import shard
from vlmx.data import pipeline
from vlmx.errors import UserError
from vlmx.method import tuned
from vlmx.metrics import accuracy


def _predict(apply, v, model, consts, batch):
    def one(v):
        logits = apply(v, tuned(model, v), consts, batch, None, False)["logits"]
        return logits.argmax(-1), jax.nn.softmax(logits).max(-1), jax.numpy.isnan(logits).any(-1)

    out = jax.vmap(one)(v) if jax.tree.leaves(v) else jax.tree.map(lambda a: a[None], one(v))
    return *out, batch["index"], batch["weight"]


@functools.cache
def _predictor(mesh):
    """`_predict` compiled for a mesh: what it says is on every device."""
    where = (None, None, None, shard.batch(mesh))  # None: as the rules have placed it
    return jax.jit(_predict, static_argnums=0, in_shardings=where, out_shardings=shard.on(mesh))


def predict(method, v, model, consts, batches, n, mesh, rules=shard.METHOD):
    """Predictions of all seeds at once.

    Args: v: the seeds' trees, stacked `[S, ...]`; an empty one counts as one seed. batches: of this process's rows of
    host arrays with "index", -1 for padding, and "weight". n: images. rules: of shard.py, for v and consts.

    Returns: said `(S, n)` int, its probability `(S, n)`, weight `(n,)`.
    """
    S = len(jax.tree.leaves(v)[0]) if jax.tree.leaves(v) else 1
    said, p, weight = np.zeros((S, n), np.int32), np.zeros((S, n), np.float32), np.zeros(n, np.float32)
    tree = {**v, "consts": consts}
    v = shard.place(tree, shard.shardings(mesh, tree, rules))
    consts = v.pop("consts")
    for b in batches:
        out = _predictor(mesh)(method.apply, v, model, consts, shard.join(mesh, "batch", b))
        label, prob, nan, index, w = map(np.asarray, out)
        real, counts = index >= 0, w > 0  # an unreadable image has a row, and no features
        if nan[:, counts].any():
            raise UserError(f"logits are NaN for {int(nan[:, counts].sum())} of {S * int(counts.sum())} predictions")
        said[:, index[real]], p[:, index[real]], weight[index[real]] = label[:, real], prob[:, real], w[real]
    return said, p, weight


def better(old, new):
    """Seed by seed (leaves `[S, ...]`) the tree with the higher "accuracy"; the old one where they are equal."""
    won = new["accuracy"] > old["accuracy"]
    return jax.tree.map(lambda a, b: np.where(np.expand_dims(won, tuple(range(1, a.ndim))), b, a), old, new)


def feature_batches(features, weight, batch, process=(0, 1)):
    """Stored features `(n, E)` as batches of one shape, of which process i of n gets the i-th part; the last batch is
    filled up with index -1."""
    n, (i, of) = len(features), process
    for start in range(0, n, batch):
        rows = np.arange(start, start + batch)[i * batch // of : (i + 1) * batch // of]
        real = rows < n
        rows = np.where(real, rows, 0)
        yield {"features": features[rows], "weight": weight[rows] * real, "index": np.where(real, rows, -1)}


def image_batches(split, transform, batch, features=None, **reading):
    """The images of a split as batches of one shape, with the frozen model's `features` `(n, E)` where there are any,
    without their labels: an evaluation cannot use them."""
    for b in pipeline.eval_batches(split, transform, batch, **reading):
        frozen = {} if features is None else {"features": features[np.maximum(b["index"], 0)]}
        yield {key: b[key] for key in ("image", "weight", "index")} | frozen


def count_drawn(draws, labels, classes):
    """Count the training images of some draws.

    Args: draws: of data/protocols.py. labels: of the train split. classes: those that are trained on.
    Returns: {"least", "most": images of a class, "different": how many of the draws differ}.
    """
    counts = np.stack([np.bincount(labels[draw.train], minlength=max(classes) + 1)[list(classes)] for draw in draws])
    different = len({tuple(sorted(draw.train.tolist())) for draw in draws})
    return {"least": int(counts.min()), "most": int(counts.max()), "different": different}


def scores(said, labels, classnames, weight):
    """One seed's results on one part: accuracy and macro F1, accuracy per class, confusion matrix (true, said)."""
    matrix = accuracy.confusion(labels, said, len(classnames), weight)
    twice = {name for name in classnames if classnames.count(name) > 1}  # ImageNet has two "missile"
    names = [f"{name} ({i})" if name in twice else name for i, name in enumerate(classnames)]
    values = [None if np.isnan(a) else float(a) for a in accuracy.per_class(matrix)]
    numbers = accuracy.scores(labels, said, weight)
    return (
        {k: float(numbers[k]) for k in ("accuracy", "macro_f1")},
        dict(zip(names, values, strict=True)),
        matrix.tolist(),
    )
