"""Classification metrics, in percent, as the published few-shot protocol (Dassl's evaluator) counts them."""

import numpy as np
from sklearn import metrics

from vlmx.errors import UserError


def predicted(logits):
    """Class of each row of `logits` [N, C]: the first maximum, so ties go to the lower class. -> [N] int"""
    logits = np.asarray(logits)
    if np.isnan(logits).any():  # argmax would call a NaN the winner and the score would look merely bad
        rows = np.flatnonzero(np.isnan(logits).any(axis=1))
        raise UserError(
            f"{len(rows)} of {len(logits)} rows of logits hold NaN (the first is row {rows[0]}): "
            "the run has diverged or a weight is broken; no accuracy was computed"
        )
    return logits.argmax(axis=1)


def counted(labels, said, weight=None):
    """The rows that count: of non-zero `weight` [N] (0 marks padding and unreadable images). UserError: none."""
    labels, said = np.asarray(labels), np.asarray(said)
    if weight is not None:
        keep = np.asarray(weight) != 0
        labels, said = labels[keep], said[keep]
    if not len(labels):
        raise UserError("nothing to score: the test split has no readable image")
    return labels, said


def scores(labels, said, weight=None):
    """`labels`, `said` [N] int -> {"accuracy", "macro_f1", "mean_per_class"} in percent.

    Accuracy is over images. Macro F1 and the mean per-class accuracy are over the classes that occur in `labels`:
    a class that is only ever predicted lowers the others' F1 but has none of its own.
    """
    labels, said = counted(labels, said, weight)
    f1 = metrics.f1_score(labels, said, labels=np.unique(labels), average="macro", zero_division=0)
    recall = metrics.recall_score(labels, said, labels=np.unique(labels), average="macro", zero_division=0)
    return {
        "accuracy": 100 * metrics.accuracy_score(labels, said),
        "macro_f1": 100 * f1,
        "mean_per_class": 100 * recall,
    }


def confusion(labels, said, classes, weight=None):
    """-> [classes, classes] int: row = true class, column = what was said."""
    labels, said = counted(labels, said, weight)
    pairs = labels * classes + said  # scikit-learn's own warns where there is a single class
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def per_class(matrix):
    """Accuracy of each class in percent from a confusion matrix [C, C] -> [C]; NaN for a class without images."""
    matrix = np.asarray(matrix, np.float64)
    total = matrix.sum(axis=1)
    return np.divide(100 * matrix.diagonal(), total, out=np.full(len(matrix), np.nan), where=total > 0)


def harmonic_mean(base, new):
    """2 b n / (b + n), elementwise; 0 where both are 0."""
    base, new = np.asarray(base, np.float64), np.asarray(new, np.float64)
    total = base + new
    result = np.divide(2 * base * new, total, out=np.zeros_like(total), where=total > 0)
    return result[()]  # a scalar for scalars


def hm_of_means(base, new):
    """Harmonic mean of the mean accuracies: what CoCoOp, MaPLe and PromptSRC print."""
    return harmonic_mean(np.mean(base), np.mean(new))


def mean_of_hms(base, new):
    """Mean of the harmonic means (over seeds or data sets): what APEX prints; never higher than `hm_of_means`."""
    return np.mean(harmonic_mean(base, new))


def wilson(percent, n, z=1.96):
    """Return the interval (low, high) in percent of a share that was measured on n images (Wilson 1927).

    z: 1.96 for 95 %. It holds at 0 and at 100 percent and for few images, where the usual interval has no width.
    """
    p = percent / 100
    center, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return tuple(float(100 * (center + sign * half) / (1 + z * z / n)) for sign in (-1, 1))


def wilson_error(percent, n):
    """Return the standard error in percent of a share that was measured on n images: never 0, as `wilson`."""
    low, high = wilson(percent, n)
    return (high - low) / (2 * 1.96)


def summary(values):
    """Over seeds: `values` [n] -> {"mean", "stderr", "std", "n"}.

    `stderr`: sample deviation / sqrt(n), None for one value; `std`: the population deviation of the published tables.
    """
    values = np.asarray(values, np.float64)
    n = len(values)
    stderr = float(values.std(ddof=1) / np.sqrt(n)) if n > 1 else None
    return {"mean": float(values.mean()), "stderr": stderr, "std": float(values.std()), "n": n}
