"""T5 and BART as Hugging Face writes them, read into vlmx's parameter tree and back: only here are their names known.

As in convert.py: a table from each of our leaves to its source tensors, which has to account for all of the file.
"""

import dataclasses
import os
import re
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save_file

from vlmx import streams
from vlmx.errors import UserError
from vlmx.models import files
from vlmx.models.files import From
from vlmx.models.seq_layers import ACTS
from vlmx.models.vlseq import Generation, SeqConfig, init_params, param_shapes

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

# Copies of the word embedding, and a table of T5's that nothing uses; everything else has to be used.
IGNORED = re.compile(
    r"(lm_head|(model\.)?(shared|(en|de)coder\.embed_tokens))\.weight"
    r"|decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight|final_logits_bias"
)
EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
FRESH = ("added/", "visual/", "logits_bias")  # leaves that a file need not hold
ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}


def read(path, *, visual=None, added=0, seed=0, dtype="float32", param_dtype="float32", place=None):
    """Reads the T5 or BART in the directory `path` as `(SeqConfig, params)`.

    Args:
      visual: a vlseq.Visual; its embedding, which no such checkpoint holds, starts at random from `seed`.
      added: rows behind those of the file's word embedding, at random too.
      dtype, param_dtype: for the compute and the storage of frozen weights.
      place: `(path, shape) -> jax.sharding.Sharding` of each leaf; None puts everything on the first local device.

    Raises UserError as convert.read does.
    """
    found, folder = files.weight_files(path)
    tensors = files.open_tensors(found)
    config = config_of(files.read_json(folder / "config.json"), folder / "config.json")
    generation = folder / "generation_config.json"
    if generation.is_file():
        config = dataclasses.replace(config, generation=_generation(files.read_json(generation)))
    config = dataclasses.replace(config, visual=visual, added=added, dtype=dtype, param_dtype=param_dtype)
    if "lm_head.weight" not in tensors:
        config = dataclasses.replace(config, tied=True)

    table, shapes = sources(config, tensors), flatten_dict(param_shapes(config), sep="/")
    absent = [name for name in shapes if name not in table and name.startswith(FRESH)]
    files.check(path, tensors, table, {name: shapes[name] for name in table}, IGNORED)
    leaves = {name: files.place(table[name], tensors, shapes[name], name, place) for name in table}
    if absent:
        # only what is asked for is computed: under jit the rest of the start is dropped
        start = jax.jit(lambda key: {n: flatten_dict(init_params(config, key), sep="/")[n] for n in absent})
        for name, leaf in start(streams.key("added parts", seed)).items():
            leaves[name] = leaf if place is None else jax.device_put(leaf, place(name, leaf.shape))
    return config, unflatten_dict({name: leaves[name] for name in shapes}, sep="/")


def config_of(raw, path="config.json"):
    """The SeqConfig that the content of a config.json describes. Raises UserError for another kind of model."""
    kind = raw.get("model_type")
    if kind not in ("t5", "bart"):
        raise UserError(f'{path}: model_type is "{kind}"; only "t5" and "bart" can be read')
    return (_t5_config if kind == "t5" else _bart_config)(raw, path)


def _t5_config(raw, path):
    from transformers import T5Config

    c = T5Config.from_dict(raw)  # fills in the defaults of keys that are absent
    kind = c.feed_forward_proj.removeprefix("gated-")
    act = "gelu_tanh" if c.feed_forward_proj == "gated-gelu" else _activation(kind, path)
    rate = c.dropout_rate
    return SeqConfig(
        family="t5",
        width=c.d_model,
        heads=c.num_heads,
        head_dim=c.d_kv,
        mlp=c.d_ff,
        layers=(c.num_layers, c.num_decoder_layers or c.num_layers),
        vocab=c.vocab_size,
        act=act,
        gated=c.feed_forward_proj.startswith("gated-"),
        # T5 v1.0 ties and scales, v1.1 does neither; transformers 5 writes the second as a key of its own
        tied=raw.get("tie_word_embeddings", True) and raw.get("scale_decoder_outputs", True),
        scale_logits=raw.get("tie_word_embeddings", True) and raw.get("scale_decoder_outputs", True),
        eps=c.layer_norm_epsilon,
        dropout=rate,
        attention_dropout=rate,
        activation_dropout=rate,
        buckets=c.relative_attention_num_buckets,
        distance=c.relative_attention_max_distance,
        pad=c.pad_token_id,
        end=c.eos_token_id,
        begin=raw.get("decoder_start_token_id", c.pad_token_id),
        generation=_generation(raw),
    )


def _bart_config(raw, path):
    from transformers import BartConfig

    c = BartConfig.from_dict(raw)
    halves = ("attention_heads", "ffn_dim")
    unequal = [name for name in halves if getattr(c, f"encoder_{name}") != getattr(c, f"decoder_{name}")]
    odd = [name for name in ("normalize_before", "add_final_layer_norm", "static_position_embeddings") if raw.get(name)]
    odd += [name for name in ("normalize_embedding", "tie_word_embeddings") if raw.get(name) is False]
    if unequal or odd:
        problems = [f"encoder_{n} and decoder_{n} differ" for n in unequal] + [f"{n} is {raw[n]}" for n in odd]
        raise UserError(f"{path}: this is not BART's own architecture: {', '.join(problems)}")
    return SeqConfig(
        family="bart",
        width=c.d_model,
        heads=c.encoder_attention_heads,
        head_dim=c.d_model // c.encoder_attention_heads,
        mlp=c.encoder_ffn_dim,
        layers=(c.encoder_layers, c.decoder_layers),
        vocab=c.vocab_size,
        act=_activation(c.activation_function, path),
        scale_embedding=c.scale_embedding,
        eps=1e-5,
        dropout=c.dropout,
        attention_dropout=c.attention_dropout,
        activation_dropout=c.activation_dropout,
        positions=c.max_position_embeddings,
        pad=c.pad_token_id,
        end=c.eos_token_id,
        begin=raw.get("decoder_start_token_id", c.eos_token_id),
        generation=_generation(raw),
    )


def _activation(act, path):
    act = ACTIVATIONS.get(act, act)
    if act not in ACTS:
        raise UserError(f'{path}: activation "{act}" is not one of {", ".join(ACTS)}')
    return act


def _generation(raw):
    return Generation(
        length_penalty=raw.get("length_penalty") or 1.0,
        early_stopping=bool(raw.get("early_stopping")),
        no_repeat_ngram=raw.get("no_repeat_ngram_size") or 0,
        force_end=raw.get("forced_eos_token_id") is not None,
    )


def sources(c, tensors):
    """Our leaves -> files.From, for the names that a file has.

    BART's names may lack the leading "model."; the word embedding goes by one of several.
    """
    prefix = "model." if any(key.startswith("model.") for key in tensors) else ""
    words = next((prefix + n for n in EMBEDDINGS if prefix + n in tensors), None)
    if words is None:
        words = "lm_head.weight" if c.tied and "lm_head.weight" in tensors else prefix + EMBEDDINGS[0]
    table = {"token_embed": From((words,), (0, 1))}
    if not c.tied:
        table["head"] = From(("lm_head.weight",), (0, 1))
    if c.family == "bart" and "final_logits_bias" in tensors:
        table["logits_bias"] = From(("final_logits_bias",), (0, 1))
    for tower, layers in zip(("encoder", "decoder"), c.layers):
        rules = _t5_tower(c, tower) if c.family == "t5" else _bart_tower(prefix + tower, tower)
        for name, (key, axes) in rules.items():
            stacked = "{}" in key
            keys = tuple(key.format(i) for i in range(layers)) if stacked else (key,)
            table[f"{tower}/{name}"] = From(keys, axes, stacked)
    return table


def _t5_tower(c, tower):
    """Name in the tower -> (source name, a {} where the layer's number goes; axes)."""
    layer = f"{tower}.block.{{}}.layer."
    sublayers = {"attn": "SelfAttention", "cross": "EncDecAttention", "mlp": "DenseReluDense"}
    if tower == "encoder":
        del sublayers["cross"]
    maps = {"fc": "wi_1", "gate": "wi_0", "proj": "wo"} if c.gated else {"fc": "wi", "proj": "wo"}
    rules = {
        "rel_bias": (f"{tower}.block.0.layer.0.SelfAttention.relative_attention_bias.weight", (0, 1)),
        "ln_final/scale": (f"{tower}.final_layer_norm.weight", (0,)),
    }
    for i, (ours, theirs) in enumerate(sublayers.items()):
        rules[f"blocks/ln_{ours}/scale"] = (f"{layer}{i}.layer_norm.weight", (0,))
        for name, source in (maps if ours == "mlp" else {n: n for n in "qkvo"}).items():
            rules[f"blocks/{ours}/{name}/kernel"] = (f"{layer}{i}.{theirs}.{source}.weight", (1, 0))
    return rules


def _bart_tower(theirs, tower):
    layer = f"{theirs}.layers.{{}}."
    maps = {"mlp/fc": "fc1", "mlp/proj": "fc2"}
    norms = {"blocks/ln_attn": f"{layer}self_attn_layer_norm", "blocks/ln_mlp": f"{layer}final_layer_norm"}
    norms["ln_embed"] = f"{theirs}.layernorm_embedding"
    attentions = {"attn": "self_attn"}
    if tower == "decoder":
        attentions["cross"] = "encoder_attn"
        norms["blocks/ln_cross"] = f"{layer}encoder_attn_layer_norm"
    for ours, source in attentions.items():
        projections = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"}
        maps |= {f"{ours}/{n}": f"{source}.{projection}" for n, projection in projections.items()}
    rules = {"pos_embed": (f"{theirs}.embed_positions.weight", (0, 1))}
    for ours, source in norms.items():
        rules |= {f"{ours}/scale": (f"{source}.weight", (0,)), f"{ours}/bias": (f"{source}.bias", (0,))}
    for ours, source in maps.items():
        rules[f"blocks/{ours}/kernel"] = (f"{layer}{source}.weight", (1, 0))
        rules[f"blocks/{ours}/bias"] = (f"{layer}{source}.bias", (0,))
    return rules


def save_hf(directory, config, params, dtype="float32"):
    """Writes a text-only T5 or BART as a Hugging Face directory that `read` and transformers load.

    Rows that were added and a visual embedding are left out: no class of transformers has them.
    """
    directory, c = Path(directory), config
    directory.mkdir(parents=True, exist_ok=True)
    names = {"shared.weight", "model.shared.weight", "lm_head.weight", "final_logits_bias"}
    table = sources(c, dict.fromkeys(names if c.family == "bart" else names - {"model.shared.weight"}))
    flat, tensors = flatten_dict(params, sep="/"), {}
    for name, rule in table.items():
        leaf = np.asarray(flat[name]).astype(dtype)
        for key, value in zip(rule.keys, leaf if rule.stacked else [leaf]):
            tensors[key] = value.transpose(np.argsort(rule.axes).tolist()).copy()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    files.write_json(directory / "config.json", {**_raw(c), "dtype": dtype})


def _raw(c):
    """The config.json of a config."""
    g = c.generation
    raw = {
        "model_type": c.family,
        "vocab_size": c.vocab,
        "d_model": c.width,
        "pad_token_id": c.pad,
        "eos_token_id": c.end,
        "decoder_start_token_id": c.begin,
        "is_encoder_decoder": True,
        "length_penalty": g.length_penalty,
        "early_stopping": g.early_stopping,
        "no_repeat_ngram_size": g.no_repeat_ngram,
        "forced_eos_token_id": c.end if g.force_end else None,
    }
    acts = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    act = acts.get(c.act, c.act)
    if c.family == "t5":
        gated = "gated-gelu" if c.act == "gelu_tanh" else f"gated-{act}"
        return raw | {
            "architectures": ["T5ForConditionalGeneration"],
            "d_kv": c.head_dim,
            "d_ff": c.mlp,
            "num_heads": c.heads,
            "num_layers": c.layers[0],
            "num_decoder_layers": c.layers[1],
            "feed_forward_proj": gated if c.gated else act,
            "tie_word_embeddings": c.tied,
            "layer_norm_epsilon": c.eps,
            "dropout_rate": c.dropout,
            "relative_attention_num_buckets": c.buckets,
            "relative_attention_max_distance": c.distance,
        }
    return raw | {
        "architectures": ["BartForConditionalGeneration"],
        "encoder_layers": c.layers[0],
        "decoder_layers": c.layers[1],
        "encoder_attention_heads": c.heads,
        "decoder_attention_heads": c.heads,
        "encoder_ffn_dim": c.mlp,
        "decoder_ffn_dim": c.mlp,
        "activation_function": act,
        "scale_embedding": c.scale_embedding,
        "max_position_embeddings": c.positions,
        "bos_token_id": 0,
        "dropout": c.dropout,
        "attention_dropout": c.attention_dropout,
        "activation_dropout": c.activation_dropout,
    }  # fmt: skip
