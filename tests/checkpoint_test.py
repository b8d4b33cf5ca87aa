"""Checkpoints of a run: what is restored is what was written, and by the same training; and exported folders."""

import json
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from vlmx import checkpoint
from vlmx.errors import UserError

META = {"method": "coop", "training": {"recipe.optimizer.name": "sgd", "recipe.optimizer.lr": 0.1}}


def state():
    rng = np.random.default_rng(0)
    return {"train": {"ctx": rng.normal(size=(16, 128)).astype(np.float32)}, "step": np.array(3, np.int32)}


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("steps") / "steps"
    checkpoints = checkpoint.manager(folder, keep=2)
    for step in (1, 2):
        checkpoint.save(checkpoints, step, state() | {"step": np.array(step, np.int32)}, META)
    checkpoint.finish(checkpoints)
    checkpoints.close()
    return folder


def restore(folder, meta=META):
    checkpoints = checkpoint.manager(folder, keep=2)
    try:
        return checkpoint.restore(checkpoints, state(), meta)
    finally:
        checkpoints.close()


def largest_file(folder, step):
    return max((folder / str(step)).rglob("ocdbt.process_0/d/*"), key=lambda path: path.stat().st_size)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


# -------------------------------------------------------------------- checksums
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.int32, np.uint8, bool])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (2, 3, 4)])
def test_any_flipped_bit_changes_the_checksum(dtype, shape):
    array = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    before = checkpoint.checksums({"a": array})["a"]
    content = bytearray(array.tobytes())
    for bit in range(8 * len(content)) if dtype is not bool else range(0, 8 * len(content), 8):
        other = bytearray(content)
        other[bit // 8] ^= 1 << bit % 8
        changed = np.frombuffer(bytes(other), dtype).reshape(shape)
        assert checkpoint.checksums({"a": changed})["a"] != before


def test_a_checksum_does_not_depend_on_the_devices():
    devices = jax.devices()
    mesh = jax.sharding.Mesh(np.array(devices[: 2 if len(devices) > 1 else 1]), ("x",))
    array = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    sharded = jax.device_put(array, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x")))
    assert checkpoint.checksums({"a": sharded}) == checkpoint.checksums({"a": array})
    moved = checkpoint.checksums({"a": array[::-1]})
    assert moved != checkpoint.checksums({"a": array})  # the same numbers in other places


def test_a_flipped_bit_in_the_last_checkpoint_goes_back_to_the_one_before(two_steps, tmp_path, capsys):
    folder = shutil.copytree(two_steps, tmp_path / "steps")
    assert int(restore(folder)["step"]) == 2
    flip_a_bit(largest_file(folder, 2))
    found = restore(folder)
    assert int(found["step"]) == 1
    np.testing.assert_array_equal(found["train"]["ctx"], state()["train"]["ctx"])
    out = capsys.readouterr().out
    assert f"{folder / '2'}" in out and "damaged" in out and "going on from the checkpoint before" in out
    assert not (folder / "2").exists()  # so that step 2 can be saved again


def test_where_no_checkpoint_is_whole_one_sentence_says_what_to_do(two_steps, tmp_path):
    folder = shutil.copytree(two_steps, tmp_path / "steps")
    for step in (1, 2):
        flip_a_bit(largest_file(folder, step))
    with pytest.raises(UserError, match="is damaged.*delete the folder .*steps, and the same command begins"):
        restore(folder)
    assert (folder / "1").exists() and (folder / "2").exists()


def test_numbers_that_are_not_those_written_are_named(two_steps, tmp_path):
    """Where the files are whole, but hold other numbers, too."""
    folder = shutil.copytree(two_steps, tmp_path / "steps")
    for step in (1, 2):
        path = folder / str(step) / "meta" / "metadata"
        meta = json.loads(path.read_text())
        meta["checksums"]["train/ctx"] ^= 1
        path.write_text(json.dumps(meta))
    with pytest.raises(UserError, match="other numbers than were written in train/ctx"):
        restore(folder)


@pytest.mark.parametrize("damage", ["empty", "cut", "gone", "folder"])
@pytest.mark.parametrize("name", ["meta/metadata", "state/_METADATA", "state/manifest.ocdbt", "largest"])
def test_damaged_files_of_a_checkpoint(two_steps, tmp_path, name, damage):
    folder = shutil.copytree(two_steps, tmp_path / "steps")
    path = largest_file(folder, 2) if name == "largest" else folder / "2" / name
    content = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "gone":
        path.write_bytes(content[: len(content) // 2 if damage == "cut" else 0])
    assert int(restore(folder)["step"]) in (1, 2)
    assert restore(folder)["train"]["ctx"].tolist() == state()["train"]["ctx"].tolist()


def test_a_file_in_place_of_the_folder_of_checkpoints(tmp_path):
    (tmp_path / "steps").write_text("x")
    with pytest.raises(UserError, match="a file where the folder of checkpoints should be"):
        checkpoint.manager(tmp_path / "steps")


# -------------------------------------------------------------------- which training it is of
def test_a_checkpoint_says_what_it_was_trained_with(two_steps, tmp_path):
    other = {"recipe.optimizer.name": "adamw", "recipe.optimizer.lr": 0.1}
    message = "recipe.optimizer.name: the checkpoint has 'sgd', this run asks for 'adamw'"
    with pytest.raises(UserError, match=message) as error:
        restore(two_steps, META | {"training": other})
    assert "optimizer.lr" not in str(error.value)


def test_checkpoints_of_older_versions_are_read(tmp_path):
    """They have no checksums and say nothing of the training."""
    checkpoints = checkpoint.manager(tmp_path / "steps")
    args = checkpoint.ocp.args
    meta = {k: v for k, v in META.items() if k != "training"}
    checkpoints.save(1, args=args.Composite(state=args.StandardSave(state()), meta=args.JsonSave(meta)))
    checkpoints.wait_until_finished()
    checkpoints.close()
    assert restore(tmp_path / "steps")["train"]["ctx"].tolist() == state()["train"]["ctx"].tolist()


# -------------------------------------------------------------------- exported folders
ARRAY = np.ones((2, 3), np.float32)


def exported(folder, arrays, meta=None):
    folder.mkdir(exist_ok=True)
    safetensors.numpy.save_file(arrays, folder / "tuned.safetensors")
    (folder / "tuned.json").write_text(json.dumps({"method": "coop"} | (meta or {})))
    return folder


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        ({"train/ctx": ARRAY * np.nan}, "'train/ctx' has numbers that are not finite"),
        ({"train/ctx": np.array([np.inf], np.float16)}, "'train/ctx' has numbers that are not finite"),
        ({"train/ctx": np.array([np.nan], ml_dtypes.bfloat16)}, "'train/ctx' has numbers that are not finite"),
        ({"train/ctx": np.array([1e300])}, "'train/ctx' has numbers that are not finite"),  # in float32
        ({"train": ARRAY, "train/ctx": ARRAY}, "an array 'train'"),
        ({"train/a": ARRAY, "train/a/b": ARRAY}, "'train/a/b' lies within 'train/a'"),
        ({"other/ctx": ARRAY}, "expected names as train/"),
        ({"train//ctx": ARRAY}, "expected names as train/"),
        ({"/train/ctx": ARRAY}, "expected names as train/"),
        ({"train/" + "a/" * 1000 + "b": ARRAY}, "expected names as train/"),
    ],
)
def test_arrays_that_no_training_leaves_are_refused_by_name(tmp_path, arrays, problem):
    with pytest.raises(UserError, match="tuned.safetensors") as error:
        checkpoint.read(exported(tmp_path / "c", arrays))
    assert problem in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff" * 100, (2**40).to_bytes(8, "little") + b"{}", (10).to_bytes(8, "little") + b"[" * 10]
)
def test_no_safetensors_file(tmp_path, content):
    folder = exported(tmp_path / "c", {"train/ctx": ARRAY})
    (folder / "tuned.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="tuned.safetensors: no whole safetensors file"):
        checkpoint.read(folder)


def test_shapes_and_kinds_that_differ_are_listed(tmp_path):
    like = {"train": {"ctx": jnp.zeros((2, 3)), "a": jnp.zeros(4)}, "fixed": {"label": jnp.zeros(2, jnp.int32)}}
    arrays = {"train/ctx": ARRAY.astype(np.int32), "train/b": ARRAY, "fixed/label": np.zeros(2, np.int32)}
    with pytest.raises(UserError, match="does not fit the method") as error:
        checkpoint.load(exported(tmp_path / "c", arrays), like)
    lines = str(error.value).splitlines()[1:]
    assert lines == [
        "  train/b: the file has (2, 3), the method needs nothing",
        "  train/ctx: the file has (2, 3) int32, the method needs (2, 3)",
        "  train/a: the file has nothing, the method needs (4,)",
    ]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("method", value) for value in (3, None, "", ["coop"], "a\0b", "x" * 20_000, "\ud800")),
        *(("hyper", value) for value in ([1], "x", None)),
        *(("classes", value) for value in ([1, 2], "cat", [], ["a", "a"], [["a"]], {"a": 1}, ["\ud800"], [""])),
        *(("templates", value) for value in ("a photo of a {}.", [1], ["a photo"])),
        *(("image_size", value) for value in (-1, 2.5, "64", 10**9, True)),
        *((field, 1) for field in ("truncate", "upright", "model", "backbone", "variant", "make", "tasks")),
        *(("visual", value) for value in ([1], {"width": -1}, {"width": 10**9}, {"width": "x"})),
    ],
)
def test_every_field_of_tuned_json_is_checked(tmp_path, field, value):
    folder = exported(tmp_path / "c", {"train/ctx": ARRAY}, {field: value})
    with pytest.raises(UserError, match=f"tuned.json: '{field}' is .*; expected") as error:
        checkpoint.read(folder)
    assert len(str(error.value)) < 500


def test_fields_of_later_versions_are_tolerated(tmp_path):
    folder = exported(tmp_path / "c", {"train/ctx": ARRAY}, {"something_new": {"a": [1, None]}})
    v, meta = checkpoint.read(folder)
    assert meta["something_new"] == {"a": [1, None]} and v["train"]["ctx"].tolist() == ARRAY.tolist()


@pytest.mark.parametrize(
    "name",
    ["os", "os.path", "vlmx.main", "..predict", "coop.", ".coop", "coop+os", "os+coop", "coop+ensemble+os", "coop/../x",
     "+", "coop+", "ensemble", "__init__", "README", "COOP", "coop ", "a.b+ensemble", ""],
)  # fmt: skip
def test_a_checkpoint_names_only_what_the_package_has(name):
    with pytest.raises(UserError, match="no method of vlmx"):
        checkpoint.refuse_outside("c", name, {"coop", "vpt"}, ())


def test_what_the_person_allows_is_allowed_and_nothing_else():
    for name in ("coop", "coop+vpt", "coop+ensemble", "my.method", "my.method+ensemble", "coop+my.method"):
        checkpoint.refuse_outside("c", name, {"coop", "vpt"}, ("my.method",))
    with pytest.raises(UserError, match="--allow-methods my.other"):
        checkpoint.refuse_outside("c", "my.other", {"coop", "vpt"}, ("my.method",))
