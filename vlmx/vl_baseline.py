"""What each task gives to an answer that looks at nothing: always the same one, the best such of the training."""

from collections import Counter

import numpy as np

CANDIDATES, EXAMPLES = 10, 300  # captions that are tried, on so many training examples


def baseline(task):
    """{"name", "answer", "test": the task's numbers of always giving it}.

    Of free answers and of choices it is the one that training examples give most often, by score. Of captions it is, of
    the most frequent ones, that with the best CIDEr on training examples.
    """
    scores = Counter()
    for e in task.train:
        scores.update(dict(e.targets))
    name, answer = "majority answer", max(scores, key=scores.get) if scores else ""
    if task.kind == "choice":
        name = f"majority choice, chance is {100 / max(len(scores), 1):.1f}"
    if task.kind == "caption":
        name, answer = "constant caption", _caption(task, [text for text, _ in scores.most_common(CANDIDATES)])
    tested = task.test or task.val
    numbers = task.score([answer] * len(tested), tested) if len(tested) else {"accuracy": float("nan")}
    return {"name": name, "answer": answer, "test": numbers}


def _caption(task, candidates):
    from vlmx.metrics import caption

    spread = np.linspace(0, len(task.train) - 1, min(len(task.train), EXAMPLES)).astype(int).tolist()
    references = [[text for text, _ in task.train[i].targets] for i in spread]
    value = lambda text: caption.captions([text] * len(references), references, java=False)["CIDEr"]
    return max(candidates, key=value)
