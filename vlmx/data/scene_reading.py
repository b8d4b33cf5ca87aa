"""Reading about scenes: a question behind which everything is told that answers it, in words alone.

T5's own pre-training put such tasks beside its denoising (arXiv 1910.10683, section 3.5.3). There are no pictures here:
a language model learns what is asked of scenes, and where in what it reads the answer stands.
"""

import multiprocessing
import random

from vlmx.data import scene_clips, scene_reasoning, scene_text, scenes
from vlmx.data.scene_text import a
from vlmx.data.scenes import SIDE, WORDS, Object, Scene

CHUNK = 2000  # pairs that a process makes at a time


def readings(seed: str, n: int, workers: int = 0) -> list[tuple[str, str]]:
    """`n` pairs (what is read, what is to be written) in lower case, the same for any number of processes."""
    spans = [(seed, start, min(start + CHUNK, n)) for start in range(0, n, CHUNK)]
    if not workers:
        return [pair for span in spans for pair in _readings(span)]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        return [pair for part in pool.map(_readings, spans, 1) for pair in part]


def _readings(span):
    seed, start, end = span
    drawn = (random.Random(f"{seed}/{i}") for i in range(start, end))
    return [tuple(text.lower() for text in rng.choice(KINDS)(rng)) for rng in drawn]


# -------------------------------------------------------------------- telling all
def place(o: Object) -> str:
    """Where an object lies, in a picture of three rows and three columns."""
    row, column = ((v > SIDE * 3 // 8) + (v > SIDE * 5 // 8) for v in (o.y, o.x))
    return " ".join(filter(None, (("top", "", "bottom")[row], ("left", "", "right")[column]))) or "middle"


def account(s: Scene, rng: random.Random) -> str:
    """All that is asked about a scene: each object with its looks, size and place, and the background, in any order."""
    if s.glyph:
        char = s.glyph.char
        noun = f"digit {WORDS[int(char)]}" if char.isdigit() else f"letter {char}"
        said = [f"{a(s.glyph.look)} {s.glyph.colour} {noun}"]
    else:
        said = [f"{a(o.size)} {o.fill} {o.colour} {o.kind} at the {place(o)}" for o in s.objects]
    said.append(f"{a(s.background)} background")
    rng.shuffle(said)
    return ", ".join(said)


# -------------------------------------------------------------------- kinds of reading: rng -> (read, written)
def _question(rng):
    asked, prefix = rng.choice(((scene_text.questions, "vqa"), (scene_reasoning.composed, "gpa")))
    while not (found := asked(s := scene_text.scene(rng), rng, 1)):
        pass
    text, answer, _ = found[0]
    if answer in WORDS and rng.random() < 0.5:  # as VQA's answers are written
        answer = str(WORDS.index(answer))
    return f"{prefix}: {text} {account(s, rng)}.", answer


def _statement(rng):
    s, true = scene_text.scene(rng), rng.random() < 0.5
    return f"is it true? {scene_text.statement(s, rng, true)} {account(s, rng)}.", str(true)


def _two_pictures(rng):
    found = ()
    while not found:
        pairs = [[scene_reasoning.with_objects(rng) for _ in range(2)] for _ in range(2)]
        found = scene_reasoning.dividing(pairs, rng, 1, tries=20)
    left, right = pair = rng.choice(pairs)
    context = f"left: {account(left, rng)}. right: {account(right, rng)}."
    return f"nlvr: {found[0].text} {context}", str(found[0].true(*pair))


def _caption(rng):
    s = scene_text.scene(rng)
    return f"caption: {account(s, rng)}.", scenes.caption(s, rng)


def _clip(rng):
    """A clip, its subtitles, and what its first and last frames show."""
    clip = scene_clips.a_clip(rng)
    said = " ".join(line["text"].strip() for line in scene_clips.subtitles(clip, rng))
    first, *_, last = scene_clips.moments(clip)
    return clip, f"[subs] {said}", f"{account(first, rng)}. {account(last, rng)}."


def _choices(clip, rng):
    """A question about a clip, its answers as they are listed, the right one and its name."""
    text, answers, right = scene_clips.questions(clip, rng, 1, rng.choice((2, 3, 4, 5)))[0]  # few are learned first
    listed = " ".join(f"a{i}: {answer}." for i, answer in enumerate(answers))
    return text, f"[choices] {listed}", answers[right], f"a{right}"


def _choice(rng):
    clip, said, shown = _clip(rng)
    text, listed, _, name = _choices(clip, rng)
    return f"{said} [q] {text} {listed} {rng.choice(('tvqa', 'how2qa'))}: {shown}", name


def _without_choices(rng):
    clip, said, shown = _clip(rng)
    text, _, answer, _ = _choices(clip, rng)
    return f"{said} [q] {text} {shown}", answer


def _lookup(rng):
    """A choice's name for its words, or the other way: half of what `_choice` needs."""
    _, listed, *both = _choices(scene_clips.a_clip(rng), rng)
    rng.shuffle(both)
    return f"[q] {both[0]} {listed}", both[1]


def _event(rng):
    clip, said, shown = _clip(rng)
    prefix, told = rng.choice(
        (("yc2c", scene_clips.instruction(clip)), ("tvc", *scene_clips.descriptions(clip, rng, 1)))
    )
    return f"{said} {prefix}: {shown}", told


KINDS = (_question, _question, _question, _statement, _two_pictures, _two_pictures, _caption, _choice, _choice,
         _without_choices, _lookup, _lookup, _event)  # fmt: skip
