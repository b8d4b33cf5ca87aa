"""Visual features: of pictures and videos, on several devices, gone on with, unreadable ones listed."""

import dataclasses
import functools
import json
import shutil

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
