"""Weight files of any model: where they lie, their tensors by name, memory-mapped, and leaves made of their slices.

This file knows containers (safetensors, shards, torch archives), not the names of the tensors inside.
"""

import collections
import json
import math
import os
import re
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np
from PIL import Image
from safetensors import SafetensorError, safe_open

from vlmx import files
from vlmx.errors import UserError

WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
)
NESTED = ("state_dict", "model_state_dict", "model", "module")  # where training loops put the weights of a model
# What training code calls a model that is a part of a module: the beginning of all names of its weights.
PARTS = ("model.", "state_dict.", "model_state_dict.", "module.", "_orig_mod.", "clip.", "clip_model.")
FOREIGN = (".npz", ".msgpack", ".h5", ".json", ".gguf", ".onnx", ".tflite")  # formats of weights that are not read
JSON_BYTES = 64 << 20  # tokenizers apart, such files have a few kB


class Tensor(NamedTuple):
    """A tensor of a file, not read yet: `data[index]` reads that slice as a numpy array.

    `floating`: whether it holds numbers of a floating-point kind that numpy and ml_dtypes know (16 to 64 bits).
    """

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


def weight_names(folder):
    """The names of weight files in the order in which they are looked for in `folder`.

    timm's repositories hold their own `model.safetensors`, the image tower alone, beside the files of OpenCLIP: where
    `open_clip_config.json` lies and `config.json` is not that of a Hugging Face model, OpenCLIP's files come first.
    """
    config = folder / "config.json"
    if not lies(folder / "open_clip_config.json") or (lies(config) and "model_type" in read_json(config)):
        return WEIGHTS
    return sorted(WEIGHTS, key=lambda name: not name.startswith("open_clip_"))


def weight_files(path):
    """The weight files of the checkpoint at `path` (a directory or a file) and the folder they lie in.

    Raises UserError where there is none, or several that could be meant, or where they are those of a PEFT adapter.
    """
    path = Path(path)
    try:
        if path.is_dir():
            path = _weights_in(path)
        elif path.name.startswith("adapter_model."):
            refuse_adapter(path.parent)
        if not path.is_file():
            raise UserError(f"{path}: {'not a regular file' if path.exists() else 'no such file or directory'}")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    return (_shards(path) if path.name.endswith(".index.json") else [path]), path.parent


def _weights_in(folder):
    refuse_adapter(folder)
    names = [name for name in weight_names(folder) if (folder / name).is_file()]
    if names:
        return folder / names[0]
    others = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".pt", ".pth") and p.is_file())
    if not others:
        other = sorted(p.name for p in folder.iterdir() if p.suffix in (*FOREIGN, ".bin", ".ckpt"))
        raise UserError(
            f"{folder}: no weights found; expected {', '.join(WEIGHTS)}, or one *.safetensors or *.pt file"
            + (f"; {', '.join(other[:5])}: not in a format or under a name that is read" if other else "")
        )
    if len(others) > 1:
        names = ", ".join(p.name for p in others)
        raise UserError(f"{folder}: several weight files, name the one that is meant: {names}")
    return others[0]


def refuse_adapter(folder):
    """UserError where `folder` is an adapter's, with its kind and the model that it belongs to."""
    path = folder / "adapter_config.json"
    if lies(path):
        config = read_json(path)
        kind, base = (config.get(key, "unknown") for key in ("peft_type", "base_model_name_or_path"))
        raise UserError(
            f"{folder}: an adapter of the PEFT library ({str(kind)[:40]}) for the model {shown(base)}, no model of its "
            "own. Merge it into that model where peft is installed (merge_and_unload(), then save_pretrained()) and "
            f"give the new folder. If the folder holds merged weights already, remove {path.name}."
        )


def _shards(index):
    """The files that an index names; they lie beside it."""
    names = read_json(index).get("weight_map")
    names = list(names.values()) if isinstance(names, dict) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise UserError(f'{index}: expected "weight_map", an object from tensor names to file names')
    names = sorted(set(names))
    suffix = Path(index.name.removesuffix(".index.json")).suffix
    if odd := [name for name in names if Path(name).name != name or not name.endswith(suffix)]:
        raise UserError(f"{index}: expected names of *{suffix} files in the same folder, got {odd[0]!r}")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise UserError(f"{index}: the index names files that are not there: {', '.join(missing[:20])}")
    return [index.parent / name for name in names]


def open_tensors(files):
    """All tensors of the files by name, none read yet: dict of Tensor. Raises UserError for unreadable files."""
    if files[0].suffix in FOREIGN:
        raise UserError(
            f"{files[0]}: not in a format of weights that is read: *.safetensors, or what torch.save writes"
        )
    if files[0].suffix != ".safetensors":
        return _without_wrappers(files[0], [pair for file in files for pair in _open_torch(file)])
    tensors = []
    for file in files:
        try:
            handle = safe_open(file, "np")
            for key in handle.keys():
                data = handle.get_slice(key)
                floating = data.get_dtype() in ("F64", "F32", "F16", "BF16")
                tensors.append((key, Tensor(tuple(data.get_shape()), floating, data)))
        except (SafetensorError, OSError, ValueError, TypeError, OverflowError) as error:
            raise UserError(f"{file}: not a readable safetensors file ({error}); is it complete?") from error
    return _without_wrappers(files[0], tensors)


def _open_torch(file):
    """(name, Tensor) of each tensor in a file that torch.save wrote; no object of it but plain tensors is built."""
    try:
        zipped = zipfile.is_zipfile(file)
        script = zipped and any(n.endswith("/constants.pkl") for n in zipfile.ZipFile(file).namelist())
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise UserError(f"{file}: not a readable archive ({error}); is it complete?") from error
    if script:
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
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # torch raises many kinds; whichever it is, the file is the cause
        # torch advises weights_only=False, which would run code of the file: that part of its text is left out
        text = re.sub(r"\s+", " ", str(error))
        reason = text.split(" (1)")[0].split(". ")[0][:200]
        if other := re.search(r"GLOBAL (\S{1,100}) was not an allowed", text):
            reason = (
                f"it holds an object of {other[1]}, too, which would run code. Where the model was trained, save its "
                "weights alone, torch.save(model.state_dict(), FILE), and give that file"
            )
        raise UserError(f"{file}: torch cannot read it as plain weights (weights_only=True): {reason}") from error
    is_tensor = lambda value: isinstance(value, torch.Tensor)
    nests = lambda value: isinstance(value, dict) and any(key in value for key in NESTED)
    for _ in range(4):  # training loops write {"epoch": ..., "state_dict": {...}, "optimizer": ...}
        inner = [state.get(key) for key in NESTED] if isinstance(state, dict) else []
        inner = [v for v in inner if isinstance(v, dict) and any(map(is_tensor, v.values())) or nests(v)]
        state = inner[0] if inner else state
    state = state if isinstance(state, dict) else {}
    if odd := [key for key, value in state.items() if is_tensor(value) and not isinstance(key, str)]:
        raise UserError(f"{file}: expected names of tensors, got {type(odd[0]).__name__} {odd[0]!r}")
    if state and not any(map(is_tensor, state.values())):
        keys = ", ".join(str(key)[:40] for key in list(state)[:5])
        raise UserError(f"{file}: no weights at its top or under {', '.join(NESTED)}; it holds {keys}")
    plain = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

    def as_tensor(t):
        usual = t.dtype in plain and t.layout == torch.strided and t.device.type == "cpu"
        # An expanded view of few bytes can have any size: only what the file really holds is read.
        if not usual or t.numel() * t.element_size() > t.untyped_storage().nbytes():
            return Tensor(tuple(t.shape), False, None)
        t = t.detach()
        # numpy has no bfloat16 of its own, so torch cannot hand one over: the bits go across as integers
        data = t.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if t.dtype == torch.bfloat16 else t.numpy()
        return Tensor(tuple(t.shape), True, data)

    return [(key, as_tensor(value)) for key, value in state.items() if is_tensor(value)]


def _without_wrappers(file, tensors):
    """dict of (name, Tensor) pairs, without the prefixes that data-parallel training and torch.compile put on names,
    and without those of a module that the model is a part of."""
    names = [re.sub(r"^((module|_orig_mod)\.)+", "", key) for key, _ in tensors]
    if long := [name for name in names if len(name) > 300]:
        raise UserError(f"{file}: a tensor has a name of {len(long[0]):,} letters, {long[0][:40]}...; is it damaged?")
    if twice := [name for name, n in collections.Counter(names).items() if n > 1]:
        raise UserError(f"{file}: two tensors of one name: {', '.join(sorted(twice)[:5])}")
    if any(name.startswith("base_model.model.") for name in names):
        raise UserError(
            f"{file}: weights of an adapter of the PEFT library, no model of its own. Merge them into their model "
            "where peft is installed (merge_and_unload(), then save_pretrained()) and give the new folder."
        )
    tensors = dict(zip(names, (tensor for _, tensor in tensors)))
    while prefix := next((p for p in PARTS if tensors and all(name.startswith(p) for name in tensors)), None):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def read_json(path):
    """The object in a JSON file, as a dict. Raises UserError where it is missing or malformed."""
    return files.read_json(path, "It states what the weights beside it do not.", limit=JSON_BYTES)


def lies(path):
    """Whether something lies there, be it a link that leads nowhere: what a folder holds is read or refused."""
    return os.path.lexists(path)


def section(where, values, key):
    """The object `values[key]` of the file `where`; {} where it is absent or null. UserError where it is no object."""
    value = values.get(key)
    if value is not None and not isinstance(value, dict):
        raise UserError(f"{where}: {key} is {shown(value)}; expected an object, {{...}}")
    return value or {}


def integer(where, values, key, default=None, low=1, high=2**24):
    """The whole number `values[key]` from `low` to `high`; [n] and [n, n] count as n.

    Args:
        where: the file and the object in it, for the UserError.
        default: what it is where the key is absent.
    """
    value = values.get(key, default)
    if isinstance(value, list) and 0 < len(value) <= 2 and all(type(v) is int for v in value):
        if len(set(value)) > 1:
            raise UserError(f"{where}{key} is {shown(value)}; only one number, or twice the same, is supported")
        value = value[0]
    if type(value) is not int or not low <= value <= high:
        raise UserError(f"{where}{key} is {shown(value)}; expected a whole number from {low} to {high}")
    return value


def real(where, values, key, default=None, low=0.0, high=1.0):
    """The number `values[key]` from `low` to `high`. where, default: as in `integer`."""
    value = values.get(key, default)
    if type(value) not in (int, float) or not low <= value <= high:  # NaN compares as False
        raise UserError(f"{where}{key} is {shown(value)}; expected a number from {low:g} to {high:g}")
    return float(value)


def shown(value):
    """A JSON value as an error message shows it: cut where it is long."""
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
        if not np.isfinite(piece).all():
            raise UserError(f"the weights of this model are damaged: not finite in {', '.join(rule.keys[:3])}")
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
