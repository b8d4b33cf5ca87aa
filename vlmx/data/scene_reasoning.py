"""Questions about a scene that take several steps, and sentences about two scenes: GQA's and NLVR2's kinds.

Everything is read off the scenes' descriptions and drawn from a `random.Random`.
"""

import random
from collections.abc import Callable
from typing import NamedTuple

from vlmx.data.scene_text import SIDES, a, names, plural, scene, thing
from vlmx.data.scenes import BACKGROUNDS, COLOURS, FILLS, KINDS, WORDS, Object, Scene, relation

# How often GQA's "verify" and "logical", and a sentence that is tried for a pair, name the colour of a background: what
# tiny models learn to compare with a word in minutes. Of the sentences that are kept it is less: they must differ.
BACKGROUND = 0.85
WORDS_OF = {"colour": tuple(COLOURS), "kind": tuple(KINDS), "fill": tuple(FILLS)}


class Composed(NamedTuple):
    """A question, its answer, and GQA's name for its structure: query, verify, logical, choose or compare."""

    text: str
    answer: str
    structure: str


# ------------------------------------------------------------------------------------------------ one scene
def _beside(s, rng):
    """(an object, "left of the red circle", ...) such that it alone lies there, or None."""
    found = []
    for anchor in s.objects:
        called = names(anchor, s.objects)
        for side in SIDES if called else ():
            there = [o for o in s.objects if o is not anchor and relation(o, anchor) == side]
            if len(there) == 1:
                found.append((there[0], f"{side} {rng.choice(called)}"))
    return rng.choice(found) if found else None


def _query(s, rng):
    if (found := _beside(s, rng)) is None:
        return None
    o, where = found
    key = rng.choice(("colour", "kind", "fill"))
    text = {"colour": "what colour is the shape {}?", "kind": "which shape is {}?",
            "fill": "what pattern does the shape {} have?"}  # fmt: skip
    return text[key].format(where), getattr(o, key)


def _verify(s, rng):
    found, true = _beside(s, rng), rng.random() < 0.5
    if found is None or rng.random() < BACKGROUND:
        word = s.background if true else rng.choice([b for b in BACKGROUNDS if b != s.background])
        return f"is the background {word}?", "yes" if true else "no"
    o, where = found
    key = rng.choice(("colour", "kind"))
    word = getattr(o, key) if true else rng.choice([w for w in WORDS_OF[key] if w != getattr(o, key)])
    noun = word if key == "kind" else f"{word} shape"
    return f"is there {a(noun)} {where}?", "yes" if true else "no"


def _choose(s, rng):
    if (found := _beside(s, rng)) is None:
        return None
    o, where = found
    key = rng.choice(("colour", "fill"))
    words = [getattr(o, key), rng.choice([w for w in WORDS_OF[key] if w != getattr(o, key)])]
    rng.shuffle(words)
    return f"is the shape {where} {words[0]} or {words[1]}?", getattr(o, key)


def _compare(s, rng):
    if len(s.objects) < 2:
        return None
    one, other = rng.sample(s.objects, 2)
    called = [names(o, s.objects, "colour") for o in (one, other)]
    if not all(called) or (one.colour != other.colour and rng.random() < 0.6):  # most pairs are of two colours
        return None
    text = f"do {rng.choice(called[0])} and {rng.choice(called[1])} have the same colour?"
    return text, "yes" if one.colour == other.colour else "no"


def _logical(s, rng):
    if not s.objects or rng.random() < BACKGROUND:
        true, said = rng.random() < 0.5, rng.sample([b for b in BACKGROUNDS if b != s.background], 2)
        if true:
            said[rng.randrange(2)] = s.background
        return f"is the background {said[0]} or {said[1]}?", "yes" if true else "no"
    word, truths = rng.choice(("and", "or")), [rng.random() < 0.5 for _ in range(2)]
    if word == "and":  # as often yes as no
        truths[1] = truths[1] or truths[0]
    else:
        truths[1] = truths[1] and truths[0]
    said = [thing(s, rng, true) for true in truths]
    if said[0] == said[1]:
        return None
    rng.shuffle(said)
    true = all(truths) if word == "and" else any(truths)
    return f"is there {said[0]} {word} {said[1]}?", "yes" if true else "no"


STRUCTURES = {"query": _query, "verify": _verify, "choose": _choose, "compare": _compare, "logical": _logical}


def composed(s: Scene, rng: random.Random, n: int) -> list[Composed]:
    """Up to `n` questions of different structures about a scene, in random order."""
    found = []
    for structure in rng.sample(list(STRUCTURES), len(STRUCTURES)):
        if len(found) < n and (said := STRUCTURES[structure](s, rng)):
            found.append(Composed(*said, structure))
    return found


# ------------------------------------------------------------------------------------------------ two scenes
class Sentence(NamedTuple):
    """A sentence about two pictures, and of which pairs (left, right) it is true."""

    text: str
    true: Callable[[Scene, Scene], bool]


def _fits(o: Object, looks: dict) -> bool:
    return all(getattr(o, key) == word for key, word in looks.items())


def _looks(s, rng):
    """(what an object of the scene looks like, "red circle", "red circles")."""
    o = rng.choice(s.objects)
    keys = rng.choice((("kind",), ("colour",), ("colour", "kind"), ("fill",)))
    looks = {key: getattr(o, key) for key in keys}
    before = " ".join(looks[k] for k in ("fill", "colour") if k in looks)
    one = f"{before} {looks.get('kind', 'shape')}".strip()
    return looks, one, f"{before} {plural(looks.get('kind', 'shape'))}".strip()


def _number(s, looks):
    return sum(_fits(o, looks) for o in s.objects)


def sentence(left: Scene, right: Scene, rng: random.Random) -> Sentence:
    """A sentence suggested by a pair of scenes with objects, true of it or not."""
    colour = rng.choice((left.background, right.background, rng.choice(BACKGROUNDS)))
    if rng.random() < BACKGROUND:
        return rng.choice((
            Sentence(f"the left background is {colour}.", lambda x, y: x.background == colour),
            Sentence(f"the right background is {colour}.", lambda x, y: y.background == colour),
            Sentence(f"at least one background is {colour}.", lambda x, y: colour in (x.background, y.background)),
            Sentence(f"both backgrounds are {colour}.", lambda x, y: x.background == y.background == colour),
        ))  # fmt: skip
    looks, one, many = _looks(rng.choice((left, right)), rng)
    other, another, _ = _looks(right, rng)
    n, total = rng.randint(1, 3), rng.randint(2, 5)
    return rng.choice((
        Sentence(f"only one of the pictures shows {a(one)}.",
                 lambda x, y: bool(_number(x, looks)) != bool(_number(y, looks))),
        Sentence(f"at least one picture shows {a(one)}.", lambda x, y: _number(x, looks) + _number(y, looks) > 0),
        Sentence(f"both pictures show {a(one)}.", lambda x, y: min(_number(x, looks), _number(y, looks)) > 0),
        Sentence(f"there are {WORDS[total]} shapes in all.", lambda x, y: len(x.objects) + len(y.objects) == total),
        Sentence(f"there are no {many}.", lambda x, y: not _number(x, looks) + _number(y, looks)),
        Sentence(f"the left picture shows {a(one)} and the right one {a(another)}.",
                 lambda x, y: bool(_number(x, looks)) and bool(_number(y, other))),
        Sentence("the left picture shows more shapes than the right one.",
                 lambda x, y: len(x.objects) > len(y.objects)),
        Sentence("both pictures show the same number of shapes.", lambda x, y: len(x.objects) == len(y.objects)),
        Sentence(f"each picture shows exactly {WORDS[n]} shape{'s' * (n > 1)}.",
                 lambda x, y: len(x.objects) == len(y.objects) == n),
        Sentence(f"no background is {colour}.", lambda x, y: colour not in (x.background, y.background)),
        Sentence("both backgrounds have the same colour.", lambda x, y: x.background == y.background),
    ))  # fmt: skip


def with_objects(rng: random.Random) -> Scene:
    """A scene with objects, not with a glyph."""
    while not (found := scene(rng)).objects:
        pass
    return found


def dividing(pairs, rng: random.Random, n: int, tries: int = 200) -> list[Sentence]:
    """Up to `n` sentences that are true of one of two pairs of scenes, and not of the other, out of `tries`."""
    found = {}
    for _ in range(tries):
        said = sentence(*rng.choice(pairs), rng)
        if len(found) < n and said.true(*pairs[0]) != said.true(*pairs[1]):
            found[said.text] = said
    return list(found.values())
