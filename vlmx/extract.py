"""Visual features of a folder of pictures or videos, by the image tower of a CLIP, into one HDF5 file.

    python -m vlmx.extract --images DIR --model RN101 --out coco.h5
    python -m vlmx.extract --videos DIR --model ViT-B/32 --what pooled --rate 0.667 --out tv.h5

The file has a dataset NAME/features (N, F) for each picture DIR/.../NAME.jpg, as VL-T5 and VL-Adapter read it. What is
encoded so far lies in FILE.parts; the same command goes on there. Called again, it leaves the file that a first call
would make: a picture that has changed is encoded again, and the features of one that is gone are left out. What cannot
be read is listed, in FILE.unreadable.txt too. On several machines give each its share, --share 0/2 and --share 1/2, and
a file of its own: readers join files.
"""

import argparse
import contextlib
import functools
import hashlib
import io
import itertools
import os
import sys
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import jax
import numpy as np

from vlmx import fields, files, shard
from vlmx.data import image_files, task, transforms, video
from vlmx.errors import UserError
from vlmx.logs import progress, say
from vlmx.models import zoo
from vlmx.models.clip import MEAN, STD, Clip, Resize
from vlmx.models.layers import ACTIVATIONS

PART = 2**28  # bytes of features after which they are written
FRAMES_AHEAD = 32  # of each file that is read ahead
IDENTITY = "identity"  # attribute of a picture's features: what it was when they were made
REMOVE = "Remove it, and the same command encodes its pictures again."


def pooled(model, images):
    """The tower's output, projected into the space of the texts: `(B, 1, E)`."""
    return model.image(images)[:, None]


WHAT = {"grid": Clip.grid, "pooled": pooled}
# "center" is the way that the checkpoint states; "squash" loses no part of the picture.
HOW = {"squash": transforms.whole_for_tower, "center": transforms.for_tower}


def listing(folder, endings=None, share=(0, 1)):
    """Return {name: path} of the files in a folder and all folders inside it, sorted; of n shares the i-th.

    Args:
        folder: hidden and system folders inside it are left out, as data/image_files.py says.
        endings: of the files that count. None: those that image_files takes for images.
        share: (i, n).

    Raises:
        UserError: there is no such file, or two of the same name, which would be one dataset in the HDF5 file.
    """
    folder, left_out = Path(folder).expanduser(), Counter()
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")

    def select(_, files, left_out):
        kept = [name for name in files if name.lower().endswith(endings)]
        left_out.update(["files of other endings"] * (len(files) - len(kept)))
        return kept

    paths, first = image_files.list_images(folder, left_out, select if endings else None), {}
    for path in sorted(folder / path for path in paths):
        name = image_files.printable(path.stem)
        other = first.setdefault(image_files.normalize_name(name), (name, path))
        if other != (name, path):
            raise UserError(
                f"{image_files.printable(path)} and {image_files.printable(other[1])} would have the same name in the "
                f"file, {name!r}: rename one, or give each folder a file of its own"
            )
    if not first:
        raise UserError(f"{folder} holds " + (f"nothing that ends in {' '.join(endings)}" if endings else "no images"))
    for note in image_files.describe_left_out(folder, left_out):
        say(note)
    return dict(list(first.values())[share[0] :: share[1]])


def encode(model, items, read, of, batch, mesh, threads=8):
    """Yield (name, features `(N, F)` float32 or transforms.BadImage) of {name: path}, in order.

    Batches of one shape, over all devices of the mesh, go on over the ends of videos. Of a file's pixels no more than
    a few frames are in memory at a time.

    Args:
        read: path -> its frames, uint8 `(S, S, 3)`, one after the other; run in threads ahead.
        of: (model, images) -> `(B, k, F)`; N = k times the number of frames.
    """
    run, batch = _encoder(mesh, of), shard.up(mesh, batch)
    pixels, rows = [], deque()
    ends, count = deque(), 0  # (name, number of frames, error) of the files read to their end; frames of the next one

    def flush():
        if pixels:
            images = np.stack(pixels + [np.zeros_like(pixels[0])] * (batch - len(pixels)))
            rows.extend(np.asarray(run(model, images))[: len(pixels)])
            pixels.clear()

    def encoded():
        while ends and len(rows) >= ends[0][1]:
            name, n, error = ends.popleft()
            features = [rows.popleft() for _ in range(n)]
            yield name, error or np.concatenate(features)

    with ThreadPoolExecutor(threads) as pool:
        for name, frame in _read_ahead(pool, items, read, 4 * threads):
            if isinstance(frame, np.ndarray):
                pixels.append(frame)
                count += 1
                if len(pixels) == batch:
                    flush()
            else:
                ends.append((name, count, frame if frame or count else transforms.BadImage("no frames")))
                count = 0
            yield from encoded()
    flush()
    yield from encoded()


@functools.cache
def _encoder(mesh, of):
    return jax.jit(of, in_shardings=(None, shard.batch(mesh)), out_shardings=shard.on(mesh))


def _read_ahead(pool, items, read, most):
    """Yield (name, frame) of each frame of the files, in order, and (name, None or BadImage) where a file ends.

    The first frames of `most` files are read ahead, and of the file at hand the next ones.
    """

    def frames_of(path):
        yield from read(path)

    def next_frames(frames):
        try:
            return list(itertools.islice(frames, FRAMES_AHEAD)), None
        except transforms.BadImage as e:
            return [], e

    waiting, rest = deque(), iter(items.items())
    while True:
        for name, path in itertools.islice(rest, most - len(waiting)):
            frames = frames_of(path)
            waiting.append((name, frames, pool.submit(next_frames, frames)))
        if not waiting:
            return
        name, frames, future = waiting.popleft()
        while True:
            some, error = future.result()
            more = len(some) == FRAMES_AHEAD
            if more:
                future = pool.submit(next_frames, frames)
            yield from ((name, frame) for frame in some)
            if not more:
                break
        yield name, error


def read_picture(path, transform):
    """Yield the uint8 `(S, S, 3)` of a picture."""
    yield transform(transforms.decode(path))


def read_video(path, transform, rate):
    """Yield the uint8 `(S, S, 3)` of a video's frames."""
    yield from map(transform, video.frames(path, rate))


class Parts:
    """The features that an HDF5 file will hold: those that earlier calls have stored, and those that are added.

    New ones are written to FILE.parts, in pieces that are each written completely, and joined with the rest at the end.

    Args:
        out: path of the HDF5 file.
        about: how the features are made; attributes of the file, which another value of makes it another file.
        identities: {name: text that stands for the picture's content and for how it is stored} of what the file is to
            hold; stored features with another identity are out of date.

    Attributes:
        stored: {name: file} of the features that are up to date.
    """

    def __init__(self, out, about, identities):
        self.out, self.about = Path(out), {k: str(v) for k, v in about.items()}
        self.folder = self.out.with_name(self.out.name + ".parts")
        self.identities, self.stored, self.earlier = identities, {}, set()
        self.waiting, self.bytes = {}, 0
        for path in [*([self.out] if os.path.lexists(self.out) else []), *self._pieces()]:
            for name, identity in _identities(path, self.about).items():
                self.earlier.add(name)
                if identities.get(name) == identity:
                    self.stored[name] = path
        if self.earlier and not self.earlier & identities.keys():
            raise UserError(f"{self.out} holds features of others, such as {min(self.earlier)!r}: another --out.")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as e:
            raise UserError(f"{self.folder} cannot be made, {e.filename} is no folder: another --out.") from e

    def _pieces(self):
        return sorted(path for path in self.folder.glob("*.h5") if path.stem.isdecimal())

    def add(self, name, features):
        """Keep one picture's features."""
        self.waiting[name] = features
        self.bytes += features.nbytes
        if self.bytes > PART:
            self.write()

    def write(self):
        """What waits becomes a piece on the disk."""
        if self.waiting:
            content = io.BytesIO()
            with h5py.File(content, "w") as file:
                _state(file, self.about)
                for name, features in self.waiting.items():
                    _store(file, name, features, self.identities[name])
            path = self.folder / f"{max((int(p.stem) for p in self._pieces()), default=-1) + 1:06d}.h5"
            files.write(path, content.getvalue())
            self.stored |= dict.fromkeys(self.waiting, path)
            self.waiting, self.bytes = {}, 0

    def join(self):
        """Put what is up to date into one file, in place of an older one."""
        self.write()
        if self._pieces() or self.earlier != self.stored.keys() or not self.out.exists():
            fresh = self.out.with_name(self.out.name + ".new")
            with contextlib.ExitStack() as stack:
                file = stack.enter_context(_open(fresh, "w"))
                _state(file, self.about)
                sources = {path: stack.enter_context(_open(path)) for path in set(self.stored.values())}
                for name in self.identities:
                    if name in self.stored:
                        path = self.stored[name]
                        with _refuse_damage(path):
                            features = sources[path][name]["features"][()]
                        _store(file, name, features, self.identities[name])
            os.replace(fresh, self.out)
        for piece in self._pieces():
            piece.unlink()
        with contextlib.suppress(OSError):  # it holds something else
            self.folder.rmdir()


def _identities(path, about):
    """Return {name: identity of the picture} of the features in an HDF5 file; "" where there is none.

    Raises UserError for a file that is damaged, or whose features are not made as `about` says.
    """
    with _open(path) as file, _refuse_damage(path):
        stated = {str(k): v.decode(errors="replace") if isinstance(v, bytes) else str(v) for k, v in file.attrs.items()}
        if stated != about:
            raise UserError(f"{path} holds features made with {stated}, asked for are {about}: another --out.")
        return {name: _identity(file[name]) for name in file}


def _identity(group):
    features = group.get("features") if isinstance(group, h5py.Group) else None
    identity = features.attrs.get(IDENTITY) if isinstance(features, h5py.Dataset) else None
    return identity.decode(errors="replace") if isinstance(identity, bytes) else ""


# Attributes are bytes of a fixed length: the HDF5 library crashes on damaged files with strings of any length.
def _state(file, about):
    file.attrs.update({key: np.bytes_(value) for key, value in about.items()})


def _store(file, name, features, identity):
    file.create_dataset(f"{name}/features", data=features).attrs[IDENTITY] = np.bytes_(identity)


def _open(path, mode="r"):
    """Return an open HDF5 file; UserError where it is none, damaged, or in use by another program."""
    if os.path.lexists(path) and not os.path.isfile(path):
        raise UserError(f"{path} is no file: another --out.")
    try:
        return h5py.File(path, mode)
    except OSError as e:
        if isinstance(e, BlockingIOError) or "unable to lock" in str(e):
            raise UserError(f"{path}: another program has this file open ({e}). End that program first.") from e
        if mode == "w":
            raise
        raise UserError(f"{path} is no whole HDF5 file: {e}. {REMOVE}") from e


@contextlib.contextmanager
def _refuse_damage(path):
    try:
        yield
    except UserError:
        raise
    except Exception as e:  # h5py raises errors of many kinds for damaged files
        raise UserError(f"{path} is a damaged HDF5 file ({type(e).__name__}: {e}). {REMOVE}") from e


def _stored(features, dtype):
    """Return the features in the file's precision, or a BadImage where these are not finite."""
    with np.errstate(over="ignore"):
        stored = features.astype(dtype)
    if np.isfinite(stored).all():
        return stored
    hint = f"they are too large for {dtype}: --store float32" if np.isfinite(features).all() else "the model is damaged"
    return transforms.BadImage(f"its features are not finite ({hint})")


def _digest(text):
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def run(args):
    """What the command line asks for; returns {name: reason} of what could not be read."""
    films = args.videos is not None
    share = tuple(int(n) for n in args.share.split("/"))
    items = listing(args.videos or args.images, video.VIDEOS if films else None, share)
    mesh = shard.make_mesh()
    stated = {"act": args.act, "heads": args.heads, "arch": args.arch}
    loaded = zoo.load(
        args.model, image_size=args.size or None, **stated, dtype=args.dtype, param_dtype=args.dtype,
        place=lambda path, shape: shard.sharding(mesh, path, shape, shard.MODEL),
    )  # fmt: skip
    c = loaded.model.config
    how = args.transform or ("center" if films else "squash")
    about = {"model": args.model, "digest": loaded.digest, "what": args.what}
    about |= {"size": c.vision.image_size, "transform": how}
    about |= {key: str(value) for key, value in stated.items() if value}
    if (c.mean, c.std, c.resize) != (MEAN, STD, Resize()):
        about["pixels"] = f"{c.mean} {c.std} {c.resize}"
    paths = list(items.values())
    identities = {name: f"{_digest(task.identity(paths, i))} {args.store}" for i, name in enumerate(items)}
    parts = Parts(args.out, about | {"dtype": args.dtype} | ({"rate": args.rate} if films else {}), identities)
    todo = {name: path for name, path in items.items() if name not in parts.stored}
    say(f"{len(items):,} {'videos' if films else 'pictures'}, {len(items) - len(todo):,} of them encoded before")
    if changed := len(todo.keys() & parts.earlier):
        say(f"{changed:,} have changed since they were encoded, or are stored in another way: encoded again")
    if gone := len(parts.earlier - items.keys()):
        say(f"{gone:,} that {args.out} holds are not asked for any more: left out of it")
    transform = HOW[how](c)
    if films:
        read = functools.partial(read_video, transform=transform, rate=args.rate)
    else:
        read = functools.partial(read_picture, transform=transform)
    unreadable = {}
    with progress(len(todo), "encoding", unit="file") as bar:
        for name, found in encode(loaded.model, todo, read, WHAT[args.what], args.batch, mesh):
            stored = found if isinstance(found, Exception) else _stored(found, args.store)
            if isinstance(stored, Exception):
                unreadable[name] = stored
            else:
                parts.add(name, stored)
            bar.update(1)
    parts.join()
    lines = [f"{image_files.printable(items[name])}: {reason}" for name, reason in unreadable.items()]
    note = Path(f"{args.out}.unreadable.txt")
    if lines:
        files.write(note, "\n".join(lines) + "\n")
        say(f"{len(lines)} cannot be read, listed in {note}:", *(f"\n  {line}" for line in lines[:20]))
    elif note.exists():
        note.unlink()
    return {name: str(reason) for name, reason in unreadable.items()}


def arguments(argv):
    """The command line as argparse finds it."""
    about, _, more = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        "python -m vlmx.extract", None, about, more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", metavar="DIR", help="folder of pictures, searched through")
    source.add_argument("--videos", metavar="DIR", help="folder of videos, GIF, WebP and APNG among them")
    parser.add_argument("--model", default="RN101", help="as --config.model.name; default: %(default)s")
    parser.add_argument("--arch", help="of a state dict without configuration: its name in OpenCLIP, such as ViT-B-32")
    parser.add_argument("--act", choices=ACTIVATIONS, help="of such a file, in place of --arch: its activation")
    parser.add_argument("--heads", type=int, nargs="+", metavar="N", help="of such: heads of image and text tower")
    parser.add_argument("--out", required=True, metavar="FILE.h5", type=os.path.expanduser)
    parser.add_argument("--what", choices=WHAT, default="grid", help="grid: patches, or the last map; default: grid")
    parser.add_argument("--rate", type=float, default=video.RATE, help="frames a second; default: 1 every 1.5 seconds")
    parser.add_argument("--transform", choices=HOW, help="center: as the model states; default: squash, videos: center")
    parser.add_argument("--size", type=int, default=0, help="pixels a side; default: the model's")
    parser.add_argument("--batch", type=int, default=64, help="pictures a step; default: %(default)s")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the computation")
    parser.add_argument("--store", choices=("float16", "float32"), default="float16", help="of the file")
    parser.add_argument("--share", default="0/1", help="i/n: every n-th file from the i-th; default: all")
    args = parser.parse_args(argv)
    i, _, n = args.share.partition("/")
    if not (i.isdecimal() and n.isdecimal() and int(i) < int(n)):
        parser.error(f"--share {args.share}: expected i/n with i from 0 to n - 1")
    rules = {"rate": fields.number(0.001, 1000), "batch": fields.SIZE, "size": fields.integer(0, 8192)}
    rules["model"] = fields.NAME
    for name, rule in rules.items():
        if not rule.valid(getattr(args, name)):
            parser.error(f"--{name}: expected {rule.expected}; got {getattr(args, name)!r}")
    return args


def main(argv):
    """The command; returns the exit status."""
    from vlmx import main as command  # it defines flags: not where another command imports this file

    args = arguments(argv)
    command.guarded(lambda: run(args), args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
