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

from vlmx.errors import UserError
from vlmx.models import files
from vlmx.models.clip import MEAN, STD, ClipConfig, ResNet, Text, ViT, param_shapes
from vlmx.models.files import From
from vlmx.models.layers import ACTIVATIONS

# transformers advises installing torch; we only take its configurations and tokenizers, which need none.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")
# Buffers that checkpoints carry beside their weights; everything else has to be used.
IGNORED = re.compile(r"(.*\.)?(position_ids|num_batches_tracked|attn_mask)|input_resolution|context_length|vocab_size")


def read(path, *, image_size=None, context=None, dtype="float32", param_dtype="float32", place=None):
    """Reads the checkpoint at `path`, a directory or a file, as `(ClipConfig, params)`.

    Args:
      image_size: another image size than the checkpoint's; positions are interpolated (`files.resize_grid`).
      context: a shorter text context than the checkpoint's; positions are cut.
      dtype, param_dtype: for the compute and the storage of frozen weights, as in ClipConfig.
      place: `(path, shape) -> jax.sharding.Sharding` of each leaf, `path` as in "vision/blocks/attn/q/kernel"; None
        puts everything on the first local device.

    Raises UserError where the file cannot be read, its format or architecture is none of ours, or its tensors are not
    exactly the ones expected: unknown, missing and misshapen ones are listed by name.
    """
    tensors, source, table = _described(path)
    config = _resized(source, image_size, context, dtype, param_dtype)
    grids = _grid(source.vision), _grid(config.vision)
    where = "vision/attnpool/pos_embed" if isinstance(source.vision, ResNet) else "vision/pos_embed"
    table[where] = table[where]._replace(grid=grids if grids[0] != grids[1] else None)
    table["text/pos_embed"] = table["text/pos_embed"]._replace(total=source.text.context)

    shapes = flatten_dict(param_shapes(config), sep="/")
    files.check(path, tensors, table, shapes, IGNORED)
    leaves = {name: files.place(table[name], tensors, shape, name, place) for name, shape in shapes.items()}
    return config, unflatten_dict(leaves, sep="/")


def config_of(path, *, image_size=None, context=None, dtype="float32", param_dtype="float32"):
    """The ClipConfig of the checkpoint at `path`, as `read` gives it; no weight is read."""
    return _resized(_described(path)[1], image_size, context, dtype, param_dtype)


def _described(path):
    """(tensors by name, mapped and not read; the ClipConfig; where each leaf comes from) of a checkpoint."""
    found, folder = files.weight_files(path)
    tensors = files.open_tensors(found)
    if any(key.startswith(("text_model.", "vision_model.")) for key in tensors):
        source = _hf_config(folder / "config.json")
        table = _hf_table(source)
    elif any(key.startswith("visual.") for key in tensors):
        text = "text." if any(key.startswith("text.") for key in tensors) else ""
        source = _openai_config(tensors, text, _openai_settings(found[0], folder))
        table = _openai_table(source, text)
    else:
        some = ", ".join(sorted(tensors)[:5])
        raise UserError(
            f"{path}: not a CLIP checkpoint in the naming of Hugging Face, OpenAI or OpenCLIP; it holds {some} ..."
        )
    return tensors, source, table


def save_hf(directory, config, params, tokenizer_dir=None, dtype="float32"):
    """Writes a ViT CLIP as a Hugging Face directory that `read` and transformers' `CLIPModel` load.

    `dtype` is that of the file; `tokenizer_dir`'s tokenizer files are copied along. Raises UserError for ResNet towers,
    for which Hugging Face has no class.
    """
    if isinstance(config.vision, ResNet):
        raise UserError(
            "a CLIP with a ResNet image tower has no Hugging Face format; only ViT towers can be saved in it"
        )
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
    files.write_json(
        directory / "preprocessor_config.json",
        {
            "image_processor_type": "CLIPImageProcessor",
            "crop_size": {"height": v.image_size, "width": v.image_size},
            "size": {"shortest_edge": v.image_size},
            "image_mean": list(config.mean),
            "image_std": list(config.std),
        },
    )
    for file in TOKENIZER_FILES if tokenizer_dir else ():
        if (Path(tokenizer_dir) / file).is_file():
            shutil.copyfile(Path(tokenizer_dir) / file, directory / file)


def _grid(vision):
    return vision.image_size // (32 if isinstance(vision, ResNet) else vision.patch)


def _resized(config, image_size, context, dtype, param_dtype):
    vision, text = config.vision, config.text
    if image_size is not None:
        step = 32 if isinstance(vision, ResNet) else vision.patch
        if image_size < step:
            raise UserError(f"image_size={image_size}: smaller than one patch ({step} pixels) of this image tower")
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


def _hf_config(path):
    from transformers import CLIPConfig

    raw = files.read_json(path)
    if raw.get("model_type") != "clip":
        raise UserError(f'{path}: model_type is "{raw.get("model_type")}"; only "clip" can be read')
    config = CLIPConfig.from_dict(raw)  # fills in the defaults of keys that are absent
    v, t = config.vision_config, config.text_config
    if v.num_channels != 3:
        raise UserError(f"{path}: vision_config.num_channels is {v.num_channels}; images have 3")

    def tower(c):
        act = _activation(c.hidden_act, path)
        return (c.hidden_size, c.num_hidden_layers, c.num_attention_heads, c.intermediate_size, act, c.layer_norm_eps)

    legacy = t.eos_token_id == LEGACY_EOS or t.eos_token_id >= t.vocab_size
    processor = path.with_name("preprocessor_config.json")
    processor = files.read_json(processor) if processor.is_file() else {}
    return ClipConfig(
        embed_dim=config.projection_dim,
        vision=ViT(*tower(v), image_size=v.image_size, patch=v.patch_size),
        text=Text(
            *tower(t),
            context=t.max_position_embeddings,
            vocab=t.vocab_size,
            eot=None if legacy else t.eos_token_id,
            bos=t.vocab_size - 2 if legacy and t.bos_token_id == 0 else t.bos_token_id,
            pad=t.pad_token_id,
        ),
        mean=tuple(processor.get("image_mean", MEAN)),
        std=tuple(processor.get("image_std", STD)),
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
    if act not in ACTIVATIONS:
        raise UserError(f'{path}: activation "{act}" is not one of {", ".join(ACTIVATIONS)}')
    return act


# ---- OpenAI and OpenCLIP ----


def _openai_settings(file, folder):
    """What the state dict beside does not tell: activation, heads, epsilons, image statistics. Defaults: OpenAI's."""
    path = folder / "open_clip_config.json"
    if path.is_file():
        return _open_clip_settings(path)
    if file.name.startswith("open_clip_"):
        raise UserError(f"{path}: missing; without it the activation of {file.name} (GELU or quick-GELU) is unknown")
    path = folder / "config.json"
    raw = files.read_json(path) if path.is_file() else {}
    if raw.get("model_type") != "clip_modified_resnet":
        return {}
    settings = {name: raw[name] for name in ("vision_heads", "text_heads") if name in raw}
    return settings | {"act": _activation(raw.get("activation_text", "quick_gelu"), path)}


def _open_clip_settings(path):
    raw = files.read_json(path)
    model, processor = raw.get("model_cfg", {}), raw.get("preprocess_cfg", {})
    vision, text = model.get("vision_cfg", {}), model.get("text_cfg", {})
    # Keys that change the architecture into one that is not CLIP's are refused where they are set.
    known = {
        "model_cfg": {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "init_logit_scale"},
        "vision_cfg": {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio", "norm_kwargs"}
        | {"patch_dropout", "output_tokens"},
        "text_cfg": {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "norm_kwargs"},
    }
    parts = {"model_cfg": model, "vision_cfg": vision, "text_cfg": text}
    other = [
        f"{name}.{key} = {part[key]!r}"
        for name, part in parts.items()
        for key in part
        if part[key] and key not in known[name]
    ]
    if other:
        raise UserError(f"{path}: this is not CLIP's own architecture: {', '.join(other)}")
    settings = {
        "act": "quick_gelu" if model.get("quick_gelu") else "gelu",
        "vision_eps": vision.get("norm_kwargs", {}).get("eps"),
        "text_eps": text.get("norm_kwargs", {}).get("eps"),
        "head_width": vision.get("head_width"),
        "image_size": vision.get("image_size"),
        "text_heads": text.get("heads"),
        "mean": processor.get("mean"),
        "std": processor.get("std"),
    }
    return {name: value for name, value in settings.items() if value is not None}


def _openai_config(tensors, text, settings):
    """The sizes, inferred from the tensors' shapes; heads are 64 wide unless the settings say otherwise."""
    missing = []

    def shape(key, ndim):
        found = tensors[key].shape if key in tensors else ()
        if len(found) != ndim:
            missing.append(f"{key} with {ndim} axes")
        return found if len(found) == ndim else (64,) * ndim

    def count(pattern):
        return len({match[1] for match in map(re.compile(pattern).match, tensors) if match})

    head = settings.get("head_width", 64)
    if "visual.layer1.0.conv1.weight" in tensors:
        width = shape("visual.layer1.0.conv1.weight", 4)[0]
        layers = tuple(count(rf"visual\.layer{i}\.(\d+)\.") for i in (1, 2, 3, 4))
        positions = shape("visual.attnpool.positional_embedding", 2)[0]
        embed_dim = shape("visual.attnpool.c_proj.weight", 2)[0]
        size = 32 * math.isqrt(positions - 1)
        heads = settings.get("vision_heads", max(1, 32 * width // head))
        vision = ResNet(settings.get("image_size", size), width, layers, heads)
    else:
        width, _, _, patch = shape("visual.conv1.weight", 4)
        embed_dim = shape("visual.proj", 2)[1]
        size = patch * math.isqrt(shape("visual.positional_embedding", 2)[0] - 1)
        vision = ViT(
            width,
            count(r"visual\.transformer\.resblocks\.(\d+)\."),
            settings.get("vision_heads", max(1, width // head)),
            shape("visual.transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
            settings.get("act", "quick_gelu"),
            settings.get("vision_eps", 1e-5),
            image_size=settings.get("image_size", size),
            patch=patch,
        )
    vocab, width = shape(f"{text}token_embedding.weight", 2)
    tower = Text(
        width,
        count(rf"{re.escape(text)}transformer\.resblocks\.(\d+)\."),
        settings.get("text_heads", max(1, width // 64)),
        shape(f"{text}transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        settings.get("act", "quick_gelu"),
        settings.get("text_eps", 1e-5),
        context=shape(f"{text}positional_embedding", 2)[0],
        vocab=vocab,
        bos=vocab - 2,
    )
    if missing:
        raise UserError(
            f"the sizes of this checkpoint cannot be inferred; tensors missing or misshapen: {', '.join(missing)}"
        )
    statistics = {name: tuple(settings[name]) for name in ("mean", "std") if name in settings}
    return ClipConfig(embed_dim, vision, tower, **statistics)


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
