"""Which device holds what: the only file that knows meshes.

Axes: "seed" (independent runs side by side), "data" (images of a batch), "fsdp" (frozen weights in pieces; images of a
batch too) and "tensor" (heads and hidden units).
"""

import math

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vlmx.errors import UserError

AXES = ("seed", "data", "fsdp", "tensor")
ROWS = ("data", "fsdp")  # images of a batch go over both


def make_mesh(sizes=None, devices=None):
    """A mesh over all devices. `sizes`: axis -> size, -1 (at one axis) for the rest; by default all are on "data"."""
    devices = jax.devices() if devices is None else devices
    sizes = {"seed": 1, "data": -1, "fsdp": 1, "tensor": 1} | dict(sizes or {})
    shape = [int(sizes[axis]) for axis in AXES]
    rest = [i for i, n in enumerate(shape) if n == -1]
    known = math.prod(n for n in shape if n != -1)
    if len(rest) == 1 and len(devices) % known == 0:
        shape[rest[0]] = len(devices) // known
    if len(rest) > 1 or math.prod(shape) != len(devices):
        raise UserError(f"mesh {sizes} does not cover {len(devices)} devices: the sizes must multiply to that number.")
    # make_mesh's default, Explicit axes, would ask every operation for its sharding; the compiler finds them here.
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def on(mesh: Mesh, *axes):
    """The sharding with these mesh axes on an array's leading dimensions; nothing: a copy on every device."""
    return NamedSharding(mesh, P(*axes))


def rows(mesh):
    """Into how many pieces the images of a batch are cut."""
    return math.prod(mesh.shape[axis] for axis in ROWS)


def put(mesh, tree, *axes):
    """Host arrays as global arrays sharded by `axes`; each process gives the part that it holds."""
    return jax.tree.map(lambda a: jax.make_array_from_process_local_data(on(mesh, *axes), np.asarray(a)), tree)


def pad(batch, axis, multiple):
    """A batch of host arrays filled up along `axis` to a multiple, so that the mesh divides it; new rows are zero,
    and so is their weight."""

    def fill(a):
        width = [(0, 0)] * a.ndim
        width[axis] = (0, -a.shape[axis] % multiple)
        return np.pad(a, width)

    return {key: fill(np.asarray(a)) for key, a in batch.items()}
