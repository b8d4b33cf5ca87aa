"""What a tuned checkpoint says of pictures.

    python -m vlmx.predict --checkpoint runs/digits/coop-few_shot/seed_1 --image x.jpg more.jpg
    python -m vlmx.predict --checkpoint runs/digits/coop-few_shot/seed_1 --image folder table.csv --classes 'cat,"a, b"'
    python -m vlmx.predict --checkpoint runs/scenes_vl/single_adapter/tuned --image x.jpg --text "vqa: what is it?"

Of a method for CLIP: the likeliest classes with their probabilities. Of a variant of VL-T5 or VL-BART: its answer to
the text, which begins with the task's prefix (video tasks: ends with it); two pictures for a task of pairs, a video or
its frames for one of videos. --attention out.png draws where it looks meanwhile (vlmx/attention.py). Many at once:
--jsonl FILE, lines {"image": path} or {"image": [path, path], "text": text}; each comes back with "classes" or
"answer", or "error", on standard output or in --out. Exit status 2 where no image could be read.

A checkpoint may name only methods of vlmx; another one is imported only where --allow-methods names it.
"""

import argparse
import contextlib
import csv
import functools
import json
import os
import re
import reprlib
import sys
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from vlmx import checkpoint, files, partition, shard, variant
from vlmx import method as methods
from vlmx.data import image_files, pipeline, transforms
from vlmx.data.task import Split
from vlmx.errors import WRONG, UserError, unknown
from vlmx.models import zoo

TOP = 5
ITEM = re.compile(r'\s*(?:"((?:[^"]|"")*)"|([^",][^,]*|))\s*(,|$)')  # a name of --classes, quoted or not


# -------------------------------------------------------------------- methods for CLIP
class Classifier:
    """A tuned CLIP method, ready to say which class images are of.

    Args:
        folder: .../seed_N of a run, with tuned.safetensors and tuned.json.
        classes: other names than those tuned on, for methods that can be carried to them.
        model: where the backbone lies, if not where the run found it.
        allow_methods: modules outside of vlmx that the checkpoint may name as its method; importing one runs it.

    Raises:
        UserError: no checkpoint there, a damaged one, another backbone, classes that the method has nothing for.
    """

    def __init__(self, folder, classes=(), model=None, allow_methods=()):
        v, meta = checkpoint.read(folder, ("method", "hyper", "backbone", "classes"))
        meta = _of_the_run(folder) | meta
        name = meta.get("make", meta["method"])
        checkpoint.refuse_outside(folder, name, methods.names(), allow_methods)
        if "model" not in meta and not model:
            raise UserError(f"{folder}/tuned.json does not say which CLIP it was tuned on: name it with --model.")
        learnt = tuple(meta["classes"])
        self.classes = _as_spelled(learnt, (classes,) if isinstance(classes, str) else tuple(classes)) or learnt
        if twice := [c for c in dict.fromkeys(self.classes) if self.classes.count(c) > 1]:
            raise UserError(f"the class {twice[0]!r} is named twice; each name is one class.")
        method = _make(folder, methods.make, name, meta["hyper"])
        if self.classes != learnt and not method.carries and (odd := [c for c in self.classes if c not in learnt]):
            raise UserError(
                f"{meta['method']} has nothing for classes it was not tuned on: {', '.join(odd)}. It knows "
                f"{', '.join(learnt)}."
            )
        with _located(folder, "--model", model):
            zoo.locate(model or meta["model"])
        loaded = zoo.load(model or meta["model"], **zoo.overrides(meta))
        if loaded.digest != meta["backbone"]:
            raise UserError(
                f"{folder} was tuned on the backbone with SHA-256 {meta['backbone']}; {model or meta['model']} has "
                f"{loaded.digest}. Name the one it was tuned on with --model."
            )
        methods.refuse_tower(name, method, loaded.model, model or meta["model"])
        task = functools.partial(
            methods.Task, templates=tuple(meta.get("templates") or (methods.PHOTO,)),
            ensemble=tuple(meta.get("ensemble") or (methods.PHOTO,)),
            tokenize=functools.partial(loaded.tokenizer, truncate=meta.get("truncate", False)),
        )  # fmt: skip
        size = loaded.model.config.vision.image_size
        with _fitting(folder):
            _refuse_misfit(folder, method, loaded.model, task(learnt), v)
            if "backbone" in v["train"]:
                v["train"]["backbone"] = _whole(v["train"]["backbone"], loaded.model.params)
            if self.classes != learnt and method.carries and (same := methods.same_prompts(task(self.classes))):
                names = " and ".join(map(repr, same[0]))
                raise UserError(f"the classes {names} have the same prompt, which no text tells apart. Keep one.")
            if self.classes == learnt or method.carries:
                consts = method.setup(loaded.model, task(self.classes))
            else:
                consts = method.setup(loaded.model, task(learnt))
                method = methods.only(method, [learnt.index(c) for c in self.classes])
            one = np.zeros((1, size, size, 3), np.uint8)
            self.apply = jax.jit(functools.partial(_outputs, method.apply))
            outputs = jax.eval_shape(self.apply, v, loaded.model, consts, one)
        self.shapes = {name: a.shape[1:] for name, a in outputs.items() if a.shape[:1] == (1,)}
        self.says = tuple(self.shapes)
        self.folder, self.v, self.model, self.consts = folder, v, loaded.model, consts
        self.upright = meta.get("upright", False)
        self.transform = transforms.for_tower(loaded.model.config)

    def __call__(self, images, batch=32):
        """Return the probabilities `(n, C)` float32 of images, NaN for those that cannot be read, and why: [Bad].

        Args:
            images: image files, PIL images or uint8 arrays; or a single one of them.
            batch: how many are computed at once.
        """
        outputs, bad = self.outputs(images, ("logits",), batch)
        return np.asarray(jax.nn.softmax(outputs["logits"])), bad

    def outputs(self, images, names, batch=32):
        """What the method computes on the way, of images as `__call__` takes them: {name: `(n, ...)` float32}, with NaN
        for those that cannot be read, and why: [Bad]. `names`: some of `self.says`, what its `apply` returns for each
        image; UserError for others, and for logits that are not finite."""
        for name in names:
            if name not in self.says:
                raise unknown("output of this method", name, self.says)
        images, bad = _several(images), []
        rows = {name: np.full((len(images), *self.shapes[name]), np.nan, np.float32) for name in names}
        titles = [os.fspath(image) if isinstance(image, os.PathLike | str) else f"image {i}"
                  for i, image in enumerate(images)]  # fmt: skip
        part = Split(images, np.zeros(len(images), np.int32), titles)
        batch = max(min(batch, len(images)), 1)
        for b in pipeline.eval_batches(part, self.transform, batch, upright=self.upright, bad=bad):
            real = b["weight"] > 0
            out = self.apply(self.v, self.model, self.consts, b["image"])
            for name in names:
                rows[name][b["index"][real]] = np.asarray(out[name])[real]
            if "logits" in names and not np.isfinite(rows["logits"][b["index"][real]]).all():
                raise UserError(f"{self.folder}/tuned.safetensors: its numbers give logits that are not finite.")
        return rows, bad


def _as_spelled(learnt, classes):
    """The classes, spelled as those that were tuned on where only spaces that repeat or the form of accents (NFC, NFD)
    differ."""
    if odd := [name for name in classes if not checkpoint.is_text(name)]:
        expected = "expected a text, not empty, at most 10,000 letters, without null characters, and UTF-8 in a file"
        raise UserError(f"classes: {reprlib.repr(odd[0])} is no name of a class; {expected}.")
    plain = lambda name: image_files.normalize_name(" ".join(name.split()))
    spelled = {plain(name): name for name in learnt}
    return tuple(name if name in learnt else spelled.get(plain(name), plain(name)) for name in classes)


@contextlib.contextmanager
def _located(folder, option, named):
    """Add to an error about a model that is not there what to do, unless the person named it."""
    try:
        yield
    except UserError as e:
        if named:
            raise
        raise UserError(f"{folder} was tuned on this model; name it with {option} where it lies elsewhere: {e}") from e


def _several(images):
    """The images as a list: a path, a PIL image or an array `(H, W[, 3])` alone is one."""
    one = isinstance(images, str | os.PathLike | bytes | Image.Image) or getattr(images, "dtype", None) == np.uint8
    return [images] if one and getattr(images, "ndim", 0) < 4 else list(images)


def _name_of(image):
    """The path of an image or a video, or a number of an object in memory."""
    return os.fspath(image) if isinstance(image, str | os.PathLike) else str(id(image))


def _outputs(apply, v, model, consts, images):
    return apply(v, methods.tuned(model, v), consts, {"image": images}, None, False)


def _whole(tree, like):
    """Nested dicts as deep as `like`, with None for what `tree` does not hold of it."""
    return {k: _whole(tree.get(k, {}), v) if isinstance(v, dict) else tree.get(k) for k, v in like.items()}


@contextlib.contextmanager
def _fitting(folder):
    """UserError, naming tuned.json, for hyper-parameters and arrays that a method or variant cannot be built of."""
    try:
        yield
    except UserError:
        raise
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as e:
        problem = f"{type(e).__name__}: {str(e).partition(chr(10))[0][:200]}"
        raise UserError(f"{folder}: tuned.json and tuned.safetensors do not fit the method ({problem}).") from e


def _make(folder, make, name, hyper):
    """The method or variant of tuned.json; UserError, naming the file, for hyper-parameters that it cannot have."""
    with _fitting(folder):
        try:
            return make(name, **hyper)
        except UserError as e:
            raise UserError(f"{folder}/tuned.json: {e}") from e


def _refuse_misfit(folder, method, model, task, v):
    """UserError where the arrays of `v` are not those that a training of the method on the classes of `task` leaves."""
    consts = jax.eval_shape(lambda model: method.setup(model, task), model)
    C, E = len(task.classnames), model.config.embed_dim

    def arrays_of(M):
        """The shapes of a training on M images, by path."""
        of = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype)
        support = {"features": of(jnp.float32, M, E), "label": of(jnp.int32, M)}
        support |= {"prior": {"text_features": of(jnp.float32, C, E)}} if method.prior else {}
        start = lambda model, consts, support: methods.start(method, jax.random.key(0), model, consts, support)
        return jax.eval_shape(start, model, consts, support)

    leaves = dict(zip(partition.paths(v), jax.tree.leaves(v), strict=True))
    one, two = (dict(zip(partition.paths(t), jax.tree.leaves(t), strict=True)) for t in map(arrays_of, (1, 2)))
    images = [  # of the training: where a cache or labels say how many there were
        leaves[path].shape[axis]
        for path in one
        for axis, (a, b) in enumerate(zip(one[path].shape, two[path].shape, strict=True))
        if a != b and path in leaves and leaves[path].ndim == one[path].ndim
    ]
    # What a search on validation images leaves in "fixed" is its own; `apply` says what it lacks.
    free = ("fixed",) if method.finalize else ()
    checkpoint.refuse_misfit(folder, leaves, arrays_of(images[0] if images else 1), free)
    label = leaves.get("fixed/label", np.zeros(0))
    if label.size and not (0 <= label.min() and label.max() < C):
        raise UserError(f"{folder}/tuned.safetensors: 'fixed/label' numbers classes beyond the {C} of tuned.json.")


def _of_the_run(folder):
    """What the config of the checkpoint's run says, where it is still two folders above: fields of checkpoint.FIELDS.
    A config.json of something else says nothing."""
    path = Path(folder).absolute().parent.parent / "config.json"
    if not path.exists():
        return {}
    advice = "Repair it, or move the checkpoint's folder elsewhere."
    config = files.read_json(path, advice)
    model, tower = config.get("model"), config.get("tower")
    if not isinstance(model, dict) or "name" not in model:
        return {}
    found = {"model": model["name"], "seed": config.get("seed")}
    found |= zoo.overrides(model) | {key: model.get(key) for key in ("truncate", "start")}
    if isinstance(tower, dict):
        found |= {"tower": tower.get("name"), "what": tower.get("what")}
        found |= {f"tower_{key}": value for key, value in zoo.overrides(tower).items()}
    found = {key: value for key, value in found.items() if value is not None}
    checkpoint.refuse_wrong_fields(path, found, advice=advice)
    return found


# -------------------------------------------------------------------- variants of VL-T5 and VL-BART
class Answerer:
    """A tuned variant of VL-T5 or VL-BART, ready to answer texts about pictures.

    folder: .../<variant>/tuned of a run. model, tower: where the language model and the CLIP whose features it reads
    lie, if not where the run found them. allow_methods, and what is raised: as Classifier.
    """

    def __init__(self, folder, model=None, tower=None, allow_methods=()):
        from vlmx.data import vl_forms
        from vlmx.extract import WHAT
        from vlmx.models.vlseq import Visual

        meta = checkpoint.read_about(folder, ("variant", "hyper", "backbone", "tasks", "visual"))
        meta = _of_the_run(folder) | meta
        checkpoint.refuse_outside(folder, meta["variant"], variant.names(), allow_methods)
        named = {"--model": model, "--tower": tower}
        model, tower = model or meta.get("model"), tower or meta.get("tower")
        if not model or not tower:
            raise UserError(
                f"the config.json of the run is not above {folder}: name the language model with --model, the CLIP "
                "whose features it was tuned on with --tower."
            )
        self.what = meta.get("what", "grid")
        if self.what not in WHAT:
            raise unknown(f"value of 'what' in the tuned.json of {folder}, or of tower.what above it:", self.what, WHAT)
        self.chosen = _make(folder, variant.make, meta["variant"], meta["hyper"])
        for option, name in (("--model", model), ("--tower", tower)):
            with _located(folder, option, named[option]):
                zoo.locate(name)
        with _fitting(folder):
            visual = Visual(**meta["visual"])
            loaded = zoo.load_seq(model, visual=visual, seed=meta.get("seed", 0))
        self.model, digest, self.words, self.tasks = loaded.model, loaded.digest, loaded.tokenizer, []
        if meta.get("start"):
            self.model, digest = variant.begun(self.model, meta["start"], digest)
        with _fitting(folder):
            like = variant.shapes(self.chosen, self.model, len(meta["tasks"]))
        self.v, _ = variant.load(folder, like, digest)
        room = self.model.config.positions or 1024  # T5 has no table of positions
        for name in meta["tasks"]:
            form = vl_forms.FORMS.get(name.removeprefix("scenes_"))
            self.tasks.append((form or vl_forms.FORMS["vqa"]._replace(prefix=f"{name}: "))._replace(name=name))
            self.tasks[-1] = self.tasks[-1]._replace(length=min(self.tasks[-1].length, room))
        self.own = bool(self.chosen.own)
        self.clip = zoo.load(tower, **zoo.overrides(meta, "tower_")).model
        self.transform = transforms.whole_for_tower(self.clip.config)
        self.mesh = shard.make_mesh(devices=jax.devices()[:1])

    def task_of(self, text, images):
        """(number of the task that a text about so many images is for, the text without its prefix). UserError for none
        of them."""
        number, rest = self._named(text)
        task = self.tasks[number]
        if not images or not task.suffix and images != task.images:
            expected = "a video, or its frames" if task.suffix else "1 picture" if task.images == 1 else "2 pictures"
            raise UserError(f"{text!r} is asked about {images} pictures; {task.name} is about {expected}.")
        return number, rest

    def _named(self, text):
        for number, task in enumerate(self.tasks):
            if task.suffix and text.rstrip().endswith(task.prefix.strip()):
                return number, text.rstrip().removesuffix(task.prefix.strip())
            if not task.suffix and text.startswith(task.prefix.strip()):
                return number, text.removeprefix(task.prefix.strip()).lstrip()
        known = ", ".join(repr(task.prefix) + " (at its end)" * task.suffix for task in self.tasks)
        raise UserError(f"{text!r} does not say which task it is for; it has to begin with one of {known}.")

    def __call__(self, questions):
        """Answers to [(text, pictures)]: a str, or transforms.BadImage of a picture that cannot be read."""
        from vlmx.vl_predict import predict

        by_task, features, said = self.read(questions)
        for number, rows in by_task.items():
            examples = [e for _, e in rows]
            world, mix = self.world(number, examples, features)
            answers = predict(world, mix, self.chosen, self.v, number, examples)
            said |= {i: answer for (i, _), answer in zip(rows, answers, strict=True)}
        return [said[i] for i in range(len(questions))]

    def read(self, questions):
        """({number of a task: [(which question, Example)]}, features `(n, F)` by the names that Examples have,
        {question: BadImage}) of [(text, pictures)]: paths, PIL images or uint8 arrays, one or several; of a video its
        file, or its frames."""
        from vlmx.data.vl import Example
        from vlmx.extract import WHAT, encode

        asked, wanted = [], {}
        for text, refs in questions:
            refs = _several(refs)
            number, rest = self.task_of(text, len(refs))
            video = self.tasks[number].suffix
            several = [(video, tuple(refs))] if video else [(video, (ref,)) for ref in refs]
            names = tuple(" ".join(map(_name_of, part)) for _, part in several)
            wanted |= dict(zip(names, several))
            asked.append((number, Example("", names, rest)))

        def pixels(part):
            return map(self.transform, self.pictures(*part))

        batch = min(len(wanted), 32)
        features = dict(encode(self.clip, wanted, pixels, WHAT[self.what], batch, self.mesh))
        width = self.model.config.visual.width
        if odd := [f.shape[-1] for f in features.values() if not isinstance(f, Exception) and f.shape[-1] != width]:
            raise UserError(
                f"the image tower gives features of width {odd[0]}; the variant was tuned on features of width "
                f"{width}. Name the CLIP that those came from with --tower."
            )
        by_task, bad = {}, {}
        for i, (number, example) in enumerate(asked):
            gone = next((name for name in example.images if isinstance(features[name], Exception)), None)
            if gone is None:
                by_task.setdefault(number, []).append((i, example))
            else:
                bad[i] = transforms.BadImage(f"{gone}: {features[gone]}")
        return by_task, features, bad

    def world(self, number, examples, features):
        """What vl_predict asks for, of examples of one task."""
        from vlmx.data.vl_batches import Mix
        from vlmx.data.vl_features import ROWS, Resampled
        from vlmx.vl import World

        tasks = tuple(task._replace(test=examples) for task in self.tasks)
        features = Resampled(features, ROWS) if self.tasks[number].suffix else features
        prefixes = not self.own and bool(jax.tree.leaves(self.v["train"]["shared"]))
        mix = Mix(tasks, self.words, features, (len(examples),) * len(tasks), 0, prefixes)
        config = ConfigDict({"eval_batch": min(len(examples), 16)})
        return World(config, None, self.mesh, tasks, features, self.model, self.words, None), mix

    def pictures(self, video, refs):
        """PIL images, one after the other; of a video's file its frames, as many a second as were tuned on. Raises
        BadImage."""
        from vlmx.data import video as videos

        if video and len(refs) == 1 and _name_of(refs[0]).lower().endswith(videos.VIDEOS):
            return videos.frames(refs[0], videos.RATE)
        return map(transforms.decode, refs)


# -------------------------------------------------------------------- the command
def classify(args, requests, classes):
    """Rows {"image", "classes": {name: probability}} or {"image", "error"}."""
    model = Classifier(args.checkpoint, classes, args.model, args.allow_methods)
    p, bad = model([r["image"][0] for r in requests], args.batch)
    reasons = {b.index: b.reason for b in bad}
    for i, request in enumerate(requests):
        if i in reasons:
            yield {"image": request["image"][0], "error": reasons[i]}
        else:
            best = np.argsort(-p[i], kind="stable")[:TOP]
            yield {"image": request["image"][0], "classes": {model.classes[c]: round(float(p[i, c]), 6) for c in best}}


def answer(args, requests, classes):
    """Rows {"image", "text", "answer"} or {..., "error"}."""
    del classes  # an answer is free text
    model = Answerer(args.checkpoint, args.model, args.tower, args.allow_methods)
    if args.attention:
        from vlmx import attention

        seen = attention.attend(model, requests[0]["image"], requests[0]["text"])
        files.write(args.attention, attention.png(seen.figure()))
        answers = [seen.answer]
    else:
        answers = model([(r["text"], r["image"]) for r in requests])
    for request, a in zip(requests, answers, strict=True):
        yield request | ({"error": str(a)} if isinstance(a, Exception) else {"answer": a})


def class_names(text):
    """Return the names that --classes lists: separated by commas, quoted where one contains a comma; or the lines of a
    file. Spaces that repeat count as one.

    Args:
        text: the word of the command line, or the path of a file, with or without @ in front.
    """
    if text.startswith("@") or os.path.isfile(text):
        advice = "--classes: expected a file with a name in each line."
        names = files.read_text(text.removeprefix("@"), advice).split("\n")
    else:
        names, at = [], 0
        while at <= len(text):
            item = ITEM.match(text, at)
            if not item:
                raise UserError(
                    f'--classes {text}: a quote without an end, or letters behind one; expected "cat, domestic",dog.'
                )
            names.append(item[2] if item[1] is None else item[1].replace('""', '"'))
            at = item.end() + (item[3] == "")  # behind the last one the text ends
    names = list(filter(None, (" ".join(name.split()) for name in names)))
    if text and not names:
        raise UserError(f"--classes {text}: no name in it; expected names with commas between, or a file of them.")
    return names


def list_files(words):
    """Return the image files that --image names: files, all images in folders, the rows of tables (.csv with a column
    `path` or `image`; relative paths are below the table's folder)."""
    paths = []
    for word in words:
        if os.path.isdir(word):
            found = image_files.list_images(word, Counter())
            if not found:
                raise UserError(f"--image {word}: a folder without images.")
            paths += [os.path.join(word, path) for path in found]
        elif word.lower().endswith(".csv"):
            paths += _rows_of_table(word)
        else:
            paths.append(word)
    return paths


def _rows_of_table(file):
    advice = "Expected a table with commas, whose first line names a column `path` or `image`."
    text = files.read_text(file, advice)
    try:
        head, *rows = csv.reader(text.splitlines(), strict=True)
        column = next(i for i, name in enumerate(head) if name.strip().lower() in ("path", "image"))
        paths = [row[column].strip() for row in rows if row]
    except (csv.Error, IndexError, StopIteration, ValueError) as e:
        raise UserError(f"--image {file}: not such a table. {advice}") from e
    if not all(paths) or not paths:
        raise UserError(f"--image {file}: {'a row without a path' if paths else 'no rows'}. {advice}")
    return [os.path.join(os.path.dirname(file), path) for path in paths]


def requests_of(args):
    """What is asked, as [{"image": [paths], "text"}]. UserError for lines that are not as they should be, and where
    there is none of the files."""
    requests = _lines_of(args) if args.jsonl else _asked_at_once(args)
    paths = [path for request in requests for path in request["image"]]
    if not any(map(os.path.isfile, paths)):
        several = f" and {len(paths) - 1} more: none of them" if len(paths) > 1 else ""
        problem = "not a regular file" if os.path.exists(paths[0]) else "no such image file"
        raise UserError(f"{image_files.printable(paths[0]) or repr('')}{several}: {problem}.")
    return requests


def _asked_at_once(args):
    paths = list_files(args.image)
    return [{"image": some, "text": args.text} for some in ([paths] if args.text else [[path] for path in paths])]


def _lines_of(args):
    expected = 'expected {"image": path or [paths]}, with "text" for language models.'
    lines = files.read_text(args.jsonl, f"--jsonl: in each line {expected}").split("\n")
    requests = []
    for n, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row = files.parse_json(line, f"{args.jsonl}, line {n}", expected)
        paths, text = row.get("image"), row.get("text", args.text)
        paths = [paths] if isinstance(paths, str) else paths
        if not isinstance(paths, list) or not paths or not all(map(_is_path, paths)):
            raise UserError(f"{args.jsonl}, line {n}: {expected}")
        if not isinstance(text, str) or text and not checkpoint.is_text(text):
            raise UserError(f"{args.jsonl}, line {n}: {expected}")
        requests.append({"image": paths, "text": text})
    if not requests:
        raise UserError(f"--jsonl {args.jsonl}: no line in it; {expected}")
    return requests


def _is_path(value):
    """Whether a json value can be the path of a file; names that are not UTF-8 stand as \\udcXX escapes."""
    return isinstance(value, str) and bool(value) and "\0" not in value


def describe_row(row):
    """A row of the answer for people; what a checkpoint or a name could say to the terminal becomes escapes."""
    name = image_files.printable(" ".join([row["image"]] if isinstance(row["image"], str) else row["image"]))
    if "error" in row:
        return f"{name}: cannot be read: {image_files.printable(row['error'])}"
    if "answer" in row:
        return f"{name}: {image_files.printable(row['answer'])}"
    return "\n".join([name, *(f"  {100 * p:5.1f} %  {image_files.printable(c)}" for c, p in row["classes"].items())])


def run(args):
    """What the command line asks for; returns the rows."""
    folder = Path(args.checkpoint)
    meta = checkpoint.read_about(folder)
    seq = "variant" in meta
    if not seq and "method" not in meta:
        raise UserError(f"{folder}/tuned.json names no method and no variant. {checkpoint.AGAIN}")
    if seq and args.classes:
        raise UserError(f"{folder} is of a language model; --classes are for methods of CLIP.")
    if args.batch < 1:
        raise UserError(f"--batch {args.batch}: expected a number of images, at least 1.")
    if folders := [path for path in (args.out, args.attention) if path and os.path.isdir(path)]:
        raise UserError(f"{folders[0]}: a folder; expected the name of a file to write.")
    requests, classes = requests_of(args), class_names(args.classes)
    if seq and not all(r["text"] for r in requests):
        raise UserError(f'{folder} is of a language model: say what is asked with --text, or "text" in each line.')
    if args.attention and (not seq or len(requests) > 1):
        raise UserError("--attention draws one question to a language model: --image and --text, without --jsonl.")
    if not seq and (args.text or any(len(r["image"]) > 1 for r in requests)):
        raise UserError(f"{folder} is of {meta['method']}, which classifies pictures one by one: without --text.")
    rows = list((answer if seq else classify)(args, requests, classes))
    lines = [json.dumps(row, ensure_ascii=False) if args.jsonl or args.out else describe_row(row) for row in rows]
    text = "".join(line + "\n" for line in lines).encode(errors="backslashreplace")  # of names that are not UTF-8
    if args.out:
        files.write(args.out, text)
    else:
        print(text.decode(), end="", flush=True)
    return rows


def arguments(argv):
    """The command line as argparse finds it."""
    about, _, more = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        "python -m vlmx.predict", None, about, more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="folder with tuned.safetensors and .json")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--image", nargs="+", metavar="FILE", help="image files, folders of them, tables (.csv)")
    what.add_argument("--jsonl", metavar="FILE", help="many, a json object a line")
    parser.add_argument(
        "--classes", default="", metavar="NAMES", help="with commas between, quoted where a name has one, as in "
        "'\"cat, domestic\",dog'; or a file with a name a line; default: those that were tuned on",
    )  # fmt: skip
    parser.add_argument(
        "--allow-methods", default=(), metavar="MODULE,...", type=lambda text: tuple(text.split(",")),
        help="modules outside of vlmx that the checkpoint may name; importing one runs it",
    )  # fmt: skip
    parser.add_argument("--text", default="", help="what is asked, as 'vqa: what colour is the circle?'")
    parser.add_argument("--attention", metavar="FILE.png", help="where the model looks, drawn over the pictures")
    parser.add_argument("--model", help="where the backbone lies, if not where the run found it")
    parser.add_argument("--tower", help="the same of the CLIP behind a language model")
    parser.add_argument("--batch", type=int, default=32, help="pictures at once; default: %(default)s")
    parser.add_argument("--out", metavar="FILE", help="lines of json are written here")
    return parser.parse_args(argv)


def main(argv):
    """The command; returns the exit status."""
    from vlmx import main as command  # it defines flags: not where another command imports this file

    args, rows = arguments(argv), []
    command.guarded(lambda: rows.extend(run(args)), args.out or ".")
    if all("error" in row for row in rows):
        print("\nerror: no image could be read.", file=sys.stderr)
        return WRONG
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
