"""What a VL-Adapter variant is (Sung et al. 2022, arXiv 2112.06825), and how tasks share what is trained.

A variant sets something into a frozen encoder-decoder, for one task: arrays stacked by layer that a tap reads, vectors
in front of the text. It is written for one task; which of its parameters every task has for itself, and which all have
in common, is a list of path patterns. Its file in vlmx/variants/ exports `make(**hyperparameters) -> Variant`.
"""

import hashlib
import importlib
import importlib.resources
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vlmx import checkpoint, partition
from vlmx.errors import UserError, unknown
from vlmx.method import build
from vlmx.models import vlseq, zoo
from vlmx.models.clip import Clip
from vlmx.models.layers import Tap, no_tap
from vlmx.models.seq_layers import added_start
from vlmx.modules.adapters import Site

# Parts of the backbone that variants train beside their own (VL-Adapter, section 3).
VISUAL = r"visual/.*"
NORMS = r"(encoder|decoder)/(.*/)?ln_\w+/\w+"
BIASES = r"(encoder|decoder|visual)/(.*/)?(bias|rel_bias)"
NEW = ("added", "visual")  # parts of the backbone that no checkpoint of it holds


class Insert(NamedTuple):
    """What is set into the backbone for one task: a tap and its theta by tower, prompts `(P, D)` or None."""

    tap: Tap = no_tap
    theta: dict = {}
    prompt: Any = None
    decoder_prompt: Any = None


class Variant(NamedTuple):
    """A way of tuning.

    init:   (key, model) -> tree, the parameters of one task.
    insert: (tree, model, rng) -> Insert; rng: of dropout of its own, None outside training.
    own:    patterns of the tree's paths that each task has for itself; all other parameters are common to all.
    trains: patterns of the backbone's parameters that are tuned too.
    merge:  (tree, model) -> model with all of it folded into the weights, for variants that can.
    """

    init: Callable = lambda key, model: {}
    insert: Callable = lambda tree, model, rng=None: Insert()
    own: tuple[str, ...] = ()
    trains: tuple[str, ...] = (VISUAL,)
    merge: Callable | None = None


# What is published under a name of its own: (file in vlmx/variants/, hyper-parameters).
PUBLISHED = {
    "full": ("full", {}),
    "single_adapter": ("adapter", {}),
    "multiple_adapters": ("adapter", {"tasks": "multiple"}),
    "half_shared": ("adapter", {"tasks": "share_up"}),
    "half_shared_down": ("adapter", {"tasks": "share_down"}),
    "hyperformer": ("hyperformer", {}),
    "single_compacter": ("compacter", {}),
    "multiple_compacters": ("compacter", {"tasks": "multiple"}),
    "single_lora": ("lora", {}),
    "multiple_lora": ("lora", {"tasks": "multiple"}),
    "single_prompt": ("prompt", {}),
    "multiple_prompts": ("prompt", {"tasks": "multiple"}),
    "adapter_prompt": ("adapter_prompt", {}),
}


def make(name, **hyperparameters):
    """The variant of that published name, of that file, or of a dotted path outside the package.

    Raises UserError: unknown variant or hyper-parameter, with the valid ones and the nearest.
    """
    file, given = PUBLISHED.get(name, (name, {}))
    path = file if "." in file else f"vlmx.variants.{file}"
    if "." not in file and file not in files():
        raise unknown("variant", name, names())
    return build(name, importlib.import_module(path).make, given | hyperparameters)


def names():
    """The variants of the package: those with a published name, and the files of vlmx/variants/."""
    return {*PUBLISHED, *files()}


def files():
    """The files of vlmx/variants/."""
    folder = importlib.resources.files("vlmx.variants")
    return sorted(f.name[:-3] for f in folder.iterdir() if f.name.endswith(".py") and f.name != "__init__.py")


def sharing(tasks, ways, what="tasks"):
    """`ways[tasks]`, patterns of what each task has for itself; UserError for another value of the argument `what`."""
    if tasks not in ways:
        raise unknown(f"value of {what}", tasks, ways)
    return ways[tasks]


EACH = {"single": (), "multiple": (".*",)}  # one set of parameters for all tasks, or one for each


def sites(model, cross=True):
    """The towers of a VLSeq or of a Clip with ViT tower that take adapters: name -> Site."""
    c = model.config
    if isinstance(model, Clip):
        return {t: Site(getattr(c, t).layers, getattr(c, t).width, ("attn", "mlp")) for t in ("vision", "text")}
    decoder = ("attn", "cross", "mlp") if cross else ("attn", "mlp")
    return {"encoder": Site(c.layers[0], c.width, ("attn", "mlp")), "decoder": Site(c.layers[1], c.width, decoder)}


def family(model):
    """ "t5" or "bart": whose way of starting what is added; CLIP takes BART's, near which adapters change nothing."""
    return getattr(model.config, "family", "bart")


def starts(model):
    """How what is added to this model starts: `(kernel(fan_in), bias(fan_in), table)`."""
    return added_start(family(model))


# -------------------------------------------------------------------- what several tasks train
def start(variant, key, model, tasks):
    """The start of training for `tasks` tasks: v = {"train": {"own", "shared", "backbone"}, "fixed"}.

    The two halves of the variant's tree, with None for what is in the other; "own" has a leading axis of tasks.
    "backbone" are the weights that are tuned too, in float32. "fixed": frozen parts of the backbone that its checkpoint
    does not hold.
    """
    copies = jax.vmap(lambda k: variant.init(k, model))(jax.random.split(key, tasks))
    own, common = split(copies, variant.own)
    tuned, frozen = split(model.params, variant.trains)
    train = {
        "own": own,
        "shared": jax.tree.map(lambda a: a[0], common),
        "backbone": jax.tree.map(lambda a: a.astype(jnp.float32), tuned),
    }
    return {"train": train, "fixed": {name: frozen[name] for name in NEW if name in frozen}}


def split(tree, patterns):
    """(what the patterns match, the rest), as partition.split; either may be all of it."""
    numbers, _ = partition.match(tree, [(p, True) for p in patterns], [(".*", False)])
    matched = jax.tree.map(lambda leaf, i: leaf if i < len(patterns) else None, tree, numbers)
    return matched, jax.tree.map(lambda leaf, i: None if i < len(patterns) else leaf, tree, numbers)


def pick(train, task):
    """What one task trains: the same tree with only its slice of "own". `task` may be traced."""
    return {**train, "own": jax.tree.map(lambda a: a[task], train["own"])}


def put(train, one, task):
    """The inverse of `pick`: `one` written back into its place."""
    own = jax.tree.map(lambda a, b: a.at[task].set(b), train["own"], one["own"])
    return {**one, "own": own}


def dressed(variant, model, one, fixed, rng=None):
    """(the model with the tuned and the fixed weights in place, the Insert) for one task, `one` from `pick`."""
    params = partition.merge(one["backbone"], model.params)
    model = model.replace(params={**params, **{k: partition.merge(fixed[k], params[k]) for k in fixed}})
    return model, variant.insert(partition.merge(one["own"], one["shared"]), model, rng)


def forward(model, into, ids, vis, labels, rng=None, real=None):
    """Logits `(B, T, V)` of labels `(B, T)`, of a dressed model; ids, vis, real: as VLSeq.encode takes them; rng: of
    dropout."""
    keys = (None, None) if rng is None else jax.random.split(rng)
    memory, seen = model.encode(ids, vis, into.prompt, into.tap, into.theta.get("encoder"), keys[0], real)
    cache = None if into.decoder_prompt is None else model.prefill(into.decoder_prompt, len(ids))
    return model.decode(model.shift(labels), memory, seen, into.tap, into.theta.get("decoder"), keys[1], cache)


def merged(variant, model, v, task):
    """A plain model that answers as the tuned one does for a task; UserError where a variant cannot be folded in."""
    if variant.merge is None:
        raise UserError("this variant computes what the backbone does not; it cannot be merged into its weights")
    one = pick(v["train"], task)
    model, _ = dressed(variant, model, one, v["fixed"])
    return variant.merge(partition.merge(one["own"], one["shared"]), model)


def summary(variant, model, tasks):
    """What is trained: (numbers trained, all numbers, lines for a person). Abstract shapes are enough, see `shapes`."""
    v = shapes(variant, model, tasks)
    train = v["train"]
    groups = {"of each task": train["own"], "common to all tasks": train["shared"], **train["backbone"]}
    counts = {name: partition.count(tree) for name, tree in groups.items()}
    trained = sum(counts.values())
    total = vlseq.count(model.params) + counts["of each task"] + counts["common to all tasks"]
    lines = [f"  {name}: {n:,} ({100 * n / total:.2f} %)" for name, n in counts.items() if n]
    return trained, total, "\n".join([f"trained: {trained:,} of {total:,} ({100 * trained / total:.2f} %)", *lines])


def shapes(variant, model, tasks):
    """The tree that `start` gives, of shapes; `model.params` may be shapes themselves. Allocates nothing."""
    return jax.eval_shape(lambda key, m: start(variant, key, m, tasks), jax.random.key(0), model)


# -------------------------------------------------------------------- files
def save(folder, v, backbone, tasks, about):
    """Write what was tuned and nothing else. backbone: the digest of what it was tuned on; about: the variant."""
    checkpoint.export(folder, v, {"backbone": backbone, "tasks": list(tasks), **about})


def begun(model, folder, backbone):
    """(the model with the weights that full fine-tuning left in `folder`, the digest of both): a backbone that was
    pre-trained on vision and language. UserError as `load`."""
    full = make("full")
    v, _ = load(folder, shapes(full, model, 1), backbone)
    worn, _ = dressed(full, model, pick(v["train"], 0), v["fixed"])
    as_was = lambda new, old: jax.device_put(new.astype(old.dtype), old.sharding)
    model = model.replace(params=jax.tree.map(as_was, worn.params, model.params))
    return model, hashlib.sha256(f"{backbone} {zoo.digest([Path(folder) / 'tuned.safetensors'])}".encode()).hexdigest()


def load(folder, like, backbone):
    """(v, what `save` was told) of an exported folder. Raises UserError where it was tuned on another backbone, or does
    not fit `like` (from `shapes`)."""
    if (named := checkpoint.read_about(folder, ("backbone",))["backbone"]) != backbone:
        raise UserError(
            f"{folder} was tuned on the backbone with SHA-256 {named}; the one loaded has {backbone}. "
            "Load the backbone it was tuned on."
        )
    return checkpoint.load(folder, like)
