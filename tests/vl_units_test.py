"""The pieces of VL-T5 and VL-BART one by one, held against the reference's units."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from golden_cases import load
from vl_golden_tools import close, place

from vlmx import multitask
from vlmx.models import seq_layers
from vlmx.models.vlseq import SeqConfig, Visual, VLSeq
from vlmx.modules import adapters, compacter, hyperformer, lora, prompts

CLOSE = (1e-5, 1e-5)
CONFIG = SeqConfig(
    family="bart", width=12, heads=2, head_dim=6, mlp=8, layers=(1, 1), vocab=15, act="gelu", eps=1e-5, pad=1, end=2,
    begin=2, visual=Visual(6, 4),
)  # fmt: skip
IN_ENCODER = {"adapters.": "encoder.layers.0.attn_adapter.", "pre_": "encoder.layers.0.attn_adapter."}
IN_ENCODER |= {"post_": "encoder.layers.0.attn_adapter.", "prefix_": "encoder.prompt_modules.prompts.a."}


def held(unit, function, given="x"):
    """Compares function(params, x) and its gradients with the unit's "y" and "grad.*"; params by the unit's names."""

    @jax.jit  # one program, as small ones by the hundred take minutes to compile
    def both(params, x, cotangent):
        y, back = jax.vjp(function, params, x)
        return y, back(cotangent)

    params = {k.removeprefix("param."): v for k, v in unit.items() if k.startswith("param.")}
    y = next(unit[k] for k in ("y_a", "y") if k in unit)
    x = unit.get(given, jnp.zeros(()))
    got, (grads, grad_x) = both(params, x, unit["cotangent"])
    close(got, y, *CLOSE, "y")
    wanted = {k: v for k, v in unit.items() if k.startswith("grad.")}
    assert wanted
    for name, want in wanted.items():
        close(grads[name.removeprefix("grad.")], want, *CLOSE, name)
    if "grad_x" in unit:
        close(grad_x, unit["grad_x"], *CLOSE, "grad_x")


def tree(params, prefix=""):
    """Our tree of parameters that go by the reference's names, stacked where it has layers (of which there is one)."""
    flat = {}
    for name, value in params.items():
        start = prefix or next((v for k, v in IN_ENCODER.items() if name.startswith(k)), "")
        p = place(start + name)
        value = value.T if p.turned else value
        flat[p.path] = value[None] if p.layer is not None else value
    return unflatten_dict(flat, sep="/")


def of_task(params, task):
    """One task's parameters, those it has not for itself being the first one's."""
    own = {k.replace(f".{task}.", ".a."): v for k, v in params.items() if f".{task}." in k}
    return {k: v for k, v in params.items() if ".b." not in k} | own


def phm(unit, c):
    n, rank = c["division"], c.get("phm_rank") if c.get("factorized_phm") else None
    module = compacter.Kronecker(1, c["in"], c["out"], n, rank)

    def arrays(p):
        names = {"W": "W", "W_left": "left", "W_right": "right", "b": "b", "phm_rule": "rule"}
        own = {names[k]: v[None] for k, v in p.items() if k in names}
        rule = (p["phm_rule_left"] @ p["phm_rule_right"],) if "phm_rule_left" in p else ()
        return module.apply({"params": own}, *rule)

    params = {k.removeprefix("param."): v for k, v in unit.items() if k.startswith("param.")}
    close(jax.jit(arrays)(params)["kernel"][0], unit["H"], *CLOSE, "H")
    held(unit, lambda p, x: x @ arrays(p)["kernel"][0] + arrays(p)["bias"][0])


def low_rank(unit, c):
    module = adapters.LowRankMap(1, unit["x"].shape[-1], unit["y"].shape[-1], c["rank"])

    def function(p, x):
        own = {k: p[name][None] for k, name in (("left", "W_left"), ("right", "W_right"), ("b", "b"))}
        a = module.apply({"params": own})
        return x @ a["kernel"][0] + a["bias"][0]

    held(unit, function)


def adapter(unit, c, linear, norms=()):
    width = unit["x"].shape[-1]
    site = adapters.Site(1, width, ("attn",))
    module = adapters.Adapters(site, width // c["reduction_factor"], linear, norms)

    def function(p, x):
        made = module.apply({"params": tree(p)["encoder"]})
        return adapters.tap("attn", x, None, jax.tree.map(lambda a: a[0], made))

    held(unit, lambda p, x: function(of_task(p, "a"), x))
    params = {k.removeprefix("param."): v for k, v in unit.items() if k.startswith("param.")}
    if "y_b" in unit:
        close(jax.jit(function)(of_task(params, "b"), unit["x"]), unit["y_b"], *CLOSE, "y_b")


def lora_linear(unit, c):
    out, into = unit["param.weight"].shape
    module, tap = lora.LowRank(1, into, c["dim"], ("q",), out), lora.tap(c["alpha"] / c["dim"])

    def function(p, x, task="a"):
        A, B = (p.get(f"lora_{k}s.{task}", p[f"lora_{k}s.a"]).T for k in "AB")
        theta = module.apply({"params": {"q_A": A[None], "q_B": B[None]}})
        return tap("attn/q", x @ p["weight"].T + p["bias"], x, jax.tree.map(lambda a: a[0], theta))

    held(unit, function)
    params = {k.removeprefix("param."): v for k, v in unit.items() if k.startswith("param.")}
    if "y_b" in unit:
        close(jax.jit(function, static_argnums=2)(params, unit["x"], "b"), unit["y_b"], *CLOSE, "y_b")


def hyper_network(unit, c, norms=()):
    width, layers = unit["x"].shape[-1], range(len(unit["param.layer_id_embeddings.weight"]))
    site = adapters.Site(len(layers), width, ("attn", "cross", "mlp"))
    module = hyperformer.HyperNetwork(
        site, width // c["reduction_factor"], seq_layers.added_start("t5"), c["task_hidden_dim"],
        c["projected_task_embedding_dim"], c["block_type_ids"] is not None, norms,
    )  # fmt: skip
    params = {k.split("param.")[1]: v for k, v in unit.items() if "param." in k}
    net = {k: v for k, v in params.items() if "task_to_embeddings" not in k}

    def outputs(net, task):
        made = module.apply({"params": tree(net, "encoder.adapter_layers_hyper_net.")["encoder"]}, task)
        one = lambda layer: jax.tree.map(lambda a: a[layer], made)
        return made, [[adapters.tap(p, unit["x"], None, one(layer)) for p in site.places] for layer in layers]

    names = {"attn": "self_attention", "cross": "cross_attention", "mlp": "feed_forward"}
    made, y = jax.jit(outputs)(net, params["task_to_embeddings.b"])
    for layer in layers:
        for number, p in enumerate(site.places):
            at = f"layer{layer}.{names[p]}."
            close(y[layer][number], unit[at + "y"], *CLOSE, at)
            for half in ("down", "up"):
                close(made[p][half]["kernel"][layer].T, unit[f"{at}{half}_weight"], *CLOSE, at)
                close(made[p][half]["bias"][layer], unit[f"{at}{half}_bias"], *CLOSE, at)
            for n in norms:
                close(made[p][n]["scale"][layer], unit[f"{at}{n}_norm_weight"], *CLOSE, at)
    wanted = {k: v for k, v in unit.items() if "grad." in k}
    if wanted:
        scalar = lambda net, task: sum((y**2).sum() for row in outputs(net, task)[1] for y in row)
        grads, grad_task = jax.jit(jax.grad(scalar, argnums=(0, 1)))(net, params["task_to_embeddings.b"])
        for k, want in wanted.items():
            got = grad_task if "task_to_embeddings" in k else grads[k.split("grad.")[1]]
            close(got, want, 1e-5 + 5e-5 * np.abs(want).max(), 0, k)


def prompt(unit, c):
    net = prompts.Reparametrised(c["prompt_len"], unit["y"].shape[-1], c["mid_dim"], seq_layers.added_start("t5"))
    held(unit, lambda p, _: jnp.tile(net.apply({"params": tree(p)["encoder"]}), (len(unit["y"]), 1, 1)))


def visual_embedding(unit, c, family, joint):
    B, N, F = unit["feats"].shape
    sizes = {"width": unit["y"].shape[-1], "visual": Visual(F, N, joint)}
    config = CONFIG.__class__(**CONFIG.__dict__ | {"family": family, "eps": c["norm_eps"], **sizes})
    image = unit.get("img_order_ids", np.zeros((B, N), np.int32))[0]
    objects = unit.get("obj_order_ids", np.tile(np.arange(N), (B, 1)))[0]

    def function(p, features):
        table = p["obj_order_embedding.weight"]
        own = {k: v for k, v in p.items() if not k.startswith("obj_")}
        v = seq_layers.VisualEmbedding(config)
        params = tree(own, "encoder.visual_embedding.")["visual"]
        return v.apply({"params": params}, features, unit["boxes"], image, table[len(table) - 1 - objects])

    held(unit, function, "feats")


def downsample(unit, images):
    B, n, F = unit["feats"].shape
    feats, rows = unit["feats"].reshape(B * images, n // images, F), unit["y"].shape[1] // images
    close(seq_layers.pool(feats, rows).reshape(unit["y"].shape), unit["y"], 0, 0, "y")


@pytest.mark.golden("vl/units")
def test_golden_units(golden):
    case, tensors = load(golden)
    units, u = {}, case["units"]
    for name, value in tensors.items():
        unit, _, rest = name.partition("/")
        units.setdefault(unit, {})[rest.removeprefix("net/").removeprefix("task/")] = value
    plain = lambda *a, **k: adapters.Stored(*a, start=seq_layers.added_start("t5"), **k)

    def low(unit):
        rank = next(v.shape[-1] for k, v in unit.items() if k.endswith("W_left"))
        return lambda *a, **k: adapters.LowRankMap(*a, rank=rank, **k)

    def kron(unit):
        division = next(len(v) for k, v in unit.items() if k.endswith("phm_rule"))
        return lambda *a, **k: compacter.Kronecker(*a, n=division, **k)

    for name in units:
        unit, about = units[name], u.get(name, {})
        if name.startswith("phm_linear"):
            phm(unit, about)
        elif name == "low_rank_linear":
            low_rank(unit, about)
        elif name.startswith("adapter"):
            linear = {"adapter_low_rank": low, "adapter_hypercomplex": kron}.get(name, lambda unit: plain)(unit)
            adapter(unit, about, linear, ("pre", "post") if "norm" in name else ())
        elif name.startswith("lora"):
            lora_linear(unit, about)
        elif name.startswith("hyper_network"):
            hyper_network(unit, about, ("pre", "post") if "norms" in name else ())
        elif name == "prompt":
            prompt(unit, about)
        elif name.startswith("visual_embedding"):
            visual_embedding(unit, about, name.split("_")[2], "joint" in name)
        elif name == "downsample_1d":
            close(seq_layers.frames(unit["feats"][0], unit["y"].shape[1]), unit["y"][0], 0, 0, "1-d")
        elif name.startswith("downsample"):
            downsample(unit, 2 if "pair" in name else 1)
        elif name == "video_resize":
            for length in [k for k in unit if f"{k}_out" in unit]:
                want = unit[f"{length}_out"]
                close(seq_layers.frames(unit[length], len(want)), want, 0, 0, length)
        elif name == "t5_relative_buckets":
            for way, n in [k.rsplit("_", 1) for k in unit if "directional_" in k]:
                got = seq_layers.buckets(unit["relative_position"], int(n), 128, way == "bidirectional")
                np.testing.assert_array_equal(got, unit[f"{way}_{n}"], f"{way} {n}")
        elif name.startswith("shift_right"):
            config = CONFIG.__class__(**CONFIG.__dict__ | {f: about[k] for f, k in SHIFT})
            np.testing.assert_array_equal(VLSeq({}, config).shift(unit["labels"]), unit["y"])
        elif name == "adamw":
            adamw(unit, about)
        else:
            assert name == "t5_layer_norm", f"nothing is compared with the unit {name}"
    for c in u.get("task_order", {}).get("cases", ()):
        assert multitask.task_order(c["batches"], c["epoch"]) == c["order"]


SHIFT = (("pad", "pad"), ("begin", "start"))


def adamw(unit, c):
    schedule = multitask.linear(c["lr"], c["total_steps"], c["warmup_steps"])
    names = {"with_decay": "own", "without_decay": "shared"}
    one = {"own": {"x": unit["start"]}, "shared": {"bias": unit["start"]}}
    state = {
        k: {"m": jax.tree.map(jnp.zeros_like, t), "v": jax.tree.map(jnp.zeros_like, t), "t": 0} for k, t in one.items()
    }
    update = jax.jit(functools.partial(multitask.update, wd=c["weight_decay"], eps=c["eps"], clip=1e9))
    for n, grad in enumerate(unit["grads"]):
        close(schedule(n), unit["lr"][n], 1e-8, 1e-6, "rate")
        used = {k for k in one if not (k == "own" and n == 3)}  # left alone: not even picked
        grads = {"own": {"x": grad}, "shared": {"bias": grad}}
        some = [{k: tree[k] for k in used} for tree in (one, state, grads)]
        new, moments, _ = update(*some, schedule(n))
        one, state = one | new, state | moments
        for name, part in names.items():
            close(*jax.tree.leaves(one[part]), unit[name][n], *CLOSE, f"{name} {n}")
