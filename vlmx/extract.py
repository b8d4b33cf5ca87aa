"""Visual features of a folder of pictures or videos, by the image tower of a CLIP, into one HDF5 file.

    python -m vlmx.extract --images DIR --model RN101 --out coco.h5
    python -m vlmx.extract --videos DIR --model ViT-B/32 --what pooled --rate 0.667 --out tv.h5

The file has a dataset NAME/features (N, F) for each picture DIR/.../NAME.jpg, as VL-T5 and VL-Adapter read it. What is
encoded so far lies in FILE.parts; the same command goes on there. What cannot be read is listed, in FILE.unreadable.txt
too. On several machines give each its share, --share 0/2 and --share 1/2, and a file of its own: readers join files.
"""

import argparse
import functools
import io
import os
import shutil
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import jax
import numpy as np

from vlmx import files, shard
from vlmx.data import own, transforms, video
from vlmx.errors import UserError
from vlmx.logs import progress, say
from vlmx.models import zoo
from vlmx.models.clip import MEAN, STD, Clip, Resize
from vlmx.models.layers import ACTIVATIONS

PART = 2**28  # bytes of features after which they are written


def pooled(model, images):
    """The tower's output, projected into the space of the texts: `(B, 1, E)`."""
    return model.image(images)[:, None]


WHAT = {"grid": Clip.grid, "pooled": pooled}
# "center" is the way that the checkpoint states; "squash" loses no part of the picture.
HOW = {"squash": transforms.whole_for_tower, "center": transforms.for_tower}


def listing(folder, endings, share=(0, 1)):
    """{name: path} of the files below `folder`, sorted; of n shares the i-th. UserError: none, or a name twice."""
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in endings and not p.name.startswith(".")):
        if path.stem in found:
            raise UserError(f"{path} and {found[path.stem]} would have the same name in the file, {path.stem!r}")
        found[path.stem] = path
    if not found:
        raise UserError(f"{folder} holds nothing that ends in {' '.join(endings)}")
    return dict(list(found.items())[share[0] :: share[1]])


def encode(model, items, read, of, batch, mesh, threads=8):
    """Yields (name, features `(N, F)` float32 or transforms.BadImage) of {name: path}, in order.

    read(path) -> uint8 `(n, S, S, 3)`, run in threads ahead; of: (model, images) -> `(B, k, F)`, N = n k. Batches of
    one shape, over all devices of the mesh, go on over the ends of videos.
    """
    run, batch = _encoder(mesh, of), shard.up(mesh, batch)
    queue, pixels, rows = deque(), [], deque()  # queue: [name, frames still to come or BadImage, features so far]

    def flush():
        if not pixels:
            return
        images = np.stack(pixels + [np.zeros_like(pixels[0])] * (batch - len(pixels)))
        rows.extend(np.asarray(run(model, images))[: len(pixels)])
        pixels.clear()

    def finished():
        while queue:
            name, n, found = queue[0]
            while not isinstance(n, Exception) and rows and len(found) < n:
                found.append(rows.popleft())
            if isinstance(n, int) and len(found) < n:
                return
            queue.popleft()
            yield name, n if isinstance(n, Exception) else np.concatenate(found)

    with ThreadPoolExecutor(threads) as pool:
        for name, frames in _ahead(pool, items, read, 4 * threads):
            queue.append([name, frames if isinstance(frames, Exception) else len(frames), []])
            for frame in () if isinstance(frames, Exception) else frames:
                pixels.append(frame)
                if len(pixels) == batch:
                    flush()
            yield from finished()
    flush()
    yield from finished()


@functools.cache
def _encoder(mesh, of):
    return jax.jit(of, in_shardings=(None, shard.batch(mesh)), out_shardings=shard.on(mesh))


def _ahead(pool, items, read, most):
    """(name, read(path) or the BadImage it raised), in order, at most `most` of them ahead."""

    def one(path):
        try:
            return read(path)
        except transforms.BadImage as e:
            return e

    waiting, rest = deque(), iter(items.items())
    while True:
        for name, path in rest:
            waiting.append((name, pool.submit(one, path)))
            if len(waiting) >= most:
                break
        if not waiting:
            return
        name, future = waiting.popleft()
        yield name, future.result()


def read_picture(path, transform):
    """uint8 `(1, S, S, 3)` of a picture."""
    return transform(transforms.decode(path))[None]


def read_video(path, transform, rate):
    """uint8 `(n, S, S, 3)` of a video's frames."""
    return np.stack([transform(frame) for frame in video.frames(path, rate)])


class Parts:
    """The pieces of an HDF5 file that is being made, each written whole; `about` says how its features are made."""

    def __init__(self, out, about):
        self.out, self.about = Path(out), {k: str(v) for k, v in about.items()}
        self.folder = self.out.with_name(self.out.name + ".parts")
        self.done, self.waiting, self.bytes = set(), {}, 0
        self.number = 0
        for path in [*([self.out] if self.out.exists() else []), *sorted(self.folder.glob("*.h5"))]:
            with _opened(path) as part:
                made = {k: str(v) for k, v in part.attrs.items()}
                if made != self.about:
                    raise UserError(
                        f"{path} holds features made with {made}, asked for are {self.about}: another --out."
                    )
                self.done |= set(part)
            if path != self.out:
                self.number = int(path.stem) + 1

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
                file.attrs.update(self.about)
                for name, features in self.waiting.items():
                    file.create_dataset(f"{name}/features", data=features)
            files.write(self.folder / f"{self.number:06d}.h5", content.getvalue())
            self.done |= set(self.waiting)
            self.number, self.waiting, self.bytes = self.number + 1, {}, 0

    def join(self):
        """All pieces in one file, in place of an older one."""
        self.write()
        fresh, pieces = self.out.with_name(self.out.name + ".new"), sorted(self.folder.glob("*.h5"))
        if not pieces:
            return
        if self.out.exists():
            shutil.copyfile(self.out, fresh)
        with h5py.File(fresh, "a" if self.out.exists() else "w") as file:
            file.attrs.update(self.about)
            for piece in pieces:
                with h5py.File(piece) as part:
                    for name in part:
                        if name not in file:
                            part.copy(name, file)
        os.replace(fresh, self.out)
        shutil.rmtree(self.folder)


def _opened(path):
    try:
        return h5py.File(path, "r")
    except OSError as e:
        raise UserError(f"{path} is no whole HDF5 file: {e}") from e


def run(args):
    """What the command line asks for; returns {name: reason} of what could not be read."""
    films = args.videos is not None
    share = tuple(int(n) for n in args.share.split("/"))
    items = listing(args.videos or args.images, video.VIDEOS if films else own.IMAGES, share)
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
    parts = Parts(args.out, about | {"dtype": args.dtype} | ({"rate": args.rate} if films else {}))
    todo = {name: path for name, path in items.items() if name not in parts.done}
    say(f"{len(items):,} {'videos' if films else 'pictures'}, {len(items) - len(todo):,} of them encoded before")
    transform = HOW[how](c)
    if films:
        read = functools.partial(read_video, transform=transform, rate=args.rate)
    else:
        read = functools.partial(read_picture, transform=transform)
    unreadable = {}
    with progress(len(todo), "encoding", unit="file") as bar:
        for name, found in encode(loaded.model, todo, read, WHAT[args.what], args.batch, mesh):
            if isinstance(found, Exception):
                unreadable[name] = found
            else:
                parts.add(name, found.astype(args.store))
            bar.update(1)
    parts.join()
    lines = [f"{items[name]}: {reason}" for name, reason in unreadable.items()]
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
    parser.add_argument("--out", required=True, metavar="FILE.h5")
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
    if args.rate <= 0 or args.batch < 1:
        parser.error("--rate and --batch must be positive")
    return args


def main(argv):
    """The command; returns the exit status."""
    from vlmx import main as command  # it defines flags: not where another command imports this file

    args = arguments(argv)
    command.guarded(lambda: run(args), args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
