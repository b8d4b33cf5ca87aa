"""The published tasks without their data: prefixes, lengths, losses and ways to answer of VL-Adapter's code
(Sung et al. 2022, arXiv 2112.06825, section 4 and appendix). Readers fill in the examples and the score."""

from vlmx.data.vl import Task

VIDEO = {"length": 600, "target_length": 20, "suffix": True, "beams": 5}


def _form(name, prefix=None, **how):
    return Task(name, prefix or f"{name}: ", (), (), (), None, **how)


ACCURACIES = {
    "accuracy": "the official rules before March 2021, by which the published results were computed",
    "accuracy_2021": "the official rules since: answers of people are cleaned as predictions, neither where all agree",
}

IMAGE_TEXT = {
    "vqa": _form("vqa", length=20, target_length=10, loss="score", explained=ACCURACIES),
    "gqa": _form("gqa", "gpa: ", length=20, target_length=20),  # so spelled
    # Without a limit there; the longest sentence has fewer words. Of equal answers the first counts.
    "nlvr": _form("nlvr", images=2, kind="choice", length=100, target_length=20, choices=("false", "true")),
    "caption": _form("caption", kind="caption", length=40, target_length=40, loss="token", beams=5),
}
VIDEO_TEXT = {name: _form(name, kind="choice", **VIDEO) for name in ("tvqa", "how2qa")}
VIDEO_TEXT |= {name: _form(name, kind="caption", **VIDEO) for name in ("tvc", "yc2c")}
FORMS = IMAGE_TEXT | VIDEO_TEXT
