"""Where tensors lie, what a mesh refuses, and what the compiled step sends over the wire."""

import contract_test as contract
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vlmx import method as methods
from vlmx import shard
from vlmx.errors import UserError
from vlmx.fit import train_steps

SIZES = {"data": 2, "fsdp": 2, "tensor": 2}


def model_on(mesh):
    model = contract.backbone("vit")
    return model.replace(params=shard.place(model.params, shard.shardings(mesh, model.params, shard.MODEL)))


def test_rules_place_kernels_by_heads_and_pieces_and_leave_small_leaves_whole():
    mesh = shard.make_mesh(SIZES)
    spec = lambda path, *shape: tuple(shard.sharding(mesh, path, shape, shard.MODEL).spec)
    assert spec("vision/blocks/attn/q/kernel", 2, 32, 32) == (None, "fsdp", "tensor")
    assert spec("text/blocks/attn/o/kernel", 2, 32, 32) == (None, "tensor", "fsdp")
    assert spec("text/blocks/mlp/fc/bias", 2, 64) == (None, "tensor")
    assert spec("text/token_embed", 512, 32) == (None, "fsdp")
    assert spec("vision/blocks/ln_1/scale", 2, 32) == spec("logit_scale") == ()
    assert spec("vision/proj", 32, 25) == ()  # 2 does not divide 25
    spec = lambda path, *shape: tuple(shard.sharding(mesh, path, shape, shard.METHOD).spec)
    assert spec("train/ctx", 3, 16, 32) == ("seed",) and spec("step") == ()
    assert spec("batch/image", 8, 16, 16, 3) == (("data", "fsdp"),)


def test_rules_of_the_config_go_first_and_have_to_decide_something():
    rules = (("model/.*/token_embed", "fsdp -"), ("tip_adapter/fixed/keys", "seed data ..."))
    shard.check(rules, ("model", "tip_adapter"))
    mine = shard.rules_of(rules, "model")
    assert mine == ((".*/token_embed", "fsdp -"),)
    mesh, params = shard.make_mesh(SIZES), contract.backbone("vit").params
    assert tuple(shard.sharding(mesh, "text/token_embed", (512, 32), mine + shard.MODEL).spec) == ("fsdp",)
    shard.refuse_unused(params, mine)
    with pytest.raises(UserError, match="'.*/token_embedd' decides no parameter"):
        shard.refuse_unused(params, ((".*/token_embedd", "fsdp"),))
    with pytest.raises(UserError, match="Did you mean 'model'"):
        shard.check((("modell/.*", "fsdp"),), ("model", "coop"))
    with pytest.raises(UserError, match="Did you mean 'fsdp'"):
        shard.check((("model/.*", "... fdsp"),), ("model", "coop"))


def test_sizes_that_the_mesh_does_not_divide_are_refused_with_the_nearest():
    mesh = shard.make_mesh({"seed": 2, "data": 4})
    shard.refuse_uneven(mesh, 4, {"recipe.coop.batch": 32})
    with pytest.raises(UserError, match=r"recipe.coop.batch: mesh.data x mesh.fsdp = 4 .* 30.*: 28 or 32;"):
        shard.refuse_uneven(mesh, 4, {"recipe.coop.batch": 30})
    with pytest.raises(UserError, match="seeds: mesh.seed = 2 does not divide 3.*: 2 or 4;"):
        shard.refuse_uneven(mesh, 3, {})
    with pytest.raises(UserError, match="does not cover 8 devices"):
        shard.make_mesh({"data": 3})
    with pytest.raises(UserError, match="Did you mean 'tensor'"):
        shard.make_mesh({"tensors": 2})


def step_collectives(method, sizes, seeds):
    """Those of one compiled call of two steps, with a replicated backbone."""
    mesh = shard.make_mesh(sizes)
    model = model_on(mesh)
    consts = method.setup(model, contract.task())
    images, label = contract.pictures(model, seeds)
    features = np.zeros((len(seeds), contract.M, model.config.embed_dim), np.float32)
    support = shard.put(mesh, "support", {"features": features, "label": label})
    keys = jnp.stack([jax.random.key(s) for s in seeds])
    v = jax.jit(jax.vmap(lambda k, s: methods.start(method, k, model, consts, s)))(keys, support)
    tx = optax.sgd(0.05, 0.9)
    state = {**v, "opt": jax.vmap(tx.init)(v["train"]), "step": jnp.zeros((), jnp.int32)}
    state, consts, where = shard.lay_out(mesh, state, consts, support, model)
    index = np.tile(np.arange(contract.B, dtype=np.int32), (2, len(seeds), 1))
    xs = shard.join(mesh, "steps", {"index": index, "weight": np.ones(index.shape, np.float32)})
    call = train_steps(method, tx, 2, where=where)
    return contract.collectives(call.lower(state, model, consts, support, xs, keys).compile().as_text()), v["train"]


def linear():
    """A method whose parameters meet the batch itself."""

    def init(key, model, consts, support):
        return {"train": {"W": jnp.zeros((model.config.embed_dim, len(contract.CLASSES)))}, "fixed": {}}

    def apply(v, model, consts, batch, rng, train):
        return {"logits": batch["features"] @ v["train"]["W"]}

    return methods.Method(apply=apply, init=init)


def test_a_replicated_backbone_reduces_tuned_gradients_and_metrics_and_nothing_else():
    found, train = step_collectives(linear(), {"data": 8}, (1, 2))
    gradients = sum(4 * leaf.size for leaf in jax.tree.leaves(train))
    assert {kind for kind, _ in found} == {"all-reduce"}
    assert gradients <= sum(n for _, n in found) <= gradients + 4 * 2 * contract.SCALARS


def test_prompts_in_the_text_tower_reduce_the_gradient_of_the_text_features():
    # Every device has all the prompts, so what comes of them is summed before it goes back through the tower: more than
    # the context's own gradient, and less than that of prompts and text adapter in APEX.
    found, _ = step_collectives(methods.make("coop", n_ctx=3), {"data": 8}, (1, 2))
    text_features = 4 * 2 * len(contract.CLASSES) * contract.backbone("vit").config.embed_dim
    assert {kind for kind, _ in found} == {"all-reduce"}
    assert text_features <= sum(n for _, n in found) <= text_features + 4 * 2 * contract.SCALARS


def test_seeds_on_an_axis_of_their_own_send_nothing():
    seeds = tuple(range(1, 9))
    assert step_collectives(methods.make("coop", n_ctx=3), {"seed": 8, "data": 1}, seeds)[0] == []
    assert step_collectives(linear(), {"seed": 8, "data": 1}, seeds)[0] == []
