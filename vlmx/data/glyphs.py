"""Digits and letters as typefaces have them and as a hand would put them down: only typefaces are known here."""

import functools
import math
import os
import random
from typing import NamedTuple

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

DIGITS = "0123456789"
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
LOOKS = ("printed", "handwritten", "pixelated")


class Glyph(NamedTuple):
    """A digit or a letter in a typeface; `look` says how it was put down, `seed` names the hand's wobble."""

    char: str
    face: str
    look: str
    colour: str
    rgb: tuple[int, int, int]
    seed: int


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


def coverage(glyph: Glyph, side: int) -> Image.Image:
    """Coverage of the glyph, "L" side x side. "pixelated": counts of ink in 8x8 cells, as scanned forms are stored."""
    rng = random.Random(glyph.seed)
    ink = _hand(glyph, rng)
    ink = ink.crop(ink.getbbox() or (0, 0, 96, 96))
    high = 64 if glyph.look == "pixelated" else rng.randint(26, 58)
    wide = min(54, max(high // 5, high * ink.width * rng.randint(75, 115) // (ink.height * 100)))
    ink = ink.resize((wide, high), Image.Resampling.BOX)
    sheet = Image.new("L", (side, side))
    slack = (side - wide, side - high)
    centred = glyph.look == "pixelated" or rng.random() < 0.5
    reach = [min(s // 2, 3) if centred else s // 2 for s in slack]
    sheet.paste(ink, tuple(s // 2 + rng.randint(-r, r) for s, r in zip(slack, reach)))
    if glyph.look == "pixelated":
        sheet = sheet.resize((8, 8), Image.Resampling.BOX).resize((side, side), Image.Resampling.BICUBIC)
    elif rng.random() < 0.3:
        low = rng.choice((12, 16, 24))
        sheet = sheet.resize((low, low), Image.Resampling.BOX).resize((side, side), Image.Resampling.BICUBIC)
    return sheet
