"""Frames of videos at a given rate: films by PyAV, animated pictures (GIF, WebP, APNG) by Pillow."""

import io
import os
from collections.abc import Iterator
from fractions import Fraction

from PIL import Image

from vlmx.data.transforms import BadImage, describe_failure, refuse_bomb, refuse_special_file
from vlmx.errors import UserError

FILMS = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv", ".ts", ".3gp", ".ogv")
ANIMATED = (".gif", ".webp", ".png", ".apng")
VIDEOS = FILMS + ANIMATED
RATE = 2 / 3  # frames a second, one every 1.5 seconds: as the VALUE benchmark's features
MAX_PIXELS = 20_000_000_000  # of all frames of an animated picture, about a minute: each is decoded for the next one
MAX_FRAMES = 10_000  # of one video, over 4 hours at RATE: a small file may claim to last for years


def frames(path: str | os.PathLike, rate: float) -> Iterator[Image.Image]:
    """RGB frames at the seconds 0, 1/rate, 2/rate, ...: what is on the screen then. Raises BadImage for what cannot be
    read and for more than MAX_FRAMES frames; UserError where films need PyAV and it is not installed."""
    step = Fraction(1) / Fraction(rate).limit_denominator(10**6)
    animated = os.fspath(path).lower().endswith(ANIMATED)
    shown = _animated(path) if animated else _film(path)
    try:
        for n, frame in enumerate(_at(shown, step)):
            if n == MAX_FRAMES:
                raise BadImage(f"over {MAX_FRAMES:,} frames at {rate:.3g} a second: cut the video, or lower the rate")
            yield frame
    except (UserError, BadImage):
        raise
    except FileNotFoundError:
        raise BadImage("no such file") from None
    except Exception as e:  # the decoders raise errors of many kinds on broken files
        raise BadImage(describe_failure(path, e)) from e


def shrink(frame: Image.Image, side: int = 336) -> Image.Image:
    """Return a frame that is to be looked at, at most `side` high and wide: all those of a film fit into the memory."""
    frame.thumbnail((side, side))
    return frame


def _at(shown, step):
    """Of (the second at which it is over, picture to be made) what is shown at the multiples of `step`."""
    t = Fraction(0)
    for end, picture in shown:
        while t < end:
            yield picture()
            t += step
    if not t:
        raise BadImage("no frames")


def _animated(path):
    refuse_special_file(path)
    with Image.open(path, formats=("GIF", "WEBP", "PNG")) as image:
        t, n = Fraction(0), getattr(image, "n_frames", 1)
        for i in range(n):
            image.seek(i)
            refuse_bomb(*image.size)  # of which a frame may make more
            if image.width * image.height * n > MAX_PIXELS:
                raise BadImage(f"{n:,} frames of {image.width} x {image.height}: over {MAX_PIXELS:,} pixels in all")
            image.load()  # before this a WebP does not know how long the frame is shown
            seconds = Fraction(image.info.get("duration") or 100).limit_denominator(1000) / 1000
            t += seconds
            yield t, lambda: image.convert("RGB")


class _File(io.FileIO):
    def seek(self, offset, whence=os.SEEK_SET):
        """Go to a position; -1 where there is none, as damaged files ask for: PyAV prints a traceback of exceptions."""
        try:
            return super().seek(offset, whence)
        except OSError:
            return -1


def _film(path):
    try:
        import av
    except ImportError:
        raise UserError("videos need PyAV: pip install 'vlmx[video]'") from None
    refuse_special_file(path)
    # From an open file, and nothing else: a path may read as a URL, and a playlist names further files and URLs.
    with _File(path) as file, av.open(file, options={"protocol_whitelist": "none"}) as container:
        if not container.streams.video:
            raise BadImage("no video in it")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        usual = 1 / Fraction(stream.average_rate or 25)
        first, waiting = None, None
        refuse_bomb(stream.width, stream.height)
        for frame in container.decode(stream):
            refuse_bomb(frame.width, frame.height)
            if frame.pts is None:
                t = Fraction(0) if waiting is None else waiting[0] + usual
            else:
                t = frame.pts * Fraction(stream.time_base)
                first = t if first is None else first
                t -= first
            if waiting is not None:
                yield t, waiting[1].to_image
            waiting = t, frame
        if waiting is not None:
            yield waiting[0] + usual, waiting[1].to_image
