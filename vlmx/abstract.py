"""The steps of a run with shapes in place of arrays: what vlmx/plan.py compiles. No weight is read, no image either.

S trainings side by side, B images of a batch, M training images of one, C classes, E feature size, K steps of a call.
"""

import dataclasses
import functools
import importlib.resources
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vlmx import evaluate, features, fit, multitask, optim, settings, shard
from vlmx import method as methods
from vlmx import variant as variants
from vlmx.data import classification, task, tokenizer
from vlmx.errors import UserError
from vlmx.models import convert, convert_seq, files, vlseq, zoo
from vlmx.models.clip import Clip, param_shapes


class Step(NamedTuple):
    """A program of a run. lower: (*arguments) -> what jax compiles; arguments: shapes. steps: of a call; examples: of a
    step, of all trainings together; calls: of the whole run; held: {what: its shapes with shardings} for the memory's
    account; notes: what was assumed or changed."""

    name: str
    kind: str  # "train", "test", "encode"
    lower: Callable
    steps: int
    examples: int
    calls: int
    held: dict
    arguments: tuple
    notes: tuple[str, ...] = ()


class Data(NamedTuple):
    """What a plan has to know of a data set."""

    classnames: tuple[str, ...]
    templates: tuple[str, ...]
    ensemble: tuple[str, ...]
    train: int
    val: int
    test: int
    notes: tuple[str, ...] = ()


def of(dtype, *shape):
    """An array's shape."""
    return jax.ShapeDtypeStruct(shape, dtype)


def placed(tree, where):
    """Shapes with shardings, one for all or a tree of them."""
    if isinstance(where, jax.sharding.Sharding):
        where = jax.tree.map(lambda _: where, tree)
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), tree, where)


# -------------------------------------------------------------------- what a config says of models and data
def model_of(config, mesh):
    """The frozen CLIP of a config on a mesh."""
    m = config.model
    options = {"image_size": m.image_size or None, "dtype": m.dtype, "param_dtype": m.param_dtype}
    if m.name in zoo.MODELS:
        c = zoo.MODELS[m.name].config
        vision = dataclasses.replace(c.vision, image_size=m.image_size or c.vision.image_size)
        c = dataclasses.replace(c, vision=vision, dtype=m.dtype, param_dtype=m.param_dtype)
    else:
        c = convert.config_of(zoo.locate(m.name), **options)
    c = dataclasses.replace(c, remat=m.remat)
    shapes = param_shapes(c)
    rules = shard.rules_of(config.shardings, "model") + shard.MODEL
    return Clip(placed(shapes, shard.shardings(mesh, shapes, rules)), c)


class Lengths(NamedTuple):
    """In place of a tokenizer that is not on this machine: ids of the right kind, in number as CLIP's would be, a token
    a word and another for each seven letters more, and one for a sign."""

    context: int
    vocab: int

    def __call__(self, texts, what=None, truncate=False):
        ids = np.zeros((len(texts), self.context), np.int32)
        for row, text in zip(ids, texts):
            words = text.replace(".", " .").replace(",", " ,").split()
            n = min(sum(-(-len(word) // 7) for word in words), self.context - 2)
            row[: n + 2] = [self.vocab - 2, *[1] * n, self.vocab - 1]
        return ids


def words_of(config, model):
    """(the tokenizer, notes)."""
    text, folder = model.config.text, Path(os.devnull)
    if config.model.name not in zoo.MODELS:
        folder = files.weight_files(zoo.locate(config.model.name))[1]
    try:
        return functools.partial(tokenizer.load(folder, text.context, text.vocab), truncate=True), ()
    except UserError:
        return Lengths(text.context, text.vocab), (
            "lengths of texts are guessed: the tokenizer is not on this machine",
        )


def data_of(config):
    """The Data of a config: as read, where it is on this machine, else as published."""
    name = config.data.name
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = task.load(config.data, folder)
        except UserError:
            if name not in classification.BENCHMARKS:
                raise
        else:
            sizes = (len(getattr(found, part).labels) for part in ("train", "val", "test"))
            return Data(found.classnames, found.templates, task.ensemble(found), *sizes)
    known = classification.BENCHMARKS[name]
    classes, *sizes = known.counts
    names = (importlib.resources.files("vlmx") / "assets" / "imagenet_classnames.txt").read_text().splitlines()
    note = () if name == "imagenet" else ("class names are ImageNet's: the data set is not on this machine",)
    names = tuple(line.split(maxsplit=1)[-1] for line in names[:classes])
    templates = (known.template,)
    ensemble = task.ensemble(task.Dataset(name, names, templates, None, None, None))
    return Data(names, templates, ensemble, *(n or 0 for n in sizes), note)


# -------------------------------------------------------------------- classification
def classify(config, devices, batch=0):
    """The Steps of every cell of a classification config on devices. batch: images of a step, instead of the recipes'.

    A batch that the mesh does not divide is made larger until it does, and noted: the run itself refuses it.
    """
    mesh = shard.make_mesh(config.mesh, devices)
    shard.refuse_uneven(mesh, len(config.seeds), {})
    model, data = model_of(config, mesh), data_of(config)
    words, guessed = words_of(config, model)
    common = functools.partial(_cell, config, mesh, model, data, words, batch, data.notes + guessed)
    steps = [encoding(config, mesh, model, data)]
    for name, protocol in settings.check(config):
        prior = settings.make(config, name, protocol).prior
        steps += [step for one in filter(None, (prior, name)) for step in common(one, protocol, one == name)]
    return steps


def encoding(config, mesh, model, data):
    """The pass of the frozen image tower over every image."""
    side, B = model.config.vision.image_size, shard.up(mesh, config.eval_batch)
    images = placed(of(jnp.uint8, B, side, side, 3), shard.batch(mesh))
    index, weight = (placed(of(t, B), shard.batch(mesh)) for t in (jnp.int32, jnp.float32))
    lower, shots = features._encoder(mesh, Clip.image).lower, settings.shots(config)
    few = min(data.train, max(shots) * len(data.classnames)) if min(shots) > 0 else data.train
    stored = 2 * few if config.data.augment == "none" else few  # of training images and of validation images
    calls = -(-data.test // B) + -(-stored // B)
    held, given = {"parameters": model.params}, (model, images, index, weight)
    return Step("image features", "encode", lower, 1, B, calls, held, given)


def _cell(config, mesh, model, data, words, batch, notes, name, protocol, tested):
    method = settings.make(config, name, protocol)
    methods.refuse_tower(name, method, model, config.model.name)
    half = protocol == "base_to_new"
    classnames = data.classnames[: -(-len(data.classnames) // 2)] if half else data.classnames
    told = methods.Task(classnames, data.templates, data.ensemble, words)
    consts = jax.eval_shape(lambda model: method.setup(model, told), model)
    rules = shard.rules_of(config.shardings, name) + shard.METHOD
    title = f"{name}, {protocol}" if len(config.protocols) > 1 else name
    v = {"train": {}, "fixed": {}}
    for shots in settings.shots(config) if not method.untrained else ():
        M = shots * len(classnames) if shots > 0 else data.train // (2 if half else 1)
        its = f"{title}, {shots} shots" if len(settings.shots(config)) > 1 else title
        found, v = _training(config, mesh, model, method, consts, (name, protocol, its), shots, M, batch, notes)
        yield from found
    if tested:
        yield _testing(config, mesh, model, method, consts, v, rules, title, -(-data.test // (2 if half else 1)), half)


def _training(config, mesh, model, method, consts, names, shots, M, batch, notes):
    """(the Step of a training, if it has any; its tree of shapes)."""
    (name, protocol, title), S, E = names, len(config.seeds), model.config.embed_dim
    recipe, rules = settings.recipe_of(config, name, protocol), shard.rules_of(config.shardings, name)
    support = {"features": of(jnp.float32, S, M, E), "label": of(jnp.int32, S, M)}
    given = support | ({"prior": {"text_features": of(jnp.float32, S, _classes(consts), E)}} if method.prior else {})
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), S))
    start = lambda key, given, model, consts: methods.start(method, key, model, consts, given)
    v = jax.eval_shape(jax.vmap(start, in_axes=(0, 0, None, None)), keys, given, model, consts)
    asked = min(batch or recipe.get("batch", M), M)
    per_epoch = max(M // asked, 1)
    total = settings.steps_of(recipe, shots, per_epoch)
    if not total:
        return [], v
    B = shard.up(mesh, asked)
    if B != asked:
        notes += (f"batch {asked} made {B}, which the mesh divides: --config.recipe.{name}.batch={B}",)
    one = jax.tree.map(lambda a: of(a.dtype, *a.shape[1:]), v["train"])
    tx, _ = optim.make(recipe.optimizer, per_epoch, total, one)
    state = {**v, "opt": jax.eval_shape(jax.vmap(tx.init), v["train"]), "step": of(jnp.int32)}

    side, pixels = model.config.vision.image_size, settings.uses_pixels(config, method, recipe)
    on_device = config.data.augment == "none" and S * M * side**2 * 3 <= fit.ON_DEVICE
    on_device &= len({d.process_index for d in mesh.devices.flat}) == 1
    streamed = pixels and not on_device
    most = min(total, 1 if streamed else 10 if pixels else config.steps_per_call or 50)
    K = max(k for k in range(1, most + 1) if total % k == 0)
    xs = {"index": of(jnp.int32, K, S, B), "weight": of(jnp.float32, K, S, B)}
    if streamed:
        xs |= {"image": of(jnp.uint8, K, S, B, side, side, 3), "label": of(jnp.int32, K, S, B)}
    elif pixels:
        support["image"] = of(jnp.uint8, S, M, side, side, 3)
    support = None if streamed else support
    where = shard.of_step(mesh, state, consts, support, model, rules)

    steps = fit.train_steps(method, tx, total, per_epoch, where, skip=config.nonfinite == "skip")
    state = placed(state, where["in_shardings"][0])
    held, given = {"parameters": model.params, "tuned, optimiser": state}, (state, model, consts, support, xs, keys)
    return [Step(title, "train", steps.lower, K, S * B, total // K, held, given, notes)], v


def _classes(consts):
    return next(len(a) for k, a in consts.items() if k in ("weights", "emb"))


def _testing(config, mesh, model, method, consts, v, rules, title, n, twice):
    """The Step of a test; twice: over both halves of the classes."""
    B, side = shard.up(mesh, config.eval_batch), model.config.vision.image_size
    batch = {
        "index": of(jnp.int32, B),
        "weight": of(jnp.float32, B),
        "features": of(jnp.float32, B, model.config.embed_dim),
    }
    batch |= {"image": of(jnp.uint8, B, side, side, 3)} if method.needs == "pixels" else {}
    tree = {**v, "consts": consts}
    tree = placed(tree, shard.shardings(mesh, tree, rules))
    consts = tree.pop("consts")
    batch = placed(batch, shard.batch(mesh))
    lower = functools.partial(evaluate._predictor(mesh).lower, method.apply)
    held = {"parameters": model.params, "tuned, optimiser": tree}
    calls = -(-n // B) * (2 if twice else 1)
    return Step(f"{title}, test", "test", lower, 1, B, calls, held, (tree, model, consts, batch))


# -------------------------------------------------------------------- vision and language
class Shapes(NamedTuple):
    """A batch of a vision-and-language task. Those of VQAv2 in VL-Adapter's image runs (arXiv 2112.06825): 500 examples
    with BART, 300 with T5; questions of 20 tokens and answers of 10; a 7 x 7 grid of CLIP's RN101."""

    batch: int = 0  # 0: the published one
    text: int = 20
    target: int = 10
    rows: int = 49
    width: int = 2048
    tasks: int = 4


PUBLISHED = {"bart": 500, "t5": 300}


def answer(variant_names, name, devices, shapes, dtype="bfloat16", steps=1000):
    """The Steps of VL-Adapter variants on a T5 or BART, a key of zoo.SEQ_MODELS or a directory."""
    mesh = shard.make_mesh(None, devices)
    if name in zoo.SEQ_MODELS:
        c = zoo.SEQ_MODELS[name].config
    else:
        path = files.weight_files(zoo.locate(name))[1] / "config.json"
        c = convert_seq.config_of(files.read_json(path), path)
    more = {"visual": vlseq.Visual(shapes.width), "added": zoo.ADDED[c.family], "dtype": dtype, "param_dtype": dtype}
    c = dataclasses.replace(c, **more)
    params = vlseq.param_shapes(c)
    model = vlseq.VLSeq(placed(params, shard.shardings(mesh, params, shard.MODEL)), c)
    asked = shapes.batch or PUBLISHED[c.family]
    B = shard.up(mesh, asked)
    notes = (f"batch {asked} made {B}, which the mesh divides",) if B != asked else ()
    for one in variant_names:
        yield _answering(one, model, mesh, shapes._replace(batch=B), steps, notes)


def _answering(name, model, mesh, s, steps, notes):
    variant = variants.make(name)
    v = variants.shapes(variant, model, s.tasks)
    state = {**v, "opt": jax.eval_shape(lambda t: multitask.moments(t, s.tasks), v["train"]), "step": of(jnp.int32)}
    state = placed(state, shard.on(mesh))
    batch = {
        "ids": of(jnp.int32, s.batch, s.text),
        "labels": of(jnp.int32, s.batch, s.target),
        "weight": of(jnp.float32, s.batch, s.target),
        "features": of(jnp.float32, s.batch, s.rows, s.width),
    }
    batch = placed(batch, shard.batch(mesh)) | {"task": placed(of(jnp.int32), shard.on(mesh))}
    key = placed(jax.eval_shape(lambda: jax.random.key(0)), shard.on(mesh))
    step = multitask.make_step(variant, multitask.linear(1e-3, steps, steps // 10))
    out = (jax.tree.map(lambda a: a.sharding, state), shard.on(mesh))
    lower = jax.jit(step, donate_argnums=0, out_shardings=out).lower
    held = {"parameters": model.params, "tuned, optimiser": state}
    return Step(name, "train", lower, 1, s.batch, steps, held, (state, model, batch, key), notes)


def bytes_of(tree):
    """Bytes that a chip holds of a tree of shapes with shardings."""
    leaves = jax.tree.leaves(tree, is_leaf=lambda a: isinstance(a, jax.ShapeDtypeStruct))
    per_chip: Callable[[Any], int] = lambda a: int(np.prod(a.sharding.shard_shape(a.shape))) * a.dtype.itemsize
    return sum(per_chip(a) for a in leaves)
