"""What tensorflow-datasets has prepared, read without tensorflow: small data sets are prepared here."""

import io
import json
import pickle
import re
import sys

import numpy as np
import pytest
from PIL import Image

from vlmx.data import task, tfds
from vlmx.errors import UserError


def png(i):
    file = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), i, np.uint8)).save(file, "PNG")
    return file.getvalue()


def prepare(root, name, classes, parts, more):
    """Prepare a builder's data set: parts = {"train": [(class, {field: text}), ...]}; image i of all is png(i)."""
    import tensorflow_datasets as lib

    builder_name, _, config = tfds.BUILDERS[name].name.partition("/")
    version = tfds.BUILDERS[name].version

    class Small(lib.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = lib.core.Version(version)
        BUILDER_CONFIGS = [lib.core.BuilderConfig(name=config, version=version, description="")] if config else []

        def _info(self):
            fields = {f: lib.features.Text() for f in more}
            features = {"image": lib.features.Image(), "label": lib.features.ClassLabel(names=classes), **fields}
            return lib.core.DatasetInfo(builder=self, features=lib.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            count = iter(range(1000))
            return {p: self._some(rows, count) for p, rows in parts.items()}

        def _some(self, rows, count):
            for (label, fields), i in zip(rows, count, strict=False):
                yield i, {"image": io.BytesIO(png(i)), "label": label, **fields}

        def _generate_examples(self):
            yield from ()

    Small.name = builder_name
    Small(data_dir=root, file_format="array_record").download_and_prepare()


def eurosat(root):
    rows = [(c, {"filename": f"{c}_{i}.jpg"}) for c in ("Forest", "SeaLake") for i in range(10)]
    prepare(root, "eurosat", ["Forest", "SeaLake"], {"train": rows}, ["filename"])
    return {f"{c}/{f['filename']}": i for i, (c, f) in enumerate(rows)}


def test_builders_have_the_fields_that_items_are_found_by():
    import tensorflow_datasets as lib

    for builder in tfds.BUILDERS.values():
        fields = set(lib.builder(f"{builder.name}:{builder.version}", data_dir="/nowhere").info.features)
        assert set(re.findall(r"{(.*?)}", builder.key)) <= fields | {"part"} and {"image", "label"} <= fields


def test_own_splits_in_coops_labels(tmp_path):
    records = eurosat(tmp_path / "data")
    got = task.load({"name": "tfds:eurosat", "root": tmp_path / "data"}, tmp_path / "work")
    assert "tensorflow" not in sys.modules
    assert got.name == "tfds:eurosat" and got.classnames == ("Forest", "Sea or Lake")
    assert got.templates == ("a centered satellite photo of {}.",)
    assert [len(s.labels) for s in (got.train, got.val, got.test)] == [10, 4, 6]
    assert any("was made (seed 0)" in n and "split_eurosat.json" in n for n in got.notes)
    expected = {k.lower().removesuffix(".jpg"): png(i) for k, i in records.items()}
    for part in pickle.loads(pickle.dumps(got))[3:6]:
        assert [expected[n] for n in part.names] == list(part.images), "the very bytes that were prepared"
        assert ["sealake" in n for n in part.names] == (part.labels == 1).tolist()
    again = task.load({"name": "tfds:eurosat", "root": tmp_path / "data"}, tmp_path / "work")
    assert list(again.train.names) == list(got.train.names)
    whats = lambda data: [task.identity(split.images, i) for split in data[3:6] for i in range(len(split.labels))]
    assert whats(again) == whats(got) and len(set(whats(got))) == 20  # known without reading them
    file = next((tmp_path / "data").rglob("*array_record*"))
    file.touch()
    assert not set(whats(got)) & set(
        whats(task.load({"name": "tfds:eurosat", "root": tmp_path / "data"}, tmp_path / "w"))
    )


def test_coops_items_by_file_name(tmp_path):
    records = eurosat(tmp_path)
    items = {
        "train": [["SeaLake/SeaLake_3.jpg", 1, "Sea or Lake"], ["Forest/Forest_9.jpg", 0, "Forest"]],
        "val": [["Forest/Forest_0.jpg", 0, "Forest"]],
        "test": [["SeaLake/SeaLake_1.jpg", 1, "Sea or Lake"]],
    }
    (tmp_path / "split_zhou_EuroSAT.json").write_text(json.dumps(items))
    got = task.load({"name": "tfds:eurosat", "root": tmp_path}, tmp_path / "work")
    for part in ("train", "val", "test"):
        split = getattr(got, part)
        assert list(split.names) == [i[0] for i in items[part]] and split.labels.tolist() == [i[1] for i in items[part]]
        assert list(split.images) == [png(records[i[0]]) for i in items[part]]
    assert not (tmp_path / "work").exists()
    items["test"].append(["Forest/Forest_77.jpg", 0, "Forest"])
    (tmp_path / "mine.json").write_text(json.dumps(items))
    with pytest.raises(
        UserError, match="1 images of .*mine.json are not among the records of .*forest_77.*eurosat/rgb:2.0.0"
    ):
        task.load({"name": "tfds:eurosat", "root": tmp_path, "split_file": "mine.json"}, tmp_path)
    config = {"name": "tfds:eurosat", "root": tmp_path, "split_file": "mine.json", "bad_images": "skip"}
    got = task.load(config, tmp_path)
    assert list(got.test.names) == ["SeaLake/SeaLake_1.jpg"] and list(got.test.images) == [
        png(records[got.test.names[0]])
    ]
    assert any("left out: 1 images of" in note and "Forest/Forest_77.jpg" in note for note in got.notes)
    items["train"].append(["River/River_77.jpg", 2, "River"])
    (tmp_path / "mine.json").write_text(json.dumps(items))
    with pytest.raises(UserError, match="bad_images=skip would leave no training image of the class 'River', for"):
        task.load(config, tmp_path)
    with pytest.raises(UserError, match="none.json is not there"):
        task.load(config | {"split_file": "none.json"}, tmp_path)


def test_labels_follow_coops_spelling_and_order(tmp_path):
    """Caltech101: file names repeat between classes, folders are lower-cased, one folder is not CoOp's."""
    classes = ["airplanes", "anchor", "background_google", "faces"]
    rows = [(c, {"image/file_name": f"image_{i:04d}.jpg"}) for c in classes for i in range(10)]
    prepare(tmp_path, "caltech101", classes, {"train": rows[::2], "test": rows[1::2]}, ["image/file_name"])
    got = task.load({"name": "tfds:caltech101", "root": tmp_path}, tmp_path / "work")
    assert got.classnames == ("face", "airplane", "anchor")
    assert [len(s.labels) for s in (got.train, got.val, got.test)] == [12, 3, 15]
    assert all(n.split("/")[0] == ("faces", "airplanes", "anchor")[c] for n, c in zip(got.test.names, got.test.labels))
    items = [["Faces/image_0003.jpg", 0, "face"], ["airplanes/image_0003.jpg", 1, "airplane"]]
    (tmp_path / "split_zhou_Caltech101.json").write_text(json.dumps({"train": items, "val": [], "test": []}))
    got = task.load({"name": "tfds:caltech101", "root": tmp_path}, tmp_path / "work")
    order = [(c, i) for part in (rows[::2], rows[1::2]) for c, i in part]
    where = [order.index((c, {"image/file_name": "image_0003.jpg"})) for c in ("faces", "airplanes")]
    assert list(got.train.images) == [png(i) for i in where]


def test_the_same_id_in_train_and_test(tmp_path):
    rows = [("AM Hummer 2000", {"id": f"{i:05d}"}) for i in range(5)]
    prepare(tmp_path, "stanford_cars", ["AM Hummer 2000"], {"train": rows, "test": rows}, ["id"])
    items = {
        p: [[f"cars_{d}/00002.jpg", 0, "2000 AM Hummer"]]
        for p, d in (("train", "train"), ("val", "train"), ("test", "test"))
    }
    (tmp_path / "stanford_cars").mkdir()
    (tmp_path / "stanford_cars/split_zhou_StanfordCars.json").write_text(json.dumps(items))
    got = task.load({"name": "tfds:stanford_cars", "root": tmp_path}, tmp_path)
    images = [{png(2): "one", png(7): "other"}[split.images[0]] for split in (got.train, got.test)]
    assert sorted(images) == ["one", "other"], "the record of train and that of test"


def test_imagenet_a_numbers_the_wnids_that_occur(tmp_path):
    wnids = ["n01440764", "n01443537", "n01484850"]
    rows = [(w, {"file_name": f"{i}_{w}.jpg"}) for i, w in enumerate(("n01484850", "n01440764", "n01484850"))]
    prepare(tmp_path, "imagenet_a", wnids, {"test": rows}, ["file_name"])
    got = task.load({"name": "tfds:imagenet_a", "root": tmp_path}, tmp_path)
    assert got.classnames == ("tench", "great white shark") and got.test.labels.tolist() == [1, 0, 1]
    assert any("not the published imagenet_a: 200 classes, - / - / 7500 images expected" in n for n in got.notes)


def test_imagenet_val_is_the_test_split(tmp_path):
    wnids = ["n01440764", "n01443537"]
    parts = {p: [(w, {"file_name": f"{p}_{w}.JPEG"}) for w in wnids] for p in ("train", "validation", "test")}
    prepare(tmp_path, "imagenet", wnids, parts, ["file_name"])
    got = task.load({"name": "tfds:imagenet", "root": tmp_path}, tmp_path)
    assert [len(s.labels) for s in (got.train, got.val, got.test)] == [2, 0, 2]
    assert all(n.startswith("validation_") for n in got.test.names)


def test_not_prepared(tmp_path):
    with pytest.raises(UserError) as e:
        task.load({"name": "tfds:dtd", "root": tmp_path}, tmp_path)
    assert f"tfds:dtd: {tmp_path}/dtd holds no prepared data set" in str(e.value)
    assert "pip install 'vlmx[prepare]'" in str(e.value)
    assert f"tfds.builder('dtd:3.0.1', data_dir='{tmp_path}').download_and_prepare(file_format='array_record')" in str(
        e.value
    )


def test_another_format_or_version(tmp_path):
    eurosat(tmp_path)
    info = tmp_path / "eurosat/rgb/2.0.0/dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match="is in the format tfrecord(.|\n)*array_record"):
        task.load({"name": "tfds:eurosat", "root": tmp_path}, tmp_path)
    prepare(tmp_path, "food101", ["cheesecake", "cheese_plate"], {"train": [("cheesecake", {})]}, [])
    with pytest.raises(UserError, match="records of food101.* have no field 'id': too old a version"):
        task.load({"name": "tfds:food101", "root": tmp_path}, tmp_path)
