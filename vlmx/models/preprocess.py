"""How a checkpoint wants its pictures: sizes, resampling and statistics, out of the files that state them."""

import math
from typing import NamedTuple

from vlmx.errors import UserError
from vlmx.models import files
from vlmx.models.clip import MEAN, STD, Resize

# PIL's numbers of its filters, as Hugging Face writes them.
RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
# Fields of an image processor that do not change a picture's pixels.
NEUTRAL = {
    *("image_processor_type", "feature_extractor_type", "processor_class", "do_convert_rgb", "return_tensors"),
    *("data_format", "input_data_format", "device", "disable_grouping", "use_fast", "backend", "auto_map"),
    *("default_to_square", "_valid_processor_keys", "transformers_version"),
}
OBEYED = {
    *("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_pad", "size", "crop_size", "pad_size"),
    *("resample", "rescale_factor", "image_mean", "image_std", "use_square_size"),
}
OPEN_CLIP = ("size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color")
CLIP_TYPES = ("CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil", "CLIPFeatureExtractor")


class Preprocess(NamedTuple):
    """Statistics of the pixels, in units of 255, and the way to a square."""

    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    resize: Resize = Resize()


def of_folder(folder, image_size):
    """The Preprocess that a Hugging Face image processor in `folder` states; CLIP's own where there is none.

    Reads the image processor inside `processor_config.json`, as transformers 5 writes it, else
    `preprocessor_config.json`: the order of transformers. Raises UserError for fields that are not supported or do not
    lead to the model's `image_size`.
    """
    both, one = folder / "processor_config.json", folder / "preprocessor_config.json"
    inner = files.section(f"{both}", files.read_json(both), "image_processor") if files.lies(both) else {}
    if inner:
        return _of_hugging_face(f"{both}: image_processor", inner, image_size)
    return _of_hugging_face(f"{one}", files.read_json(one), image_size) if files.lies(one) else Preprocess()


def _of_hugging_face(where, raw, image_size):
    raw = {key: value for key, value in raw.items() if value is not None}
    unknown = [f"{k} = {files.shown(v)}" for k, v in raw.items() if k not in NEUTRAL | OBEYED and v is not False]
    if unknown:
        raise UserError(f"{where}: not supported: {', '.join(unknown)}")
    kind = raw.get("image_processor_type", raw.get("feature_extractor_type", CLIP_TYPES[0]))
    clip = kind in CLIP_TYPES
    needed = ("size", "resample", "image_mean", "image_std", "do_center_crop")
    if not clip and (absent := [key for key in needed if key not in raw]):
        raise UserError(f"{where}: the defaults of {files.shown(kind)} are not known; write out {', '.join(absent)}")

    def flag(key, default=True):
        value = raw.get(key, default)
        if not isinstance(value, bool):
            raise UserError(f"{where}: {key} is {files.shown(value)}; expected true or false")
        return value

    if not flag("do_resize"):
        raise UserError(f"{where}: do_resize is false; pictures of any size are resized here")
    if flag("do_pad", False):
        raise UserError(f"{where}: do_pad is true; padding is not supported")
    mean, std = MEAN, STD
    if flag("do_normalize"):
        mean, std = (_triple(where, raw, key, default) for key, default in (("image_mean", MEAN), ("image_std", STD)))
    else:
        mean, std = (0.0,) * 3, (1.0,) * 3
    factor = files.real(f"{where}: ", raw, "rescale_factor", 1 / 255, low=1e-6) if flag("do_rescale") else 1.0
    if not math.isclose(factor, 1 / 255, rel_tol=1e-6):  # x * factor, in units of 255
        mean, std = (tuple(v / (255 * factor) for v in values) for values in (mean, std))
    return Preprocess(mean, std, _resize(where, raw, image_size, flag("do_center_crop"), clip))


def _resize(where, raw, image_size, crops, clip):
    """The Resize of an image processor's size, crop_size and resample."""
    size, number = raw.get("size", {"shortest_edge": raw.get("crop_size", image_size)}), raw.get("resample", 3)
    if isinstance(size, (int, list)):
        square = isinstance(size, list) or raw.get("use_square_size") or raw.get("default_to_square", not clip)
        size = files.integer(f"{where}: ", {"size": size}, "size")
        size = {"height": size, "width": size} if square else {"shortest_edge": size}
    elif not isinstance(size, dict):
        raise UserError(f"{where}: size is {files.shown(size)}; expected a number or an object")
    size = {key: files.integer(f"{where}: size.", size, key) for key, value in size.items() if value is not None}
    if raw.get("use_square_size") and size.keys() == {"shortest_edge"}:
        size = dict.fromkeys(("height", "width"), size["shortest_edge"])
    if size.keys() == {"shortest_edge"}:
        mode, side = "shortest", size["shortest_edge"]
    elif size.keys() == {"height", "width"} and size["height"] == size["width"]:
        mode, side = "squash", size["height"]
    else:
        raise UserError(f"{where}: size is {size}; expected shortest_edge, or height and width of a square")
    if mode == "shortest" and not crops:
        raise UserError(f"{where}: do_center_crop is false, but the shorter side alone does not make a square")
    crop = raw.get("crop_size", image_size) if crops else side
    if isinstance(crop, dict):
        crop = [files.integer(f"{where}: crop_size.", crop, key) for key in ("height", "width")]
    crop = files.integer(f"{where}: ", {"crop_size": crop}, "crop_size")
    if crop != image_size:
        field = "crop_size" if crops else "size"
        raise UserError(f"{where}: {field} makes pictures of {crop} pixels a side; the image tower takes {image_size}")
    if side < crop or (mode == "squash" and side != crop):
        raise UserError(f"{where}: size {side} and crop_size {crop}: this is not supported")
    if isinstance(number, str) and number.lower() in RESAMPLE:
        interpolation = number.lower()
    else:
        interpolation = RESAMPLE[files.integer(f"{where}: ", raw, "resample", 3, low=0, high=len(RESAMPLE) - 1)]
    return Resize(mode, interpolation, side / crop)


def of_open_clip(where, raw):
    """The Preprocess of OpenCLIP's `preprocess_cfg`. Raises UserError for fields that are not supported.

    Its `size` counts for nothing, there as here: pictures get the size of the image tower.
    """
    raw = {key: value for key, value in raw.items() if value is not None}
    if unknown := sorted(raw.keys() - set(OPEN_CLIP)):
        raise UserError(f"{where}: not supported: {', '.join(f'{k} = {files.shown(raw[k])}' for k in unknown)}")
    choices = {"mode": ("RGB",), "interpolation": ("bicubic", "bilinear", "random")}
    choices["resize_mode"] = ("shortest", "longest", "squash")
    for key, valid in choices.items():
        if raw.get(key, valid[0]) not in valid:
            raise UserError(f"{where}: {key} is {files.shown(raw[key])}; expected one of {', '.join(valid)}")
    interpolation = "bilinear" if raw.get("interpolation") == "bilinear" else "bicubic"  # "random" is for training
    fill = raw.get("fill_color", 0)
    if isinstance(fill, list) and len(fill) == 3:
        fill = tuple(files.integer(f"{where}: ", {"fill_color": v}, "fill_color", low=0, high=255) for v in fill)
    else:
        fill = files.integer(f"{where}: ", {"fill_color": fill}, "fill_color", low=0, high=255)
    if zero := [key for key in ("mean", "std") if raw.get(key) == 0]:
        raise UserError(f"{where}: {zero[0]} is 0, which OpenCLIP takes for its default; write three numbers")
    mean, std = (_triple(where, raw, key, default) for key, default in (("mean", MEAN), ("std", STD)))
    return Preprocess(mean, std, Resize(raw.get("resize_mode", "shortest"), interpolation, fill=fill))


def _triple(where, raw, key, default):
    """Three numbers, of red, green and blue; one stands for all three."""
    values = raw.get(key, list(default))
    values = [values] * 3 if type(values) in (int, float) else values
    if not isinstance(values, list) or len(values) != 3:
        raise UserError(f"{where}: {key} is {files.shown(values)}; expected three numbers")
    low = 1e-6 if key.endswith("std") else -1e3
    return tuple(files.real(f"{where}: ", {key: value}, key, low=low, high=1e3) for value in values)


def as_hugging_face(config):
    """The content of `preprocessor_config.json` for a ClipConfig; what is CLIP's own way is left out."""
    size, resize = config.vision.image_size, config.resize
    square = {"height": size, "width": size}
    out = {
        "image_processor_type": CLIP_TYPES[0],
        "crop_size": square,
        "size": square if resize.mode == "squash" else {"shortest_edge": round(resize.scale * size)},
        "image_mean": list(config.mean),
        "image_std": list(config.std),
    }
    other = {"do_center_crop": False} if resize.mode == "squash" else {}
    return out | other | ({"resample": number} if (number := RESAMPLE.index(resize.interpolation)) != 3 else {})
