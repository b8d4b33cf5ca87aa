"""What runs of the published tasks leave beside numbers: examples with attention, and files for leaderboards."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from configs import scenes_image_text, scenes_video_text
from vlmx import shard, variant, vl, vl_examples, vl_fit, vl_submit
from vlmx.data import published, scene_files
from vlmx.data.vl import Example
from vlmx.errors import UserError


@pytest.fixture(scope="module", params=["image", "video"])
def world(request, tmp_path_factory):
    """A world of two tasks on a few scenes, and an untrained variant: what vl.cell has before the test."""
    root = tmp_path_factory.mktemp("scenes")
    configs = {"image": scenes_image_text, "video": scenes_video_text}
    config = configs[request.param].get_config("smoke,backbone=tiny_bart")
    scene_files.write(root, request.param, scale=0.001)
    config.data.update(root=str(root), scenes=0.0, hidden=("tvqa",))
    config.tasks, config.eval_batch = ("nlvr", "caption") if request.param == "image" else ("tvqa", "tvc"), 8
    tasks = tuple(published.load(name, config.data)._replace(beams=1, answer_length=8) for name in config.tasks)
    mesh = shard.make_mesh(config.mesh)
    found, _ = vl.encode(config, tasks, mesh)
    model, words, digest = vl.load_backbone(config, mesh, found[tasks[0].train[0].images[0]].shape)
    chosen = variant.make("single_adapter")
    v = jax.tree.map(np.asarray, variant.start(chosen, jax.random.key(0), model, len(tasks)))
    w = vl.World(config, root / "run", mesh, tasks, found, model, words, digest)
    return w, vl_fit.mix_of(w, chosen), chosen, v


def test_examples_of_each_task(world):
    w, mix, chosen, v = world
    for number, task in enumerate(w.tasks):
        said = [e.targets[0][0] for e in task.test]
        rows = vl_examples.save(w, mix, chosen, v, number, said, "single_adapter")
        assert [row["part"] for row in rows] == [task.name] * min(12, len(said))
        assert rows[0]["said"] == said[0] and said[0] in rows[0]["reference"]
        width, height = Image.open(w.workdir / rows[0]["image"]).size
        assert (width, height) == {"nlvr": (132, 64), "caption": (64, 64)}.get(task.name, (132, 132))
        looked = [Image.open(w.workdir / row["attention"]) for row in rows if "attention" in row]
        assert len(looked) == 2
        assert looked[0].height > (1.9 if task.name == "nlvr" else 3.9 if task.suffix else 0.9) * 100
        assert looked[0].width > 200 if task.choices else looked[0].width > 300


def test_answers_for_the_leaderboard(world, tmp_path):
    w, mix, chosen, v = world
    for number, task in enumerate(w.tasks):
        said = [e.targets[0][0] for e in task.test]
        vl_submit.write(w, mix, chosen, v, number, said, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    if "nlvr" in w.config.tasks:
        assert names == {"nlvr.csv", "caption.json"}
        assert (tmp_path / "nlvr.csv").read_text().splitlines()[0] == f"{w.tasks[0].test[0].id},False"
        with pytest.raises(UserError, match="nlvr has no test whose answers are kept"):
            published.hidden("nlvr", w.config.data)
    else:
        assert names == {"tvqa.json", "tvqa-hidden.json", "tvc.jsonl"}
        assert len(json.loads((tmp_path / "tvqa-hidden.json").read_text())) == len(w.tasks[0].test)


def test_questions_and_answers_are_told_shortly():
    assert vl_examples.shortened("a" * 400) == "a" * 400
    short = vl_examples.shortened("a" * 5000 + "what?")
    assert len(short) == 403 and short.endswith("what?") and " … " in short
    e = Example("", (), "", (("b", 0.3), ("a", 1.0), ("c", 0.6), ("d", 0.1)))
    assert vl_examples.right(e) == "a / c / b"
    people = {"answers": ("bar", "pub", "bar", "inn", "shop", "inn")}  # where no answer is a target
    assert vl_examples.right(Example("", (), "", (), people)) == "bar / inn / pub"
    assert vl_examples.right(Example("", (), "", (), None)) == ""
    assert vl_examples.mosaic([]).size == (64, 64)
    assert vl_examples.mosaic([Image.new("RGB", (200, 100))] * 9).size == (228, 116)
