"""Clips: scenes in which something happens, what is said meanwhile, and what can be asked and told about them.

A clip is a scene and one event; its frames are drawn from the description like any scene.
"""

import random
from typing import NamedTuple

import numpy as np

from vlmx.data import scenes
from vlmx.data.scene_text import a
from vlmx.data.scenes import COLOURS, SIDE, Scene

FRAMES, SECONDS = 4, 6.0  # of a clip: a frame every 1.5 seconds, as the VALUE benchmark's features
PEOPLE = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Hugo")
MOVES = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
EVENTS = (*MOVES, "grows", "shrinks", "colour", "leaves")


class Clip(NamedTuple):
    """`scene` at the beginning; its object number `which` does `event`, one of EVENTS; with "colour" it turns `colour`.
    `speakers` comment on it, the first on the object, the second on the background."""

    scene: Scene
    which: int
    event: str
    colour: str
    speakers: tuple[str, str]

    @property
    def subject(self):
        """The object to which something happens."""
        return self.scene.objects[self.which]

    @property
    def called(self):
        """How it is spoken of."""
        o = self.subject
        return f"the {o.colour} {o.kind}"


def a_clip(rng: random.Random) -> Clip:
    """A clip with one or two objects; the one that acts begins where it has room to."""
    event = rng.choice(EVENTS)
    things = [scenes.an_object(rng, radius=(9, 14)) for _ in range(rng.choice((1, 1, 2)))]
    if len({thing.kind for thing in things}) < len(things):  # the kind alone must say which is meant
        things.pop()
    scene = scenes.scene_of(rng, things)
    o = scene.objects[0]
    if event in MOVES:
        dx, dy = MOVES[event]
        o = o._replace(x=o.x if not dx else SIDE // 2 - dx * 18, y=o.y if not dy else SIDE // 2 - dy * 18)
    if event in ("grows", "shrinks"):
        o = o._replace(radius=8 if event == "grows" else 19)
    taken = {scene.background, *(x.colour for x in scene.objects)}
    colour = rng.choice([c for c in COLOURS if c not in taken])
    rest = [x for x in scene.objects[1:] if abs(x.x - o.x) + abs(x.y - o.y) > 16]
    return Clip(scene._replace(objects=(o, *rest)), 0, event, colour, tuple(rng.sample(PEOPLE, 2)))


def frames(clip: Clip) -> np.ndarray:
    """Its frames, uint8 [FRAMES, 64, 64, 3]."""
    return np.stack([scenes.draw(s) for s in moments(clip)])


def moments(clip: Clip) -> list[Scene]:
    """The scene of each frame."""
    return [_at(clip, i / (FRAMES - 1)) for i in range(FRAMES)]


def _at(clip, t):
    """The scene at time t, 0 to 1."""
    o = clip.subject
    if clip.event in MOVES:
        dx, dy = MOVES[clip.event]
        o = o._replace(x=o.x + round(36 * t * dx), y=o.y + round(36 * t * dy))
    elif clip.event in ("grows", "shrinks"):
        o = o._replace(radius=round(o.radius + t * (11 if clip.event == "grows" else -11)))
    elif clip.event == "colour" and t > 0.5:
        o = o._replace(colour=clip.colour, rgb=COLOURS[clip.colour])
    objects = list(clip.scene.objects)
    objects[clip.which : clip.which + 1] = [] if clip.event == "leaves" and t > 0.5 else [o]
    return clip.scene._replace(objects=tuple(objects))


# ------------------------------------------------------------------------------------------------ saying
_TOLD = {
    "left": ("{} moves to the left.", "{} goes left."), "right": ("{} moves to the right.", "{} goes right."),
    "up": ("{} moves up.", "{} rises to the top."), "down": ("{} moves down.", "{} falls to the bottom."),
    "grows": ("{} grows.", "{} becomes larger."), "shrinks": ("{} shrinks.", "{} becomes smaller."),
    "colour": ("{} turns {colour}.", "{} becomes {colour}."), "leaves": ("{} disappears.", "{} is gone in the end."),
}  # fmt: skip
_ORDERED = {
    "left": "move {} to the left", "right": "move {} to the right", "up": "lift {} up", "down": "put {} down",
    "grows": "let {} grow", "shrinks": "make {} smaller", "colour": "paint {} {colour}", "leaves": "take {} away",
}  # fmt: skip


def descriptions(clip: Clip, rng: random.Random, n: int) -> list[str]:
    """`n` true sentences about what happens."""
    o = clip.subject
    called = (clip.called, a(f"{o.colour} {o.kind}"), f"the {o.kind}")
    ways = [told.format(c, colour=clip.colour) for told in _TOLD[clip.event] for c in called]
    return [ways[i % len(ways)] for i in rng.sample(range(max(n, len(ways))), n)]


def instruction(clip: Clip) -> str:
    """What happens as a step of a recipe."""
    return _ORDERED[clip.event].format(clip.called, colour=clip.colour)


def subtitles(clip: Clip, rng: random.Random) -> list[dict]:
    """What people say meanwhile: rows {"text", "start", "end"}. Who speaks is in no picture, the colour in no line."""
    first, second = clip.speakers
    looks = rng.choice(("look at {}!", "i like {}.", "what about {}?")).format(f"the {clip.subject.kind}")
    lines = [f" {first} : {looks}", f" {second} : the {clip.scene.background} background is nice."]
    if rng.random() < 0.5:
        lines.reverse()
    return [{"text": text, "start": 3.0 * i, "end": 3.0 * i + 2.5} for i, text in enumerate(lines)]


# ------------------------------------------------------------------------------------------------ asking
_ENDS = {
    "left": "it moves to the left", "right": "it moves to the right", "up": "it moves up", "down": "it moves down",
    "grows": "it grows", "shrinks": "it shrinks", "colour": "it changes its colour", "leaves": "it disappears",
}  # fmt: skip


def questions(clip: Clip, rng: random.Random, n: int, choices: int) -> list[tuple[str, list[str], int]]:
    """`n` different questions, at most 4: (question, `choices` answers, the number of the right one)."""
    found = {}
    while len(found) < n:
        found.setdefault((said := _question(clip, rng, choices))[0], said)
    return list(found.values())


def _question(clip, rng, choices):
    """About the event, a colour, or who speaks."""
    o, kind = clip.subject, rng.random()
    if kind < 0.4:
        text, right, pool = f"what happens to the {o.kind}?", _ENDS[clip.event], list(_ENDS.values())
    elif kind < 0.6:
        text, right, pool = f"which colour does the {o.kind} have in the beginning?", o.colour, list(COLOURS)
    elif kind < 0.8:
        text, right, pool = f"who speaks of the {o.kind}?", clip.speakers[0], list(PEOPLE)
    else:
        text, right, pool = "who speaks of the background?", clip.speakers[1], list(PEOPLE)
    answers = [right, *rng.sample([p for p in pool if p != right], choices - 1)]
    rng.shuffle(answers)
    return text, answers, answers.index(right)
