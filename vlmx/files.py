"""Writing files whole or not at all: killed in the middle, the old one is still there.

In a run of several processes only the first one writes.
"""

import json
import os
from pathlib import Path

import jax


def write(path, content):
    """Write text or bytes to `path`, making its folder; a reader sees the old content or the new, never a part."""
    if jax.process_index() != 0:
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    fresh.write_bytes(content if isinstance(content, bytes) else content.encode())
    os.replace(fresh, path)


def write_json(path, data):
    """Write `data` as json, in one piece."""
    write(path, json.dumps(data, indent=1, ensure_ascii=False))
