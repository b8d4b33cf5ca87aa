"""Tip-Adapter-F at 5 numbers of shots and with many seeds: start, 20 epochs, the search of alpha and beta, test.

Ours is one program, and its time has its compilation in it. PyTorch's is the loop of the published code: on the same
stored features, and as it is published, where every image is encoded anew for every seed.
"""

import functools
import importlib
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from vlmx import features, settings, shard, streams, train
from vlmx import method as methods
from vlmx.bench import timing
from vlmx.data import pipeline, protocols, task, transforms
from vlmx.modules import retrieval
from vlmx.world import Test, World, load_model, words


def run(args):
    """Times all trainings of Tip-Adapter-F on one data set; prints seconds, ratios and how far accuracies differ."""
    c = importlib.import_module(f"configs.{args.data}").get_config(f"tip_adapter_f,seeds={args.seeds}")
    with c.ignore_type():
        c.shots = (1, 2, 4, 8, 16)
    recipe = c.recipe.tip_adapter_f
    with tempfile.TemporaryDirectory() as folder:
        world, problem, encoding = _world(c, Path(folder))
        start = time.perf_counter()
        ours = _sweep_at_once(world, problem)
        seconds = time.perf_counter() - start
    draws = problem.draws
    print(f"Tip-Adapter-F on {args.data}: {len(c.shots)} numbers of shots x {args.seeds} seeds, {os.cpu_count()} CPUs")
    print(f"vlmx: {encoding:.1f} s for encoding every image once, {seconds:.1f} s for {len(draws)} trainings at once")
    if (torch := timing.pytorch()) is None:
        return
    weights = np.asarray(methods.make("tip_adapter_f").setup(world.model, words(world, problem.labels))["weights"])
    start = time.perf_counter()
    theirs = [_published_loop(world, draw, weights, recipe, _data_of(world, draw)) for draw in draws]
    loop = time.perf_counter() - start
    off = np.abs(np.array(ours) - np.array(theirs))
    print(f"PyTorch, one training after the other on the same features: {loop:.1f} s")
    print(f"  vlmx is {loop / seconds:.1f} times as fast; accuracies {np.mean(ours):.2f} and {np.mean(theirs):.2f},")
    print(f"  of one training {off.mean():.3f} apart on average, {off.max():.2f} at most")
    some, encode = [draw for draw in draws if draw.seed == c.seeds[0]], _encode_anew(torch, world)
    start = time.perf_counter()
    for draw in some:
        _published_loop(world, draw, weights, recipe, encode(draw), encode)
    anew = time.perf_counter() - start
    print(f"PyTorch, images encoded anew: {anew:.1f} s for one seed, so {args.seeds * anew:.0f} s for {args.seeds}")
    print(f"  vlmx, encoding included, is {args.seeds * anew / (encoding + seconds):.0f} times as fast")


def _world(c, workdir):
    """(World, Problem, seconds that encoding took) of a config with one method that reads stored features."""
    mesh = shard.make_mesh(c.mesh)
    dataset = task.load(c.data, workdir)
    problem = protocols.few_shot(dataset, c.shots, c.seeds)
    model, tokenizer, digest = load_model(c, mesh)
    transform = transforms.for_tower(model.config)
    start = time.perf_counter()
    encode = functools.partial(features.encode, model, transform=transform, batch=c.eval_batch, mesh=mesh)
    found = {part: encode(getattr(dataset, part), what=f"{part} images") for part in ("train", "val", "test")}
    seconds = time.perf_counter() - start
    stored = {part: dict(enumerate(found[part].features)) for part in ("train", "val")}
    tests = {"": Test(dataset, found["test"])}
    world = World(c, workdir, mesh, dataset, model, tokenizer, digest, transform, {}, stored, tests, {})
    return world, problem, seconds


def _sweep_at_once(world, problem):
    """The test accuracy of each draw."""
    method = settings.make(world.config, "tip_adapter_f", "few_shot")
    consts = method.setup(world.model, words(world, problem.labels))
    v = train.learn(world, "tip_adapter_f", "few_shot", method, consts, problem.labels, problem.draws)
    said, _, _ = train.predict_each(world, method, v, consts, problem.parts["all"], shard.METHOD)
    return (100 * (said == world.dataset.test.labels).mean(axis=1)).tolist()


def _data_of(world, draw):
    """The stored features and labels of a draw: {part: (n, E), (n,)} of "train", "val" and "test"."""
    rows = {"train": draw.train, "val": draw.val}
    found = {p: (np.stack([world.stored[p][i] for i in r.tolist()]), r) for p, r in rows.items()}
    found["test"] = world.tests[""].features.features, np.arange(len(world.dataset.test.labels))
    return {p: (x, getattr(world.dataset, p).labels[r]) for p, (x, r) in found.items()}


def _published_loop(world, draw, weights, recipe, data, encode=None):
    """Tip-Adapter-F of one draw in plain PyTorch, as its published code goes about it; the test accuracy.

    data: of `_data_of`. encode: gives training features anew in each epoch, from augmented images.
    """
    import torch
    import torch.nn.functional as F

    unit = lambda x: F.normalize(torch.from_numpy(np.ascontiguousarray(x)), dim=-1)
    label = {p: torch.from_numpy(y.astype(np.int64)) for p, (_, y) in data.items()}
    f = {p: unit(x) for p, (x, _) in data.items()}
    h, o, W = recipe.hyper, recipe.optimizer, torch.from_numpy(weights.copy())
    scale = float(np.exp(np.asarray(world.model.params["logit_scale"], np.float32)))
    values = F.one_hot(label["train"], len(W)).float()
    keys = torch.nn.Parameter(f["train"].clone())
    (batch, per_epoch, total), M = settings.length(recipe, draw), len(draw.train)
    optimizer = torch.optim.AdamW([keys], lr=o.lr, eps=o.eps, weight_decay=o.wd)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)

    def cache(x, beta):
        return torch.exp(-beta * (1 - x @ keys.T)) @ values

    for epoch in range(total // per_epoch):
        x = f["train"] if encode is None else unit(encode.augmented(draw, epoch))
        for rows in torch.from_numpy(pipeline.epoch_order(M, batch, draw.seed, epoch)):
            logits = scale * x[rows] @ W.T + h.alpha * cache(x[rows], h.beta)
            loss = F.cross_entropy(logits, label["train"][rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        best, found, zero = -1.0, (h.alpha, h.beta), scale * f["val"] @ W.T
        for beta in np.asarray(retrieval.grid(h.search_scale[0], h.search_step[0])).tolist():
            for alpha in np.asarray(retrieval.grid(h.search_scale[1], h.search_step[1])).tolist():
                right = (zero + alpha * cache(f["val"], beta)).argmax(-1) == label["val"]
                if (accuracy := float(right.float().mean())) > best:
                    best, found = accuracy, (alpha, beta)
        logits = scale * f["test"] @ W.T + found[0] * cache(f["test"], found[1])
        return 100 * float((logits.argmax(-1) == label["test"]).float().mean())


def _encode_anew(torch, world, views=10, batch=256):
    """A function draw -> `_data_of` of images that are encoded now, in PyTorch; training images as the mean of
    `views` random crops. Its `augmented(draw, epoch)` gives the features `(M, E)` of an epoch's crops."""
    tower, size = timing.tower(torch, world.model), world.model.config.vision.image_size
    mean, std = (np.array(x, np.float32) for x in (world.model.config.mean, world.model.config.std))

    def encoded(split, rows, change):
        images = (change(transforms.decode(split.images[int(i)]), int(i)) for i in rows)
        images = [((np.asarray(image, np.float32) / 255 - mean) / std).transpose(2, 0, 1) for image in images]
        parts = (torch.from_numpy(np.stack(images[i : i + batch])) for i in range(0, len(images), batch))
        return np.concatenate([tower(part).numpy() for part in parts])

    def augmented(draw, epoch):
        rng = streams.generator("crops of the reference", draw.seed, epoch)
        crop = lambda image, i: transforms.random_crop(image, size=size, scale=(0.5, 1.0), rng=rng)
        return encoded(world.dataset.train, draw.train, crop)

    def encode(draw):
        plain = lambda image, i: world.transform(image)
        found = {"train": (np.mean([augmented(draw, 1000 + v) for v in range(views)], axis=0), draw.train)}
        found["val"] = encoded(world.dataset.val, draw.val, plain), draw.val
        every = np.arange(len(world.dataset.test.labels))
        found["test"] = encoded(world.dataset.test, every, plain), every
        return {p: (x, getattr(world.dataset, p).labels[r]) for p, (x, r) in found.items()}

    encode.augmented = augmented
    return encode
