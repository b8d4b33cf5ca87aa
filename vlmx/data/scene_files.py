"""The embedded world in the file formats of the published tasks: written once, then read by the same readers.

Pictures are PNG files, clips animated ones. All follows from the seed: the same bytes on every machine.
"""

import functools
import json
import multiprocessing
import os
import random
from pathlib import Path

from PIL import Image

from vlmx import files
from vlmx.data import scene_clips, scene_reasoning, scene_text, scenes
from vlmx.data.scenes import Scene
from vlmx.errors import UserError
from vlmx.logs import progress
from vlmx.metrics.vqa import normalised

# Pictures, pairs or clips of each part of a family.
SIZES = {
    "coco": {"train": 2400, "val": 200, "test": 400},  # questions as VQAv2's, captions
    "gqa": {"train": 2000, "val": 200, "testdev": 400},
    "nlvr": {"train": 2400, "dev": 150, "test1": 300},
    "tv": {"train": 1200, "val": 150, "test": 300},  # questions as TVQA's, descriptions as TVC's
    "how2": {"train": 800, "val": 100, "test": 200},
    "yc2": {"train": 800, "val": 100, "test": 200},
}
IMAGES, VIDEOS = ("coco", "gqa", "nlvr"), ("tv", "how2", "yc2")
QUESTIONS, CAPTIONS, SENTENCES = 4, 5, 8  # about each picture; of each picture that is tested; about each pair
TOLD = 2  # captions of each picture to learn from
YEARS = {"train": "train2014", "val": "val2014", "test": "val2014"}


def write(root: str | os.PathLike, family: str = "image", scale: float = 1.0, seed: int = 0, workers: int = 0) -> Path:
    """Write the annotations of the "image" or "video" tasks and their pictures, in root/images or root/videos, below
    `root`; returns it. Does nothing where they are already, written with these arguments.

    scale: of all SIZES. workers: processes that draw; the files are the same for any number.
    """
    root, made = Path(root), {"family": family, "scale": scale, "seed": seed, "format": 3}
    note = root / "scenes.json"
    if note.exists():
        if (found := files.read_json(note, "Remove this file: the scenes are written again.")) != made:
            raise UserError(f"{root} holds scenes made with {found}, asked for are {made}: use another folder.")
        return root
    writers = {"coco": _coco, "gqa": _gqa, "nlvr": _nlvr, "tv": _tv, "how2": _how2, "yc2": _yc2}
    pictures = {}
    for name in IMAGES if family == "image" else VIDEOS:
        sizes = {part: max(int(n * scale), 2) for part, n in SIZES[name].items()}
        pictures |= writers[name](root, f"{family}/{name}/{seed}", sizes)
    folder = root / ("images" if family == "image" else "videos")
    folder.mkdir(parents=True, exist_ok=True)
    draw = functools.partial(_draw, folder)
    with progress(len(pictures), "drawing scenes", unit="scene") as bar:
        if workers:
            with multiprocessing.get_context("spawn").Pool(workers) as pool:
                for _ in pool.imap_unordered(draw, pictures.items(), 64):
                    bar.update(1)
        else:
            for item in pictures.items():
                draw(item)
                bar.update(1)
    _json(note, made)  # last: a folder that is not whole is written again
    return root


def _draw(folder, item):
    name, what = item
    if isinstance(what, Scene):
        Image.fromarray(scenes.draw(what)).save(folder / f"{name}.png", compress_level=1)
        return
    first, *rest = map(Image.fromarray, scene_clips.frames(what))
    ms = int(1000 * scene_clips.SECONDS / scene_clips.FRAMES)
    first.save(folder / f"{name}.png", save_all=True, append_images=rest, duration=ms, compress_level=1)


def _json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")


def _lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


# ------------------------------------------------------------------------------------------------ pictures


def _scenes(seed, sizes):
    """(part, number over all parts, random source, scene)."""
    number = 0
    for part, n in sizes.items():
        for i in range(n):
            number += 1
            rng = random.Random(f"{seed}/{part}/{i}")
            yield part, number, rng, scene_text.scene(rng)


_KINDS_OF_ANSWER = {"count": "number", "digit": "number", "exists": "yes/no", "is_where": "yes/no"}


def _coco(root, seed, sizes):
    """VQAv2's questions and annotations, and Karpathy's file of captions and splits."""
    questions = {year: [] for year in set(YEARS.values())}
    annotations, images, pictures, pools = {year: [] for year in questions}, [], {}, {}
    for part, number, rng, scene in _scenes(seed, sizes):
        year = YEARS[part]
        name = f"COCO_{year}_{number:012d}"
        pictures[name] = scene
        said = dict.fromkeys(scenes.caption(scene, rng) for _ in range(4 * CAPTIONS))
        sentences = [{"raw": s, "tokens": s.strip(".").split(), "sentid": CAPTIONS * number + i, "imgid": number}
                     for i, s in enumerate(list(said)[: TOLD if part == "train" else CAPTIONS])]  # fmt: skip
        images.append({"filename": f"{name}.png", "filepath": year, "cocoid": number, "imgid": number, "split": part,
                       "sentids": [s["sentid"] for s in sentences], "sentences": sentences})  # fmt: skip
        for i, q in enumerate(scene_text.questions(scene, rng, QUESTIONS)):
            id, pool = 10 * number + i, pools.setdefault(q.kind, {})
            answer = normalised(q.answer)  # as the official answers are: "2", for "two" would never be right
            pool[answer] = None
            questions[year].append({"question_id": id, "image_id": number, "question": q.text})
            annotations[year].append({
                "question_id": id, "image_id": number, "question_type": " ".join(q.text.split()[:2]),
                "answer_type": _KINDS_OF_ANSWER.get(q.kind, "other"), "multiple_choice_answer": answer,
                "answers": _people(rng, answer, list(pool)),
            })  # fmt: skip
    for year in questions:
        about = {"data_type": "mscoco", "data_subtype": year}
        file = {part: root / "vqa" / f"v2_{name}mscoco_{year}_{part}.json"
                for part, name in (("questions", "OpenEnded_"), ("annotations", ""))}  # fmt: skip
        _json(file["questions"], about | {"task_type": "Open-Ended", "questions": questions[year]})
        _json(file["annotations"], about | {"annotations": annotations[year]})
    _json(root / "COCO/dataset_coco.json", {"dataset": "coco", "images": images})
    return pictures


def _people(rng, answer, others):
    """What ten people answer: most of them the right thing, some something else that was an answer before."""
    wrong = rng.choice((0, 0, 0, 1, 2, 3))
    said = [answer] * (10 - wrong) + [rng.choice(others) for _ in range(wrong)]
    rng.shuffle(said)
    return [{"answer": s, "answer_confidence": "yes", "answer_id": i} for i, s in enumerate(said, 1)]


def _gqa(root, seed, sizes):
    """GQA's balanced questions. VQA's simple ones fill up what a scene allows no composed ones for."""
    entries, pictures = {part: {} for part in sizes}, {}
    for part, number, rng, scene in _scenes(seed, sizes):
        name = f"{2000000 + number}"
        pictures[name] = scene
        found = scene_reasoning.composed(scene, rng, QUESTIONS)
        simple = scene_text.questions(scene, rng, QUESTIONS - len(found))
        found += [(q.text, q.answer, "verify" if q.answer in ("yes", "no") else "query") for q in simple]
        for i, (text, answer, structure) in enumerate(found):
            entries[part][f"{10 * number + i:08d}"] = {
                "imageId": name, "question": text, "answer": answer, "isBalanced": True,
                "fullAnswer": f"{answer}.", "types": {"structural": structure},
            }  # fmt: skip
    for part, found in entries.items():
        _json(root / "GQA" / f"{part}_balanced_questions.json", found)
    return pictures


def _nlvr(root, seed, sizes):
    """NLVR2's pairs: each sentence is said of two pairs, true of one of them."""
    pictures = {}
    for part, n in sizes.items():
        rows, rng = [], random.Random(f"{seed}/{part}")
        pairs = [tuple(scene_reasoning.with_objects(rng) for _ in range(2)) for _ in range(n)]
        for set_, own in enumerate(zip(pairs[::2], pairs[1::2])):
            for j, pair in enumerate(own):
                pictures |= {f"{part}-{set_}-{j}-img{k}": scene for k, scene in enumerate(pair)}
            for k, said in enumerate(scene_reasoning.dividing(own, rng, SENTENCES)):
                rows += [{"identifier": f"{part}-{set_}-{j}-{k}", "sentence": said.text, "label": str(said.true(*pair))}
                         for j, pair in enumerate(own)]  # fmt: skip
        _lines(root / "nlvr" / f"{part}.json", rows)
    return pictures


# ------------------------------------------------------------------------------------------------ clips


def _clips(seed, sizes, name):
    """({part: [(clip id, video name, random source, clip)]}, the same as {video name: clip})."""
    parts, number = {}, 0
    for part, n in sizes.items():
        for i in range(n):
            rng = random.Random(f"{seed}/{part}/{i}")
            parts.setdefault(part, []).append((number, f"{name}_{part}_{i:05d}", rng, scene_clips.a_clip(rng)))
            number += 1
    return parts, {video: clip for rows in parts.values() for _, video, _, clip in rows}


def _subtitles(root, show, parts):
    rows = [{"vid_name": video, "sub": scene_clips.subtitles(clip, rng)}
            for part in parts.values() for _, video, rng, clip in part]  # fmt: skip
    _lines(root / f"{show}_subtitles.jsonl", rows)


def _questions(root, name, parts, choices, shows):
    for part, clips in parts.items():
        rows = []
        for number, video, rng, clip in clips:
            for i, (text, answers, right) in enumerate(scene_clips.questions(clip, rng, 2, choices)):
                rows.append({f"a{k}": x for k, x in enumerate(answers)} | {
                    "q": text, "qid": 2 * number + i, "answer_idx": right, "vid_name": video,
                    "show_name": shows[number % len(shows)], "ts": f"0.0-{scene_clips.SECONDS}",
                })  # fmt: skip
        _lines(root / name / f"{name}_{part}{'_release' if name != 'tvqa' or part == 'test' else ''}.jsonl", rows)


def _described(root, name, parts, describe):
    for part, clips in parts.items():
        rows = []
        for number, video, rng, clip in clips:
            said = [
                {"desc": d, "desc_id": 10 * number + i, "type": "v"} for i, d in enumerate(describe(clip, rng, part))
            ]
            rows.append({"vid_name": video, "duration": scene_clips.SECONDS, "ts": [0.0, scene_clips.SECONDS],
                         "descs": said, "clip_id": number})  # fmt: skip
        _lines(root / name / f"{name}_{part}_release.jsonl", rows)


def _tv(root, seed, sizes):
    parts, clips = _clips(seed, sizes, "show")
    _subtitles(root, "tv", parts)
    _questions(root, "tvqa", parts, 5, ("Shapes", "Colours"))
    _described(
        root, "tvc", parts, lambda clip, rng, part: scene_clips.descriptions(clip, rng, 1 if part == "train" else 2)
    )
    return clips


def _how2(root, seed, sizes):
    parts, clips = _clips(seed, sizes, "howto")
    _subtitles(root, "how2", parts)
    _questions(root, "how2qa", parts, 4, ("How to",))
    return clips


def _yc2(root, seed, sizes):
    parts, clips = _clips(seed, sizes, "recipe")
    _subtitles(root, "yc2", parts)
    _described(root, "yc2c", parts, lambda clip, rng, part: [scene_clips.instruction(clip)])
    return clips
