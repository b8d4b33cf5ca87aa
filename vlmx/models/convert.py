"""Checkpoints of other projects, read into vlmx's parameter tree and back: only here are their names known.

Formats: Hugging Face `CLIPModel` directories; state dicts in the naming of OpenAI's release (safetensors or `.pt`); the
same naming as OpenCLIP writes it, with `open_clip_config.json`. A format is a table from each of our leaves to the
source tensors it is made of (`files.From`). It has to account for every tensor of the file before one is read.

Files are memory-mapped, and each leaf is built on the sharding it will live on from the slices each device needs: at no
time does the host hold more than the leaf under way besides what is already placed.
"""

import dataclasses
import math
import os
import re
import shutil
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save_file

from vlmx.errors import UserError, unknown
from vlmx.models import files, preprocess
from vlmx.models.clip import ClipConfig, ResNet, Text, ViT, param_shapes
from vlmx.models.files import From
from vlmx.models.layers import ACTIVATIONS

# transformers advises installing torch; we only take its configurations and tokenizers, which need none.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")
# Buffers that checkpoints carry beside their weights; everything else has to be used.
IGNORED = re.compile(r"(.*\.)?(position_ids|num_batches_tracked|attn_mask)|input_resolution|context_length|vocab_size")


MOST_LOGIT_SCALE = 20  # CLIP's is at most ln(100) = 4.6; the exponential of 89 is no float32 any more


def read(
    path, *, image_size=None, context=None, act=None, heads=None, arch=None,
    dtype="float32", param_dtype="float32", place=None,
):  # fmt: skip
    """Reads the checkpoint at `path`, a directory or a file, as `(ClipConfig, params)`.

    Args:
      image_size: another image size than the checkpoint's; positions are interpolated (`files.resize_grid`).
      context: a shorter text context than the checkpoint's; positions are cut.
      act: the activation, "gelu" or "quick_gelu", of a state dict that has no configuration beside it.
      heads: the attention heads of its image tower and of its text tower; one number stands for both.
      arch: in place of these two, the model's name in OpenCLIP, such as "ViT-B-32" or "ViT-B-32-quickgelu".
      dtype, param_dtype: for the compute and the storage of frozen weights, as in ClipConfig.
      place: `(path, shape) -> jax.sharding.Sharding` of each leaf, `path` as in "vision/blocks/attn/q/kernel"; None
        puts everything on the first local device.

    Raises UserError where the file cannot be read, its format or architecture is none of ours, its tensors are not
    exactly the ones expected (unknown, missing and misshapen ones are listed by name), or it states another activation
    or other heads than the arguments.
    """
    tensors, source, table = _described(path, act, heads, arch)
    config = _resized(source, image_size, context, dtype, param_dtype)
    grids = _grid(source.vision), _grid(config.vision)
    where = "vision/attnpool/pos_embed" if isinstance(source.vision, ResNet) else "vision/pos_embed"
    table[where] = table[where]._replace(grid=grids if grids[0] != grids[1] else None)
    table["text/pos_embed"] = table["text/pos_embed"]._replace(total=source.text.context)

    shapes = flatten_dict(param_shapes(config), sep="/")
    files.check(path, tensors, table, shapes, IGNORED)
    scale = files.read_slice(table["logit_scale"], tensors, (), np.float32, ())
    if not scale <= MOST_LOGIT_SCALE:
        raise UserError(
            f"{path}: logit_scale is {scale:g}; expected the logarithm of a factor, below {MOST_LOGIT_SCALE}"
        )
    leaves = {name: files.place(table[name], tensors, shape, name, place) for name, shape in shapes.items()}
    return config, unflatten_dict(leaves, sep="/")


def config_of(
    path, *, image_size=None, context=None, act=None, heads=None, arch=None, dtype="float32", param_dtype="float32"
):
    """The ClipConfig of the checkpoint at `path`, as `read` gives it; no weight is read."""
    return _resized(_described(path, act, heads, arch)[1], image_size, context, dtype, param_dtype)


def _described(path, act, heads, arch):
    """(tensors by name, mapped and not read; the ClipConfig; where each leaf comes from) of a checkpoint."""
    names, folder = files.weight_files(path)
    tensors = files.open_tensors(names)
    if (scale := tensors.get("logit_scale")) and scale.shape == (1,):
        one = np.asarray(scale.data[:]) if scale.floating else None
        tensors["logit_scale"] = scale._replace(shape=(), data=one if one is None else one.reshape(()))
    if any(key.startswith(("text_model.", "vision_model.")) for key in tensors):
        source = _hf_config(folder / "config.json", tensors)
        table = _hf_table(source)
    elif any(key.startswith("visual.") for key in tensors):
        text = "text." if any(key.startswith("text.") for key in tensors) else ""
        source = _openai_config(tensors, text, names[0], folder, act, heads, arch)
        table = _openai_table(source, text)
    else:
        some = ", ".join(sorted(tensors)[:5]) + " ..." if tensors else "no tensors"
        raise UserError(
            f"{path}: not a CLIP checkpoint in the naming of Hugging Face, OpenAI or OpenCLIP; it holds {some}"
        )
    _refuse_contradiction(path, source, act, heads, arch)
    return tensors, source, table


def _refuse_contradiction(path, config, act, heads, arch):
    """UserError where the checkpoint states another activation or other heads than the person."""
    if arch:
        act, heads = _of_arch(path, config.vision, config.text.width, arch, act, heads)
    if act and act != config.text.act:
        raise UserError(f"{path}: the activation is {config.text.act}, as the checkpoint states; act={act!r} differs")
    if heads and _pair(heads) != (config.vision.heads, config.text.heads):
        stated = f"{config.vision.heads} in the image tower, {config.text.heads} in the text tower"
        raise UserError(f"{path}: the attention heads are {stated}, as the checkpoint states; heads={heads} differs")


def _pair(heads):
    """(heads of the image tower, heads of the text tower) of one number or two."""
    values = tuple(heads) if isinstance(heads, (tuple, list)) else (heads,)
    if len(values) not in (1, 2) or not all(type(n) is int and n > 0 for n in values):
        raise UserError(f"heads={heads!r}: expected one number, at least 1, or two: of image tower and text tower")
    return values[0], values[-1]


def save_hf(directory, config, params, tokenizer_dir=None, dtype="float32"):
    """Writes a ViT CLIP as a Hugging Face directory that `read` and transformers' `CLIPModel` load.

    `dtype` is that of the file; `tokenizer_dir`'s tokenizer files are copied along. Raises UserError for ResNet towers,
    for which Hugging Face has no class.
    """
    if isinstance(config.vision, ResNet):
        raise UserError(
            "a CLIP with a ResNet image tower has no Hugging Face format; only ViT towers can be saved in it"
        )
    if config.resize.mode == "longest":
        raise UserError("this CLIP takes pictures with borders (resize_mode longest); Hugging Face's CLIP has no such")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, leaf in flatten_dict(params, sep="/").items():
        rule, leaf = _hf_table(config)[name], np.asarray(leaf).astype(dtype)
        for key, value in zip(rule.keys, leaf if rule.stacked else [leaf]):
            tensors[key] = value.transpose(np.argsort(rule.axes).tolist()).copy()  # copy: in C order, 0-d stays 0-d
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    v, t = config.vision, config.text

    def tower(c, **rest):
        return {
            "hidden_size": c.width,
            "num_hidden_layers": c.layers,
            "num_attention_heads": c.heads,
            "intermediate_size": c.mlp,
            "hidden_act": c.act,
            "layer_norm_eps": c.eps,
            "projection_dim": config.embed_dim,
            **rest,
        }

    files.write_json(
        directory / "config.json",
        {
            "architectures": ["CLIPModel"],
            "model_type": "clip",
            "dtype": dtype,
            "projection_dim": config.embed_dim,
            "vision_config": tower(v, image_size=v.image_size, patch_size=v.patch, num_channels=3),
            "text_config": tower(
                t,
                max_position_embeddings=t.context,
                vocab_size=t.vocab,
                bos_token_id=t.bos,
                eos_token_id=LEGACY_EOS if t.eot is None else t.eot,
                pad_token_id=t.pad,
            ),
        },
    )
    files.write_json(directory / "preprocessor_config.json", preprocess.as_hugging_face(config))
    for file in TOKENIZER_FILES if tokenizer_dir else ():
        if (Path(tokenizer_dir) / file).is_file():
            shutil.copyfile(Path(tokenizer_dir) / file, directory / file)


def _grid(vision):
    return vision.image_size // (32 if isinstance(vision, ResNet) else vision.patch)


MOST_PIXELS = 2**14  # a side


def _resized(config, image_size, context, dtype, param_dtype):
    vision, text = config.vision, config.text
    if image_size is not None:
        step = 32 if isinstance(vision, ResNet) else vision.patch
        if type(image_size) is not int or not step <= image_size <= MOST_PIXELS:
            raise UserError(
                f"image_size={image_size}: smaller than one patch ({step} pixels) of this image tower, or no whole "
                f"number up to {MOST_PIXELS}"
            )
        vision = dataclasses.replace(vision, image_size=image_size)
    if context is not None:
        if not 0 < context <= text.context:
            raise UserError(f"context={context}: this checkpoint has positions for 1 to {text.context} tokens")
        text = dataclasses.replace(text, context=context)
    return dataclasses.replace(config, vision=vision, text=text, dtype=dtype, param_dtype=param_dtype)


def _linear(ours, theirs):
    return {f"{ours}/kernel": From((f"{theirs}.weight",), (1, 0)), f"{ours}/bias": From((f"{theirs}.bias",), (0,))}


def _norm(ours, theirs):
    return {f"{ours}/scale": From((f"{theirs}.weight",), (0,)), f"{ours}/bias": From((f"{theirs}.bias",), (0,))}


def _array(ours, theirs, ndim):
    return {ours: From((theirs,), tuple(range(ndim)))}


def _blocks(ours, layers):
    """One table of a tower's stacked blocks, out of one table per layer."""
    return {
        f"{ours}/blocks/{name}": rule._replace(keys=tuple(layer[name].keys[0] for layer in layers), stacked=True)
        for name, rule in layers[0].items()
    }


# ---- Hugging Face ----

# Configurations written before transformers 4.31 say eos_token_id 2, which no text contains; they mean the highest id.
LEGACY_EOS = 2


# What a config.json leaves out, per tower; transformers' CLIPVisionConfig and CLIPTextConfig.
HF_TOWER = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "num_hidden_layers": 12}
HF_VISION = HF_TOWER | {
    **{"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
    **{"image_size": 224, "patch_size": 32, "num_channels": 3},
}
HF_TEXT = HF_TOWER | {
    **{"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "max_position_embeddings": 77},
    **{"vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 1},
}


def _hf_config(path, tensors):
    raw = files.read_json(path)
    if raw.get("model_type") != "clip":
        kind = files.shown(raw.get("model_type")).replace("'", '"')
        raise UserError(f'{path}: model_type is {kind}; only "clip" can be read')

    def tower(name, defaults, prefix):
        where, values = f"{path}: {name}.", defaults | files.section(path, raw, name)
        if older := files.section(path, raw, f"{name}_dict"):  # as before transformers 4.24; it prevails
            values |= defaults | older
        if (kind := values.get("model_type")) not in (None, "", f"clip_{name.removesuffix('_config')}_model"):
            raise UserError(f"{where}model_type is {files.shown(kind)}; this tower is none of CLIP's")
        layers = files.integer(where, values, "num_hidden_layers")
        if layers != (there := _count(tensors, rf"{prefix}\.encoder\.layers\.(\d+)\.")):
            raise UserError(f"{where}num_hidden_layers is {layers}; the weights beside it hold {there} layers")
        sizes = [files.integer(where, values, key) for key in ("num_attention_heads", "intermediate_size")]
        act, eps = _activation(values["hidden_act"], path), files.real(where, values, "layer_norm_eps")
        return where, values, (files.integer(where, values, "hidden_size"), layers, *sizes, act, eps)

    at, v, image_tower = tower("vision_config", HF_VISION, "vision_model")
    if files.integer(at, v, "num_channels") != 3:
        raise UserError(f"{at}num_channels is {v['num_channels']}; images have 3")
    vision = ViT(*image_tower, image_size=files.integer(at, v, "image_size"), patch=files.integer(at, v, "patch_size"))
    at, t, text_tower = tower("text_config", HF_TEXT, "text_model")
    vocab = files.integer(at, t, "vocab_size")
    bos, eos = (files.integer(at, t, key, low=0, high=2**31) for key in ("bos_token_id", "eos_token_id"))
    legacy = eos == LEGACY_EOS or eos >= vocab
    text = Text(
        *text_tower,
        context=files.integer(at, t, "max_position_embeddings"),
        vocab=vocab,
        eot=None if legacy else eos,
        bos=vocab - 2 if legacy and (bos == 0 or bos >= vocab) else bos,
        pad=0 if t["pad_token_id"] is None else files.integer(at, t, "pad_token_id", low=0, high=2**31),
    )
    config = ClipConfig(files.integer(f"{path}: ", raw, "projection_dim", 512), vision, text)
    positions = tensors.get("vision_model.embeddings.position_embedding.weight")
    _refuse_impossible(path, config, positions)
    return dataclasses.replace(config, **preprocess.of_folder(path.parent, vision.image_size)._asdict())


def _count(tensors, pattern):
    """How many different numbers stand in the first group of `pattern` among the tensors' names."""
    return len({match[1] for match in map(re.compile(pattern).match, tensors) if match})


def _refuse_impossible(path, config, positions):
    """UserError for sizes that no CLIP has, before anything of these sizes is made, even in the abstract.

    Args: positions: Tensor of the image tower's position embeddings; None where it is missing.
    """
    v, t = config.vision, config.text
    resnet = isinstance(v, ResNet)
    inner = 32 * v.width if resnet else v.width
    for name, tower, width in (("image", v, inner), ("text", t, t.width)):
        if width % tower.heads:
            raise UserError(f"{path}: the {name} tower's width {width} is no multiple of its {tower.heads} heads")
    largest = max(inner, t.width, t.mlp, t.context, config.embed_dim, v.image_size, 0 if resnet else v.mlp)
    if largest > 2**17 or t.vocab > 2**24:
        raise UserError(f"{path}: sizes of this model are beyond any CLIP: {largest} wide, {t.vocab} token ids")
    for name, token in {"start": t.bos, "end": t.eot or 0}.items():
        if not 0 <= token < t.vocab:
            raise UserError(f"{path}: the {name} token's id {token} is not among the {t.vocab} token ids")
    step = 32 if resnet else v.patch
    if v.image_size < step:
        raise UserError(f"{path}: {v.image_size} pixels a side are fewer than those of one patch, {step}")
    grid = _grid(v)
    if positions is not None and positions.shape[:1] != (1 + grid**2,):
        raise UserError(
            f"{path}: {v.image_size} pixels a side in patches of {step} make {grid} x {grid} positions and one more; "
            f"the weights hold {list(positions.shape)[:1]}"
        )


def _hf_table(config):
    def block(key):
        attn = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"}
        rules = _norm("ln_1", f"{key}.layer_norm1") | _norm("ln_2", f"{key}.layer_norm2")
        for ours, theirs in attn.items():
            rules |= _linear(f"attn/{ours}", f"{key}.self_attn.{theirs}")
        return rules | _linear("mlp/fc", f"{key}.mlp.fc1") | _linear("mlp/proj", f"{key}.mlp.fc2")

    def tower(ours, theirs, c):
        layers = [block(f"{theirs}.encoder.layers.{i}") for i in range(c.layers)]
        return _array(f"{ours}/pos_embed", f"{theirs}.embeddings.position_embedding.weight", 2) | _blocks(ours, layers)

    return {
        **tower("vision", "vision_model", config.vision),
        **_array("vision/class_embed", "vision_model.embeddings.class_embedding", 1),
        "vision/patch_embed/kernel": From(("vision_model.embeddings.patch_embedding.weight",), (2, 3, 1, 0)),
        **_norm("vision/ln_pre", "vision_model.pre_layrnorm"),  # their spelling
        **_norm("vision/ln_post", "vision_model.post_layernorm"),
        "vision/proj": From(("visual_projection.weight",), (1, 0)),
        **tower("text", "text_model", config.text),
        **_array("text/token_embed", "text_model.embeddings.token_embedding.weight", 2),
        **_norm("text/ln_final", "text_model.final_layer_norm"),
        "text/proj": From(("text_projection.weight",), (1, 0)),
        **_array("logit_scale", "logit_scale", 0),
    }


def _activation(act, path):
    if not isinstance(act, str) or act not in ACTIVATIONS:
        raise UserError(f"{path}: activation {files.shown(act)} is not one of {', '.join(ACTIVATIONS)}")
    return act


# ---- OpenAI and OpenCLIP ----

# OpenAI's release, and what is exported of its TorchScript archives, holds these numbers beside the weights; files of
# OpenCLIP never do. They are how the two are told apart, for sizes and names of the weights are the same.
RELEASE = ("input_resolution", "context_length", "vocab_size")

# The plain CLIPs among OpenCLIP's model_configs: image tower's width, layers, patch (0: a ResNet) and width of a head.
# Heads of the text tower are 64 wide in all of them. Each stands for its "-quickgelu" version, too.
ARCHS = {
    "RN50": (64, (3, 4, 6, 3), 0, 64),
    "RN101": (64, (3, 4, 23, 3), 0, 64),
    "RN50x4": (80, (4, 6, 10, 6), 0, 64),
    "RN50x16": (96, (6, 8, 18, 8), 0, 64),
    "RN50x64": (128, (3, 15, 36, 10), 0, 64),
    **dict.fromkeys(("ViT-S-32", "ViT-S-32-alt"), (384, 12, 32, 64)),
    **dict.fromkeys(("ViT-S-16", "ViT-S-16-alt"), (384, 12, 16, 64)),
    **dict.fromkeys(("ViT-M-32", "ViT-M-32-alt"), (512, 12, 32, 64)),
    "ViT-M-16": (512, 12, 16, 64),
    **dict.fromkeys(("ViT-B-32", "ViT-B-32-256"), (768, 12, 32, 64)),
    "ViT-B-32-plus-256": (896, 12, 32, 64),
    "ViT-B-16": (768, 12, 16, 64),
    **dict.fromkeys(("ViT-B-16-plus", "ViT-B-16-plus-240"), (896, 12, 16, 64)),
    **dict.fromkeys(("ViT-L-16", "ViT-L-16-320"), (1024, 24, 16, 64)),
    **dict.fromkeys(("ViT-L-14", "ViT-L-14-280", "ViT-L-14-336"), (1024, 24, 14, 64)),
    "ViT-H-16": (1280, 32, 16, 80),
    **dict.fromkeys(("ViT-H-14", "ViT-H-14-378"), (1280, 32, 14, 80)),
    "ViT-g-14": (1408, 40, 14, 88),
    "ViT-bigG-14": (1664, 48, 14, 104),
    "ViT-e-14": (1792, 56, 14, 112),
}


def _sizes(vision):
    return vision.width, vision.layers, 0 if isinstance(vision, ResNet) else vision.patch


def _of_arch(path, vision, text_width, arch, act, heads):
    """(act, heads) of a name in OpenCLIP; UserError where sizes, act or heads are not those of this name."""
    arch = str(arch)
    name = arch.removesuffix("-quickgelu")
    if name not in ARCHS:
        raise unknown("name of an OpenCLIP model", arch, [*ARCHS, "one of these with -quickgelu behind it"])
    *sizes, head_width = ARCHS[name]
    if tuple(sizes) != _sizes(vision):
        raise UserError(f"{path}: image tower of width, layers, patch {_sizes(vision)}; {arch} has {tuple(sizes)}")
    inner = 32 * vision.width if isinstance(vision, ResNet) else vision.width
    by_name = "quick_gelu" if arch.endswith("-quickgelu") else "gelu", (inner // head_width, text_width // 64)
    if (act and act != by_name[0]) or (heads and _pair(heads) != by_name[1]):
        raise UserError(f"{path}: arch={arch} means act={by_name[0]}, heads={by_name[1]}; give arch alone")
    return by_name


def _openai_settings(tensors, folder):
    """What the sizes of the tensors do not tell: act, heads or widths of heads, epsilons; preprocess_cfg.

    Empty where nothing states it: the file is no release of OpenAI's and has no configuration beside it.
    """
    path = folder / "open_clip_config.json"
    if files.lies(path):
        return _open_clip_settings(path)
    path = folder / "config.json"
    raw = files.read_json(path) if files.lies(path) else {}
    if raw.get("model_type") == "clip_modified_resnet":
        heads = {key: files.integer(f"{path}: ", raw, key) for key in ("vision_heads", "text_heads") if key in raw}
        return {"head_width": 64} | heads | {"act": _activation(raw.get("activation_text", "quick_gelu"), path)}
    if all(name in tensors for name in RELEASE):
        return {"act": "quick_gelu", "head_width": 64}
    return {}


# Fields of an open_clip_config.json: those that are used, those that change no feature, and the only supported values
# of those that would. OpenCLIP's defaults, written out, are among the latter.
OPEN_CLIP_USED = {
    "model_cfg": {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"},
    "vision_cfg": {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio", "norm_kwargs"},
    "text_cfg": {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "norm_kwargs"}
    | {"pool_type", "eos_id"},
}
OPEN_CLIP_NEUTRAL = {
    "model_cfg": {"custom_text", "init_logit_scale", "nonscalar_logit_scale", "output_dict", "cast_dtype"},
    "vision_cfg": {"patch_dropout", "output_tokens", "attn_pooler_queries", "attn_pooler_heads"}
    | {"timm_model_pretrained", "timm_pool", "timm_proj", "timm_proj_bias", "timm_drop", "timm_drop_path"},
    "text_cfg": {"output_tokens", "pad_id", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type"},
}
OPEN_CLIP_ONLY = {
    "model_cfg": {},
    "vision_cfg": {"pool_type": "tok", "pos_embed_type": "learnable", "block_type": "default"},
    "text_cfg": {"proj_type": "linear", "block_type": "default", "tokenizer_mode": "clip"}
    | {"tokenizer_kwargs": {"clean": "lower"}},
}


def _open_clip_settings(path):
    raw = files.read_json(path)
    if "model_cfg" in raw:
        model, processor = files.section(path, raw, "model_cfg"), files.section(path, raw, "preprocess_cfg")
    else:  # flat, as in OpenCLIP's model_configs
        flat = {key: raw[key] for key in preprocess.OPEN_CLIP if key in raw}
        processor = files.section(path, raw, "preprocess_cfg") | flat
        model = {key: value for key, value in raw.items() if key not in flat and key != "preprocess_cfg"}
    if not model.keys() & {"vision_cfg", "text_cfg"}:
        raise UserError(f"{path}: expected model_cfg, or vision_cfg and text_cfg, as OpenCLIP writes them")
    vision, text = files.section(path, model, "vision_cfg"), files.section(path, model, "text_cfg")
    parts = {"model_cfg": model, "vision_cfg": vision, "text_cfg": text}
    other = [
        f"{name}.{key} = {files.shown(value)}"
        for name, part in parts.items()
        for key, value in part.items()
        if value not in (None, False, {}, []) and value != OPEN_CLIP_ONLY[name].get(key)
        and not (value == "" and key.endswith("_name")) and key not in OPEN_CLIP_USED[name] | OPEN_CLIP_NEUTRAL[name]
    ]  # fmt: skip
    pool = text.get("pool_type") or "argmax"
    other += [f"text_cfg.pool_type = {files.shown(pool)}"] if pool not in ("argmax", "eos") else []
    if other:
        raise UserError(f"{path}: this is not CLIP's own architecture: {', '.join(other)}")
    if not isinstance(quick := model.get("quick_gelu") or False, bool):
        raise UserError(f"{path}: quick_gelu is {files.shown(quick)}; expected true or false")
    parts = {name: {k: v for k, v in part.items() if v is not None} for name, part in parts.items()}
    at = {name: f"{path}: {name}." for name in parts}
    settings = {
        "act": "quick_gelu" if quick else "gelu",
        "head_width": files.integer(at["vision_cfg"], parts["vision_cfg"], "head_width", 64),
        "text_heads": files.integer(at["text_cfg"], parts["text_cfg"], "heads", 8),
        "preprocess": preprocess.of_open_clip(f"{path}: preprocess_cfg", processor),
    }
    if pool == "eos":
        settings["eot"] = files.integer(at["text_cfg"], parts["text_cfg"], "eos_id", 2, low=0)
    for tower in ("vision", "text"):
        norm = files.section(path, parts[f"{tower}_cfg"], "norm_kwargs")
        if norm.keys() - {"eps"}:
            raise UserError(f"{path}: {tower}_cfg.norm_kwargs is {files.shown(norm)}; only eps is supported")
        settings[f"{tower}_eps"] = files.real(at[f"{tower}_cfg"] + "norm_kwargs.", norm, "eps", 1e-5)
    # Sizes that are stated have to be those of the weights; what is left out is taken from the weights.
    stated = {
        "vision_cfg": ("image_size", "width", "patch_size", "layers", "mlp_ratio"),
        "text_cfg": ("width", "layers", "context_length", "vocab_size", "mlp_ratio"),
        "model_cfg": ("embed_dim",),
    }
    settings["stated"] = {}
    for name, keys in stated.items():
        for key in (key for key in keys if key in parts[name]):
            value = parts[name][key]
            if key == "mlp_ratio":
                value = files.real(at[name], parts[name], key, low=0.01, high=100)
            elif key != "layers" or not isinstance(value, list):
                value = files.integer(at[name], parts[name], key)
            settings["stated"][f"{name}.{key}"] = value
    return settings


def _openai_config(tensors, text, file, folder, act, heads, arch):
    """The sizes, inferred from the tensors' shapes; activation and heads as stated beside them, or by the person.

    A state dict is of OpenAI's release where it holds the three numbers in `RELEASE`: quick-GELU, heads 64 wide.
    """
    missing = []

    def shape(key, ndim):
        there = tensors[key].shape if key in tensors else ()
        if len(there) != ndim or 0 in there:
            missing.append(f"{key} with {ndim} axes")
            return (64,) * ndim
        return there

    where = folder / "open_clip_config.json"
    settings = _openai_settings(tensors, folder)
    eps = {tower: settings.get(f"{tower}_eps", 1e-5) for tower in ("vision", "text")}
    resnet = "visual.layer1.0.conv1.weight" in tensors
    sizes = settings.get("stated", {})
    if resnet:
        width = shape("visual.layer1.0.conv1.weight", 4)[0]
        layers = tuple(_count(tensors, rf"visual\.layer{i}\.(\d+)\.") for i in (1, 2, 3, 4))
        pos = shape("visual.attnpool.positional_embedding", 2)[0]
        embed_dim = shape("visual.attnpool.c_proj.weight", 2)[0]
        size = 32 * math.isqrt(pos - 1)
        vision = ResNet(sizes.get("vision_cfg.image_size", size), width, layers, 1)
    else:
        width, _, _, patch = shape("visual.conv1.weight", 4)
        embed_dim = shape("visual.proj", 2)[1]
        pos = shape("visual.positional_embedding", 2)[0]
        layers = _count(tensors, r"visual\.transformer\.resblocks\.(\d+)\.")
        mlp = shape("visual.transformer.resblocks.0.mlp.c_fc.weight", 2)[0]
        size = sizes.get("vision_cfg.image_size", patch * math.isqrt(pos - 1))
        vision = ViT(width, layers, 1, mlp, eps=eps["vision"], image_size=size, patch=patch)
    vocab, text_width = shape(f"{text}token_embedding.weight", 2)
    tower = Text(
        text_width,
        _count(tensors, rf"{re.escape(text)}transformer\.resblocks\.(\d+)\."),
        1,
        shape(f"{text}transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        eps=eps["text"],
        context=shape(f"{text}positional_embedding", 2)[0],
        vocab=vocab,
        eot=settings.get("eot"),
        bos=vocab - 2,
    )
    if missing:
        raise UserError(
            f"the sizes of this checkpoint cannot be inferred; tensors missing or misshapen: {', '.join(missing)}"
        )

    if settings:
        inner = 32 * width if resnet else width
        act = settings["act"]
        heads = (
            settings.get("vision_heads", max(1, inner // settings["head_width"])),
            settings.get("text_heads", max(1, text_width // 64)),
        )
    elif arch:
        act, heads = _of_arch(file, vision, text_width, arch, act, heads)
    if not act or not heads:
        raise UserError(_ask_for_activation(file, where, vision, text_width))
    act, (image_heads, text_heads) = _activation(act, file), _pair(heads)
    vision = dataclasses.replace(vision, heads=image_heads, **({} if resnet else {"act": act}))
    tower = dataclasses.replace(tower, heads=text_heads, act=act)
    there = {"vision_cfg.image_size": vision.image_size, "vision_cfg.width": width, "text_cfg.width": text_width}
    there |= {"vision_cfg.layers": list(layers) if resnet else layers, "text_cfg.layers": tower.layers}
    there |= {"text_cfg.context_length": tower.context, "text_cfg.vocab_size": vocab, "model_cfg.embed_dim": embed_dim}
    there |= {"text_cfg.mlp_ratio": tower.mlp} | ({} if resnet else {"vision_cfg.patch_size": patch})
    there |= {} if resnet else {"vision_cfg.mlp_ratio": mlp}
    for key, value in sizes.items():
        value = int(value * there[key.replace("mlp_ratio", "width")]) if key.endswith("mlp_ratio") else value
        if key in there and value != there[key]:
            raise UserError(f"{where}: {key} is {sizes[key]}; the weights beside it have {there[key]}")
    config = ClipConfig(embed_dim, vision, tower)
    name = "visual.attnpool.positional_embedding" if resnet else "visual.positional_embedding"
    _refuse_impossible(file, config, tensors[name])
    pixels = settings.get("preprocess") or preprocess.of_folder(folder, vision.image_size)
    return dataclasses.replace(config, **pixels._asdict())


def _ask_for_activation(file, config, vision, text_width):
    """What to say about a state dict that does not tell its activation and its heads."""
    resnet = isinstance(vision, ResNet)
    usual = (max(1, vision.width * (32 if resnet else 1) // 64), max(1, text_width // 64))
    archs = [name for name, (*sizes, _) in ARCHS.items() if tuple(sizes) == _sizes(vision)][:1]
    by_name = [f"  --config.model.arch={name}  (the name in OpenCLIP; or {name}-quickgelu)" for name in archs]
    lines = [
        f"{file}: a state dict alone tells neither the activation of the MLPs (GELU, usual in OpenCLIP, or quick-GELU, "
        f"as in OpenAI's models) nor the number of attention heads, and with wrong ones its features are wrong; "
        f"{config}: missing; it would tell the activation and the heads. Put OpenCLIP's configuration there, or say "
        "them:",
        *by_name,
        f"  --config.model.act=gelu --config.model.heads={usual[0]},{usual[1]}  (or quick_gelu; heads of image tower, "
        "text tower, here 64 wide)",
        "with vlmx.extract: --arch, or --act and --heads; of the image tower of VL-T5: --config.tower....",
    ]
    return "\n".join(lines)


def _openai_table(config, text):
    def block(key, width):
        rules = _norm("ln_1", f"{key}.ln_1") | _norm("ln_2", f"{key}.ln_2")
        for i, name in enumerate("qkv"):  # one tensor holds the three, one below the other
            part = {"start": i * width, "total": 3 * width}
            rules[f"attn/{name}/kernel"] = From((f"{key}.attn.in_proj_weight",), (1, 0), **part)
            rules[f"attn/{name}/bias"] = From((f"{key}.attn.in_proj_bias",), (0,), **part)
        rules |= _linear("attn/o", f"{key}.attn.out_proj")
        return rules | _linear("mlp/fc", f"{key}.mlp.c_fc") | _linear("mlp/proj", f"{key}.mlp.c_proj")

    def tower(ours, theirs, c):
        layers = [block(f"{theirs}transformer.resblocks.{i}", c.width) for i in range(c.layers)]
        return _array(f"{ours}/pos_embed", f"{theirs}positional_embedding", 2) | _blocks(ours, layers)

    if isinstance(config.vision, ResNet):
        vision = _resnet_table(config.vision)
    else:
        vision = {
            **tower("vision", "visual.", config.vision),
            **_array("vision/class_embed", "visual.class_embedding", 1),
            "vision/patch_embed/kernel": From(("visual.conv1.weight",), (2, 3, 1, 0)),
            **_norm("vision/ln_pre", "visual.ln_pre"),
            **_norm("vision/ln_post", "visual.ln_post"),
            **_array("vision/proj", "visual.proj", 2),
        }
    return {
        **vision,
        **tower("text", text, config.text),
        **_array("text/token_embed", f"{text}token_embedding.weight", 2),
        **_norm("text/ln_final", f"{text}ln_final"),
        **_array("text/proj", f"{text}text_projection", 2),
        **_array("logit_scale", "logit_scale", 0),
    }


def _resnet_table(c):
    def conv_bn(ours, theirs, conv, bn, our_conv=None, our_bn=None):
        norm = f"{ours}/{our_bn or bn}"
        return {
            f"{ours}/{our_conv or conv}": From((f"{theirs}.{conv}.weight",), (2, 3, 1, 0)),
            **_norm(norm, f"{theirs}.{bn}"),
            **_array(f"{norm}/mean", f"{theirs}.{bn}.running_mean", 1),
            **_array(f"{norm}/var", f"{theirs}.{bn}.running_var", 1),
        }

    names = [("stem", "visual")]
    names += [(f"layer{i}/block{j}", f"visual.layer{i}.{j}") for i, n in enumerate(c.layers, 1) for j in range(n)]
    table = {}
    for ours, theirs in names:
        for i in (1, 2, 3):
            table |= conv_bn(f"vision/{ours}", theirs, f"conv{i}", f"bn{i}")
        if ours.endswith("block0"):
            table |= conv_bn(f"vision/{ours}", theirs, "downsample.0", "downsample.1", "down_conv", "down_bn")
    for ours, theirs in {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "c_proj"}.items():
        table |= _linear(f"vision/attnpool/{ours}", f"visual.attnpool.{theirs}")
    return table | _array("vision/attnpool/pos_embed", "visual.attnpool.positional_embedding", 2)
