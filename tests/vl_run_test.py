"""Vision-and-language runs: how tasks become batches, and a run from config to page, stopped and gone on with."""

import dataclasses
import importlib
import json
import os
import signal
from collections import Counter

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from vl_readers_test import write, write_value, write_vqa

from configs import scenes_vl
from vlmx import (
    checkpoint,
    errors,
    fields,
    loop,
    main,
    report,
    settings,
    shard,
    variant,
    vl,
    vl_baseline,
    vl_examples,
    vl_fit,
    vl_predict,
    vl_report,
)  # fmt: skip
from vlmx.data import published, scene_tasks, vl_batches, vl_features
from vlmx.data.vl import Example, Task
from vlmx.errors import UserError
from vlmx.models import clip, zoo
from vlmx.models.clip import Clip, ClipConfig, ResNet, Text, ViT
from vlmx.models.layers import Block
from vlmx.models.resnet import AttentionPool
from vlmx.models.vlseq import Generation, Visual, VLSeq, param_shapes


class Words:
    """Words as their lengths: enough to see what is written where."""

    pad = 0

    def __call__(self, texts, length):
        rows = [[len(w) for w in text.split()][: length - 1] + [1] for text in texts]
        return np.array([row + [0] * (length - len(row)) for row in rows], np.int32)

    def labels(self, texts, length):
        ids = self(texts, length)
        return np.where(ids == self.pad, -100, ids)


def score(said, examples):
    return {"accuracy": 100 * float(np.mean([s in dict(e.targets) for s, e in zip(said, examples)]))}


def a_task(name, n, images=1, **more):
    examples = [Example(f"{name}{i}", ("x", "y")[:images], "aa bbb", (("cccc", 1.0), ("dd dd", 3.0))) for i in range(n)]
    return Task(name, "pppppp ", examples, (), examples[:3], score, **more)


FEATURES = {"x": np.ones((4, 5)), "y": np.full((4, 5), 2.0)}
TASKS = (
    a_task("vqa", 20, length=6, target_length=4, loss="score"),
    a_task("nlvr", 9, images=2, length=8, target_length=3),
    a_task("caption", 3, length=5, target_length=3, loss="token"),
)


def mix(**more):
    return vl_batches.Mix(TASKS, Words(), FEATURES, (4, 3, 4), 0, **more)


# -------------------------------------------------------------------- batches
def test_batches_have_one_shape_and_weights_that_make_each_tasks_loss():
    m, seen = mix(), Counter()
    assert m.batches == {"vqa": 5, "nlvr": 3, "caption": 1}
    for step in range(9):
        b = vl_batches.batch(m, step)
        task = TASKS[int(b["task"])]
        seen[task.name] += 1
        assert b["ids"].shape == (4, 8) and b["labels"].shape == b["weight"].shape == (4, 4)
        assert b["features"].shape == (4, 2, 4, 5) and b["real"].shape == (4, 2)
        n = min({"vqa": 4, "nlvr": 3, "caption": 4}[task.name], len(task.train))
        assert b["real"].sum(0).tolist() == [n, n if task.name == "nlvr" else 0]
        assert (b["features"][:n, 0] == 1).all() and (b["features"][:n, 1] == 2).all() == (task.name == "nlvr")
        assert (b["labels"][n:] == -100).all() and (b["weight"][n:] == 0).all()
        assert b["weight"][b["labels"] < 0].sum() == 0
        if task.loss == "score":  # 1 or 3, as drawn
            scores = np.where(b["labels"][:, 1] == 2, 3, 1)
            np.testing.assert_allclose(b["weight"].sum(-1), scores / 4, rtol=1e-6)
        else:
            np.testing.assert_allclose(b["weight"].sum(), 1, rtol=1e-6)
        if task.loss == "token":
            assert len({*b["weight"][b["labels"] >= 0]}) == 1
    assert seen == m.batches and dict(zip(m.batches, m.before(9))) == m.batches
    assert m.examples(9) == {"vqa": 20, "nlvr": 9, "caption": 3}


def test_batches_of_regions_have_boxes_and_say_which_rows_are_real(tmp_path):
    with h5py.File(tmp_path / "f.h5", "w") as file:
        for name, n in (("x", 2), ("y", 3)):
            file[f"{name}/features"] = np.full((n, 5), n, np.float32)
            file[f"{name}/boxes"] = np.tile([0, 0.1, 0.5, 1], (n, 1))
    regions = vl_features.align(vl_features.where(tmp_path / "f.h5"), ["x", "y"])
    m = mix()._replace(features=regions)
    for step in range(9):
        b = vl_batches.batch(m, step)
        assert b["features"].shape == (4, 2, 3, 5) and b["boxes"].shape == (4, 2, 3, 4) and b["real"].shape == (4, 6)
        pair = [1, 1, 1] if TASKS[int(b["task"])].name == "nlvr" else [0, 0, 0]
        assert b["real"][0].tolist() == [1, 1, 0, *pair]
        np.testing.assert_allclose(b["boxes"][0, 0], [[0, 0.5, 0.1, 1]] * 2 + [[0] * 4], rtol=1e-6)
        np.testing.assert_array_equal(b["features"][0, 0, :, 0], [2, 2, 0])


def test_features_of_the_hidden_test_are_checked_before_the_training(tmp_path):
    write_vqa(tmp_path)
    question = {"question_id": 5, "image_id": 7, "question": "?"}
    write(tmp_path / "vqa/v2_OpenEnded_mscoco_test2015_questions.json", {"questions": [question]})
    with h5py.File(tmp_path / "f.h5", "w") as file:
        for name in ("train2014_000000000001", "val2014_000000000002", "val2014_000000000003"):
            file[f"COCO_{name}/features"] = np.ones((4, 5), np.float32)
        file["COCO_test2015_000000000007/features"] = np.ones((4, 6), np.float32)
    config = main.load("configs/image_text.py:single_adapter,tasks=vqa")
    config.data.update(root=str(tmp_path), features=(str(tmp_path / "f.h5"),), hidden=("vqa",))
    tasks = (published.load("vqa", config.data),)
    with pytest.raises(UserError, match="test2015_000000000007': features of width 6; those of the other images: 5"):
        vl.encode(config, tasks, None)
    for name in ("test2015_000000000007", "val2014_000000000003"):  # hidden, and not
        with h5py.File(tmp_path / "f.h5", "a") as file:
            del file["COCO_test2015_000000000007"]
            file["COCO_test2015_000000000007/features"] = np.ones((4, 5), np.float32)
            file[f"COCO_{name}/features"][2] = np.nan
        with pytest.raises(UserError, match=f"{name}': features that are not finite, the first in row 2"):
            vl.encode(config, tasks, None)


def test_features_of_all_videos_are_checked_before_the_training(tmp_path):
    write_value(tmp_path)
    train = tmp_path / "tvqa/tvqa_train.jsonl"
    train.write_text(train.read_text().replace('"v1"', '"v2"'))
    config = main.load("configs/video_text.py:single_adapter,tasks=tvqa")
    (tmp_path / "features").mkdir()
    config.data.root = str(tmp_path)
    task = published.load("tvqa", config.data)
    config.data.features = (str(tmp_path / "features"),)
    names = [*dict.fromkeys(e.images[0] for part in (task.train, task.val, task.test) for e in part)]
    for name in names:
        np.save(tmp_path / f"features/{name}.npy", np.ones((3, 5), np.float32))
    vl.encode(config, (task,), None)
    last = task.test[-1].images[0]
    for wrong, message in ((np.ones((3, 6)), "width 6"), (np.full((3, 5), np.nan), "not finite, the first in row 0")):
        np.save(tmp_path / f"features/{last}.npy", wrong.astype(np.float32))
        with pytest.raises(UserError, match=f"{last}.npy: features .*{message}"):
            vl.encode(config, (task,), None)


@pytest.mark.parametrize(
    "named, message",
    [
        ("image_text.py:tasks=scenes_vqa", "scenes_vqa is drawn, by configs such as scenes_vl.py"),
        ("scenes_image_text.py:tasks=scenes_told", "scenes_told is drawn, by configs such as scenes_vl.py"),
        ("scenes_vl.py:tasks=vqa", "vqa is read from files, only by configs such as image_text.py"),
        ("image_text.py:tasks=vqa+tvqa", "tasks about pictures and about videos, .* not trained in one run"),
    ],
)
def test_tasks_that_do_not_go_with_a_config_or_with_each_other(tmp_path, named, message):
    write_vqa(tmp_path), write_value(tmp_path)
    config = main.load(f"configs/{named},batch=8")
    if "root" in config.data:
        config.data.root = str(tmp_path)
    with pytest.raises(UserError, match=f"config.tasks: .*{message}"):
        vl.run(config, tmp_path / "run")


def test_a_batch_that_a_person_sets_holds_for_all_tasks():
    """Behind the colon, as a flag, for sweeps, and in Python; what is set for one task stays."""
    published = {"vqa": 500, "gqa": 833, "nlvr": 166, "caption": 416}
    sizes = lambda c: {task: c.batches.get(task, c.batch) for task in c.tasks}
    load = lambda arg="": main.load(f"configs/image_text.py:single_adapter{arg}")
    assert sizes(load()) == published
    for arg in (",batch=32", ",smoke,batch=32", ",batch=32,backbone=t5-base"):
        assert set(sizes(load(arg)).values()) == {32}
    for changes, expected in (
        (["batch=32"], dict.fromkeys(published, 32)),
        (["batches.vqa=8", "batch=32"], dict.fromkeys(published, 32) | {"vqa": 8}),
        (["batch=32", "batches.vqa=8"], dict.fromkeys(published, 32) | {"vqa": 8}),
        (["batches.vqa=8"], published | {"vqa": 8}),
    ):
        config = load()
        fields.set_fields(config, [f"--config.{field}" for field in changes])
        assert sizes(config) == expected, changes
    config = load(",batch=32")
    fields.set_fields(config, ["--config.batches.vqa=8"])
    assert sizes(config) == dict.fromkeys(published, 32) | {"vqa": 8}
    config = main.load("configs/video_text.py:single_adapter,batch=32")
    assert set(sizes(config).values()) == {32}
    config = load()  # in Python
    config.batch = config.batch + 0  # the published largest size too, once it is set
    assert set(sizes(config).values()) == {833}
    config.batch, config.batches.vqa = 32, 8
    assert sizes(config) == dict.fromkeys(published, 32) | {"vqa": 8}
    assert settings.plain(config)["batches"] == sizes(config)
    vl.check(config)


def test_the_mesh_divides_the_largest_batch_of_the_tasks_that_run():
    config = main.load("configs/image_text.py:single_adapter")
    assert vl.largest_batch(config) == {"batches.gqa": 833}
    config.tasks = ("vqa", "nlvr")
    assert vl.largest_batch(config) == {"batches.vqa": 500}
    config.batches, config.batch = {"vqa": 31}, 32
    assert vl.largest_batch(config) == {"batch": 32}
    mesh = shard.make_mesh({"seed": 1, "data": -1, "fsdp": 1, "tensor": 1})
    if (n := mesh.devices.size) > 1:
        config.batches = {"vqa": 32 * n + 1}
        with pytest.raises(UserError, match=rf"batches.vqa: .* does not divide {32 * n + 1}. .* fit: {32 * n} or"):
            shard.refuse_uneven(mesh, 1, vl.largest_batch(config))


def test_an_epoch_shows_every_example_once_and_the_next_one_in_another_order():
    tasks = (TASKS[0]._replace(train=[Example(str(i), ("x",), "a" * (i + 2), (("b", 1.0),)) for i in range(20)]),)
    m = vl_batches.Mix(tasks, Words(), FEATURES, (4,), 0, prefixes=False)
    epochs = [[vl_batches.batch(m, e * 5 + i)["ids"][:, 0].tolist() for i in range(5)] for e in range(2)]
    assert [sorted(sum(e, [])) for e in epochs] == [list(range(2, 22))] * 2
    assert epochs[0] != epochs[1]


def test_answers_are_drawn_in_proportion_to_their_scores():
    rng = np.random.default_rng(0)
    said = Counter(vl_batches.drawn(TASKS[0].train[0], rng) for _ in range(2000))
    assert set(said) == {("cccc", 1.0), ("dd dd", 3.0)} and abs(said["dd dd", 3.0] / 2000 - 0.75) < 0.04
    assert vl_batches.drawn(Example("", ("x",), ""), rng) == ("", 0.0)
    nobody = TASKS[0]._replace(train=[Example(str(i), ("x",), "a") for i in range(4)])
    b = vl_batches.batch(vl_batches.Mix((nobody,), Words(), FEATURES, (4,), 0), 0)
    assert (b["weight"] == 0).all() and (b["labels"] == -100).all()


def test_batches_follow_from_their_step_alone():
    whole = list(vl_batches.stream(mix(), 0, 12, 2))
    later = list(vl_batches.stream(mix(), 6, 12, 2))
    for a, b in zip(whole[3:], later, strict=True):
        assert a["ids"].shape == (2, 4, 8)
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_steps_of_a_call_come_near_what_is_asked_for_whatever_their_number(tmp_path):
    found = {total: loop.at_once(total, 10) for total in (966, 979, 450, 977, 982, 3)}
    assert found == {966: 7, 979: 11, 450: 10, 977: 10, 982: 10, 3: 3}
    assert [len(b["task"]) for b in vl_batches.stream(mix(), 0, 7, 3)] == [3, 3, 1]

    def call(state, batch):
        metrics = {"bad": np.zeros((batch, 1), bool), "loss": np.zeros((batch, 1), np.float32)}
        return {"calls": state["calls"] + 1}, metrics

    noted, mesh, made = [], shard.make_mesh(small().mesh), checkpoint.manager(tmp_path)
    plan = loop.Steps("it", 7, 3, call, lambda done, _: noted.append(done), (0,), made, 100, {}, False)
    assert loop.go(plan, {"calls": jnp.zeros(())}, [3, 3, 1], 0, mesh)["calls"] == 3 and noted == [3, 6, 7]
    assert made.latest_step() == 7


def test_prefixes():
    video = TASKS[0]._replace(suffix=True)
    assert vl_batches.prefixed(TASKS[0], "q", True) == "pppppp q"
    assert vl_batches.prefixed(TASKS[0], "q", False) == "q"
    assert vl_batches.prefixed(video, "q ", False) == "q pppppp "


@pytest.mark.parametrize("name", sorted(variant.PUBLISHED))
def test_a_prefix_tells_the_task_where_nothing_else_does(name):
    config = scenes_vl.get_config(name)
    chosen = vl.check(config)[name]
    shape = dataclasses.replace(zoo.SEQ_MODELS["bart-base"].config, visual=Visual(5, 4), added=200)
    world = vl.World(config, None, None, (), FEATURES, VLSeq(param_shapes(shape), shape), Words(), "")
    assert vl_fit.mix_of(world, chosen).prefixes == name.startswith("single")


def test_how_a_task_is_answered():
    own = Generation(no_repeat_ngram=3, early_stopping=True)
    greedy = vl_predict.how_to_generate(TASKS[0], own)
    beams = vl_predict.how_to_generate(TASKS[0]._replace(beams=5, answer_length=7), own)
    assert (greedy.beams, greedy.max_length, greedy.force_end, greedy.no_repeat_ngram) == (1, 20, False, 3)
    assert (beams.beams, beams.max_length, beams.force_end, beams.early_stopping) == (5, 7, True, True)
    summary = Generation(min_length=56, begin=0, published_beams=False, repetition_penalty=2.0)
    answer = vl_predict.how_to_generate(TASKS[0], summary)
    assert answer == Generation(repetition_penalty=2.0)


def test_trivial_baselines():
    free, choice = (vl_baseline.baseline(TASKS[0]._replace(kind=kind)) for kind in ("answer", "choice"))
    assert free == {"name": "majority answer", "answer": "dd dd", "test": {"accuracy": 100.0}}
    assert choice["name"] == "majority choice, chance is 50.0"
    said = ["blue thing"] * 3 + ["a red circle on white"] * 2 + ["a red star on white", "a red cross on white"] * 2
    rows = [Example(str(i), (str(i),), "", ((text, 1.0),)) for i, text in enumerate(said)]
    caption = TASKS[2]._replace(kind="caption", train=rows, test=rows[:1], score=score)
    found = vl_baseline.baseline(caption)
    assert found["name"] == "constant caption" and found["answer"].startswith("a red")  # not the most frequent one
    scenes = scene_tasks.load("scenes_vqa", scenes_vl.get_config("smoke").data)
    found = vl_baseline.baseline(scenes)
    answer, numbers = found["answer"], found["test"]
    assert answer in ("yes", "no", "one", "medium") and numbers["accuracy"] < 40 and "colour" in numbers
    train, test = ({e.images[0] for e in split} for split in (scenes.train, scenes.test))
    assert not train & test


# -------------------------------------------------------------------- what the image tower knows of each place
def test_grids_are_what_the_towers_have_before_they_pool():
    text = Text(8, 1, 1, 8, context=4, vocab=8, bos=6)
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)), jnp.uint8)
    c = ClipConfig(8, ViT(8, 2, 1, 16, image_size=32, patch=8), text)
    model = Clip(clip.init_params(c, jax.random.key(0)), c)
    grid = model.grid(images)
    assert grid.shape == (2, 16, 8)
    p = model.params["vision"]
    x = clip.Patches(8, 8, jnp.float32, jnp.float32).apply({"params": p["patch_embed"]}, model.normalized(images))
    x = jnp.concatenate([jnp.broadcast_to(p["class_embed"], (2, 1, 8)), x], axis=1) + p["pos_embed"]
    x = nn.LayerNorm(epsilon=1e-5).apply({"params": p["ln_pre"]}, x)
    block = Block(1, 16, "quick_gelu", 1e-5, jnp.float32, jnp.float32)
    for layer in range(2):
        x, _ = block.apply({"params": jax.tree.map(lambda a, layer=layer: a[layer], p["blocks"])}, x, None, None)
    np.testing.assert_allclose(grid, x[:, 1:], rtol=0, atol=1e-6)

    c = ClipConfig(8, ResNet(64, 4, (1, 1, 1, 1), 2), text)
    model = Clip(clip.init_params(c, jax.random.key(1)), c)
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)), jnp.uint8)
    grid = model.grid(images)
    assert grid.shape == (2, 4, 128)
    pool = AttentionPool(2, 8, jnp.float32, jnp.float32)
    pooled = pool.apply({"params": model.params["vision"]["attnpool"]}, grid.reshape(2, 2, 2, 128))
    np.testing.assert_allclose(pooled, model.image(images), rtol=0, atol=1e-6)


# -------------------------------------------------------------------- a run
def small(arg="single_adapter", **fields):
    config = scenes_vl.get_config(f"smoke,{arg}")
    config.data.scenes.update(train=24, val=4, test=6)
    config.eval_batch, config.checkpoint_every = 12, 2
    config.update(fields)
    return config


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("vl") / "run"
    return workdir, vl.run(small("single_adapter,multiple_prompts"), workdir)


def test_a_run_ends_in_numbers_a_table_and_a_page(ran, capsys):
    workdir, results = ran
    run = results["runs"][0]
    assert [r["settings"]["prefixes"] for r in results["runs"]] == [True, False]
    backbone = zoo.load_seq("tiny_bart", visual=Visual(128, 16)).model
    trained, total, _ = variant.summary(variant.make("single_adapter"), backbone, 1)
    assert (run["trained_params"], run["trained_percent"]) == (trained, 100 * trained / total)
    assert set(run["tasks"]["scenes_vqa"]) == {"val", "test"} and "loss_scenes_vqa" in run["curve"]
    assert run["curve"]["examples_scenes_vqa"][-1] == [run["examples_seen"]["scenes_vqa"]]
    text = vl_report.table(results)
    assert "trivial baseline" in text and f"{run['trained_params']:,}" in text
    assert f"scenes_vqa: always {results['tasks'][0]['baseline']['answer']!r} (majority answer)" in text
    assert report.main([str(workdir)]) == 0 and text in capsys.readouterr().out
    page = (workdir / "report.html").read_text()
    asked = results["examples"][0]
    assert asked["reference"] in page and "data:image/png" in page and page.count("<svg") == 1
    assert page.count('class="card looked"') == 2 * vl_examples.LOOKED and "majority answer" in page
    looked = [row for row in results["examples"] if "attention" in row]
    assert all(row["said"] and (workdir / row["attention"]).exists() for row in looked)
    again = vl.run(small("single_adapter,multiple_prompts"), workdir)
    assert again == json.loads((workdir / "results.json").read_text())
    with pytest.raises(UserError, match="batch: there 16, now 8"):
        vl.run(small("single_adapter,multiple_prompts", batch=8), workdir)


def test_told_to_stop_it_goes_on_to_the_same_numbers(ran, tmp_path, monkeypatch):
    whole, _ = ran
    real = vl_batches.stream

    def cut(*args):
        for i, b in enumerate(real(*args)):
            if i == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield b

    monkeypatch.setattr(vl_batches, "stream", cut)
    with pytest.raises(SystemExit) as stopped:
        vl.run(small(), tmp_path / "run")
    assert stopped.value.code == errors.PREEMPTED
    monkeypatch.setattr(vl_batches, "stream", real)
    results = vl.run(small(), tmp_path / "run")
    files = [folder / "single_adapter/tuned/tuned.safetensors" for folder in (whole, tmp_path / "run")]
    assert files[0].read_bytes() == files[1].read_bytes()
    about = json.loads(files[0].with_name("tuned.json").read_text())
    assert [about[key] for key in ("model", "tower", "what")] == ["tiny_bart", "tiny_clip", "grid"]
    old, new = json.loads((whole / "single_adapter/result.json").read_text())["run"], results["runs"][0]
    assert old["tasks"] == new["tasks"] and old["curve"] == new["curve"]


def test_a_test_that_fails_leaves_the_training_and_goes_on_without_another(ran, tmp_path, monkeypatch):
    def fail(*args):
        raise UserError("f.h5, 'a': features that are not finite")

    workdir = tmp_path / "run"
    with monkeypatch.context() as broken, pytest.raises(UserError, match="not finite\n.* is trained, .*same command"):
        broken.setattr(vl, "predict", fail)
        vl.run(small(), workdir)
    assert next(workdir.glob("*/tuned/tuned.safetensors"))
    monkeypatch.setattr(vl_batches, "stream", lambda mix, first, total, K: iter([fail()] if first < total else []))
    again = vl.run(small(), workdir)
    assert again["runs"][0]["tasks"] == ran[1]["runs"][0]["tasks"]


def test_one_backbone_answers_with_the_files_of_several_variants_by_turns(ran):
    workdir, _ = ran
    config = small("single_adapter,multiple_prompts")
    mesh = shard.make_mesh(config.mesh)
    tasks = (scene_tasks.load("scenes_vqa", config.data),)
    found, _ = vl.encode(config, tuple(t._replace(train=()) for t in tasks), mesh)
    model, words, digest = vl.load_backbone(config, mesh, (16, 128))
    world = vl.World(config, workdir, mesh, tasks, found, model, words, digest)
    made, served = vl.check(config), {}
    for name, chosen in made.items():
        shapes = variant.shapes(chosen, model, 1)
        v, note = variant.load(workdir / name / "tuned", shapes, digest)
        assert note["variant"] == name and note["tasks"] == ["scenes_vqa"]
        served[name] = v
    for name in ("single_adapter", "multiple_prompts", "single_adapter"):
        chosen = made[name]
        said = vl_predict.predict(world, vl_fit.mix_of(world, chosen), chosen, served[name], 0, tasks[0].test)
        results = json.loads((workdir / name / "result.json").read_text())["run"]
        assert tasks[0].score(said, tasks[0].test) == results["tasks"]["scenes_vqa"]["test"]


def test_a_loss_that_is_not_finite_is_named_or_left_out(tmp_path):
    config = small(nonfinite="stop")
    config.recipe.single_adapter.optimizer.lr = 1e30
    with pytest.raises(UserError, match="single_adapter: .* is not finite for seed.* at step"):
        vl.run(config, tmp_path / "stop")
    config.nonfinite = "skip"
    results = vl.run(config, tmp_path / "skip")
    assert sum(n or 0 for row in results["runs"][0]["curve"]["skipped_scenes_vqa"] for n in row) > 0


def test_what_cannot_be_run_is_said_before_anything_is_read():
    with pytest.raises(UserError, match="unknown variant 'single_adaptor'.*single_adapter"):
        scenes_vl.get_config("single_adaptor")
    with pytest.raises(UserError, match="unknown setting behind the colon .*'reducton'.*reduction|backbone"):
        scenes_vl.get_config("single_adapter,reducton=4")
    config = small()
    config.tasks = ("scene_vqa",)
    with pytest.raises(UserError, match="unknown task 'scene_vqa'. Did you mean 'scenes_vqa'"):
        vl.check(config)
    assert scenes_vl.get_config("all").methods == tuple(variant.PUBLISHED)
    assert main.RUNS[config.family] == "vl"
    assert all(hasattr(importlib.import_module(f"vlmx.{m}"), "run") for m in main.RUNS.values())


def test_temperature_mixes_tasks_more_evenly():
    assert Counter(mix(temperature=1e9).order(0)) == {0: 3, 1: 3, 2: 3}


# -------------------------------------------------------------------- a backbone pre-trained on vision and language
def test_passages_lose_words_of_theirs_and_are_told_whole():
    task = scene_tasks.load("scenes_told", scenes_vl.get_config("smoke").data)
    shares = [len(e.text.split()) / len(e.targets[0][0].split()) for e in task.train]
    assert 0.3 < np.mean(shares) < 0.5 and min(shares) == 0  # of all words, half or seven in ten are left
    for e in task.train:
        words = iter(e.targets[0][0].split())
        assert all(word in words for word in e.text.split())  # in their order
    assert task.loss == "token" and not {e.images for e in task.train} & {e.images for e in task.test}


def test_a_run_begins_where_full_fine_tuning_ended(tmp_path):
    loaded = zoo.load_seq("tiny_bart", visual=Visual(128, 16))
    full = variant.make("full")
    v = variant.start(full, jax.random.key(0), loaded.model, 1)
    v["train"]["backbone"] = jax.tree.map(lambda a: a + 0.01, v["train"]["backbone"])
    variant.save(tmp_path / "tuned", v, loaded.digest, ("scenes_told",), {"variant": "full", "hyper": {}})
    config = small()
    config.model.start = str(tmp_path / "tuned")
    model, _, digest = vl.load_backbone(config, shard.make_mesh(config.mesh), (16, 128))
    for name in ("encoder", "decoder", "visual", "added", "token_embed"):
        old, new = jax.tree.leaves(loaded.model.params[name]), jax.tree.leaves(model.params[name])
        assert all(np.allclose(b, a + 0.01, atol=1e-6) for a, b in zip(old, new, strict=True)), name
    assert digest != loaded.digest and len(digest) == 64
    with pytest.raises(UserError, match="was tuned on the backbone"):
        variant.begun(loaded.model, tmp_path / "tuned", "another")
