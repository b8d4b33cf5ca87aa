"""Writing files whole or not at all, and reading json that may be damaged.

Killed in the middle of writing, the old file is still there. In a run of several processes only the first one writes.
"""

import contextlib
import json
import os
from pathlib import Path

import jax

from vlmx.errors import IN_THE_WAY, Unwritable, UserError

FORMULA = (*"=+-@＝＋－＠", "\t", "\r", "\n")  # how a spreadsheet's formula begins, or hides its beginning
LIMIT = 2**28  # bytes of a json file that is read whole

# in words; all others are numbers
KINDS = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}


def write(path, content):
    """Write text or bytes to `path`, making its folder; a reader sees the old content or the new, never a part."""
    if jax.process_index() != 0:
        return
    path = Path(path)
    # A file name that is not UTF-8 stands as \udcXX escapes, which JSON readers turn back into the name.
    content = content if isinstance(content, bytes) else content.encode(errors="backslashreplace")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(path.name + ".new")
        fresh.write_bytes(content)
        os.replace(fresh, path)
    except (FileExistsError, IsADirectoryError, NotADirectoryError) as e:  # a folder in place of a file, or otherwise
        raise Unwritable(path, e.strerror, IN_THE_WAY) from e


def write_json(path, data):
    """Write `data` as json, in one piece."""
    write(path, json.dumps(data, indent=1, ensure_ascii=False))


def read_text(path, advice="", limit=LIMIT, errors="strict"):
    """Return the text of a file, UTF-8 with or without a byte order mark.

    Args:
        path: a file of a person's disk, which may be missing, damaged or something else.
        advice: sentences that end the error: what was expected, what to do.
        limit: bytes; a larger file is refused before it is read.
        errors: what bytes that are not UTF-8 become, as in `bytes.decode`.

    Raises:
        UserError: the path is missing, a folder, a pipe or a device, too large, unreadable, or not UTF-8.
    """
    path = Path(path)
    try:
        if not path.exists():
            problem = "a link that leads nowhere" if path.is_symlink() else "no such file"
            raise UserError(f"{path}: {problem}. {advice}".rstrip())
        if not path.is_file():
            kind = "folder" if path.is_dir() else "pipe or device"
            raise UserError(f"{path}: a {kind}, not a file. {advice}".rstrip())
        if (size := path.stat().st_size) > limit:
            raise UserError(f"{path}: {size:,} bytes; such a file has {limit:,} at most. {advice}".rstrip())
        return path.read_bytes().decode("utf-8-sig", errors)
    except UserError:  # a ValueError too
        raise
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror}). {advice}".rstrip()) from e
    except UnicodeDecodeError as e:
        raise UserError(f"{path}: not UTF-8 text ({e.reason} at byte {e.start}). {advice}".rstrip()) from e
    except ValueError as e:  # a path with a null character
        raise UserError(f"{str(path)!r}: no path of a file ({e}). {advice}".rstrip()) from e


def read_json(path, advice="", kind=dict, limit=LIMIT):
    """Return the content of a json file.

    Args:
        path, advice, limit: as of `read_text`.
        kind: type of the content, or several: dict, list, (int, float), ...; {key: kind} is an object with these keys
            at least, [kind] a list of these.

    Raises:
        UserError: as `read_text`, or the file is empty, no valid json, or json of another kind.
    """
    return parse_json(read_text(path, advice, limit), path, advice, kind)


def parse_json(text, where, advice="", kind=dict, **hooks):
    """Return the content of json text, a str or UTF-8 bytes.

    Args:
        where: its file, or the file and the line.
        advice, kind: as of `read_json`; kind=None: anything.
        hooks: as of `json.loads`, such as object_hook, which keeps of each object what is needed while it is read.

    Raises:
        UserError: as `read_json`.
    """
    cause = None
    try:
        text = text.decode() if isinstance(text, bytes) else text
        content = json.loads(text, **hooks)
        problem = describe_problem(content, kind) if kind else ""
    except UserError:  # of a hook; a ValueError too
        raise
    except UnicodeDecodeError as e:
        problem, cause = f"not UTF-8 text ({e.reason} at byte {e.start})", e
    except json.JSONDecodeError as e:
        place = f" at line {e.lineno}, column {e.colno}" if "\n" in text.strip() else f" at column {e.colno}"
        problem, cause = f"no valid json ({e.msg}{place})" if text.strip() else "empty", e
    except RecursionError as e:
        problem, cause = "json that is nested too deeply", e
    except ValueError as e:  # Python's limit on the digits of a number
        problem, cause = f"json with a number of too many digits ({str(e).partition(';')[0]})", e
    if problem:
        raise UserError(f"{where}: {problem}. {advice}".rstrip()) from cause
    return content


def describe_problem(content, kind):
    """Return where and how json content is of another kind than `read_json` asks for, in words; "" where it is not."""
    if isinstance(kind, dict) and isinstance(content, dict):
        inner = [(repr(key), content.get(key), kind[key], key in content) for key in kind]
    elif isinstance(kind, list) and isinstance(content, list):
        inner = [(f"entry {i}", value, kind[0], True) for i, value in enumerate(content)]
    else:
        kinds = kind if isinstance(kind, tuple) else (kind if isinstance(kind, type) else type(kind),)
        is_kind = isinstance(content, kinds) and (bool in kinds or not isinstance(content, bool))
        words = dict.fromkeys(KINDS.get(k, "a number") for k in kinds)
        return "" if is_kind else f"{describe_kind(content)}, not {' or '.join(words)}"
    for name, value, inner_kind, is_there in inner:
        if not is_there:
            return f"no {name} in it"
        if problem := describe_problem(value, inner_kind):
            return f"{name}: {problem}"
    return ""


@contextlib.contextmanager
def reading(path, advice=""):
    """Within it, what goes wrong with the content of a file that vlmx wrote is a UserError that names the file."""
    try:
        yield
    except UserError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as e:
        raise UserError(f"{path}: not as vlmx wrote it ({type(e).__name__}: {e}). {advice}".rstrip()) from e


def describe_kind(value):
    """Return what a json value is, in words: "a list", "a number", ..."""
    return KINDS.get(type(value), "a number")


def csv_cell(value):
    """Return a value as a cell of a csv that a spreadsheet takes for no formula: a text that begins as one gets a '."""
    return f"'{value}" if isinstance(value, str) and value.lstrip(" \u00a0\u3000").startswith(FORMULA) else value


def plain_cell(text):
    """Return the text of a cell that `csv_cell` made."""
    return text[1:] if text[:1] == "'" and csv_cell(text[1:]) == text else text
