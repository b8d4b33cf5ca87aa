"""The training of one method on one problem, all seeds at once: start, steps, checkpoints, search on validation.

S seeds, B images of a batch, M training images of a seed, E feature size, K steps of one compiled call.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vlmx import checkpoint, evaluate, features, finite, logs, optim, partition, settings, shard
from vlmx import method as methods
from vlmx.data import fewshot, pipeline, protocols, transforms
from vlmx.errors import PREEMPTED
from vlmx.logs import say
from vlmx.world import Test, predict

ON_DEVICE = 2**30  # bytes of training images that may lie on the device


def fit(world, run, method, recipe, consts, problem, group, meta, folder, prior=None):
    """Gradient steps for the seeds of `group` (positions in config.seeds) at once; their trees `v`, stacked `[S, ...]`.
    prior: what the method's init gets as support["prior"], `[S, ...]`.

    Goes on from the latest checkpoint in `folder` where there is one. `v` is that of the last step or, where
    config.checkpoint_best asks for it, each seed's own best on its validation images, among the regular checkpoints.
    """
    config, mesh, dataset = world.config, world.mesh, world.dataset
    seeds = [config.seeds[s] for s in group]
    rows = [problem.train[s] for s in group]
    labels = np.stack([protocols.relabel(dataset.train.labels[r], problem.labels) for r in rows])  # [S,M]
    M = labels.shape[1]
    support = {"label": labels}
    if "train" in world.stored:
        support["features"] = np.stack([[world.stored["train"][i] for i in r.tolist()] for r in rows])  # [S,M,E]
    rules = shard.rules_of(config.shardings, meta["method"])
    shard.refuse_uneven(mesh, len(seeds), {})
    support = shard.put(mesh, "support", support, rules + shard.METHOD)

    # ---- the start of each seed
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])

    def start(key, model, consts, support):
        return methods.start(method, key, model, consts, support)

    more = {"prior": prior} if prior else {}
    if recipe.get("views") and "views" in world.stored:
        views = [[world.stored["views"][i][: recipe.views] for i in r.tolist()] for r in rows]
        more["views"] = np.moveaxis(np.array(views), 2, 1)  # [S,V,M,E]
    given = support | shard.put(mesh, "support", more, rules + shard.METHOD)
    v = jax.jit(jax.vmap(start, in_axes=(0, None, None, 0)))(keys, world.model, consts, given)
    jax.block_until_ready(v)  # on a CPU, two programs under way with collectives can wait for each other for ever
    batch = min(recipe.get("batch", M), M)
    per_epoch = max(M // batch, 1)
    total = settings.steps_of(recipe, config.shots, per_epoch)
    if not total:
        return shard.gather(mesh, v)
    one = jax.eval_shape(lambda tree: jax.tree.map(lambda a: a[0], tree), v["train"])
    tx, schedule = optim.make(recipe.optimizer, per_epoch, total, one)
    pixels = settings.uses_pixels(config, method, recipe)
    state = {**v, "opt": jax.jit(jax.vmap(tx.init))(v["train"]), "step": np.zeros((), np.int32)}
    if pixels and (images := on_device(world, rows)) is not None:
        support |= shard.put(mesh, "support", {"image": images}, rules + shard.METHOD)
    streamed = pixels and "image" not in support
    support = None if streamed else support
    state, consts, where = shard.lay_out(mesh, state, consts, support, world.model, rules)
    count = partition.count(one)
    share = 100 * count / partition.count(world.model.params)
    say(f"{run}: {count:,} trained parameters ({share:.3g} % of the model), {len(seeds)} seeds at once")
    say(f"{run}: {M} images a seed, {total} steps of {batch}")

    # ---- go on where it was
    meta = meta | {"seeds": seeds, "total_steps": total}
    nothing = {"accuracy": np.full(len(seeds), -1, np.float32), "step": np.zeros(len(seeds), np.int32)}
    best = {**shard.gather(mesh, v), **nothing} if config.checkpoint_best else {}
    whole = lambda: {**state, "best": shard.place(best, shard.on(mesh))} if best else state
    checkpoints = checkpoint.manager(folder, config.checkpoint_keep)
    if (saved := checkpoint.restore(checkpoints, whole(), meta)) is not None:
        best, state = shard.gather(mesh, saved.pop("best")) if best else {}, saved
    done = int(state["step"])
    if done:
        say(f"{run}: going on after step {done} of {total}")

    # ---- steps
    most = min(total, 1 if streamed else 10 if pixels else config.steps_per_call)
    K = max(k for k in range(1, most + 1) if total % k == done % k == 0)  # a session of other devices had another
    steps = train_steps(method, tx, total, per_epoch, where, skip=config.nonfinite == "skip")
    stream = (pixel_stream if streamed else index_stream)(world, problem, group, seeds, batch, M, done, total, K)
    logger = logs.Logs(world.workdir)
    logger.begin(run, done, seeds=seeds)
    with checkpoint.preemption() as told, logs.progress(total, run, start=done) as bar:
        for xs in stream:
            state, metrics = steps(state, world.model, consts, support, xs, keys)
            metrics = shard.gather(mesh, metrics)  # [K,S]
            bad = metrics.pop("bad")
            if config.nonfinite == "stop" and bad.any():
                checkpoint.finish(checkpoints)
                finite.refuse(run, done, seeds, bad, state["train"])
            metrics = finite.means(metrics, bad)  # [S]
            done += K
            if done % per_epoch == 0 or K > 1 or bad.any():
                rate = float(schedule(done - 1))
                for s, seed in enumerate(seeds):
                    logger.write(done, {k: m[s] for k, m in metrics.items()} | {"lr": rate}, seed=seed)
                bar.set_postfix(loss=f"{metrics['loss'].mean():.3f}", refresh=False)
            bar.update(K)
            leave = told(done // K) and done < total
            due = done % config.checkpoint_every < K or done == total  # at the same steps however often it was stopped
            if due and best:
                new = validate(world, method, state, consts, problem, group, rules + shard.METHOD)
                best = evaluate.better(best, new)
                for seed, value in zip(seeds, new["accuracy"]):
                    logger.write(done, {"accuracy": value}, tag="val", seed=seed)
            if due or leave:
                checkpoint.save(checkpoints, done, whole(), meta)
            if leave:
                checkpoint.finish(checkpoints)
                say(f"{run}: told to stop, saved after step {done} of {total}; the same command goes on from there")
                raise SystemExit(PREEMPTED)
    logger.close()
    checkpoint.finish(checkpoints)
    checkpoints.close()
    if not best:
        return shard.gather(mesh, {"train": state["train"], "fixed": state["fixed"]})
    for seed, step, value in zip(seeds, best["step"], best["accuracy"]):
        say(f"{run}: seed {seed} was best on validation after step {step}: {value:.1f} %")
    return {"train": best["train"], "fixed": best["fixed"]}


def train_steps(method, tx, total, per_epoch=1, where=None, skip=False):
    """The compiled call `(state, model, consts, support, xs, keys) -> (state, metrics)`: K steps of S seeds.

    Gradients are taken of the tuned tree alone, so frozen weights get none, nor optimiser state, nor a copy.
    Args: support: stored features or images, and labels, `[S, M, ...]`, from which `xs["index"]` `[K, S, B]` picks;
    None where xs holds the batches themselves. where: in_shardings and out_shardings (shard.lay_out); None: as the
    arguments lie. skip: a step whose loss or gradient is not finite changes nothing. The state is donated. Metrics are
    `[K, S]`; "bad" is that of finite.first.
    """

    def step(v, opt, model, consts, batch, key, n):  # one seed
        def objective(train):
            tree = {"train": train, "fixed": v["fixed"]}
            return method.loss(method.apply(tree, methods.tuned(model, tree), consts, batch, key, True), batch)

        (loss, metrics), grads = jax.value_and_grad(objective, has_aux=True)(v["train"])
        bad, before = finite.first(loss, grads), (v, opt)
        updates, opt = tx.update(grads, opt, v["train"])
        v = {"train": optax.apply_updates(v["train"], updates), "fixed": v["fixed"]}
        if method.after:
            v = method.after(v, n, total, per_epoch)
        if skip:
            v, opt = jax.tree.map(lambda old, new: jnp.where(bad, old, new), before, (v, opt))
        return v, opt, {"loss": loss, "grad_norm": optax.tree.norm(grads), **metrics, "bad": bad}

    def call(state, model, consts, support, xs, keys):
        def body(state, x):
            batch = x
            if support is not None:
                batch = {k: jax.vmap(lambda a, i: a[i])(a, x["index"]) for k, a in support.items()} | x
            v, opt, n = {k: state[k] for k in ("train", "fixed")}, state["opt"], state["step"]
            key = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, n)
            seeds = jax.vmap(step, in_axes=(0, 0, None, None, 0, 0, None))
            v, opt, metrics = seeds(v, opt, model, consts, batch, key, n)
            return {**v, "opt": opt, "step": n + 1}, metrics

        return jax.lax.scan(body, state, xs)

    return jax.jit(call, donate_argnums=0, **(where or {}))


# -------------------------------------------------------------------- batches
def index_stream(world, problem, group, seeds, batch, M, start, total, K):
    """Batches as rows of what is stored on the device: {"index", "weight"} `[K, S, B]`, from step `start` on."""
    per_epoch = max(M // batch, 1)
    order = functools.lru_cache(len(seeds))(pipeline.epoch_order)
    for first in range(start, total, K):
        steps = [divmod(n, per_epoch) for n in range(first, first + K)]
        index = np.array([[order(M, batch, seed, epoch)[i] for seed in seeds] for epoch, i in steps], np.int32)
        xs = {"index": index, "weight": np.ones(index.shape, np.float32)}
        yield shard.put(world.mesh, "steps", shard.pad(xs, 2, shard.rows(world.mesh)))


def on_device(world, rows):
    """The training images of each seed, `(S, M, s, s, 3)` uint8, where they are the same in each epoch and few enough
    to lie on the device while training lasts; else None: they are read again and again, by `pixel_stream`."""
    size, seeds, M = world.model.config.vision.image_size, len(rows), len(rows[0])
    if world.config.data.augment != "none" or jax.process_count() > 1 or seeds * M * size * size * 3 > ON_DEVICE:
        return None
    every = np.unique(np.concatenate(rows))
    images = np.zeros((len(every), size, size, 3), np.uint8)
    for b in pipeline.eval_batches(fewshot.take(world.dataset.train, every), world.transform, 256, **world.reading):
        real = b["index"] >= 0
        images[b["index"][real]] = b["image"][real]
    return np.stack([images[np.searchsorted(every, r)] for r in rows])


def pixel_stream(world, problem, group, seeds, batch, M, start, total, K):
    """Augmented images from step `start`: "image" `[1, S, B, S, S, 3]`, "label", "index", "weight" `[1, S, B]`."""
    config, dataset, mesh = world.config, world.dataset, world.mesh
    (i, n), process = shard.share(mesh)  # this process draws its part of the seeds and of the images
    group, seeds = (np.array_split(values, n)[i].tolist() for values in (group, seeds))
    splits = [fewshot.take(dataset.train, problem.train[s]) for s in group]
    splits = [s._replace(labels=protocols.relabel(s.labels, problem.labels)) for s in splits]
    size = world.model.config.vision.image_size
    if config.data.augment == "crop":
        augment = functools.partial(transforms.random_crop, size=size, scale=tuple(config.data.crop_scale))
    else:
        augment = world.transform
    reading = world.reading | {"process": process}
    for b in pipeline.train_batches(splits, augment, batch, seeds, start=start, stop=total, **reading):
        b = shard.pad({k: a[None] for k, a in b.items()}, 2, shard.rows(mesh) // process[1])
        yield shard.join(mesh, "steps", b)


# -------------------------------------------------------------------- validation
def validate(world, method, state, consts, problem, group, rules):
    """The seeds' trees as they are now, with their "step" and "accuracy" `[S]` in percent, each on its own validation
    images."""
    v = shard.gather(world.mesh, {"train": state["train"], "fixed": state["fixed"]})
    rows = np.unique(np.concatenate([problem.val[s] for s in group]))
    val, found = fewshot.take(world.dataset.val, rows), None
    if method.needs == "features":
        stored = np.stack([world.stored["val"][row] for row in rows.tolist()])
        found = features.Features(stored, np.ones(len(rows), np.float32))
    world = world._replace(tests={"": Test(world.dataset._replace(test=val), found)})
    said, _, _ = predict(world, method, v, consts, protocols.Part(problem.labels, np.arange(len(rows))), rules)
    right = said == protocols.relabel(val.labels, problem.labels)
    own = [100 * hits[np.isin(rows, problem.val[s])].mean() for hits, s in zip(right, group)]
    return {**v, "accuracy": np.float32(own), "step": np.full(len(own), state["step"], np.int32)}


def search(world, method, v, consts, problem, group):
    """The method's search on validation, seed by seed."""
    nothing, found = np.zeros((0, world.model.config.embed_dim), np.float32), []
    for i, s in enumerate(group):
        rows = problem.val[s]
        label = protocols.relabel(world.dataset.val.labels[rows], problem.labels)
        stored = [world.stored["val"][r] for r in rows.tolist()]
        val = {"features": np.stack(stored) if stored else nothing, "label": label}
        found.append(method.finalize(jax.tree.map(lambda a, i=i: a[i], v), world.model, consts, val))
    return stack(found)


def stack(trees):
    """Trees of one structure, stacked leaf by leaf along a new first axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
