"""The published vision-and-language tasks for a run: their files, or scenes in the form of these, and their features.

What vlmx/data/vl.py asks of a reader. config.data: `root`, the folder of the annotation files; `features`, paths of
files or folders of features (vl_features.py), or (): the pictures in `pictures` are encoded; `bad`, "stop" or "skip";
`java`, metrics that need it; `hidden`, tasks whose leaderboard's own test is answered too; `length`, `target_length`,
at most so many tokens of input and of target, 0: as published; `options`, {task: {argument of its reader: value}};
`scenes`, share of the embedded world's sizes: pictures and annotations are written below `root` first, 0: none are.
"""

import functools
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from vlmx.data import image_text, own, scene_files, transforms, vl_features, vl_files, vl_forms, vqav2
from vlmx.data import video_text as videos
from vlmx.data.image_files import normalize_name
from vlmx.data.video import RATE, VIDEOS, frames, shrink
from vlmx.data.vl import Task
from vlmx.errors import UserError, unknown

READERS = image_text.READERS | {name: functools.partial(videos.load, name) for name in vl_forms.VIDEO_TEXT}


def load(name: str, data) -> Task:
    """The task `name`, one of vl_forms.FORMS. UserError as image_text.load and video_text.load."""
    if "root" not in data:
        raise UserError(f"config.tasks: {name} is read from files, only by configs such as image_text.py.")
    if not data.get("root"):
        raise UserError(f"data.root: {name} needs the folder of its annotation files: --config.data.root=/data")
    if data.get("scenes"):
        family = "video" if name in vl_forms.VIDEO_TEXT else "image"
        scene_files.write(data["root"], family, scale=data["scenes"], workers=data.get("workers", 0))
    options = checks_of(name, data) | options_of(name, data)
    if name in vl_forms.VIDEO_TEXT or name == "caption":
        options["java"] = data.get("java", True)
    task = vl_files.load("task", READERS, name, data["root"], options)
    if name in data.get("hidden", ()):
        hidden(name, data)  # what is wrong with it is said now, not when the training is over
    return cut(task, data)


def checks_of(name, data):
    """The arguments of a task's reader that say what is checked: the features or, with bad="skip" and where these are
    still to be made, the pictures themselves."""
    video, bad = name in vl_forms.VIDEO_TEXT, data.get("bad", "stop")
    images = features(data, video)
    if images is None and bad == "skip":
        images = Pictures(pictures(data, video), video)
    return {"images": images, "bad": bad}


def options_of(name, data):
    """config.data.options of a task. UserError where these are not {task: {argument: value}}."""
    options = data.get("options") or {}
    options = options.to_dict() if isinstance(options, ConfigDict) else options
    if not isinstance(options, dict) or not all(isinstance(o, dict) for o in options.values()):
        raise UserError(f"data.options: expected {{task: {{argument: value}}}}, got {options!r}.")
    for task in options:
        if task not in vl_forms.FORMS:
            raise unknown("task in data.options", task, vl_forms.FORMS)
    return options.get(name, {})


def cut(task, data):
    """A task whose texts have at most config.data.length and target_length tokens."""
    at_most = {n: min(getattr(task, n), data.get(n) or getattr(task, n)) for n in ("length", "target_length")}
    return task._replace(**at_most)


def hidden(name: str, data):
    """The examples of the test part whose answers the leaderboard keeps. UserError for tasks without."""
    checks = checks_of(name, data)
    if name in vl_forms.VIDEO_TEXT:
        return videos.hidden(name, data["root"], **checks)
    if name != "vqa":
        raise UserError(f"data.hidden: {name} has no test whose answers are kept; its submission is of the test here")
    return vqav2.hidden(data["root"], **checks)


def features(data, video=False):
    """The source of config.data.features, or None where pictures are to be encoded."""
    paths = data.get("features") or ()
    paths = (paths,) if isinstance(paths, str) else tuple(paths)
    return vl_features.where(*paths, rows=vl_features.ROWS if video else None) if paths else None


def pictures(data, video=False) -> Path:
    """The folder of the pictures, or of the videos, that are encoded where there are no features."""
    return Path(data.get("pictures") or Path(data["root"]) / ("videos" if video else "images"))


def source(name: str, config):
    """The features of a task's pictures by name: those of config.data.features, or what config.tower sees in them,
    encoded once into a file below the root."""
    data, video = config.data, name in vl_forms.VIDEO_TEXT
    if (found := features(data, video)) is not None:
        return found
    from vlmx import extract  # jax starts there; readers need it not

    tower = config.tower
    out = Path(data["root"]) / f"{'videos' if video else 'images'}-{tower.name.replace('/', '_')}-{tower.what}.h5"
    where = ["--videos" if video else "--images", pictures(data, video), "--out", out]
    what = ["--model", tower.name, "--what", tower.what, "--dtype", tower.dtype, "--transform", "squash"]
    extract.run(extract.arguments([*map(str, where), *what, "--batch", str(config.eval_batch)]))
    return vl_features.where(out, rows=vl_features.ROWS if video else None)


def shown(name: str, images, data) -> list:
    """The PIL pictures of an example's images, or the frames of its video; [] where one is not there."""
    video = name in vl_forms.VIDEO_TEXT
    found = _files(pictures(data, video), video)
    try:
        if video:
            return [shrink(frame) for frame in frames(found[normalize_name(images[0])], RATE)]
        return [transforms.decode(found[normalize_name(i)]) for i in images]
    except (KeyError, transforms.BadImage, UserError):
        return []


class Pictures:
    """Which pictures, or videos, of a folder can be encoded: `name in pictures`, and `pictures[name]`, its pixels."""

    def __init__(self, folder, video):
        self.paths, self.video = _files(folder, video), video

    def __contains__(self, name):
        return normalize_name(name) in self.paths

    def __getitem__(self, name):
        """Pixels `(H, W, 3)` of a picture, or of a video's first frame. UserError where it cannot be read."""
        path = self.paths[normalize_name(name)]
        try:
            return np.asarray(next(frames(path, RATE)) if self.video else transforms.decode(path))
        except transforms.BadImage as e:
            raise UserError(f"{path} cannot be read: {e}") from e


@functools.cache
def _files(folder, video):
    """{name: path} of the pictures or videos in a folder; accents of the names are composed (NFC)."""
    endings = VIDEOS if video else own.IMAGES
    paths = (p for p in folder.rglob("*") if p.suffix.lower() in endings) if folder.is_dir() else ()
    return {normalize_name(p.stem): str(p) for p in paths}
