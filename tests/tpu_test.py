"""The training step compiled for TPU v5e without a TPU, by libtpu: it fits the memory and sends what it must.

libtpu wants a process of its own, which this file is, too: `python tests/tpu_test.py`. Where libtpu has no wheel, there
is nothing to collect.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

GIB = 2**30
C, T, E, M, SCALARS = 100, 24, 512, 1600, 4  # classes, tokens of a prompt, features, training images; numbers reduced
PLANS = {"v5e:2x2": ({"data": 4}, 1, 32), "v5e:16x16": ({"seed": 16, "data": 16}, 16, 32)}  # mesh, seeds, batch


def compile_for(name, sizes, S, B):
    """CoOp's step on ViT-B/16 in bfloat16: {"bytes" of a device's memory, "collectives"}."""
    import dataclasses

    import jax
    import jax.numpy as jnp
    import optax
    from jax.experimental import topologies
    from shard_test import collectives

    from vlmx import method as methods
    from vlmx import shard
    from vlmx.models import zoo
    from vlmx.models.clip import Clip, param_shapes
    from vlmx.train import train_steps

    mesh = shard.make_mesh(sizes, topologies.get_topology_desc(name, "tpu").devices)
    config = dataclasses.replace(zoo.MODELS["ViT-B/16"].config, dtype="bfloat16", param_dtype="bfloat16")
    shapes = param_shapes(config)
    model = jax.tree.map(
        lambda a, where: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where),
        shapes, shard.shardings(mesh, shapes, shard.MODEL),
    )  # fmt: skip
    model, D = Clip(model, config), config.text.width
    of = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype)
    consts = {"emb": of(jnp.bfloat16, C, T, D), "eot": of(jnp.int32, C), "order": of(jnp.int32, C, T)}
    support = {"features": of(jnp.float32, S, M, E), "label": of(jnp.int32, S, M)}
    method, tx = methods.make("coop", n_ctx=16), optax.sgd(0.002, 0.9)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), S))
    start = lambda key, support: method.init(key, model, consts, support)
    v = jax.eval_shape(jax.vmap(start), keys, support)
    state = {**v, "opt": jax.eval_shape(jax.vmap(tx.init), v["train"]), "step": of(jnp.int32)}
    xs = {"index": of(jnp.int32, 2, S, B), "weight": of(jnp.float32, 2, S, B)}
    where = shard.of_step(mesh, state, consts, support, model)
    call = train_steps(method, tx, 2, where=where).lower(state, model, consts, support, xs, keys).compile()
    m = call.memory_analysis()
    used = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes + m.temp_size_in_bytes
    return {"bytes": used + m.generated_code_size_in_bytes, "collectives": collectives(call.as_text())}


if importlib.util.find_spec("libtpu"):

    def test_the_step_compiles_for_v5e_fits_its_memory_and_sends_what_it_must():
        drop = ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")
        env = {k: v for k, v in os.environ.items() if k not in drop} | {
            "JAX_PLATFORMS": "cpu",
            "TPU_SKIP_MDS_QUERY": "1",  # this is no machine of Google's: do not ask what it is
            "TPU_ACCELERATOR_TYPE": "v5litepod-4",
            "TPU_WORKER_HOSTNAMES": "localhost",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *(p for p in sys.path if p)]),
        }
        out = subprocess.run([sys.executable, __file__], env=env, capture_output=True, text=True)
        assert out.returncode == 0, out.stderr
        for name, found in json.loads(out.stdout.splitlines()[-1]).items():
            sizes, S, _ = PLANS[name]
            text_features = 4 * S // sizes.get("seed", 1) * C * E
            assert found["bytes"] < 16 * GIB
            assert {kind for kind, _ in found["collectives"]} == {"all-reduce"}
            sent = sum(n for _, n in found["collectives"])
            assert text_features / 2 <= sent <= text_features + 4 * SCALARS * 128  # half, where it is bfloat16


if __name__ == "__main__":
    print(json.dumps({name: compile_for(name, *plan) for name, plan in PLANS.items()}))
