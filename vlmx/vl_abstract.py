"""The steps of a vision-and-language run with shapes in place of arrays, for vlmx/plan.py; see abstract.py.

n rows of features of an image, F their width, B examples of a batch, K steps of a call.
"""

import collections
import dataclasses
import functools
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vlmx import abstract, extract, loop, multitask, shard, vl, vl_fit, vl_predict
from vlmx import variant as variants
from vlmx.abstract import Step, of, placed
from vlmx.data import published, seq_tokenizer, vl_batches, vl_features, vl_forms
from vlmx.data import vl as tasks
from vlmx.data.vl import Example
from vlmx.errors import UserError
from vlmx.models import convert_seq, files, vlseq, zoo
from vlmx.models.clip import Clip

# Examples to train on, validate and test, where the files are not on this machine: a plan's steps and hours follow from
# them, nothing else does. The last four have no open test. What they were checked against:
# vqa: together the 443,757 + 214,354 questions of VQA v2 (visualqa.org); how Karpathy's split parts them, which VL-T5
# (arXiv 2102.02779) uses, is from memory. gqa: the 943,000 + 132,062 balanced questions of train and val, and testdev,
# of the data set's files (arXiv 1902.09506). nlvr: with 6,970 unreleased ones the 107,292 of NLVR2 (arXiv 1811.00491).
# caption: captions of Karpathy's 82,783 + 30,504 images to train on, as repositories count them. tvqa: its files; with
# 7,623 and 7,630 of the tests the 152,545 of the paper (arXiv 1809.01696). how2qa, tvc, yc2c: the thousands of VALUE's
# table (arXiv 2106.04632), from memory.
SIZES = {
    "vqa": (605102, 26729, 26280),
    "gqa": (1075062, 0, 12578),
    "nlvr": (86373, 6982, 6967),
    "caption": (566747, 5000, 5000),
    "tvqa": (122039, 15253, 0),
    "how2qa": (34200, 3100, 0),
    "tvc": (86700, 10800, 0),
    "yc2c": (10300, 3500, 0),
}


def steps(config, devices, batch=0, only=""):
    """The Steps of every variant of a config on devices. batch: examples of a step, of every task, instead of the
    config's. only: the name of a step, where no other is wanted: those of other variants are left out."""
    made, mesh = vl.check(config), shard.make_mesh(config.mesh, devices)
    found, notes = tasks_of(config)
    grid, tower = seen(config, found, mesh)
    model, tokens = backbone(config, mesh, grid)
    features = collections.defaultdict(functools.partial(np.zeros, grid, np.float32))
    config = config.copy_and_resolve_references()
    if batch:
        config.batch, config.batches = batch, {}
    world = vl.World(config, Path(), mesh, found, features, model, tokens, "")
    if tower is not None:
        images = {name for t in found for split in (t.train, t.val, t.test) for e in split for name in e.images}
        B = shard.up(mesh, config.eval_batch)
        yield abstract.encode(mesh, tower, Clip.grid, B, -(-len(images) // B))
    for name, chosen in made.items():
        if abstract.of_step(name, only):
            yield from _variant(world, name, chosen, notes)


# -------------------------------------------------------------------- what a config says of tasks, features, the model
def tasks_of(config):
    """(the tasks of a config, notes): as read, where they are on this machine, else as large as published."""
    found, notes = [], ()
    with tempfile.TemporaryDirectory() as folder:
        data = config.data.copy_and_resolve_references()
        if data.get("scenes") and "root" in data:
            data.root = folder  # they are written first
        for name in config.tasks:
            try:
                task = tasks.reader(name).load(name, data)
            except UserError:
                if name not in SIZES:
                    raise
                task = _published(name, data)
                notes += (f"{name}: as large as published; it is not on this machine",)
            found.append(task)
    return tuple(found), notes


def _published(name, data):
    form = vl_forms.FORMS[name]
    example = Example("", ("image",) * (2 if name == "nlvr" else 1), "", (("", 1.0),))
    splits = [_Same(example, n) for n in SIZES[name]]
    return published.cut(form.filled(splits, None), data)


class _Same(collections.abc.Sequence):
    """One example n times."""

    def __init__(self, example, n):
        self.example, self.n = example, n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return _Same(self.example, len(range(self.n)[i])) if isinstance(i, slice) else self.example


def seen(config, found, mesh):
    """(the shape (n, F) of an image's features, the tower that the run itself encodes all images with, or None)."""
    readers = {tasks.reader(t.name) for t in found}
    video = any(t.name in vl_forms.VIDEO_TEXT for t in found)
    if published in readers:
        try:
            source = published.features(config.data, video)
            if source is not None and (first := found[0].train[0].images[0]) in source:
                return vl_features.align(source, [first], config.model.visual_tokens)[first].shape, None
        except UserError:
            pass  # these files are elsewhere
    tower = abstract.model_of(config.tower, mesh)
    side = tower.config.vision.image_size
    rows = jax.eval_shape(extract.WHAT[config.tower.get("what", "grid")], tower, of(jnp.uint8, 1, side, side, 3))
    n, F = rows.shape[1:]
    return (published.ROWS if video else n, F), None if published in readers else tower


def backbone(config, mesh, grid):
    """(VLSeq of shapes, Words); as vl.load_backbone."""
    m = config.model
    if m.name in zoo.SEQ_MODELS:
        c, folder = zoo.SEQ_MODELS[m.name].config, Path()
    else:
        folder = files.weight_files(zoo.locate(m.name))[1]
        c = convert_seq.config_of(files.read_json(folder / "config.json"), folder / "config.json")
    own = {"visual": vl.visual(m, grid), "added": zoo.ADDED[c.family], "dtype": m.dtype, "param_dtype": m.param_dtype}
    c = vl.settled(m, dataclasses.replace(c, **own))
    shapes = vlseq.param_shapes(c)
    rules = shard.rules_of(config.shardings, "model")
    shard.refuse_unused(shapes, rules)
    model = vlseq.VLSeq(placed(shapes, shard.shardings(mesh, shapes, rules + shard.MODEL)), c)
    try:
        return model, seq_tokenizer.load(folder, c.vocab, c.pad)
    except UserError:  # any will do: what tasks read has a fixed length
        words = seq_tokenizer.load(zoo.locate(f"tiny_{c.family}"), c.vocab, c.pad)
        return model, words


# -------------------------------------------------------------------- a variant
def _variant(world, name, chosen, notes):
    config, mesh, model, recipe = world.config, world.mesh, world.model, world.config.recipe[name]
    mix = vl_fit.mix_of(world, chosen)
    total, rules = vl_fit.steps_of(mix, recipe), shard.rules_of(config.shardings, "tuned") + shard.SEVERAL
    v = variants.shapes(chosen, model, len(world.tasks))
    opt = jax.eval_shape(lambda tree: multitask.moments(tree, len(world.tasks)), v["train"])
    state = {**v, "opt": opt, "step": of(jnp.int32)}
    where = shard.shardings(mesh, state, rules)
    state, asked = placed(state, where), max(mix.sizes)
    K, B = loop.at_once(total, config.steps_per_call), shard.up(mesh, asked)
    few = tuple(t._replace(train=t.train[:1]) for t in mix.tasks)
    one = vl_batches.batch(mix._replace(tasks=few, sizes=(1,) * len(few)), 0)  # whose rows are alike, however many
    batches = {k: of(a.dtype, K, *([B] if a.ndim else []), *a.shape[1:]) for k, a in one.items()}
    batches = placed(batches, shard.shardings(mesh, {"steps": batches}, rules)["steps"])
    key = jax.eval_shape(lambda: jax.random.key(0))
    compiled, _ = vl_fit.train_steps(config, chosen, recipe, len(mix.order(0)), total, where)
    held = {"parameters": model.params, "tuned, optimiser": state}
    if B != asked:
        notes += (f"batch {asked} made {B}, which the mesh divides",)
    program = lambda: (K, compiled.lower(state, model, batches, key))
    yield Step(name, "train", program, total, B, held, (state, model), notes)
    for number, task in enumerate(world.tasks):
        yield _answering(world, name, chosen, mix, v, number, task, notes)


def _answering(world, name, chosen, mix, v, number, task, notes):
    """The Step that answers a task's validation and test."""
    mesh, model, rows = world.mesh, world.model, shard.up(world.mesh, world.config.eval_batch)
    v = placed(v, shard.on(mesh))
    b = {k: of(a.dtype, *a.shape) for k, a in vl_batches.inputs(mix, number, [task.train[0]], rows).items()}
    b = placed(b, shard.shardings(mesh, {"batch": b}, shard.SEVERAL)["batch"])
    answer, how = vl_predict.program(world, chosen, task)
    calls = sum(-(-len(examples) // rows) for examples in (task.val, task.test))
    held = {"parameters": model.params, "tuned, optimiser": v}
    program = lambda: (1, answer.lower(*how, model, v, b))
    if not task.choices:
        notes += ("answers are counted at their full length; a batch that ends earlier takes less",)
    return Step(f"{name}, {task.name}", "test", program, calls, rows, held, (model, v), notes)
