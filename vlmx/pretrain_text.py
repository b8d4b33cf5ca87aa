"""Pre-training of the embedded world's own T5 and BART: what is said about scenes -> a tokenizer -> denoising and
reading -> a checkpoint.

`python -m vlmx.main --config configs/pretrain_t5.py --workdir DIR` (or pretrain_bart.py) comes here.
"""

import functools
import json
import math
import random
import time
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from vlmx import logs, streams
from vlmx.data import denoising, scene_text, seq_tokenizer
from vlmx.data.scene_reading import readings
from vlmx.generate import generate
from vlmx.models import convert_seq
from vlmx.models.vlseq import Generation, SeqConfig, VLSeq
from vlmx.pretrain import check, finish, finished, train
from vlmx.variant import Insert, forward

ALPHABET = [chr(i) for i in range(33, 127)]  # so that any English text can be written
SENTINELS = 32


def run(config, workdir):
    """Everything from nothing to `workdir/<family>`, a Hugging Face directory; returns what pretrain.json says."""
    check(config, ())
    workdir, began, d = Path(workdir), time.monotonic(), config.data
    folder = workdir / config.kind
    if made := finished(folder):
        return made
    folder.mkdir(parents=True, exist_ok=True)

    # ---------------------------------------------------------------- texts and their tokens
    logs.say(f"speaking of {d.texts} scenes, and asking {d.readings} questions in {d.workers} processes")
    parts = ((d.seed, d.texts, d.readings), ("held out", d.held_out, d.held_out))
    said = [(passages(f"text/{part}", n), readings(f"read/{part}", m, d.workers)) for part, n, m in parts]
    if not all((folder / name).exists() for name in ("tokenizer.json", "tokenizer_config.json")):
        # Kept where it is: two trainings of unigram pieces on the same texts differ a little.
        samples = said[0][0][:20_000] + [" ".join(pair) for pair in said[0][1][:20_000]]
        (write_unigram if config.kind == "t5" else write_bpe)(folder, samples, config.vocab)
    words = seq_tokenizer.load(folder, config.vocab, pad=int(config.kind == "bart")).hf
    (texts, read), held_out = ((told(words, d, texts), told(words, d, pairs)) for texts, pairs in said)

    # ---------------------------------------------------------------- steps
    model = VLSeq({}, seq_config(config, len(words)))
    corrupt, how = noise(config, words)
    begin = lambda done: denoising.batches(texts + read, corrupt, config.batch, config.steps, config.seed, done, **how)
    params = train(config, workdir, "denoising", model, begin, "texts")

    # ---------------------------------------------------------------- the checkpoint, and what it fills in
    if config.kind == "bart":
        params["logits_bias"] = np.zeros((1, len(words)), np.float32)
    model = model.replace(params=params)
    convert_seq.save_hf(folder, model.config, params)
    figures = filled(model, held_out[0], corrupt, config, how)
    figures["answers"] = filled(model, held_out[1], corrupt, config, how)["texts"]
    figures = {name: round(value, 2) for name, value in figures.items()}
    logs.say(", ".join(f"{name} {value} %" for name, value in figures.items()))
    params.pop("logits_bias", None)
    return finish(folder, config, params, began, {"held_out": figures})


def passages(seed, n):
    """`n` passages, each of a scene of its own, in lower case."""
    said = []
    for i in range(n):
        rng = random.Random(f"{seed}/{i}")
        said.append(scene_text.passage(scene_text.scene(rng), rng).lower())
    return said


def told(words, data, texts):
    """The token ids of texts, or of pairs of them, without special tokens; those that are too long are left out."""

    def ids(texts, length):
        return [row if len(row) <= length - 2 else None for row in words(texts, add_special_tokens=False)["input_ids"]]

    if texts and isinstance(texts[0], str):  # BART's target is the whole text
        return [row for row in ids(texts, min(data.length, data.target_length)) if row]
    read, written = zip(*texts)
    return [pair for pair in zip(ids(list(read), data.length), ids(list(written), data.target_length)) if all(pair)]


# -------------------------------------------------------------------- tokenizers
def write_unigram(folder, texts, size):
    """T5's kind of tokenizer: SentencePiece's unigram pieces, padding 0, end 1, unknown 2, sentinels at the end, the
    first of them the last id."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation("isolated")])
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=size - SENTINELS, special_tokens=special, unk_token="<unk>", initial_alphabet=["▁", *ALPHABET],
        show_progress=False,
    )  # fmt: skip
    made.train_from_iterator(texts, trainer)
    pieces = dict(json.loads(made.to_str())["model"]["vocab"])
    # The trainer begins with what occurs in several words, so that a word like no other falls to pieces.
    counts = Counter(w for text in texts for w, _ in made.pre_tokenizer.pre_tokenize_str(text))
    frequent = counts.most_common(size - SENTINELS - len(pieces))
    pieces |= {word: math.log(n / counts.total()) for word, n in frequent if word not in pieces}
    sentinels = [f"<extra_id_{i}>" for i in reversed(range(SENTINELS))]
    made.model = models.Unigram([*pieces.items(), *((name, 0.0) for name in sentinels)], unk_id=2)
    made.decoder = decoders.Metaspace()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    write_tokenizer(folder, made, special + sentinels, names | {"extra_special_tokens": sentinels})


def write_bpe(folder, texts, size):
    """BART's kind of tokenizer: byte-level pairs; start 0, padding 1, end 2, unknown 3, the mask last. Unlike BART's, a
    text's first word is written as any other."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size - 1, special_tokens=special, initial_alphabet=letters, show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    write_tokenizer(folder, made, [*special, "<mask>"], names | {"mask_token": "<mask>"})


def write_tokenizer(folder, made, special, names):
    """tokenizer.json and tokenizer_config.json, as transformers reads them; texts are put in lower case."""
    from transformers import PreTrainedTokenizerFast

    made.normalizer = normalizers.Lowercase()
    made.add_special_tokens(special)
    PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=512, **names).save_pretrained(folder)


# -------------------------------------------------------------------- model and noise
def seq_config(config, vocab):
    """The model of a pre-training config."""
    sizes = {
        "width": config.width, "heads": config.heads, "head_dim": config.width // config.heads,
        "mlp": 4 * config.width, "layers": (config.layers, config.layers), "vocab": vocab,
    }  # fmt: skip
    rates = {name: config.dropout for name in ("dropout", "attention_dropout", "activation_dropout")}
    if config.kind == "t5":
        more = {"act": "relu", "scale_logits": True, "eps": 1e-6, "pad": 0, "end": 1, "begin": 0}
    else:
        more = {"act": "gelu", "eps": 1e-5, "positions": 512, "pad": 1, "end": 2, "begin": 2}
    return SeqConfig(family=config.kind, **sizes, **rates, **more)


def noise(config, words):
    """(ids, rng -> (input, target) of this family's pre-training; the arguments of denoising.batch)."""
    n = config.noise
    lengths = {"length": config.data.length, "target_length": config.data.target_length}
    if config.kind == "t5":
        first = words.convert_tokens_to_ids("<extra_id_0>")
        corrupt = functools.partial(denoising.spans, sentinel=first, density=n.density, mean=n.mean)
        return corrupt, {"begin": (), "end": 1, "pad": 0, **lengths}
    stop = words(".", add_special_tokens=False)["input_ids"][-1]
    corrupt = functools.partial(denoising.infill, mask=words.mask_token_id, end=stop, density=n.density, mean=n.mean)
    return corrupt, {"begin": (0,), "end": 2, "pad": 1, **lengths}


def filled(model, rows, corrupt, config, how, size=64):
    """Per cent of held-out texts, or of what is to be written of what is read: "tokens" of the targets that are the
    likeliest, given those before them; "texts": targets that are generated to the letter (for T5 what was taken out;
    for BART the text, which came shuffled)."""
    tokens, texts = [], []
    for i in range(0, len(rows) // size * size, size):
        b = denoising.batch(rows[i : i + size], corrupt, streams.generator("held-out texts", config.seed, i), **how)
        real = b["labels"] >= 0
        tokens += (np.asarray(_likeliest(model, b["ids"], b["labels"])) == b["labels"])[real].tolist()
        said, _ = generate(model, jnp.asarray(b["ids"]), how=Generation(max_length=how["target_length"] + 1))
        texts += ((np.asarray(said)[:, 1:] == b["labels"]) | ~real).all(-1).tolist()
    return {"tokens": 100 * float(np.mean(tokens)), "texts": 100 * float(np.mean(texts))}


@jax.jit
def _likeliest(model, ids, labels):
    return forward(model, Insert(), ids, None, labels).argmax(-1)
