"""Weight files of any model: where they lie, their tensors by name, memory-mapped, and leaves made of their slices.

This file knows containers (safetensors, shards, torch archives), not the names of the tensors inside.
"""

import json
import math
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np
from PIL import Image
from safetensors import SafetensorError, safe_open

from vlmx.errors import UserError

WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)


class Tensor(NamedTuple):
    """A tensor of a file, not read yet: `data[index]` reads that slice as a numpy array."""

    shape: tuple[int, ...]
    floating: bool
    data: Any


class From(NamedTuple):
    """How a leaf is made: our axis `i` is axis `axes[i]` of the source; along the source's axis 0, we begin at `start`.

    `stacked`: one source tensor per layer, on a new leading axis. `total`: the length of the source's axis 0 where it
    is not ours (q, k and v in one tensor, a longer text context). `grid`: position embeddings of `grid[0]` x `grid[0]`
    patches that become those of `grid[1]` x `grid[1]`.
    """

    keys: tuple[str, ...]
    axes: tuple[int, ...]
    stacked: bool = False
    start: int = 0
    total: int | None = None
    grid: tuple[int, int] | None = None

    def source_shape(self, shape):
        """The shape each source tensor must have for a leaf of `shape`."""
        inner = shape[1:] if self.stacked else shape
        source = [inner[self.axes.index(axis)] for axis in range(len(inner))]
        if self.total is not None:
            source[0] = self.total
        if self.grid is not None:
            source[0] = 1 + self.grid[0] ** 2
        return tuple(source)


def weight_files(path):
    """The weight files of the checkpoint at `path` (a directory or a file) and the folder they lie in.

    Raises UserError where there is none, or several that could be meant.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in WEIGHTS if (path / name).is_file()]
        found = found or sorted(p for p in path.iterdir() if p.suffix in (".safetensors", ".pt", ".pth"))
        if not found:
            raise UserError(
                f"{path}: no weights found; expected {', '.join(WEIGHTS)}, or one *.safetensors or *.pt file"
            )
        if found[0].name not in WEIGHTS and len(found) > 1:
            raise UserError(
                f"{path}: several weight files, name the one that is meant: {', '.join(p.name for p in found)}"
            )
        path = found[0]
    if not path.is_file():
        raise UserError(f"{path}: no such file or directory")
    if path.name.endswith(".index.json"):
        files = sorted({path.parent / name for name in read_json(path)["weight_map"].values()})
        missing = [p.name for p in files if not p.is_file()]
        if missing:
            raise UserError(f"{path}: the index names files that are not there: {', '.join(missing)}")
        return files, path.parent
    return [path], path.parent


def open_tensors(files):
    """All tensors of the files by name, none read yet: dict of Tensor. Raises UserError for unreadable files."""
    if files[0].suffix != ".safetensors":
        return _open_torch(files[0])
    tensors = {}
    for file in files:
        try:
            handle = safe_open(file, "np")
        except SafetensorError as error:
            raise UserError(f"{file}: not a readable safetensors file ({error}); is it complete?") from error
        for key in handle.keys():
            data = handle.get_slice(key)
            tensors[key] = Tensor(tuple(data.get_shape()), data.get_dtype() in ("F64", "F32", "F16", "BF16"), data)
    return _unwrapped(tensors)


def _open_torch(file):
    if zipfile.is_zipfile(file) and any(n.endswith("/constants.pkl") for n in zipfile.ZipFile(file).namelist()):
        raise UserError(
            f"{file}: a TorchScript program, as OpenAI released its models, and no plain state dict. Where torch is "
            "installed, write out its weights once, and give the new file:\n"
            f"  python -c \"import torch, safetensors.torch as s; m = torch.jit.load('{file}', map_location='cpu'); "
            "s.save_file({k: v.detach().clone() for k, v in m.state_dict().items()}, "
            f"'{file.with_suffix('.safetensors')}')\""
        )
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{file}: reading this format takes torch, which is not installed (pip install torch). A .safetensors file "
            "of the same model needs no torch."
        ) from error
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # torch raises many kinds; whichever it is, the file is the cause
        raise UserError(f"{file}: torch cannot read it as plain weights (weights_only=True): {error}") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else {}

    def view(t):
        # numpy has no bfloat16 of its own, so torch cannot hand one over: the bits go across as integers
        return t.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if t.dtype == torch.bfloat16 else t.numpy()

    tensors = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    return _unwrapped({k: Tensor(tuple(t.shape), t.is_floating_point(), view(t.detach())) for k, t in tensors.items()})


def _unwrapped(tensors):
    """Without the prefix that data-parallel training leaves on every name."""
    return {key.removeprefix("module."): tensor for key, tensor in tensors.items()}


def read_json(path):
    """The content of a JSON file. Raises UserError where it is missing or malformed (with the line)."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path}: missing; it says the sizes and the activation of the weights beside it") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not valid JSON ({error.msg})") from error


def integer(where, values, key, default=None, low=1, high=2**24):
    """The whole number `values[key]` from `low` to `high`; [n] and [n, n] count as n.

    Args:
        where: the file and the object in it, for the UserError.
        default: what it is where the key is absent.
    """
    value = values.get(key, default)
    if isinstance(value, list) and 0 < len(value) <= 2 and all(type(v) is int for v in value):
        if len(set(value)) > 1:
            raise UserError(f"{where}{key} is {_shown(value)}; only one number, or twice the same, is supported")
        value = value[0]
    if type(value) is not int or not low <= value <= high:
        raise UserError(f"{where}{key} is {_shown(value)}; expected a whole number from {low} to {high}")
    return value


def real(where, values, key, default=None, low=0.0, high=1.0):
    """The number `values[key]` from `low` to `high`. where, default: as in `integer`."""
    value = values.get(key, default)
    if type(value) not in (int, float) or not low <= value <= high:  # NaN compares as False
        raise UserError(f"{where}{key} is {_shown(value)}; expected a number from {low:g} to {high:g}")
    return float(value)


def _shown(value):
    """A JSON value in an error message, cut."""
    text = "null" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def write_json(path, value):
    """Writes `value` as indented JSON."""
    path.write_text(json.dumps(value, indent=2) + "\n")


def check(path, tensors, table, shapes, ignored):
    """Raises one UserError with all that is unknown, missing or misshapen; reads nothing.

    Args: tensors: dict of Tensor. table, shapes: From and shape of each leaf. ignored: pattern of names nobody needs.
    """
    expected = {key: rule.source_shape(shapes[name].shape) for name, rule in table.items() for key in rule.keys}
    unknown = [f"{k} {list(tensors[k].shape)}" for k in tensors if k not in expected and not ignored.fullmatch(k)]
    missing = [f"{k} {list(shape)}" for k, shape in expected.items() if k not in tensors]
    shared = {k: tensors[k] for k in expected if k in tensors}
    misshapen = [
        f"{k} {list(t.shape)}, expected {list(expected[k])}" for k, t in shared.items() if t.shape != expected[k]
    ]
    integers = [k for k, t in shared.items() if not t.floating]
    problems = {"unknown": unknown, "missing": missing, "misshapen": misshapen, "not floating-point": integers}
    if any(problems.values()):
        lines = [f"{path}: these tensors do not fit the model that its sizes describe"]
        for problem, names in problems.items():
            lines += [f"  {problem}: {name}" for name in sorted(names)[:40]]
            lines += [f"  ... and {len(names) - 40} more {problem}"] if len(names) > 40 else []
        raise UserError("\n".join(lines))


def read_slice(rule, tensors, shape, dtype, index):
    """The part `index` of a leaf of `shape`, in `dtype`, reading no more of the file than that."""
    index = tuple(slice(*part.indices(n)[:2]) for part, n in zip(index, shape))  # no open ends
    if rule.grid is not None:
        whole = tensors[rule.keys[0]].data[:]
        return resize_grid(whole, rule.grid[1])[index].astype(dtype)
    inner = index[1:] if rule.stacked else index
    source = [inner[rule.axes.index(axis)] for axis in range(len(inner))]
    if rule.start:
        source[0] = slice(source[0].start + rule.start, source[0].stop + rule.start)
    out = np.empty([part.stop - part.start for part in index], dtype)
    keys, parts = (rule.keys[index[0]], out) if rule.stacked else (rule.keys, [out])
    for key, part in zip(keys, parts):
        part[...] = tensors[key].data[tuple(source)].transpose(rule.axes)
    return out


def place(rule, tensors, shape, name, where=None):
    """A leaf as a jax array, built on the devices it will live on from the slices each of them needs.

    Args: shape: its shape and dtype. where: `(name, shape) -> jax.sharding.Sharding`; None: the first local device.
    """
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    sharding = first if where is None else where(name, shape.shape)
    pieces = {}  # one by one, and waited for: reads and transfers of all at once would pile up copies on the host
    for device, index in sharding.addressable_devices_indices_map(shape.shape).items():
        pieces.setdefault(str(index), (index, []))[1].append(device)
    arrays = []
    for index, devices in pieces.values():
        piece = read_slice(rule, tensors, shape.shape, shape.dtype, index)
        arrays += jax.block_until_ready([jax.device_put(piece, device) for device in devices])
    return jax.make_array_from_single_device_arrays(shape.shape, sharding, arrays)


def resize_grid(pos_embed, size):
    """Position embeddings `(1 + G*G, D)`, the class token's first, for a `size` x `size` grid: `(1 + size*size, D)`.

    The rule: the class token's stays. The others, as a G x G image of D channels, are resized bicubically (Keys'
    kernel, a = -0.5; pixel centres at half integers; weights renormalised at the border) and, where the grid shrinks,
    with the kernel widened against aliasing: PIL's rule, which is that of OpenCLIP and of `jax.image.resize`.
    Hugging Face's `interpolate_pos_encoding` takes a = -0.75 and never widens, so its features differ slightly.
    """
    pos_embed = np.asarray(pos_embed, np.float32)
    g, d = math.isqrt(len(pos_embed) - 1), pos_embed.shape[1]
    planes = [Image.fromarray(np.ascontiguousarray(plane)) for plane in pos_embed[1:].T.reshape(d, g, g)]
    grid = [np.asarray(plane.resize((size, size), Image.Resampling.BICUBIC)).ravel() for plane in planes]
    return np.concatenate([pos_embed[:1], np.stack(grid, axis=1)])
