"""Our T5 and BART beside transformers' in PyTorch, on weights that transformers wrote: states, logits and texts."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from golden_cases import assert_close

from vlmx.generate import generate
from vlmx.models import convert_seq
from vlmx.models.vlseq import Generation, VLSeq

T5 = {"d_model": 32, "d_kv": 12, "d_ff": 48, "num_layers": 2, "num_heads": 2, "vocab_size": 60}
T5 |= {"relative_attention_num_buckets": 8, "decoder_start_token_id": 0}
BART = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "vocab_size": 60, "max_position_embeddings": 30}
BART |= {f"{t}_{k}": n for t in ("encoder", "decoder") for k, n in (("attention_heads", 2), ("ffn_dim", 48))}
BART |= {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}
MODELS = {
    "t5": lambda: transformers.T5Config(**T5),
    "t5_v1_1": lambda: transformers.T5Config(**T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "bart": lambda: transformers.BartConfig(**BART, forced_eos_token_id=None),
    "bart_scaled": lambda: transformers.BartConfig(**BART, scale_embedding=True, forced_eos_token_id=None),
}


@pytest.fixture(params=MODELS)
def pair(request, tmp_path):
    """(theirs, ours) of one random model; weights are large enough that texts differ and end."""
    torch.manual_seed(3)
    config = MODELS[request.param]()
    kind = (
        transformers.T5ForConditionalGeneration if "t5" in request.param else transformers.BartForConditionalGeneration
    )
    theirs = kind(config).eval()
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.add_((0.3 if weight.ndim > 1 else 0.1) * torch.randn_like(weight))
        if "final_logits_bias" in dict(theirs.named_buffers()):
            theirs.final_logits_bias.normal_()
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
