"""What the timings share: rounds that alternate, and PyTorch where it is installed."""

import os
import statistics
import tempfile
import time

import jax

from vlmx.models import convert


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


def pytorch():
    """The module torch, or None, said, where it is not installed."""
    try:
        import torch
    except ImportError:
        print("torch is not installed: no comparison with PyTorch")
        return None
    print(f"PyTorch {torch.__version__} on {device(torch)}, {torch.get_num_threads()} threads")
    return torch


def device(torch):
    """Where PyTorch computes."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def tower(torch, model):
    """transformers' image tower with the weights of a Clip: normalised pixels `(B, 3, S, S)` -> features."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        convert.save_hf(folder, model.config, model.params, dtype=model.config.param_dtype)
        theirs = transformers.CLIPModel.from_pretrained(folder).eval().to(device(torch))

    def run(pixels):
        with torch.inference_mode():
            pixels = pixels.to(theirs.device, theirs.dtype)
            return theirs.visual_projection(theirs.vision_model(pixel_values=pixels).pooler_output).float().cpu()

    return run
