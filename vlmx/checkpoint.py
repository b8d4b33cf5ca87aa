"""Checkpoints of the tuned part: orbax while a run lasts, safetensors + json to keep and share. Never the backbone.

A checkpoint names its backbone by digest, its method, hyper-parameters, seeds and classes; anything else is refused.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import safetensors.numpy

from vlmx import files, partition
from vlmx.errors import UserError


def manager(folder, keep=1):
    """An orbax manager of the steps under `folder`; saving is asynchronous and atomic."""
    return ocp.CheckpointManager(Path(folder).absolute(), options=ocp.CheckpointManagerOptions(max_to_keep=keep))


def save(checkpoints, step, state, meta):
    """Save the state of `step`; `meta` is json that `restore` compares."""
    checkpoints.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)))


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


def load(folder, like):
    """The exported tree as the structure of `like` (arrays or shapes): (v, meta).

    Raises UserError where names or shapes differ, listing them.
    """
    folder = Path(folder)
    if not (folder / "tuned.safetensors").exists():
        raise UserError(f"{folder} holds no tuned.safetensors: give the folder of a method in a finished --workdir.")
    arrays = safetensors.numpy.load_file(folder / "tuned.safetensors")
    asked = dict(zip(partition.paths(like), (tuple(leaf.shape) for leaf in jax.tree.leaves(like)), strict=True))
    found = {name: a.shape for name, a in arrays.items()}
    if asked != found:
        names = [k for k in dict.fromkeys([*found, *asked]) if found.get(k) != asked.get(k)]
        shapes = [(k, found.get(k, "nothing"), asked.get(k, "nothing")) for k in names]
        lines = [f"  {k}: the file has {has}, the method needs {needs}" for k, has, needs in shapes]
        raise UserError("\n".join([f"{folder / 'tuned.safetensors'} does not fit the method:", *lines]))
    leaves = [jnp.asarray(arrays[name]) for name in asked]
    return jax.tree.unflatten(jax.tree.structure(like), leaves), json.loads((folder / "tuned.json").read_text())
