"""Golden cases: folders and files with reference values, found by what they say of themselves.

A *case* is either a folder with a `case.json` (its kind is `clip/<method>`, `vl/<method>`, or `<kind>/<family>` where
it says these in place of a method) or, outside such folders, a JSON file (its kind is its file name, such as
`schedules.json`). What a case needs beside it (backbones, vocabulary, split files) is found with `beside` and is no
case of its own.
"""

import fnmatch
import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import load_file

OWN = Path(__file__).parent / "goldens"
COMPANIONS = ("config.json", "vocab.json", "tokenizer*.json", "special_tokens_map.json", "*_split_zhou.json")


class Case(NamedTuple):
    id: str  # "parent/name", readable
    kind: str  # what tests claim by pattern
    path: Path  # the folder of a case.json, or the file


def find(folder):
    """Every case under a folder, sorted by path -> list of Case. ValueError: a case.json that does not say its kind."""
    cases, visited = [], set()
    for here, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        here = Path(here).resolve()
        if here in visited:  # a link that leads back
            folders.clear()
            continue
        visited.add(here)
        if "case.json" in files:
            folders.clear()
            cases.append(Case(f"{here.parent.name}/{here.name}", _kind(here / "case.json"), here))
            continue
        for name in sorted(files):
            if name.endswith(".json") and not any(fnmatch.fnmatchcase(name, c) for c in COMPANIONS):
                cases.append(Case(f"{here.name}/{name.removesuffix('.json')}", name, here / name))
    return cases


def gather(folders):
    """The cases of several folders: a case and its copies once, ids made unique by a number -> list of Case."""
    unique, seen = {}, {}
    for case in (case for folder in folders for case in find(folder)):
        content = digest(case.path)
        if content not in unique:
            seen[case.id] = n = seen.get(case.id, 0) + 1
            unique[content] = case if n == 1 else case._replace(id=f"{case.id}-other{n}")
    return list(unique.values())


def digest(path):
    """What tells a case from another: its name and the content of its files."""
    files = sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path]
    return path.name, *(hashlib.sha256(f.read_bytes()).hexdigest() for f in files)


def claimed(case, patterns):
    """Whether one of the patterns (`clip/coop`, `vl/*`, `schedules*.json`) names the case's kind."""
    return any(fnmatch.fnmatchcase(case.kind, pattern) for pattern in patterns)


def load(path):
    """A case folder -> (its case.json as a dict, its tensors as a dict of numpy arrays); a JSON file -> its content."""
    if path.is_file():
        return json.loads(path.read_text())
    return json.loads((path / "case.json").read_text()), load_file(path / "tensors.safetensors")


def beside(path, name):
    """What a case refers to, such as `backbones/vit_a`, `vocab.json`: looked for beside the case, then in the folders
    above it, last in the repository's own goldens -> Path. FileNotFoundError if it is nowhere."""
    places = [*path.parents, OWN / "clip", OWN / "protocol"]
    for place in places:
        if (place / name).exists():
            return place / name
    raise FileNotFoundError(f"golden case {path} refers to {name!r}, which is neither beside it nor above it")


def assert_close(got, want, tol, what=""):
    """Largest absolute difference at most `tol` times the largest absolute value of the reference."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, f"{what}: shape {got.shape}, expected {want.shape}"
    worst, scale = np.abs(got - want).max(initial=0), np.abs(want).max(initial=0)
    assert worst <= tol * scale, f"{what}: off by {worst:.3g}, largest value {scale:.3g} (tolerance {tol:g})"


def _kind(path):
    try:
        case = json.loads(path.read_text())
        if "method" not in case:
            return case["kind"] + "/" + case["family"]
        return ("clip/" if str(case.get("format", "")).startswith("clip") else "vl/") + case["method"]
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise ValueError(f"{path}: not a golden case: expected a JSON object with a \"method\" ({e!r})") from e
