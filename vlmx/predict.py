"""What a tuned checkpoint says of pictures.

    python -m vlmx.predict --checkpoint runs/digits/coop-few_shot/seed_1 --image x.jpg more.jpg
    python -m vlmx.predict --checkpoint runs/digits/coop-few_shot/seed_1 --image x.jpg --classes cat,dog
    python -m vlmx.predict --checkpoint runs/scenes_vl/single_adapter/tuned --image x.jpg --text "vqa: what is it?"

Of a method for CLIP: the likeliest classes with their probabilities. Of a variant of VL-T5 or VL-BART: its answer to
the text, which begins with the task's prefix (video tasks: ends with it); two pictures for a task of pairs, a video or
its frames for one of videos. --attention out.png draws where it looks meanwhile (vlmx/attention.py). Many at once:
--jsonl FILE, lines {"image": path} or {"image": [path, path], "text": text}; each comes back with "classes" or
"answer", or "error", on standard output or in --out.
"""

import argparse
import contextlib
import functools
import json
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from vlmx import checkpoint, files, partition, shard, variant
from vlmx import method as methods
from vlmx.data import pipeline, transforms
from vlmx.data.task import Split
from vlmx.errors import UserError, unknown
from vlmx.models import zoo

TOP = 5


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
        classes = (classes,) if isinstance(classes, str) else tuple(classes)
        learnt, self.classes = tuple(meta["classes"]), classes or tuple(meta["classes"])
        if twice := [c for c in dict.fromkeys(self.classes) if self.classes.count(c) > 1]:
            raise UserError(f"the class {twice[0]!r} is named twice; each name is one class.")
        with _fitting(folder):
            method = methods.make(name, **meta["hyper"])
        if self.classes != learnt and not method.carries and (odd := [c for c in self.classes if c not in learnt]):
            raise UserError(
                f"{meta['method']} has nothing for classes it was not tuned on: {', '.join(odd)}. It knows "
                f"{', '.join(learnt)}."
            )
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
        batch = min(batch, len(images)) or 1
        for b in pipeline.eval_batches(part, self.transform, batch, upright=self.upright, bad=bad):
            real = b["weight"] > 0
            out = self.apply(self.v, self.model, self.consts, b["image"])
            for name in names:
                rows[name][b["index"][real]] = np.asarray(out[name])[real]
            if "logits" in names and not np.isfinite(rows["logits"][b["index"][real]]).all():
                raise UserError(f"{self.folder}/tuned.safetensors: its numbers give logits that are not finite.")
        return rows, bad


def _several(images):
    """The images as a list: a path, a PIL image or an array `(H, W[, 3])` alone is one."""
    one = isinstance(images, str | os.PathLike | bytes | Image.Image) or getattr(images, "dtype", None) == np.uint8
    return [images] if one and getattr(images, "ndim", 0) < 4 else list(images)


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


def _refuse_misfit(folder, method, model, task, v):
    """UserError where the arrays of `v` are not those that a training of the method on the classes of `task` leaves."""
    consts = jax.eval_shape(lambda model: method.setup(model, task), model)
    C, E = len(task.classnames), model.config.embed_dim

    def arrays_of(M):
        """The shapes of a training on M images, by path."""
        support = {"features": jnp.zeros((M, E)), "label": jnp.zeros(M, int)}
        support |= {"prior": {"text_features": jnp.zeros((C, E))}} if method.prior else {}
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
    config = files.read_json(path, "Repair it, or move the checkpoint's folder elsewhere.")
    model, tower = config.get("model"), config.get("tower")
    if not isinstance(model, dict) or "name" not in model:
        return {}
    found = {"model": model["name"], "seed": config.get("seed")}
    found |= zoo.overrides(model) | {key: model.get(key) for key in ("truncate", "start")}
    if isinstance(tower, dict):
        found |= {"tower": tower.get("name"), "what": tower.get("what")}
        found |= {f"tower_{key}": value for key, value in zoo.overrides(tower).items()}
    found = {key: value for key, value in found.items() if value is not None}
    checkpoint.refuse_wrong_fields(path, found)
    return found


# -------------------------------------------------------------------- variants of VL-T5 and VL-BART
class Answerer:
    """A tuned variant of VL-T5 or VL-BART, ready to answer texts about pictures.

    folder: .../<variant>/tuned of a run. model, tower: where the language model and the CLIP whose features it reads
    lie, if not where the run found them. allow_methods, and what is raised: as Classifier.
    """

    def __init__(self, folder, model=None, tower=None, allow_methods=()):
        from vlmx.data import vl_forms
        from vlmx.models.vlseq import Visual

        meta = checkpoint.read_about(folder, ("variant", "hyper", "backbone", "tasks", "visual"))
        meta = _of_the_run(folder) | meta
        checkpoint.refuse_outside(folder, meta["variant"], variant.names(), allow_methods)
        model, tower = model or meta.get("model"), tower or meta.get("tower")
        if not model or not tower:
            raise UserError(
                f"the config.json of the run is not above {folder}: name the language model with --model, the CLIP "
                "whose features it was tuned on with --tower."
            )
        with _fitting(folder):
            self.chosen, visual = variant.make(meta["variant"], **meta["hyper"]), Visual(**meta["visual"])
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
        stated = {key: meta.get(f"tower_{key}") for key in zoo.STATED}
        self.clip, self.what = zoo.load(tower, **stated).model, meta.get("what", "grid")
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
        {question: BadImage}) of [(text, pictures)]: paths or uint8 arrays; of a video its file, or its frames."""
        from vlmx.data.vl import Example
        from vlmx.extract import WHAT, encode

        asked, wanted = [], {}
        for text, refs in questions:
            number, rest = self.task_of(text, len(refs))
            video = self.tasks[number].suffix
            several = [(video, tuple(refs))] if video else [(video, (ref,)) for ref in refs]
            names = tuple(" ".join(r if isinstance(r, str) else str(id(r)) for r in part) for _, part in several)
            wanted |= dict(zip(names, several))
            asked.append((number, Example("", names, rest)))

        def pixels(part):
            return np.stack([self.transform(picture) for picture in self.pictures(*part)])

        batch = min(len(wanted), 32)
        features = dict(encode(self.clip, wanted, pixels, WHAT[self.what], batch, self.mesh))
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
        """PIL images; of a video's file its frames, as many a second as were tuned on. Raises BadImage."""
        from vlmx.data import video as videos

        if video and len(refs) == 1 and isinstance(refs[0], str) and refs[0].lower().endswith(videos.VIDEOS):
            return list(videos.frames(refs[0], videos.RATE))
        return [transforms.decode(ref) for ref in refs]


# -------------------------------------------------------------------- the command
def classify(args, requests):
    """Rows {"image", "classes": {name: probability}} or {"image", "error"}."""
    classes = [c.strip() for c in args.classes.split(",") if c.strip()]
    model = Classifier(args.checkpoint, classes, args.model)
    p, bad = model([r["image"][0] for r in requests], args.batch)
    reasons = {b.index: b.reason for b in bad}
    for i, request in enumerate(requests):
        if i in reasons:
            yield {"image": request["image"][0], "error": reasons[i]}
        else:
            best = np.argsort(-p[i], kind="stable")[:TOP]
            yield {"image": request["image"][0], "classes": {model.classes[c]: round(float(p[i, c]), 6) for c in best}}


def answer(args, requests):
    """Rows {"image", "text", "answer"} or {..., "error"}."""
    model = Answerer(args.checkpoint, args.model, args.tower)
    if args.attention:
        from vlmx import attention

        seen = attention.attend(model, requests[0]["image"], requests[0]["text"])
        files.write(args.attention, attention.png(seen.figure()))
        said = [seen.answer]
    else:
        said = model([(r["text"], r["image"]) for r in requests])
    for request, a in zip(requests, said, strict=True):
        yield request | ({"error": str(a)} if isinstance(a, Exception) else {"answer": a})


def requests_of(args):
    """What is asked, as [{"image": [paths], "text"}]. UserError for lines that are not as they should be."""
    if not args.jsonl:
        together = [args.image] if args.text else [[path] for path in args.image]
        return [{"image": paths, "text": args.text} for paths in together]
    try:
        lines = Path(args.jsonl).read_bytes().decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"--jsonl {args.jsonl}: {getattr(e, 'strerror', None) or f'not UTF-8 text ({e})'}.") from e
    rows, expected = [], 'expected {"image": path or [paths]}, with "text" for language models.'
    for n, line in enumerate(lines, 1):
        try:
            row = json.loads(line) if line.strip() else None
        except json.JSONDecodeError as e:
            raise UserError(f"{args.jsonl}, line {n}: no valid json ({e.msg}); {expected}") from e
        if row is None:
            continue
        paths, text = (row.get("image"), row.get("text", args.text)) if isinstance(row, dict) else (None, None)
        paths = [paths] if isinstance(paths, str) else paths
        if not isinstance(paths, list) or not all(isinstance(x, str) for x in [*paths, text]) or not paths:
            raise UserError(f"{args.jsonl}, line {n}: {expected}")
        rows.append({"image": paths, "text": text})
    return rows


def told(row):
    """A row of the answer for people."""
    name = " ".join([row["image"]] if isinstance(row["image"], str) else row["image"])
    if "error" in row:
        return f"{name}: cannot be read: {row['error']}"
    if "answer" in row:
        return f"{name}: {row['answer']}"
    return "\n".join([name, *(f"  {100 * p:5.1f} %  {c}" for c, p in row["classes"].items())])


def run(args):
    """What the command line asks for; returns the rows."""
    folder = Path(args.checkpoint)
    _, meta = checkpoint.read(folder)
    requests = requests_of(args)
    seq = "variant" in meta
    if seq and not all(r["text"] for r in requests):
        raise UserError(f'{folder} is of a language model: say what is asked with --text, or "text" in each line.')
    if seq and args.classes:
        raise UserError(f"{folder} is of a language model; --classes are for methods of CLIP.")
    if args.attention and (not seq or len(requests) > 1):
        raise UserError("--attention draws one question to a language model: --image and --text, without --jsonl.")
    if not seq and (args.text or any(len(r["image"]) > 1 for r in requests)):
        raise UserError(f"{folder} is of {meta['method']}, which classifies pictures one by one: without --text.")
    rows = list((answer if seq else classify)(args, requests))
    lines = [json.dumps(row, ensure_ascii=False) if args.jsonl or args.out else told(row) for row in rows]
    if args.out:
        files.write(args.out, "".join(line + "\n" for line in lines))
    else:
        print("\n".join(lines), flush=True)
    return rows


def arguments(argv):
    """The command line as argparse finds it."""
    about, _, more = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        "python -m vlmx.predict", None, about, more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="folder with tuned.safetensors and .json")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--image", nargs="+", metavar="FILE", help="picture files")
    what.add_argument("--jsonl", metavar="FILE", help="many, a json object a line")
    parser.add_argument("--classes", default="", help="with commas between; default: those that were tuned on")
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

    args = arguments(argv)
    command.guarded(lambda: run(args), args.out or ".")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
