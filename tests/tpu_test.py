"""The training step compiled for TPU v5e without a TPU, by libtpu: it fits the memory and sends what it must. Machine
code is not waited for (vlmx/aot.py).

libtpu wants a process of its own, which this file is, too: `python tests/tpu_test.py`. Where libtpu has no wheel, there
is nothing to collect.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

GIB, C, E, SHOTS = 2**30, 100, 512, 16  # classes, feature size, training images of a class
POD = {"v5e:2x2": ({"data": 4}, 1), "v5e:16x16": ({"seed": 16, "data": 16}, 16)}  # mesh, seeds
FAMILIES = {"features": "coop", "pixels": "apex"}  # images enter encoded or as they are


def compile_for(name, sizes, S, needs, B=32):
    """A step on ViT-B/16 in bfloat16: {"bytes" of a device's memory, "collectives", "tuned": numbers of a seed}."""
    import dataclasses

    import contract_test as contract
    import jax
    import jax.numpy as jnp
    import optax
    from jax.experimental import topologies

    from vlmx import aot, partition, shard
    from vlmx import method as methods
    from vlmx.fit import train_steps
    from vlmx.models import zoo
    from vlmx.models.clip import Clip, param_shapes

    mesh = shard.make_mesh(sizes, topologies.get_topology_desc(name, "tpu").devices)
    config = dataclasses.replace(zoo.MODELS["ViT-B/16"].config, dtype="bfloat16", param_dtype="bfloat16")
    shapes = param_shapes(config)
    model = jax.tree.map(
        lambda a, where: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where),
        shapes, shard.shardings(mesh, shapes, shard.MODEL),
    )  # fmt: skip
    model = Clip(model, config)
    of = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype)
    method, tx, side = methods.make(FAMILIES[needs]), optax.sgd(0.002, 0.9), config.vision.image_size
    task = contract.task(contract.CLASSES * (C // len(contract.CLASSES)), config.text.context)
    consts = jax.eval_shape(lambda model: method.setup(model, task), model)
    support = {"features": of(jnp.float32, S, SHOTS * C, E), "label": of(jnp.int32, S, SHOTS * C)}
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), S))
    start = lambda key, support, consts: methods.start(method, key, model, consts, support)
    v = jax.eval_shape(jax.vmap(start, in_axes=(0, 0, None)), keys, support, consts)
    state = {**v, "opt": jax.eval_shape(jax.vmap(tx.init), v["train"]), "step": of(jnp.int32)}
    K = 2 if needs == "features" else 1
    xs = {"index": of(jnp.int32, K, S, B), "weight": of(jnp.float32, K, S, B)}
    if needs == "pixels":
        xs |= {"image": of(jnp.uint8, K, S, B, side, side, 3), "label": of(jnp.int32, K, S, B)}
        support = None
    where = shard.of_step(mesh, state, consts, support, model)
    program = aot.early(train_steps(method, tx, K, where=where).lower(state, model, consts, support, xs, keys))
    return {
        "bytes": program.arguments + program.results + program.temporaries,
        "collectives": contract.collectives(program.text),
        "tuned": partition.count(v["train"]) // S,
    }


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
        for name, families in json.loads(out.stdout.splitlines()[-1]).items():
            seeds = POD[name][1] // POD[name][0].get("seed", 1)  # of a device
            for needs, found in families.items():
                text_features, gradients = (4 * seeds * n for n in (C * E, C * E + found["tuned"]))
                sent = sum(n for _, n in found["collectives"])
                assert found["bytes"] < 16 * GIB
                assert {kind for kind, _ in found["collectives"]} == {"all-reduce"}
                assert text_features <= sent <= (text_features if needs == "features" else gradients) + 64, found


if __name__ == "__main__":
    from vlmx import aot

    plans = {pod: {f: aot.apart(compile_for, pod, *plan, f) for f in FAMILIES} for pod, plan in POD.items()}
    print(json.dumps(plans))
