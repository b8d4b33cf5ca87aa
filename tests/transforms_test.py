"""Decoding and transforms: the published pixels bit for bit, unusual modes read rightly, broken files refused."""

import hashlib
import io
import struct
import zlib
from functools import partial

import numpy as np
import pytest
from golden_cases import beside, load
from PIL import Image
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
        same(transforms.squash(img, 32), small[f"{name}/squash_resize_u8_32"], entry, img)
        normal = transforms.normalize(pixels, expected["mean"], expected["std"])
        assert normal.dtype == np.float32
        tolerance = 1e-6 if exact else 0.1
        np.testing.assert_allclose(normal.transpose(2, 0, 1), small[f"{name}/dassl_normalized_32"], 0, tolerance)


@pytest.mark.golden("images_expected*.json")
def test_golden_resized_crop(golden):
    small = load_file(beside(golden, f"{golden.stem}_32.safetensors"))
    img = decode(str(beside(golden, "images") / "rgb_landscape.png"))
    crops = [transforms.resized_crop(img, box, 32) for box in load(golden)["resized_crop_boxes_top_left_h_w"]]
    assert len(crops) == 5
    for i, crop in enumerate(crops):
        np.testing.assert_array_equal(crop, small[f"resized_crop/{i}"])
    np.testing.assert_array_equal(transforms.hflip(crops[1]), small["hflip/resized_crop_1"])


@pytest.mark.golden("images_expected*.json")
def test_golden_random_boxes(golden):
    """The distribution of the random boxes: the reference's quantiles hold the shares of ours that they should."""
    rng = np.random.default_rng(0)
    for name, want in load(golden)["random_resized_crop_statistics"].items():
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
    ]:
        img = decode(ref)
        assert img.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(img), want)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_gray_is_scaled_not_clipped(kind):
    values = np.array([[0, 128, 129, 257, 32768, 65407, 65535]], np.uint16)
    pixels = np.asarray(decode(encoded(Image.fromarray(values), kind)))
    np.testing.assert_array_equal(pixels[0, :, 1], [0, 0, 1, 1, 128, 255, 255])


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
        (str(tmp_path), "IsADirectoryError"),
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
        (PHOTO[:0], r"\[0, 60, 3\]"),
        (None, "NoneType"),
    ]
    for ref, reason in cases:
        with pytest.raises(BadImage, match=reason):
            decode(ref)


def test_a_thin_strip_is_no_bomb():
    with pytest.raises(BadImage, match="over PIL's limit"):
        transforms.center(decode(np.zeros((2, 60_000), np.uint8)), 224)


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
