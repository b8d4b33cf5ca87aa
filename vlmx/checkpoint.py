"""Checkpoints of the tuned part: orbax while a run lasts, safetensors + json to keep and share. Never the backbone.

A checkpoint names its backbone by digest, its method, hyper-parameters, seeds and classes; anything else is refused.
"""

import contextlib
import json
import re
import signal
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import safetensors.numpy
from absl import logging
from jax.experimental import multihost_utils

from vlmx import files, partition
from vlmx.errors import Unwritable, UserError

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
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
    return ocp.CheckpointManager(Path(folder).absolute(), options=options)


def save(checkpoints, step, state, meta):
    """Begin to save the state of `step`; `meta` is json that `restore` compares. UserError where it cannot be written
    (a full disk, say), for this save or the one before: the last whole checkpoint stays."""
    args = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
    with _written(checkpoints):
        checkpoints.save(step, args=args)


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
    """The latest state, or None where there is none. `like`: a state of the same structure, shapes and shardings.

    Raises UserError where the checkpoint was made with another backbone, method, seeds or classes, with both values.
    """
    step = checkpoints.latest_step()
    if step is None:
        return None
    saved = checkpoints.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta
    refuse_other(checkpoints.directory, saved, json.loads(json.dumps(meta)))
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    return checkpoints.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))).state


def refuse_other(where, saved, asked):
    """UserError with both values of everything in which a checkpoint differs from what is asked for."""
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


def read(folder):
    """The exported tree as nested dicts of numpy arrays, {"train", "fixed"} among them even where empty: (v, meta)."""
    v = {"train": {}, "fixed": {}}
    arrays, meta = _exported(folder)
    for path, array in arrays.items():
        *inner, last = path.split("/")
        node = v
        for key in inner:
            node = node.setdefault(key, {})
        node[last] = array
    return v, meta


def _exported(folder):
    """(arrays by path, meta) of an exported folder; UserError where there is none."""
    folder = Path(folder)
    if not all((folder / name).exists() for name in ("tuned.safetensors", "tuned.json")):
        raise UserError(f"{folder} holds no tuned.safetensors: give the folder of a method in a finished --workdir.")
    return safetensors.numpy.load_file(folder / "tuned.safetensors"), json.loads((folder / "tuned.json").read_text())


def load(folder, like):
    """The exported tree as the structure of `like` (arrays or shapes): (v, meta).

    Raises UserError where names or shapes differ, listing them.
    """
    folder = Path(folder)
    arrays, meta = _exported(folder)
    asked = dict(zip(partition.paths(like), (tuple(leaf.shape) for leaf in jax.tree.leaves(like)), strict=True))
    found = {name: a.shape for name, a in arrays.items()}
    if asked != found:
        names = [k for k in dict.fromkeys([*found, *asked]) if found.get(k) != asked.get(k)]
        shapes = [(k, found.get(k, "nothing"), asked.get(k, "nothing")) for k in names]
        lines = [f"  {k}: the file has {has}, the method needs {needs}" for k, has, needs in shapes]
        raise UserError("\n".join([f"{folder / 'tuned.safetensors'} does not fit the method:", *lines]))
    leaves = [jnp.asarray(arrays[name]) for name in asked]
    return jax.tree.unflatten(jax.tree.structure(like), leaves), meta
