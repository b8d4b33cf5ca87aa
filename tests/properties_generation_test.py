"""Configs of T5 and BART, and rules of generation: whatever stands in the files, a config or one UserError."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties import settings

from vlmx.errors import UserError
from vlmx.generate import apply_rules
from vlmx.models import convert_seq
from vlmx.models.vlseq import Generation, SeqConfig, param_shapes

SIZES = {
    "t5": ["d_model", "num_heads", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "vocab_size", "hidden_size"]
    + ["relative_attention_num_buckets", "relative_attention_max_distance", "layer_norm_epsilon", "dropout_rate"]
    + ["feed_forward_proj", "tie_word_embeddings", "scale_decoder_outputs", "dense_act_fn", "is_gated_act"],
    "bart": ["d_model", "encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads"]
    + ["encoder_ffn_dim", "decoder_ffn_dim", "vocab_size", "max_position_embeddings", "activation_function"]
    + ["dropout", "scale_embedding", "normalize_before", "num_attention_heads", "tie_word_embeddings"],
}
TOKENS = ["pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"]
RULES = [*convert_seq.UNSUPPORTED, *convert_seq.UNSUPPORTED_SAMPLING, *TOKENS, "max_length", "max_new_tokens"]
RULES += ["min_length", "min_new_tokens", "num_beams", "do_sample", "temperature", "top_k", "top_p", "length_penalty"]
RULES += ["early_stopping", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "repetition_penalty"]
RULES += ["encoder_repetition_penalty", "forced_bos_token_id", "forced_eos_token_id", "bad_words_ids"]
RULES += ["suppress_tokens", "begin_suppress_tokens", "renormalize_logits", "force_bos_token_to_be_generated"]

NUMBERS = st.one_of(st.integers(-3, 70), st.integers(), st.sampled_from([10**8, 10**30, -1, 0, 1, 2, 3]), st.floats())
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=8), st.sampled_from(["never", "relu", "gelu"]))
VALUES = st.recursive(
    LEAVES, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=3), v, max_size=2), max_leaves=5
)


@settings()
@given(st.data())
def test_any_config(data):
    kind = data.draw(st.sampled_from(["t5", "bart"]))
    names = st.sampled_from(SIZES[kind] + TOKENS + RULES)
    raw = {"model_type": kind, **data.draw(st.dictionaries(names, VALUES, max_size=4))}
    try:
        config = convert_seq.config_of(raw, "x/config.json")
    except UserError as error:
        assert "x/config.json" in str(error)
        return
    assert isinstance(config, SeqConfig) and max(config.layers) <= convert_seq.LAYERS
    assert all(0 <= token < config.vocab for token in (config.pad, config.end, config.begin))
    hash(config)
    assert all(len(rule.keys) <= convert_seq.LAYERS for rule in convert_seq.sources(config, {}).values())


@settings()
@given(st.dictionaries(st.sampled_from(RULES), VALUES, max_size=5))
def test_any_rules(raw):
    try:
        how = convert_seq._generation(raw, "x/generation_config.json")
    except UserError as error:
        assert "x/generation_config.json" in str(error)
        return
    assert isinstance(how, Generation) and 2 <= how.max_length <= convert_seq.TEXT + 1 and 1 <= how.beams <= 1000
    hash(how)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("t5")
    config = SeqConfig(
        family="t5", width=4, heads=1, head_dim=4, mlp=4, layers=(1, 1), vocab=9, act="relu", eps=1e-6,
        scale_logits=True, buckets=4, pad=0, end=1, begin=0,
    )  # fmt: skip
    ones = jax.tree.map(lambda s: np.ones(s.shape, s.dtype), param_shapes(config))
    convert_seq.save_hf(path, config, ones)
    return path, (path / "config.json").read_bytes()


@settings()
@given(st.data())
def test_any_bytes(folder, data):
    path, good = folder
    tokens = {"decoder_start_token_id": 0, "eos_token_id": 1}
    rules = data.draw(st.dictionaries(st.sampled_from(RULES), VALUES, max_size=2))
    file = data.draw(st.sampled_from(["config.json", "generation_config.json"]))
    content = data.draw(
        st.one_of(
            st.binary(max_size=40),
            VALUES.map(lambda v: json.dumps(v).encode()),
            st.integers(0, len(good)).map(lambda n: good[:n]),
            st.just(json.dumps(tokens | rules).encode()),
        )
    )
    (path / "config.json").write_bytes(good)
    (path / "generation_config.json").unlink(missing_ok=True)
    (path / file).write_bytes(content)
    try:
        config, params = convert_seq.read(path)
    except UserError as error:
        assert str(path) in str(error)
    else:
        assert config.vocab == 9 and params["token_embed"].shape == (9, 4)


TEXTS = st.lists(st.integers(0, 4), min_size=7, max_size=7)


@settings(0.5)
@given(
    TEXTS, TEXTS, st.integers(1, 6), st.integers(1, 4), st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=3))
)
def test_what_may_not_follow(text, source, n, size, words):
    """Rules on n-grams and words, beside a search through all of them."""
    grams = lambda row: [tuple(row[i : i + size]) for i in range(len(row) - size + 1)]
    tail = lambda k: tuple(text[max(n - k, 0) : n])
    rules = {
        "no_repeat_ngram": (size, {g[-1] for g in grams(text[:n]) if g[:-1] == tail(size - 1)}),
        "encoder_no_repeat_ngram": (size, {g[-1] for g in grams(source) if g[:-1] == tail(size - 1)}),
        "bad_words": (tuple(map(tuple, words)), {w[-1] for w in words if tuple(w[:-1]) == tail(len(w) - 1)}),
    }
    for name, (value, forbidden) in rules.items():
        how = Generation(9, ends=(1,), **{name: value})
        scores = apply_rules(how, jnp.array([source]), jnp.zeros((1, 5)), jnp.array([text]), n)
        assert set(np.flatnonzero(np.isneginf(scores[0])).tolist()) == forbidden, name
