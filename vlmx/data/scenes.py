"""Scenes: a procedural world of images and text.

A `Scene` is a small description; everything else is read off it: `draw` its image, `caption` its text, and class
labels, questions or clips by whoever needs them. Whatever a reader wants to say must stand in the description, never
only in the pixels. Coordinates are integers and every draw comes from `random.Random`: a seed names the same scene
anywhere.
"""

import math
import random
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from vlmx.data.glyphs import DIGITS, LETTERS, LOOKS, Glyph, coverage, faces

SIDE = 64  # pixels of an image's side
FINE = 4  # drawn this many times larger, then reduced: antialiasing

COLOURS = {
    "red": (214, 40, 40), "orange": (242, 133, 0), "yellow": (245, 215, 40), "green": (40, 160, 60),
    "teal": (20, 150, 150), "blue": (40, 80, 210), "purple": (125, 50, 170), "pink": (245, 130, 180),
    "brown": (125, 75, 35), "grey": (128, 128, 128), "black": (20, 20, 20), "white": (240, 240, 240),
}  # fmt: skip
BACKGROUNDS = ("white", "black", "grey", "brown", "green", "blue", "yellow", "pink")
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIZES = ("small", "medium", "large")


class Object(NamedTuple):
    """One thing: centre `x`, `y` and `radius` in pixels, `turn` in degrees, `rgb` the shade its colour came out as."""

    kind: str
    colour: str
    fill: str
    x: int
    y: int
    radius: int
    turn: int
    rgb: tuple[int, int, int]
    ground: tuple[int, int, int]  # the fill's second shade
    period: int  # of the fill's pattern, in pixels
    slope: int  # of the fill's pattern, in degrees

    @property
    def size(self) -> str:
        return SIZES[(self.radius >= 13) + (self.radius >= 19)]


class Scene(NamedTuple):
    """One to three objects, or one glyph, before a background. `grain` is the strength of the sensor noise."""

    objects: tuple[Object, ...]
    glyph: Glyph | None
    background: str
    rgb: tuple[int, int, int]
    grain: int
    seed: int


# ------------------------------------------------------------------------------------------------ shapes and fills


def _ring(n, radius=1.0, phase=-90.0):
    return [(radius * math.cos(math.radians(phase + 360 * i / n)), radius * math.sin(math.radians(phase + 360 * i / n)))
            for i in range(n)]  # fmt: skip


def _star(points, inner):
    outer, hollow = _ring(points), _ring(points, inner, -90 + 180 / points)
    return [p for pair in zip(outer, hollow) for p in pair]


def _heart():
    turns = [2 * math.pi * i / 36 for i in range(36)]
    return [(math.sin(t) ** 3, -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16)
            for t in turns]  # fmt: skip


_CROSS = [(-.35, -1), (.35, -1), (.35, -.35), (1, -.35), (1, .35), (.35, .35), (.35, 1), (-.35, 1), (-.35, .35),
          (-1, .35), (-1, -.35), (-.35, -.35)]  # fmt: skip
_ARROW = [(-1, -0.3), (0.1, -0.3), (0.1, -0.8), (1, 0), (0.1, 0.8), (0.1, 0.3), (-1, 0.3)]

# kind -> (outlines, holes), in units of the radius
KINDS = {
    "circle": ([_ring(40)], []),
    "square": ([_ring(4, 1.15, -45)], []),
    "triangle": ([_ring(3, 1.1)], []),
    "diamond": ([[(0, -1.1), (.65, 0), (0, 1.1), (-.65, 0)]], []),
    "hexagon": ([_ring(6)], []),
    "oval": ([[(x, .55 * y) for x, y in _ring(40)]], []),
    "bar": ([[(-1.1, -.3), (1.1, -.3), (1.1, .3), (-1.1, .3)]], []),
    "star": ([_star(5, .42)], []),
    "heart": ([_heart()], []),
    "cross": ([_CROSS], []),
    "arrow": ([_ARROW], []),
    "ring": ([_ring(40)], [_ring(40, .55)]),
    "crescent": ([_ring(40)], [[(x + .45, y - .1) for x, y in _ring(40, .85)]]),
}  # fmt: skip

# fill -> pattern of fine coordinates (u, v) and period p: where the object's own colour shows; None: no pattern
FILLS = {
    "solid": None,
    "outlined": None,
    "striped": lambda u, v, p: v % p < p // 2,
    "dotted": lambda u, v, p: (u % p - p // 2) ** 2 + (v % p - p // 2) ** 2 < (p * p) // 9,
    "checkered": lambda u, v, p: (u * 2 // p + v * 2 // p) % 2 == 0,
    "gridded": lambda u, v, p: (u % p < p // 4) | (v % p < p // 4),
    "zigzag": lambda u, v, p: (v + abs(u % (2 * p) - p)) % p < p // 2,
    "bricked": lambda u, v, p: ~((v % p < p // 5) | ((u + v // p % 2 * p) % (2 * p) < p // 5)),
    "ringed": lambda u, v, p: np.sqrt(u * u + v * v).astype(int) % p < p // 2,
    "halved": lambda u, v, p: v < 0,
}


# ------------------------------------------------------------------------------------------------ sampling


def _shade(rng, colour, spread=22):
    return tuple(min(255, max(0, c + rng.randint(-spread, spread))) for c in COLOURS[colour])


def an_object(rng: random.Random, kind=None, colour=None, fill=None, radius=(10, 26)) -> Object:
    """An object with what is given fixed and all else drawn; centred, see `place`."""
    colour = colour or rng.choice(list(COLOURS))
    rgb = _shade(rng, colour)
    end, share = rng.choice(((255, 75), (255, 60), (0, 70))), rng.randint(-8, 8)
    if sum(rgb) < 240 or sum(rgb) > 600:  # the pattern must be visible on very dark and very light colours
        end = (255, 70) if sum(rgb) < 240 else (0, 60)
    ground = tuple((c * (100 - end[1] - share) + end[0] * (end[1] + share)) // 100 for c in rgb)
    return Object(
        kind or rng.choice(list(KINDS)), colour, fill or rng.choice(list(FILLS)), SIDE // 2, SIDE // 2,
        rng.randint(*radius), rng.randint(-20, 20), rgb, ground, rng.randint(6, 11), rng.choice((0, 90, 45, 135)),
    )  # fmt: skip


def place(rng: random.Random, objects: list[Object]) -> tuple[Object, ...]:
    """The objects shrunk and moved until they fit beside each other."""
    limit = {1: 26, 2: 17, 3: 14}[len(objects)]
    for attempt in range(400):
        limit -= attempt % 20 == 19 and limit > 7
        put = []
        for o in objects:
            r = min(o.radius, limit)
            reach = (
                SIDE // 2 - r - 3 if len(objects) > 1 else min(12, SIDE // 2 - r - 3)
            )  # one alone is near the middle
            x, y = (SIDE // 2 + rng.randint(-reach, reach) for _ in "xy")
            put.append(o._replace(radius=r, x=x, y=y))
        gaps = [math.dist((a.x, a.y), (b.x, b.y)) - a.radius - b.radius for i, a in enumerate(put) for b in put[:i]]
        if min(gaps, default=1) > 0:
            break
    return tuple(put)


def a_glyph(rng: random.Random, char: str, colour: str = "white", look: str | None = None) -> Glyph:
    """`char` in a typeface, pose and stroke drawn from `rng`."""
    return Glyph(
        char,
        rng.choice(faces()),
        look or rng.choice((*LOOKS, LOOKS[2])),
        colour,
        _shade(rng, colour),
        rng.getrandbits(32),
    )


def scene_of(rng: random.Random, things, background=None) -> Scene:
    """A scene around `things`: a glyph, or a list of objects, which are placed."""
    glyph, objects = (things, ()) if isinstance(things, Glyph) else (None, place(rng, things))
    taken = {glyph.colour} if glyph else {o.colour for o in objects}
    background = background or rng.choice([b for b in BACKGROUNDS if b not in taken])
    return Scene(objects, glyph, background, _shade(rng, background, 12), rng.choice((0, 0, 4, 8)), rng.getrandbits(32))


def sample(
    rng: random.Random, glyphs: float = 0.4, silhouettes: float = 0.0, counts: tuple = (1, 1, 1, 1, 1, 2, 3)
) -> Scene:
    """A scene of the world, one to three objects; or, with these probabilities, a glyph, or a white object on black.

    counts: from which the number of objects is drawn."""
    kind = rng.random()
    if kind < glyphs:
        char = rng.choice(DIGITS) if rng.random() < 0.95 else rng.choice(LETTERS)
        if rng.random() < 0.9:  # bright on dark, as scanned handwriting often comes
            return scene_of(rng, a_glyph(rng, char), "black")
        return scene_of(rng, a_glyph(rng, char, rng.choice(list(COLOURS))))
    alone = kind < glyphs + silhouettes
    things = []
    for _ in range(1 if alone else rng.choice(counts)):
        fill = "solid" if rng.random() < 0.4 else None
        things.append(an_object(rng, colour="white" if alone else None, fill=fill, radius=(13, 27)))
    return scene_of(rng, things, "black" if alone else None)


# ------------------------------------------------------------------------------------------------ drawing


def _polygon(draw, points, o, scale, value):
    c, s, r = math.cos(math.radians(o.turn)), math.sin(math.radians(o.turn)), scale * o.radius * FINE
    turned = [(o.x * FINE + r * (c * x - s * y), o.y * FINE + r * (s * x + c * y)) for x, y in points]
    draw.polygon([(round(x), round(y)) for x, y in turned], fill=value)


def mask(o: Object, scale: float = 1.0) -> Image.Image:
    """Where the object is: "L", FINE times enlarged."""
    image = Image.new("L", (SIDE * FINE, SIDE * FINE))
    draw = ImageDraw.Draw(image)
    outlines, holes = KINDS[o.kind]
    for points in outlines:
        _polygon(draw, points, o, scale, 255)
    for points in holes:
        _polygon(draw, points, o, 2 - scale if o.kind == "ring" else 1.0, 0)
    return image


def _paint(canvas, o):
    shape, r = mask(o), int(o.radius * FINE * 1.3)
    if o.fill == "outlined":
        canvas.paste(o.rgb, mask=shape)
        return canvas.paste(o.ground, mask=mask(o, 0.72))
    box = (o.x * FINE - r, o.y * FINE - r, o.x * FINE + r, o.y * FINE + r)
    if o.fill == "solid":
        return canvas.paste(o.rgb, mask=shape)
    x = np.arange(-r, r, dtype=np.int32)
    y = x[:, None]
    c, s = round(256 * math.cos(math.radians(o.slope))), round(256 * math.sin(math.radians(o.slope)))
    marks = FILLS[o.fill]((x * c + y * s) >> 8, (y * c - x * s) >> 8, o.period * FINE)
    shape = shape.crop(box)
    canvas.paste(o.ground, box[:2], shape)
    canvas.paste(o.rgb, box[:2], ImageChops.multiply(shape, Image.fromarray(marks.astype(np.uint8) * 255)))


def draw(scene: Scene) -> np.ndarray:
    """The scene's image, uint8 [64, 64, 3]."""
    if scene.glyph:
        image = Image.new("RGB", (SIDE, SIDE), scene.rgb)
        image.paste(scene.glyph.rgb, mask=coverage(scene.glyph, SIDE))
    else:
        image = Image.new("RGB", (SIDE * FINE, SIDE * FINE), scene.rgb)
        for o in scene.objects:
            _paint(image, o)
        image = image.reduce(FINE)
    pixels = np.asarray(image)
    return grainy(pixels, scene.grain, scene.seed) if scene.grain else pixels


def grainy(pixels: np.ndarray, strength: int, seed: int) -> np.ndarray:
    """Sensor noise: uniform integers in +-3 strength."""
    noise = np.random.Generator(np.random.PCG64(seed)).integers(-3 * strength, 3 * strength + 1, pixels.shape)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)


# ------------------------------------------------------------------------------------------------ saying

PHOTO = (
    "a photo of {}.", "a picture of {}.", "an image of {}.", "a drawing of {}", "{}", "{}.", "there is {}.",
    "this is {}.",
)  # fmt: skip


def _a(phrase):
    return ("an " if phrase[0] in "aeio" else "a ") + phrase


def phrase(o: Object, rng: random.Random) -> str:
    """The object in words: mostly colour and kind, sometimes size, rarely its fill."""
    words = [o.size] if rng.random() < 0.2 else []
    words += [o.fill] if rng.random() < 0.45 else []
    words += [o.colour] if rng.random() < 0.9 else []
    return _a(" ".join([*words, o.kind if rng.random() < 0.92 else "shape"]))


def relation(a: Object, b: Object) -> str:
    """Where `a` is, seen from `b`, along the axis on which they are further apart."""
    if abs(a.x - b.x) >= abs(a.y - b.y):
        return "left of" if a.x < b.x else "right of"
    return "above" if a.y < b.y else "below"


def place_word(o: Object) -> str | None:
    """Where an object lies in the picture, if it lies clearly off the middle."""
    dx, dy = o.x - SIDE // 2, o.y - SIDE // 2
    if max(abs(dx), abs(dy)) < 10:
        return None
    return ("left" if dx < 0 else "right") if abs(dx) >= abs(dy) else ("top" if dy < 0 else "bottom")


def _say_glyph(g, rng):
    name = WORDS[int(g.char)] if g.char.isdigit() and rng.random() < 0.7 else g.char
    noun = rng.choice(("digit ", "number ", "")) if g.char.isdigit() else "letter "
    if rng.random() < 0.25:
        return f"{_a(g.look)} {noun}{name}"
    if rng.random() < 0.25:
        return f"{_a(g.colour)} {noun}{name}"
    return f"the {noun}{name}" if noun else name


def caption(scene: Scene, rng: random.Random) -> str:
    """One true sentence about the scene, in one of many wordings; it leaves out much, as captions do."""
    if scene.glyph:
        return rng.choice(PHOTO).format(_say_glyph(scene.glyph, rng) + _behind(scene, rng))
    said = [phrase(o, rng) for o in scene.objects]
    if len(said) == 1:
        where = place_word(scene.objects[0])
        if where and rng.random() < 0.2:
            said[0] += rng.choice((f" at the {where}", f" on the {where} side"))
        return rng.choice(PHOTO).format(said[0] + _behind(scene, rng))
    if rng.random() < 0.15:
        kinds = {o.kind for o in scene.objects}
        noun = f"{kinds.pop()}s" if len(kinds) == 1 else "shapes"
        return f"{WORDS[len(said)]} {noun.replace('crosss', 'crosses')}" + _behind(scene, rng)
    if rng.random() < 0.4:
        i, j = rng.sample(range(len(said)), 2)
        return f"{said[i]} {relation(scene.objects[i], scene.objects[j])} {said[j]}" + _behind(scene, rng)
    rng.shuffle(said)
    return rng.choice(PHOTO).format(", ".join(said[:-1]) + " and " + said[-1] + _behind(scene, rng))


def _behind(scene, rng):
    if rng.random() > 0.15:
        return ""
    return f" on a {scene.background} background" if rng.random() < 0.7 else f" before {scene.background}"
