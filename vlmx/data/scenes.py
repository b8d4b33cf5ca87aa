"""Scenes: a procedural world of images and text.

A `Scene` is a small description; everything else is read off it: `draw` its image, `caption` its text, and class
labels, questions or clips by whoever needs them. Whatever a reader wants to say must stand in the description, never
only in the pixels. Coordinates are integers and every draw comes from `random.Random`: a seed names the same scene
anywhere.
"""

import functools
import math
import os
import random
from typing import NamedTuple

import matplotlib
import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

SIDE = 64  # pixels of an image's side
FINE = 4  # drawn this many times larger, then reduced: antialiasing

COLOURS = {
    "red": (214, 40, 40), "orange": (242, 133, 0), "yellow": (245, 215, 40), "green": (40, 160, 60),
    "teal": (20, 150, 150), "blue": (40, 80, 210), "purple": (125, 50, 170), "pink": (245, 130, 180),
    "brown": (125, 75, 35), "grey": (128, 128, 128), "black": (20, 20, 20), "white": (240, 240, 240),
}  # fmt: skip
BACKGROUNDS = ("white", "black", "grey", "brown", "green", "blue", "yellow", "pink")
DIGITS = "0123456789"
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
LOOKS = ("printed", "handwritten", "pixelated")
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


class Glyph(NamedTuple):
    """A digit or a letter in a typeface; `look` says how it was put down, `seed` names the hand's wobble."""

    char: str
    face: str
    look: str
    colour: str
    rgb: tuple[int, int, int]
    seed: int


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
            put.append(o._replace(radius=r, x=rng.randint(r + 2, SIDE - r - 3), y=rng.randint(r + 2, SIDE - r - 3)))
        gaps = [math.dist((a.x, a.y), (b.x, b.y)) - a.radius - b.radius for i, a in enumerate(put) for b in put[:i]]
        if min(gaps, default=1) > 0:
            break
    return tuple(put)


def a_glyph(rng: random.Random, char: str, colour: str = "white", look: str | None = None) -> Glyph:
    return Glyph(char, rng.choice(faces()), look or rng.choice(LOOKS), colour, _shade(rng, colour), rng.getrandbits(32))


def scene_of(rng: random.Random, things, background=None) -> Scene:
    """A scene around `things`: a glyph, or a list of objects, which are placed."""
    glyph, objects = (things, ()) if isinstance(things, Glyph) else (None, place(rng, things))
    taken = {glyph.colour} if glyph else {o.colour for o in objects}
    background = background or rng.choice([b for b in BACKGROUNDS if b not in taken])
    return Scene(objects, glyph, background, _shade(rng, background, 12), rng.choice((0, 0, 4, 8)), rng.getrandbits(32))


def sample(rng: random.Random, glyphs: float = 0.4) -> Scene:
    """A scene of the world: with probability `glyphs` a digit or letter, else one to three objects."""
    if rng.random() < glyphs:
        char = rng.choice(DIGITS) if rng.random() < 0.85 else rng.choice(LETTERS)
        if rng.random() < 0.7:  # bright on dark, as scanned handwriting often comes
            return scene_of(rng, a_glyph(rng, char), "black")
        return scene_of(rng, a_glyph(rng, char, rng.choice(list(COLOURS))))
    fill = lambda: "solid" if rng.random() < 0.3 else None
    n = rng.choice((1, 1, 1, 2, 2, 3))
    return scene_of(rng, [an_object(rng, fill=fill()) for _ in range(n)])


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


@functools.cache
def faces() -> tuple[str, ...]:
    """Typefaces that matplotlib ships and that have plain digits and letters; "" is Pillow's own."""
    families = {
        "DejaVuSans": ("", "-Bold", "-Oblique", "-BoldOblique"),
        "DejaVuSansMono": ("", "-Bold", "-Oblique", "-BoldOblique"),
        "DejaVuSerif": ("", "-Bold", "-Italic", "-BoldItalic"),
        "STIXGeneral": ("", "Bol", "Italic", "BolIta"),
    }
    names = [family + style for family, styles in families.items() for style in styles]
    return (*names, "cmb10", "cmmi10", "cmr10", "cmss10", "cmti10", "cmtt10", "")


@functools.cache
def _letter(char, face):
    """The bare character, white on black, "L" 96x96."""
    if face:
        path = os.path.join(matplotlib.get_data_path(), "fonts", "ttf", face + ".ttf")
        font = ImageFont.truetype(path, 72, layout_engine=ImageFont.Layout.BASIC)
    else:
        font = ImageFont.load_default(72)
    image = Image.new("L", (96, 96))
    left, top, right, bottom = font.getbbox(char)
    at = (48 - (left + right) // 2, 48 - (top + bottom) // 2)
    ImageDraw.Draw(image).text(at, char, font=font, fill=255)
    return image


@functools.cache
def _skeleton(char, face):
    """The character's middle line, thinned by Zhang and Suen's rule (Communications of the ACM 27, 1984)."""
    ink = np.asarray(_letter(char, face)) > 127
    while True:
        before = ink.sum()
        for step in (0, 1):
            n = [np.roll(ink, (-dy, -dx), (0, 1)) for dy, dx in
                 ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))]  # fmt: skip
            count = sum(k.astype(int) for k in n)
            rises = sum((~a & b).astype(int) for a, b in zip(n, n[1:] + n[:1]))
            p2, p4, p6, p8 = n[0], n[2], n[4], n[6]
            edge = ~(p2 & p4 & p6) & ~(p4 & p6 & p8) if step == 0 else ~(p2 & p4 & p8) & ~(p2 & p6 & p8)
            ink = ink & ~(ink & (count >= 2) & (count <= 6) & (rises == 1) & edge)
        if ink.sum() == before:
            return Image.fromarray(np.uint8(ink) * 255)


@functools.cache
def _pen(char, face, weight):
    """The character in strokes of one weight."""
    return _skeleton(char, face).filter(ImageFilter.MaxFilter(weight))


def _wobble(image, rng, cells=4, swing=7):
    """Elastic distortion: a grid of quadrilaterals whose corners are displaced at random."""
    side, step = image.width, image.width // cells
    at = {(i, j): (i * step + rng.randint(-swing, swing), j * step + rng.randint(-swing, swing))
          for i in range(cells + 1) for j in range(cells + 1)}  # fmt: skip
    quads = [((i * step, j * step, (i + 1) * step, (j + 1) * step),
              (*at[i, j], *at[i, j + 1], *at[i + 1, j + 1], *at[i + 1, j]))
             for i in range(cells) for j in range(cells)]  # fmt: skip
    return image.transform((side, side), Image.Transform.MESH, quads, Image.Resampling.BILINEAR)


def _hand(glyph, rng):
    """The glyph as a hand would put it down: wobble, slant, turn, weight of the pen; "L" 96x96."""
    if glyph.look != "printed" and rng.random() < 0.8:
        ink = _pen(glyph.char, glyph.face, rng.choice((7, 9, 9, 11)))
    else:
        ink = _letter(glyph.char, glyph.face).filter(
            rng.choice((ImageFilter.MaxFilter(3), ImageFilter.MaxFilter(5), ImageFilter.SMOOTH, ImageFilter.BLUR))
        )
    if glyph.look != "printed":
        ink = _wobble(ink, rng, rng.choice((2, 3, 4)), rng.randint(3, 8))
    shear, turn = rng.randint(-35, 35) / 100, math.radians(rng.randint(-12, 12))
    c, s = math.cos(turn), math.sin(turn)
    a, b, d, e = c, -s + shear, s, c
    ink = ink.transform((96, 96), Image.Transform.AFFINE, (a, b, 48 - 48 * (a + b), d, e, 48 - 48 * (d + e)),
                        Image.Resampling.BILINEAR)  # fmt: skip
    return ink.filter(ImageFilter.GaussianBlur(rng.choice((1, 2, 2, 3)))).point(lambda v: 255 if v > 80 else 0)


def _glyph_mask(glyph):
    """Coverage of the glyph, "L" 64x64. "pixelated": counts of ink in 8x8 cells, as scanned forms are stored."""
    rng = random.Random(glyph.seed)
    ink = _hand(glyph, rng)
    ink = ink.crop(ink.getbbox() or (0, 0, 96, 96))
    high = 64 if glyph.look == "pixelated" else rng.randint(26, 58)
    wide = min(54, max(high // 5, high * ink.width * rng.randint(75, 115) // (ink.height * 100)))
    ink = ink.resize((wide, high), Image.Resampling.BOX)
    sheet = Image.new("L", (SIDE, SIDE))
    slack = (SIDE - wide, SIDE - high)
    centred = glyph.look == "pixelated" or rng.random() < 0.5
    reach = [min(s // 2, 3) if centred else s // 2 for s in slack]
    sheet.paste(ink, tuple(s // 2 + rng.randint(-r, r) for s, r in zip(slack, reach)))
    if glyph.look == "pixelated":
        sheet = sheet.resize((8, 8), Image.Resampling.BOX).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    elif rng.random() < 0.3:
        low = rng.choice((12, 16, 24))
        sheet = sheet.resize((low, low), Image.Resampling.BOX).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return sheet


def draw(scene: Scene) -> np.ndarray:
    """The scene's image, uint8 [64, 64, 3]."""
    if scene.glyph:
        image = Image.new("RGB", (SIDE, SIDE), scene.rgb)
        image.paste(scene.glyph.rgb, mask=_glyph_mask(scene.glyph))
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
    words += [o.fill] if rng.random() < 0.1 else []
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
