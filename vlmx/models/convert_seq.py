"""T5 and BART as Hugging Face writes them, read into vlmx's parameter tree and back: only here are their names known.

As in convert.py: a table from each of our leaves to its source tensors, which has to account for all of the file.
"""

import dataclasses
import functools
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
from vlmx.models.files import From, integer, real
from vlmx.models.seq_layers import ACTS
from vlmx.models.vlseq import Generation, SeqConfig, init_params, param_shapes

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

# Copies of the word embedding, and a table of T5's that nothing uses; everything else has to be used.
COPIES = re.compile(r"(lm_head|(model\.)?(shared|(en|de)coder\.embed_tokens))\.weight")
IGNORED = re.compile(
    COPIES.pattern + r"|decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight|final_logits_bias"
)
EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
FRESH = ("added/", "visual/", "logits_bias")  # leaves that a file need not hold
ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
LAYERS = 1000  # far more than any T5 or BART has; each takes time and memory before the weights are looked at
TEXT = 100_000  # tokens, as a bound for lengths of texts

# Names that transformers takes for the same sizes.
ALIASES = {
    "t5": {"hidden_size": "d_model", "num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"}
    | {"head_dim": "d_kv"},
    "bart": {"hidden_size": "d_model", "num_attention_heads": "encoder_attention_heads"}
    | {"num_hidden_layers": "encoder_layers"},
}
# Rules of generation that transformers has and vlmx has not -> values with which they change nothing.
UNSUPPORTED = {
    **dict.fromkeys(("guidance_scale", "num_beam_groups", "num_return_sequences"), (1,)),
    **dict.fromkeys(("penalty_alpha", "diversity_penalty"), (0,)),
    **dict.fromkeys(("remove_invalid_values", "token_healing", "low_memory", "use_mtp"), (False,)),
    **dict.fromkeys(("sequence_bias", "constraints", "force_words_ids", "dola_layers", "stop_strings", "max_time"), ()),
    **dict.fromkeys(("watermarking_config", "exponential_decay_length_penalty", "assistant_early_exit"), ()),
    **dict.fromkeys(("prompt_lookup_num_tokens",), ()),
}
UNSUPPORTED_SAMPLING = {"min_p": (0,), "typical_p": (1,), "top_h": (), "epsilon_cutoff": (0,), "eta_cutoff": (0,)}


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
    where, rules = folder / "config.json", folder / "generation_config.json"
    raw = files.read_json(where)
    config = _architecture(raw, where)
    # where there is such a file, it stands for itself: transformers takes no rule from config.json then
    generation = (
        _generation(files.read_json(rules), rules, config) if files.lies(rules) else config_of(raw, where).generation
    )
    config = dataclasses.replace(config, generation=generation, visual=visual, added=added)
    config = dataclasses.replace(config, dtype=dtype, param_dtype=param_dtype, tied=_tied(config, tensors, path))

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
    config = _architecture(raw, path)
    return dataclasses.replace(config, generation=_generation(raw, path, config))


def family(raw, path="config.json"):
    """Which model the content of a config.json describes: "t5" or "bart". Raises UserError for another one."""
    kind = raw.get("model_type") if isinstance(raw, dict) else None
    if kind not in ("t5", "bart"):
        raise UserError(f'{path}: model_type is {kind!r}; only "t5" and "bart" can be read')
    return kind


def _architecture(raw, path):
    """The SeqConfig of a config.json, without its rules of generation. Defaults are those of transformers."""
    kind = family(raw, path)
    for alias, name in ALIASES[kind].items():
        if name not in raw and alias in raw:
            raw = raw | {name: raw[alias]}
        elif raw.get(alias, raw.get(name)) != raw.get(name) and "layers" not in name:  # weights tell the layers
            raise UserError(f"{path}: {name} is {raw[name]}, {alias} {raw[alias]}; both mean the same: keep one")
    config = (_t5_config if kind == "t5" else _bart_config)(raw, path)
    begin = _ids(path, raw, "decoder_start_token_id", config.vocab) or _ids(path, raw, "bos_token_id", config.vocab)
    if "decoder_start_token_id" in raw and begin:
        config = dataclasses.replace(config, begin=begin[0])
    return config


def _t5_config(raw, path):
    size = functools.partial(integer, f"{path}: ", raw)
    vocab, layers = size("vocab_size", 32128), size("num_layers", 6, high=LAYERS)
    deeper = {} if raw.get("num_decoder_layers") is None else raw
    kind = _text(path, raw, "feed_forward_proj", "relu")
    gated = _flag(path, raw, "is_gated_act", kind.startswith("gated-"))
    act = _text(path, raw, "dense_act_fn", "gelu_new" if kind == "gated-gelu" else kind.removeprefix("gated-"))
    # T5 v1.0 ties and scales, v1.1 does neither; transformers 5 writes the second as a key of its own
    tied = _flag(path, raw, "tie_word_embeddings", True)
    scaled = _flag(path, raw, "scale_decoder_outputs", tied)
    rate = real(f"{path}: ", raw, "dropout_rate", 0.1)
    buckets = size("relative_attention_num_buckets", 32, low=4)
    return SeqConfig(
        family="t5",
        width=size("d_model", 512),
        heads=size("num_heads", 8),
        head_dim=size("d_kv", 64),
        mlp=size("d_ff", 2048),
        layers=(layers, integer(f"{path}: ", deeper, "num_decoder_layers", layers, high=LAYERS)),
        vocab=vocab,
        act=_activation(act, path),
        gated=gated,
        tied=tied and scaled,
        scale_logits=scaled,
        eps=real(f"{path}: ", raw, "layer_norm_epsilon", 1e-6, low=1e-30),
        dropout=rate,
        attention_dropout=rate,
        activation_dropout=rate,
        buckets=buckets,
        distance=size("relative_attention_max_distance", 128, low=buckets // 2 + 1),
        pad=_id(path, raw, "pad_token_id", vocab, 0),
        end=_id(path, raw, "eos_token_id", vocab, 1),
        begin=_id(path, raw, "pad_token_id", vocab, 0),
    )


def _bart_config(raw, path):
    size = functools.partial(integer, f"{path}: ", raw)
    odd = [name for name in ("normalize_before", "add_final_layer_norm", "static_position_embeddings") if raw.get(name)]
    odd += [name for name in ("normalize_embedding",) if raw.get(name) is False]
    if odd:
        raise UserError(f"{path}: not BART's own architecture: {', '.join(f'{n} is {raw[n]}' for n in odd)}")
    vocab, width = size("vocab_size", 50265), size("d_model", 1024)
    heads, mlp = ([size(f"{t}_{n}", d) for t in ("encoder", "decoder")] for n, d in SIDES)
    for tower, number in zip(("encoder", "decoder"), heads):
        if width % number:
            raise UserError(f"{path}: {tower}_attention_heads is {number}; it has to divide d_model, {width}")
    end = _id(path, raw, "eos_token_id", vocab, 2)
    return SeqConfig(
        family="bart",
        width=width,
        heads=heads[0],
        head_dim=width // heads[0],
        mlp=mlp[0],
        layers=(size("encoder_layers", 12, high=LAYERS), size("decoder_layers", 12, high=LAYERS)),
        decoder_heads=heads[1] if heads[1] != heads[0] else None,
        decoder_mlp=mlp[1] if mlp[1] != mlp[0] else None,
        vocab=vocab,
        act=_activation(_text(path, raw, "activation_function", "gelu"), path),
        tied=_flag(path, raw, "tie_word_embeddings", True),
        scale_embedding=_flag(path, raw, "scale_embedding", False),
        eps=1e-5,
        dropout=real(f"{path}: ", raw, "dropout", 0.1),
        attention_dropout=real(f"{path}: ", raw, "attention_dropout", 0.0),
        activation_dropout=real(f"{path}: ", raw, "activation_dropout", 0.0),
        positions=size("max_position_embeddings", 1024),
        pad=_id(path, raw, "pad_token_id", vocab, 1),
        end=end,
        begin=end,
    )


SIDES = (("attention_heads", 16), ("ffn_dim", 4096))  # sizes that BART's towers have for themselves, and defaults


def _activation(act, path):
    act = ACTIVATIONS.get(act, act)
    if act not in ACTS:
        raise UserError(f'{path}: activation "{act}" is not one of {", ".join(ACTS)}')
    return act


def _text(path, raw, key, default):
    value = raw.get(key, default)
    if not isinstance(value, str):
        raise UserError(f"{path}: {key} is {value!r}; expected text, such as {default!r}")
    return value


def _flag(path, raw, key, default):
    """Whether raw[key] is true; null counts as absent."""
    value = default if raw.get(key) is None else raw[key]
    if not isinstance(value, bool):
        raise UserError(f"{path}: {key} is {value!r}; expected true or false")
    return value


def _ids(path, raw, key, vocab=2**24):
    """The token ids raw[key], one or a list of them, as a tuple; () where the key is absent or null."""
    value = raw.get(key)
    value = [] if value is None else value if isinstance(value, list) else [value]
    if len(value) > TEXT:
        raise UserError(f"{path}: {key} has {len(value)} entries; expected token ids, {TEXT} at most")
    return tuple(integer(f"{path}: ", {key: v}, key, low=0, high=vocab - 1) for v in value)


def _id(path, raw, key, vocab, default):
    """The first of `_ids`, or the default."""
    return next(iter(_ids(path, raw, key, vocab)), default)


def _generation(raw, path="config.json", config=None):
    """The Generation that the content of a generation_config.json, or of a config.json without one beside it, states.

    Null counts as absent, and what is absent has transformers' default. config: of the model; None: any.
    Raises UserError for a rule that is not supported, or is no rule.
    """
    if not isinstance(raw, dict):
        raise UserError(f"{path}: expected a JSON object, {{...}}, with the rules of generation")
    raw, vocab = {k: v for k, v in raw.items() if v is not None}, config.vocab if config else 2**24
    whole, number = functools.partial(integer, f"{path}: ", raw), functools.partial(real, f"{path}: ", raw)
    ids, flag = functools.partial(_ids, path, raw), functools.partial(_flag, path, raw)
    sample, beams = flag("do_sample", False), whole("num_beams", 1, high=1000)
    unsupported = UNSUPPORTED | (UNSUPPORTED_SAMPLING if sample else {})
    names = [f"{k}={raw[k]!r}"[:80] for k, neutral in unsupported.items() if k in raw and raw[k] not in neutral]
    if sample and beams > 1:
        names.append(f"do_sample=True with num_beams={beams}")
    if names:
        raise UserError(
            f"{path}: not supported: {', '.join(names)}. Remove it there if texts may be generated without it"
        )
    if "max_new_tokens" in raw:
        max_length = 1 + whole("max_new_tokens", high=TEXT)
    else:
        default = min(21, config.positions) if config and config.family == "bart" else 21
        max_length = whole("max_length", default, low=2, high=TEXT)
    early = raw.get("early_stopping", False)
    if early != "never":
        early = flag("early_stopping", False)
    begin, ends = ids("decoder_start_token_id", vocab) or ids("bos_token_id", vocab), ids("eos_token_id", vocab)
    if config is not None and Path(path).name == "generation_config.json" and not (begin and ends):
        names = [k for k, v in (("decoder_start_token_id", begin), ("eos_token_id", ends)) if not v]
        raise UserError(
            f"{path}: {' and '.join(names)} missing; transformers does not look for it in config.json where this file "
            "exists, so texts would have no begin or no end. State it here, or remove this file"
        )
    if config is not None:  # what is the model's own is not said twice
        begin = () if begin == (config.begin,) else begin
        ends = () if ends == (config.end,) else ends
    force_end = ids("forced_eos_token_id", vocab)
    force_begin = ids("forced_bos_token_id", vocab)
    if flag("force_bos_token_to_be_generated", False):  # how it was called before
        force_begin = ids("bos_token_id", vocab)
    suppress = ids("suppress_tokens")
    for key, forced in (("forced_bos_token_id", force_begin), ("forced_eos_token_id", force_end)):
        if forced and set(forced) <= set(suppress):
            raise UserError(f"{path}: {key} and suppress_tokens both name {forced[0]}: it cannot be forced and barred")
    return Generation(
        max_length=max_length,
        beams=beams,
        sample=sample,
        temperature=number("temperature", 1.0, low=1e-6 if sample else 0.0, high=1e6),
        top_k=whole("top_k", 50 if sample else 0, low=0),
        top_p=number("top_p", 1.0),
        length_penalty=number("length_penalty", 1.0, low=-10, high=10),
        early_stopping=early,
        no_repeat_ngram=whole("no_repeat_ngram_size", 0, low=0),
        force_end=force_end if force_end and force_end != (ends or (config and config.end,)) else bool(force_end),
        force_begin=next(iter(force_begin), None),
        min_length=1 + whole("min_new_tokens", low=0) if "min_new_tokens" in raw else whole("min_length", 0, low=0),
        repetition_penalty=number("repetition_penalty", 1.0, low=1e-6, high=1e6),
        encoder_repetition_penalty=number("encoder_repetition_penalty", 1.0, low=1e-6, high=1e6),
        encoder_no_repeat_ngram=whole("encoder_no_repeat_ngram_size", 0, low=0),
        bad_words=_bad_words(path, raw, vocab, [[i] for i in ids("eos_token_id", vocab)]),
        suppress=suppress,
        suppress_first=ids("begin_suppress_tokens"),
        renormalize=flag("renormalize_logits", False),
        begin=next(iter(begin), None),
        ends=ends,
        published_beams=flag("published_beams", False),  # only save_hf writes this
    )


def _bad_words(path, raw, vocab, ends):
    """The sequences bad_words_ids, of which an end token alone is none, as transformers has it."""
    words = raw.get("bad_words_ids", [])
    if not isinstance(words, list) or len(words) > TEXT or not all(isinstance(w, list) and w for w in words):
        raise UserError(f"{path}: bad_words_ids: expected a list of lists of token ids, none of them empty")
    return tuple(_ids(path, {"bad_words_ids": w}, "bad_words_ids", vocab) for w in words if w not in ends)


def _tied(c, tensors, path):
    """Whether the output projection is the word embedding: not where a file holds another one. Raises UserError where
    the copies of the word embedding differ, which then is not one."""
    words = _words(c, tensors)
    for name in tensors if words in tensors else ():
        if (
            COPIES.fullmatch(name)
            and name not in (words, "lm_head.weight")
            and not _equal(tensors[name], tensors[words])
        ):
            raise UserError(f"{path}: {name} is not {words}; a word embedding for each tower is not supported")
    head = tensors.get("lm_head.weight")
    return head is None or (c.tied and (words not in tensors or _equal(head, tensors[words])))


def _equal(a, b):
    """Whether two tensors of a file are equal; read by parts, as they may be large."""
    if a.shape != b.shape or len(a.shape) != 2:
        return False
    rows = max(1, 2**24 // max(1, a.shape[1]))
    parts = [slice(i, min(i + rows, a.shape[0])) for i in range(0, a.shape[0], rows)]
    return all(np.array_equal(a.data[part], b.data[part]) for part in parts)


def sources(c, tensors):
    """Our leaves -> files.From, for the names that a file has.

    BART's names may lack the leading "model."; the word embedding goes by one of several.
    """
    table = {"token_embed": From((_words(c, tensors),), (0, 1))}
    if not c.tied:
        table["head"] = From(("lm_head.weight",), (0, 1))
    if c.family == "bart" and "final_logits_bias" in tensors:
        table["logits_bias"] = From(("final_logits_bias",), (0, 1))
    for tower, layers in zip(("encoder", "decoder"), c.layers):
        rules = _t5_tower(c, tower) if c.family == "t5" else _bart_tower(_prefix(tensors) + tower, tower)
        for name, (key, axes) in rules.items():
            stacked = "{}" in key
            keys = tuple(key.format(i) for i in range(layers)) if stacked else (key,)
            table[f"{tower}/{name}"] = From(keys, axes, stacked)
    return table


def _prefix(tensors):
    return "model." if any(key.startswith("model.") for key in tensors) else ""


def _words(c, tensors):
    """The name of the word embedding among a file's tensors."""
    prefix = _prefix(tensors)
    words = next((prefix + n for n in EMBEDDINGS if prefix + n in tensors), None)
    return words or ("lm_head.weight" if c.tied and "lm_head.weight" in tensors else prefix + EMBEDDINGS[0])


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
    files.write_json(directory / "config.json", {**_raw(c), **_rules(c), "dtype": dtype})


def _rules(c):
    """The keys of transformers for the rules of generation of a config, and one of our own, published_beams."""
    g = c.generation
    return {
        "pad_token_id": c.pad,
        "eos_token_id": c.end if len(g.ends) == 0 else list(g.ends),
        "decoder_start_token_id": c.begin if g.begin is None else g.begin,
        "max_length": g.max_length,
        "min_length": g.min_length,
        "num_beams": g.beams,
        "do_sample": g.sample,
        "temperature": g.temperature,
        "top_k": g.top_k,
        "top_p": g.top_p,
        "length_penalty": g.length_penalty,
        "early_stopping": g.early_stopping,
        "no_repeat_ngram_size": g.no_repeat_ngram,
        "encoder_no_repeat_ngram_size": g.encoder_no_repeat_ngram,
        "repetition_penalty": g.repetition_penalty,
        "encoder_repetition_penalty": g.encoder_repetition_penalty,
        "forced_bos_token_id": g.force_begin,
        "forced_eos_token_id": (list(g.ends) or c.end) if g.force_end is True else list(g.force_end or ()) or None,
        "bad_words_ids": [list(word) for word in g.bad_words] or None,
        "suppress_tokens": list(g.suppress) or None,
        "begin_suppress_tokens": list(g.suppress_first) or None,
        "renormalize_logits": g.renormalize,
        "published_beams": g.published_beams,
    }


def _raw(c):
    """The config.json of a config, without the rules of generation."""
    raw = {
        "model_type": c.family,
        "vocab_size": c.vocab,
        "d_model": c.width,
        "pad_token_id": c.pad,
        "eos_token_id": c.end,
        "decoder_start_token_id": c.begin,
        "is_encoder_decoder": True,
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
            "scale_decoder_outputs": c.scale_logits,
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
        "decoder_attention_heads": c.tower(decoder=True).heads,
        "encoder_ffn_dim": c.mlp,
        "decoder_ffn_dim": c.tower(decoder=True).mlp,
        "tie_word_embeddings": c.tied,
        "activation_function": act,
        "scale_embedding": c.scale_embedding,
        "max_position_embeddings": c.positions,
        "bos_token_id": 0,
        "dropout": c.dropout,
        "attention_dropout": c.attention_dropout,
        "activation_dropout": c.activation_dropout,
    }  # fmt: skip
