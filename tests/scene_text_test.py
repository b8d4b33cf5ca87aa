"""What is said about scenes is true of their description, drawn from a seed, and not to be guessed."""

import random
from collections import Counter

from vlmx.data import scene_text, scenes


def told(n=400, each=4):
    for i in range(n):
        rng = random.Random(i)
        scene = scene_text.scene(rng)
        yield scene, scene_text.questions(scene, rng, each), rng


def test_answers_stand_in_the_description_and_are_not_to_be_guessed():
    answers, kinds = Counter(), set()
    for scene, asked, _ in told():
        assert len({q.kind for q in asked}) == len(asked)
        for q in asked:
            answers[q.answer] += 1
            kinds.add(q.kind)
            if q.kind in ("colour", "kind", "fill", "size"):
                assert q.answer in {getattr(o, q.kind) for o in scene.objects}
            elif q.kind == "background":
                assert q.answer == scene.background
            elif q.kind == "digit":
                assert q.answer == scenes.WORDS[int(scene.glyph.char)]
    assert kinds == set(scene_text.KINDS_OF_QUESTION)
    assert answers.most_common(1)[0][1] < 0.12 * answers.total()


def test_the_same_seed_says_the_same():
    said = [[(q, scene_text.passage(s, rng)) for q in asked] for s, asked, rng in told(20)]
    assert said == [[(q, scene_text.passage(s, rng)) for q in asked] for s, asked, rng in told(20)]


def test_an_object_is_spoken_of_so_that_no_other_is_meant():
    rng = random.Random(0)
    red, blue, star = (
        scenes.an_object(rng, kind, colour, "solid")
        for kind, colour in (("circle", "red"), ("circle", "blue"), ("star", "red"))
    )
    assert scene_text.names(red, (red, blue, star)) == ["the red circle"]
    assert scene_text.names(red, (red, blue, star), without="colour") == []
    assert "the star" in scene_text.names(star, (red, blue, star))
    assert scene_text.names(blue, (red, blue, star), without="kind") == ["the blue shape", "the blue object"]


def test_what_is_not_true_is_not_there():
    for scene, _, rng in told(200):
        if scene.glyph is None:
            false = set(scene_text.thing(scene, rng, true=False).split()[1:]) - {"shape"}
            seen = [{o.kind, o.colour, o.fill} for o in scene.objects]
            assert not any(false <= words for words in seen), (false, seen)
            true = set(scene_text.thing(scene, rng).split()[1:]) - {"shape"}
            assert any(true <= words for words in seen), (true, seen)


def test_relations_that_are_asked_hold():
    rng = random.Random(1)
    left = scenes.an_object(rng, "star", "red", "solid")._replace(x=12, y=30, radius=8)
    right = scenes.an_object(rng, "heart", "blue", "dotted")._replace(x=50, y=32, radius=8)
    scene = scenes.Scene((left, right), None, "white", (240, 240, 240), 0, 0)
    asked = {q for seed in range(60) for q in scene_text.questions(scene, random.Random(seed), 20)}
    star = ("the star", "the red shape", "the red object", "the solid shape", "the solid object", "the red star",
            "the solid star")  # fmt: skip
    for q in asked:
        if q.kind == "where":
            first = next(name for name in (q.text[9:], q.text[11:]) if name.startswith("the"))
            assert q.answer == ("left of" if first.startswith(star) else "right of"), q
        if q.kind == "who_is_where":
            assert q.answer == ("heart" if "right of" in q.text else "star"), q
        if q.kind == "place":
            assert q.answer in ("left", "right")
