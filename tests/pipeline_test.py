"""Batches: the same bytes whatever the workers, processes and restarts; broken images reported, never raised."""

import functools
import multiprocessing
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlmx.data import pipeline, transforms
from vlmx.data.task import Split
from vlmx.errors import UserError

CROP = functools.partial(transforms.random_crop, size=8)
CENTER = functools.partial(transforms.center, size=8)


def arrays(n, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (n, 10, 12, 3), np.uint8)
    return Split(pixels, np.arange(n, dtype=np.int32) % 5, [f"test/{i}" for i in range(n)])


@pytest.fixture
def files(tmp_path):
    """Eleven images in files, two of them broken."""
    split = arrays(11)
    paths = [str(tmp_path / f"{i}.png") for i in range(11)]
    for path, pixels in zip(paths, split.images):
        Image.fromarray(pixels).save(path)
    (tmp_path / "3.png").write_bytes(b"")
    (tmp_path / "7.png").unlink()
    return split._replace(images=paths)


class Counted:
    """Images that remember which of them were asked for."""

    def __init__(self, images):
        self.images, self.asked = images, []

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        self.asked.append(i)
        return self.images[i]


def equal(got, want):
    got, want = list(got), list(want)
    assert len(got) == len(want) > 0
    for a, b in zip(got, want):
        assert a.keys() == b.keys() == {"image", "label", "index", "weight"}
        for key in a:
            assert type(a[key]) is np.ndarray and a[key].dtype == b[key].dtype
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_epoch_order_is_dassls():
    order = pipeline.epoch_order(11, 4, seed=1, epoch=0)
    assert order.shape == (2, 4) and len(set(order.ravel())) == 8  # the incomplete batch is dropped
    assert sorted(pipeline.epoch_order(12, 4, 1, 0).ravel()) == list(range(12))
    assert sorted(pipeline.epoch_order(10, 32, 1, 0).ravel()) == list(range(10))  # no full batch: one of 10
    assert pipeline.epoch_order(47, 32, 1, 0).shape == (1, 32)
    np.testing.assert_array_equal(order, pipeline.epoch_order(11, 4, 1, 0))
    others = [pipeline.epoch_order(11, 4, *key) for key in ((1, 1), (2, 0), (0, 1))]
    assert all((order != other).any() for other in others)


def test_training_goes_through_each_epoch_in_its_order():
    splits = [arrays(11), arrays(11, seed=1)]
    batches = list(pipeline.train_batches(splits, CENTER, 4, [5, 6], stop=4))
    assert len(batches) == 4 and batches[0]["image"].shape == (2, 4, 8, 8, 3)
    for step, batch in enumerate(batches):
        for s, seed in enumerate([5, 6]):
            index = pipeline.epoch_order(11, 4, seed, step // 2)[step % 2]
            np.testing.assert_array_equal(batch["index"][s], index)
            np.testing.assert_array_equal(batch["label"][s], splits[s].labels[index])
            want = [CENTER(transforms.decode(splits[s].images[i])) for i in index]
            np.testing.assert_array_equal(batch["image"][s], want)
        assert batch["weight"].dtype == np.float32 and (batch["weight"] == 1).all()


def test_draws_are_keyed_by_seed_epoch_and_position():
    draws = []

    def augment(img, rng):
        draws.append(rng.random())
        return np.zeros((1, 1, 3), np.uint8)

    def stream(seeds, steps, process=(0, 1)):
        draws.clear()
        list(pipeline.train_batches([arrays(8)] * len(seeds), augment, 4, seeds, stop=steps, process=process))
        return draws[:]

    both = stream([1, 2], 4)
    assert len(set(both)) == 2 * 16  # 2 seeds, 2 epochs of 8
    assert set(both) == {*stream([1], 4), *stream([2], 4)} == {*stream([1, 2], 4, (0, 2)), *stream([1, 2], 4, (1, 2))}


def test_same_bytes_whatever_the_workers(files, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "none_such")  # a worker that touches a device fails here
    made, bad = {}, {}
    for workers in (0, 1, 2):
        bad[workers] = []
        made[workers] = list(
            pipeline.train_batches([files, files], CROP, 3, [1, 2], start=1, stop=6, workers=workers, bad=bad[workers])
        )
    equal(made[1], made[0])
    equal(made[2], made[0])
    assert bad[0] == bad[1] == bad[2] != []
    assert not multiprocessing.active_children()


def test_evaluation_and_check_in_workers(files):
    here, there = [], []
    equal(
        pipeline.eval_batches(files, CENTER, 4, workers=2, bad=there), pipeline.eval_batches(files, CENTER, 4, bad=here)
    )
    assert here == there == pipeline.check(files, workers=1) != []


def test_an_iterator_dropped_early_leaves_no_process(files):
    batches = pipeline.train_batches([files], CROP, 4, [1], stop=10_000, workers=2, bad=[])
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    del batches
    assert not multiprocessing.active_children()


def test_a_worker_that_dies_is_told(files):
    split = files._replace(images=files.images[:1] * 11)
    with pytest.raises(UserError, match="exit code -7.*/dev/shm.*fewer workers"):
        list(pipeline.eval_batches(split, die, 4, workers=1))


def die(img):
    signal.raise_signal(signal.SIGBUS)


def test_workers_end_with_a_killed_main_process(files, tmp_path):
    """They hold its standard output open as long as they live."""
    script = tmp_path / "main.py"
    script.write_text(
        textwrap.dedent(f"""
        import functools, os, signal
        import numpy as np
        from vlmx.data import pipeline, transforms
        from vlmx.data.task import Split
        if __name__ == "__main__":
            split = Split({files.images[:2]!r}, np.zeros(2, np.int32), ["a", "b"])
            crop = functools.partial(transforms.random_crop, size=8)
            batches = pipeline.train_batches([split], crop, 1, [1], stop=10_000, workers=1)
            next(batches)
            print("one batch", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        """)
    )
    paths = {"PYTHONPATH": str(Path(pipeline.__file__).parents[2])}
    run = subprocess.run([sys.executable, script], stdout=subprocess.PIPE, text=True, timeout=200, env=paths)
    assert run.returncode < 0 and run.stdout == "one batch\n"


def test_small_arrays_in_memory_need_no_process():
    batches = pipeline.train_batches([arrays(11)], CROP, 4, [1], stop=100, workers=2)
    next(batches)
    assert not multiprocessing.active_children()


def test_a_run_resumes_at_any_step():
    make = functools.partial(pipeline.train_batches, [arrays(11), arrays(9, 1)], CROP, 4, [1, 2])
    whole = list(make(stop=9))
    for start in (1, 5, 8):
        equal(make(start=start, stop=9), whole[start:])
    assert list(make(start=9, stop=9)) == list(make(start=12, stop=9)) == []


def test_each_process_reads_only_its_rows_of_each_batch():
    """Joined, the parts are what one process makes; together they decode each row once."""
    whole = arrays(11)

    def train(split, process):
        return pipeline.train_batches([split], CROP, 4, [1], stop=5, process=process)

    def evaluate(split, process):
        return pipeline.eval_batches(split, CENTER, 4, process=process)

    for run in (train, evaluate):
        parts, asked = [], []
        for i in range(2):
            counted = Counted(whole.images)
            parts.append(list(run(whole._replace(images=counted), (i, 2))))
            asked.append(counted.asked)
        joined = [{k: np.concatenate([a[k], b[k]], a["label"].ndim - 1) for k in a} for a, b in zip(*parts)]
        want = list(run(whole, (0, 1)))
        equal(joined, want)
        rows = [int(i) for batch in want for i in batch["index"].ravel() if i >= 0]
        assert sorted(asked[0] + asked[1]) == sorted(rows) and max(map(len, asked)) <= len(want) * 2


def test_a_batch_smaller_than_asked_is_filled_up_for_the_processes():
    one = list(pipeline.train_batches([arrays(3)], CROP, 4, [1], stop=5))
    two = [list(pipeline.train_batches([arrays(3)], CROP, 4, [1], stop=5, process=(i, 2))) for i in range(2)]
    for whole, left, right in zip(one, *two):
        assert whole["index"].shape == (1, 3) and left["index"].shape == right["index"].shape == (1, 2)
        np.testing.assert_array_equal(np.hstack([left["index"], right["index"]]), [[*whole["index"][0], -1]])
        np.testing.assert_array_equal(np.hstack([left["image"], right["image"]])[:, :3], whole["image"])
        assert right["weight"].tolist() == [[1, 0]]


def test_evaluation_goes_once_through_in_order_and_fills_up():
    split = arrays(11)
    batches = list(pipeline.eval_batches(split, CENTER, 4))
    index, weight = (np.concatenate([b[k] for b in batches]) for k in ("index", "weight"))
    assert index.tolist() == [*range(11), -1] and weight.tolist() == [1] * 11 + [0]
    assert batches[2]["label"].tolist() == [3, 4, 0, 0] and batches[2]["image"].shape == (4, 8, 8, 3)
    np.testing.assert_array_equal(batches[1]["image"][2], CENTER(transforms.decode(split.images[6])))
    assert list(pipeline.eval_batches(arrays(0), CENTER, 4)) == []


def test_bad_images_in_evaluation(files):
    found = []
    batches = list(pipeline.eval_batches(files, CENTER, 4, bad=found))
    assert [b.index for b in found] == [3, 7] and [b.name for b in found] == [files.images[3], files.images[7]]
    assert [b.reason for b in found] == ["the file is empty", "no such file"]
    weight = np.concatenate([b["weight"] for b in batches])
    assert weight.tolist() == [1, 1, 1, 0, 1, 1, 1, 0, 1, 1, 1, 0]
    assert batches[0]["index"][3] == 3 and not batches[0]["image"][3].any()
    with pytest.raises(UserError, match="2 of 11 images cannot be read"):  # nobody asked to skip: all are listed
        list(pipeline.eval_batches(files, CENTER, 4))


def test_bad_images_in_training(files):
    assert [b.index for b in pipeline.check(files)] == [3, 7] and not pipeline.check(arrays(70))
    found = []
    for batch in pipeline.train_batches([files], CROP, 11, [1], stop=3, bad=found):
        np.testing.assert_array_equal(batch["weight"][0], ~np.isin(batch["index"][0], [3, 7]))
    assert sorted(b.index for b in found) == [3, 7]  # each once, however many epochs
    with pytest.raises(UserError, match="bad_images=skip"):
        next(pipeline.train_batches([files], CROP, 11, [1], stop=3))


def test_people_s_photos_are_turned(tmp_path):
    exif = Image.Exif()
    exif[274] = 3  # upside down
    path = str(tmp_path / "photo.png")
    Image.fromarray(arrays(1).images[0]).save(path, exif=exif)
    split = Split([path], np.zeros(1, np.int32), ["photo.png"])
    for make in (
        functools.partial(pipeline.eval_batches, split, CENTER, 1),
        functools.partial(pipeline.train_batches, [split], CENTER, 1, [1], stop=1),
    ):
        stored, turned = (next(make(upright=upright))["image"].reshape(8, 8, 3) for upright in (False, True))
        np.testing.assert_array_equal(turned, CENTER(Image.open(path).rotate(180)))
        assert (stored != turned).any()


def test_splits_of_different_sizes_share_a_shape():
    """A seed with fewer images than the batch is filled up with rows of weight 0."""
    for batch in pipeline.train_batches([arrays(6), arrays(3)], CROP, 4, [1, 2], stop=3):
        assert batch["image"].shape == (2, 4, 8, 8, 3)
        assert batch["weight"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]] and batch["index"][1, 3] == -1


def test_stop_message_lists_twenty_and_says_how_to_go_on():
    bad = [pipeline.Bad(i, f"cat/{i}.jpg", "the file is empty") for i in range(23)]
    text = pipeline.stop_message(bad, 100)
    assert "23 of 100 images" in text and "cat/19.jpg: the file is empty" in text and "cat/20.jpg" not in text
    assert "3 more" in text and "--config.data.bad_images=skip" in text
    assert "more" not in pipeline.stop_message(bad[:20], 100).split("\n")[-2]


def test_wrong_use_is_told():
    with pytest.raises(UserError, match="multiple of 3"):
        next(pipeline.eval_batches(arrays(8), CENTER, 4, process=(0, 3)))
    with pytest.raises(UserError, match="multiple of 3"):
        next(pipeline.train_batches([arrays(8)], CROP, 4, [1], stop=1, process=(0, 3)))
    with pytest.raises(UserError, match="2 training subsets for 1 seeds"):
        next(pipeline.train_batches([arrays(8)] * 2, CROP, 4, [1], stop=1))
    with pytest.raises(UserError, match="seed 7 has no images"):
        next(pipeline.train_batches([arrays(0)], CROP, 4, [7], stop=1))


def test_the_stop_message_lists_each_split_by_name():
    bad = {split: [pipeline.Bad(i, f"{split}/{i}.jpg", "broken") for i in range(n)] for split, n in
           {"train": 23, "val": 0, "test": 1, "dtd test": 2}.items()}  # fmt: skip
    text = pipeline.splits_stop_message(bad, {"train": 99, "test": 7, "dtd test": 5})
    lines = [line for line in text.splitlines() if not line.startswith("  ")]
    assert [line.partition(" cannot")[0] for line in lines[:-1]] == [
        "23 of 99 train images", "1 of 7 test images", "2 of 5 dtd test images",
    ]  # fmt: skip
    assert "train/19.jpg: broken" in text and "... and 3 more" in text and "dtd test/1.jpg: broken" in text


def test_check_refuses_what_the_transform_refuses():
    strip = Split([np.zeros((2, 60_000), np.uint8)] * 2, np.zeros(2, np.int32), ["a", "b"])
    center = functools.partial(transforms.center, size=224)
    assert not pipeline.check(strip) and [b.index for b in pipeline.check(strip, center)] == [0, 1]
