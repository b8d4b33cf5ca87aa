"""Batches of images from splits, the same bytes whatever the number of workers, processes or restarts.

Batch `t` is a pure function of `t`: its rows, and the key (seed, epoch, position) of every random draw, follow from the
global step alone. So grain may hand steps to threads or worker processes in any way, a run resumes by starting at
another step, and each process of a multi-host run makes its own rows of each batch and nothing else. uint8 goes over
the wire; the model normalises on the device.
"""

import atexit
import functools
import multiprocessing
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import grain
import numpy as np
from absl import flags
from PIL import Image

from vlmx.data import transforms
from vlmx.data.task import Split
from vlmx.errors import UserError

ORDER, AUGMENT = 0, 1  # first word of a random key: SeedSequence reads [1, 2] and [1, 2, 0] as the same key


class Bad(NamedTuple):
    """An image that could not be read, and why."""

    index: int  # position in its split
    name: str  # the path, where the image is a file
    reason: str


def epoch_order(n: int, batch: int, seed: int, epoch: int) -> np.ndarray:
    """The order of `n` images in one epoch, int [steps, B]: a fresh permutation for each (seed, epoch).

    As in Dassl an incomplete last batch is dropped if there is a full one; fewer than `batch` make one batch of n.
    """
    steps, rows = max(n // batch, 1), min(n, batch)
    order = np.random.default_rng([ORDER, seed, epoch]).permutation(n)
    return order[: steps * rows].reshape(steps, rows)


_order = functools.lru_cache(maxsize=8)(epoch_order)


def eval_batches(
    split: Split,
    transform: Callable,
    batch: int,
    *,
    workers: int = 0,
    upright: bool = False,
    process: tuple[int, int] = (0, 1),
    bad: list[Bad] | None = None,
    draws: np.ndarray | None = None,
) -> Iterator[dict]:
    """The split in order, once: this process's rows of each global batch of `batch`.

    Yields {"image": u8 [b, S, S, 3], "label": i32 [b], "index": i32 [b] (position in the split), "weight": f32 [b]}
    with b = batch / number of processes. Rows that fill up the last batch have weight 0, index -1 and label 0. An
    unreadable image has weight 0 too; it is appended to `bad`, or, if no list is given, the pass ends in a UserError
    that lists all of them. `transform(image)` -> uint8 [S, S, 3]; with `draws`, the words [n, k] of a random key for
    each image, `transform(image, rng=numpy Generator)`.
    """
    share = _share(batch, process)
    make = functools.partial(_eval_batch, split, transform, batch, upright, share, draws)
    found = [] if bad is None else bad
    for made, unreadable in _stream(make, 0, -(-len(split.labels) // batch), workers, [split]):
        found += unreadable
        yield made
    if bad is None and found:
        raise UserError(stop_message(found, len(split.labels)))


def train_batches(
    splits: Sequence[Split],
    augment: Callable,
    batch: int,
    seeds: Sequence[int],
    *,
    start: int = 0,
    stop: int,
    workers: int = 0,
    upright: bool = False,
    process: tuple[int, int] = (0, 1),
    bad: list[Bad] | None = None,
) -> Iterator[dict]:
    """Global steps start..stop of training, one split per seed, epoch after epoch: this process's rows of each batch.

    Yields the arrays of `eval_batches` with an axis of seeds in front: "image" [S, b, H, W, 3], the others [S, b].
    The global batch is `batch`, or the size of the largest split if that is smaller, rounded up to a multiple of the
    number of processes; the rows that fill it up have weight 0. Unreadable images: `check` finds them beforehand; one
    met here has weight 0 and is appended to `bad`, or raises a UserError if no list is given.
    `augment(image, rng=numpy Generator)` -> uint8 [H, W, 3].
    """
    if len(splits) != len(seeds):
        raise UserError(f"{len(splits)} training subsets for {len(seeds)} seeds: one for each is needed.")
    if empty := [seed for seed, split in zip(seeds, splits) if not len(split.labels)]:
        raise UserError(f"The training subset of seed {empty[0]} has no images.")
    _share(batch, process)
    share = _share(-(-max(min(len(s.labels), batch) for s in splits) // process[1]) * process[1], process)
    make = functools.partial(_train_batch, list(splits), augment, batch, list(seeds), upright, share)
    for made, unreadable in _stream(make, start, stop, workers, splits):
        if unreadable and bad is None:
            raise UserError(stop_message(unreadable, len(unreadable)))
        if unreadable:
            bad += (b for b in unreadable if b not in bad)
        yield made


def check(split: Split, transform: Callable | None = None, upright: bool = False, workers: int = 0) -> list[Bad]:
    """Every image of the split that cannot be read: [(index, name, reason)]. Decodes all of them once.

    `transform(image)`, if there is one, is asked too: it refuses strips that are too thin for it.
    """
    chunk = 64
    make = functools.partial(_check_chunk, split, chunk, transform, upright)
    return [bad for _, found in _stream(make, 0, -(-len(split.labels) // chunk), workers, [split]) for bad in found]


def stop_message(bad: Sequence[Bad], n: int) -> str:
    """What a person reads when a run stops for the `bad` images of `n`: the first 20 with reasons, and the ways out."""
    return splits_stop_message({"": bad}, {"": n})


def splits_stop_message(bad: dict[str, Sequence[Bad]], sizes: dict[str, int]) -> str:
    """The stop message for several splits: of each, by its name, the unreadable images of those that were read."""
    lines = []
    for split, images in bad.items():
        if images:
            lines += [f"{len(images)} of {sizes[split]} {split} images cannot be read:".replace("  ", " ")]
            lines += [f"  {b.name}: {b.reason}" for b in images[:20]]
            lines += [f"  ... and {len(images) - 20} more"] if len(images) > 20 else []
    return "\n".join(
        [*lines, "Repair or remove them, or leave them out and count them in the report: --config.data.bad_images=skip"]
    )


def _share(batch: int, process: tuple[int, int]) -> slice:
    """The rows of a global batch that belong to process i of n: the i-th of n contiguous parts."""
    i, n = process
    if batch % n:
        raise UserError(f"The batch of {batch} cannot be split evenly over {n} processes: make it a multiple of {n}.")
    return slice(i * (batch // n), (i + 1) * (batch // n))


def _eval_batch(split, transform, batch, upright, share, draws, step):
    index = np.arange(step * batch, (step + 1) * batch)[share]
    index = np.where(index < len(split.labels), index, -1)

    def draw(row, img):
        return transform(img) if draws is None else transform(img, rng=np.random.default_rng(draws[index[row]]))

    return _fill(split, index, draw, upright)


def _train_batch(splits, augment, batch, seeds, upright, share, step):
    parts = [_train_rows(split, augment, batch, seed, upright, share, step) for split, seed in zip(splits, seeds)]
    made = {key: np.stack([part[key] for part, _ in parts]) for key in parts[0][0]}
    return made, [bad for _, found in parts for bad in found]


def _train_rows(split, augment, batch, seed, upright, share, step):
    n = len(split.labels)
    epoch, step = divmod(step, max(n // batch, 1))
    rows = _order(n, batch, seed, epoch)[step]
    index = np.full(share.stop - share.start, -1)
    own = rows[share]
    index[: len(own)] = own
    first = step * len(rows) + share.start  # position in the epoch of this process's first row

    def draw(row, img):
        return augment(img, rng=np.random.default_rng([AUGMENT, seed, epoch, first + row]))

    return _fill(split, index, draw, upright)


def _fill(split, index, draw, upright):
    """The rows `index` of the split as a batch, and what could not be read; -1 is padding."""
    weight, bad, images = (index >= 0).astype(np.float32), [], []
    blank = Image.new("RGB", (1, 1))
    for row, i in enumerate(index.tolist()):
        try:
            images.append(draw(row, transforms.decode(split.images[i], upright) if i >= 0 else blank))
        except transforms.BadImage as e:
            bad.append(_bad(split, i, e))
            weight[row] = 0
            images.append(draw(row, blank))
    label = np.where(index >= 0, split.labels[index], 0).astype(np.int32)
    return {"image": np.stack(images), "label": label, "index": index.astype(np.int32), "weight": weight}, bad


def _check_chunk(split, chunk, transform, upright, step):
    bad = []
    for i in range(step * chunk, min((step + 1) * chunk, len(split.labels))):
        try:
            img = transforms.decode(split.images[i], upright)
            if transform:
                transform(img)
        except transforms.BadImage as e:
            bad.append(_bad(split, i, e))
    return {}, bad


def _bad(split, i, error) -> Bad:
    ref = split.images[i]
    return Bad(i, os.fspath(ref) if isinstance(ref, (str, os.PathLike)) else split.names[i], str(error))


def _stream(make, start, stop, workers, splits):
    """make(t) -> (batch, bad) for t in start..stop, in order, ahead of time: in threads, or in spawned processes.

    Closing the generator, or dropping it, ends the threads and processes. Small arrays in memory need no process: one
    thread ahead is faster than sending the pixels around.
    """
    memory = all(getattr(split.images, "dtype", None) == np.uint8 for split in splits)
    workers = 0 if memory else min(workers, max(stop - start, 0))  # a process takes seconds to start
    threads = 1 if memory or workers else min(8, os.cpu_count() or 1)
    steps = grain.MapDataset.range(start, max(stop, start)).map(make)
    # An element is a whole batch, so the buffers (in batches) stay small.
    data = steps.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads))
    if workers:
        if not flags.FLAGS.is_parsed():  # mp_prefetch reads a flag; in a notebook or a test nobody has parsed any
            flags.FLAGS.mark_as_parsed()
        data = data.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1), _start_worker
        )
    stream = _closing(iter(data))
    # One that is still open at exit (Ctrl-C, an error) ends here: later, grain's own cleaning up fails loudly.
    atexit.register(lambda ref: (last := ref()) and last.close(), weakref.ref(stream))
    return stream


def _closing(elements):
    try:
        for batch, bad in elements:
            # Out of grain's shared memory, which is to be given back soon.
            yield {k: v if type(v) is np.ndarray else np.array(v) for k, v in batch.items()}, bad
    except RuntimeError as e:
        if "terminated unexpectedly" not in str(e):  # grain's words for a worker that died
            raise
        raise UserError(
            f"A data worker died: {e} Exit code -7 means that /dev/shm, through which batches come, is full (Docker: "
            "--shm-size), -9 that the machine ran out of memory. Use fewer workers; with 0, threads do the work."
        ) from e
    finally:
        elements.close()


def _start_worker(worker: int, workers: int) -> None:
    """Ctrl-C is for the main process, which stops its workers; and nobody else stops them when it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main = multiprocessing.parent_process()
    threading.Thread(target=lambda: (main.join(), os._exit(1)), daemon=True).start()
