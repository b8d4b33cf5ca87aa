"""Visual features: of pictures and videos, on several devices, gone on with, unreadable ones listed."""

import dataclasses
import functools
import json
import os
import shutil
import subprocess
import sys
import time

import h5py
import jax
import numpy as np
import pytest
from PIL import Image

from vlmx import extract, shard
from vlmx.data import scene_clips, transforms, video, vl_features
from vlmx.errors import UserError
from vlmx.models import zoo
from vlmx.models.clip import Clip


@pytest.fixture(scope="module")
def clip():
    return zoo.load("tiny_clip").model


def each(function, clip, pixels):
    """function(clip, pictures one by one): programs of one shape."""
    run = jax.jit(function)
    return np.concatenate([run(clip, p[None]) for p in pixels])


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "in/sub").mkdir(parents=True)
    for i in range(5):
        pixels = rng.integers(0, 256, (40 + i, 70, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / ("sub" if i % 2 else ".") / f"p{i}.png")
    return tmp_path / "in"


def command(*argv):
    return extract.run(extract.arguments(["--model", "tiny_clip", "--batch", "8", *map(str, argv)]))


def test_grids_of_pictures(pictures, clip, tmp_path):
    (pictures / "broken.jpg").write_bytes(b"no picture")
    unreadable = command("--images", pictures, "--out", tmp_path / "f.h5", "--store", "float32")
    assert list(unreadable) == ["broken"]
    assert "broken.jpg: not an image" in (tmp_path / "f.h5.unreadable.txt").read_text()
    source = vl_features.where(tmp_path / "f.h5")
    for path in pictures.rglob("*.png"):
        image = transforms.squash(transforms.decode(path), 64)[None]
        np.testing.assert_allclose(source[path.stem], each(Clip.grid, clip, image)[0], atol=2e-5)
    assert source["p0"].shape == (16, 128) and "broken" not in source


def test_pictures_come_as_the_checkpoint_states(pictures, clip, tmp_path):
    shutil.copytree(zoo.locate("tiny_clip"), tmp_path / "m")
    processor = json.loads((tmp_path / "m/preprocessor_config.json").read_text())
    processor |= {"size": {"height": 64, "width": 64}, "resample": 2, "image_mean": [0.5] * 3}
    (tmp_path / "m/preprocessor_config.json").write_text(json.dumps(processor))
    config = dataclasses.replace(clip.config, mean=(0.5,) * 3)
    want = (np.asarray(Image.open(pictures / "p0.png").resize((64, 64), Image.Resampling.BILINEAR)),)
    want = each(Clip.grid, clip.replace(config=config), np.stack(want))[0]
    for how in "squash", "center":
        out = tmp_path / f"{how}.h5"
        command("--images", pictures, "--model", tmp_path / "m", "--out", out, "--transform", how, "--store", "float32")
        np.testing.assert_allclose(vl_features.where(out)["p0"], want, atol=2e-5)


def test_going_on(pictures, tmp_path, monkeypatch):
    """A stopped command has lost nothing that was written; another model or transform is not mixed in."""
    encoded, encode = [], extract.encode

    def stops(*args, **more):
        for n, found in enumerate(encode(*args, **more)):
            if n == 3:
                raise KeyboardInterrupt
            encoded.append(found[0])
            yield found

    monkeypatch.setattr(extract, "PART", 1)
    monkeypatch.setattr(extract, "encode", stops)
    out = tmp_path / "f.h5"
    with pytest.raises(KeyboardInterrupt):
        command("--images", pictures, "--out", out)
    assert not out.exists() and len(list((tmp_path / "f.h5.parts").iterdir())) == 3
    command("--images", pictures, "--out", out)
    assert encoded == ["p0", "p2", "p4", "p1", "p3"] and not (tmp_path / "f.h5.parts").exists()
    with h5py.File(out) as file:
        assert set(file) == {"p0", "p1", "p2", "p3", "p4"} and file["p0/features"].dtype == np.float16
    (pictures / "p9.png").write_bytes((pictures / "p0.png").read_bytes())
    command("--images", pictures, "--out", out)
    assert encoded[5:] == ["p9"] and "p9" in vl_features.where(out) and "p0" in vl_features.where(out)
    with pytest.raises(UserError, match="another --out"):
        command("--images", pictures, "--out", out, "--transform", "center")


def test_shares_and_names(pictures):
    whole = extract.listing(pictures, (".png",))
    parts = [extract.listing(pictures, (".png",), (i, 2)) for i in range(2)]
    assert parts[0] | parts[1] == whole and not set(parts[0]) & set(parts[1])
    (pictures / "sub/p0.png").write_bytes(b"")
    with pytest.raises(UserError, match="same name in the file, 'p0'"):
        extract.listing(pictures, (".png",))
    with pytest.raises(UserError, match="holds nothing that ends in .mp4"):
        extract.listing(pictures, (".mp4",))
    with pytest.raises(UserError, match="there is no folder"):
        extract.listing(pictures / "none", (".png",))
    with pytest.raises(SystemExit):
        extract.arguments(["--images", "x", "--out", "y", "--share", "2/2"])


def test_batches_go_on_over_videos(clip):
    """Features do not depend on what shares a batch, nor on the number of devices."""
    lengths = {"a": 3, "b": 0, "c": 7, "d": 1}
    rng = np.random.default_rng(1)
    frames = {name: rng.integers(0, 256, (n, 64, 64, 3), np.uint8) for name, n in lengths.items() if n}

    def read(name):
        if name == "b":
            raise transforms.BadImage("empty")
        return frames[name]

    items = {name: name for name in lengths}
    for devices in (1, 2):
        mesh = shard.make_mesh(devices=jax.devices()[:devices])
        model = shard.place(clip, shard.on(mesh))
        found = dict(extract.encode(model, items, read, extract.pooled, 4, mesh))
        assert list(found) == list(lengths) and isinstance(found["b"], transforms.BadImage)
        for name, pixels in frames.items():
            np.testing.assert_allclose(found[name], each(Clip.image, clip, pixels), atol=2e-5)


def animated(path, ms):
    shades = [Image.new("RGB", (8, 8), (60 * i, 0, 0)) for i in range(4)]
    shades[0].save(path, save_all=True, append_images=shades[1:], duration=ms)
    return lambda rate: [f.getpixel((0, 0))[0] // 60 for f in video.frames(path, rate)]


def test_frames_of_animated_pictures(tmp_path):
    shades = animated(tmp_path / "x.png", 500)  # 2 seconds
    assert shades(2) == [0, 1, 2, 3]
    assert shades(4) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert shades(1) == [0, 2]
    assert shades(0.1) == [0]


def test_frames_of_films(tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "x.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        for i in range(30):
            shade = np.full((32, 32, 3), 8 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(shade, format="rgb24")))
        container.mux(stream.encode())
    shades = [np.asarray(f).mean() for f in video.frames(tmp_path / "x.mp4", 2 / 3)]
    np.testing.assert_allclose(shades, [0, 8 * 15], atol=6)
    (tmp_path / "y.mp4").write_bytes(b"no film")
    with pytest.raises(transforms.BadImage, match="InvalidData"):
        list(video.frames(tmp_path / "y.mp4", 1))
    with pytest.raises(transforms.BadImage, match="no such file"):
        list(video.frames(tmp_path / "z.mp4", 1))


def test_films_without_pyav(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(UserError, match=r"pip install 'vlmx\[video\]'"):
        list(video.frames(tmp_path / "x.mp4", 1))


def test_clips(tmp_path, clip):
    (tmp_path / "in").mkdir()
    animated(tmp_path / "in/v.png", 1000 * scene_clips.SECONDS / 4)
    command("--videos", tmp_path / "in", "--what", "pooled", "--out", tmp_path / "v.h5")
    read = functools.partial(extract.read_video, transform=functools.partial(transforms.center, size=64), rate=2 / 3)
    source = vl_features.where(tmp_path / "v.h5")
    assert source["v"].shape == (4, clip.config.embed_dim)
    np.testing.assert_allclose(source["v"], each(Clip.image, clip, read(tmp_path / "in/v.png")), atol=5e-3)


def paint(path, color):
    Image.new("RGB", (64, 64), color).save(path)


def stored(path):
    with h5py.File(path) as file:
        return {name: file[f"{name}/features"][()] for name in file}


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_called_again_it_leaves_what_a_first_call_would(pictures, tmp_path, capsys):
    out = tmp_path / "f.h5"
    command("--images", pictures, "--out", out)
    before = stored(out)
    times = os.stat(pictures / "p0.png")
    Image.fromarray(255 - np.asarray(Image.open(pictures / "p0.png"))).save(pictures / "p0.png")
    os.utime(pictures / "p0.png", ns=(times.st_atime_ns, times.st_mtime_ns))  # replaced, with the old size and time
    (pictures / "sub/p1.png").unlink()
    (pictures / "p2.png").write_bytes(b"broken")
    paint(pictures / "p9.png", "blue")
    (pictures / "sub/p3.png").rename(pictures / "p3.png")
    capsys.readouterr()
    assert list(command("--images", pictures, "--out", out)) == ["p2"]
    text = capsys.readouterr().out
    assert "3 have changed since they were encoded" in text and "1 that" in text and "left out of it" in text
    after = stored(out)
    command("--images", pictures, "--out", tmp_path / "fresh.h5")
    assert same(after, stored(tmp_path / "fresh.h5")) and after.keys() == {"p0", "p3", "p4", "p9"}
    assert not np.array_equal(after["p0"], before["p0"]) and np.array_equal(after["p4"], before["p4"])
    written = out.stat().st_mtime_ns
    command("--images", pictures, "--out", out)
    assert out.stat().st_mtime_ns == written  # nothing to do
    command("--images", pictures, "--out", out, "--store", "float32")
    assert {a.dtype for a in stored(out).values()} == {np.dtype(np.float32)}
    with pytest.raises(UserError, match="another --out"):
        (tmp_path / "other").mkdir()
        paint(tmp_path / "other/q.png", "red")
        command("--images", tmp_path / "other", "--out", out)
    assert stored(out).keys() == after.keys()


def test_a_picture_replaced_after_a_stop_is_encoded_again(pictures, tmp_path, monkeypatch):
    """Its old features lie in the .parts of the first call."""
    monkeypatch.setattr(extract, "PART", 1)
    with monkeypatch.context() as patch:
        patch.setattr(extract.Parts, "join", lambda parts: None)
        command("--images", pictures, "--out", tmp_path / "f.h5")
    Image.fromarray(255 - np.asarray(Image.open(pictures / "p0.png"))).save(pictures / "p0.png")
    command("--images", pictures, "--out", tmp_path / "f.h5")
    command("--images", pictures, "--out", tmp_path / "fresh.h5")
    assert same(stored(tmp_path / "f.h5"), stored(tmp_path / "fresh.h5"))


def test_features_of_earlier_versions_are_encoded_again(pictures, tmp_path):
    """They do not say which picture they are of."""
    out = tmp_path / "f.h5"
    command("--images", pictures, "--out", out)
    want = stored(out)
    with h5py.File(out, "a") as file:
        for name in file:
            del file[f"{name}/features"].attrs["identity"]
            file[f"{name}/features"][...] = 0
    command("--images", pictures, "--out", out)
    assert same(stored(out), want)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda out: out.write_bytes(b"text"), "is no whole HDF5 file"),
        (lambda out: out.write_bytes(b""), "is no whole HDF5 file"),
        (lambda out: out.write_bytes(out.read_bytes()[:-9]), "is no whole HDF5 file"),
        (lambda out: (out.unlink(), out.mkdir()), "is no file"),
        (lambda out: (out.unlink(), os.mkfifo(out)), "is no file"),
        (lambda out: h5py.File(out, "w").create_dataset("p0", data=[1.0]), "holds features made with {}"),
    ],
)
def test_an_output_that_is_something_else_is_refused(pictures, tmp_path, make, message):
    out = tmp_path / "f.h5"
    command("--images", pictures, "--out", out)
    make(out)
    with pytest.raises(UserError, match=message) as error:
        command("--images", pictures, "--out", out)
    assert str(out) in str(error.value) and len(str(error.value).splitlines()) == 1


def test_an_output_below_a_file_is_refused_before_anything_is_encoded(pictures, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "f.h5.parts").write_text("")
    for out in (tmp_path / "file/f.h5", tmp_path / "f.h5"):
        with pytest.raises(UserError, match="is no folder: another --out"):
            command("--images", pictures, "--out", out)
    (tmp_path / "g.h5.parts").mkdir()
    (tmp_path / "g.h5.parts/notes.h5").write_text("somebody's own")
    command("--images", pictures, "--out", tmp_path / "g.h5")
    assert (tmp_path / "g.h5.parts/notes.h5").exists()


def test_an_output_that_another_program_has_open(pictures, tmp_path):
    out = tmp_path / "f.h5"
    command("--images", pictures, "--out", out)
    program = f"import h5py, sys; f = h5py.File({str(out)!r}, 'a'); print(1, flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(UserError, match="f.h5: another program has this file open"):
            command("--images", pictures, "--out", out)
        other.stdin.close()
    command("--images", pictures, "--out", out)


def test_what_is_no_picture_and_odd_names(pictures, tmp_path, capsys):
    os.mkfifo(pictures / "fifo.jpg")
    (pictures / "folder.jpg").mkdir()
    (pictures / "zero.png").symlink_to("/dev/zero")
    (pictures / "@eaDir").mkdir()
    paint(pictures / "@eaDir/p0.png", "red")
    (pictures / "notes.txt").write_text("x")
    paint(os.fsdecode(os.fsencode(pictures) + b"/caf\xe9.png"), "red")
    out = tmp_path / "f.h5"
    assert command("--images", pictures, "--out", out).keys() == {"fifo", "zero"}
    assert stored(out).keys() == {"p0", "p1", "p2", "p3", "p4", "caf\\udce9"}
    assert ".txt" in capsys.readouterr().out
    assert (tmp_path / "f.h5.unreadable.txt").read_text().count("FIFO, a device or a socket") == 2
    paint(pictures / "e\u0301.png", "red")
    paint(pictures / "sub/\u00e9.png", "red")
    with pytest.raises(UserError, match="same name in the file"):
        extract.listing(pictures)


def test_features_that_are_not_finite_are_refused(pictures, tmp_path, monkeypatch):
    def large(model, images):
        return 1e5 * images[:, :1, 0].astype("float32")  # float16 ends at 65,504

    monkeypatch.setitem(extract.WHAT, "grid", large)
    unreadable = command("--images", pictures, "--out", tmp_path / "f.h5")
    assert len(unreadable) == 5 and all("--store float32" in reason for reason in unreadable.values())
    assert not command("--images", pictures, "--out", tmp_path / "g.h5", "--store", "float32")
    monkeypatch.setitem(extract.WHAT, "grid", lambda model, images: np.nan * large(model, images))
    unreadable = command("--images", pictures, "--out", tmp_path / "h.h5")
    assert len(unreadable) == 5 and all("not finite" in reason for reason in unreadable.values())
    assert stored(tmp_path / "h.h5") == {}


def test_frames_are_bounded_in_number_and_read_little_by_little(tmp_path, clip, monkeypatch):
    """A small GIF that lasts for three weeks; a film's frames are encoded before its last ones are read."""
    shades = [Image.new("RGB", (8, 8), (i % 255, i // 255, 0)) for i in range(3000)]
    shades[0].save(tmp_path / "long.gif", save_all=True, append_images=shades[1:], duration=655_350)
    started = time.monotonic()
    with pytest.raises(transforms.BadImage, match="over 10,000 frames"):
        for _ in video.frames(tmp_path / "long.gif", video.RATE):
            pass
    assert time.monotonic() - started < 20
    mesh, counts = shard.make_mesh(devices=jax.devices()[:1]), {"read": 0, "encoded": 0}

    def read(name):
        for _ in range(500):
            counts["read"] += 1
            assert counts["read"] - counts["encoded"] < 3 * extract.FRAMES_AHEAD + 8
            yield np.zeros((64, 64, 3), np.uint8)
        if name == "b":
            raise transforms.BadImage("the end is missing")

    encoder = extract._encoder(mesh, extract.pooled)

    def count(model, images):
        counts["encoded"] += len(images)
        return encoder(model, images)

    monkeypatch.setattr(extract, "_encoder", lambda *_: count)
    for name in ("a", "b"):
        ((_, features),) = extract.encode(clip, {name: name}, read, extract.pooled, 8, mesh)
        assert features.shape == (500, 128) if name == "a" else str(features) == "the end is missing"
    readers = {"a": lambda: read("b"), "b": lambda: iter(())}
    mixed = dict(extract.encode(clip, readers, lambda reader: reader(), extract.pooled, 8, mesh))
    assert str(mixed["a"]) == "the end is missing" and str(mixed["b"]) == "no frames"


@pytest.mark.parametrize("ending", ["gif", "webp", "png"])
def test_each_frame_of_an_animated_picture_is_shown_as_long_as_it_says(tmp_path, ending):
    path, shades = tmp_path / f"a.{ending}", [Image.new("RGB", (8, 8), (80 * i, 0, 0)) for i in range(3)]
    shades[0].save(path, save_all=True, append_images=shades[1:], duration=[1000, 2000, 3000], lossless=True)
    assert [frame.getpixel((0, 0))[0] for frame in video.frames(path, 1)] == [0, 80, 80, 160, 160, 160]


def test_animated_pictures_of_too_many_pixels_are_refused_at_once(tmp_path):
    """3,000 frames of 9,000 x 9,000 pixels in a file of 60,000 bytes, which would take minutes."""
    frame = bytes.fromhex("2c 0000 0000 0100 0100 00 02 02 44 01 00")
    screen = b"GIF89a" + bytes.fromhex("2823 2823 80 00 00 000000 ffffff")
    (tmp_path / "a.gif").write_bytes(screen + 3000 * frame + b";")
    wide = bytes.fromhex("2c 0000 0000 2823 2823 00 02 02 44 01 00")  # beyond a screen of 1 x 1 pixels
    (tmp_path / "b.gif").write_bytes(screen.replace(b"\x28\x23", b"\1\0") + frame + wide + 2998 * frame + b";")
    with pytest.raises(transforms.BadImage, match="3,000 frames of 9000 x 9000"):
        list(video.frames(tmp_path / "b.gif", 1000))
    with pytest.raises(transforms.BadImage, match="3,000 frames of 9000 x 9000: over 20,000,000,000 pixels"):
        next(video.frames(tmp_path / "a.gif", 1))


@pytest.mark.parametrize("ending", ["gif", "mp4"])
def test_a_video_that_is_an_empty_file(tmp_path, ending):
    if ending == "mp4":
        pytest.importorskip("av")
    (tmp_path / f"a.{ending}").touch()
    with pytest.raises(transforms.BadImage, match="^the file is empty$"):
        next(video.frames(tmp_path / f"a.{ending}", 1))


@pytest.mark.parametrize("name", ["fifo.mp4", "fifo.gif"])
def test_a_fifo_is_no_video_at_once(tmp_path, name):
    if name.endswith("mp4"):
        pytest.importorskip("av")
    os.mkfifo(tmp_path / name)
    with pytest.raises(transforms.BadImage, match="FIFO"):
        next(video.frames(tmp_path / name, 1))


def test_a_film_names_no_other_file(tmp_path, monkeypatch):
    """A playlist in a file with a film's ending, and a film whose path reads as a URL."""
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "x.ts"), "w") as container:
        stream = container.add_stream("mpeg2video", rate=10)
        stream.width = stream.height = 32
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode())
    for text in (
        f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{tmp_path}/x.ts\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile 'x.ts'\n",
    ):
        (tmp_path / "list.mp4").write_text(text)
        with pytest.raises(transforms.BadImage):
            next(video.frames(tmp_path / "list.mp4", 1))
    monkeypatch.chdir(tmp_path)
    os.rename("x.ts", "http:x.ts")
    assert len(list(video.frames("http:x.ts", 1))) == 1


@pytest.mark.parametrize("flags", [("--rate", "nan"), ("--rate", "1e-9"), ("--size", "-1"), ("--batch", "0")])
def test_numbers_out_of_range(flags):
    with pytest.raises(SystemExit):
        extract.arguments(["--images", "x", "--out", "y", *flags])


def test_what_is_left_out_is_counted(pictures, capsys):
    extract.listing(pictures, (".png",))
    assert "left out" not in capsys.readouterr().out
    (pictures / "sub/notes.txt").write_text("x")
    (pictures / "sub/more.doc").write_text("x")
    extract.listing(pictures, (".png",))
    assert "files of other endings: 2" in capsys.readouterr().out
