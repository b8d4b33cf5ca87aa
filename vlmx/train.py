"""The run: from a config to results.json and report.html. Reads from top to bottom; names no method and no data set.

S seeds, B images of a batch, M training images of a draw, E feature size.
"""

import functools
import hashlib
import json
import time
import traceback
from pathlib import Path

import jax
import numpy as np

from vlmx import checkpoint, evaluate, features, logs, partition, report, settings, shard, tables
from vlmx import method as methods
from vlmx.data import fewshot, pipeline, protocols, task, transforms
from vlmx.errors import Unwritable, UserError
from vlmx.files import read_json, write_json
from vlmx.fit import fit, search, stack
from vlmx.logs import say
from vlmx.metrics import accuracy
from vlmx.models import zoo
from vlmx.world import (
    Test,
    World,
    drop_unreadable,
    find_same_prompts,
    load_model,
    load_target,
    name_test_split,
    predict,
    refuse_unreadable_tests,
    used_rows,
    words,
    write_lists,
)

TESTED = "Remove it and run the same command: the method is tested again."
RUN = {"method": str, "protocol": str, "shots": int, "trained_params": int, "trained_percent": (int, float)}
RUN |= {"seconds": (int, float), "notes": [str], "settings": dict, "seeds": [dict], "summary": dict, "curve": dict}


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
    say(f"devices: {settings.device()}, mesh {dict(mesh.shape)}; results go to {workdir}")

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
        problems[protocol] = protocols.PROTOCOLS[protocol](dataset, settings.shots(config), seeds, mine)
        targets |= mine
    if config.checkpoint_best and not all(len(draw.val) for problem in problems.values() for draw in problem.draws):
        raise UserError(f"checkpoint_best chooses on validation images, and {dataset.name} has none for every seed.")

    # ---------------------------------------------------------------- the frozen model
    model, tokenizer, digest = load_model(config, mesh)
    size = model.config.vision.image_size
    made = {cell: settings.make(config, *cell) for cell in cells}
    for (name, _), method in made.items() if not go_on else ():
        methods.refuse_tower(name, method, model, config.model.name)
    say(f"model: {config.model.name}, {partition.count(model.params):,} parameters, frozen, {size} x {size} pixels")
    same_prompts = [
        f"{of}: {note}".removeprefix(": ")
        for of, data in {"": dataset, **targets}.items()
        for note in find_same_prompts(config, data, tokenizer)
    ]
    for note in same_prompts:
        say(f"  note: {note}")

    # ---------------------------------------------------------------- images that cannot be read
    to_pixels = transforms.for_tower(model.config)
    bad = drop_unreadable(config, dataset, targets, problems, to_pixels)
    write_lists(config, workdir, dataset, problems)

    # ---------------------------------------------------------------- frozen features, each image once
    reading = {"workers": config.data.workers, "upright": dataset.upright}
    kept = {"store": features.open_store(config.features), "digest": digest}
    encode = functools.partial(features.encode, model, batch=config.eval_batch, mesh=mesh, **kept, **reading)
    stored, tests = {}, {}
    for of, data in {"": dataset, **targets}.items():
        split = name_test_split(of)
        bad[split] = []
        found = encode(data.test, to_pixels, what=f"{split} images", bad=bad[split], upright=data.upright)
        tests[of] = Test(data, found)
    if any(bad.values()) and config.data.bad_images == "stop":
        lengths = {name_test_split(of): len(test.dataset.test.labels) for of, test in tests.items()}
        raise UserError(pipeline.splits_stop_message(bad, lengths))
    refuse_unreadable_tests(problems, tests)
    read = any(method.needs == "features" and name != config.reference for (name, _), method in made.items())
    views = max(settings.recipe_of(config, *cell).get("views", 0) for cell in cells)
    crop = transforms.crop_for_tower(model.config, config.data.crop_scale)
    if read or (trains and config.data.augment == "none"):
        for part in ("train", "val"):
            used = used_rows(problems, part)
            images = fewshot.take(getattr(dataset, part), used)
            rows = np.asarray(encode(images, to_pixels, what=f"{part} images").features)
            stored[part] = dict(zip(used.tolist(), rows))
            if part == "train" and views and config.data.augment == "crop":
                crops = encode(images, crop, views=views, what="crops of train images").features
                stored["views"] = dict(zip(used.tolist(), crops.swapaxes(0, 1)))

    # ---------------------------------------------------------------- zero-shot, before anything is trained
    world = World(config, workdir, mesh, dataset, model, tokenizer, digest, to_pixels, reading, stored, tests, {})
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
            found = cell(world, name, protocol, method, problems[protocol])
        except Exception as e:
            if not go_on or stops_all(e):
                raise
            failed.append({"method": name, "protocol": protocol, "error": told(e)})
            say(f"{name}, {protocol}: failed, the others go on. {failed[-1]['error']}")
            continue
        for result, wrong in found:
            mistakes += [row | {"run": len(runs)} for row in wrong]
            runs.append(result)

    # ---------------------------------------------------------------- results and report
    notes = [*dataset.notes, *(f"{name}: {note}" for name, data in targets.items() for note in data.notes)]
    notes += same_prompts
    notes += [f"unreadable, left out: {b.name} ({b.reason})" for images in bad.values() for b in images]
    results = {
        **settings.head(config),
        "dataset": {
            "name": dataset.name,
            "classnames": list(dataset.classnames),
            "templates": list(dataset.templates),
            **{f"n_{part}": n - len(bad[part]) for part, n in sizes.items()},
            "unreadable": sum(map(len, bad.values())),  # of the targets too
            "notes": notes,
        },
        "targets": {name: {"n_test": int(tests[name].features.weight.sum())} for name in targets},
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


# -------------------------------------------------------------------- one method under one protocol
def cell(world, name, protocol, method, problem):
    """Train, search on validation, test: for each number of shots (an entry of results["runs"], its mistakes). What is
    finished is read back."""
    config, fitted = world.config, []
    of = lambda n: world.workdir / f"{name.replace('.', '_')}-{protocol}{settings.label(config, n)}"
    counts = (0,) if method.untrained else settings.shots(config)
    missing = [n for n in counts if not (of(n) / "result.json").exists()]
    draws = [draw for draw in problem.draws if draw.shots in missing]
    if missing:
        methods.refuse_tower(name, method, world.model, config.model.name)
        began = time.monotonic()
        learnt = words(world, problem.labels)
        consts = method.setup(world.model, learnt)
        fitted = learn(world, name, protocol, method, consts, problem.labels, draws) if draws else []
        spent = (time.monotonic() - began) / len(missing)  # they were trained together
    found = []
    for n in counts:
        if n in missing:
            mine = [(draw, v) for draw, v in zip(draws, fitted) if draw.shots == n]
            found.append(test(world, name, protocol, method, problem, learnt, consts, mine, of(n), spent))
        else:
            say(f"{name}, {protocol}{settings.label(config, n)}: finished before")
            saved = read_json(of(n) / "result.json", TESTED, {"run": RUN, "mistakes": [dict]})
            refuse_other_settings(config, name, protocol, of(n), saved)
            found.append((saved["run"], saved["mistakes"]))
    return found


def refuse_other_settings(config, name, protocol, folder, saved):
    """UserError where a finished result, `saved`, is of other settings than the config's."""
    asked = {"hyper": json.loads(json.dumps(settings.hyper(config, name, protocol)))}
    asked["training"] = settings.training(config, settings.recipe_of(config, name, protocol))
    facts = {"hyper": saved["run"]["settings"]} | {k: saved[k] for k in ("training",) if k in saved}
    checkpoint.refuse_other(folder, facts, asked)


def test(world, name, protocol, method, problem, learnt, consts, fitted, folder, spent):
    """What the draws of one number of shots come to: (an entry of results["runs"], its mistakes), written to `folder`
    with the tuned trees.

    Args: fitted: [(draw, its tree)]; none where nothing is trained. spent: seconds that training took.
    """
    config, began = world.config, time.monotonic()
    recipe = settings.recipe_of(config, name, protocol)
    rules = shard.rules_of(config.shardings, name) + shard.METHOD
    shots = fitted[0][0].shots if fitted else 0
    meta = identity(world, name, protocol, protocol, learnt) | {"shots": shots}
    training = settings.trained_as(config, name, protocol)
    trees = [v for _, v in fitted] or [{"train": {}, "fixed": {}}]
    seeds = [draw.seed for draw, _ in fitted] or [None]
    trained = partition.count(trees[0]["train"])
    total = partition.count(world.model.params)

    # ---- every part of the test
    outcomes, notes, mistakes = [{"seed": s, "metrics": {}, "per_class": {}, "confusion": {}} for s in seeds], [], []
    adaptation = {}
    if method.finalize and not all(len(draw.val) for draw, _ in fitted):
        notes.append("without validation images the settings that are searched on them stay as they are in the config")
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
        said, p, weight = predict_each(world, tested, trees, facts, part, rules)
        truth = protocols.relabel(world.tests[part.of].dataset.test.labels[part.index], part.labels)
        if method.describe:
            said_of = method.describe(trees[0], facts)  # the same for all seeds
            adaptation[part_name] = {k: np.asarray(a).tolist() for k, a in said_of.items()}
            adaptation[part_name] |= {"classes": list(classes.classnames)} | difficulty(world, part, classes, truth)
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
        largest = shots in (0, max(settings.shots(config), key=tables.size))  # of several, pictures of one will do
        if largest and logs.first_process() and not part.of:
            key = folder.name, seeds[0], part_name
            mistakes += save_mistakes(world, part, classes, said[0], p[0], truth, weight, key)
    targets = {part_name for part_name, part in problem.parts.items() if part.of}
    for m in (outcome["metrics"] for outcome in outcomes):
        if targets and targets <= m.keys():
            m["average"] = sum(m[target] for target in targets) / len(targets)
        if {"base", "new"} <= m.keys():
            m["hm"] = float(accuracy.harmonic_mean(m["base"], m["new"]))

    # ---- what stays
    run = f"{name}-{training}{settings.label(config, shots)}"
    curve = logs.curve(world.workdir, run) if fitted else {}
    if skipped := sum(int(n or 0) for row in curve.get("skipped", ()) for n in row):
        notes.append(f"steps left out, since a loss or gradient was not finite: {skipped}, of all seeds together")
    keys = list(outcomes[0]["metrics"])
    summary = {k: accuracy.summary([o["metrics"][k] for o in outcomes]) for k in keys}
    pixels = method.needs == "pixels" or (bool(trained) and settings.uses_pixels(config, method, recipe))
    result = {
        "method": name,
        "protocol": protocol,
        "shots": shots,
        "images": "pixels" if pixels else "features",
        "trained_params": trained,
        "trained_percent": 100 * trained / total,
        "seconds": round(spent + time.monotonic() - began, 1),
        "settings": meta["hyper"],
        "notes": notes,
        "seeds": outcomes,
        "summary": summary,
        "curve": curve,
        **({"adaptation": adaptation} if adaptation else {}),
    }
    if fitted:
        result["draws"] = evaluate.count_drawn([d for d, _ in fitted], world.dataset.train.labels, problem.labels)
    about = {"model": config.model.name, "image_size": config.model.image_size, "templates": world.dataset.templates}
    about |= {key: value for key, value in zoo.overrides(config.model).items() if value}
    about |= {"ensemble": learnt.ensemble, "upright": world.dataset.upright}  # what vlmx.predict has to know
    about |= {"truncate": config.model.truncate}
    about |= {"make": recipe.method} if "method" in recipe else {}
    for draw, v in fitted:
        checkpoint.export(folder / f"seed_{draw.seed}", v, meta | {"seed": draw.seed} | about)
    if logs.first_process():
        training = settings.training(config, recipe)
        write_json(folder / "result.json", {"run": result, "mistakes": mistakes, "training": training})
    shown = ", ".join(f"{k} {summary[k]['mean']:.1f}" for k in keys if "f1" not in k)
    of_shots = f" ({tables.in_shots(shots)})" if settings.label(config, shots) else ""
    say(f"{name}, {protocol}{of_shots}: {shown} ({trained:,} trained parameters; {result['seconds']} s)")
    return result, mistakes


def predict_each(world, method, trees, consts, part, rules):
    """`predict` of trees of which not all have one shape; those that have are one program's."""
    groups, said, p = {}, [None] * len(trees), [None] * len(trees)
    for s, v in enumerate(trees):
        groups.setdefault(tuple(leaf.shape for leaf in jax.tree.leaves(v)), []).append(s)
    for group in groups.values():
        *found, weight = predict(world, method, stack([trees[s] for s in group]), consts, part, rules)
        for s, its_said, its_p in zip(group, *found):
            said[s], p[s] = its_said, its_p
    return np.stack(said), np.stack(p), weight


def identity(world, name, protocol, training, classes):
    """What a checkpoint says of itself, and what one that is gone on from has to say."""
    hyper = settings.hyper(world.config, name, protocol)
    of = {"method": name, "hyper": hyper, "backbone": world.digest, "protocol": training}
    return of | {"classes": list(classes.classnames)}


def learn(world, name, protocol, method, consts, labels, draws):
    """The trees of draws, a list, trained and searched; the method's prior, where it has one, first.

    Trainings of one length run together, with those of methods that differ in the learning rate alone, which are kept
    until it is their turn; one that is there is read back."""
    config, classes, prior = world.config, words(world, labels), None
    family = settings.alike(config, name, protocol) or [name]
    key = protocol, *((draw.shots, draw.seed) for draw in draws)
    if (name, *key) in world.learnt:
        return world.learnt.pop((name, *key))
    if method.prior:
        earlier = settings.make(config, method.prior, protocol)
        facts, one = earlier.setup(world.model, classes), {"features": np.ones((1, world.model.config.embed_dim), "f4")}
        v = stack(learn(world, method.prior, protocol, earlier, facts, labels, draws))
        text = lambda v, model, facts: earlier.apply(v, model, facts, one, None, False)["text_features"]
        prior = {"text_features": np.asarray(jax.jit(jax.vmap(text, in_axes=(0, None, None)))(v, world.model, facts))}
    recipe, training = settings.recipe_of(config, family[0], protocol), settings.trained_as(config, family[0], protocol)
    of = identity(world, family[0], protocol, training, classes)
    groups = settings.together(recipe, draws, settings.uses_pixels(config, method, recipe))
    found = {other: [None] * len(draws) for other in family}
    for group in groups:
        mine, pairs = [draws[s] for s in group], [(other, s) for other in family for s in group]
        folder = world.workdir / f"{family[0]}-{training}".replace(".", "_") / steps_folder(config, mine)
        theirs = jax.tree.map(lambda a, pairs=pairs: a[np.array([s for _, s in pairs])], prior)
        runs = [f"{other}-{training}" for other, _ in pairs]
        rate = {other: settings.recipe_of(config, other, protocol).get("optimizer", {}).get("lr") for other in family}
        rates = [rate[other] for other, _ in pairs] if len(family) > 1 else None
        every = mine * len(family)
        fitted = fit(world, runs, method, recipe, consts, labels, every, of, folder, theirs, rates)
        for (other, s), v in zip(pairs, fitted, strict=True):
            found[other][s] = search(world, method, v, consts, labels, draws[s]) if method.finalize else v
    world.learnt.update({(other, *key): trees for other, trees in found.items() if other != name})
    return found[name]


def steps_folder(config, draws):
    """The folder of the checkpoints of draws that are trained together: "steps" where they are all there are."""
    pairs = [[draw.shots, draw.seed] for draw in draws]
    if pairs == [[n, seed] for n in settings.shots(config) for seed in config.seeds]:
        return "steps"
    return "steps-" + hashlib.sha256(json.dumps(pairs).encode()).hexdigest()[:8]


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
    pictures, entries = [], []
    for i in rows:
        try:
            pictures.append(transforms.decode(dataset.test.images[part.index[i]], dataset.upright))
        except transforms.BadImage:  # removed since it was encoded
            continue
        entries.append({"true": classes.classnames[truth[i]], "said": classes.classnames[said[i]], "p": float(p[i])})
    return report.save_mistakes(
        world.workdir, pictures, [{"run": run, "seed": seed, "part": name, **entry} for entry in entries]
    )
