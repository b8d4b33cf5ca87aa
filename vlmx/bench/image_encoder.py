"""Image features of a batch of random images, beside PyTorch's with the same random weights."""

import dataclasses

import jax
import numpy as np

from vlmx import streams
from vlmx.bench import timing
from vlmx.models import zoo
from vlmx.models.clip import Clip, ResNet, init_params


def run(args):
    """Times image features of `args.model` for a batch of random normalised images; prints medians and their ratio."""
    config = zoo.MODELS[args.model].config
    vision = dataclasses.replace(config.vision, image_size=args.image)
    config = dataclasses.replace(config, vision=vision, dtype=args.dtype, param_dtype=args.dtype, unroll=args.unroll)
    model = Clip(jax.jit(init_params, static_argnums=0)(config, streams.start(0)), config)
    images = streams.generator("pictures").standard_normal((args.batch, args.image, args.image, 3), np.float32)

    encode, on_device = jax.jit(Clip.image), jax.device_put(images)
    runs = {"vlmx": lambda: jax.block_until_ready(encode(model, on_device))}
    theirs = _pytorch(model, images)
    if theirs is not None:
        runs["pytorch"] = theirs
    features = {name: np.asarray(run()) for name, run in runs.items()}  # compiles, and warms the caches
    timing.say(f"{args.model} image encoder, batch {args.batch}, {args.image} px, {args.dtype}")
    medians = timing.alternating(runs, args.rounds, args.batch, "images")
    if theirs is not None:
        ratio = medians["pytorch"] / medians["vlmx"]
        off = np.abs(features["vlmx"] - features["pytorch"]).max() / np.abs(features["pytorch"]).max()
        print(f"vlmx is {ratio:.2f} times as fast as PyTorch; features differ by {off:.1e} of the largest")


def _pytorch(model, images):
    """The same in PyTorch, as a function, or None."""
    if (torch := timing.pytorch()) is None:
        return None
    if isinstance(model.config.vision, ResNet):
        print("transformers has no ResNet image tower: no comparison with PyTorch")
        return None
    tower, pixels = timing.tower(torch, model), torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    return lambda: tower(pixels)
