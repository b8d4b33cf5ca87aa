"""Whatever bytes images, videos, stored features and extracted features have: pixels, rows, or one clear error."""

import functools
import hashlib
import io
import json
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from properties import settings

from vlmx import extract, store
from vlmx.data import transforms, video
from vlmx.data.transforms import BadImage
from vlmx.errors import UserError

# Of files that are broken on purpose; the decoders say so in many ways.
pytestmark = pytest.mark.filterwarnings("ignore")
PHOTO = np.random.default_rng(0).integers(0, 256, (12, 18, 3), np.uint8)
FILMS = {".mp4": "mpeg4", ".mkv": "mpeg4", ".ts": "mpeg2video"}


def encoded(img, kind, **options):
    buffer = io.BytesIO()
    img.save(buffer, kind, **options)
    return buffer.getvalue()


@functools.cache
def images():
    """Small files of many formats and modes."""
    rgb, exif = Image.fromarray(PHOTO), Image.Exif()
    exif[274] = 6
    frames = {"save_all": True, "append_images": [Image.fromarray(255 - PHOTO)]}
    kinds = ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "AVIF", "JPEG2000", "ICO", "TGA", "MPO")
    files = [encoded(rgb, kind) for kind in kinds]
    files += [encoded(rgb, kind, exif=exif, icc_profile=bytes(200)) for kind in ("PNG", "JPEG", "WEBP", "TIFF")]
    files += [encoded(rgb, kind, **frames) for kind in ("PNG", "GIF", "WEBP", "TIFF")]
    files += [encoded(rgb.convert(mode), "PNG") for mode in ("1", "L", "LA", "P", "RGBA")]
    files += [encoded(rgb.convert(mode), "TIFF") for mode in ("CMYK", "F", "I", "YCbCr", "LAB")]
    files += [encoded(rgb, "TIFF", compression=c) for c in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits")]
    return [
        *files,
        encoded(rgb.convert("CMYK"), "JPEG"),
        encoded(Image.fromarray(PHOTO[..., 0] * np.uint16(257)), "PNG"),
    ]


@functools.cache
def videos():
    """(ending, content) of small animated pictures and, where PyAV is installed, films."""
    frames = [Image.fromarray(np.roll(PHOTO, i, 1)) for i in range(4)]
    options = {"save_all": True, "append_images": frames[1:], "duration": 500}
    files = [(f".{kind.lower()}", encoded(frames[0], kind, **options)) for kind in ("GIF", "WEBP", "PNG")]
    try:
        import av
    except ImportError:
        return files
    for ending, codec in FILMS.items():
        content = io.BytesIO()
        kind = {".mp4": "mp4", ".mkv": "matroska", ".ts": "mpegts"}[ending]
        with av.open(content, "w", format=kind) as container:
            stream = container.add_stream(codec, rate=10)
            stream.width = stream.height = 32
            for i in range(12):
                shade = np.full((32, 32, 3), 20 * i, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(shade, format="rgb24")))
            container.mux(stream.encode())
        files.append((ending, content.getvalue()))
    return files


@st.composite
def damaged(draw, content):
    """`content` with bytes changed, cut off, put in, or taken out."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content) - 1)) if content else 0
        at = min(at, 255) if draw(st.booleans()) else at  # headers are at the beginning
        how = draw(st.sampled_from(["change", "cut", "insert", "remove"]))
        if how == "cut":
            del content[at:]
        elif how == "remove":
            del content[at : at + draw(st.integers(1, 16))]
        else:
            new = draw(
                st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\xff" * 4, bytes(4), b"\x7f\xff"]))
            )
            content[at : at + (len(new) if how == "change" else 0)] = new
    return bytes(content)


def check(content, upright=False):
    try:
        img = transforms.decode(content, upright)
        assert img.mode == "RGB" and 0 not in img.size
        for transform in (transforms.center, transforms.squash):
            pixels = transform(img, 16)
            assert pixels.shape == (16, 16, 3) and pixels.dtype == np.uint8
    except BadImage as e:
        assert str(e)


@settings(3)
@given(st.data())
def test_damaged_images(data):
    content = data.draw(st.sampled_from(images()))
    check(data.draw(damaged(content)), data.draw(st.booleans()))


@settings()
@given(
    st.binary(max_size=300), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"II*\0", b"BM"])
)
def test_any_bytes(content, magic):
    check(magic + content, upright=True)


@settings()
@given(st.data())
def test_an_image_that_is_cut_is_refused_or_as_before(data):
    content = data.draw(st.sampled_from(images()[:4]))
    cut = content[: data.draw(st.integers(0, len(content) - 1))]
    try:
        assert transforms.decode(cut).tobytes() == transforms.decode(content).tobytes()
    except BadImage:
        pass


@settings()
@given(st.data())
def test_damaged_videos(data):
    ending, content = data.draw(st.sampled_from(videos()))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"x{ending}")
        path.write_bytes(data.draw(damaged(content)))
        try:
            n = 0
            for frame in video.frames(path, data.draw(st.sampled_from([0.01, 2 / 3, 30]))):
                assert frame.mode == "RGB"
                n += 1
            assert 0 < n <= video.MAX_FRAMES
        except BadImage as e:
            assert str(e)


IDS = np.random.default_rng(1).integers(0, 256, (3, 16), np.uint8)
ROWS = np.arange(12, dtype=np.float32).reshape(3, 4)


@settings()
@given(st.data())
def test_damaged_segments_of_the_feature_store(data):
    """What comes back is what was stored; all else is missing, and stored again."""
    with tempfile.TemporaryDirectory() as folder:
        store.Store(folder).add({}, IDS, ROWS)
        (segment,) = Path(folder).glob("*/*/")
        path = segment / data.draw(st.sampled_from(["features.npy", "ids.npy", "segment.json"]))
        path.write_bytes(data.draw(damaged(path.read_bytes())))
        rows = store.Store(folder).find({}, IDS, (4,))
        assert len(rows.missing) == 3 or (np.asarray(rows) == ROWS).all()


@settings()
@given(st.data())
def test_hostile_segments_of_the_feature_store(data):
    """Even with the right checksums: finite float32 rows of the right shape, or none."""
    with tempfile.TemporaryDirectory() as folder:
        store.Store(folder).add({}, IDS, ROWS)
        (segment,) = Path(folder).glob("*/*/")
        for path in (segment / "features.npy", segment / "ids.npy"):
            path.write_bytes(data.draw(damaged(path.read_bytes())))
        sums = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in segment.glob("*.npy")}
        (segment / "segment.json").write_text(json.dumps({"rows": 3, "sha256": sums}))
        rows = np.asarray(store.Store(folder).find({}, IDS, (4,)))
        assert rows.shape == (3, 4) and rows.dtype == np.float32 and np.isfinite(rows).all()


@functools.cache
def hdf5():
    with tempfile.TemporaryDirectory() as folder:
        parts = extract.Parts(f"{folder}/x.h5", {"model": "m"}, dict.fromkeys("abcd", "id"))
        for name in "abcd":
            parts.add(name, np.ones((3, 4), np.float16))
        parts.join()
        return Path(folder, "x.h5").read_bytes()


@settings()
@given(st.data())
def test_damaged_files_of_extracted_features(data):
    """The next call goes on with the file, or says that it is damaged."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.h5")
        path.write_bytes(data.draw(damaged(hdf5())))
        try:
            parts = extract.Parts(path, {"model": "m"}, dict.fromkeys("abcde", "id"))
            parts.add("e", np.ones((3, 4), np.float16))
            parts.join()
            with h5py.File(path) as file:
                assert file["e/features"].shape == (3, 4)
        except UserError as e:
            assert str(path) in str(e)
        assert path.exists()
