"""Golden cases of VL-T5 and VL-BART: their weights, which go by the reference's names, as our backbone and variant."""

import functools
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from golden_cases import load
from safetensors.numpy import load_file

from vlmx import multitask, variant
from vlmx.models import convert_seq
from vlmx.models.vlseq import Visual, VLSeq, param_shapes

PLACE = {"attn_adapter": "attn", "self_attn_adapter": "attn", "enc_attn_adapter": "cross", "ff_adapter": "mlp"}
PLACE |= {"self_attention": "attn_", "cross_attention": "cross_", "feed_forward": "mlp_", None: ""}
LEAF = {"W": "W", "W_left": "left", "W_right": "right", "b": "b", "phm_rule": "rule"}
LEAF |= {"weight": "kernel", "bias": "bias"}
NET = {"0": "task_in", "2": "task_out"}
LEARNED = {"0": "table", "1": "down", "3": "up"}
LAYER = r"(?:model\.)?(?P<tower>encoder|decoder)\.(?:layers\.(?P<l>\d+)|block\.(?P<b>\d+)\.layer\.\d+)"
ADAPTER = LAYER + r"\.(?P<place>\w+_adapter)"
HYPER = r"(?:model\.)?(?P<tower>encoder|decoder)\.adapter_layers_hyper_net\."
VISUAL = r"(?:model\.)?encoder\.visual_embedding\."


class Place(NamedTuple):
    """Where a tensor of the reference lies: in the backbone or in the variant's tree, and as which part of a leaf."""

    part: str  # "backbone", "tree"
    path: str
    layer: int | None = None
    task: str | None = None
    turned: bool = False

    def index(self, tasks):
        """The part of the leaf; one that each task has for itself has an axis of tasks."""
        index = () if self.task is None or tasks is None else (tasks.index(self.task),)
        return index if self.layer is None else (*index, self.layer)


def norm_leaf(name):
    return {"weight": "scale", "bias": "bias"}[name]


# Regex -> Place, of the parts that are not the language model itself.
RULES = [
    (
        ADAPTER + r"\.adapters\.(?P<task>\w+)\.(?P<half>down|up)_sampler\.(?P<leaf>\w+)",
        lambda m: (f"{m['tower']}/{PLACE[m['place']]}_{m['half']}/{LEAF[m['leaf']]}", m["leaf"] == "weight"),
    ),
    (
        ADAPTER + r"\.(?P<half>pre|post)_layer_norm\.(?P<leaf>\w+)",
        lambda m: (f"{m['tower']}/{PLACE[m['place']]}_{m['half']}_{norm_leaf(m['leaf'])}", False),
    ),
    (r"phm_rule", lambda m: ("rule", False)),
    (
        LAYER + r"\.(?P<kind>self|encoder)_attn\.(?P<map>[qv])_proj\.lora_(?P<half>[AB])s\.(?P<task>\w+)",
        lambda m: (f"{'cross' if m['kind'] == 'encoder' else m['tower']}/{m['map']}_{m['half']}", True),
    ),
    (
        r"(?:model\.)?(?P<where>encoder\.)?prompt_modules\.prompts\.(?P<task>\w+)\.prefix_embedding\."
        r"(?P<number>\d)\.(?P<leaf>\w+)",
        lambda m: (
            f"{'encoder' if m['where'] else 'decoder'}/{LEARNED[m['number']]}"
            + ("" if m["number"] == "0" else f"/{LEAF[m['leaf']]}"),
            m["leaf"] == "weight" and m["number"] != "0",
        ),
    ),
    (r"(?:model\.)?shared_task_embed\.task_to_embeddings\.(?P<task>\w+)", lambda m: ("task_embed", False)),
    (HYPER + r"LayerNorm\.(?P<leaf>\w+)", lambda m: (f"{m['tower']}/task_norm/{norm_leaf(m['leaf'])}", False)),
    (HYPER + r"layer_id_embeddings\.weight", lambda m: (f"{m['tower']}/layer_embed", False)),
    (HYPER + r"adapters_block_type\.weight", lambda m: (f"{m['tower']}/place_embed", False)),
    (
        HYPER + r"task_hypernet\.task_embeding_generator\.(?P<number>[02])\.(?P<leaf>\w+)",
        lambda m: (f"{m['tower']}/{NET[m['number']]}/{LEAF[m['leaf']]}", m["leaf"] == "weight"),
    ),
    (
        HYPER + r"((?P<place>\w+_\w+)_)?(?P<half>down|up)_sampler_hyper_net\.(?P<made>\w+)_generator\.0\.(?P<leaf>\w+)",
        lambda m: (
            f"{m['tower']}/{PLACE[m['place']]}{m['half']}_{LEAF[m['made']]}/{LEAF[m['leaf']]}",
            m["leaf"] == "weight",
        ),
    ),
    (
        HYPER + r"((?P<place>\w+_\w+)_)?(?P<half>pre|post)_layernorm_hypernet\.(?P<made>\w+)_generator\.(?P<leaf>\w+)",
        lambda m: (
            f"{m['tower']}/{PLACE[m['place']]}{m['half']}_{norm_leaf(m['made'])}/{LEAF[m['leaf']]}",
            m["leaf"] == "weight",
        ),
    ),
]
SEEN = {"feat_embedding": "feature", "absolute_vis_pos_embedding": "box"}


def place(name):
    """The Place of a tensor that is no part of the language model itself."""
    if m := re.fullmatch(VISUAL + r"(\w+)\.(?:(\d)\.)?(\w+)", name):
        part, number, leaf = m.groups()
        if part == "img_order_embedding":
            return Place("backbone", "visual/image_order")
        if number == "0":
            return Place("backbone", f"visual/{SEEN[part]}/{LEAF[leaf]}", turned=leaf == "weight")
        return Place("backbone", f"visual/{f'ln_{SEEN[part]}' if number else 'ln'}/{norm_leaf(leaf)}")
    for regex, path in RULES:
        if m := re.fullmatch(regex, name):
            groups = m.groupdict()
            layer, (where, turned) = groups.get("l") or groups.get("b"), path(groups)
            return Place("tree", where, layer and int(layer), groups.get("task"), turned)
    raise AssertionError(f"no place for the case's tensor {name}")


def places(config, tensors):
    """Name of the reference -> Place, for every tensor of a case's model."""
    source = {}
    for path, rule in convert_seq.sources(config, tensors).items():
        for layer, key in enumerate(rule.keys):
            source[key] = Place("backbone", path, layer if rule.stacked else None, None, rule.axes == (1, 0))
    return {name: source.get(name) or place(name) for name in tensors}


def hyper(case):
    """The variant of a case: (name, hyper-parameters)."""
    c, name = case["method_config"], case["method"].removeprefix("video_")
    if name == "full":
        return "full", {}
    if "lora" in c:
        tasks = "single" if c["lora"]["single"] else "multiple"
        return "lora", {"tasks": tasks, "rank": c["lora"]["dim"], "alpha": c["lora"]["alpha"]}
    if "encoder_prompt_config" in c:
        e, d = c["encoder_prompt_config"], c.get("decoder_prompt_config", {})
        tasks = "single" if e["use_single_prompt"] else "multiple"
        lengths = {"length": e["prompt_len"], "decoder_length": d.get("prompt_len", 0)}
        return "prompt", {"tasks": tasks, "hidden": e["mid_dim"], **lengths}
    norms = [n for n, key in (("pre", "before"), ("post", "after")) if c.get(f"add_layer_norm_{key}_adapter")]
    h = {"reduction": c["reduction_factor"], "norms": tuple(norms)}
    if case["backbone"] == "t5":  # the reference means to train T5's norms too, but does not
        h["trains"] = (variant.VISUAL,)
    if "task_embedding_dim" in c:
        h |= {"embed": c["task_embedding_dim"], "middle": c["task_hidden_dim"], "q": c["projected_task_embedding_dim"]}
        return "hyperformer", h | {"one_net": c.get("efficient_unique_hyper_net", False)}
    shared = "share_up" if c.get("share_up_sampler") else "share_down" if c.get("share_down_sampler") else None
    h |= {"tasks": shared or ("single" if c.get("use_single_adapter") else "multiple")}
    h |= {"cross": case.get("add_adapter_cross_attn", True)}
    if "low_rank_rank" in c:
        return "low_rank_adapter", h | {"rank": c["low_rank_rank"]}
    if "hypercomplex_division" in c:
        tasks = "tasks" if c.get("shared_phm_rule_over_tasks") else "projection"
        rule = "model" if c.get("shared_phm_rule") else tasks
        rank = c["phm_rank"] if c.get("factorized_phm") else None
        return "compacter", h | {"n": c["hypercomplex_division"], "rule": rule, "rank": rank}
    return "adapter", h


class Case(NamedTuple):
    """A golden case, read."""

    case: dict
    tensors: dict
    places: dict
    model: VLSeq
    name: str
    hyper: dict
    variant: variant.Variant
    v: Any

    def one(self, task):
        """What a task trains."""
        return variant.pick(self.v["train"], self.case["tasks"].index(task))

    def take(self, train, name):
        """What the reference calls `name` in a tree like v["train"], or like what `variant.pick` gives of it."""
        p = self.places[name]
        if p.part == "backbone":
            return self._part(flatten_dict(train["backbone"], sep="/")[p.path], p, None)
        for k in ("own", "shared"):
            leaf = flatten_dict(train[k], sep="/").get(p.path)
            if leaf is not None:
                whole = k == "own" and leaf.shape == flatten_dict(self.v["train"][k], sep="/")[p.path].shape
                return self._part(leaf, p, self.case["tasks"] if whole else None)
        raise AssertionError(f"{p.path} is in no part")

    @staticmethod
    def _part(leaf, p, tasks):
        value = np.asarray(leaf)[p.index(tasks)]
        return value.T if p.turned else value

    def batch(self, task):
        """Inputs of a task, padded so that all tasks have one shape, with pairs of images; the answers' length.

        Padding is itself under test: it must change nothing. Shapes are those of the longest texts of the case, but no
        shorter than most cases have, so that cases share programs.
        """
        names = ("input_ids", "target_ids", "vis_feats", "boxes", "scores")
        t = {k: jnp.asarray(self.tensors[n]) for k in names if (n := f"in.{task}.{k}") in self.tensors}
        labels = pad(t["target_ids"], self.longest("target_ids", 5), -100)
        pair = t["vis_feats"].ndim == 4
        for k in ("vis_feats", "boxes") if not pair else ():
            if k in t:
                t[k] = jnp.stack([t[k], jnp.full_like(t[k], 3.0)], axis=1)
        return {
            "ids": pad(t["input_ids"], self.longest("input_ids", 7), self.model.config.pad),
            "labels": labels,
            "weight": multitask.token_weights(labels, t.get("scores"), by_token=task == "caption"),
            "features": t["vis_feats"],
            "boxes": t.get("boxes"),
            "real": jnp.tile(jnp.array([True, pair]), (len(labels), 1)),
        }, t["target_ids"].shape[1]

    def longest(self, name, least):
        """The length of the longest texts of the case's tasks, at least `least` where the model has room for it."""
        c = self.model.config
        room = c.positions if c.family == "bart" else least
        return max(min(least, room), *(self.tensors[f"in.{task}.{name}"].shape[1] for task in self.case["tasks"]), 1)


def pad(ids, length, value):
    """ids `(B, T)`, with `value` behind them up to `length`."""
    return jnp.pad(ids, ((0, 0), (0, length - ids.shape[1])), constant_values=value)


def close(got, want, atol, rtol, what):
    """Asserts |got - want| <= atol + rtol |want|."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape, f"{what}: shape {got.shape}, expected {want.shape}"
    np.testing.assert_allclose(got, want, rtol=rtol, atol=atol, err_msg=what)


@functools.cache
def like(config):
    """The shapes of a config's parameters, by path."""
    return flatten_dict(param_shapes(config), sep="/")


def read(folder):
    """The Case in a folder."""
    case, tensors = load(folder)
    weights = load_file(folder / "model.safetensors")
    c = convert_seq.config_of(case["config"])
    seen = case["visual"]
    visual = Visual(seen["feat_dim"], seen["n_boxes"], not seen.get("individual_vis_layer_norm", True))
    c = c.__class__(**{**c.__dict__, "visual": visual})
    where = places(c, weights)

    name, settings = hyper(case)
    chosen = variant.make(name, **settings)
    params = {path: np.full(leaf.shape, np.nan, np.float32) for path, leaf in like(c).items()}
    for key, p in where.items():
        if p.part == "backbone":
            params[p.path][p.index(None)] = weights[key].T if p.turned else weights[key]
    assert not any(np.isnan(a).any() for a in params.values()), "a part of the backbone that is not there"
    model = VLSeq(jax.tree.map(jnp.asarray, unflatten_dict(params, sep="/")), c)

    shapes = variant.shapes(chosen, model, len(case["tasks"]))["train"]
    train = {k: jax.tree.map(lambda s: np.full(s.shape, np.nan, np.float32), shapes[k]) for k in ("own", "shared")}
    flat = {k: flatten_dict(train[k], sep="/") for k in train}
    for key, p in where.items():
        if p.part == "tree":
            own = flat["own"].get(p.path) is not None
            leaf = flat["own" if own else "shared"][p.path]
            leaf[p.index(case["tasks"] if own else None)] = weights[key].T if p.turned else weights[key]
    assert not any(np.isnan(a).any() for a in jax.tree.leaves(train)), "a part of the variant that is not there"
    train["backbone"], frozen = variant.split(model.params, chosen.trains)
    fixed = {k: frozen[k] for k in variant.NEW if k in frozen}
    v = {"train": jax.tree.map(jnp.asarray, train), "fixed": fixed}
    return Case(case, tensors, where, model, name, settings, chosen, v)
