"""The training of one variant on all tasks of a run at once: a task per batch, one compiled program for all of them.

K steps of one compiled call, B examples of a batch.
"""

import jax
import jax.numpy as jnp

from vlmx import checkpoint, finite, logs, loop, multitask, optim, settings, shard, streams, variant
from vlmx.data import vl_batches
from vlmx.logs import say


def mix_of(world, chosen):
    """How the tasks of a run become batches for a variant.

    A task's prefix tells a method without parameters of its own for each task which task it is (VL-Adapter, section 4);
    full fine-tuning is published without.
    """
    config = world.config
    inserts = jax.eval_shape(lambda key, model: chosen.init(key, model), jax.random.key(0), world.model)
    sizes = tuple(config.batches.get(t.name, config.batch) for t in world.tasks)
    prefixes = not chosen.own and bool(jax.tree.leaves(inserts))
    return vl_batches.Mix(world.tasks, world.words, world.features, sizes, config.seed, prefixes, config.temperature)


def steps_of(mix, recipe):
    """All steps of a training."""
    return round(recipe.epochs * len(mix.order(0)))


def train_steps(config, chosen, recipe, per_epoch, total, where):
    """(the compiled call `(state, model, batches, key) -> (state, metrics)` of K steps, the schedule of the rate).

    where: the state's shardings."""
    settings = recipe.optimizer.to_dict()
    schedule = multitask.linear(settings.pop("lr"), total, optim.steps(recipe.warmup, per_epoch, total=total))
    step = multitask.make_step(chosen, schedule, skip=config.nonfinite == "skip", **settings)

    def call(state, model, batches, key):
        one = lambda state, batch: step(state, model, batch, jax.random.fold_in(key, state["step"]))
        state, metrics = jax.lax.scan(one, state, batches)
        return state, jax.tree.map(lambda a: a[:, None], metrics)  # [K,S] of one seed

    return jax.jit(call, donate_argnums=0, out_shardings=(where, None)), schedule


def fit(world, run, chosen, recipe, meta, folder):
    """What the variant trained, as variant.start gives it, on the host. Goes on from the latest checkpoint in `folder`
    where there is one."""
    config, mesh, tasks = world.config, world.mesh, world.tasks
    mix = mix_of(world, chosen)
    per_epoch, total = len(mix.order(0)), steps_of(mix, recipe)
    key = streams.key("steps of several tasks", config.seed)
    rules = shard.rules_of(config.shardings, "tuned") + shard.SEVERAL

    # ---- the start
    start = jax.jit(lambda key, model: variant.start(chosen, key, model, len(tasks)))
    v = start(streams.start(config.seed), world.model)
    state = {**v, "opt": multitask.moments(v["train"], len(tasks)), "step": jnp.zeros((), jnp.int32)}
    where = shard.shardings(mesh, state, rules)
    state = shard.place(state, where)
    checkpoints, meta = checkpoint.manager(folder, config.checkpoint_keep), meta | {"total_steps": total}
    meta |= {"training": settings.training(config, recipe)}
    state = checkpoint.restore(checkpoints, state, meta) or state
    done = int(state["step"])
    say(f"{run}: {total} steps, {per_epoch} an epoch; batches of " + ", ".join(map(str, mix.sizes)))
    if done:
        say(f"{run}: going on after step {done} of {total}")

    # ---- steps
    K = loop.at_once(total, config.steps_per_call, done)
    compiled, schedule = train_steps(config, chosen, recipe, per_epoch, total, where)
    names, logger = [t.name for t in tasks], logs.Logs(world.workdir)

    def note(done, metrics):
        task, bad, said = metrics["task"][:, 0], metrics["bad"], {"lr": float(schedule(done - 1))}
        for t, name in enumerate(names):
            own = task == t
            if own.any():
                found = finite.means({k: metrics[k][own] for k in ("loss", "grad_norm")}, bad[own])
                said |= {f"{kind}_{name}": value[0] for kind, value in found.items()}
        logger.write(done, said | {f"examples_{name}": n for name, n in mix.examples(done).items()})

    batches = (shard.put(mesh, "steps", b, rules) for b in vl_batches.stream(mix, done, total, K))
    plan = loop.Steps(
        run, total, K, lambda state, batch: compiled(state, world.model, batch, key), note, (config.seed,), checkpoints,
        config.checkpoint_every, meta, config.nonfinite == "skip",
    )  # fmt: skip
    with logger:
        logger.begin(run, done)
        state = loop.go(plan, state, batches, done, mesh)
    checkpoints.close()
    return shard.gather(mesh, {"train": state["train"], "fixed": state["fixed"]})
