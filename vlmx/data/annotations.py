"""Items (image path, label, class name) of the published benchmarks from their official annotation files.

Functions on lines of text hold the rules (checked against the official readers); the ones on a folder find the files.
File names are listed sorted, where the official code takes the order of the file system.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from vlmx.data.image_files import list_folder
from vlmx.errors import UserError
from vlmx.files import read_json, read_text

Item = tuple[str, int, str]

EUROSAT = {
    "AnnualCrop": "Annual Crop Land",
    "HerbaceousVegetation": "Herbaceous Vegetation Land",
    "Highway": "Highway or Road",
    "Industrial": "Industrial Buildings",
    "Pasture": "Pasture Land",
    "PermanentCrop": "Permanent Crop Land",
    "Residential": "Residential Buildings",
    "SeaLake": "Sea or Lake",
}
CALTECH = {"airplanes": "airplane", "Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike"}
CALTECH_IGNORED = ("BACKGROUND_Google", "Faces_easy")


# ---- the split rules of the official code, for benchmarks that come without the published split


def group(items: Iterable[Item]) -> dict[int, list[Item]]:
    """Items by label, labels in order of first appearance."""
    groups = {}
    for item in items:
        groups.setdefault(item[1], []).append(item)
    return groups


def split_all(items: list[Item], rng: random.Random) -> dict[str, list[Item]]:
    """50 / 20 / 30 % of each class, shuffled class after class."""
    parts = {"train": [], "val": [], "test": []}
    for members in group(items).values():
        rng.shuffle(members)
        a = round(0.5 * len(members))
        b = a + round(0.2 * len(members))
        parts["train"] += members[:a]
        parts["val"] += members[a:b]
        parts["test"] += members[b:]
    return parts


def split_train(items: list[Item], rng: random.Random) -> tuple[list[Item], list[Item]]:
    """(train, val): 20 % of each class of the official training part become val."""
    train, val = [], []
    for members in group(items).values():
        rng.shuffle(members)
        n = round(0.2 * len(members))
        val += members[:n]
        train += members[n:]
    return train, val


# ---- from lines to items


def pets_items(lines: Iterable[str]) -> list[Item]:
    """`Abyssinian_100 1 1 1`: name, 1-based class, species, breed."""
    items = []
    for line in lines:
        name, label, *_ = line.split()
        items.append((f"{name}.jpg", int(label) - 1, name.rsplit("_", 1)[0].lower()))
    return items


def cars_name(name: str) -> str:
    """`Audi S5 Coupe 2012` -> `2012 Audi S5 Coupe`."""
    model, year = name.rsplit(" ", 1)
    return f"{year} {model}"


def cars_items(names: list[str], annotations: Iterable[tuple[int, str]], folder: str) -> list[Item]:
    """`annotations`: (1-based class, file name)."""
    return [(f"{folder}/{file}", c - 1, cars_name(names[c - 1])) for c, file in annotations]


def sun_name(path: str) -> str:
    """`/c/church/outdoor` -> `outdoor church`: the leading letter goes, the parts turn round."""
    return " ".join(reversed(path.strip("/").split("/")[1:]))


def sun_items(classes: list[str], lines: Iterable[str]) -> list[Item]:
    """Items of SUN397's lists: `lines` are /c/church/outdoor/x.jpg, labels the place in `classes` (ClassName.txt)."""
    labels = {c.strip("/"): i for i, c in enumerate(classes)}
    items = []
    for line in lines:
        path = line.strip("/")
        folder = path.rsplit("/", 1)[0]
        items.append((path, labels[folder], sun_name(folder)))
    return items


def ucf_name(action: str) -> str:
    """`HandstandPushups` -> `Handstand_Pushups`."""
    return "_".join(re.findall(r"[A-Z][^A-Z]*", action))


def ucf_items(classes: Iterable[str], lines: Iterable[str]) -> list[Item]:
    """`YoYo/v_YoYo_g25_c05.avi 6`; the middle frame of the video is `Yo_Yo/v_YoYo_g25_c05.jpg`."""
    labels = {}
    for line in classes:
        number, action = line.split()
        labels[action] = int(number) - 1
    items = []
    for line in lines:
        action, video = line.split()[0].split("/")
        items.append((f"{ucf_name(action)}/{video.removesuffix('.avi')}.jpg", labels[action], ucf_name(action)))
    return items


def fgvc_items(variants: list[str], lines: Iterable[str]) -> list[Item]:
    """`1025794 707-320`: image, variant (which may hold spaces)."""
    labels = {v: i for i, v in enumerate(variants)}
    pairs = (line.split(" ", 1) for line in lines)
    return [(f"{image}.jpg", labels[variant], variant) for image, variant in pairs]


def flowers_items(labels: Iterable[int], names: dict[str, str]) -> list[Item]:
    """`labels`: 1-based class of image 1, 2, ...; `names`: class (as text) -> name."""
    return [(f"image_{i:05d}.jpg", int(c) - 1, names[str(int(c))]) for i, c in enumerate(labels, 1)]


# ---- from folders to items


def listing(folder: Path) -> dict[str, list[str]]:
    """Sub-folder -> its file names, both sorted; hidden ones and those of an operating system or a NAS are left out."""
    folder.stat()  # FileNotFoundError says what is missing
    folders, _ = list_folder(folder, Counter())
    return {f: list_folder(folder / f, Counter())[1] for f in folders}


def folder_items(files: dict[str, list[str]], rename: Callable[[str], str] = str, prefix: str = "") -> list[Item]:
    """Label = rank of the folder in sorted order."""
    return [(f"{prefix}{f}/{p}", i, rename(f)) for i, f in enumerate(sorted(files)) for p in files[f]]


def imagenet_names(lines: Iterable[str]) -> dict[str, str]:
    """`n01440764 tench` -> {WNID: name}, in the order of the file."""
    return dict(line.split(" ", 1) for line in lines)


def imagenet_v2_items(files: dict[str, list[str]], names: list[str]) -> list[Item]:
    """Folder number = label; the name is that of this line of classnames.txt."""
    return [(f"{f}/{p}", int(f), names[int(f)]) for f in sorted(files, key=int) for p in files[f]]


# ---- per benchmark: its folder -> {"all": items} or {"train": items[, "val": items], "test": items}


def _lines(path: Path) -> list[str]:
    path.stat()  # FileNotFoundError says what is missing
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def _matlab(path: Path) -> dict:
    from scipy.io import loadmat

    path.stat()  # scipy would try another ending before it says that the file is missing
    if not path.is_file():
        raise UserError(f"{path}: no file, but a folder, a pipe or a device.")
    try:
        return loadmat(path, squeeze_me=True)
    except Exception as e:  # scipy raises what its reader stumbles over
        raise UserError(f"{path}: no whole MATLAB file ({e}). Was it downloaded completely?") from e


# The names that CLIP's authors made for ImageNet's classes (openai/CLIP, notebooks, MIT licence), which all papers use.
IMAGENET_NAMES = Path(__file__).parent.parent / "assets" / "imagenet_classnames.txt"


def wnid_names(home: Path | None = None) -> dict[str, str]:
    """{WNID: name} from `classnames.txt` of a folder, or from CLIP's own list that vlmx ships."""
    own = home and home / "classnames.txt"
    return imagenet_names(_lines(own if own and own.exists() else IMAGENET_NAMES))


def _wnid_items(home: Path, folder: str, prefix: str = "") -> list[Item]:
    files, names = listing(home / folder), wnid_names(home)
    odd = sorted(set(files) - set(names))
    if odd:
        raise UserError(f"{home / folder}: folders that are no WNID of classnames.txt: {', '.join(odd[:5])}.")
    return folder_items(files, names.__getitem__, prefix)


def _flowers(home: Path):
    labels = _matlab(home / "imagelabels.mat")["labels"].tolist()
    (home / "cat_to_name.json").stat()
    names = read_json(home / "cat_to_name.json", 'Expected {"1": "pink primrose", ...}.')
    return {"all": flowers_items(labels, names)}


def _pets(home: Path):
    return {part: pets_items(_lines(home / "annotations" / file))
            for part, file in {"train": "trainval.txt", "test": "test.txt"}.items()}  # fmt: skip


def _cars(home: Path):
    names = [str(n) for n in _matlab(home / "devkit/cars_meta.mat")["class_names"]]
    files = {"train": "devkit/cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}

    def rows(part):
        return ((int(row["class"]), str(row["fname"])) for row in _matlab(home / files[part])["annotations"].flat)

    return {part: cars_items(names, rows(part), f"cars_{part}") for part in files}


def _sun(home: Path):
    classes = _lines(home / "ClassName.txt")
    files = {"train": "Training_01.txt", "test": "Testing_01.txt"}
    return {part: sun_items(classes, _lines(home / file)) for part, file in files.items()}


def _ucf(home: Path):
    lists = home / "ucfTrainTestlist"
    classes = _lines(lists / "classInd.txt")
    return {part: ucf_items(classes, _lines(lists / f"{part}list01.txt")) for part in ("train", "test")}


def _fgvc(home: Path):
    variants = _lines(home / "variants.txt")
    return {
        part: fgvc_items(variants, _lines(home / f"images_variant_{part}.txt")) for part in ("train", "val", "test")
    }


def caltech_items(files: dict[str, list[str]]) -> list[Item]:
    """Items of Caltech101's folders (folder -> its files), without those that CoOp leaves out, four renamed."""
    kept = {f: p for f, p in files.items() if f not in CALTECH_IGNORED}
    return folder_items(kept, lambda f: CALTECH.get(f, f))


READERS = {
    "imagenet": lambda home: {"train": _wnid_items(home, "images/train", "train/"),
                              "test": _wnid_items(home, "images/val", "val/")},
    "caltech101": lambda home: {"all": caltech_items(listing(home / "101_ObjectCategories"))},
    "oxford_pets": _pets,
    "stanford_cars": _cars,
    "oxford_flowers": _flowers,
    "food101": lambda home: {"all": folder_items(listing(home / "images"))},
    "fgvc_aircraft": _fgvc,
    "sun397": _sun,
    "dtd": lambda home: {"all": folder_items(listing(home / "images"))},
    "eurosat": lambda home: {"all": folder_items(listing(home / "2750"), lambda f: EUROSAT.get(f, f))},
    "ucf101": _ucf,
    "imagenet_v2": lambda home: {"test": imagenet_v2_items(
        listing(home / "imagenetv2-matched-frequency-format-val"), list(wnid_names(home).values()))},
    "imagenet_sketch": lambda home: {"test": _wnid_items(home, "images")},
    "imagenet_a": lambda home: {"test": _wnid_items(home, "imagenet-a")},
    "imagenet_r": lambda home: {"test": _wnid_items(home, "imagenet-r")},
}  # fmt: skip
