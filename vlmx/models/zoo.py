"""Names of models: their sizes, where their weights come from, and how to load one."""

import dataclasses
import hashlib
import importlib.resources
import os
import re
from pathlib import Path
from typing import NamedTuple

from vlmx.data import seq_tokenizer, tokenizer
from vlmx.errors import UserError, unknown
from vlmx.models import convert, convert_seq, files
from vlmx.models.clip import Clip, ClipConfig, ResNet, Text, ViT
from vlmx.models.vlseq import SeqConfig, VLSeq

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


class Entry(NamedTuple):
    """A model of the table: its repository on the Hugging Face hub and its sizes."""

    hub: str
    config: ClipConfig | SeqConfig


class Loaded(NamedTuple):
    """A model ready for use; `digest` is the SHA-256 of its weight files."""

    model: Clip | VLSeq
    tokenizer: tokenizer.Tokenizer | seq_tokenizer.Words
    digest: str
    name: str


def _text(width):
    return Text(width, 12, width // 64, 4 * width, context=77, vocab=49408, bos=49406)


def _vit(embed_dim, width, layers, image_size, patch, text_width):
    vision = ViT(width, layers, width // 64, 4 * width, image_size=image_size, patch=patch)
    return ClipConfig(embed_dim, vision, _text(text_width))


def _resnet(embed_dim, width, layers, image_size, text_width):
    return ClipConfig(embed_dim, ResNet(image_size, width, layers, width // 2), _text(text_width))


# Sizes: Radford et al. 2021 (arXiv 2103.00020), tables 19 and 20. ResNets are on the hub in OpenCLIP's format only.
MODELS = {
    "ViT-B/32": Entry("openai/clip-vit-base-patch32", _vit(512, 768, 12, 224, 32, 512)),
    "ViT-B/16": Entry("openai/clip-vit-base-patch16", _vit(512, 768, 12, 224, 16, 512)),
    "ViT-L/14": Entry("openai/clip-vit-large-patch14", _vit(768, 1024, 24, 224, 14, 768)),
    "ViT-L/14@336px": Entry("openai/clip-vit-large-patch14-336", _vit(768, 1024, 24, 336, 14, 768)),
    "RN50": Entry("timm/resnet50_clip.openai", _resnet(1024, 64, (3, 4, 6, 3), 224, 512)),
    "RN101": Entry("timm/resnet101_clip.openai", _resnet(512, 64, (3, 4, 23, 3), 224, 512)),
    "RN50x4": Entry("timm/resnet50x4_clip.openai", _resnet(640, 80, (4, 6, 10, 6), 288, 640)),
    "RN50x16": Entry("timm/resnet50x16_clip.openai", _resnet(768, 96, (6, 8, 18, 8), 384, 768)),
    "RN50x64": Entry("timm/resnet50x64_clip.openai", _resnet(1024, 128, (3, 15, 36, 10), 448, 1024)),
}


def _t5(width, layers, mlp, heads=None, **more):
    heads = heads or width // 64
    config = {"act": "relu", "scale_logits": True, "eps": 1e-6, "vocab": 32128, "pad": 0, "end": 1, "begin": 0} | more
    return SeqConfig(family="t5", width=width, heads=heads, head_dim=64, mlp=mlp, layers=(layers, layers), **config)


def _flan(width, layers, mlp, heads=None):
    return _t5(width, layers, mlp, heads, act="gelu_tanh", gated=True, tied=False, scale_logits=False)


def _bart(width, layers):
    config = {"act": "gelu", "eps": 1e-5, "vocab": 50265, "positions": 1024, "pad": 1, "end": 2, "begin": 2}
    sizes = {"width": width, "heads": width // 64, "head_dim": 64, "mlp": 4 * width, "layers": (layers, layers)}
    return SeqConfig(family="bart", **sizes, **config)


# Sizes: Raffel et al. 2020 (arXiv 1910.10683), section 3.7; Chung et al. 2022 (arXiv 2210.11416); Lewis et al. 2020
# (arXiv 1910.13461), sections 4 and 5.
SEQ_MODELS = {
    "t5-small": Entry("google-t5/t5-small", _t5(512, 6, 2048)),
    "t5-base": Entry("google-t5/t5-base", _t5(768, 12, 3072)),
    "t5-large": Entry("google-t5/t5-large", _t5(1024, 24, 4096)),
    "flan-t5-small": Entry("google/flan-t5-small", _flan(512, 8, 1024, heads=6)),
    "flan-t5-base": Entry("google/flan-t5-base", _flan(768, 12, 2048)),
    "flan-t5-large": Entry("google/flan-t5-large", _flan(1024, 24, 2816)),
    "bart-base": Entry("facebook/bart-base", _bart(768, 6)),
    "bart-large": Entry("facebook/bart-large", _bart(1024, 12)),
}
# Rows behind the word embedding, the last of which stand for the order of visual tokens: the reference's numbers.
ADDED = {"t5": 72, "bart": 200}
PACKAGED = ("tiny_clip", "tiny_t5", "tiny_bart")  # weights that come with vlmx, in vlmx/assets
SMALL_FILES = ("config.json", "open_clip_config.json", "generation_config.json", "adapter_config.json")
SMALL_FILES += ("preprocessor_config.json", "processor_config.json")
SMALL_FILES += convert.TOKENIZER_FILES


def load(
    name, *, image_size=None, act=None, heads=None, arch=None,
    dtype="float32", param_dtype="float32", place=None, context=None,
):  # fmt: skip
    """Loads a model: `Loaded(model, tokenizer, digest, name)`.

    `name` is "tiny_clip" (comes with the package), a key of MODELS, a repository "owner/name" on the Hugging Face hub
    (downloaded once, then taken from its cache), or a local directory or weight file. The other arguments are those of
    `convert.read`. Raises UserError where the model cannot be found, fetched or read.
    """
    path = locate(name)
    found, folder = files.weight_files(path)
    options = {"image_size": image_size, "context": context, "dtype": dtype, "param_dtype": param_dtype, "place": place}
    config, params = convert.read(path, act=act, heads=heads, arch=arch, **options)
    if name in MODELS:  # hub copies of OpenAI's ResNets do not all record that the activation is quick-GELU
        config = dataclasses.replace(config, text=dataclasses.replace(config.text, act=MODELS[name].config.text.act))
    words = tokenizer.load(folder, config.text.context, config.text.vocab)
    if config.text.eot is not None and config.text.eot not in words([""]):
        raise UserError(f"the tokenizer in {folder} never ends a text with {config.text.eot}, as this model needs")
    return Loaded(Clip(params, config), words, digest(found), name)


STATED = ("image_size", "act", "heads", "arch")  # what a person may add to what a checkpoint states


def overrides(section, prefix=""):
    """The arguments of `load` by which config.model, or config.tower, adds to what a checkpoint states; or tuned.json,
    which holds those of a tower under names that begin with `prefix`."""
    values = {key: section.get(prefix + key) or None for key in STATED}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def load_seq(name, *, visual=None, added=None, seed=0, dtype="float32", param_dtype="float32", place=None):
    """Loads a T5 or BART: `Loaded(model, tokenizer, digest, name)`.

    `name` is "tiny_t5" or "tiny_bart" (come with the package), a key of SEQ_MODELS, a repository "owner/name", or a
    local directory. The other arguments are those of `convert_seq.read`; added: None takes the reference's number where
    there is a visual embedding. Raises as `load`.
    """
    path = locate(name)
    found, folder = files.weight_files(path)
    if added is None:
        family = convert_seq.family(files.read_json(folder / "config.json"), folder / "config.json")
        added = ADDED[family] if visual else 0
    options = {"visual": visual, "added": added, "seed": seed, "dtype": dtype, "param_dtype": param_dtype}
    config, params = convert_seq.read(path, **options, place=place)
    words = seq_tokenizer.load(folder, config.vocab, config.pad)
    return Loaded(VLSeq(params, config), words, digest(found), name)


def locate(name):
    """The directory or file that `name` stands for (see `load`); downloads it where it is on the hub and not cached."""
    if name in PACKAGED:
        return Path(str(importlib.resources.files("vlmx"))) / "assets" / name
    if name in MODELS | SEQ_MODELS:
        return fetch((MODELS | SEQ_MODELS)[name].hub)
    try:
        path = Path(name).expanduser()
        if path.exists():
            return path
    except (OSError, RuntimeError, ValueError):  # a name that no file can have, ~user without a home
        pass
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        return fetch(name)
    raise unknown(
        "model",
        name,
        [*PACKAGED, *MODELS, *SEQ_MODELS, "owner/name (on the Hugging Face hub)", "a directory or weight file"],
    )


def fetch(repository):
    """The local snapshot of a hub repository: weights in one format (safetensors first), sizes and tokenizer."""
    import huggingface_hub

    def snapshot(*names):
        try:
            return Path(huggingface_hub.snapshot_download(repository, allow_patterns=[*SMALL_FILES, *names]))
        except (OSError, ValueError) as error:  # the hub's own errors, and those of the network below it
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise UserError(
                f"{repository}: no such file or directory, nor to be had from the hub: {reason}\n{_by_hand(repository)}"
            ) from error

    # The first format that the repository has; most hold the same weights several times over.
    files.refuse_adapter(small := snapshot())
    for name in files.weight_names(small):
        shards = (name.replace(".", "-*-of-*.", 1).removesuffix(".index.json"),) if name.endswith(".index.json") else ()
        folder = snapshot(name, *shards)
        if (folder / name).is_file():
            return folder
    wanted = ", ".join(files.WEIGHTS)
    raise UserError(f"{repository}: holds none of {wanted}, or is not complete.\n{_by_hand(repository)}")


def _by_hand(repository):
    return (
        f"On a machine with a network:\n  hf download {repository} --local-dir {repository.split('/')[1]}\n"
        "then bring that directory here and give its path as the name; the hub's own cache (HF_HOME) serves as well."
    )


def digest(paths):
    """SHA-256, in hex, of the files' bytes one after the other, in the order of their names."""
    sha = hashlib.sha256()
    for file in sorted(paths):
        with open(file, "rb") as stream:
            while block := stream.read(1 << 20):
                sha.update(block)
    return sha.hexdigest()
