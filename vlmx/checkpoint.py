"""Checkpoints of the tuned part: orbax while a run lasts, safetensors + json to keep and share. Never the backbone.

A checkpoint names its backbone by digest, its method, hyper-parameters, seeds, classes and recipe, and holds a checksum
of each array; anything else is refused. What somebody hands on is data: nothing that it names is imported unless vlmx
has it or the person who reads it allows it.
"""

import contextlib
import json
import os
import re
import reprlib
import signal
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import safetensors
import safetensors.numpy
from absl import logging
from jax.experimental import multihost_utils

from vlmx import files, partition
from vlmx.errors import Unwritable, UserError
from vlmx.logs import say

# What its threads log with a traceback, orbax raises once more where it is asked: `_written` says it, in a line.
logging.get_absl_logger().addFilter(lambda record: "orbax" not in record.pathname or record.levelname != "ERROR")


@contextlib.contextmanager
def preemption():
    """Within it SIGTERM, with which machines are taken away, ends nothing: yields `told(call) -> bool`, to be asked
    after each call of the steps, by number. Several processes are told at the same call, whichever got the signal."""
    if jax.process_count() > 1:  # jax caught it, and agrees with the others upon a call that none is beyond
        yield multihost_utils.reached_preemption_sync_point
    elif threading.current_thread() is not threading.main_thread():
        yield lambda call: False
    else:
        signals = []
        before = signal.signal(signal.SIGTERM, lambda *_: signals.append(1))
        try:
            yield lambda call: bool(signals)
        finally:
            signal.signal(signal.SIGTERM, before)


def manager(folder, keep=1):
    """An orbax manager of the steps under `folder`, the last `keep`; saving is asynchronous and atomic. What a killed
    run has left half written is taken away."""
    if os.path.lexists(folder) and not Path(folder).is_dir():
        raise UserError(f"{folder}: a file where the folder of checkpoints should be. Move it away.")
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
    return ocp.CheckpointManager(Path(folder).absolute(), options=options)


def save(checkpoints, step, state, meta):
    """Begin to save the state of `step`; `meta` is json that `restore` compares. UserError where it cannot be written
    (a full disk, say), for this save or the one before: the last whole checkpoint stays."""
    meta = meta | {"checksums": checksums(state)}
    args = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
    with _written(checkpoints):
        checkpoints.save(step, args=args)


def checksums(state):
    """Return the checksum of each array of a state by its path: {path: 32-bit int}, the same for any sharding."""
    sums = jax.device_get(_checksums(jax.tree.leaves(state)))
    return dict(zip(partition.paths(state), map(int, sums), strict=True))


@jax.jit
def _checksums(leaves):
    return [_checksum(leaf) for leaf in leaves]


def _checksum(array):
    """Sum of all 32-bit (or shorter) words of an array, each times an odd number of its place, modulo 2^32.

    Whole numbers add up to the same in any order, so the arrays may lie on any devices; an odd factor has an inverse,
    so a change within one word always changes the sum.
    """
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    array = array.astype(jnp.uint8) if array.dtype == bool else array
    bits = jax.lax.bitcast_convert_type(array, {1: jnp.uint8, 2: jnp.uint16}.get(array.dtype.itemsize, jnp.uint32))
    place = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    return (bits.astype(jnp.uint32) * (2 * (place * jnp.uint32(2654435761)) + 1)).sum(dtype=jnp.uint32)


def finish(checkpoints):
    """Wait until what was saved is on the disk. UserError as `save`."""
    with _written(checkpoints):
        checkpoints.wait_until_finished()


@contextlib.contextmanager
def _written(checkpoints):
    try:
        yield
    except (OSError, ValueError) as e:
        # tensorstore's words, whatever arrays it names before them; Python's
        reason = re.search(r"[^:\n]*(?= \[os_error_code)", str(e)) or re.search(r"(?<=\] ).*", str(e))
        if reason is None:
            raise
        raise Unwritable(checkpoints.directory, reason[0].strip()) from e


def restore(checkpoints, like, meta):
    """The latest state that is whole, or None where there is none. `like`: a state of the same structure, shapes and
    shardings. What checkpoints of older versions do not say of themselves is not compared.

    Raises UserError where the checkpoint was made with another backbone, method, seeds, classes or recipe, with both
    values, and where none is whole. A damaged one behind a whole one is deleted, and that is said.
    """
    damaged = {}
    for step in sorted(checkpoints.all_steps(), reverse=True):
        folder = Path(checkpoints.directory) / str(step)
        try:
            state = _restore(checkpoints, folder, step, like, meta)
        except Damaged as e:
            damaged[step] = str(e)
            continue
        for other, problem in damaged.items():
            say(f"{problem}. It is left out, and deleted: going on from the checkpoint before, {folder}")
            checkpoints.delete(other)
        return state
    if damaged:
        raise UserError(
            f"{'. '.join(damaged.values())}. No checkpoint before it is whole: delete the folder "
            f"{checkpoints.directory}, and the same command begins this training anew."
        )
    return None


class Damaged(Exception):
    """A checkpoint that cannot be read, or is not what was written."""


def _restore(checkpoints, folder, step, like, meta):
    """The state of a step. Raises Damaged, and UserError for a checkpoint of another run."""
    with _read(folder / "meta"):
        saved = checkpoints.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta
        written = saved.pop("checksums", None)  # older versions wrote none
        if not isinstance(written, dict | None):
            raise TypeError("its checksums are no object")
    refuse_other(folder, saved, json.loads(json.dumps(meta)))
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    with _read(folder / "state"):
        state = checkpoints.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))).state
    now = checksums(state) if written is not None else None
    if now != written:
        odd = [path for path in now if now[path] != written.get(path)]
        raise Damaged(f"The checkpoint in {folder} is damaged: other numbers than were written in {', '.join(odd[:5])}")
    return state


@contextlib.contextmanager
def _read(folder):
    """Damaged, naming the folder, for whatever orbax, tensorstore and json raise about files that are not whole."""
    try:
        yield
    except UserError:
        raise
    except Exception as e:
        lines = str(e).strip().splitlines() or [""]
        reason = f"{type(e).__name__}: {lines[0][:150]}"
        raise Damaged(f"The checkpoint in {folder} is damaged, or of another version of vlmx ({reason})") from e


def refuse_other(where, saved, asked):
    """UserError with both values of everything in which a checkpoint differs from what is asked for. "training", its
    settings, is compared one by one, and only where it is saved: older versions of vlmx did not save it."""
    if "training" not in saved:
        asked = {k: v for k, v in asked.items() if k != "training"}
    saved, asked = ({**meta, **meta.get("training", {}), "training": None} for meta in (saved, asked))
    keys = [k for k in dict.fromkeys([*saved, *asked]) if saved.get(k) != asked.get(k)]
    if keys:
        lines = [f"  {k}: the checkpoint has {saved.get(k)!r}, this run asks for {asked.get(k)!r}" for k in keys]
        raise UserError("\n".join([f"The checkpoint in {where} is of another run:", *lines, "Use another --workdir."]))


def export(folder, v, meta):
    """Write `tuned.safetensors`, the tree by "/"-joined path, and `tuned.json`, `meta`: to keep and to share."""
    folder = Path(folder)
    arrays = dict(zip(partition.paths(v), map(np.asarray, jax.tree.leaves(v)), strict=True))
    files.write(folder / "tuned.safetensors", safetensors.numpy.save(arrays))
    files.write_json(folder / "tuned.json", meta)


def read(folder, needed=()):
    """The exported tree as nested dicts of numpy arrays, {"train", "fixed"} among them even where empty: (v, meta).

    Raises UserError where there is none, or it is damaged or without the fields `needed`, naming the file and the field
    or array.
    """
    v = {"train": {}, "fixed": {}}
    meta, arrays = read_about(folder, needed), _arrays(Path(folder) / "tuned.safetensors")
    for path, array in arrays.items():
        *inner, last = path.split("/")
        node = v
        for key in inner:
            node = node.setdefault(key, {})
        node[last] = array
    return v, meta


def load(folder, like):
    """The exported tree as the structure of `like` (arrays or shapes): (v, meta).

    Raises UserError as `read`, and where names, shapes or kinds of numbers differ, listing them.
    """
    meta, arrays = read_about(folder), _arrays(Path(folder) / "tuned.safetensors")
    refuse_misfit(folder, arrays, like)
    leaves = [jnp.asarray(arrays[name]) for name in partition.paths(like)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves), meta


def refuse_misfit(folder, arrays, like, free=()):
    """UserError, listing them, where the arrays by path differ from `like` in names, shapes or kinds of numbers.

    free: a top-level branch ("fixed") that may lack arrays or have others.
    """
    asked = dict(zip(partition.paths(like), map(_shape_and_kind, jax.tree.leaves(like)), strict=True))
    has = {name: _shape_and_kind(a) for name, a in arrays.items()}
    names = [k for k in dict.fromkeys([*has, *asked]) if has.get(k) != asked.get(k)]
    names = [k for k in names if k in has and k in asked or k.partition("/")[0] not in free]
    if names:
        shapes = [(k, has.get(k, "nothing"), asked.get(k, "nothing")) for k in names[:20]]
        lines = [f"  {k}: the file has {has}, the method needs {needs}" for k, has, needs in shapes]
        lines += [f"  ... and {len(names) - 20} more"] if len(names) > 20 else []
        raise UserError("\n".join([f"{Path(folder) / 'tuned.safetensors'} does not fit the method:", *lines]))


def _shape_and_kind(array):
    """(2, 3) of floating-point numbers, in which precision ever; "(2, 3) int32" of others."""
    floating = jnp.issubdtype(array.dtype, jnp.floating)
    return str(tuple(array.shape)) + ("" if floating else f" {array.dtype}")


# -------------------------------------------------------------------- what an exported folder may hold
LETTERS = 10_000  # of a name or a template
ABOUT = 2**23  # bytes of tuned.json


def is_text(value):
    """Whether a json value is a text that can be a name: not empty, of letters that can be written."""
    return isinstance(value, str) and bool(value.strip()) and _can_be_written(value)


def _can_be_written(text):
    return len(text) <= LETTERS and not any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in text)


def _is_texts(value):
    return isinstance(value, list) and all(map(is_text, value))


def _is_templates(value):
    return _is_texts(value) and all("{}" in text for text in value)


def _is_names(value):
    return _is_texts(value) and 0 < len(value) == len(set(value))


def _is_size(value):
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 65_536


def _is_sizes(value):
    return isinstance(value, list | tuple) and all(map(_is_size, value))


def _is_path(value):
    return isinstance(value, str) and (not value or is_text(value))


# What is read of tuned.json and of the config of its run: (whether a value is right, what it should be). Another field
# may be anything: later versions may write more.
FIELDS = {
    **dict.fromkeys(("method", "make", "variant", "backbone"), (is_text, "a text")),
    **dict.fromkeys(("model", "tower", "what", "act", "arch", "tower_act", "tower_arch"), (is_text, "a text")),
    **dict.fromkeys(("heads", "tower_heads"), (_is_sizes, "two whole numbers")),
    "start": (_is_path, "a folder"),
    "hyper": (lambda value: isinstance(value, dict), "an object {name: value}"),
    "classes": (_is_names, "a list of names, none twice"),
    "tasks": (_is_names, "a list of names, none twice"),
    **dict.fromkeys(("templates", "ensemble"), (_is_templates, "a list of texts with {} for the class")),
    **dict.fromkeys(("upright", "truncate"), (lambda value: isinstance(value, bool), "true or false")),
    **dict.fromkeys(
        ("image_size", "tower_image_size"), (lambda value: value is None or _is_size(value), "a number of pixels, or 0")
    ),
    "seed": (lambda value: isinstance(value, int) and 0 <= value < 2**32, "a whole number"),
    "visual": (
        lambda value: isinstance(value, dict) and all(_is_size(n) or isinstance(n, bool) for n in value.values()),
        "an object of whole numbers",
    ),
}
AGAIN = "Copy the folder of the checkpoint once more, whole, from where it comes."


def refuse_wrong_fields(where, fields, needed=(), advice=AGAIN):
    """UserError, ending in the advice, for a field that is not as `FIELDS` says, or a `needed` one that is missing."""
    for name, (is_right, expected) in FIELDS.items():
        if name in fields and not is_right(fields[name]):
            raise UserError(f"{where}: {name!r} is {reprlib.repr(fields[name])}; expected {expected}. {advice}")
    if missing := [name for name in needed if name not in fields]:
        raise UserError(f"{where}: no {' and no '.join(map(repr, missing))}; such a file has these. {advice}")


def read_about(folder, needed=()):
    """tuned.json of an exported folder, its fields checked. UserError where there is none, it is damaged, or a field
    out of `needed` is missing."""
    folder = Path(folder)
    lacking = [name for name in ("tuned.safetensors", "tuned.json") if not os.path.lexists(folder / name)]
    if lacking:
        raise UserError(f"{folder} holds no {lacking[0]}: give the folder of a method in a finished --workdir.")
    meta = files.read_json(folder / "tuned.json", AGAIN, limit=ABOUT)
    refuse_wrong_fields(folder / "tuned.json", meta, needed)
    return meta


def refuse_outside(folder, name, known, allowed):
    """UserError for a method or variant `name` out of tuned.json that is neither `known`, one of the package, nor
    allowed by the person who reads it: importing a module runs it. "a+b" names both, "a+ensemble" the ensemble too."""
    parts = name.split("+")
    parts = parts[:-1] if len(parts) > 1 and parts[-1] == "ensemble" else parts
    if outside := [part for part in parts if part not in known and part not in allowed]:
        odd = outside[0]
        importable = "." in odd and all(word.isidentifier() for word in odd.split("."))
        allow = (
            f" Reading it would run the module {odd}, which may come with the checkpoint. Where you know it and trust "
            f"it: --allow-methods {odd}, or allow_methods=[{odd!r}] in Python."
        )
        raise UserError(
            f"{Path(folder) / 'tuned.json'} names {odd!r}, which is no method of vlmx; a checkpoint may name only "
            f"these: {', '.join(sorted(known))}.{allow if importable else ''}"
        )


def _arrays(path):
    """The arrays of an exported safetensors file by path, every one finite. UserError where it is damaged."""
    if not path.is_file():
        raise UserError(f"{path} is no file. {AGAIN}")
    try:
        arrays = safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError, MemoryError, LookupError, TypeError, ValueError, AttributeError) as e:
        raise UserError(f"{path}: no whole safetensors file ({str(e).partition(chr(10))[0][:200]}). {AGAIN}") from e
    for name, array in arrays.items():
        branch, *inner = name.split("/")
        if branch not in ("train", "fixed") or not inner or not all(inner) or len(inner) > 50:
            raise UserError(f"{path}: an array {reprlib.repr(name)}; expected names as train/<...> and fixed/<...>.")
        above = ["/".join([branch, *inner[:i]]) for i in range(len(inner))]
        if clash := [other for other in above if other in arrays]:
            raise UserError(f"{path}: {name!r} lies within {clash[0]!r}, which is an array itself. {AGAIN}")
        with np.errstate(over="ignore"):
            finite = not jnp.issubdtype(array.dtype, jnp.floating) or np.isfinite(array.astype(np.float32)).all()
        if not finite:
            raise UserError(f"{path}: {name!r} has numbers that are not finite. {AGAIN}")
    return arrays
