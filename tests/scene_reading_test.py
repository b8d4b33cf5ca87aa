"""What is read about scenes tells all that is asked, and what is to be written is right."""

import random
import re

from vlmx.data import scene_clips, scene_reading, scene_text
from vlmx.data.scene_reading import KINDS, account, place, readings


def drawn(kind, n=60):
    return [kind(random.Random(i)) for i in range(n)]


def test_any_number_of_processes_writes_the_same(monkeypatch):
    alone = readings("some", 60)
    monkeypatch.setattr(scene_reading, "CHUNK", 25)
    assert readings("some", 60, workers=2) == alone
    assert alone[:10] == readings("some", 10) != readings("others", 10)
    assert all(text == text.lower() for pair in alone for text in pair) and all(map(all, alone))


def test_an_account_leaves_nothing_out():
    for i in range(60):
        s = scene_text.scene(rng := random.Random(i))
        said = account(s, rng)
        assert f"{s.background} background" in said
        for o in s.objects:
            assert f"{o.size} {o.fill} {o.colour} {o.kind} at the {place(o)}" in said
        assert s.objects or (s.glyph.look in said and s.glyph.colour in said)


def test_places_are_the_nine_of_three_rows_and_columns():
    o = scene_text.scenes.an_object(random.Random(0))
    at = lambda x, y: place(o._replace(x=x, y=y))
    assert [at(10, 10), at(32, 10), at(50, 10)] == ["top left", "top", "top right"]
    assert [at(10, 32), at(32, 32), at(50, 32)] == ["left", "middle", "right"]
    assert [at(10, 60), at(32, 60), at(50, 60)] == ["bottom left", "bottom", "bottom right"]


def test_what_is_asked_stands_in_what_is_read():
    colours = [
        (read, written) for read, written in drawn(scene_reading._question) if "what colour is the shape" in read
    ]
    assert colours and all(f" {written} " in read for read, written in colours)
    answers = [
        written for kind in (scene_reading._statement, scene_reading._two_pictures) for _, written in drawn(kind)
    ]
    assert set(answers) == {"True", "False"} and 40 < answers.count("True") < 80  # of 120


def test_choices_are_named_and_found_again():
    for read, name in drawn(scene_reading._choice):
        listed = dict(re.findall(r"(a\d): (.*?)\.", read[read.index("[choices]") :]))
        assert 2 <= len(listed) <= 5 and name in listed
        if "who speaks of the background" in read:
            assert re.search(rf"{listed[name]} : the \w+ background is nice", read)
    ways = set()
    for read, written in drawn(scene_reading._lookup):
        asked, listed = re.fullmatch(r"\[q\] (.*) \[choices\] (.*)", read).groups()
        listed = dict(re.findall(r"(a\d): (.*?)\.", listed))
        ways.add(asked in listed)
        assert listed[asked] == written if asked in listed else listed[written] == asked
    assert ways == {True, False}


def test_a_clip_is_told_from_its_first_and_last_frame():
    for i in range(200):
        clip = scene_clips.a_clip(random.Random(i))
        if clip.event == "colour":
            first, *_, last = scene_clips.moments(clip)
            assert first.objects[0].colour == clip.subject.colour and last.objects[0].colour == clip.colour
            return


def test_every_kind_is_read():
    assert all(read and written for kind in set(KINDS) for read, written in drawn(kind, 5))
