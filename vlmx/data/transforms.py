"""From an image reference to uint8 pixels [S, S, 3]: the published test transform, bit for bit, and the training crops.

PIL's bicubic (a = -0.5, antialiased, uint8 result) is what the published numbers were made with, so everything here
stays in PIL and uint8; the model normalises on the device.
"""

import functools
import math
import os
import stat
from io import BytesIO

import numpy as np
from PIL import ExifTags, Image

BICUBIC = Image.Resampling.BICUBIC
MAX_SIDE = 10**6  # pixels; PIL's bookkeeping of 89,000,000 rows alone takes gigabytes


class BadImage(Exception):
    """An image that cannot be used; the message says why, whoever catches it knows which image it is."""


def decode(ref, upright: bool = False) -> Image.Image:
    """Return an image as RGB, decoded completely.

    As the published pipelines read: converted to RGB at once, alpha dropped, color profiles ignored. 16-bit gray is
    scaled to 8 bit, where a plain conversion would clip it to white.

    Args:
        ref: a path, the bytes of an image file, a PIL image, or a uint8 array [H, W], [H, W, 1], [H, W, 3] or
            [H, W, 4].
        upright: turn the image as its EXIF orientation says (people's own photos). False: ignore the orientation.

    Raises:
        BadImage: whatever cannot be read completely, is no regular file, or is too large (a decompression bomb).
    """
    if isinstance(ref, np.ndarray):
        return _from_array(ref)
    if not isinstance(ref, (str, os.PathLike, bytes, Image.Image)):
        raise BadImage(
            f"expected a path, the bytes of an image file, a PIL image or a uint8 array, got {type(ref).__name__}"
        )
    try:
        if isinstance(ref, Image.Image):
            return _load_rgb(ref, upright)
        if not isinstance(ref, bytes):
            refuse_special_file(ref)
        with Image.open(BytesIO(ref) if isinstance(ref, bytes) else ref, formats=_formats()) as img:
            return _load_rgb(img, upright)
    except BadImage:
        raise
    except FileNotFoundError:
        raise BadImage("no such file") from None
    except Exception as e:  # PIL's readers raise errors of any kind on broken files
        raise BadImage(describe_failure(ref, e)) from e


def refuse_special_file(path: str | os.PathLike) -> None:
    """Raise BadImage for what is no regular file: opening a FIFO or a device may wait forever.

    Folders pass: opening them fails at once, with an error that says what they are.
    """
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise BadImage("not a regular file, but a FIFO, a device or a socket")


@functools.cache
def _formats() -> tuple[str, ...]:
    """Return PIL's formats but EPS, which PIL reads by running Ghostscript on it."""
    Image.init()
    return tuple(name for name in Image.ID if name != "EPS")


def _load_rgb(img: Image.Image, upright: bool) -> Image.Image:
    refuse_bomb(*img.size)  # before any pixel is decoded; at PIL's limit PIL itself only warns
    if 0 in img.size:
        raise BadImage(f"{img.width} x {img.height} pixels: it is empty")
    if max(img.size) > MAX_SIDE:
        raise BadImage(f"{img.width} x {img.height} pixels: a side is over {MAX_SIDE:,}")
    img.load()
    turn = _turn_upright(img) if upright else None
    img = _to_rgb(img)
    return img if turn is None else img.transpose(turn)


_TURNS = {  # EXIF orientation -> what turns the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _turn_upright(img: Image.Image) -> Image.Transpose | None:
    """Return what turns the image upright; None where nothing does or the EXIF data are damaged."""
    try:
        return _TURNS.get(img.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # as in decode
        return None


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    valid = array.ndim == 2 or array.ndim == 3 and array.shape[2] in (3, 4)
    if array.dtype != np.uint8 or not array.size or not valid:
        raise BadImage(
            f"expected a uint8 array [H, W], [H, W, 3] or [H, W, 4] with values 0 to 255, "
            f"got {array.dtype} {list(array.shape)}"
        )
    return Image.fromarray(array).convert("RGB")


def _to_rgb(img: Image.Image) -> Image.Image:
    if img.mode == "F":
        raise BadImage("floating-point pixels have no agreed range: save it with 8 or 16 bits per channel")
    if img.mode.startswith("I"):
        gray = np.asarray(img)
        if gray.min() < 0 or gray.max() > 65535:
            raise BadImage(f"32-bit pixels ({gray.min()}..{gray.max()}): save it with 8 or 16 bits per channel")
        tags = getattr(img, "tag_v2", {})  # of TIFF, where PIL neither scales 12 bits nor inverts "white is 0"
        white = 4095 if tags.get(ExifTags.Base.BitsPerSample) == (12,) else 65535
        gray = (gray.astype(np.uint32) * 255 + white // 2) // white  # rounded to nearest
        gray = 255 - gray if tags.get(ExifTags.Base.PhotometricInterpretation) == 0 else gray
        img = Image.fromarray(gray.astype(np.uint8))
    if "transparency" in img.info:  # alpha is dropped; without this PIL warns about palettes
        img = img.copy()  # a caller's image stays as it is
        del img.info["transparency"]
    return img.convert("RGB")


def refuse_bomb(width: int, height: int) -> None:
    """Raise BadImage for more pixels than PIL's limit."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit and width * height > limit:
        raise BadImage(f"{width} x {height} pixels is over PIL's limit of {limit} (decompression bomb?)")


def _is_empty_file(ref) -> bool:
    try:
        return stat.S_ISREG((status := os.stat(ref)).st_mode) and not status.st_size
    except (OSError, ValueError, TypeError):  # gone, a path with a zero byte, or no path
        return False


def describe_failure(ref, error: Exception) -> str:
    """Return why a path, or the bytes of a file, cannot be decoded, of the error that a decoder raised."""
    if not ref if isinstance(ref, bytes) else _is_empty_file(ref):
        return "the file is empty"
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"refused by PIL: {error}"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image in a format that PIL knows"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror  # a folder, no permission
    if isinstance(error, UnicodeEncodeError):
        return "no name that a file can have"
    return f"{type(error).__name__}: {error}"


def for_tower(config):
    """The test transform that a checkpoint states, image -> uint8 [S, S, 3], of its ClipConfig."""
    resize, size = config.resize, config.vision.image_size
    if resize.mode == "longest":
        return functools.partial(pad, size=size, fill=resize.fill, **_resampling(config))
    if resize.mode == "squash":
        return functools.partial(squash, size=size, **_resampling(config))
    side = {} if resize.scale == 1 else {"side": round(resize.scale * size)}
    return functools.partial(center, size=size, **side, **_resampling(config))


def whole_for_tower(config):
    """The same where all of the picture has to be in the square: as stated, but squashed in place of cropped."""
    if config.resize.mode == "shortest":
        return functools.partial(squash, size=config.vision.image_size, **_resampling(config))
    return for_tower(config)


def crop_for_tower(config, scale):
    """The training transform, `random_crop` with `scale`, resampled as the checkpoint states."""
    return functools.partial(random_crop, size=config.vision.image_size, scale=tuple(scale), **_resampling(config))


def _resampling(config):
    name = config.resize.interpolation
    return {} if name == "bicubic" else {"resample": Image.Resampling[name.upper()]}


def center(img: Image.Image, size: int, rng=None, side=None, resample=BICUBIC) -> np.ndarray:
    """The published test transform: the shorter side to `size`, the middle cut out -> uint8 [size, size, 3].

    `side`: to this in place of `size`, before the middle is cut out. Crop offsets are rounded half to even, as Python's
    `round` does. `rng` is not used: this stands wherever a random crop may. Raises BadImage for a strip so thin that
    its resized form would be a decompression bomb.
    """
    short, long, side = min(img.size), max(img.size), side or size
    if short != side:
        long = int(side * long / short)
        refuse_bomb(side, long)
        img = img.resize((side, long) if img.width <= img.height else (long, side), resample)
    left, top = round((img.width - size) / 2), round((img.height - size) / 2)
    return np.asarray(img.crop((left, top, left + size, top + size)))


def pad(img: Image.Image, size: int, rng=None, fill=0, resample=BICUBIC) -> np.ndarray:
    """The longer side to `size`, borders of `fill` around the middle (OpenCLIP's "longest"). `rng` is not used."""
    width, height = (max(round(n * size / max(img.size)), 1) for n in img.size)
    square = Image.new("RGB", (size, size), fill if isinstance(fill, tuple) else (fill,) * 3)
    square.paste(img.resize((width, height), resample), ((size - width) // 2, (size - height) // 2))
    return np.asarray(square)


def squash(img: Image.Image, size: int, rng=None, resample=BICUBIC) -> np.ndarray:
    """Both sides to `size`, whatever the shape (Dassl, when no random crop is asked for). `rng` is not used.

    Raises BadImage for a strip so long that PIL needs as much memory on the way as for a decompression bomb.
    """
    refuse_bomb(size, max(img.size))
    return np.asarray(img.resize((size, size), resample))


def random_crop(
    img: Image.Image, size: int, rng: np.random.Generator,
    scale=(0.08, 1), ratio=(3 / 4, 4 / 3), flip=0.5, resample=BICUBIC,
):  # fmt: skip
    """RandomResizedCrop and horizontal flip (the training transform of Dassl's configs) -> uint8 [size, size, 3]."""
    pixels = resized_crop(img, random_box(*img.size, rng, scale, ratio), size, resample)
    return hflip(pixels) if rng.random() < flip else pixels


def random_box(width: int, height: int, rng: np.random.Generator, scale, ratio) -> tuple[int, int, int, int]:
    """A box (top, left, height, width) with a random share of the area and a log-uniform aspect ratio (Inception's).

    After ten boxes that do not fit: the largest centred one whose aspect is within `ratio`.
    """
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    w = min(width, max(round(height * ratio[1]), 1))
    h = min(height, max(round(width / ratio[0]), 1))
    return (height - h) // 2, (width - w) // 2, h, w


def resized_crop(img: Image.Image, box: tuple[int, int, int, int], size: int, resample=BICUBIC) -> np.ndarray:
    """The box (top, left, height, width), cut out first and then resized to [size, size, 3]."""
    top, left, height, width = box
    return squash(img.crop((left, top, left + width, top + height)), size, resample=resample)


def hflip(pixels: np.ndarray) -> np.ndarray:
    """Left and right exchanged, [H, W, 3]."""
    return pixels[:, ::-1]


def normalize(pixels: np.ndarray, mean, std) -> np.ndarray:
    """uint8 [..., 3] -> float32, (x / 255 - mean) / std."""
    return (pixels.astype(np.float32) / np.float32(255) - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
