"""The run: from a config to results.json and report.html. Reads from top to bottom; names no method and no data set.

S seeds, B images of a batch, M training images of a seed, E feature size, K steps of one compiled call.
"""

import dataclasses
import functools
import json
import sys
import time
import traceback
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from vlmx import checkpoint, evaluate, features, finite, logs, optim, partition, report, settings, shard
from vlmx import method as methods
from vlmx.data import fewshot, pipeline, protocols, task, transforms
from vlmx.errors import PREEMPTED, Unwritable, UserError
from vlmx.files import write_json
from vlmx.logs import say
from vlmx.metrics import accuracy
from vlmx.models import zoo
from vlmx.models.clip import Clip

ON_DEVICE = 2**30  # bytes of training images that may lie on the device


def run(config, workdir, go_on=False):
    """Train and test every method of the config under every protocol; returns what it writes to workdir/results.json.

    A finished workdir is left as it is; an interrupted one goes on where it was. Raises UserError for a config that
    cannot be run, before any weight is loaded. go_on: a method that fails is listed in results["failed"] and the others
    still run; the next run of the workdir tries it again.
    """
    began, workdir = time.monotonic(), Path(workdir).absolute()

    # ---------------------------------------------------------------- what is asked for
    cells = settings.check(config)
    if done := settings.finished(config, workdir, logs.first_process()):
        if not (workdir / "report.html").exists() and logs.first_process():
            report.write(workdir)  # the disk was full just then
        say(f"{workdir} holds this run, finished. Another --workdir runs it again. Report: {workdir / 'report.html'}")
        return done
    mesh = shard.make_mesh(config.mesh)
    sizes = {f"recipe.{cell[0]}.batch": settings.recipe_of(config, *cell).get("batch", 0) for cell in cells}
    shard.refuse_uneven(mesh, len(config.seeds), sizes)
    device = f"{len(jax.devices())} x {jax.devices()[0].device_kind} ({jax.default_backend()})"
    say(f"devices: {device}, mesh {dict(mesh.shape)}; results go to {workdir}")

    # ---------------------------------------------------------------- data
    dataset = task.load(config.data, workdir)
    sizes = {name: len(getattr(dataset, name).labels) for name in ("train", "val", "test")}
    say(f"data: {dataset.name}, {len(dataset.classnames)} classes, images: {sizes}")
    for note in dataset.notes:
        say(f"  note: {note}")
    trains = any(name != config.reference for name, _ in cells)
    if trains and not sizes["train"]:
        raise UserError(f"{dataset.name} has no training images; it can only be tested on: use :{config.reference}.")
    seeds, problems, targets = config.seeds, {}, {}
    for protocol in dict.fromkeys(protocol for _, protocol in cells):
        names = settings.targets(config, protocol)
        mine = {name: targets.get(name) or load_target(config, name, workdir) for name in names}
        problems[protocol] = protocols.PROTOCOLS[protocol](dataset, config.shots, seeds, mine)
        targets |= mine
    bad = drop_unreadable(config, dataset, problems)
    if config.checkpoint_best and not all(len(rows) for problem in problems.values() for rows in problem.val):
        raise UserError(f"checkpoint_best chooses on validation images, and {dataset.name} has none for every seed.")
    write_lists(workdir, dataset, problems, seeds)

    # ---------------------------------------------------------------- the frozen model
    model, tokenizer, digest = load_model(config, mesh)
    size = model.config.vision.image_size
    made = {cell: settings.make(config, *cell) for cell in cells}
    for (name, _), method in made.items() if not go_on else ():
        methods.refuse_tower(name, method, model, config.model.name)
    say(f"model: {config.model.name}, {partition.count(model.params):,} parameters, frozen, {size} x {size} pixels")

    # ---------------------------------------------------------------- frozen features, each image once
    center = functools.partial(transforms.center, size=size)
    reading = {"workers": config.data.workers, "upright": dataset.upright}
    encode = functools.partial(features.encode, model, transform=center, batch=config.eval_batch, mesh=mesh, **reading)
    stored, tests = {}, {}
    for of, data in {"": dataset, **targets}.items():
        unreadable = []
        found = encode(data.test, what=f"{of} test images".strip(), bad=unreadable, upright=data.upright)
        if unreadable and config.data.bad_images == "stop":
            raise UserError(pipeline.stop_message(unreadable, len(data.test.labels)))
        tests[of] = Test(data, found)
        bad += unreadable
    read = any(method.needs == "features" and name != config.reference for (name, _), method in made.items())
    if read or (trains and config.data.augment == "none"):
        for part in ("train", "val"):
            used = np.unique(np.concatenate([r for p in problems.values() for r in getattr(p, part)]).astype(int))
            part_features = encode(fewshot.take(getattr(dataset, part), used), what=f"{part} images")
            stored[part] = dict(zip(used.tolist(), part_features.features, strict=True))

    # ---------------------------------------------------------------- zero-shot, before anything is trained
    world = World(config, workdir, mesh, dataset, model, tokenizer, digest, center, reading, stored, tests)
    reference = methods.make(config.reference)
    everything = protocols.Part(tuple(range(len(dataset.classnames))), np.arange(sizes["test"]))
    consts = reference.setup(model, words(world, everything.labels))
    said, _, weight = predict(world, reference, {"train": {}, "fixed": {}}, consts, everything)
    numbers, _, _ = evaluate.scores(said[0], dataset.test.labels, dataset.classnames, weight)
    say(
        f"{config.reference} before training: {numbers['accuracy']:.1f} % of {int(weight.sum())} test images, "
        f"chance {100 / len(dataset.classnames):.1f} %"
    )

    # ---------------------------------------------------------------- every method under every protocol
    runs, mistakes, failed = [], [], []
    for (name, protocol), method in made.items():
        try:
            result, wrong = cell(world, name, protocol, method, problems[protocol])
        except Exception as e:
            if not go_on or stops_all(e):
                raise
            failed.append({"method": name, "protocol": protocol, "error": told(e)})
            say(f"{name}, {protocol}: failed, the others go on. {failed[-1]['error']}")
            continue
        mistakes += [row | {"run": len(runs)} for row in wrong]
        runs.append(result)

    # ---------------------------------------------------------------- results and report
    notes = [*dataset.notes, *(f"{name}: {note}" for name, data in targets.items() for note in data.notes)]
    notes += [f"unreadable, left out: {b.name} ({b.reason})" for b in bad]
    results = {
        "title": config.title,
        "created": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": " ".join(["python -m vlmx.main", *sys.argv[1:]]),
        "config": settings.plain(config),
        "versions": {p: version(p) for p in ("jax", "flax", "optax", "orbax-checkpoint", "numpy")},
        "device": device,
        "dataset": {
            "name": dataset.name,
            "classnames": list(dataset.classnames),
            "templates": list(dataset.templates),
            **{f"n_{part}": n for part, n in sizes.items()},
            "unreadable": len(bad),
            "notes": notes,
        },
        "targets": {name: {"n_test": len(data.test.labels)} for name, data in targets.items()},
        "model": {"name": config.model.name, "digest": digest, "params": partition.count(model.params)},
        "reference": {
            "method": config.reference,
            **numbers,
            "difficulty": report.transfer_difficulty(len(dataset.classnames), numbers["accuracy"]),
        },
        "seconds": round(time.monotonic() - began, 1),
        "runs": runs,
        "failed": failed,
        "mistakes": mistakes,
    }
    if logs.first_process():
        write_json(workdir / "results.json", results)
        report.write(workdir)
        print("\n" + report.table(results) + f"\n\nreport: {workdir / 'report.html'}", flush=True)
    return results


def stops_all(error):
    """Whether an error is no method's own: nothing can be written, or one process of several may have met it."""
    return isinstance(error, (OSError, Unwritable)) or (jax.process_count() > 1 and not isinstance(error, UserError))


def told(error):
    """An error in a line; of one that is not meant for people also where it was, on the terminal."""
    if isinstance(error, UserError):
        return str(error)
    traceback.print_exception(error)
    return f"{type(error).__name__}: {error}".partition("\n")[0]


class World(NamedTuple):
    """What all methods of a run share."""

    config: ConfigDict
    workdir: Path
    mesh: jax.sharding.Mesh
    dataset: task.Dataset
    model: Clip
    tokenizer: Callable
    digest: str
    transform: Callable  # image -> uint8 [S, S, 3], as in testing
    reading: dict  # how images are read: the arguments of data/pipeline.py
    stored: dict  # "train", "val": row of the split -> feature (E,)
    tests: dict  # "" and the names of the targets -> Test


class Test(NamedTuple):
    """A data set that is tested on, and the features of its test images."""

    dataset: task.Dataset
    features: features.Features


def words(world, labels, of=""):
    """The classes `labels` of the data set trained on, or of a target, as a method sees them."""
    dataset = world.tests[of].dataset
    tokenize = functools.partial(world.tokenizer, truncate=world.config.model.truncate)
    names = tuple(dataset.classnames[c] for c in labels)
    return methods.Task(names, dataset.templates, task.ensemble(dataset), tokenize)


def predict(world, method, v, consts, part, rules=shard.METHOD):
    """(said (S, n), p (S, n), weight (n,)) of a part of a test split; `said` are positions in the part's classes."""
    batch, process = shard.up(world.mesh, world.config.eval_batch), shard.share(world.mesh)[1]
    dataset, test = world.tests[part.of]
    if method.needs == "features":
        batches = evaluate.feature_batches(test.features[part.index], test.weight[part.index], batch, process)
    else:
        reading = world.reading | {"upright": dataset.upright, "process": process}
        split, frozen = fewshot.take(dataset.test, part.index), test and test.features[part.index]
        batches = evaluate.image_batches(split, world.transform, batch, frozen, **reading, bad=[])
    return evaluate.predict(method, v, world.model, consts, batches, len(part.index), world.mesh, rules)


# -------------------------------------------------------------------- one method under one protocol
def cell(world, name, protocol, method, problem):
    """Train, search on validation, test: (an entry of results["runs"], its mistakes). A finished one is read back."""
    config, workdir = world.config, world.workdir
    folder = workdir / f"{name.replace('.', '_')}-{protocol}"
    if (folder / "result.json").exists():
        say(f"{name}, {protocol}: finished before")
        saved = json.loads((folder / "result.json").read_text())
        return saved["run"], saved["mistakes"]
    methods.refuse_tower(name, method, world.model, config.model.name)
    began = time.monotonic()
    recipe, learnt = settings.recipe_of(config, name, protocol), words(world, problem.labels)
    consts = method.setup(world.model, learnt)
    hyper, rules = settings.hyper(config, name, protocol), shard.rules_of(config.shardings, name) + shard.METHOD
    meta = {"method": name, "hyper": hyper, "backbone": world.digest, "protocol": protocol, "shots": config.shots}
    meta |= {"classes": list(learnt.classnames)}
    training = settings.trained_as(config, name, protocol)

    # ---- the seeds whose training sets have one size run in one program
    groups = {}
    for s, rows in enumerate(problem.train):
        groups.setdefault(len(rows), []).append(s)
    fitted = {}
    for group in groups.values() if not method.untrained else ():
        steps = "steps" if len(groups) == 1 else "steps-" + "_".join(str(config.seeds[s]) for s in group)
        steps = workdir / f"{name.replace('.', '_')}-{training}" / steps
        of = meta | {"protocol": training}
        v = fit(world, f"{name}-{training}", method, recipe, consts, problem, group, of, steps)
        if method.finalize:
            v = search(world, method, v, consts, problem, group)
        fitted |= {s: jax.tree.map(lambda a, i=i: a[i], v) for i, s in enumerate(group)}
    seeds = [config.seeds[s] for s in sorted(fitted)] or [None]
    v = stack([fitted[s] for s in sorted(fitted)]) if fitted else {"train": {}, "fixed": {}}
    trained = partition.count(v["train"]) // len(seeds)
    total = partition.count(world.model.params)

    # ---- every part of the test
    outcomes, notes, mistakes = [{"seed": s, "metrics": {}, "per_class": {}, "confusion": {}} for s in seeds], [], []
    adaptation = {}
    for part_name, part in problem.parts.items():
        classes = words(world, part.labels, part.of)
        tested, facts = method, consts
        if method.carries and classes[:-1] != learnt[:-1]:  # the last is a function
            facts = method.setup(world.model, classes)
        elif not method.carries and classes.classnames != learnt.classnames:
            if not set(classes.classnames) <= set(learnt.classnames):
                notes.append(f"{name} cannot be carried to classes it was not trained on: no {part_name} accuracy")
                continue
            tested = methods.only(method, [learnt.classnames.index(c) for c in classes.classnames])
        said, p, weight = predict(world, tested, v, facts, part, rules)
        truth = protocols.relabel(world.tests[part.of].dataset.test.labels[part.index], part.labels)
        if method.describe:
            said_of = method.describe(jax.tree.map(lambda a: a[0], v), facts)  # the same for all seeds
            adaptation[part_name] = {k: np.asarray(a).tolist() for k, a in said_of.items()}
            adaptation[part_name] |= {"classes": classes.classnames} | difficulty(world, part, classes, truth)
        for s, outcome in enumerate(outcomes):
            numbers, per_class, matrix = evaluate.scores(said[s], truth, classes.classnames, weight)
            prefix = part_name == "all"
            outcome["metrics"] |= {
                "accuracy" if prefix else part_name: numbers["accuracy"],
                "macro_f1" if prefix else f"{part_name}_macro_f1": numbers["macro_f1"],
            }
            outcome["per_class"][part_name] = per_class
            if part.of:
                continue
            if s == 0 or len(part.labels) <= 200:  # a thousand classes squared, for every seed, is a file nobody opens
                outcome["confusion"][part_name] = matrix
        if logs.first_process() and not part.of:
            key = folder.name, seeds[0], part_name
            mistakes += save_mistakes(world, part, classes, said[0], p[0], truth, weight, key)
    targets = {part_name for part_name, part in problem.parts.items() if part.of}
    for m in (outcome["metrics"] for outcome in outcomes):
        if targets and targets <= m.keys():
            m["average"] = sum(m[target] for target in targets) / len(targets)
        if {"base", "new"} <= m.keys():
            m["hm"] = float(accuracy.harmonic_mean(m["base"], m["new"]))

    # ---- what stays
    curve = logs.curve(workdir, f"{name}-{training}") if fitted else {}
    if skipped := sum(int(n or 0) for row in curve.get("skipped", ()) for n in row):
        notes.append(f"steps left out, since a loss or gradient was not finite: {skipped}, of all seeds together")
    keys = list(outcomes[0]["metrics"])
    summary = {k: accuracy.summary([o["metrics"][k] for o in outcomes]) for k in keys}
    pixels = method.needs == "pixels" or (bool(v["train"]) and settings.uses_pixels(config, method, recipe))
    result = {
        "method": name,
        "protocol": protocol,
        "shots": config.shots if fitted else 0,
        "images": "pixels" if pixels else "features",
        "trained_params": trained,
        "trained_percent": 100 * trained / total,
        "seconds": round(time.monotonic() - began, 1),
        "settings": hyper,
        "notes": notes,
        "seeds": outcomes,
        "summary": summary,
        "curve": curve,
        **({"adaptation": adaptation} if adaptation else {}),
    }
    for seed, s in zip(seeds, sorted(fitted)):
        checkpoint.export(folder / f"seed_{seed}", fitted[s], meta | {"seed": seed})
    if logs.first_process():
        write_json(folder / "result.json", {"run": result, "mistakes": mistakes})
    shown = ", ".join(f"{k} {summary[k]['mean']:.1f}" for k in keys if "f1" not in k)
    say(f"{name}, {protocol}: {shown} ({trained:,} trained parameters; {result['seconds']} s)")
    return result, mistakes


def difficulty(world, part, classes, truth):
    """How hard a part of a test is for the model as it was: the reference's accuracy in percent, of each class too, and
    the relative transfer difficulty."""
    reference = methods.make(world.config.reference)
    consts = reference.setup(world.model, classes)
    said, _, weight = predict(world, reference, {"train": {}, "fixed": {}}, consts, part)
    numbers, per_class, _ = evaluate.scores(said[0], truth, classes.classnames, weight)
    relative = report.transfer_difficulty(len(classes.classnames), numbers["accuracy"])
    return {"reference": numbers["accuracy"], "per_class": list(per_class.values()), "difficulty": relative}


def save_mistakes(world, part, classes, said, p, truth, weight, key):
    """Pictures of the surest mistakes on a part of the test, one seed's: rows of results["mistakes"]."""
    dataset, (run, seed, name) = world.dataset, key
    rows = report.pick_mistakes(said, p, truth, weight=weight)
    pictures = [transforms.decode(dataset.test.images[part.index[i]], dataset.upright) for i in rows]
    entries = [
        {"true": classes.classnames[truth[i]], "said": classes.classnames[said[i]], "p": float(p[i])} for i in rows
    ]
    return report.save_mistakes(
        world.workdir, pictures, [{"run": run, "seed": seed, "part": name, **entry} for entry in entries]
    )


def fit(world, run, method, recipe, consts, problem, group, meta, folder):
    """Gradient steps for the seeds of `group` (positions in config.seeds) at once; their trees `v`, stacked `[S, ...]`.

    Goes on from the latest checkpoint in `folder` where there is one. `v` is that of the last step or, where
    config.checkpoint_best asks for it, each seed's own best on its validation images, among the regular checkpoints.
    """
    config, mesh, dataset = world.config, world.mesh, world.dataset
    seeds = [config.seeds[s] for s in group]
    rows = [problem.train[s] for s in group]
    labels = np.stack([protocols.relabel(dataset.train.labels[r], problem.labels) for r in rows])  # [S,M]
    M = labels.shape[1]
    support = {"label": labels}
    if "train" in world.stored:
        support["features"] = np.stack([[world.stored["train"][i] for i in r.tolist()] for r in rows])  # [S,M,E]
    rules = shard.rules_of(config.shardings, meta["method"])
    shard.refuse_uneven(mesh, len(seeds), {})
    support = shard.put(mesh, "support", support, rules + shard.METHOD)

    # ---- the start of each seed
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])

    def start(key, model, consts, support):
        return methods.start(method, key, model, consts, support)

    v = jax.jit(jax.vmap(start, in_axes=(0, None, None, 0)))(keys, world.model, consts, support)
    batch = min(recipe.get("batch", M), M)
    per_epoch = max(M // batch, 1)
    total = settings.steps_of(recipe, config.shots, per_epoch)
    if not total:
        return shard.gather(mesh, v)
    one = jax.eval_shape(lambda tree: jax.tree.map(lambda a: a[0], tree), v["train"])
    tx, schedule = optim.make(recipe.optimizer, per_epoch, total, one)
    pixels = settings.uses_pixels(config, method, recipe)
    state = {**v, "opt": jax.jit(jax.vmap(tx.init))(v["train"]), "step": np.zeros((), np.int32)}
    if pixels and (images := on_device(world, rows)) is not None:
        support |= shard.put(mesh, "support", {"image": images}, rules + shard.METHOD)
    streamed = pixels and "image" not in support
    support = None if streamed else support
    state, consts, where = shard.lay_out(mesh, state, consts, support, world.model, rules)
    count = partition.count(one)
    share = 100 * count / partition.count(world.model.params)
    say(f"{run}: {count:,} trained parameters ({share:.3g} % of the model), {len(seeds)} seeds at once")
    say(f"{run}: {M} images a seed, {total} steps of {batch}")

    # ---- go on where it was
    meta = meta | {"seeds": seeds, "total_steps": total}
    nothing = {"accuracy": np.full(len(seeds), -1, np.float32), "step": np.zeros(len(seeds), np.int32)}
    best = {**shard.gather(mesh, v), **nothing} if config.checkpoint_best else {}
    whole = lambda: {**state, "best": shard.place(best, shard.on(mesh))} if best else state
    checkpoints = checkpoint.manager(folder, config.checkpoint_keep)
    if (saved := checkpoint.restore(checkpoints, whole(), meta)) is not None:
        best, state = shard.gather(mesh, saved.pop("best")) if best else {}, saved
    done = int(state["step"])
    if done:
        say(f"{run}: going on after step {done} of {total}")

    # ---- steps
    most = min(total, 1 if streamed else 10 if pixels else config.steps_per_call)
    K = max(k for k in range(1, most + 1) if total % k == done % k == 0)  # a session of other devices had another
    steps = train_steps(method, tx, total, per_epoch, where, skip=config.nonfinite == "skip")
    stream = (pixel_stream if streamed else index_stream)(world, problem, group, seeds, batch, M, done, total, K)
    logger = logs.Logs(world.workdir)
    logger.begin(run, done, seeds=seeds)
    with checkpoint.preemption() as told, logs.progress(total, run, start=done) as bar:
        for xs in stream:
            state, metrics = steps(state, world.model, consts, support, xs, keys)
            metrics = shard.gather(mesh, metrics)  # [K,S]
            bad = metrics.pop("bad")
            if config.nonfinite == "stop" and bad.any():
                checkpoint.finish(checkpoints)
                finite.refuse(run, done, seeds, bad, state["train"])
            metrics = finite.means(metrics, bad)  # [S]
            done += K
            if done % per_epoch == 0 or K > 1 or bad.any():
                rate = float(schedule(done - 1))
                for s, seed in enumerate(seeds):
                    logger.write(done, {k: m[s] for k, m in metrics.items()} | {"lr": rate}, seed=seed)
                bar.set_postfix(loss=f"{metrics['loss'].mean():.3f}", refresh=False)
            bar.update(K)
            leave = told(done // K) and done < total
            due = done % config.checkpoint_every < K or done == total  # at the same steps however often it was stopped
            if due and best:
                new = validate(world, method, state, consts, problem, group, rules + shard.METHOD)
                best = evaluate.better(best, new)
                for seed, value in zip(seeds, new["accuracy"]):
                    logger.write(done, {"accuracy": value}, tag="val", seed=seed)
            if due or leave:
                checkpoint.save(checkpoints, done, whole(), meta)
            if leave:
                checkpoint.finish(checkpoints)
                say(f"{run}: told to stop, saved after step {done} of {total}; the same command goes on from there")
                raise SystemExit(PREEMPTED)
    logger.close()
    checkpoint.finish(checkpoints)
    checkpoints.close()
    if not best:
        return shard.gather(mesh, {"train": state["train"], "fixed": state["fixed"]})
    for seed, step, value in zip(seeds, best["step"], best["accuracy"]):
        say(f"{run}: seed {seed} was best on validation after step {step}: {value:.1f} %")
    return {"train": best["train"], "fixed": best["fixed"]}


def train_steps(method, tx, total, per_epoch=1, where=None, skip=False):
    """The compiled call `(state, model, consts, support, xs, keys) -> (state, metrics)`: K steps of S seeds.

    Gradients are taken of the tuned tree alone, so frozen weights get none, nor optimiser state, nor a copy.
    Args: support: stored features or images, and labels, `[S, M, ...]`, from which `xs["index"]` `[K, S, B]` picks;
    None where xs holds the batches themselves. where: in_shardings and out_shardings (shard.lay_out); None: as the
    arguments lie. skip: a step whose loss or gradient is not finite changes nothing. The state is donated. Metrics are
    `[K, S]`; "bad" is that of finite.first.
    """

    def step(v, opt, model, consts, batch, key, n):  # one seed
        def objective(train):
            tree = {"train": train, "fixed": v["fixed"]}
            return method.loss(method.apply(tree, methods.tuned(model, tree), consts, batch, key, True), batch)

        (loss, metrics), grads = jax.value_and_grad(objective, has_aux=True)(v["train"])
        bad, before = finite.first(loss, grads), (v, opt)
        updates, opt = tx.update(grads, opt, v["train"])
        v = {"train": optax.apply_updates(v["train"], updates), "fixed": v["fixed"]}
        if method.after:
            v = method.after(v, n, total, per_epoch)
        if skip:
            v, opt = jax.tree.map(lambda old, new: jnp.where(bad, old, new), before, (v, opt))
        return v, opt, {"loss": loss, "grad_norm": optax.tree.norm(grads), **metrics, "bad": bad}

    def call(state, model, consts, support, xs, keys):
        def body(state, x):
            batch = x
            if support is not None:
                batch = {k: jax.vmap(lambda a, i: a[i])(a, x["index"]) for k, a in support.items()} | x
            v, opt, n = {k: state[k] for k in ("train", "fixed")}, state["opt"], state["step"]
            key = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, n)
            seeds = jax.vmap(step, in_axes=(0, 0, None, None, 0, 0, None))
            v, opt, metrics = seeds(v, opt, model, consts, batch, key, n)
            return {**v, "opt": opt, "step": n + 1}, metrics

        return jax.lax.scan(body, state, xs)

    return jax.jit(call, donate_argnums=0, **(where or {}))


def index_stream(world, problem, group, seeds, batch, M, start, total, K):
    """Batches as rows of what is stored on the device: {"index", "weight"} `[K, S, B]`, from step `start` on."""
    per_epoch = max(M // batch, 1)
    order = functools.lru_cache(len(seeds))(pipeline.epoch_order)
    for first in range(start, total, K):
        steps = [divmod(n, per_epoch) for n in range(first, first + K)]
        index = np.array([[order(M, batch, seed, epoch)[i] for seed in seeds] for epoch, i in steps], np.int32)
        xs = {"index": index, "weight": np.ones(index.shape, np.float32)}
        yield shard.put(world.mesh, "steps", shard.pad(xs, 2, shard.rows(world.mesh)))


def on_device(world, rows):
    """The training images of each seed, `(S, M, s, s, 3)` uint8, where they are the same in each epoch and few enough
    to lie on the device while training lasts; else None: they are read again and again, by `pixel_stream`."""
    size, seeds, M = world.model.config.vision.image_size, len(rows), len(rows[0])
    if world.config.data.augment != "none" or jax.process_count() > 1 or seeds * M * size * size * 3 > ON_DEVICE:
        return None
    every = np.unique(np.concatenate(rows))
    images = np.zeros((len(every), size, size, 3), np.uint8)
    for b in pipeline.eval_batches(fewshot.take(world.dataset.train, every), world.transform, 256, **world.reading):
        real = b["index"] >= 0
        images[b["index"][real]] = b["image"][real]
    return np.stack([images[np.searchsorted(every, r)] for r in rows])


def pixel_stream(world, problem, group, seeds, batch, M, start, total, K):
    """Augmented images from step `start`: "image" `[1, S, B, S, S, 3]`, "label", "index", "weight" `[1, S, B]`."""
    config, dataset, mesh = world.config, world.dataset, world.mesh
    (i, n), process = shard.share(mesh)  # this process draws its part of the seeds and of the images
    group, seeds = (np.array_split(values, n)[i].tolist() for values in (group, seeds))
    splits = [fewshot.take(dataset.train, problem.train[s]) for s in group]
    splits = [s._replace(labels=protocols.relabel(s.labels, problem.labels)) for s in splits]
    size = world.model.config.vision.image_size
    if config.data.augment == "crop":
        augment = functools.partial(transforms.random_crop, size=size, scale=tuple(config.data.crop_scale))
    else:
        augment = world.transform
    reading = world.reading | {"process": process}
    for b in pipeline.train_batches(splits, augment, batch, seeds, start=start, stop=total, **reading):
        b = shard.pad({k: a[None] for k, a in b.items()}, 2, shard.rows(mesh) // process[1])
        yield shard.join(mesh, "steps", b)


def validate(world, method, state, consts, problem, group, rules):
    """The seeds' trees as they are now, with their "step" and "accuracy" `[S]` in percent, each on its own validation
    images."""
    v = shard.gather(world.mesh, {"train": state["train"], "fixed": state["fixed"]})
    rows = np.unique(np.concatenate([problem.val[s] for s in group]))
    val, found = fewshot.take(world.dataset.val, rows), None
    if method.needs == "features":
        stored = np.stack([world.stored["val"][row] for row in rows.tolist()])
        found = features.Features(stored, np.ones(len(rows), np.float32))
    world = world._replace(tests={"": Test(world.dataset._replace(test=val), found)})
    said, _, _ = predict(world, method, v, consts, protocols.Part(problem.labels, np.arange(len(rows))), rules)
    right = said == protocols.relabel(val.labels, problem.labels)
    own = [100 * hits[np.isin(rows, problem.val[s])].mean() for hits, s in zip(right, group)]
    return {**v, "accuracy": np.float32(own), "step": np.full(len(own), state["step"], np.int32)}


def search(world, method, v, consts, problem, group):
    """The method's search on validation, seed by seed."""
    if not len(world.dataset.val.labels):
        raise UserError(f"this method chooses settings on validation images, and {world.dataset.name} has none.")
    found = []
    for i, s in enumerate(group):
        rows = problem.val[s]
        label = protocols.relabel(world.dataset.val.labels[rows], problem.labels)
        val = {"features": np.stack([world.stored["val"][r] for r in rows.tolist()]), "label": label}
        found.append(method.finalize(jax.tree.map(lambda a, i=i: a[i], v), world.model, consts, val))
    return stack(found)


def stack(trees):
    """Trees of one structure, stacked leaf by leaf along a new first axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


# -------------------------------------------------------------------- model, data and files
def load_target(config, name, workdir):
    """Another data set to test on, read as the config's own is; what names files of that one does not hold for it."""
    own = {"name": name, "file": "", "split_file": "", "templates": (), "classnames": ""}
    target = task.load(config.data.to_dict() | own, workdir)
    say(f"target: {name}, {len(target.classnames)} classes, {len(target.test.labels)} test images")
    return target


def load_model(config, mesh):
    """(Clip, tokenizer, digest) placed on the mesh."""
    m = config.model
    rules = shard.rules_of(config.shardings, "model")
    loaded = zoo.load(
        m.name, image_size=m.image_size or None, dtype=m.dtype, param_dtype=m.param_dtype,
        place=lambda path, shape: shard.sharding(mesh, path, shape, rules + shard.MODEL),
    )  # fmt: skip
    shard.refuse_unused(loaded.model.params, rules)
    model = loaded.model.replace(config=dataclasses.replace(loaded.model.config, remat=m.remat))
    return model, loaded.tokenizer, loaded.digest


def drop_unreadable(config, dataset, problems):
    """Unreadable training and validation images: the run stops with their list or, if asked, goes on without them."""
    bad = []
    for part in ("train", "val"):
        split = getattr(dataset, part)
        used = np.unique(np.concatenate([r for p in problems.values() for r in getattr(p, part)]).astype(int))
        mine = shard.own(used)
        found = pipeline.check(fewshot.take(split, mine), dataset.upright, config.data.workers)
        found = shard.everyone([b._replace(index=int(mine[b.index])) for b in found])
        found = sorted(pipeline.Bad(*b) for b in found)
        if found and config.data.bad_images == "stop":
            raise UserError(pipeline.stop_message(found, len(used)))
        for problem in problems.values() if found else ():
            rows = getattr(problem, part)
            rows[:] = [r[~np.isin(r, [b.index for b in found])] for r in rows]
        bad += found
    return bad


def write_lists(workdir, dataset, problems, seeds):
    """The training and validation images of each seed, by name, in workdir/few_shot."""
    for protocol, problem in problems.items():
        for s, seed in enumerate(seeds):
            lists = {
                part: [getattr(dataset, part).names[i] for i in getattr(problem, part)[s].tolist()]
                for part in ("train", "val")
            }
            write_json(workdir / "few_shot" / f"{protocol}-seed_{seed}.json", lists)
