"""What is said about scenes: questions with their answers, statements, and passages to pre-train language models on.

Everything is read off the scene's description and drawn from a `random.Random`. Answers are one or two words.
"""

import random
from typing import NamedTuple

from vlmx.data import scenes
from vlmx.data.scenes import BACKGROUNDS, COLOURS, FILLS, KINDS, WORDS, Object, Scene, place_word, relation

SIDES = ("left of", "right of", "above", "below")


class Question(NamedTuple):
    """A question about a scene; `kind` is one of KINDS_OF_QUESTION."""

    text: str
    answer: str
    kind: str


def scene(rng: random.Random) -> Scene:
    """A scene worth asking about: mostly several objects, sometimes a digit."""
    return scenes.sample(rng, glyphs=0.15, counts=(1, 1, 2, 2, 3))


def plural(noun):
    """The plural of a kind of thing."""
    return noun + ("es" if noun.endswith("s") else "s")


def a(words):
    """The words behind their article."""
    return ("an " if words[0] in "aeio" else "a ") + words


# -------------------------------------------------------------------- naming an object
def names(o: Object, objects, without="") -> list[str]:
    """Ways to speak of one object that mean no other of them, without giving away its attribute `without`."""
    others = [x for x in objects if x is not o]
    if not others:
        return ["the shape", "the object", "it"]

    def alone(*keys):
        return all(any(getattr(x, k) != getattr(o, k) for k in keys) for x in others)

    looks = [k for k in ("colour", "fill") if k != without]
    found = [f"the {getattr(o, k)} {noun}" for k in looks if alone(k) for noun in ("shape", "object")]
    if without != "kind":
        found += [f"the {o.kind}"] if alone("kind") else []
        found += [f"the {getattr(o, k)} {o.kind}" for k in looks if alone(k, "kind")]
    return found


def _pick(s, rng, without=""):
    """(an object that can be spoken of, a way to do so), or None."""
    for o in rng.sample(s.objects, len(s.objects)):
        if found := names(o, s.objects, without):
            return o, rng.choice(found)
    return None


# -------------------------------------------------------------------- questions: (text, answer), None: cannot be asked
def _attribute(which, wordings):
    def ask(s, rng):
        found = _pick(s, rng, which)
        if found is None:
            return None
        o, name = found
        return rng.choice(wordings).format(name), getattr(o, which)

    return ask


_colour = _attribute("colour", ("what colour is {}?", "what is the colour of {}?", "which colour does {} have?"))
_kind = _attribute("kind", ("what shape is {}?", "what kind of shape is {}?", "which shape does {} have?"))
_any_fill = _attribute("fill", ("how is {} filled?", "what pattern does {} have?", "what is the pattern of {}?"))
_size = _attribute("size", ("how large is {}?", "what size is {}?", "what is the size of {}?"))


def _fill(s, rng):
    found = _any_fill(s, rng)
    return None if found and found[1] == "solid" and rng.random() < 0.8 else found  # most things are solid


def _count(s, rng):
    if not s.objects or len(s.objects) == 1 and rng.random() < 0.6:
        return None
    wordings = ("how many {} are there?", "how many {} can be seen?", "how many {} does the picture show?")
    if rng.random() < 0.5 or len(s.objects) == 1:
        return rng.choice(wordings).format(rng.choice(("shapes", "objects"))), WORDS[len(s.objects)]
    o, which = rng.choice(s.objects), rng.choice(("kind", "colour"))
    word = getattr(o, which)
    noun = plural(word) if which == "kind" else f"{word} shapes"
    return rng.choice(wordings).format(noun), WORDS[sum(getattr(x, which) == word for x in s.objects)]


def _exists(s, rng):
    true = rng.random() < 0.5
    wordings = ("is there {}?", "is there {} in the picture?", "can you see {}?", "does the picture show {}?")
    return rng.choice(wordings).format(thing(s, rng, true)), "yes" if true else "no"


def _two(s, rng):
    """Two objects that can be spoken of, with their names, or None."""
    named = [(o, rng.choice(found)) for o in s.objects if (found := names(o, s.objects))]
    return rng.sample(named, 2) if len(named) > 1 else None


def _where(s, rng):
    if (two := _two(s, rng)) is None:
        return None
    (one, first), (other, second) = two
    wordings = ("where is {} seen from {}?", "where does {} lie, seen from {}?", "where is {}, compared with {}?")
    return rng.choice(wordings).format(first, second), relation(one, other)


def _is_where(s, rng):
    if (two := _two(s, rng)) is None:
        return None
    (one, first), (other, second) = two
    said = right = relation(one, other)
    true = rng.random() < 0.5
    if not true:
        said = rng.choice([side for side in SIDES if side != right])
    return rng.choice(("is {} {} {}?", "does {} lie {} {}?")).format(first, said, second), "yes" if true else "no"


def _who_is_where(s, rng):
    if (found := _pick(s, rng)) is None:
        return None
    o, name = found
    sides = {}
    for x in s.objects:
        if x is not o:
            sides.setdefault(relation(x, o), []).append(x)
    sides = sorted((side, there[0]) for side, there in sides.items() if len(there) == 1)
    if not sides:
        return None
    side, x = rng.choice(sides)
    return rng.choice(("which shape is {} {}?", "what is {} {}?", "which shape lies {} {}?")).format(side, name), x.kind


def _place(s, rng):
    found = _pick(s, rng)
    if found is None or not (side := place_word(found[0])):
        return None
    wordings = ("where in the picture is {}?", "in which part of the picture is {}?", "at which side is {}?")
    return rng.choice(wordings).format(found[1]), side


def _background(s, rng):
    if s.glyph and s.background == "black":  # nearly all are
        return None
    wordings = ("what colour is the background?", "what is the colour of the background?", "what is behind it?")
    return rng.choice(wordings), s.background


def _digit(s, rng):
    if not (s.glyph and s.glyph.char.isdigit()):
        return None
    wordings = ("which digit is this?", "what number is shown?", "which digit can be seen?", "what digit is it?")
    return rng.choice(wordings), WORDS[int(s.glyph.char)]


def _look(s, rng):
    if s.glyph is None:
        return None
    what = "digit" if s.glyph.char.isdigit() else "letter"
    return rng.choice(("how was the {} made?", "what does the {} look like?")).format(what), s.glyph.look


KINDS_OF_QUESTION = {
    "colour": _colour, "kind": _kind, "fill": _fill, "size": _size, "count": _count, "exists": _exists,
    "where": _where, "is_where": _is_where, "who_is_where": _who_is_where, "place": _place, "background": _background,
    "digit": _digit, "look": _look,
}  # fmt: skip


def questions(s: Scene, rng: random.Random, n: int) -> list[Question]:
    """Up to `n` questions of different kinds about a scene, in random order."""
    found = []
    for kind in rng.sample(list(KINDS_OF_QUESTION), len(KINDS_OF_QUESTION)):
        said = KINDS_OF_QUESTION[kind](s, rng) if len(found) < n else None
        if said:
            found.append(Question(*said, kind))
    return found


# -------------------------------------------------------------------- statements
def thing(s: Scene, rng: random.Random, true: bool = True) -> str:
    """Something that the scene shows, "a red circle"; or, not `true`, something like it that it does not show."""
    if s.glyph:
        digit = s.glyph.char.isdigit()
        others = [d for d in range(10) if not digit or d != int(s.glyph.char)]
        if digit and true:
            return f"the digit {WORDS[int(s.glyph.char)]}"
        return f"the letter {s.glyph.char}" if true else f"the digit {WORDS[rng.choice(others)]}"
    o = rng.choice(s.objects)
    said = {"fill": o.fill, "colour": o.colour, "kind": o.kind}
    for k in rng.choice(((), ("fill",), ("fill",), ("colour",), ("fill", "kind"))):
        said[k] = ""
    if not true:
        wrong = rng.choice([k for k, word in said.items() if word])
        said[wrong] = rng.choice(_absent(s, said, wrong))
    return a(" ".join(filter(None, (said["fill"], said["colour"], said["kind"] or "shape"))))


def _absent(s, said, which):
    """Words for the attribute `which` with which no object of the scene is as `said`."""
    rest = {k: word for k, word in said.items() if word and k != which}
    alike = {getattr(x, which) for x in s.objects if all(getattr(x, k) == word for k, word in rest.items())}
    words = {"kind": KINDS, "colour": COLOURS, "fill": FILLS}[which]
    return [word for word in words if word not in alike]


def statement(s: Scene, rng: random.Random, true: bool = True) -> str:
    """A sentence that is true of the scene, or is not."""
    if two := _two(s, rng) if rng.random() < 0.4 else None:
        (one, first), (other, second) = two
        right = relation(one, other)
        return f"{first} is {right if true else rng.choice([x for x in SIDES if x != right])} {second}."
    if not s.glyph and rng.random() < 0.2:
        other = rng.choice([b for b in BACKGROUNDS if b != s.background])
        return f"the background is {s.background if true else other}."
    return rng.choice(("there is {}.", "the picture shows {}.", "{} can be seen.")).format(thing(s, rng, true))


# -------------------------------------------------------------------- text to pre-train on
def passage(s: Scene, rng: random.Random) -> str:
    """One to five sentences about a scene: captions, statements, questions with their answers; all of them true."""
    said = [scenes.caption(s, rng) for _ in range(rng.randint(1, 2))]
    said += [statement(s, rng) for _ in range(rng.randint(0, 1))]
    said += [f"{q.text} {q.answer}." for q in questions(s, rng, rng.randint(0, 2))]
    rng.shuffle(said)
    return " ".join(x if x[-1] in ".?" else x + "." for x in said)
