"""The training of one method: start, steps, checkpoints, search on validation, of many draws of images at once.

A draw (data/protocols.py) is a number of shots and a seed. Trainings of one length are one program, whose leading axis
they are; smaller training sets and batches are filled up with rows that count for nothing.

S draws, B images of a batch, M training images of a draw, E feature size, K steps of one compiled call.
"""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vlmx import checkpoint, evaluate, features, finite, logs, loop, optim, partition, settings, shard, streams
from vlmx import method as methods
from vlmx.data import fewshot, pipeline, protocols, transforms
from vlmx.logs import say
from vlmx.world import Test, predict

ON_DEVICE = 2**30  # bytes of training images that may lie on the device
CALL = {"cpu": 1e12}  # floating-point operations of one compiled call, a few seconds' worth; elsewhere:
ELSEWHERE = 1e14


def fit(world, runs, method, recipe, consts, labels, draws, meta, folder, prior=None, rates=None):
    """Gradient steps for `draws`, trainings of one length, at once; their trees `v`, a list.

    Args: runs: the name of each, without the shots. labels: the classes trained on. meta: what a checkpoint says of
    itself. prior: what the method's init gets as support["prior"], `[S, ...]`. rates: each one's learning rate, where
    they differ.

    Goes on from the latest checkpoint in `folder` where there is one. A tree is that of the last step or, where
    config.checkpoint_best asks for it, the best on the draw's validation images, among the regular checkpoints. Draws
    that do not fit into the memory together are halved until they do, or config.seeds_per_program says how many.
    """
    config, mesh, most, run = world.config, world.mesh, world.config.seeds_per_program, runs[0]
    apart = lambda n: fit_apart(n, world, runs, method, recipe, consts, labels, draws, meta, folder, prior, rates)
    if most and len(draws) > most:
        return apart(most)
    rules = shard.rules_of(config.shardings, meta["method"])
    shard.refuse_uneven(mesh, len(draws), {})
    length = settings.length(recipe, max(draws, key=lambda draw: len(draw.train)))
    batch, per_epoch, total = length
    support = shard.put(mesh, "support", support_of(world, labels, draws), rules + shard.METHOD)

    # ---- the start of each draw
    keys = jnp.stack([streams.start(draw.seed) for draw in draws])

    def start(key, model, consts, support):
        return methods.start(method, key, model, consts, support)

    more = {"prior": prior} if prior else {}
    if recipe.get("views") and "views" in world.stored:
        views = [[world.stored["views"][i][: recipe.views] for i in row] for row in padded_rows(draws).tolist()]
        more["views"] = np.moveaxis(np.array(views), 2, 1)  # [S,V,M,E]
    given = support | shard.put(mesh, "support", more, rules + shard.METHOD)
    v = jax.jit(jax.vmap(start, in_axes=(0, None, None, 0)))(keys, world.model, consts, given)
    own = functools.partial(cut, start, keys[0], world.model, consts, given, draws)
    if not total:
        return own(shard.gather(mesh, v))
    one = jax.eval_shape(lambda tree: jax.tree.map(lambda a: a[0], tree), v["train"])
    make = lambda rate: optim.make({**recipe.optimizer, "lr": rate}, per_epoch, total, one)
    if rates:
        tx, schedules = optim.rated(recipe.optimizer, per_epoch, total, one), [make(rate)[1] for rate in rates]
        opt = jax.jit(jax.vmap(tx.init))(v["train"], jnp.asarray(rates, jnp.float32))
    else:
        tx, schedule = make(recipe.optimizer.lr)
        opt, schedules = jax.jit(jax.vmap(tx.init))(v["train"]), [schedule] * len(draws)
    pixels = settings.uses_pixels(config, method, recipe)
    state = {**v, "opt": opt, "step": np.zeros((), np.int32)}
    if pixels and (images := on_device(world, [draw.train for draw in draws])) is not None:
        support |= shard.put(mesh, "support", {"image": images}, rules + shard.METHOD)
    streamed = pixels and "image" not in support
    support = None if streamed else support
    state, consts, where = shard.lay_out(mesh, state, consts, support, world.model, rules)

    # ---- go on where it was
    meta = meta | {"draws": [[draw.shots, draw.seed] for draw in draws], "total_steps": total, "rates": rates}
    meta |= {"training": settings.training(config, recipe)}
    nothing = {"accuracy": np.full(len(draws), -1, np.float32), "step": np.zeros(len(draws), np.int32)}
    best = {**shard.gather(mesh, v), **nothing} if config.checkpoint_best else {}
    whole = lambda state: {**state, "best": shard.place(best, shard.on(mesh))} if best else state
    checkpoints = checkpoint.manager(folder, config.checkpoint_keep)
    if (saved := checkpoint.restore(checkpoints, whole(state), meta)) is not None:
        best, state = shard.gather(mesh, saved.pop("best")) if best else {}, saved
    done = int(state["step"])

    # ---- the program: as many steps a call as are worth it, unless the config says how many
    steps = train_steps(method, tx, total, per_epoch, where, skip=config.nonfinite == "skip")
    stream = functools.partial(pixel_stream if streamed else index_stream, world, labels, draws, length, done)
    keys = jnp.stack([streams.key("steps", draw.seed) for draw in draws])
    keys = shard.place(keys, where["in_shardings"][-1])
    if done < total:
        K, lowered = lower(config, mesh, steps, length, (state, world.model, consts, support, keys), done)
        batches, cost = stream(K), lowered.cost_analysis() or {}
        program = lowered.compile()
        if len(draws) > mesh.shape["seed"] and cost.get("bytes accessed", 0) > memory() and needs(program) > memory():
            half = -(-len(draws) // 2 // mesh.shape["seed"]) * mesh.shape["seed"]
            say(f"{run}: {len(draws)} trainings at once need {needs(program) / 2**30:.1f} GiB; {half} at a time")
            checkpoints.close()
            return apart(half)
    count = partition.count(one)
    share = 100 * count / partition.count(world.model.params)
    several = f"{len(draws)} " + ("trainings" if rates or len({draw.shots for draw in draws}) > 1 else "seeds")
    say(f"{run}: {count:,} trained parameters ({share:.3g} % of the model), {several} at once")
    say(f"{run}: {' or '.join(map(str, sorted({len(d.train) for d in draws})))} images, {total} steps of {batch}")
    if done:
        say(f"{run}: going on after step {done} of {total}")

    # ---- steps
    names = [name + settings.label(config, draw.shots) for name, draw in zip(runs, draws, strict=True)]
    logger = logs.Logs(world.workdir)
    for name in dict.fromkeys(names):
        logger.begin(name, done, seeds=[draw.seed for draw, its in zip(draws, names) if its == name])

    def note(done, metrics):
        bad = metrics.pop("bad")
        if done % per_epoch == 0 or K > 1 or bad.any():
            metrics = finite.means(metrics, bad)  # [S]
            for s, (name, draw, schedule) in enumerate(zip(names, draws, schedules)):
                values = {k: m[s] for k, m in metrics.items()} | {"lr": schedule(done - 1)}
                logger.write(done, values, seed=draw.seed, run=name)

    def keep(done, state, due):
        nonlocal best
        if best and due:
            new = validate(world, method, state, consts, labels, draws, rules + shard.METHOD)
            best = evaluate.better(best, new)
            for name, draw, value in zip(names, draws, new["accuracy"]):
                logger.write(done, {"accuracy": value}, tag="val", seed=draw.seed, run=name)
        return whole(state)

    if done < total:
        call = lambda state, xs: program(state, world.model, consts, support, xs, keys)
        seeds = tuple(draw.seed for draw in draws)
        every, skip = config.checkpoint_every, config.nonfinite == "skip"
        plan = loop.Steps(run, total, K, call, note, seeds, checkpoints, every, meta, skip, keep)
        state = loop.go(plan, state, batches, done, mesh)
    checkpoints.close()
    logger.close()
    if not best:
        return own(shard.gather(mesh, {"train": state["train"], "fixed": state["fixed"]}))
    for draw, step, value in zip(draws, best["step"], best["accuracy"]):
        say(f"{run}: seed {draw.seed} was best on validation after step {step}: {value:.1f} %")
    return own({"train": best["train"], "fixed": best["fixed"]})


def fit_apart(n, world, runs, method, recipe, consts, labels, draws, meta, folder, prior, rates):
    """`fit`, n draws at a time, each part with a folder of its own."""
    found = []
    for i in range(0, len(draws), n):
        mine = slice(i, i + n)
        part, its_rates = jax.tree.map(lambda a, mine=mine: a[mine], prior), rates and rates[mine]
        where = folder.with_name(f"{folder.name}-{i // n + 1}_of_{-(-len(draws) // n)}")
        found += fit(
            world, runs[mine], method, recipe, consts, labels, draws[mine], meta, where, part, its_rates
        )  # fmt: skip
    return found


def support_of(world, labels, draws):
    """The training sets, `[S, M, ...]`: "label", and "features" where they are stored. A set that is smaller than the
    largest one is filled up with copies of its first image, of label -1: no class."""
    rows, stored = padded_rows(draws), world.stored.get("train")
    label = np.full(rows.shape, -1, np.int32)
    for s, draw in enumerate(draws):
        label[s, : len(draw.train)] = protocols.relabel(world.dataset.train.labels[draw.train], labels)
    found = {"label": label}
    if stored is not None:
        found["features"] = np.stack([[stored[i] for i in row] for row in rows.tolist()])
    return found


def padded_rows(draws):
    """The rows of the draws' training images, `(S, M)`, the last ones of a smaller set its first image's."""
    M = max(len(draw.train) for draw in draws)
    return np.stack([np.pad(draw.train, (0, M - len(draw.train)), constant_values=draw.train[0]) for draw in draws])


def cut(start, key, model, consts, support, draws, v):
    """The trees of draws, a list, from their stack `[S, ...]`, without what stands for the rows that a smaller training
    set was filled up with."""

    def shapes(M):
        images = {"label": 0, "features": 0, "views": 1}  # the axis on which they are

        def one(a, axis=None):
            shape = [M if i == axis else n for i, n in enumerate(a.shape[1:])]
            return jax.ShapeDtypeStruct(shape, a.dtype)

        own = {k: jax.tree.map(functools.partial(one, axis=images.get(k)), tree) for k, tree in support.items()}
        return jax.eval_shape(start, key, model, consts, own)

    sizes = {M: shapes(M) for M in {len(draw.train) for draw in draws}}

    def one(s, draw):
        return jax.tree.map(lambda a, like: a[s][tuple(map(slice, like.shape))], v, sizes[len(draw.train)])

    return [one(s, draw) for s, draw in enumerate(draws)]


def needs(program):
    """Bytes of a device's memory that a compiled program takes beside its results."""
    m = program.memory_analysis()
    return m.argument_size_in_bytes + m.temp_size_in_bytes if m else 0


def memory():
    """Bytes that a program may take on a device: nine tenths of its memory, or of its share of the machine's."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / jax.local_device_count()
    return 0.9 * (limit or host)


def lower(config, mesh, steps, length, arguments, done=0):
    """(K, the lowered call of K steps): as many as are worth it, unless the config says how many.

    Args: steps: of `train_steps`. arguments: its (state, model, consts, support, keys), arrays or their shapes. done:
    how many steps were made by a session before, which may have had another K.
    """
    state, model, consts, support, keys = arguments
    streamed, side = support is None, model.config.vision.image_size
    most = 1 if streamed else 10 if "image" in support else config.steps_per_call or config.checkpoint_every
    while True:
        K = loop.divisor(length.total, most, done)
        xs = batch_shapes(mesh, K, keys.shape[0], length.batch, side if streamed else 0)
        lowered = steps.lower(state, model, consts, support, xs, keys)
        if K == 1 or config.steps_per_call:
            return K, lowered
        flops = (lowered.cost_analysis() or {}).get("flops", 0)  # of one step; where it is told
        most = max(1, int(CALL.get(mesh.devices.flat[0].platform, ELSEWHERE) / max(flops, 1)))
        if K <= most:
            return K, lowered


def train_steps(method, tx, total, per_epoch=1, where=None, skip=False):
    """The compiled call `(state, model, consts, support, xs, keys) -> (state, metrics)`: K steps of S seeds.

    Gradients are taken of the tuned tree alone, so frozen weights get none, nor optimiser state, nor a copy.
    Args: support: stored features or images, and labels, `[S, M, ...]`, from which `xs["index"]` `[K, S, B]` picks;
    None where xs holds the batches themselves. where: in_shardings and out_shardings (shard.lay_out); None: as the
    arguments lie. skip: a step whose loss or gradient is not finite leaves parameters and moments as they are; the
    schedule and what the method does after a step go on. The state is donated. Metrics are `[K, S]`; "bad" is that of
    finite.first.
    """

    def step(v, opt, model, consts, batch, key, n):  # one seed
        def objective(train):
            tree = {"train": train, "fixed": v["fixed"]}
            return method.loss(method.apply(tree, methods.tuned(model, tree), consts, batch, key, True), batch)

        (loss, metrics), grads = jax.value_and_grad(objective, has_aux=True)(v["train"])
        bad, before = finite.first(loss, grads), (v["train"], opt)
        updates, opt = tx.update(grads, opt, v["train"])
        train = optax.apply_updates(v["train"], updates)
        if skip:
            train, opt = finite.kept(bad, before, (train, opt))
        v = {"train": train, "fixed": v["fixed"]}
        if method.after:
            v = method.after(v, n, total, per_epoch)
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
def batch_shapes(mesh, K, S, B, side=0):
    """The shapes of K batches as the streams below give them; side: of the images, 0 where there are none."""

    def of(dtype, *more):
        return jax.ShapeDtypeStruct((K, S, shard.up(mesh, B), *more), dtype)

    xs = {"index": of(jnp.int32), "weight": of(jnp.float32)}
    return xs | ({"image": of(jnp.uint8, side, side, 3), "label": of(jnp.int32)} if side else {})


def index_stream(world, labels, draws, length, start, K):
    """Batches as rows of what is stored on the device: {"index", "weight"} `[K, S, B]`, from step `start` on."""
    _, per_epoch, total = length
    order = functools.lru_cache(len(draws))(pipeline.epoch_order)
    sizes = [(len(draw.train), min(length.batch, len(draw.train))) for draw in draws]
    weight = np.arange(length.batch) < np.array([batch for _, batch in sizes])[:, None]  # [S,B]
    for first in range(start, total, K):
        index = np.zeros((K, *weight.shape), np.int32)
        for k in range(K):
            epoch, i = divmod(first + k, per_epoch)
            for s, (draw, (M, batch)) in enumerate(zip(draws, sizes)):
                index[k, s, :batch] = order(M, batch, draw.seed, epoch)[i]
        xs = {"index": index, "weight": np.broadcast_to(weight, index.shape).astype(np.float32)}
        yield shard.put(world.mesh, "steps", shard.pad(xs, 2, shard.rows(world.mesh)))


def stays(config, mesh, side, S, M):
    """Whether the training images of S draws are the same in each epoch, and few enough to lie on the device while
    training lasts."""
    alone = len({device.process_index for device in mesh.devices.flat}) == 1
    return config.data.augment == "none" and alone and S * M * side * side * 3 <= ON_DEVICE


def on_device(world, rows):
    """The training images of each seed, `(S, M, s, s, 3)` uint8, where they may lie there (`stays`); else None: they
    are read again and again, by `pixel_stream`."""
    size = world.model.config.vision.image_size
    if not stays(world.config, world.mesh, size, len(rows), len(rows[0])):
        return None
    every = np.unique(np.concatenate(rows))
    images = np.zeros((len(every), size, size, 3), np.uint8)
    for b in pipeline.eval_batches(fewshot.take(world.dataset.train, every), world.transform, 256, **world.reading):
        real = b["index"] >= 0
        images[b["index"][real]] = b["image"][real]
    return np.stack([images[np.searchsorted(every, r)] for r in rows])


def pixel_stream(world, labels, draws, length, start, K=1):
    """Augmented images from step `start`: "image" `[1, S, B, S, S, 3]`, "label", "index", "weight" `[1, S, B]`."""
    config, dataset, mesh = world.config, world.dataset, world.mesh
    (i, n), process = shard.share(mesh)  # this process draws its part of the seeds and of the images
    mine = [draws[s] for s in np.array_split(np.arange(len(draws)), n)[i]]
    splits = [fewshot.take(dataset.train, draw.train) for draw in mine]
    splits = [s._replace(labels=protocols.relabel(s.labels, labels)) for s in splits]
    if config.data.augment == "crop":
        augment = transforms.crop_for_tower(world.model.config, config.data.crop_scale)
    else:
        augment = world.transform
    reading, seeds = world.reading | {"process": process}, [draw.seed for draw in mine]
    for b in pipeline.train_batches(splits, augment, length.batch, seeds, start=start, stop=length.total, **reading):
        b = shard.pad({k: a[None] for k, a in b.items()}, 2, shard.rows(mesh) // process[1])
        yield shard.join(mesh, "steps", b)


# -------------------------------------------------------------------- validation
def validate(world, method, state, consts, labels, draws, rules):
    """The draws' trees as they are now, with their "step" and "accuracy" `[S]` in percent, each on its own validation
    images."""
    v = shard.gather(world.mesh, {"train": state["train"], "fixed": state["fixed"]})
    rows = np.unique(np.concatenate([draw.val for draw in draws]))
    val, found = fewshot.take(world.dataset.val, rows), None
    if method.needs == "features":
        stored = np.stack([world.stored["val"][row] for row in rows.tolist()])
        found = features.Features(stored, np.ones(len(rows), np.float32))
    world = world._replace(tests={"": Test(world.dataset._replace(test=val), found)})
    said, _, _ = predict(world, method, v, consts, protocols.Part(labels, np.arange(len(rows))), rules)
    right = said == protocols.relabel(val.labels, labels)
    own = [100 * hits[np.isin(rows, draw.val)].mean() for hits, draw in zip(right, draws)]
    return {**v, "accuracy": np.float32(own), "step": np.full(len(own), state["step"], np.int32)}


def search(world, method, v, consts, labels, draw):
    """The method's search on the validation images of a draw, whose tree is `v`."""
    nothing = np.zeros((0, world.model.config.embed_dim), np.float32)
    stored = [world.stored["val"][r] for r in draw.val.tolist()]
    label = protocols.relabel(world.dataset.val.labels[draw.val], labels)
    val = {"features": np.stack(stored) if stored else nothing, "label": label}
    return method.finalize(v, world.model, consts, val)


def stack(trees):
    """Trees of one structure, stacked leaf by leaf along a new first axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
