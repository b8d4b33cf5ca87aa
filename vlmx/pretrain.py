"""Pre-training of the embedded world's own CLIP: scenes drawn once -> steps over them -> zero-shot -> a checkpoint.

`python -m vlmx.main --config configs/pretrain_clip.py --workdir DIR` comes here.
"""

import itertools
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from vlmx import checkpoint, fields, files, fit, logs, method, optim, partition, settings, streams
from vlmx.data import embedded, pairs, scenes, tokenizer, transforms
from vlmx.errors import UserError
from vlmx.models import convert
from vlmx.models.clip import Clip, ClipConfig, Text, ViT

START, END = "<|startoftext|>", "<|endoftext|>"


def run(config, workdir):
    """Everything from nothing to `workdir/clip`, a Hugging Face directory; returns what pretrain.json says."""
    check(config, ("vision", "text"))
    if config.data.length > config.text.context:
        raise UserError(
            f"config.data.length: expected at most text.context, {config.text.context}; got {config.data.length}."
        )
    workdir, began = Path(workdir), time.monotonic()
    folder = workdir / "clip"
    if made := finished(folder):
        return made
    folder.mkdir(parents=True, exist_ok=True)

    # ---------------------------------------------------------------- data: drawn once, then held as uint8
    logs.say(f"drawing {config.data.views} scenes in {config.data.workers} processes")
    d = config.data
    parts, bar = [], logs.progress(d.views, "drawing", unit="view")
    with bar:
        for part in pairs.views(d.seed, d.views, d.captions, d.shares, d.workers):
            parts.append(part)
            bar.update(len(part[0]))
    images, captions, group = (np.concatenate(column) for column in zip(*parts))
    write_tokenizer(folder, captions[:, 0], config.text.vocab)
    words = tokenizer.load(folder, config.data.length, config.text.vocab)
    ids = words(captions.ravel(), truncate=True).reshape(*captions.shape, -1)  # [n, captions, T]

    # ---------------------------------------------------------------- steps
    shape = clip_config(config, vocab=len(words.hf))
    stream = pairs.batches(images, ids, group, config.batch, config.steps, config.first, config.seed)
    model = Clip({}, shape)
    params = train(config, workdir, "contrastive", model, lambda done: itertools.islice(stream, done, None), "pairs")

    # ---------------------------------------------------------------- the checkpoint, and zero-shot on the benchmarks
    convert.save_hf(folder, shape, params)
    model = model.replace(params=params)
    figures = {name: round(zero_shot(model, embedded.load(name), words), 2) for name in embedded.NAMES}
    for name, accuracy in figures.items():
        logs.say(f"zero-shot {name:18s} {accuracy:6.2f} %")
    return finish(folder, config, params, began, {"zero_shot_accuracy": figures})


def check(config, towers):
    """Check a config of pre-training before anything is drawn.

    Args:
        config: a ConfigDict.
        towers: names of the groups of fields with `width` and `heads`; () where these are the config's own.

    Raises:
        UserError: a field that is not as vlmx/fields.py says, or fields that do not go together.
    """
    fields.check(config)
    for prefix, tower in [(f"{name}.", config[name]) for name in towers] or [("", config)]:
        if tower.width % tower.heads:
            raise UserError(f"config.{prefix}heads: expected a divisor of the width, {tower.width}; got {tower.heads}.")
    settings.check_optimizer("optimizer", config.optimizer, config.steps, config.steps)


def train(config, workdir, name, model, stream, unit):
    """The parameters of `model` after config.steps steps of the method `name`, which trains all of them from nothing.

    Goes on from the last checkpoint in workdir/steps. stream(done): the batches of the steps from `done` on. unit: what
    a batch is made of.
    """
    v = jax.jit(lambda key: method.make(name).init(key, model, {}, {}))(streams.start(config.seed))
    total, count = config.steps, partition.count(v["train"])
    tx, schedule = optim.make(config.optimizer, total, total, v["train"])
    state = {**v, "opt": jax.jit(tx.init)(v["train"])}
    state = jax.tree.map(lambda a: a[None], state) | {"step": jnp.zeros((), jnp.int32)}  # one seed
    step = fit.train_steps(method.make(name), tx, total)
    keys = streams.key("steps of pre-training", config.seed)[None]
    checkpoints, meta = checkpoint.manager(workdir / "steps"), {"config": json.loads(config.to_json_best_effort())}
    state = checkpoint.restore(checkpoints, state, meta) or state
    done = int(state["step"])
    logs.say(f"training {count:,} parameters, steps {done} to {total} of {config.batch} {unit}")
    with logs.Logs(workdir) as log, logs.progress(total, "pre-training", start=done) as bar:
        log.begin(name, done - 1)
        for i, batch in enumerate(stream(done), done):
            batch = {key: a[None, None] for key, a in batch.items()}  # [K,S,...] of one step and one seed
            state, metrics = step(state, model, {}, None, batch, keys)
            bar.update()
            if i % config.log_every == 0 or i == total - 1:
                metrics = {key: float(m[0, 0]) for key, m in metrics.items()} | {"lr": float(schedule(i))}
                log.write(i, metrics)
                bar.set_postfix(loss=f"{metrics['loss']:.2f}", accuracy=f"{metrics['accuracy']:.0f}")
            if (i + 1) % config.checkpoint_every == 0:
                checkpoint.save(checkpoints, i + 1, state, meta)
    checkpoints.close()
    return jax.tree.map(lambda a: a[0], state["train"])


def finish(folder, config, params, began, figures):
    """Writes folder/pretrain.json, with which a pre-training is finished, and returns what it says. began: when, by
    time.monotonic()."""
    made = {
        "command": f"python -m vlmx.main --config configs/{config.title}.py --workdir DIR",
        "config": config.to_dict(), "parameters": partition.count(params),
        "minutes": round((time.monotonic() - began) / 60, 1), **figures,
    }  # fmt: skip
    files.write(folder / "pretrain.json", json.dumps(made, indent=2) + "\n")
    logs.say(f"written to {folder} in {made['minutes']} minutes")
    return files.read_json(folder / "pretrain.json")


def finished(folder):
    """What `finish` wrote to this folder, or None."""
    if not (folder / "pretrain.json").exists():
        return None
    logs.say(f"{folder.parent} holds a finished pre-training; give another --workdir to train again")
    return files.read_json(folder / "pretrain.json", "Remove it and run the same command again.")


# ------------------------------------------------------------------------------------------------ text


def write_tokenizer(folder, captions, size):
    """Trains CLIP's kind of tokenizer (lower-cased byte-level BPE, so any text can be written) and writes its files.

    The names of ImageNet's classes are read too: then people's own class names take few tokens.
    """
    names = (Path(__file__).parent / "assets" / "imagenet_classnames.txt").read_text().splitlines()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    words = pre_tokenizers.Split(Regex(r"\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"), behavior="removed", invert=True)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    trainer = trainers.BpeTrainer(
        vocab_size=size, end_of_word_suffix="</w>", initial_alphabet=letters, show_progress=False
    )
    bpe.train_from_iterator([*captions, *names], trainer)
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]

    # CLIP's order of ids: bytes, bytes that end a word, merges, start and end of text; the end's is the highest.
    merges = merges[: size - 2 * len(letters) - 2]
    tokens = [*letters, *(c + "</w>" for c in letters), *(a + b for a, b in merges), START, END]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    settings = {"tokenizer_class": "CLIPTokenizer", **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


# ------------------------------------------------------------------------------------------------ model


def clip_config(config, vocab):
    """The model of a pre-training config; features of text are read at the highest id, the end of the text."""
    v, t = config.vision, config.text
    vision = ViT(v.width, v.layers, v.heads, 4 * v.width, image_size=scenes.SIDE, patch=v.patch)
    text = Text(t.width, t.layers, t.heads, 4 * t.width, context=t.context, vocab=vocab, eot=vocab - 1, bos=vocab - 2)
    return ClipConfig(config.embed_dim, vision, text)


@jax.jit
def _features(model, images):
    return model.image(images)


def zero_shot(model, dataset, words, batch=64):
    """Zero-shot accuracy in percent on the test split, by the zero-shot method."""
    classify = method.make("zero_shot")
    task = method.Task(dataset.classnames, dataset.templates, ensemble=(), tokenize=words)
    size, n = model.config.vision.image_size, len(dataset.test.images)
    images = np.stack([transforms.center(transforms.decode(image), size) for image in dataset.test.images])
    rows = np.arange(-(-n // batch) * batch) % n  # whole batches, so that one shape is compiled
    features = np.concatenate([_features(model, images[r]) for r in rows.reshape(-1, batch)])[:n]
    logits = classify.apply({}, model, classify.setup(model, task), {"features": features})["logits"]
    return 100 * float((np.asarray(logits).argmax(-1) == dataset.test.labels).mean())
