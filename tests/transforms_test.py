"""Decoding and transforms: the published pixels bit for bit, unusual modes read rightly, broken files refused."""

import hashlib
import io
import os
import socket
import struct
import zlib
from functools import partial

import numpy as np
import pytest
from golden_cases import beside, load
from PIL import EpsImagePlugin, Image, ImageOps
from safetensors.numpy import load_file

from vlmx.data import transforms
from vlmx.data.transforms import BadImage, decode
from vlmx.models.clip import ClipConfig, Resize, ViT

RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (40, 60, 3), np.uint8)


def encoded(img, kind="PNG", **options):
    buffer = io.BytesIO()
    img.save(buffer, kind, **options)
    return buffer.getvalue()


def same(got, want, entry, img):
    """uint8 pixels equal; where this machine's JPEG decoder differs from the reference's, by a few levels."""
    exact = hashlib.sha256(np.asarray(img).tobytes()).hexdigest() == entry["decoded_rgb_sha256"]
    assert exact or entry["file"].endswith(".jpg"), f"{entry['file']}: decoded pixels differ"
    assert got.dtype == np.uint8 and got.shape == want.shape
    assert np.abs(got.astype(int) - want).max() <= (0 if exact else 4), entry["file"]
    return exact


@pytest.mark.golden("images_expected*.json")
def test_golden_test_transform(golden):
    """Read, resized and cropped as published, at 224 and 32; squashed; normalised."""
    expected = load(golden)
    small = load_file(beside(golden, f"{golden.stem}_32.safetensors"))
    assert expected["images"]
    for name, entry in expected["images"].items():
        img = decode(str(beside(golden, "images") / entry["file"]))
        assert img.mode == "RGB" and img.size == tuple(entry["size_wh"])
        want = np.asarray(Image.open(beside(golden, golden.stem) / f"{name}_224.png"))
        same(transforms.center(img, 224), want, entry, img)
        pixels = transforms.center(img, 32)
        exact = same(pixels, small[f"{name}/dassl_u8_32"], entry, img)
        if f"{name}/squash_resize_u8_32" in small:
            same(transforms.squash(img, 32), small[f"{name}/squash_resize_u8_32"], entry, img)
        normal = transforms.normalize(pixels, expected["mean"], expected["std"])
        assert normal.dtype == np.float32
        tolerance = 1e-6 if exact else 0.1
        np.testing.assert_allclose(normal.transpose(2, 0, 1), small[f"{name}/dassl_normalized_32"], 0, tolerance)


@pytest.mark.golden("images_expected*.json")
def test_golden_resized_crop(golden):
    small = load_file(beside(golden, f"{golden.stem}_32.safetensors"))
    img = decode(str(beside(golden, "images") / "rgb_landscape.png"))
    boxes = load(golden).get("resized_crop_boxes_top_left_h_w", ())
    crops = [transforms.resized_crop(img, box, 32) for box in boxes]
    for i, crop in enumerate(crops):
        np.testing.assert_array_equal(crop, small[f"resized_crop/{i}"])
    for name in (name for name in small if name.startswith("hflip/resized_crop_")):
        np.testing.assert_array_equal(transforms.hflip(crops[int(name.rsplit("_", 1)[1])]), small[name])


@pytest.mark.golden("images_expected*.json")
def test_golden_random_boxes(golden):
    """The distribution of the random boxes: the reference's quantiles hold the shares of ours that they should."""
    rng = np.random.default_rng(0)
    for name, want in load(golden).get("random_resized_crop_statistics", {}).items():
        width, height = want["image_wh"]
        boxes = [transforms.random_box(width, height, rng, want["scale"], want["ratio"]) for _ in range(10_000)]
        top, left, h, w = np.array(boxes).T
        assert (top >= 0).all() and (left >= 0).all() and (top + h <= height).all() and (left + w <= width).all()
        assert abs(np.mean(h * w / (width * height)) - want["area_mean"]) < 0.01, name
        for values, key in ((h * w / (width * height), "area_fraction"), (w / h, "aspect")):
            shares = [np.mean(values <= q) for q in want[f"{key}_quantiles_5_25_50_75_95"]]
            np.testing.assert_allclose(shares, [0.05, 0.25, 0.5, 0.75, 0.95], atol=0.025, err_msg=f"{name} {key}")
        places = top[h < height] / (height - h[h < height])  # uniform over the places that fit
        assert abs(places.mean() - 0.5) < 0.02 and places.min() == 0 and places.max() == 1


@pytest.mark.golden("images_hf_differences*.json")
def test_golden_not_the_other_processor(golden):
    """Where transformers' processor is known to differ from the published one, ours differs from it by as much."""
    mean, std = (np.array(load(beside(golden, "images_expected.json"))[k])[:, None, None] for k in ("mean", "std"))
    theirs = load_file(beside(golden, "images_hf_32.safetensors"))
    for name, facts in load(golden)["images"].items():
        file = next(beside(golden, "images").glob(f"{name}.*"))
        ours = transforms.center(decode(str(file)), 32).transpose(2, 0, 1).astype(float)
        grey = np.abs(np.rint((theirs[f"{name}/hf_pil_32"] * std + mean) * 255) - ours).max()
        assert abs(grey - facts["pil_32"]["max_abs_grey"]) <= (4 if file.suffix == ".jpg" else 0), name


def test_center_keeps_what_already_fits_and_rounds_half_to_even():
    img = decode(np.tile(np.arange(231, dtype=np.uint8), (224, 1)))
    assert transforms.center(img, 224)[0, 0, 0] == 4  # 7 / 2 = 3.5 -> 4, and no resampling
    img = decode(np.tile(np.arange(229, dtype=np.uint8), (224, 1)))
    assert transforms.center(img, 224)[0, 0, 0] == 2  # 5 / 2 = 2.5 -> 2


def test_modes_are_read_rightly():
    gray = PHOTO[:, :, 0]
    threefold = np.repeat(gray[:, :, None], 3, 2)
    rgba = np.dstack([PHOTO, np.zeros_like(gray)])
    palette = Image.fromarray(PHOTO).quantize(16)
    opaque = np.asarray(palette.convert("RGB"))
    palette.info["transparency"] = bytes(range(16))
    cmyk = Image.fromarray(PHOTO).convert("CMYK")
    for ref, want in [
        (encoded(Image.fromarray(PHOTO)), PHOTO),
        (encoded(Image.fromarray(gray)), threefold),
        (encoded(Image.fromarray(rgba)), PHOTO),  # transparent throughout: the colours are still there
        (encoded(palette), opaque),
        (encoded(Image.fromarray(gray > 100)), np.where(threefold > 100, 255, 0)),
        (encoded(cmyk, "TIFF"), np.asarray(cmyk.convert("RGB"))),
        (PHOTO, PHOTO),
        (gray, threefold),
        (gray[:, :, None], threefold),
        (rgba, PHOTO),
        (PHOTO[:, ::-1], PHOTO[:, ::-1]),  # a view
        (Image.fromarray(PHOTO), PHOTO),
        (Image.fromarray(rgba), PHOTO),
        (PHOTO[:1, :1], PHOTO[:1, :1]),
    ]:
        img = decode(ref)
        assert img.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(img), want)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_gray_is_scaled_not_clipped(kind):
    values = np.array([[0, 128, 129, 257, 32768, 65407, 65535]], np.uint16)
    pixels = np.asarray(decode(encoded(Image.fromarray(values), kind)))
    np.testing.assert_array_equal(pixels[0, :, 1], [0, 0, 1, 1, 128, 255, 255])


def tiff_of(bits, white_is_zero, data, width=4):
    """A TIFF of one row of gray."""
    fields = {
        256: width,
        257: 1,
        258: bits,
        259: 1,
        262: int(not white_is_zero),
        273: 122,
        277: 1,
        278: 1,
        279: len(data),
    }
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields.items())
    return b"II*\0" + struct.pack("<IH", 8, len(fields)) + entries + bytes(4) + data


@pytest.mark.parametrize("white_is_zero", [False, True])
def test_gray_of_more_than_8_bits_in_tiff(white_is_zero):
    want = np.array([0, 255, 128, 1], np.uint8)
    want = 255 - want if white_is_zero else want
    twelve = decode(tiff_of(12, False, bytes([0x00, 0x0F, 0xFF, 0x80, 0x00, 0x10])))  # 0, 4095, 2048, 16
    np.testing.assert_array_equal(np.asarray(twelve)[0, :, 0], [0, 255, 128, 1])
    sixteen = decode(tiff_of(16, white_is_zero, np.array([0, 65535, 32896, 257], "<u2").tobytes()))
    np.testing.assert_array_equal(np.asarray(sixteen)[0, :, 0], want)


def test_exif_orientation_only_when_upright(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # to be turned by 90 degrees clockwise
    path = tmp_path / "turned.png"
    path.write_bytes(encoded(Image.fromarray(PHOTO), exif=exif))
    np.testing.assert_array_equal(np.asarray(decode(str(path))), PHOTO)
    np.testing.assert_array_equal(np.asarray(decode(path, upright=True)), np.rot90(PHOTO, -1))


def png_of(width, height):
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_broken_images_say_what_is_wrong(tmp_path):
    good = encoded(Image.fromarray(PHOTO))
    (tmp_path / "empty.jpg").touch()
    cases = [
        (str(tmp_path / "none.jpg"), "no such file"),
        (str(tmp_path / "empty.jpg"), "the file is empty"),
        (str(tmp_path), "Is a directory"),
        (b"", "the file is empty"),
        (b"not an image at all", "not an image"),
        (good[: len(good) // 2], "truncated|Truncated|broken"),
        (encoded(Image.fromarray(PHOTO), "JPEG")[:-200], "truncated"),
        (png_of(10_000, 10_000), "10000 x 10000 pixels is over PIL's limit"),  # between PIL's warning and its error
        (png_of(100_000, 100_000), "decompression bomb"),
        (encoded(Image.fromarray(PHOTO[:, :, 0].astype(np.float32)), "TIFF"), "floating-point"),
        (encoded(Image.fromarray(np.array([[0, 70_000]], np.int32)), "TIFF"), "32-bit"),
        (PHOTO.astype(np.float32), "float32"),
        (PHOTO[:, :, :2], r"\[40, 60, 2\]"),
        (PHOTO > 100, "bool"),
        (Image.new("F", (4, 4)), "floating-point"),
        (Image.new("RGB", (0, 4)), "0 x 4 pixels: it is empty"),
        ("a\0b.png", "null"),
        (png_of(89_000_000, 1), "89000000 x 1 pixels: a side is over 1,000,000"),
        (png_of(1, 89_000_000), "1 x 89000000 pixels: a side is over 1,000,000"),
        (bytearray(good), "bytearray"),
        (PHOTO[:0], r"\[0, 60, 3\]"),
        (None, "NoneType"),
    ]
    for ref, reason in cases:
        with pytest.raises(BadImage, match=reason):
            decode(ref)


def test_a_thin_strip_is_no_bomb():
    with pytest.raises(BadImage, match="over PIL's limit"):
        transforms.center(decode(np.zeros((2, 60_000), np.uint8)), 224)
    for shape in ((2, 600_000), (600_000, 2)):  # PIL resizes the width first, at the full height
        with pytest.raises(BadImage, match="over PIL's limit"):
            transforms.squash(decode(np.zeros(shape, np.uint8)), 224)


def test_a_fifo_a_device_and_a_socket_are_no_images_at_once(tmp_path):
    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "fifo.jpg")
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(tmp_path / "socket.jpg"))
        for name in ("fifo", "zero", "link", "socket"):
            with pytest.raises(BadImage, match="a FIFO, a device or a socket"):
                decode(tmp_path / f"{name}.jpg")


def test_a_postscript_file_is_no_image(monkeypatch):
    """PIL would run Ghostscript on it."""
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
    with pytest.raises(BadImage, match="not an image"):
        decode(encoded(Image.fromarray(PHOTO), "EPS"))


def test_damaged_exif_and_color_profiles_do_not_hide_the_picture():
    exif = Image.Exif()
    exif[274] = 6
    exif[270] = "x" * 60_000
    exif = exif.tobytes()
    for damaged in (exif[:20], exif[:-3], exif.replace(b"\x12\x01", b"\xff\xff"), b"Exif\0\0MM\0*\xff\xff\xff\xff"):
        for kind in ("JPEG", "WEBP", "PNG"):
            content = encoded(Image.fromarray(PHOTO), kind, exif=damaged, icc_profile=b"no profile" * 99)
            img = decode(content, upright=True)
            plain = np.asarray(decode(content))
            assert any(np.array_equal(np.asarray(img), turned) for turned in (plain, np.rot90(plain, -1)))


@pytest.mark.parametrize("orientation", range(10))
def test_each_orientation_is_turned_as_pil_does(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    content = encoded(Image.fromarray(PHOTO), exif=exif)
    want = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    np.testing.assert_array_equal(np.asarray(decode(content, upright=True)), np.asarray(want))


def test_pil_images_are_taken_and_stay_as_they_are(tmp_path):
    palette = Image.fromarray(PHOTO).quantize(16)
    palette.info["transparency"] = bytes(range(16))
    np.testing.assert_array_equal(np.asarray(decode(palette)), np.asarray(palette.convert("RGBA"))[..., :3])
    assert palette.mode == "P" and palette.info["transparency"] == bytes(range(16))
    (tmp_path / "cut.png").write_bytes(encoded(Image.fromarray(PHOTO))[:900])
    with pytest.raises(BadImage, match="truncated|Truncated"):  # PIL reads the pixels later
        decode(Image.open(tmp_path / "cut.png"))


def test_of_an_animation_the_first_frame_counts():
    frames = [Image.fromarray(np.full((8, 8, 3), shade, np.uint8)) for shade in range(0, 200, 2)]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **{"lossless": True, "duration": 9})
        assert decode(content).getextrema() == ((0, 0),) * 3, kind


def test_random_crop_draws_from_its_generator_and_flips():
    img = decode(PHOTO)
    one, two = (transforms.random_crop(img, 16, np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert one.shape == (16, 16, 3) and one.dtype == np.uint8
    box = transforms.random_box(*img.size, np.random.default_rng(3), (0.08, 1), (3 / 4, 4 / 3))
    straight = transforms.random_crop(img, 16, np.random.default_rng(3), flip=0)
    np.testing.assert_array_equal(straight, transforms.resized_crop(img, box, 16))
    np.testing.assert_array_equal(transforms.random_crop(img, 16, np.random.default_rng(3), flip=1), straight[:, ::-1])
    rng = np.random.default_rng(0)
    flipped = [transforms.random_crop(img, 8, rng, scale=(1, 1), ratio=(1.5, 1.5))[0, 0, 0] for _ in range(200)]
    assert len(set(flipped)) == 2 and 70 < flipped.count(flipped[0]) < 130


def test_boxes_that_never_fit_become_the_largest_centred_one():
    rng = np.random.default_rng(0)
    assert transforms.random_box(300, 20, rng, (1, 1), (3 / 4, 4 / 3)) == (0, 136, 20, 27)
    assert transforms.random_box(20, 300, rng, (1, 1), (3 / 4, 4 / 3)) == (136, 0, 27, 20)
    assert transforms.random_box(1, 1, rng, (0.08, 0.2), (3 / 4, 4 / 3)) == (0, 0, 1, 1)


def tower(**resize):
    """A ClipConfig of 20 pixels a side."""
    return ClipConfig(8, ViT(8, 1, 1, 8, image_size=20, patch=10), None, resize=Resize(**resize))


def test_a_checkpoints_own_way_to_a_square():
    img = decode(np.random.default_rng(0).integers(0, 256, (41, 90, 3), np.uint8))
    same = {
        transforms.for_tower(tower()): partial(transforms.center, size=20),
        transforms.whole_for_tower(tower()): partial(transforms.squash, size=20),
        transforms.crop_for_tower(tower(), [0.5, 1]): partial(transforms.random_crop, size=20, scale=(0.5, 1)),
    }
    assert all((got.func, got.keywords) == (want.func, want.keywords) for got, want in same.items())

    got = transforms.for_tower(tower(interpolation="bilinear", scale=1.2))(img)
    want = img.resize((52, 24), Image.Resampling.BILINEAR).crop((16, 2, 36, 22))
    np.testing.assert_array_equal(got, np.asarray(want))

    squashed = np.asarray(img.resize((20, 20), Image.Resampling.BILINEAR))
    for of in (transforms.for_tower, transforms.whole_for_tower):
        np.testing.assert_array_equal(of(tower(mode="squash", interpolation="bilinear"))(img), squashed)

    for fill, color in (128, (128, 128, 128)), ((1, 2, 3), (1, 2, 3)):
        for of in (transforms.for_tower, transforms.whole_for_tower):
            got = of(tower(mode="longest", fill=fill))(img)
            np.testing.assert_array_equal(got[5:14], np.asarray(img.resize((20, 9), Image.Resampling.BICUBIC)))
            assert (got[:5] == color).all() and (got[14:] == color).all()
    assert transforms.for_tower(tower(mode="longest"))(decode(np.zeros((1, 3000), np.uint8))).shape == (20, 20, 3)
    crop = transforms.crop_for_tower(tower(mode="squash", interpolation="bilinear"), (1, 1))
    box = transforms.random_box(*img.size, np.random.default_rng(3), (1, 1), (3 / 4, 4 / 3))
    want = transforms.resized_crop(img, box, 20, Image.Resampling.BILINEAR)
    got = crop(img, rng=np.random.default_rng(3))
    assert (got == want).all() or (got == want[:, ::-1]).all()
