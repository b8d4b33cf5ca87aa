"""The run of vision-and-language tasks: from a config to results.json and report.html, variant after variant.

`python -m vlmx.main --config configs/scenes_vl.py:single_adapter` comes here. Names no variant and no task.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from vlmx import checkpoint, features, fields, logs, report, settings, shard, variant, vl_examples, vl_report, vl_submit
from vlmx.data import transforms, vl, vl_features
from vlmx.data.task import Split
from vlmx.errors import UserError
from vlmx.files import read_json, write_json
from vlmx.logs import say
from vlmx.models import zoo
from vlmx.models.clip import Clip
from vlmx.models.vlseq import Visual, VLSeq, count
from vlmx.vl_baseline import baseline
from vlmx.vl_fit import fit, mix_of, steps_of
from vlmx.vl_predict import predict


class World(NamedTuple):
    """What all variants of a run share. features: name of an image -> `(n, F)`; backbone: the digest of its weights."""

    config: ConfigDict
    workdir: Path
    mesh: jax.sharding.Mesh
    tasks: tuple[vl.Task, ...]
    features: Any
    model: VLSeq
    words: Any
    backbone: str


def run(config, workdir):
    """Train and test every variant of the config; returns what it writes to workdir/results.json.

    A finished workdir is left as it is; an interrupted one goes on where it was. Raises UserError for a config that
    cannot be run, before any weight is loaded.
    """
    began, workdir = time.monotonic(), Path(workdir).absolute()
    made = check(config)
    if done := settings.finished(config, workdir, logs.first_process()):
        say(f"{workdir} holds this run, finished. Another --workdir runs it again. Report: {workdir / 'report.html'}")
        return done
    mesh = shard.make_mesh(config.mesh)
    shard.refuse_uneven(mesh, 1, largest_batch(config))
    say(f"devices: {settings.device()}, mesh {dict(mesh.shape)}; results go to {workdir}")

    # ---------------------------------------------------------------- tasks, features, the frozen model
    tasks = tuple(vl.reader(name).load(name, config.data) for name in config.tasks)
    if len({t.suffix for t in tasks}) > 1:
        raise UserError(
            f"config.tasks: {', '.join(config.tasks)}: tasks about pictures and about videos, whose features have "
            "different shapes, are not trained in one run."
        )
    for task in tasks:
        sizes = {part: len(getattr(task, part)) for part in ("train", "val", "test")}
        say(f"task {task.name}: {sizes}")
        for note in task.notes:
            say(f"  note: {note}")
        if not sizes["train"]:
            raise UserError(f"task {task.name} has no training examples")
    found, tower = encode(config, tasks, mesh)
    model, words, backbone = load_backbone(config, mesh, found[tasks[0].train[0].images[0]].shape)
    say(f"model: {config.model.name}, {count(model.params):,} parameters with the visual embedding, frozen but for:")
    world = World(config, workdir, mesh, tasks, found, model, words, backbone)
    baselines = {t.name: baseline(t) for t in tasks}
    for name, b in baselines.items():
        say(f"{name}: always {b['answer']!r} ({b['name']}): {told(b['test'])}")

    # ---------------------------------------------------------------- every variant
    runs, examples = [], []
    for name, chosen in made.items():
        result, shown = cell(world, name, chosen)
        examples += [row | {"run": len(runs)} for row in shown]
        runs.append(result)
    results = {
        **settings.head(config),
        "tasks": [
            {
                "name": t.name,
                **{f"n_{part}": len(getattr(t, part)) for part in ("train", "val", "test")},
                "metric": next(iter(baselines[t.name]["test"])),
                "baseline": baselines[t.name],
                "explained": dict(t.explained),
                "notes": list(t.notes),
            }
            for t in tasks
        ],
        "model": {"name": config.model.name, "digest": backbone, "params": count(model.params), "tower": tower},
        "seconds": round(time.monotonic() - began, 1),
        "runs": runs,
        "examples": examples,
    }
    if logs.first_process():
        write_json(workdir / "results.json", results)
        report.write(workdir)
        print("\n" + vl_report.table(results) + f"\n\nreport: {workdir / 'report.html'}", flush=True)
    return results


def check(config):
    """Return {name: Variant} of a config, everything checked that can be before data or weights are read.

    Raises:
        UserError: a field that is missing, unknown or not as vlmx/fields.py says, or fields that do not go together.
    """
    fields.check(config)
    for name in (*config.tasks, *config.batches, *config.data.get("options", ())):
        vl.reader(name)
    if idle := [name for name in config.data.get("hidden", ()) if name not in config.tasks]:
        raise UserError(f"config.data.hidden: expected some of the tasks {', '.join(config.tasks)}; got {idle[0]!r}.")
    shard.check(config.shardings, ("model", "tuned"))
    for name in config.methods:
        if name not in config.recipe:
            variant.make(name)  # an unknown one says so first
            raise UserError(
                f"config.recipe has nothing for {name!r}, of config.methods: name the variant behind the colon, "
                f"configs/...:{name}, or give it a recipe of its own in config.recipe."
            )
    return {name: variant.make(name, **config.recipe[name].hyper) for name in config.methods}


def largest_batch(config):
    """Return {field of the config: its examples} of the largest batch of the tasks that run.

    The mesh has to divide this one alone: the batches of the other tasks are filled up to it.
    """
    field = {task: f"batches.{task}" if task in config.batches else "batch" for task in config.tasks}
    sizes = {field[task]: config.batches.get(task, config.batch) for task in config.tasks}
    return {field: n for field, n in sizes.items() if n == max(sizes.values())}


# -------------------------------------------------------------------- features and the backbone
def encode(config, tasks, mesh):
    """(name of an image -> what the image tower knows of each place `(n, F)`, the tower's digest), each image once."""
    m, by_reader = config.tower, {}
    sources = [vl.reader(t.name).source(t.name, config) for t in tasks if hasattr(vl.reader(t.name), "source")]
    if len(sources) == len(tasks):
        hidden = [t.name for t in tasks if t.name in config.data.get("hidden", ())]
        tested = [part for t in tasks for part in (t.val, t.test)]
        tested += [vl.reader(name).hidden(name, config.data) for name in hidden]
        names = lambda parts: dict.fromkeys(name for part in parts for e in part for name in e.images)
        every = names([*(t.train for t in tasks), *tested])
        found = vl_features.align(vl_features.Joined(sources), every, config.model.visual_tokens)
        tested = names(tested)
        with logs.progress(len(tested), "checking features of the test", unit="image") as bar:
            for name in tested:
                found[name]  # what cannot be used would end the run after its training
                bar.update()
        if (rows := getattr(found, "rows", 0)) and rows < found.most:
            say(f"features: of up to {found.most} regions of an image the first {rows} are used (model.visual_tokens)")
        return found, {"name": m.name, "digest": ""}
    for task in tasks:
        if hasattr(vl.reader(task.name), "source"):
            continue
        images = (name for split in (task.train, task.val, task.test) for e in split for name in e.images)
        by_reader.setdefault(vl.reader(task.name), {}).update(dict.fromkeys(images))
    place = lambda path, shape: shard.sharding(mesh, path, shape, shard.MODEL)
    loaded = zoo.load(m.name, **zoo.overrides(m), dtype=m.dtype, param_dtype=m.param_dtype, place=place)
    found = {}
    kept = {"store": features.open_store(config.features), "digest": loaded.digest}
    for reader, names in by_reader.items():
        names = tuple(names)
        split = Split(reader.Pictures(names), np.zeros(len(names), np.int32), names)
        reading = {"batch": config.eval_batch, "mesh": mesh, "workers": config.data.workers}
        whole = transforms.whole_for_tower(loaded.model.config)
        rows = features.encode(loaded.model, split, whole, of=Clip.grid, **kept, **reading).features
        found |= dict(zip(names, rows, strict=True))
    return vl_features.Joined([found, *sources]) if sources else found, {"name": m.name, "digest": loaded.digest}


def load_backbone(config, mesh, grid):
    """(VLSeq, words, digest) on the mesh, with a visual embedding for features of the shape `grid`, (n, F)."""
    m = config.model
    rules = shard.rules_of(config.shardings, "model")
    loaded = zoo.load_seq(
        m.name, visual=visual(m, grid), seed=config.seed, dtype=m.dtype, param_dtype=m.param_dtype,
        place=lambda path, shape: shard.sharding(mesh, path, shape, rules + shard.MODEL),
    )  # fmt: skip
    shard.refuse_unused(loaded.model.params, rules)
    model, digest = loaded.model.replace(config=settled(m, loaded.model.config)), loaded.digest
    if m.start:
        model, digest = variant.begun(model, m.start, digest)
    return model, loaded.tokenizer, digest


def visual(m, grid):
    """The visual embedding that config.model asks for, of features `grid`, (n, F)."""
    return Visual(width=grid[1], tokens=min(m.visual_tokens or grid[0], grid[0]))


def settled(m, c):
    """A checkpoint's SeqConfig with what config.model changes."""
    dropout = {"dropout": m.dropout, "attention_dropout": m.dropout, "activation_dropout": m.dropout}
    return dataclasses.replace(c, remat=m.remat, **(dropout if m.dropout >= 0 else {}))


# -------------------------------------------------------------------- one variant
def cell(world, name, chosen):
    """Train one variant on all tasks and test it: (an entry of results["runs"], rows of results["examples"]). A
    finished one is read back."""
    config, folder = world.config, world.workdir / name.replace(".", "_")
    if (folder / "result.json").exists():
        say(f"{name}: finished before")
        advice = "Remove it and run the same command: the variant is tested again."
        saved = read_json(folder / "result.json", advice, {"run": dict, "examples": [dict]})
        asked = {"training": settings.training(config, config.recipe[name])}
        checkpoint.refuse_other(folder, {k: saved[k] for k in asked if k in saved}, asked)
        return saved["run"], saved["examples"]
    began, recipe = time.monotonic(), config.recipe[name]
    trained, total, lines = variant.summary(chosen, world.model, len(world.tasks))
    say(f"{name}: {lines}")
    about = {"variant": name, "hyper": recipe.hyper.to_dict(), "visual": dataclasses.asdict(world.model.config.visual)}
    meta = about | {"backbone": world.backbone, "tasks": list(config.tasks), "seed": config.seed}
    v = fit(world, name, chosen, recipe, meta, folder / "steps")
    learnt = time.monotonic()
    variant.save(folder / "tuned", v, world.backbone, config.tasks, about | backbones(config))
    mix = mix_of(world, chosen)
    try:
        metrics, shown = evaluate(world, mix, chosen, v, folder)
    except UserError as e:
        raise UserError(
            f"{e}\n{name} is trained, {folder / 'tuned'} holds it; its test ended here. Mend this and run the same "
            "command: it is tested without another training."
        ) from e
    first = [next(iter(m["test"].values())) for m in metrics.values() if "test" in m]
    result = {
        "method": name,
        "trained_params": trained,
        "trained_percent": 100 * trained / total,
        "seconds": round(time.monotonic() - began, 1),
        "training_seconds": round(learnt - began, 1),
        "settings": recipe.to_dict() | {"prefixes": mix.prefixes},
        "tasks": metrics,
        "average": float(np.mean(first)) if first else None,
        "examples_seen": mix.examples(steps_of(mix, recipe)),
        "curve": logs.curve(world.workdir, name),
    }
    if logs.first_process():
        training = settings.training(config, recipe)
        write_json(folder / "result.json", {"run": result, "examples": shown, "training": training})
    say(f"{name}: " + "; ".join(f"{k} {told(m.get('test') or m.get('val') or {})}" for k, m in metrics.items()))
    return result, shown


def evaluate(world, mix, chosen, v, folder):
    """({task: {part: metrics}} of every task's validation and test, rows of results["examples"]); submission files go
    to `folder`."""
    metrics, shown = {}, []
    for number, task in enumerate(world.tasks):
        for part in ("val", "test"):
            examples = getattr(task, part)
            if not len(examples):
                continue
            answers = predict(world, mix, chosen, v, number, examples)
            metrics.setdefault(task.name, {})[part] = task.score(answers, examples)
            if part == "test":
                shown += vl_examples.save(world, mix, chosen, v, number, answers, folder.name)
                vl_submit.write(world, mix, chosen, v, number, answers, folder / "submission")
    return metrics, shown


def backbones(config):
    """What vlmx.predict has to know of the models that a variant was tuned on, in the words of checkpoint.FIELDS."""
    tower = {f"tower_{key}": value for key, value in zoo.overrides(config.tower).items() if value}
    about = {"model": config.model.name, "start": config.model.start, "seed": config.seed}
    return about | {"tower": config.tower.name, "what": config.tower.what} | tower


def told(numbers):
    """The first of a task's numbers, in words."""
    return ", ".join(f"{k} {v:.1f}" for k, v in list(numbers.items())[:1])
