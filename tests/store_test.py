"""The feature store: what is encoded again and what is not, kills, corruption, several writers, its limit, views."""

import dataclasses
import hashlib
import importlib
import io
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import encode_child
import jax
import numpy as np
import pytest
import safetensors.numpy
from encode_child import CENTER, MODEL, objects, patches
from PIL import Image

from vlmx import features, settings, shard, store, train
from vlmx.data import embedded, fewshot, task, transforms
from vlmx.errors import UserError
from vlmx.models import zoo

KILLS = int(os.environ.get("VLMX_KILLS", 4)) // 2  # an encoder has fewer kinds of moments than a training
CROP = partial(transforms.random_crop, size=64, scale=(0.3, 1.0))


@pytest.fixture
def encode(tmp_path, capsys):
    """encode(split, ...) -> (features as an array, how many were encoded now, what was said)."""

    def encode(split, transform=CENTER, folder=tmp_path / "store", model=MODEL, limit=2**30, **more):
        mesh, kept = shard.make_mesh(devices=jax.devices()[:1]), store.Store(folder, limit)
        more = {"of": patches, "batch": 8, "digest": "abc"} | more
        found = features.encode(model, split, transform, mesh=mesh, store=kept, **more)
        said = capsys.readouterr().out
        return np.array(found.features), int((re.findall(r", (\d+) encoded", said) or [0])[-1]), said

    return encode


def pictures(folder, n=6):
    """A split of n files."""
    folder.mkdir()
    for i in range(n):
        Image.fromarray(np.full((70, 80, 3), 30 * i, np.uint8)).save(folder / f"{i}.bmp")
    return task.split(folder, [f"{i}.bmp" for i in range(n)], [0] * n)


def segments(folder):
    return sorted(f.parent for f in folder.glob("*/[!.]*/segment.json"))


# -------------------------------------------------------------------- what is read and what is encoded
def test_features_are_those_of_the_tower_and_are_encoded_once(encode, tmp_path):
    split = objects(20)
    first, n, said = encode(split)
    images = np.stack([split.images[i] for i in range(20)])
    np.testing.assert_allclose(first, patches(None, images), rtol=1e-5)
    assert n == 20 and "20 images: 0 from the store, 20 encoded in" in said and "images/s" in said
    again, n, said = encode(split)
    assert n == 0 and "20 images: 20 from the store\n" in said and (again == first).all()
    off, n, _ = encode(split, folder=None)
    assert n == 20 and (off == first).all()
    about = json.loads(next((tmp_path / "store").glob("*/kind.json")).read_text())
    assert about["weights"] == "abc" and about["output"]["name"].endswith("patches") and about["versions"]["jax"]


def test_subsets_share_rows_and_only_what_is_missing_is_encoded(encode, tmp_path):
    everything, _, _ = encode(objects(20), folder=None)
    encode(fewshot.take(objects(20), [3, 5, 7]))
    some, n, _ = encode(fewshot.take(objects(20), [7, 2, 3, 11]))
    assert n == 2 and (some == everything[[7, 2, 3, 11]]).all()
    rest, n, _ = encode(objects(20))
    assert n == 15 and (rest == everything).all() and len(segments(tmp_path / "store")) == 3


def test_rows_on_disk_are_mapped_and_read_without_a_copy_where_they_lie_in_order(tmp_path):
    ids, rows = np.arange(160, dtype=np.uint8).reshape(10, 16), np.random.default_rng(0).random((10, 3)).astype("f4")
    store.Store(tmp_path).add({"a": 1}, ids, rows)
    found = store.Store(tmp_path).find({"a": 1}, ids[2:7], (3,))
    assert (np.asarray(found) == rows[2:7]).all() and (found[[3, 0]] == rows[[5, 2]]).all() and found.shape == (5, 3)
    assert isinstance(found.pieces[0].base, np.memmap) and np.shares_memory(np.asarray(found), found.pieces[0])
    assert (found[1] == rows[3]).all() and (found[1:3] == rows[3:5]).all() and len(list(found)) == 5
    back = store.Store(tmp_path).find({"a": 1}, ids[::-1], (3,))
    assert (np.asarray(back) == rows[::-1]).all()
    unknown = store.Store(tmp_path).find({"a": 1}, ids + 1, (3,))
    assert len(unknown.missing) == 10 and not np.asarray(unknown).any()
    assert len(store.Store(tmp_path).find({"a": 2}, ids, (3,)).missing) == 10


def test_another_checkpoint_dtype_size_transform_or_code_is_another_kind(encode, monkeypatch, tmp_path):
    kind = partial(features.kind, digest="abc", of=patches, transform=CENTER, upright=False, views=False)
    half = MODEL.replace(config=dataclasses.replace(MODEL.config, dtype="bfloat16"))
    stored = MODEL.replace(config=dataclasses.replace(MODEL.config, param_dtype="bfloat16"))
    vision = dataclasses.replace(MODEL.config.vision, image_size=96)
    large = MODEL.replace(config=dataclasses.replace(MODEL.config, vision=vision))
    kinds = [kind(MODEL), kind(MODEL, digest="abd"), kind(half), kind(stored), kind(large), kind(MODEL, upright=True)]
    kinds += [kind(MODEL, of=type(MODEL).image), kind(MODEL, transform=partial(transforms.center, size=96))]
    kinds += [kind(MODEL, transform=CROP, views=True), kind(MODEL, transform=partial(CROP.func, size=64), views=True)]
    with jax.default_matmul_precision("bfloat16"):
        kinds.append(kind(MODEL))
    (tmp_path / "resnet.py").write_text("# other code\n")
    monkeypatch.setattr(features.resnet, "__file__", str(tmp_path / "resnet.py"))
    kinds.append(kind(MODEL))
    assert len({json.dumps(k, sort_keys=True) for k in kinds}) == len(kinds)
    monkeypatch.undo()
    assert kind(MODEL) == kinds[0]
    assert encode(objects(4))[1] == 4
    assert encode(objects(4), digest="abd")[1] == 4 and encode(objects(4), model=half)[1] == 4
    assert encode(objects(4))[1] == 0


def test_a_changed_image_file_is_encoded_again_and_only_that(encode, tmp_path):
    split = pictures(tmp_path / "images")
    before, _, _ = encode(split)
    image = tmp_path / "images" / "2.bmp"
    status = image.stat()
    Image.fromarray(np.full((70, 80, 3), 200, np.uint8)).save(image)
    os.utime(
        image, ns=(status.st_atime_ns, status.st_mtime_ns)
    )  # as an archive's files come: of the same time and size
    assert image.stat().st_size == status.st_size
    after, n, _ = encode(split)
    assert n == 1 and ((after != before).any((1, 2)) == [False, False, True, False, False, False]).all()


@pytest.mark.parametrize("change", [lambda images: images[::-1].copy(), lambda images: images[:, :, :, 0]])
def test_images_in_memory_are_known_by_their_content(encode, change):
    images = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)
    split = lambda images: task.Split(images, np.zeros(4, np.int32), list("abcd"))
    encode(split(images))
    assert encode(split(images.copy()))[1] == 0
    assert encode(split(change(images)))[1] == (0 if change(images).ndim == 4 else 4)  # the same images turned about
    raw = task.Split([b"GIF", b"PNG"], np.zeros(2, np.int32), list("ab"))
    assert task.identity(raw.images, 0) != task.identity(raw.images, 1)


@pytest.mark.parametrize("name", ["objects", "objects_noise", "digits"])
def test_to_look_up_what_is_drawn_nothing_is_drawn(encode, monkeypatch, name):
    test = fewshot.take(embedded.load(name).test, range(6))
    before, n, _ = encode(test)
    assert n == 6 and len(np.unique(features.identities(test)[0], axis=0)) == 6
    for images in (embedded.Drawn, embedded.Handwriting):
        monkeypatch.setattr(images, "__getitem__", None)
    after, n, _ = encode(test)
    assert n == 0 and (after == before).all()
    monkeypatch.undo()
    monkeypatch.setattr(embedded, "drawn_by", lambda: "other code")
    assert encode(test)[1] == 6


def test_unreadable_images_are_not_stored(encode, tmp_path):
    split = pictures(tmp_path / "images")
    content = (tmp_path / "images" / "1.bmp").read_bytes()
    (tmp_path / "images" / "1.bmp").write_bytes(b"")
    (tmp_path / "images" / "4.bmp").unlink()
    for encoded in (6, 2):
        bad = []
        rows, n, _ = encode(split, bad=bad)
        assert n == encoded and [(b.index, b.reason) for b in bad] == [(1, "the file is empty"), (4, "no such file")]
        assert not rows[[1, 4]].any() and rows[[2, 3, 5]].any((1, 2)).all()
    with pytest.raises(UserError, match="2 of 6 images cannot be read:\n.*1.bmp: the file is empty"):
        encode(split)
    (tmp_path / "images" / "1.bmp").write_bytes(content)
    assert encode(split, bad=[])[0][1].any()


# -------------------------------------------------------------------- views
def test_a_view_is_the_same_in_every_subset_and_is_stored(encode):
    split = objects(6)
    views, n, said = encode(split, CROP, views=2)
    assert views.shape == (2, 6, 16, 3) and n == 12 and "12 images (2 views): 0 from the store" in said
    assert (views[0] != views[1]).any((1, 2)).all()
    alone, n, _ = encode(fewshot.take(split, [4]), CROP, views=2, folder=None)
    assert n == 2 and (alone[:, 0] == views[:, 4]).all()
    more, n, _ = encode(split, CROP, views=3)
    assert n == 6 and (more[:2] == views).all()
    assert encode(split)[1] == 6  # the whole image is another thing
    rng = np.random.default_rng(features.identities(split, 2)[1][6 + 4])
    drawn = CROP(transforms.decode(split.images[4]), rng=rng)
    np.testing.assert_allclose(patches(None, drawn[None])[0], views[1, 4], rtol=1e-5)


def test_views_are_drawn_alike_wherever_the_files_lie(tmp_path):
    words = [features.identities(pictures(tmp_path / name), 2)[1] for name in "ab"]
    assert (words[0] == words[1]).all() and len(np.unique(words[0], axis=0)) == 12


# -------------------------------------------------------------------- what goes wrong
def damage(file, how):
    data = file.read_bytes()
    if how == "flipped":
        file.write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
    elif how == "cut":
        file.write_bytes(data[: len(data) // 2])
    else:
        file.unlink()


@pytest.mark.parametrize("file", ["features.npy", "ids.npy", "segment.json"])
@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_a_corrupt_file_is_found_said_and_rebuilt(encode, tmp_path, file, how):
    before, _, _ = encode(objects(6))
    (segment,) = segments(tmp_path / "store")
    if (file, how) == ("segment.json", "flipped"):
        (segment / file).write_text((segment / file).read_text().replace('": "', '": "0'))
    else:
        damage(segment / file, how)
    after, n, said = encode(objects(6))
    assert n == 6 and (after == before).all()
    assert (file, how) == ("segment.json", "gone") or "is corrupt (" in said and "dropped" in said
    assert encode(objects(6))[1] == 0 and len(segments(tmp_path / "store")) == 1


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("a pickle was loaded",)


def hostile_arrays():
    """name -> (file, bytes) that `add` never writes."""

    def saved(array, **options):
        content = io.BytesIO()
        np.save(content, array, **options)
        return content.getvalue()

    rows, ids = np.zeros((6, 16, 3), np.float32), np.zeros((6, 16), np.uint8)
    header = b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', 'fortran_order': False, 'shape': (%s), }"
    yield "pickle", ("features.npy", saved(np.array([Bomb()] * 6), allow_pickle=True))
    yield "pickle of ids", ("ids.npy", saved(np.array([Bomb()] * 6), allow_pickle=True))
    yield "huge", ("features.npy", (header % b"6, 16, 1000000000000").ljust(128))
    yield "overflow", ("features.npy", (header % b"6, 16, 99999999999999999999999").ljust(128))
    yield "negative", ("features.npy", (header % b"-6, 16, 3").ljust(128))
    yield "brackets", ("features.npy", (b"\x93NUMPY\x01\x00\x00\x20" + b"[" * 0x2000))
    yield "float64", ("features.npy", saved(rows.astype(np.float64)))
    yield "other byte order", ("features.npy", saved(rows.astype(">f4")))
    yield "complex", ("features.npy", saved(rows.astype(np.complex64)))
    yield "NaN", ("features.npy", saved(rows * np.nan))
    yield "infinite", ("features.npy", saved(rows + np.inf))
    yield "fewer rows", ("features.npy", saved(rows[:5]))
    yield "zip", ("features.npy", b"PK\x03\x04")
    yield "empty", ("features.npy", b"")
    yield "narrow ids", ("ids.npy", saved(ids[:, :8]))
    yield "float ids", ("ids.npy", saved(ids.astype(np.float32)))
    yield "no ids", ("ids.npy", saved(ids[:0]))
    yield "scalar", ("ids.npy", saved(np.uint8(3)))


@pytest.mark.parametrize("file, content", [pytest.param(*case, id=name) for name, case in hostile_arrays()])
def test_a_hostile_file_with_its_checksum_is_encoded_again(encode, tmp_path, file, content):
    before, _, _ = encode(objects(6))
    (segment,) = segments(tmp_path / "store")
    (segment / file).write_bytes(content)
    about = json.loads((segment / "segment.json").read_text())
    about["sha256"][file] = hashlib.sha256(content).hexdigest()
    (segment / "segment.json").write_text(json.dumps(about))
    after, n, said = encode(objects(6))
    assert n == 6 and (after == before).all() and "is corrupt (" in said


@pytest.mark.parametrize("file", ["features.npy", "ids.npy", "segment.json"])
@pytest.mark.parametrize("what", ["fifo", "folder", "device", "brackets"])
def test_what_is_no_regular_file_is_not_waited_for(encode, tmp_path, file, what):
    before, _, _ = encode(objects(6))
    (segment,) = segments(tmp_path / "store")
    (segment / file).unlink()
    make = {
        "fifo": os.mkfifo,
        "folder": os.mkdir,
        "device": lambda path: path.symlink_to("/dev/zero"),
        "brackets": lambda path: path.write_text("[" * 100_000),
    }[what]
    make(segment / file)
    after, n, _ = encode(objects(6))
    assert n == 6 and (after == before).all()


def test_features_that_are_not_finite_end_the_run_and_are_not_stored(encode, tmp_path):
    split = pictures(tmp_path / "images")
    with pytest.raises(UserError, match=r"features of 2 of 6 images are not finite, of 4.bmp for instance: a weight"):
        encode(split, of=not_finite)
    assert not segments(tmp_path / "store")


def not_finite(model, images):
    """Rows that are not finite for the brightest images."""
    return jax.numpy.where(images[:, :1, 0, 0] > 100, jax.numpy.nan, images[:, :1, 0, 0].astype("float32"))


def test_what_is_being_written_is_not_seen_and_cleaned_away_when_it_is_old(encode, tmp_path):
    encode(objects(6))
    (segment,) = segments(tmp_path / "store")
    draft = segment.rename(segment.with_name(store.DRAFT + "1"))  # whole, but for its name
    assert encode(objects(6))[1] == 6 and draft.exists()
    os.utime(draft, (0, 0))
    assert encode(objects(6))[1] == 0 and not draft.exists()


def test_a_folder_that_cannot_be_written_costs_a_line(encode, tmp_path):
    (tmp_path / "file").write_text("")
    rows, n, said = encode(objects(6), folder=tmp_path / "file" / "store")
    assert n == 6 and rows.any() and "features are no longer stored in" in said and "Not a directory" in said


def test_many_at_once_write_what_each_of_them_reads(tmp_path):
    ids = np.random.default_rng(0).integers(0, 256, (40, 16), np.uint8)
    rows = np.arange(120, dtype=np.float32).reshape(40, 3)

    def work(i):
        mine = store.Store(tmp_path)
        for at in np.array_split(np.random.default_rng(i).permutation(40), 5):
            mine.add({"a": 1}, ids[at], rows[at])
        return np.asarray(mine.find({"a": 1}, ids, (3,)))

    with ThreadPoolExecutor(4) as pool:
        assert all((found == rows).all() for found in pool.map(work, range(4)))
    assert len(segments(tmp_path)) == 20 and not list(tmp_path.glob(f"*/{store.DRAFT}*"))


def test_beyond_the_limit_what_was_not_read_for_longest_goes_but_nothing_of_this_run(tmp_path):
    ids, rows = np.arange(160, dtype=np.uint8).reshape(10, 16), np.ones((10, 300), np.float32)  # 12 kB and some
    for i in range(3):
        store.Store(tmp_path).add({"kind": i}, ids, rows)
    for i, segment in enumerate(
        sorted(segments(tmp_path), key=lambda s: json.loads((s / "../kind.json").read_text())["kind"])
    ):
        os.utime(segment, (i, i))
    kept = lambda: sorted(json.loads(f.read_text())["kind"] for f in tmp_path.glob("*/kind.json"))
    mine = store.Store(tmp_path, 45_000)
    assert not len(mine.find({"kind": 0}, ids, (300,)).missing)  # so now 1 is the oldest
    mine.add({"kind": 3}, ids, rows)
    assert kept() == [0, 2, 3]
    mine.add({"kind": 4}, ids, rows)
    assert kept() == [0, 3, 4]


def test_a_limit_below_what_this_run_reads_is_said_and_kept(encode, tmp_path):
    rows, n, said = encode(objects(6), limit=2_000)
    assert n == 6 and rows.any() and "is less than this run reads" in said and not segments(tmp_path / "store")


# -------------------------------------------------------------------- processes
def child(out, *folders, told=()):
    """tests/encode_child.py, in a process of its own."""
    env = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={2 if told else 1}",
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }  # fmt: skip
    args = [sys.executable, encode_child.__file__, ":".join(map(str, folders)), str(out), *map(str, told)]
    return subprocess.Popen(args, env=env, stdout=open(f"{out}.log", "w"), stderr=subprocess.STDOUT)


def test_killed_at_random_moments_the_next_one_ends_with_the_same_features(encode, tmp_path):
    whole, _, _ = encode(objects(200), folder=None)
    folder, moments, killed = tmp_path / "cut", random.Random(0), 0
    for i in range(KILLS):
        before = len(segments(folder))
        process = child(tmp_path / f"{i}.npy", folder)
        while process.poll() is None and len(segments(folder)) == before:  # of many, the last have nothing left to do
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        killed += process.wait() < 0
    there = len(segments(folder))
    rows, n, said = encode(objects(200), folder=folder)
    assert killed and there and n < 200 and "corrupt" not in said
    assert (rows == whole).all() and encode(objects(200), folder=folder)[1] == 0


def test_two_processes_write_their_shares_and_read_all(encode, tmp_path):
    whole, _, _ = encode(objects(200), folder=None)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        at = f"127.0.0.1:{s.getsockname()[1]}"
    both, own, out = tmp_path / "both", [tmp_path / "0", tmp_path / "1"], [tmp_path / "0.npy", tmp_path / "1.npy"]
    pair = [child(out[i], both, own[i], told=(at, i, 2)) for i in range(2)]
    for i in range(2):
        assert pair[i].wait() == 0, Path(f"{out[i]}.log").read_text()
        assert (np.load(out[i]) == whole).all()
    said = Path(f"{out[0]}.log").read_text()
    assert said.count("200 images: 96 from the store, 104 encoded") == 2  # in the common folder, and in their own
    rows = lambda folder: [json.loads((s / "segment.json").read_text())["rows"] for s in segments(folder)]
    assert set(rows(both)) == {4} and sum(rows(both)) == 200  # each has written its half of each batch
    for folder in (both, *own):
        found, n, _ = encode(objects(200), folder=folder)
        assert n == 0 and (found == whole).all() and sum(rows(folder)) == 200


# -------------------------------------------------------------------- whole runs
@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """run(methods, dir, ...) -> (results, images encoded, workdir): a small run on a part of the digits."""
    digits = embedded.load("digits")
    small = digits._replace(test=fewshot.take(digits.test, range(64)))
    monkeypatch.setattr(train.task, "load", lambda *args: small)

    def run(methods, folder, **fields):
        c = importlib.import_module("configs.digits").get_config(f"{methods},seeds=1,shots=1,protocols=few_shot")
        c.features.dir, c.eval_batch = str(folder), 64
        for recipe in c.recipe.values():
            recipe.update({k: v for k, v in {"epochs": 2, "batch": 8, "views": 2}.items() if k in recipe})
        c.data.update(fields)
        workdir = tmp_path / f"run-{len(list(tmp_path.glob('run-*')))}"
        results = train.run(c, workdir)
        return results, sum(map(int, re.findall(r", (\d+) encoded", capsys.readouterr().out))), workdir

    return run


def test_a_later_run_reads_what_an_earlier_one_encoded_and_its_numbers_are_those_of_live_encoding(run, tmp_path):
    _, n, workdir = run("tip_adapter", tmp_path / "store", augment="crop")
    assert n == 64 + 10 + 20 + 10  # the test images, a training image a class, two crops of each, validation
    stored, n_stored, _ = run("linear_probe,clip_adapter,taskres", tmp_path / "store")
    live, n_live, _ = run("linear_probe,clip_adapter,taskres", "off")
    assert n_stored == 0 and n_live == 64 + 10 + 10
    for one, two in zip(live["runs"], stored["runs"], strict=True):
        assert one["seeds"] == two["seeds"] and one["curve"] == two["curve"]

    # ---- the keys of the cache are means of the crops
    names = json.loads((workdir / "few_shot/few_shot-seed_1.json").read_text())["train"]
    images = embedded.load("digits").train
    split = fewshot.take(images, [images.names.index(name) for name in names])
    crop, mesh = partial(transforms.random_crop, size=64, scale=(0.08, 1.0)), shard.make_mesh()
    loaded = zoo.load("tiny_clip", place=lambda path, shape: shard.on(mesh))
    given = {"store": store.Store(tmp_path / "store"), "digest": loaded.digest, "views": 2}
    views = features.encode(loaded.model, split, crop, batch=64, mesh=mesh, **given).features.mean(0)
    assert len(given["store"].opened) == 1
    (tuned,) = workdir.rglob("tuned.safetensors")
    keys = safetensors.numpy.load_file(tuned)["fixed/keys"]
    np.testing.assert_allclose(keys, views / np.linalg.norm(views, axis=-1, keepdims=True), rtol=1e-5, atol=1e-6)


def test_where_features_are_kept_is_free_and_a_limit_that_is_none_is_refused(tmp_path):
    c = importlib.import_module("configs.digits").get_config("coop")
    assert settings.finished(c, tmp_path) is None
    (tmp_path / "coop-few_shot").mkdir()
    c.features.dir, c.features.limit = "off", 1.0
    assert settings.finished(c, tmp_path) is None  # and not "of a run with another config"
    c.features.limit = 0.0
    with pytest.raises(UserError, match="config.features.limit: expected GiB, a number more than 0; got 0.0"):
        settings.check(c)


@pytest.mark.parametrize("name, part", [("digits", "model"), ("scenes_vl", "tower")])
def test_a_workdir_of_an_older_version_is_no_other_config(tmp_path, name, part):
    c = importlib.import_module(f"configs.{name}").get_config()
    assert settings.finished(c, tmp_path) is None
    (tmp_path / "coop-few_shot").mkdir()
    older = json.loads((tmp_path / "config.json").read_text())
    for key in ("act", "heads", "arch"):
        del older[part][key]
    (tmp_path / "config.json").write_text(json.dumps(older))
    assert settings.finished(c, tmp_path, write=False) is None
    c[part].act = "gelu"
    with pytest.raises(UserError, match=f"another config:\n  {part}.act: there '', now 'gelu'"):
        settings.finished(c, tmp_path, write=False)


def test_a_command_that_ended_before_anything_was_computed_can_be_mended(tmp_path):
    c = importlib.import_module("configs.digits").get_config("coop")
    assert settings.finished(c, tmp_path) is None
    c.model.arch = "ViT-B-32"
    assert settings.finished(c, tmp_path) is None
    assert json.loads((tmp_path / "config.json").read_text())["model"]["arch"] == "ViT-B-32"
    c.data.root = "elsewhere"  # of the other one splits.csv may be there
    with pytest.raises(UserError, match="another config:\n  data.root: there '', now 'elsewhere'"):
        settings.finished(c, tmp_path)
    c.data.root, c.model.arch = "", ""
    (tmp_path / "coop-few_shot").mkdir()
    with pytest.raises(UserError, match="another config:\n  model.arch: there 'ViT-B-32', now ''"):
        settings.finished(c, tmp_path)


def test_the_default_is_a_persons_cache(monkeypatch):
    default = importlib.import_module("configs.digits").get_config("coop").features
    assert features.open_store(default).folder == Path(os.environ["XDG_CACHE_HOME"], "vlmx/features")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/somewhere")
    assert features.open_store(default).folder == Path("/somewhere/.cache/vlmx/features")
    default.dir = "off"
    assert features.open_store(default).folder is None
