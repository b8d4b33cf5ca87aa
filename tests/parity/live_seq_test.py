"""Our T5 and BART beside transformers' in PyTorch, on weights that transformers wrote: states, logits and texts."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from golden_cases import assert_close
from safetensors.numpy import load_file, save_file

from vlmx.generate import generate
from vlmx.models import convert_seq
from vlmx.models.vlseq import Generation, VLSeq

T5 = {"d_model": 32, "d_kv": 12, "d_ff": 48, "num_layers": 2, "num_heads": 2, "vocab_size": 60}
T5 |= {"relative_attention_num_buckets": 8, "decoder_start_token_id": 0, "num_decoder_layers": 1}
BART = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "vocab_size": 60, "max_position_embeddings": 30}
BART |= {"encoder_attention_heads": 2, "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 40}
BART |= {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}
MODELS = {
    "t5": lambda: transformers.T5Config(**T5),
    "t5_v1_1": lambda: transformers.T5Config(**T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "bart": lambda: transformers.BartConfig(**BART, forced_eos_token_id=None),
    "bart_scaled": lambda: transformers.BartConfig(**BART, scale_embedding=True, forced_eos_token_id=None),
}


def stirred(name, ends=0.0):
    """A random model of transformers whose weights are large enough that texts differ. ends: makes the end likelier."""
    torch.manual_seed(3)
    config = MODELS[name]()
    kind = transformers.T5ForConditionalGeneration if "t5" in name else transformers.BartForConditionalGeneration
    theirs = kind(config).eval()
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.add_((0.3 if weight.ndim > 1 else 0.1) * torch.randn_like(weight))
        if "t5" in name:
            theirs.shared.weight[config.eos_token_id] *= 1 + ends
        else:
            theirs.final_logits_bias.normal_()
            theirs.final_logits_bias[0, config.eos_token_id] += ends
    return theirs


@pytest.fixture(params=MODELS)
def pair(request, tmp_path):
    """(theirs, ours) of one random model."""
    theirs = stirred(request.param)
    theirs.save_pretrained(tmp_path)
    c, params = convert_seq.read(tmp_path)
    return theirs, VLSeq(params, c)


def inputs(pad):
    ids = np.random.default_rng(1).integers(4, 60, (4, 7))
    ids[1, 5:] = ids[3, 2:] = pad
    return ids


def test_logits(pair):
    theirs, ours = pair
    ids, labels = inputs(ours.config.pad), np.random.default_rng(2).integers(4, 60, (4, 5))
    mask = torch.from_numpy(ids != ours.config.pad)
    with torch.inference_mode():
        out = theirs(input_ids=torch.from_numpy(ids), attention_mask=mask, labels=torch.from_numpy(labels))
    memory, seen = ours.encode(jnp.asarray(ids))
    real = np.asarray(seen)[..., None]
    assert_close(memory * real, out.encoder_last_hidden_state * real, 1e-4, "encoder")
    assert_close(ours.decode(ours.shift(jnp.asarray(labels)), memory, seen), out.logits, 1e-4, "logits")


# Texts end at the last position at the latest: those that do not, transformers 5 divides by one less than their length,
# unlike the version behind the published numbers, which the reference vectors hold us to.
WAYS = [
    {"beams": 1},
    {"beams": 5, "force_end": True},
    {"beams": 5, "force_end": True, "early_stopping": True, "length_penalty": 2.0},
    {"beams": 4, "force_end": True, "early_stopping": True, "no_repeat_ngram": 2, "length_penalty": 0.5},
]


def test_texts(pair):
    theirs, ours = pair
    ids = inputs(ours.config.pad)
    for way in WAYS:
        how = Generation(8, **way)
        options = {"num_beams": how.beams, "max_length": how.max_length, "early_stopping": how.early_stopping}
        options |= {"length_penalty": how.length_penalty, "no_repeat_ngram_size": how.no_repeat_ngram}
        options |= {"forced_eos_token_id": ours.config.end if how.force_end else None}
        mask = torch.from_numpy(ids != ours.config.pad)
        want = theirs.generate(torch.from_numpy(ids), attention_mask=mask, do_sample=False, **options).numpy()
        got = np.asarray(generate(ours, jnp.asarray(ids), how=how)[0])
        want = np.pad(want, ((0, 0), (0, 8 - want.shape[1])), constant_values=ours.config.pad)
        ended = np.cumsum(want[:, 1:-1] == ours.config.end, axis=1) > 0
        want[:, 2:] = np.where(ended, ours.config.pad, want[:, 2:])  # transformers may leave end tokens there
        np.testing.assert_array_equal(got, want, str(way))
        assert len({tuple(row) for row in got.tolist()}) > 1


# What a generation_config.json may say. Texts end early, at the last position, and not at all.
RULES = [
    {"forced_bos_token_id": 7, "min_length": 5, "suppress_tokens": [9, 11, 99], "begin_suppress_tokens": [10, 20, 30]},
    {"repetition_penalty": 2.5, "encoder_repetition_penalty": 0.7, "no_repeat_ngram_size": 1, "max_new_tokens": 7},
    {"decoder_start_token_id": None, "bos_token_id": 6, "encoder_no_repeat_ngram_size": 1, "temperature": 0.1},
    {"eos_token_id": [1, 2, 9, 14], "min_new_tokens": 3, "bad_words_ids": [[5], [11, 11], [30, 31, 32], [1], [2]]},
    {"decoder_start_token_id": 8, "forced_eos_token_id": 5, "no_repeat_ngram_size": 20},
    {"num_beams": 4, "max_length": None},
    {"num_beams": 4, "early_stopping": "never", "length_penalty": 2.0},
    {"num_beams": 3, "early_stopping": "never", "length_penalty": 0.0, "forced_bos_token_id": 7},
    {"num_beams": 4, "early_stopping": True, "length_penalty": -1.0, "min_length": 4, "repetition_penalty": 1.5},
    {"num_beams": 3, "eos_token_id": [1, 2, 9, 14], "renormalize_logits": True, "encoder_repetition_penalty": 1.5},
    {"num_beams": 2, "no_repeat_ngram_size": 2, "encoder_no_repeat_ngram_size": 2, "bad_words_ids": [[3, 4], [12]]},
    {"num_beams": 4, "suppress_tokens": [9], "begin_suppress_tokens": [1, 2, 20], "min_length": 50},
]


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_the_rules_of_a_checkpoint(name, tmp_path):
    theirs = stirred(name, {"t5": 4.0, "bart": 6.0}[name])
    theirs.save_pretrained(tmp_path)
    own = {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0} if name == "t5" else {}
    own = own or {"decoder_start_token_id": 2, "eos_token_id": 2, "pad_token_id": 1, "bos_token_id": 0}
    ids = inputs(own["pad_token_id"])
    every = []
    for rules in RULES:
        (tmp_path / "generation_config.json").write_text(json.dumps(own | {"max_length": 9} | rules))
        theirs.generation_config = transformers.GenerationConfig.from_pretrained(tmp_path)
        mask = torch.from_numpy(ids != own["pad_token_id"])
        want = theirs.generate(torch.from_numpy(ids), attention_mask=mask).tolist()
        c, params = convert_seq.read(tmp_path)
        got = np.asarray(generate(VLSeq(params, c), jnp.asarray(ids))[0]).tolist()
        ends = c.generation.ends or (c.end,)
        assert [cut(row, ends) for row in got] == [cut(row, ends) for row in want], rules
        every += [cut(row, ends)[1:] for row in got]
    assert len({tuple(row) for row in every}) > 20 and len({len(row) for row in every}) > 4


def cut(row, ends):
    """A text without what stands behind its first end token; transformers may put end tokens there."""
    return row[: next((i + 1 for i, token in enumerate(row) if i and token in ends), len(row))]


def test_an_output_projection_of_its_own_is_used_whatever_the_config_says(tmp_path):
    """As transformers 5, which ties only what is equal."""
    theirs = stirred("t5_v1_1")
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = np.random.default_rng(4).normal(0, 0.3, (60, 32)).astype(np.float32)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps(raw | {"tie_word_embeddings": True, "scale_decoder_outputs": True})
    )
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path).eval()
    c, params = convert_seq.read(tmp_path)
    ours, ids, labels = VLSeq(params, c), inputs(0), np.random.default_rng(2).integers(4, 60, (4, 5))
    assert c.scale_logits and not c.tied
    mask = torch.from_numpy(ids != 0)
    with torch.inference_mode():
        want = theirs(input_ids=torch.from_numpy(ids), attention_mask=mask, labels=torch.from_numpy(labels)).logits
    memory, seen = ours.encode(jnp.asarray(ids))
    assert_close(ours.decode(ours.shift(jnp.asarray(labels)), memory, seen), want, 1e-4, "logits")
