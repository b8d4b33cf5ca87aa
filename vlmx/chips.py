"""The chips that a plan is made for, and how long they take at best.

Everything here is from their maker's public pages, and every time computed from it is an estimate: a lower bound, of a
chip that does nothing but what it is best at.
"""

import importlib.util
import math
import os
import re
from typing import NamedTuple

import jax
from jax.experimental import topologies

from vlmx.errors import UserError, unknown

GIB = 2**30
GOOGLE = "https://docs.cloud.google.com/tpu/docs"


class Chip(NamedTuple):
    """flops: peak of bfloat16 operations a second; hbm: bytes of memory; usable: what libtpu 0.0.52 gives a program, as
    it says of one that does not fit; bandwidth: of memory, bytes a second; links: what a chip sends to its neighbours,
    bytes a second in one direction (half of "bidirectional"); cores: that the number in a name as v5p-8 counts for each
    chip; slices: topologies by their number of chips; source: the figures' address."""

    name: str
    flops: float
    hbm: float
    usable: float
    bandwidth: float
    links: float
    cores: int
    slices: tuple[str, ...]
    source: str


FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBE = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
# v4's links: Jouppi et al. 2023 (arXiv 2304.01433), table 4: 6 of 50 GB/s.
CHIPS = {
    "v4": Chip("v4", 275e12, 32 * GIB, 30.75 * GIB, 1200e9, 300e9, 2, CUBE, f"{GOOGLE}/v4"),
    "v5e": Chip("v5e", 197e12, 16 * GIB, 15.75 * GIB, 819e9, 200e9, 1, FLAT, f"{GOOGLE}/v5e"),
    "v5p": Chip("v5p", 459e12, 95 * GIB, 95.73 * GIB, 2765e9, 600e9, 2, CUBE, f"{GOOGLE}/v5p-training"),
    "v6e": Chip("v6e", 918e12, 32 * GIB, 31.24 * GIB, 1638e9, 400e9, 1, FLAT, f"{GOOGLE}/v6e"),
}


class Slice(NamedTuple):
    """Chips that compute together. `chip` is None for CPUs, of which nothing is known but their number."""

    name: str
    chip: Chip | None
    size: int


def parse(text):
    """The Slice of `v5e:16x16`, `v5e-256` or `cpu:8`. UserError for another, with those that there are."""
    kind, mark, rest = text.strip().partition(":" if ":" in text else "-")
    if kind == "cpu" and rest.isdigit() and int(rest):
        return Slice(f"cpu:{int(rest)}", None, int(rest))
    if kind not in CHIPS:
        raise unknown("topology", text, [*(f"{c.name}:{c.slices[0]}" for c in CHIPS.values()), "cpu:8"])
    chip = CHIPS[kind]
    if mark == "-" and rest.isdigit():
        rest = next((s for s in chip.slices if chips_of(s) * chip.cores == int(rest)), rest)
    if rest not in chip.slices:
        named = [f"{kind}:{s} ({kind}-{chips_of(s) * chip.cores})" for s in chip.slices]
        raise UserError(f"topology {text!r}: {kind} has the slices {', '.join(named)}.")
    return Slice(f"{kind}:{rest}", chip, chips_of(rest))


def chips_of(shape):
    """How many chips a shape like 2x2x4 has."""
    return math.prod(int(n) for n in shape.split("x"))


def prepare(slices):
    """Make this process, in which jax has computed nothing yet, one that can compile for the slices: no TPU is needed
    or looked for. UserError where libtpu is missing."""
    cpus = max((s.size for s in slices if s.chip is None), default=1)
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", ""))
    flags = "" if any(s.chip for s in slices) else flags  # libtpu ends a process whose flags are for others
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={cpus}".strip()
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")  # any: without one libtpu warns
    jax.config.update("jax_platforms", "cpu")
    if any(s.chip for s in slices) and not importlib.util.find_spec("libtpu"):
        raise UserError(
            "compiling for TPUs needs libtpu, Google's compiler, but no TPU: pip install libtpu (Linux on x86_64). "
            "Without it there is cpu:8."
        )


def devices(slice):
    """The devices of a slice for jax: described ones, that can be compiled for and not computed on; or CPUs."""
    if slice.chip is None:
        if len(jax.devices()) < slice.size:
            raise UserError(f"{slice.name}: this process was started with {len(jax.devices())} CPU devices")
        return jax.devices()[: slice.size]
    cores = {"chip_config_name": "megacore"} if slice.chip.name == "v4" else {}  # as jax runs there: a device is a chip
    found = topologies.get_topology_desc(slice.name, "tpu", **cores).devices
    if len(found) != slice.size:
        raise UserError(f"{slice.name}: libtpu knows {len(found)} devices there, not {slice.size}")
    return found


def times(cost, slice):
    """{"compute", "memory", "network"}: seconds that a Cost (vlmx/hlo.py) takes at best, each of the three alone.

    A ring over n chips sends 2 (n - 1) / n of what is reduced, and (n - 1) / n of what is gathered or scattered, over
    all links of a chip at once; small slices have fewer.
    """
    if slice.chip is None:
        return {}
    sent = 0
    for (kind, n), carried in cost.collectives.items():
        n = n or slice.size
        gathered = carried * n if kind == "all-gather" else carried
        sent += gathered * (n - 1) / n * (2 if kind == "all-reduce" else 1)
    chip = slice.chip
    return {"compute": cost.passes / chip.flops, "memory": cost.bytes / chip.bandwidth, "network": sent / chip.links}
