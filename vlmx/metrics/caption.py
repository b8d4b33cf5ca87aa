"""How captions are scored: the metrics of the COCO caption tool, by pycocoevalcap's scorers, on words of ptb.py.

CIDEr (Vedantam et al. 2015, arXiv 1411.5726), BLEU (Papineni et al. 2002), ROUGE-L (Lin 2004). METEOR (Denkowski and
Lavie 2014) and SPICE (Anderson et al. 2016, arXiv 1607.08822) are programs in Java: they are there where it is.
"""

import contextlib
import functools
import shutil
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

import pycocoevalcap
from absl import logging
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from vlmx.metrics import ptb

FOLDER = Path(pycocoevalcap.__path__[0])


def captions(predictions: Sequence[str], references: Sequence[Sequence[str]], java: bool = True) -> dict[str, float]:
    """Scores in per cent of one caption an image against any number of references each, CIDEr first.

    Returns: {"CIDEr", "BLEU-1" .. "BLEU-4", "ROUGE-L"}; with `java` "METEOR" and "SPICE" too where `lacking` does not
    say otherwise; METEOR takes 10 seconds to start, once a process.
    CIDEr weighs words by how rare they are among all these references: it depends on the set, and may exceed 100.
    """
    said = {i: [" ".join(ptb.words(p))] for i, p in enumerate(predictions)}
    true = {i: [" ".join(ptb.words(r)) for r in each] for i, each in enumerate(references)}
    if len(said) != len(true):
        raise ValueError(f"{len(said)} predictions for the references of {len(true)} images")
    if not said:
        return {"CIDEr": float("nan")}
    words = any(r for each in true.values() for r in each)  # the tool fails on references that are all empty
    scores = {"CIDEr": Cider().compute_score(true, said)[0] if words else 0.0}
    scores |= {f"BLEU-{n}": s for n, s in enumerate(Bleu(4).compute_score(true, said, verbose=0)[0], 1)}
    scores["ROUGE-L"] = Rouge().compute_score(true, said)[0]
    for name, score in (("METEOR", _meteor), ("SPICE", _spice)):
        if java and name not in lacking():
            try:
                scores[name] = score(true, said)
            except (OSError, ValueError, subprocess.SubprocessError) as e:  # Java ended early: no memory, no folder
                logging.warning("%s is left out: its Java program failed (%s)", name, e)
    return {name: 100 * float(score) for name, score in scores.items()}


@functools.cache
def lacking() -> dict[str, str]:
    """The metrics that cannot be computed on this machine, each with the reason in words."""
    if not shutil.which("java"):
        return {name: "it is a program in Java, and there is no java on the path" for name in ("METEOR", "SPICE")}
    if not all((FOLDER / f"spice/lib/stanford-corenlp-3.6.0{end}.jar").exists() for end in ("", "-models")):
        return {"SPICE": "it needs Stanford CoreNLP 3.6.0 (400 MB): python -m pycocoevalcap.spice.get_stanford_models"}
    return {}


def notes() -> tuple[str, ...]:
    """`lacking` as sentences, for Task.notes."""
    return tuple(f"no {name}: {reason}" for name, reason in lacking().items())


@functools.cache
def _running():
    """The program of METEOR, once a process; it ends with it."""
    from pycocoevalcap.meteor.meteor import Meteor

    program = Meteor()
    threading.Thread(target=program.meteor_p.stderr.read, daemon=True).start()  # a full pipe would stop it
    return program


def _meteor(true, said):
    program = _running()
    try:
        return program.compute_score(true, said)[0]
    except BaseException:  # a person who stops it too
        program.lock.release()  # a call that fails keeps it: the next one, and the program's end, would wait for ever
        with contextlib.suppress(OSError):
            program.meteor_p.stdin.close()
        _running.cache_clear()
        raise


def _spice(true, said):
    from pycocoevalcap.spice.spice import Spice

    return Spice().compute_score(true, said)[0]
