"""Timings of single parts, beside PyTorch's where it is installed: `python -m vlmx.bench image_encoder` (or generate).

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

from vlmx.errors import UserError, unknown
from vlmx.generate import generate as search
from vlmx.models import convert, convert_seq, vlseq, zoo
from vlmx.models.clip import Clip, ResNet, init_params
from vlmx.models.vlseq import Generation, VLSeq


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
    say(f"{args.model} image encoder, batch {args.batch}, {args.image} px, {args.dtype}")
    medians = alternating(runs, args.rounds, args.batch, "images")
    if theirs is not None:
        ratio = medians["pytorch"] / medians["vlmx"]
        off = np.abs(features["vlmx"] - features["pytorch"]).max() / np.abs(features["pytorch"]).max()
        print(f"vlmx is {ratio:.2f} times as fast as PyTorch; features differ by {off:.1e} of the largest")


def generate(args):
    """Times beam search of `args.model` for a batch of random texts, as long as a question with 36 visual tokens."""
    config = dataclasses.replace(zoo.SEQ_MODELS[args.model].config, dtype=args.dtype, param_dtype=args.dtype)
    model = VLSeq(jax.jit(vlseq.init_params, static_argnums=0)(config, jax.random.key(0)), config)
    how = Generation(max_length=20, beams=5, early_stopping=True, no_repeat_ngram=3, force_end=True)
    ids = np.random.default_rng(0).integers(3, config.vocab, (args.batch, 56), np.int32)
    ids[:, -1] = config.end
    on_device = jax.device_put(ids)
    runs = {"vlmx": lambda: jax.block_until_ready(search(model, on_device, how=how)[0])}
    start = time.perf_counter()
    ours = np.asarray(runs["vlmx"]())
    first = time.perf_counter() - start
    theirs = _pytorch_search(model, ids, how)
    if theirs is not None:
        runs["pytorch"] = theirs
        texts = np.asarray(theirs())
    say(
        f"{args.model}, {how.beams} beams, {args.batch} texts of {ids.shape[1]} tokens, at most {how.max_length} new, "
        f"{args.dtype}"
    )
    medians = alternating(runs, args.rounds, args.batch, "texts")
    print(f"vlmx's first call, which compiles: {first:.1f} s")
    if theirs is not None:
        texts = np.pad(texts, ((0, 0), (0, how.max_length - texts.shape[1])), constant_values=config.pad)
        differ = int((ours != texts).any(-1).sum())
        ratio = medians["pytorch"] / medians["vlmx"]
        print(f"vlmx is {ratio:.2f} times as fast as PyTorch; {differ} of {args.batch} texts differ")


def say(what):
    """What is measured, and where."""
    print(f"{what}, on {jax.devices()[0].device_kind}, {os.cpu_count()} CPUs")


def alternating(runs, rounds, batch, unit):
    """Times each of `runs`, name -> function, in turn; prints medians, and returns them by name."""
    seconds = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    for name, median in medians.items():
        fastest = 1e3 * min(seconds[name])
        print(f"{name:8} {1e3 * median:9.1f} ms  (fastest {fastest:.1f})  {batch / median:8.1f} {unit}/s")
    return medians


def _torch():
    try:
        import torch
    except ImportError:
        print("torch is not installed: no comparison with PyTorch")
        return None
    return torch


def _pytorch(model, images):
    """The image tower of transformers' CLIPModel with the same weights, as a function, or None without torch."""
    if (torch := _torch()) is None:
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


def _pytorch_search(model, ids, how):
    """The beam search of transformers with the same weights and rules, as a function, or None without torch."""
    if (torch := _torch()) is None:
        return None
    import transformers

    transformers.utils.logging.disable_progress_bar()
    classes = {"bart": transformers.BartForConditionalGeneration, "t5": transformers.T5ForConditionalGeneration}
    with tempfile.TemporaryDirectory() as folder:
        convert_seq.save_hf(folder, model.config, model.params, dtype=model.config.param_dtype)
        theirs = classes[model.config.family].from_pretrained(folder).eval()
    theirs = theirs.to("cuda" if torch.cuda.is_available() else "cpu")
    inputs = torch.from_numpy(ids.astype(np.int64)).to(theirs.device)
    rules = transformers.GenerationConfig(
        max_length=how.max_length, num_beams=how.beams, early_stopping=how.early_stopping, do_sample=False,
        no_repeat_ngram_size=how.no_repeat_ngram, length_penalty=how.length_penalty,
        forced_eos_token_id=model.config.end, eos_token_id=model.config.end, pad_token_id=model.config.pad,
        decoder_start_token_id=model.config.begin,
    )  # fmt: skip
    print(f"PyTorch {torch.__version__} on {theirs.device}, {torch.get_num_threads()} threads")

    def run():
        with torch.inference_mode():
            return theirs.generate(inputs, attention_mask=torch.ones_like(inputs), generation_config=rules).cpu()

    return run


def main():
    """Reads the command line and runs one timing."""
    parser = argparse.ArgumentParser(prog="python -m vlmx.bench", description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["image_encoder", "generate"])
    parser.add_argument("--model", choices=[*zoo.MODELS, *zoo.SEQ_MODELS], help="default ViT-B/16, bart-base")
    parser.add_argument("--batch", type=int, help="default 16 images, 64 texts")
    parser.add_argument("--image", type=int, default=224, help="image side in pixels")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--unroll", action="store_true", help="layers written out instead of scanned")
    args = parser.parse_args()
    usual = {"image_encoder": (image_encoder, "ViT-B/16", 16), "generate": (generate, "bart-base", 64)}
    run, model, batch = usual[args.what]
    args.model, args.batch = args.model or model, args.batch or batch
    known = zoo.MODELS if run is image_encoder else zoo.SEQ_MODELS
    try:
        if args.model not in known:
            raise unknown("model", args.model, known)
        run(args)
    except UserError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
