"""The published benchmarks: CoOp's layout, official lists, made splits, and what is said when files are missing."""

import json
import pickle
import random
import re
import shutil

import numpy as np
import pytest
from golden_cases import beside, load
from PIL import Image
from scipy.io import savemat

from vlmx.data import annotations, classification, task, tfds
from vlmx.errors import UserError

BENCHMARKS = classification.BENCHMARKS


# ---- against the official code


def listing(text):
    """`im_00.jpg .. im_04.jpg` -> the five names."""
    first, last = (re.search(r"(.*?)(\d+)(\.\w+)$", name).groups() for name in text.split(" .. "))
    return [f"{first[0]}{i:0{len(last[1])}d}{first[2]}" for i in range(int(first[1]), int(last[1]) + 1)]


def lists(items):
    return [list(i) for i in items]


@pytest.mark.golden("classnames_and_splits_rules*.json")
def test_golden_items_from_official_lists(golden):
    want = load(golden)
    pets, cars, sun, ucf = (want[n] for n in ("OxfordPets", "StanfordCars", "SUN397", "UCF101"))
    fgvc, net, net_a = (want[n] for n in ("FGVCAircraft", "ImageNet", "ImageNetA_and_R"))
    names = annotations.imagenet_names(net["classnames.txt"])
    assert lists(annotations.pets_items(pets["annotation_lines"])) == pets["items"]
    got = annotations.cars_items(cars["meta_class_names"], cars["annotations_class_1based_fname"], cars["image_dir"])
    assert lists(got) == cars["items"]
    assert lists(annotations.sun_items(sun["ClassName.txt"], sun["partition_lines"])) == sun["items"]
    assert lists(annotations.ucf_items(ucf["classInd.txt"], ucf["list_lines"])) == ucf["items"]
    assert lists(annotations.fgvc_items(fgvc["variants.txt"], fgvc["list_lines"])) == fgvc["items"]
    files = {f: [p for p in ps if not p.startswith(".")] for f, ps in net["folders_and_files"].items()}
    assert lists(annotations.folder_items(files, names.get, f"{net['split_dir']}/")) == net["items"]
    files = {path.split("/")[0]: [path.split("/")[1]] for path, _, _ in net_a["items"]}
    assert lists(annotations.folder_items(files, names.get)) == net_a["items"]
    v2 = want["ImageNetV2"]["sample"]
    files = {path.split("/")[0]: [path.split("/")[1]] for path, _, _ in reversed(v2)}
    assert lists(annotations.imagenet_v2_items(files, [f"name {i}" for i in range(1000)])) == v2


@pytest.mark.golden("classnames_and_splits_rules*.json")
def test_golden_made_splits(golden):
    want = load(golden)
    by_folder = want["split_by_folder(Caltech101,DTD,Food101,EuroSAT)"]
    files = {folder: listing(text) for folder, text in by_folder["listing"].items()}
    for case in by_folder["cases"]:
        got = annotations.split_all(annotations.caltech_items(files), random.Random(case["seed"]))
        assert {p: lists(items) for p, items in got.items()} == {p: case[p] for p in ("train", "val", "test")}
    trainval = want["split_trainval(OxfordPets,StanfordCars,SUN397,UCF101)"]
    items = [(f"x{i}.jpg", label, "") for i, label in enumerate(trainval["labels_of_x0.."])]
    for case in trainval["cases"]:
        train, val = annotations.split_train(items, random.Random(case["seed"]))
        assert [i[0] for i in train] == case["train"] and [i[0] for i in val] == case["val"]


TITLES = {
    "imagenet": "ImageNet", "caltech101": "Caltech101", "oxford_pets": "OxfordPets", "stanford_cars": "StanfordCars",
    "oxford_flowers": "OxfordFlowers", "food101": "Food101", "fgvc_aircraft": "FGVCAircraft", "sun397": "SUN397",
    "dtd": "DescribableTextures", "eurosat": "EuroSAT", "ucf101": "UCF101", "imagenet_v2": "ImageNetV2",
    "imagenet_sketch": "ImageNetSketch", "imagenet_a": "ImageNetA", "imagenet_r": "ImageNetR",
}  # fmt: skip


@pytest.mark.golden("classnames_and_splits_rules*.json")
def test_golden_renamings_and_templates(golden):
    want = load(golden)
    assert {c: annotations.EUROSAT.get(c, c) for c in want["renamings"]["EuroSAT"]} == want["renamings"]["EuroSAT"]
    assert annotations.CALTECH == want["renamings"]["Caltech101"]
    assert list(annotations.CALTECH_IGNORED) == want["renamings"]["Caltech101_ignored_folders"]
    templates = want["templates"]
    assert {TITLES[n]: b.template for n, b in BENCHMARKS.items()} == templates["CoOp_zero_shot"]
    assert list(classification.IMAGENET_7) == templates["imagenet_select_7"]
    real = load(beside(golden, "real_splits.json"))["datasets"]
    for name, want_prompt in ((n, templates["prompts"][t]) for n, t in TITLES.items() if t in templates["prompts"]):
        prompts = {BENCHMARKS[name].template.format(c.replace("_", " ")) for c in real[name]["classnames"]}
        assert want_prompt in prompts, name


@pytest.mark.golden("real_splits*.json")
def test_golden_table_of_benchmarks(golden):
    for name, want in load(golden)["datasets"].items():
        bench = BENCHMARKS[name]
        assert bench.folder == want["folder"]
        assert bench.images == want.get("image_folder", bench.images)
        if "split_file" in want:
            assert want["split_file"] == f"split_zhou_{bench.split}.json"
        if "counts" in want:
            assert bench.counts == (want["num_classes"], *(want["counts"][p] for p in ("train", "val", "test")))
        assert bench.counts[0] == len(want["classnames"])


@pytest.mark.golden("real_splits*.json")
def test_golden_class_names(golden):
    """Every list of class names that vlmx can make without the data."""
    want = load(golden)["datasets"]
    names = annotations.wnid_names()
    assert list(names) == want["imagenet"]["wnids"] and list(names.values()) == want["imagenet"]["classnames"]
    for name in set(tfds.BUILDERS) & set(want) - {"imagenet"}:
        labels = tfds.labels_of(name, tfds_classes(name))
        assert [c for _, c in sorted(labels.values())] == want[name]["classnames"], name


def tfds_classes(name):
    """The class names of a builder, which tensorflow-datasets knows without the data."""
    import tensorflow_datasets

    builder = tfds.BUILDERS[name]
    return (
        tensorflow_datasets.builder(f"{builder.name}:{builder.version}", data_dir="/nowhere")
        .info.features["label"]
        .names
    )


@pytest.mark.golden("label_maps*.json")
def test_golden_label_maps(golden):
    want = load(golden)
    for name in set(tfds.BUILDERS) & set(want["tfds"]):
        classes = tfds_classes(name)
        labels = tfds.labels_of(name, classes)
        expected = want["tfds"][name]["tfds_to_coop_label"]
        got = [labels[c][0] if c in labels else None for c in classes]
        assert got == (list(range(len(classes))) if expected == "identity" else expected), name
    for name in ("imagenet_a", "imagenet_r"):
        wnids = want[name]["wnids_sorted"]
        classes = tfds_classes(name)
        labels = tfds.labels_of(name, classes, set(wnids))
        assert [labels[w] for w in wnids] == list(enumerate(want[name]["classnames"]))
        assert [classes.index(w) for w in wnids] == want[name]["imagenet_1k_label"]


# ---- made-up data in the layout of every benchmark


def image(path, colour=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (colour, 0, 0)).save(path, "JPEG")


CLASSES = {  # folders on disk -> class names in label order
    "caltech101": {"Faces": "face", "anchor": "anchor"},
    "food101": {"apple_pie": "apple_pie", "waffles": "waffles"},
    "dtd": {"banded": "banded", "dotted": "dotted"},
    "eurosat": {"Forest": "Forest", "SeaLake": "Sea or Lake"},
}
WNIDS = {"n01440764": "tench", "n01443537": "goldfish"}


def official(name, root):
    """The images and official lists of a small `name` under `root`: two classes of ten images each."""
    bench = BENCHMARKS[name]
    home, images = root / bench.folder, root / bench.folder / bench.images
    ten = range(10)
    if name in CLASSES:
        for folder in CLASSES[name]:
            for i in ten:
                image(images / folder / f"im_{i}.jpg")
            lines(images / folder / ".DS_Store", ["hidden, so no image"])
        image(images / ".cache/x.jpg")
        image(images / "@eaDir/x.jpg")
        lines(images / next(iter(CLASSES[name])) / "Thumbs.db", ["of Windows"])
        if name == "caltech101":
            image(images / "BACKGROUND_Google/x.jpg")
    elif name == "oxford_pets":
        rows = [f"{c}_{i} {1 + k} 1 1" for k, c in enumerate(("Abyssinian", "american_bulldog")) for i in ten]
        lines(home / "annotations/trainval.txt", rows[::2])
        lines(home / "annotations/test.txt", rows[1::2])
        for row in rows:
            image(images / f"{row.split()[0]}.jpg")
    elif name == "stanford_cars":
        (home / "devkit").mkdir(parents=True)
        savemat(
            home / "devkit/cars_meta.mat", {"class_names": np.array(["Audi S5 Coupe 2012", "AM Hummer 2000"], object)}
        )
        rows = np.array([(1 + i % 2, f"{i:05d}.jpg") for i in ten], dtype=[("class", object), ("fname", object)])
        savemat(home / "devkit/cars_train_annos.mat", {"annotations": rows})
        savemat(home / "cars_test_annos_withlabels.mat", {"annotations": rows})
        for part in ("cars_train", "cars_test"):
            for i in ten:
                image(home / part / f"{i:05d}.jpg")
    elif name == "oxford_flowers":
        for i in range(1, 21):
            image(images / f"image_{i:05d}.jpg")
        savemat(home / "imagelabels.mat", {"labels": np.array([[2] * 10 + [1] * 10], np.uint8)})
        (home / "cat_to_name.json").write_text(json.dumps({"1": "pink primrose", "2": "sweet pea"}))
    elif name == "fgvc_aircraft":
        lines(home / "variants.txt", ["707-320", "Model B200"])
        for k, part in enumerate(("train", "val", "test")):
            lines(home / f"images_variant_{part}.txt", [f"{k}00{i} {('707-320', 'Model B200')[i % 2]}" for i in ten])
            for i in ten:
                image(images / f"{k}00{i}.jpg")
    elif name == "sun397":
        lines(home / "ClassName.txt", ["/a/abbey", "/c/church/outdoor"])
        for k, file in enumerate(("Training_01.txt", "Testing_01.txt")):
            rows = [f"/{c}/sun_{k}{i}.jpg" for c in ("c/church/outdoor", "a/abbey") for i in ten]
            lines(home / file, rows)
            for row in rows:
                image(images / row[1:])
    elif name == "ucf101":
        lines(home / "ucfTrainTestlist/classInd.txt", ["1 Archery", "2 YoYo"])
        rows = [f"{c}/v_{c}_g0{i}.avi" for c in ("Archery", "YoYo") for i in ten]
        lines(home / "ucfTrainTestlist/trainlist01.txt", [f"{r} {1 + ('YoYo' in r)}" for r in rows[::2]])
        lines(home / "ucfTrainTestlist/testlist01.txt", rows[1::2])
        for row in rows:
            image(images / row.replace("YoYo/", "Yo_Yo/").replace(".avi", ".jpg"))
    elif name == "imagenet_v2":
        for i in range(1000):
            (images / str(i)).mkdir(parents=True)
        for i in (0, 2, 10):
            image(images / str(i) / f"{i}a.jpeg")
    else:
        for part in ("train", "val") if name == "imagenet" else ("",):
            for k, wnid in enumerate(WNIDS):
                for i in range(3):
                    image(images / part / wnid / f"{wnid}_{i}.JPEG", colour=k)
    return home


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{r}\n" for r in rows))


EXPECTED = {  # class names, sizes of train, val, test
    **{name: (tuple(names.values()), (10, 4, 6)) for name, names in CLASSES.items()},
    "oxford_pets": (("abyssinian", "american_bulldog"), (8, 2, 10)),
    "stanford_cars": (("2012 Audi S5 Coupe", "2000 AM Hummer"), (8, 2, 10)),
    "oxford_flowers": (("pink primrose", "sweet pea"), (10, 4, 6)),
    "fgvc_aircraft": (("707-320", "Model B200"), (10, 10, 10)),
    "sun397": (("abbey", "outdoor church"), (16, 4, 20)),
    "ucf101": (("Archery", "Yo_Yo"), (8, 2, 10)),
    "imagenet": (("tench", "goldfish"), (6, 0, 6)),
    "imagenet_sketch": (("tench", "goldfish"), (0, 0, 6)),
    "imagenet_a": (("tench", "goldfish"), (0, 0, 6)),
    "imagenet_r": (("tench", "goldfish"), (0, 0, 6)),
    "imagenet_v2": (None, (0, 0, 3)),
}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_layout_of_every_benchmark(name, tmp_path):
    home = official(name, tmp_path / "data")
    before = sorted(home.rglob("*"))
    got = task.load({"name": name, "root": str(tmp_path / "data")}, tmp_path / "work")
    names, sizes = EXPECTED[name]
    if names:
        assert got.classnames == names
    assert got.name == name and got.templates == (BENCHMARKS[name].template,) and not got.upright
    assert tuple(len(s.labels) for s in (got.train, got.val, got.test)) == sizes
    for part in (got.train, got.val, got.test):
        assert len(part.images) == len(part.names) == len(part.labels) and part.labels.dtype == np.int32
        assert all(Image.open(path).size == (4, 4) for path in part.images)
    assert any(n.startswith(f"not the published {name}: {BENCHMARKS[name].counts[0]} classes") for n in got.notes)
    assert sorted(home.rglob("*")) == before, "nothing is written among the data"
    pickle.dumps(got)

    if BENCHMARKS[name].split:  # the made split is in CoOp's format: it is read when put among the data
        file = tmp_path / "work" / f"split_{name}.json"
        assert any(str(file) in n and "not the published one" in n for n in got.notes)
        again = task.load({"name": name, "root": str(tmp_path / "data")}, tmp_path / "work")
        assert list(again.train.names) == list(got.train.names), "the same split for the same data"
        file.rename(home / f"split_zhou_{BENCHMARKS[name].split}.json")
        read = task.load({"name": name, "root": str(tmp_path / "data")}, tmp_path / "work2")
        assert list(read.train.images) == list(got.train.images) and read.val.labels.tolist() == got.val.labels.tolist()
        assert read.classnames == got.classnames and not (tmp_path / "work2").exists()
        assert not any("was made" in n for n in read.notes)


def test_labels_of_image_variants(tmp_path):
    official("imagenet_v2", tmp_path)
    got = task.load({"name": "imagenet_v2", "root": tmp_path}, tmp_path)
    assert (
        got.test.labels.tolist() == [0, 2, 10]
        and len(got.classnames) == 1000
        and got.classnames[2] == "great white shark"
    )
    official("imagenet_a", tmp_path)
    lines(tmp_path / "imagenet-adversarial/classnames.txt", ["n01443537 my goldfish", "n01440764 my tench"])
    (tmp_path / "imagenet-adversarial/imagenet-a/README.txt").write_text("not a class")
    got = task.load({"name": "imagenet_a", "root": tmp_path}, tmp_path)
    assert got.classnames == ("my tench", "my goldfish"), "the folder's own classnames.txt; labels by sorted WNID"
    image(tmp_path / "imagenet-adversarial/imagenet-a/n999/x.jpg")
    with pytest.raises(UserError, match="no WNID of classnames.txt: n999"):
        task.load({"name": "imagenet_a", "root": tmp_path}, tmp_path)


def test_imagenet_does_not_use_the_test_images_as_val(tmp_path):
    official("imagenet", tmp_path)
    got = task.load({"name": "imagenet", "root": tmp_path}, tmp_path)
    assert classification.NO_VAL in got.notes and classification.UNSORTED in got.notes
    image(tmp_path / "imagenet/images/val/n01484850/x.JPEG")
    with pytest.raises(UserError, match="in test, val/n01484850/x.JPEG has label 2 .* The same classes"):
        task.load({"name": "imagenet", "root": tmp_path}, tmp_path)


# ---- what it says


def test_missing_folder_lists_the_whole_tree(tmp_path):
    with pytest.raises(UserError) as e:
        task.load({"name": "oxford_pets", "root": tmp_path}, tmp_path)
    assert str(e.value).splitlines() == [
        f"oxford_pets: {tmp_path}/oxford_pets/images is not there. Expected under data.root = {tmp_path}:",
        "  oxford_pets/images/*.jpg",
        "  oxford_pets/split_zhou_OxfordPets.json   (the published split: CoOp's DATASETS.md;",
        "    also in github.com/linzhiqiu/cross_modal_adaptation, splits/, but for food101 and sun397)",
        "Without the split file a split is made, which is not the published one; this needs",
        "  oxford_pets/annotations/trainval.txt",
        "  oxford_pets/annotations/test.txt",
        "Source: images.tar.gz and annotations.tar.gz from www.robots.ox.ac.uk/~vgg/data/pets.",
        "Or let tensorflow-datasets prepare it: --config.data.name=tfds:oxford_pets says how.",
    ]
    with pytest.raises(UserError, match="the published one.\nSource: food-101.tar.gz"):
        task.load({"name": "food101", "root": tmp_path}, tmp_path)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_missing_folder_of_every_benchmark(name, tmp_path):
    with pytest.raises(UserError, match=f"{name}: .* is not there(.|\n)*{BENCHMARKS[name].folder}/(.|\n)*Source: "):
        task.load({"name": name, "root": tmp_path}, tmp_path)


@pytest.mark.parametrize("name", [n for n in BENCHMARKS if BENCHMARKS[n].fallback or n == "fgvc_aircraft"])
def test_missing_list_is_named(name, tmp_path):
    home = official(name, tmp_path)
    file = (BENCHMARKS[name].fallback or BENCHMARKS[name].tree)[-1]
    (home / file).unlink()
    with pytest.raises(UserError, match=f"{name}: .*{file} is not there"):
        task.load({"name": name, "root": tmp_path}, tmp_path)


def test_missing_images_are_counted_and_named(tmp_path):
    home = official("dtd", tmp_path)
    task.load({"name": "dtd", "root": tmp_path}, tmp_path / "work")
    (tmp_path / "work/split_dtd.json").rename(home / "split_zhou_DescribableTextures.json")
    for i in range(7):
        (home / f"images/banded/im_{i}.jpg").unlink()
    with pytest.raises(UserError) as e:
        task.load({"name": "dtd", "root": tmp_path}, tmp_path)
    assert "dtd: 7 of 20 image files are not under" in str(e.value) and str(e.value).count("  banded/im_") == 5
    assert "dtd-r1.0.1.tar.gz" in str(e.value)


def test_split_file_may_be_named_and_may_be_wrong(tmp_path):
    home = official("eurosat", tmp_path)
    items = {"train": [["Forest/im_0.jpg", 0, "Forest"], ["SeaLake/im_0.jpg", 1, "Sea or Lake"]], "val": [], "test": []}
    (home / "mine.json").write_text(json.dumps(items))
    config = {"name": "eurosat", "root": tmp_path, "split_file": "mine.json"}
    assert list(task.load(config, tmp_path).train.names) == ["Forest/im_0.jpg", "SeaLake/im_0.jpg"]
    (home / "mine.json").write_text("<html>")
    with pytest.raises(UserError, match="mine.json is no split file: .*downloaded as a web page"):
        task.load(config, tmp_path)
    (home / "mine.json").write_text(json.dumps(items | {"test": [["SeaLake/im_1.jpg", 5, "sea"]]}))
    with pytest.raises(UserError, match="in test, SeaLake/im_1.jpg has label 5"):
        task.load(config, tmp_path)
    items["train"].pop(0)
    (home / "mine.json").write_text(json.dumps(items))
    with pytest.raises(UserError, match="must be 0, 1, 2, ...; missing: .0."):
        task.load(config, tmp_path)
    with pytest.raises(UserError, match="other.json is not there"):
        task.load(config | {"split_file": "other.json"}, tmp_path)
    official("fgvc_aircraft", tmp_path)
    with pytest.raises(UserError, match="fgvc_aircraft has no split file"):
        task.load(config | {"name": "fgvc_aircraft"}, tmp_path)


def test_an_image_twice_in_a_split_file(tmp_path):
    home = official("eurosat", tmp_path)
    (home / "2750/Forest/link.jpg").symlink_to("im_0.jpg")
    items = {"train": [["Forest/im_0.jpg", 0, "Forest"], ["SeaLake/im_0.jpg", 1, "Sea or Lake"]], "val": []}
    items["test"] = [["Forest/link.jpg", 0, "Forest"]]
    (home / "split_zhou_EuroSAT.json").write_text(json.dumps(items))
    config = {"name": "eurosat", "root": tmp_path}
    got = task.load(config, tmp_path)
    assert len(got.train.labels) == 2 and len(got.test.labels) == 1, "the official file stays as published"
    assert any("lists 1 images more than once" in n and "'Forest' in train and 'Forest' in" in n for n in got.notes)
    named = config | {"split_file": "split_zhou_EuroSAT.json"}
    with pytest.raises(UserError, match=r"test\[0\]: Forest/link.jpg .the same file as Forest/im_0.jpg.* train\[0\]"):
        task.load(named, tmp_path)
    items |= {"train": [*items["train"], ["./Forest/im_0.jpg", 0, "Forest"]], "test": []}
    (home / "split_zhou_EuroSAT.json").write_text(json.dumps(items))
    got = task.load(named, tmp_path)
    assert list(got.train.names) == ["Forest/im_0.jpg", "SeaLake/im_0.jpg"]
    assert any("lists 1 images more than once; each counts once" in n for n in got.notes)


def test_missing_images_are_left_out_and_counted(tmp_path):
    home = official("dtd", tmp_path)
    task.load({"name": "dtd", "root": tmp_path}, tmp_path / "work")
    (tmp_path / "work/split_dtd.json").rename(home / "split_zhou_DescribableTextures.json")
    (home / "images/banded/im_3.jpg").unlink()
    got = task.load({"name": "dtd", "root": tmp_path, "bad_images": "skip"}, tmp_path)
    assert sum(len(s.labels) for s in (got.train, got.val, got.test)) == 19
    assert any("left out: 1 of 20 image files are not under" in n and "banded/im_3.jpg" in n for n in got.notes)
    last = got.classnames[-1]
    shutil.rmtree(home / f"images/{last}")
    with pytest.raises(UserError, match=f"bad_images=skip would leave no training image of the class '{last}', for"):
        task.load({"name": "dtd", "root": tmp_path, "bad_images": "skip"}, tmp_path)


@pytest.mark.parametrize("label", [10**12, -1, True, 0.0, "0", None])
def test_labels_of_a_split_file_are_numbers_from_0_on(tmp_path, label):
    home = official("eurosat", tmp_path)
    items = {"train": [["Forest/im_0.jpg", label, "Forest"], ["SeaLake/im_0.jpg", 1, "Sea"]], "val": [], "test": []}
    (home / "split_zhou_EuroSAT.json").write_text(json.dumps(items))
    with pytest.raises(UserError, match="labels of the training images must be|is no split file"):
        task.load({"name": "eurosat", "root": tmp_path}, tmp_path)


@pytest.mark.parametrize(
    ("name", "file", "content"),
    [
        ("oxford_flowers", "imagelabels.mat", b"MATLAB 5.0 but cut"),
        ("oxford_flowers", "cat_to_name.json", b'["pink primrose"]'),
        ("oxford_flowers", "cat_to_name.json", b'{"1": "pink'),
        ("oxford_flowers", "cat_to_name.json", b'{"1": 5, "2": "sweet pea"}'),
        ("stanford_cars", "devkit/cars_meta.mat", b""),
        ("oxford_pets", "annotations/trainval.txt", b"\xff\xfe"),
        ("ucf101", "ucfTrainTestlist/classInd.txt", b"one 1"),
    ],
)
def test_damaged_official_lists(tmp_path, name, file, content):
    home = official(name, tmp_path)
    (home / file).write_bytes(content)
    with pytest.raises(UserError, match=f"{re.escape(str(home))}|a class is called 5; expected a text"):
        task.load({"name": name, "root": tmp_path}, tmp_path)


def test_broken_official_list(tmp_path):
    home = official("ucf101", tmp_path)
    lines(home / "ucfTrainTestlist/trainlist01.txt", ["Juggling/v_1.avi 9"])
    with pytest.raises(UserError, match="ucf101: a line of the official lists under .*'Juggling'"):
        task.load({"name": "ucf101", "root": tmp_path}, tmp_path)


def test_root_may_be_the_benchmarks_own_folder(tmp_path):
    home = official("eurosat", tmp_path)
    assert len(task.load({"name": "eurosat", "root": home}, tmp_path / "work").train.labels) == 10


def test_changed_data_do_not_change_a_run(tmp_path):
    home = official("eurosat", tmp_path)
    config = {"name": "eurosat", "root": tmp_path}
    task.load(config, tmp_path / "work")
    image(home / "2750/Forest/im_new.jpg")
    with pytest.raises(UserError, match="split_eurosat.json was written by an earlier run on other data"):
        task.load(config, tmp_path / "work")


def test_unknown_names(tmp_path):
    with pytest.raises(
        UserError, match="'oxford_pet'.* Did you mean 'oxford_pets'.*caltech101, .*folder, .*tfds:eurosat"
    ):
        task.load({"name": "oxford_pet", "root": tmp_path}, tmp_path)
    with pytest.raises(UserError, match="data.root: eurosat needs the folder"):
        task.load({"name": "eurosat"}, tmp_path)
    assert task.load({"name": "digits"}, tmp_path).name == "digits"


def test_templates_of_the_config(tmp_path):
    config = {"name": "digits", "templates": "the number {}"}
    assert task.load(config, tmp_path).templates == ("the number {}",)
    assert task.load(config | {"templates": ["{}", "a {}"]}, tmp_path).templates == ("{}", "a {}")
    with pytest.raises(UserError, match="data.templates: expected .* one {} .*; got 'number'"):
        task.load(config | {"templates": "number"}, tmp_path)
