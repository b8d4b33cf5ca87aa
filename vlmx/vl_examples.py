"""What a report shows of a task's test: pictures, question, answer and what is right, and where the model looked."""

import math
from collections import Counter

import numpy as np
from PIL import Image

from vlmx import attention, files, logs, report
from vlmx.data import vl, vl_features
from vlmx.errors import UserError

SHOWN, LOOKED = 12, 2  # examples of each task; of so many of these the attention is drawn
LONG = 400  # letters of a question


def save(world, mix, chosen, v, number, said, run):
    """Rows of results["examples"] of the task `number`, spread over its test, of whose examples `said` are the answers;
    their pictures go to the workdir, named after `run`. Every process of a run has to come here."""
    task = world.tasks[number]
    rows = spread(len(task.test))
    examples, answers = [task.test[i] for i in rows], [said[i] for i in rows]
    regions = hasattr(world.features, "regions")  # whose places in the picture are no cells of a grid
    at = [] if regions else [i for i, a in enumerate(answers) if a.strip()][:LOOKED]
    of = [examples[i] for i in at], [answers[i] for i in at]
    looked = attention.weights(world, mix, chosen, v, number, *of) if at else []
    if not logs.first_process():
        return []
    pictures = [shown(task, e, world.config.data) for e in examples]
    entries = [
        {"run": run, "seed": None, "part": task.name, "question": shortened(e.text), "said": a, "reference": right(e)}
        | {"score": score_of(task, e, a)}
        for e, a in zip(examples, answers)
    ]
    entries = report.save_mistakes(world.workdir, map(mosaic, pictures), entries)
    for i, (tokens, found) in zip(at, looked):
        if tokens and pictures[i]:
            rows = vl_features.rows(world.features, examples[i].images[0]) if task.suffix else None
            try:
                cells = attention.cells(found, len(pictures[i]), rows)
            except UserError as e:  # features of other frames than these
                logs.say(f"{task.name}: no picture of the attention: {e}")
                continue
            seen = attention.Attended(entries[i]["question"], answers[i], tokens, cells, pictures[i])
            name = f"mistakes/{run}-{task.name}-attention-{i}.png"
            files.write(world.workdir / name, attention.png(seen.figure()))
            entries[i]["attention"] = name
    return entries


def spread(n):
    """Return which of `n` examples are shown: SHOWN of them, from the first to the last at even distances."""
    return [int(i) for i in np.linspace(0, n - 1, min(SHOWN, n)).round()]


def shown(task, example, data):
    """The PIL pictures of an example, of a video its frames; [] where they are not to be had."""
    reader = vl.reader(task.name)
    if hasattr(reader, "shown"):
        return reader.shown(task.name, example.images, data)
    return [Image.fromarray(pixels) for pixels in reader.Pictures(example.images)]


def shortened(text):
    """A question without the middle of what is said before it."""
    return text if len(text) <= LONG else f"{text[: LONG // 4]} … {text[-3 * LONG // 4 :]}"


def score_of(task, example, answer):
    """Return what the task's first metric gives to an answer, in percent; None of captions, and without a reference."""
    known = example.targets or example.about
    if task.kind == "caption" or not known:
        return None
    return float(next(iter(task.score([answer], [example]).values())))


def right(example):
    """The best three answers: of the targets, or where none was kept of people's own, the most frequent first."""
    best = [answer for answer, _ in sorted(example.targets, key=lambda target: -target[1])[:3]]
    about = example.about if isinstance(example.about, dict) else {}
    people = about.get("answers") or about.get("descriptions") or ()
    return " / ".join(best or [answer for answer, _ in Counter(people).most_common(3)])


def mosaic(pictures, most=4, gap=4):
    """One picture of several: two side by side, of a video's frames four in rows; grey where there is none."""
    if not pictures:
        return Image.new("RGB", (64, 64), (128, 128, 128))
    several = [pictures[i * len(pictures) // most] for i in range(most)] if len(pictures) > most else pictures
    if len(several) == 1:
        return several[0]
    small = [p.copy() for p in several]
    for p in small:
        p.thumbnail((112, 112))
    w, h = (max(p.size[axis] for p in small) for axis in (0, 1))
    columns = math.ceil(math.sqrt(len(small)))
    whole = Image.new("RGB", (columns * (w + gap) - gap, -(-len(small) // columns) * (h + gap) - gap), (128, 128, 128))
    for i, p in enumerate(small):
        whole.paste(p, (i % columns * (w + gap), i // columns * (h + gap)))
    return whole
