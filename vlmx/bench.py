"""Timings of single parts, beside PyTorch's where it is installed: `python -m vlmx.bench image_encoder`.

Weights and images are random; both implementations get the same ones. Rounds alternate between the two, so that a
change in the machine's load meets both, and medians are printed.
"""

import argparse
import dataclasses
import os
import statistics
import tempfile
import time

import jax
import numpy as np

from vlmx.errors import UserError
from vlmx.models import convert, zoo
from vlmx.models.clip import Clip, ResNet, init_params


def image_encoder(args):
    """Times image features of `args.model` for a batch of random normalised images; prints medians and their ratio."""
    config = zoo.MODELS[args.model].config
    vision = dataclasses.replace(config.vision, image_size=args.image)
    config = dataclasses.replace(config, vision=vision, dtype=args.dtype, param_dtype=args.dtype, unroll=args.unroll)
    model = Clip(jax.jit(init_params, static_argnums=0)(config, jax.random.key(0)), config)
    images = np.random.default_rng(0).standard_normal((args.batch, args.image, args.image, 3), np.float32)

    encode, on_device = jax.jit(Clip.image), jax.device_put(images)
    runs = {"vlmx": lambda: jax.block_until_ready(encode(model, on_device))}
    theirs = _pytorch(model, images)
    if theirs is not None:
        runs["pytorch"] = theirs
    features = {name: np.asarray(run()) for name, run in runs.items()}  # compiles, and warms the caches
    seconds = {name: [] for name in runs}
    for _ in range(args.rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)

    device = jax.devices()[0]
    where = f"{device.device_kind}, {os.cpu_count()} CPUs"
    print(f"{args.model} image encoder, batch {args.batch}, {args.image} px, {args.dtype}, on {where}")
    for name, times in seconds.items():
        median = statistics.median(times)
        print(f"{name:8} {1e3 * median:9.1f} ms  (fastest {1e3 * min(times):.1f})  {args.batch / median:8.1f} images/s")
    if theirs is not None:
        ratio = statistics.median(seconds["pytorch"]) / statistics.median(seconds["vlmx"])
        off = np.abs(features["vlmx"] - features["pytorch"]).max() / np.abs(features["pytorch"]).max()
        print(f"vlmx is {ratio:.2f} times as fast as PyTorch; features differ by {off:.1e} of the largest")


def _pytorch(model, images):
    """The image tower of transformers' CLIPModel with the same weights, as a function, or None without torch."""
    try:
        import torch
    except ImportError:
        print("torch is not installed: no comparison with PyTorch")
        return None
    import transformers

    transformers.utils.logging.disable_progress_bar()
    if isinstance(model.config.vision, ResNet):
        print("transformers has no ResNet image tower: no comparison with PyTorch")
        return None
    with tempfile.TemporaryDirectory() as folder:
        convert.save_hf(folder, model.config, model.params, dtype=model.config.param_dtype)
        theirs = (
            transformers.CLIPModel.from_pretrained(folder).eval().to("cuda" if torch.cuda.is_available() else "cpu")
        )
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(theirs.device, theirs.dtype)
    attention = theirs.config._attn_implementation
    print(f"PyTorch {torch.__version__} on {theirs.device}, {torch.get_num_threads()} threads, {attention} attention")

    def run():
        with torch.inference_mode():
            return theirs.visual_projection(theirs.vision_model(pixel_values=pixels).pooler_output).float().cpu()

    return run


def main():
    """Reads the command line and runs one timing."""
    parser = argparse.ArgumentParser(prog="python -m vlmx.bench", description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["image_encoder"])
    parser.add_argument("--model", default="ViT-B/16", choices=zoo.MODELS)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--image", type=int, default=224, help="image side in pixels")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--unroll", action="store_true", help="layers written out instead of scanned")
    args = parser.parse_args()
    try:
        {"image_encoder": image_encoder}[args.what](args)
    except UserError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
