"""What a transfer method is, and what several methods share.

A method is to a frozen backbone what an optax transform is to gradients: pure functions, `init` and `apply`, over its
own small tree. Its file in vlmx/methods/ exports `make(**hyperparameters) -> Method`.

B images, C classes, E feature size, M training images.
"""

import importlib
import importlib.resources
import inspect
import reprlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vlmx import fields, partition
from vlmx.errors import UserError, unknown

PRETRAINING = ("contrastive", "denoising")  # losses of configs/pretrain_*.py, in no recipe
PHOTO = "a photo of a {}."  # the template of the methods that ignore the data set's own


class Task(NamedTuple):
    """What a method may know of a classification task: its classes in words. Data, devices and files are not here.

    `templates` are the data set's own, `ensemble` the seven of ImageNet with the data set's own behind them.
    `tokenize(texts, what)` gives ids `(n, context)` int32; `what[i]` names text i in the error of one that is too long.
    """

    classnames: tuple[str, ...]
    templates: tuple[str, ...]
    ensemble: tuple[str, ...]
    tokenize: Callable


def cross_entropy(out, batch):
    """Mean cross-entropy of `out["logits"]` `(B, C)` with `batch["label"]` `(B,)`, weighted by `batch["weight"]`.

    Returns (scalar loss, metrics): accuracy of the batch in percent.
    """
    logits, label, weight = out["logits"], batch["label"], batch["weight"]
    total = jnp.maximum(weight.sum(), 1)
    loss = (optax.softmax_cross_entropy_with_integer_labels(logits, label) * weight).sum() / total
    hits = ((logits.argmax(-1) == label) * weight).sum() / total
    return loss, {"accuracy": 100 * hits}


def no_init(key, model, consts, support):
    """The start of a method without parameters."""
    del key, model, consts, support
    return {"train": {}, "fixed": {}}


class Method(NamedTuple):
    """A transfer method; `v` is `{"train": tuned tree, "fixed": per-seed tree that is not tuned}`.

    apply:    (v, model, consts, batch, rng, train) -> {"logits": (B, C), ...}; pure. `batch` holds "image"
              (B, S, S, 3) and, where they are stored, "features" (B, E) of the frozen model, or these alone; "label"
              (B,), "index" (B,), "weight" (B,).
    init:     (key, model, consts, support) -> v, for one seed. `support` holds this seed's training set:
              "label" (M,) and, where `needs` is "features" or images are not augmented, "features" (M, E); where the
              recipe asks for views and images are augmented, "views" (V, M, E), features of random crops; where the
              method has a prior, also "prior" {"text_features": (C, E)}, what that one has learnt.
    loss:     (out, batch) -> (scalar, metrics).
    setup:    (model, task) -> consts: frozen, computed once for a list of classes, shared by seeds.
    finalize: (v, model, consts, val) -> v: a search after training, on validation data alone; for one seed, on the
              host. `val` holds "features" (n, E) and "label" (n,); n is 0 for a data set without validation images.
    after:    (v, step, total, per_epoch) -> v: pure, inside the step; total and per_epoch (steps) are Python ints.
    needs:    "features" (the image tower is untouched, so its output is enough) or "pixels".
    trains:   regular expressions of the backbone's parameters that are tuned too; the loop keeps them in
              v["train"]["backbone"] and hands `apply` the model with them in place.
    taps:     points of the image tower where it inserts something (models/layers.py); not every tower offers all.
    carries:  whether what was learned applies to classes that were not trained on.
    prior:    the name of a method that is trained before it, on the same shots.
    describe: (v, consts) -> {name: (C,)}: what the method says of classes, for the report; for one seed.
    parts:    {name: combine.Part}, where it is made of parts that can be combined with others.
    """

    apply: Callable
    init: Callable = no_init
    loss: Callable = cross_entropy
    setup: Callable = lambda model, task: {}
    finalize: Callable | None = None
    after: Callable | None = None
    needs: str = "features"
    trains: tuple[str, ...] = ()
    taps: tuple[str, ...] = ()
    carries: bool = True
    prior: str | None = None
    describe: Callable | None = None
    parts: dict | None = None

    @property
    def untrained(self):
        """Whether there is nothing to train."""
        return self.init is no_init and not self.trains


def start(method, key, model, consts, support):
    """The start `v` of one seed; backbone weights that the method tunes are in v["train"]["backbone"], in float32."""
    v = method.init(key, model, consts, support)
    if not method.trains:
        return v
    rules = [*((regex, True) for regex in method.trains), (".*", False)]
    backbone = jax.tree.map(lambda a: a.astype(jnp.float32), partition.split(model.params, rules)[0])
    return {**v, "train": {**v["train"], "backbone": backbone}}


def refuse_tower(name, method, model, model_name):
    """UserError where the image tower does not offer the points at which the method inserts something."""
    offered = model.image_points
    if not set(method.taps) <= set(offered):
        raise UserError(f"{name} needs a ViT image tower; {model_name} offers: {', '.join(offered)}.")


def tuned(model, v):
    """The model with the tuned backbone weights of `v` in place, where the method tunes any."""
    backbone = v["train"].get("backbone")
    return model if backbone is None else model.replace(params=partition.merge(backbone, model.params))


def only(method, classes):
    """The method, tested among some of the classes it was trained on: the logits of the positions `classes` alone."""

    def apply(v, model, consts, batch, rng, train):
        return {"logits": method.apply(v, model, consts, batch, rng, train)["logits"][:, jnp.asarray(classes)]}

    return method._replace(apply=apply)


def make(name, **hyperparameters):
    """The method of module `vlmx.methods.<name>`, or of a dotted path outside the package.

    "a+b" is the combination of both (vlmx/combine.py), "a+ensemble" the adaptive ensemble on top (vlmx/ensemble.py);
    then the hyper-parameters are {name: {...}}. Raises UserError: unknown method or hyper-parameter, with the valid
    ones and the nearest.
    """
    if "+" in name:
        from vlmx import combine, ensemble  # they import this module

        *inner, last = name.split("+")
        inner += [last] if last != "ensemble" else []
        for key, values in hyperparameters.items():
            if not isinstance(values, Mapping):
                raise UserError(f"hyper-parameters of {key}: expected {{name: value}}; got {reprlib.repr(values)}.")
        parts = {one: make(one, **hyperparameters.get(one, {})) for one in inner}
        method = combine.several(parts) if len(inner) > 1 else parts[inner[0]]
        return build(last, ensemble.make, hyperparameters.get(last, {}), method) if last == "ensemble" else method
    path = name if "." in name else f"vlmx.methods.{name}"
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as e:
        if e.name is None or not path.startswith(e.name):
            raise  # the module was found, something that it imports is missing
        raise unknown("method", name, names()) from None
    return build(name, module.make, hyperparameters)


def build(name, make, hyperparameters, *args):
    """Return `make(*args, **hyperparameters)` of the method or variant `name`.

    `fields.HYPER` says what a hyper-parameter may be, in a config, a checkpoint and Python alike; a `make` refuses only
    what no table can know. A module outside of the package has rules of its own.

    Raises:
        UserError: a hyper-parameter that `make` does not take, or that is not as the table says.
    """
    known = dict(list(inspect.signature(make).parameters.items())[len(args) :])
    for key, value in hyperparameters.items():
        if key not in known:
            raise unknown(f"hyper-parameter of {name}", key, known)
        rule = None if "." in name else fields.HYPER.get(key)
        plain = value.item() if isinstance(value, np.generic) else value
        if rule and plain is not known[key].default and not rule.valid(plain):
            raise UserError(f"hyper-parameter {key} of {name}: expected {rule.expected}; got {reprlib.repr(value)}.")
    return make(*args, **hyperparameters)


def names():
    """The methods that a config can name: the files of vlmx/methods/ without the losses of pre-training."""
    folder = importlib.resources.files("vlmx.methods")
    files = (f.name[:-3] for f in folder.iterdir() if f.name.endswith(".py") and f.name != "__init__.py")
    return sorted(name for name in files if name not in PRETRAINING)


def image_features(model, batch):
    """Frozen image features `(B, E)`: the stored ones where the batch has them, else encoded now, without gradient."""
    if "features" in batch:
        return batch["features"]
    return jax.lax.stop_gradient(model.image(batch["image"]))


def prompts(task, templates):
    """Texts of every class in every template, class first: (list of C*len(templates) texts, list of what each is)."""
    pairs = [(name, t) for name in task.classnames for t in templates]
    texts = [t.replace("{}", name.replace("_", " ")) for name, t in pairs]  # other braces are text
    return texts, [f"class {name!r} in template {t!r}" for name, t in pairs]


def same_prompts(task):
    """Return groups of classes whose prompts have the same token ids: no text tells them apart."""
    same = {}
    for name, ids in zip(task.classnames, task.tokenize(*prompts(task, task.templates[:1])), strict=True):
        same.setdefault(ids.tobytes(), []).append(name)
    return [names for names in same.values() if len(names) > 1]


def check_word(name, value, valid=None):
    """Refuse, with a UserError, a hyper-parameter that is no text, or none of the `valid` ones."""
    if not isinstance(value, str):
        raise UserError(f"{name} is a text; got {value!r}.")
    if valid is not None and value not in valid:
        raise unknown(f"value of {name}", value, valid)


def check_room(name, n, model):
    """UserError where n learned vectors, with the start and the end of a text, leave no place for a class name."""
    context = model.config.text.context
    if n > context - 3:
        raise UserError(
            f"{name}: {n} vectors do not fit: this model reads {context} tokens, of which the start, the end and at "
            f"least one of the class name are taken; at most {context - 3} vectors are left."
        )


def cut(model, ids):
    """`ids` without the columns behind the last EOT, and the EOT positions `(n,)`. Exact: attention is causal.

    On the host, so that `setup` needs no more of the model than its shapes (jax.eval_shape).
    """
    ids = np.asarray(ids)
    eot = model.eot(ids)
    return ids[:, : int(eot.max()) + 1], eot


@jax.jit
def _encode_text(model, ids):
    return model.encode_text(ids)


def encode_texts(model, ids, batch=512):
    """Text features `(n, E)` of ids `(n, T)`, computed in slices of `batch` rows, all of one shape."""
    ids, _ = cut(model, ids)
    n = len(ids)
    rows = min(batch, n)
    padded = np.concatenate([ids, np.repeat(ids[-1:], -n % rows, axis=0)])
    return jnp.concatenate([_encode_text(model, padded[i : i + rows]) for i in range(0, n, rows)])[:n]


def template_features(model, task, templates):
    """Text features `(C, templates, E)` of every class in every template, not normalised."""
    texts, what = prompts(task, templates)
    return encode_texts(model, task.tokenize(texts, what)).reshape(len(task.classnames), len(templates), -1)


def class_texts(model, task, template):
    """Token ids `(C, T)` of every class in one template, and their EOT positions `(C,)`."""
    return cut(model, task.tokenize(*prompts(task, (template,))))
