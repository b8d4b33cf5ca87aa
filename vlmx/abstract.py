"""The steps of a run with shapes in place of arrays: what vlmx/plan.py compiles. No weight is read, no image either.

Everything else is the run's own: which trainings are one program, how many steps a call has, what lies where.
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

from vlmx import evaluate, features, fit, optim, settings, shard
from vlmx import method as methods
from vlmx.data import classification, protocols, task, tokenizer
from vlmx.errors import UserError
from vlmx.models import convert, files, zoo
from vlmx.models.clip import Clip, param_shapes
from vlmx.world import Test, World, target_data, words


class Step(NamedTuple):
    """A program of a run. program: () -> (K, what jax compiles), a call of K steps; arguments: the shapes that it takes
    first; total: steps of the whole run; examples: of a step, of all trainings together; held: {what: its shapes with
    shardings} for the memory's account; notes: what was assumed or changed."""

    name: str
    kind: str  # "train", "test", "encode"
    program: Callable
    total: int
    examples: int
    held: dict
    arguments: tuple
    notes: tuple[str, ...] = ()


def of(dtype, *shape):
    """An array's shape."""
    return jax.ShapeDtypeStruct(shape, dtype)


def placed(tree, where):
    """Shapes with shardings, one for all or a tree of them."""
    if isinstance(where, jax.sharding.Sharding):
        where = jax.tree.map(lambda _: where, tree)
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), tree, where)


def bytes_of(tree):
    """Bytes that a chip holds of a tree of shapes with shardings."""
    leaves = jax.tree.leaves(tree, is_leaf=lambda a: isinstance(a, jax.ShapeDtypeStruct))
    per_chip: Callable[[Any], int] = lambda a: int(np.prod(a.sharding.shard_shape(a.shape))) * a.dtype.itemsize
    return sum(per_chip(a) for a in leaves)


# -------------------------------------------------------------------- what a config says of models and data
def model_of(m, mesh, rules=()):
    """The frozen CLIP of config.model, or of config.tower, on a mesh. rules: the config's, that come first."""
    size = m.get("image_size", 0)
    if m.name in zoo.MODELS:
        c = zoo.MODELS[m.name].config
        vision = dataclasses.replace(c.vision, image_size=size or c.vision.image_size)
        c = dataclasses.replace(c, vision=vision, dtype=m.dtype, param_dtype=m.param_dtype)
    else:
        options = {"image_size": size or None, "dtype": m.dtype, "param_dtype": m.param_dtype}
        c = convert.config_of(zoo.locate(m.name), **zoo.overrides(m) | options)
    c = dataclasses.replace(c, remat=m.get("remat", False))
    shapes = param_shapes(c)
    return Clip(placed(shapes, shard.shardings(mesh, shapes, (*rules, *shard.MODEL))), c)


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
        return tokenizer.load(folder, text.context, text.vocab), ()
    except UserError:
        note = "lengths of texts are guessed: the tokenizer is not on this machine"
        return Lengths(text.context, text.vocab), (note,)


def data_of(data):
    """(the Dataset of config.data, notes): as read, where it is on this machine, else as large as published."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return task.load(data, folder), ()
        except UserError:
            if data["name"] not in classification.BENCHMARKS:
                raise
    name, known = data["name"], classification.BENCHMARKS[data["name"]]
    classes, *sizes = known.counts
    names = (importlib.resources.files("vlmx") / "assets" / "imagenet_classnames.txt").read_text().splitlines()
    names = tuple(line.split(maxsplit=1)[-1] for line in names[:classes])
    splits = (task.Split((), np.arange(n or 0, dtype=np.int32) % classes, ()) for n in sizes)
    note = () if name == "imagenet" else (f"class names of {name} are ImageNet's: the data set is not on this machine",)
    return task.Dataset(name, names, (known.template,), *splits), note


# -------------------------------------------------------------------- classification
def of_step(name, only):
    """Whether a step called `only` may be one of the method or variant `name`: it begins with it; "" may be any."""
    return only in ("", name) or only.startswith(f"{name}, ")


def classify(config, devices, batch=0, only=""):
    """The Steps of every cell of a classification config on devices. batch: images of a step, instead of the recipes'.
    only: the name of a step, where no other is wanted: those of other methods are left out.

    A batch that the mesh does not divide is made larger until it does, and noted: the run itself refuses it.
    """
    cells, mesh = settings.check(config), shard.make_mesh(config.mesh, devices)
    shard.refuse_uneven(mesh, len(config.seeds), {})
    model = model_of(config.model, mesh, shard.rules_of(config.shardings, "model"))
    (dataset, notes), (tokens, guessed) = data_of(config.data), words_of(config, model)
    tests, problems = {"": Test(dataset, None)}, {}
    for protocol in dict.fromkeys(protocol for _, protocol in cells):
        for name in settings.targets(config, protocol):
            if name not in tests:
                target, more = data_of(target_data(config, name))
                tests[name], notes = Test(target, None), notes + more
        mine = {name: tests[name].dataset for name in settings.targets(config, protocol)}
        problems[protocol] = protocols.PROTOCOLS[protocol](dataset, settings.shots(config), config.seeds, mine)
    world = World(config, Path(), mesh, dataset, model, tokens, "", None, {}, {}, tests, {})
    yield encoding(config, mesh, model, problems, tests)
    done = set()
    for name, protocol in cells:
        prior, notes_of = settings.make(config, name, protocol).prior, notes + guessed
        for one in (one for one in (prior, name) if one and of_step(one, only)):
            yield from _cell(world, one, protocol, problems[protocol], done, batch, one == name, notes_of)


def encoding(config, mesh, model, problems, tests):
    """The pass of the frozen image tower over every image that is tested on, or trained on as it is."""
    draws = [draw for problem in problems.values() for draw in problem.draws]
    rows = lambda part: len(np.unique(np.concatenate([getattr(draw, part) for draw in draws])))
    stored = rows("val") + (rows("train") if config.data.augment == "none" else 0)
    B = shard.up(mesh, config.eval_batch)
    calls = sum(-(-len(test.dataset.test.labels) // B) for test in tests.values()) + -(-stored // B)
    return encode(mesh, model, Clip.image, B, calls)


def encode(mesh, model, output, B, calls):
    """A pass of a frozen image tower, that gives `output` (model, images) of each."""
    side = model.config.vision.image_size
    images = placed(of(jnp.uint8, B, side, side, 3), shard.batch(mesh))
    index, weight = (placed(of(t, B), shard.batch(mesh)) for t in (jnp.int32, jnp.float32))
    given = (model, images, index, weight)
    program = lambda: (1, features._encoder(mesh, output).lower(*given))
    return Step("image features", "encode", program, calls, B, {"parameters": model.params}, given)


def _cell(world, name, protocol, problem, done, batch, tested, notes):
    """The Steps of a method under a protocol. done: (method, protocol trained under) -> of trainings that were planned
    before, which serve this one too."""
    config, model = world.config, world.model
    method = settings.make(config, name, protocol)
    methods.refuse_tower(name, method, model, config.model.name)
    classes = words(world, problem.labels)
    consts = jax.eval_shape(lambda model: method.setup(model, classes), model)
    title = f"{name}, {protocol}" if len(config.protocols) > 1 else name
    family = settings.alike(config, name, protocol) or [name]
    training = settings.trained_as(config, name, protocol)
    if not method.untrained and (name, training) not in done:
        done.update((other, training) for other in family)
        yield from _trainings(world, method, consts, (name, protocol, title), problem.draws, len(family), batch, notes)
    if tested:
        yield _testing(world, method, consts, (name, protocol, title), problem, notes)


def _start(world, method, consts, S, M):
    """The shapes of S trees that training starts from, of M images each; (trees, support, keys)."""
    E = world.model.config.embed_dim
    support = {"features": of(jnp.float32, S, M, E), "label": of(jnp.int32, S, M)}
    given = support | ({"prior": {"text_features": of(jnp.float32, S, _classes(consts), E)}} if method.prior else {})
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), S))
    start = lambda key, given, model, consts: methods.start(method, key, model, consts, given)
    v = jax.eval_shape(jax.vmap(start, in_axes=(0, 0, None, None)), keys, given, world.model, consts)
    return v, support, keys


def _classes(consts):
    return next(len(a) for k, a in consts.items() if k in ("weights", "emb"))


def _trainings(world, method, consts, names, draws, rates, batch, notes):
    """The Steps of the trainings on draws, as many as there are programs. rates: learning rates that are trained with
    side by side."""
    config, (name, protocol, title) = world.config, names
    recipe = settings.recipe_of(config, name, protocol)
    if batch and "batch" in recipe:
        recipe = recipe.copy_and_resolve_references()
        recipe.batch = batch
    pixels = settings.uses_pixels(config, method, recipe)
    groups = settings.together(recipe, draws, pixels)
    for group in groups:
        mine = [draws[s] for s in group] * rates
        at_once = min(config.seeds_per_program or len(mine), len(mine))
        shots = " and ".join(str(n) for n in dict.fromkeys(draw.shots for draw in mine))
        its = f"{title}, {shots} shots" if len(groups) > 1 else title
        its += f", {rates} learning rates" if rates > 1 else ""
        parts = -(-len(mine) // at_once)  # one after the other
        step = _training(world, method, consts, (name, its), recipe, mine[:at_once], rates > 1, pixels, notes)
        yield from [step._replace(total=step.total * parts)] if step else []


def _training(world, method, consts, names, recipe, draws, rated, pixels, notes):
    """The Step of a training, or None where it has none."""
    config, mesh, model, (name, title) = world.config, world.mesh, world.model, names
    S, M, rules = len(draws), max(len(draw.train) for draw in draws), shard.rules_of(config.shardings, name)
    length = settings.length(recipe, max(draws, key=lambda draw: len(draw.train)))
    if not length.total:
        return None
    v, support, keys = _start(world, method, consts, S, M)
    one = jax.tree.map(lambda a: of(a.dtype, *a.shape[1:]), v["train"])
    if rated:
        tx = optim.rated(recipe.optimizer, length.per_epoch, length.total, one)
        opt = jax.eval_shape(jax.vmap(tx.init), v["train"], of(jnp.float32, S))
    else:
        tx, _ = optim.make(recipe.optimizer, length.per_epoch, length.total, one)
        opt = jax.eval_shape(jax.vmap(tx.init), v["train"])
    state, side = {**v, "opt": opt, "step": of(jnp.int32)}, model.config.vision.image_size
    if pixels and fit.stays(config, mesh, side, S, M):
        support["image"] = of(jnp.uint8, S, M, side, side, 3)
    support = None if pixels and "image" not in support else support
    where = shard.of_step(mesh, state, consts, support, model, rules)
    steps = fit.train_steps(method, tx, length.total, length.per_epoch, where, skip=config.nonfinite == "skip")
    state = placed(state, where["in_shardings"][0])
    B = shard.up(mesh, length.batch)
    if "batch" in recipe and shard.up(mesh, recipe.batch) != recipe.batch:
        notes += (f"batch {recipe.batch} made {B}, which the mesh divides: --config.recipe.{name}.batch={B}",)
    arguments = state, model, consts, support
    program = functools.partial(fit.lower, config, mesh, steps, length, (*arguments, keys))
    held = {"parameters": model.params, "tuned, optimiser": state}
    return Step(title, "train", program, length.total, S * B, held, arguments, notes)


def _testing(world, method, consts, names, problem, notes):
    """The Step of a test, of all parts of a problem. Other classes than those trained on count as these."""
    config, mesh, model, (name, _, title) = world.config, world.mesh, world.model, names
    B, side, S = shard.up(mesh, config.eval_batch), model.config.vision.image_size, len(config.seeds)
    tree = {"train": {}, "fixed": {}}
    if not method.untrained:
        tree, _, _ = _start(world, method, consts, S, max(len(draw.train) for draw in problem.draws))
    batch = {"index": of(jnp.int32, B), "weight": of(jnp.float32, B)}
    batch |= {"features": of(jnp.float32, B, model.config.embed_dim)}
    batch |= {"image": of(jnp.uint8, B, side, side, 3)} if method.needs == "pixels" else {}
    tree = {**tree, "consts": consts}
    tree = placed(tree, shard.shardings(mesh, tree, shard.rules_of(config.shardings, name) + shard.METHOD))
    consts = tree.pop("consts")
    arguments = tree, model, consts, placed(batch, shard.batch(mesh))
    program = lambda: (1, evaluate._predictor(mesh).lower(method.apply, *arguments))
    held = {"parameters": model.params, "tuned, optimiser": tree}
    calls = sum(-(-len(part.index) // B) for part in problem.parts.values())
    calls *= 1 if method.untrained else len(settings.shots(config))
    if any(part.of for part in problem.parts.values()):
        notes += ("tests on other data sets are counted as on the classes that are trained on",)
    return Step(f"{title}, test", "test", program, calls, B, held, arguments, notes)
