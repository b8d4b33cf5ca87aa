"""Which files of a person's folders are images, and which paths lead to the same file."""

import os
import re
import stat
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from typing import NamedTuple

from PIL import Image

from vlmx.errors import UserError

# A file with one of these endings is taken for an image, so that a broken one is reported; any other is looked into.
IMAGES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".avif", ".bmp", ".dib", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".mpo", ".jp2", ".j2k", ".tga", ".qoi"),
)
# Formats that no other file is taken for: they begin with bytes of their own.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF", "JPEG2000", "QOI", "ICO", "PSD")
NOT_DECODED = ("EPS", "WMF", "PDF", "MPEG", "HDF5", "GRIB", "BUFR")  # PIL knows the endings, but decodes none
RAW = (".dng", ".cr2", ".cr3", ".nef", ".nrw", ".arw", ".sr2", ".srw", ".orf", ".rw2", ".pef")  # TIFF, but a preview
SYSTEM = (
    *("@eadir", "@__thumb", "@recycle", "#recycle", "#snapshot", "$recycle.bin", "system volume information"),
    *("lost+found", "__macosx", "__pycache__", "thumbs.db", "ehthumbs.db", "desktop.ini"),
)
FORMS = ("", "NFC", "NFD")  # of Unicode; "": as it is
LOOPS = "links to a folder that is read already"


class Entry(NamedTuple):
    """One mention of an image: its path, class and split, and where it is mentioned ("line 3"; "": it was found)."""

    path: str
    label: str
    part: str
    place: str


def is_system(name: str) -> bool:
    """Return whether a file or folder is hidden, a backup of an editor, or a helper of an operating system or a NAS."""
    return name.startswith(".") or name.endswith("~") or name.lower() in SYSTEM


def is_image(path: str) -> bool:
    """Return whether a file is an image by its ending or, where that says nothing, by its first bytes."""
    ending = os.path.splitext(path)[1].lower()
    if ending in IMAGES:
        return True
    try:
        s = os.stat(path)
        # To open a pipe would wait for its other end; so would some files of /proc, whose size is 0.
        if ending in RAW or not stat.S_ISREG(s.st_mode) or not s.st_size:
            return False
        Image.init()
        named = Image.registered_extensions().get(ending)
        formats = [f for f in (*FORMATS, named) if f in Image.OPEN and f not in NOT_DECODED]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=formats):
                return True
    except Image.DecompressionBombError:
        return True
    except Exception:  # PIL's readers raise OSError, SyntaxError, ValueError, struct.error, ... for other files
        return False


def list_folder(folder: str | os.PathLike, left_out: Counter) -> tuple[list[str], list[str]]:
    """Return the names of the folders and of the files in a folder, both sorted. Links count as what they lead to.

    Args:
        folder: its path.
        left_out: counts the hidden and system entries, and links to a folder that contains this one.

    Raises:
        UserError: the folder cannot be listed.
    """
    folders, files = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_system(entry.name):
                    left_out["hidden or system files and folders"] += 1
                    continue
                is_folder = os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()
                if is_folder and entry.is_symlink() and is_inside(folder, entry.path):
                    left_out[LOOPS] += 1
                    continue
                (folders if is_folder else files).append(entry.name)
    except OSError as e:
        raise UserError(
            f"the folder {printable(folder)} cannot be listed ({e.strerror}), so its images would be missing. "
            "Make it readable, or move it away."
        ) from e
    return sorted(folders), sorted(files)


def list_images(folder: str | os.PathLike, left_out: Counter, select: Callable | None = None) -> list[str]:
    """Return the images in a folder and in all folders inside it: paths below it, sorted, folder by folder.

    Each folder is entered once, however many links lead to it, and never a folder that contains `folder`.

    Args:
        folder: its path.
        left_out: counts the files that are not read as images, by ending, and all else that is left out.
        select: what decides which files count, in place of `select_images`.
    """
    select = select or select_images
    container = os.path.realpath(os.path.dirname(os.path.abspath(folder)))
    entered = {file_id(container)}
    while container != (container := os.path.dirname(container)):
        entered.add(file_id(container))
    images, waiting = [], [""]
    while waiting:
        below = waiting.pop()
        here = os.path.join(folder, below)
        if file_id(here) in entered:
            left_out[LOOPS] += 1
            continue
        entered.add(file_id(here))
        folders, files = list_folder(here, left_out)
        images += [os.path.join(below, f) for f in select(here, files, left_out)]
        waiting += [os.path.join(below, f) for f in reversed(folders)]
    return images


def is_inside(folder: str | os.PathLike, other: str | os.PathLike) -> bool:
    """Return whether `folder` is `other`, or lies somewhere inside it."""
    folder, other = os.path.realpath(folder), os.path.realpath(other)
    return os.path.commonpath((folder, other)) == other


def select_images(folder: str, files: Iterable[str], left_out: Counter) -> list[str]:
    """Return the names of those files of a folder that are images; `left_out` counts the others by ending."""
    images = []
    for name in files:
        if is_image(os.path.join(folder, name)):
            images.append(name)
        else:
            ending = os.path.splitext(name)[1].lower()
            left_out[f"files that are not read as images ({ascii(ending)[1:-1] or 'no ending'})"] += 1
    return images


def describe_left_out(root: str | os.PathLike, left_out: Counter) -> list[str]:
    """Return a note that counts what was left out below `root`, or no note."""
    ranked = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    counts = [f"{what}: {n}" for what, n in ranked[:20]]
    if len(ranked) > 20:
        counts.append(f"others: {sum(n for _, n in ranked[20:])}")
    return [f"left out below {printable(root)}: {'; '.join(counts)}"] if counts else []


# ---- one image, several paths


def file_id(path: str | os.PathLike) -> Hashable:
    """Return what a file or folder is, however its path is spelled: device and inode, else the real path."""
    try:
        s = os.stat(path)
        return (s.st_dev, s.st_ino) if s.st_ino else os.path.realpath(path)
    except OSError:
        return os.path.realpath(path)
    except ValueError:  # a null character, or text that is no file name
        return os.fspath(path)


def find_file(root: str | os.PathLike, path: str) -> str | None:
    """Return `path` as it is spelled on disk below `root`, with its accents composed (NFC) or decomposed (NFD), and
    with / where Windows writes backslashes.

    Returns None where there is no such file.
    """
    paths = path, path.replace("\\", "/")
    for spelling in dict.fromkeys(unicodedata.normalize(form, p) if form else p for p in paths for form in FORMS):
        full = os.path.join(root, spelling)
        if os.path.exists(full) and not os.path.isdir(full):
            return spelling
    return None


def split_repeats(entries: Iterable[Entry], identify: Callable) -> tuple[list[Entry], list[tuple[Entry, Entry]]]:
    """Return the first mention of each image, and the pairs (first mention, later mention).

    Args:
        entries: in order.
        identify: (path of an entry) -> what the image is.
    """
    first, repeats = {}, []
    for entry in entries:
        known = first.setdefault(identify(entry.path), entry)
        if known is not entry:
            repeats.append((known, entry))
    return list(first.values()), repeats


def refuse_conflicts(source: str | os.PathLike, repeats: Iterable[tuple[Entry, Entry]]) -> None:
    """Raise a UserError that names both places where an image has two classes or is in two splits."""
    for first, again in repeats:
        if (first.label, first.part) != (again.label, again.part):
            raise UserError(f"{printable(source)}, {describe_conflict(first, again)}")


def describe_conflict(first: Entry, again: Entry) -> str:
    """Return a sentence about two mentions of one image that differ."""
    place = f"{again.place}: " if again.place else ""
    same = f" (the same file as {printable(first.path)})" if first.path != again.path else ""
    return (
        f"{place}{printable(again.path)}{same} is {again.label!r} in {again.part}, but {first.label!r} in {first.part} "
        f"at {first.place or printable(first.path)}; an image belongs to one class and to one split."
    )


# ---- names


def printable(text: str | os.PathLike) -> str:
    """Return a path as text for a terminal: bytes that are not UTF-8, and control characters, become escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in os.fspath(text))


def is_text(value: object) -> bool:
    """Return whether a value is a text without surrogates, which stand for bytes that are not UTF-8."""
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def is_name(value: object) -> bool:
    """Return whether a value is a text of one line that can name a class: no control characters but tabs."""
    return is_text(value) and bool(value.strip()) and not re.search("[\0-\x08\n-\x1f\x7f\u2028\u2029]", value)


def normalize_name(name: str) -> str:
    """Return a name with its accents composed (NFC), so that the names of Linux and macOS are equal."""
    return unicodedata.normalize("NFC", name)
