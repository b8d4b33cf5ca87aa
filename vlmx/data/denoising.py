"""Texts with parts taken out, and what an encoder-decoder is to make of them: pre-training of T5 and BART.

A text is its token ids, without special tokens. Everything is drawn from a numpy Generator.
"""

import numpy as np

from vlmx import streams


def spans(ids, rng, sentinel, density=0.15, mean=3.0):
    """Span corruption (Raffel et al. 2020, arXiv 1910.10683, section 3.1.4): (input, target), lists of ids.

    Spans of `mean` tokens on average, `density` of all tokens, are replaced by sentinels: `sentinel`, sentinel - 1, ...
    The target is each sentinel with what it stands for, and one more sentinel.
    """
    n = len(ids)
    noise = min(max(round(n * density), 1), max(n - 1, 1))
    many = min(max(round(noise / mean), 1), noise, n - noise + 1)
    taken, kept = _parts(rng, noise, many), _parts(rng, n - noise + 1, many)
    kept[0] -= 1  # alone among the kept parts the first may be empty
    left, target, at = [], [], 0
    for i, (keep, take) in enumerate(zip(kept, taken)):
        left += [*ids[at : at + keep], sentinel - i]
        target += [sentinel - i, *ids[at + keep : at + keep + take]]
        at += keep + take
    return left + list(ids[at:]), [*target, sentinel - many]


def _parts(rng, n, many):
    """`many` positive numbers, drawn alike, whose sum is n."""
    cuts = np.sort(rng.choice(np.arange(1, n), many - 1, replace=False))
    return np.diff([0, *cuts, n]).tolist()


def infill(ids, rng, mask, end, density=0.3, mean=3.0):
    """BART's noise (Lewis et al. 2020, arXiv 1910.13461, section 2.2): (input, the text itself), lists of ids.

    Sentences, that end with the id `end`, are shuffled; then spans of Poisson(mean) tokens, `density` of all tokens,
    are each replaced by one `mask`, which a span of no tokens inserts.
    """
    sentences, at = [], 0
    for stop in [*(np.flatnonzero(np.asarray(ids) == end) + 1).tolist(), len(ids)]:
        sentences += [list(ids[at:stop])] if stop > at else []
        at = stop
    left = [i for k in rng.permutation(len(sentences)) for i in sentences[k]]
    budget = round(len(ids) * density)
    while budget > 0:
        take = min(int(rng.poisson(mean)), budget)
        start = int(rng.integers(0, len(left) - take + 1))
        if mask in left[start : start + take]:  # spans do not overlap
            budget -= 1
            continue
        left[start : start + take] = [mask]
        budget -= max(take, 1)
    return left, list(ids)


def batch(texts, corrupt, rng, begin, end, pad, length, target_length):
    """{"ids" `(B, length)`, "labels" `(B, target_length)`} int32 of texts, each corrupted by `corrupt(ids, rng)`; or of
    pairs (input, target), which stay as they are.

    begin: ids in front of both; end: the id behind both; labels are -100 where there is padding.
    """
    ids = np.full((len(texts), length), pad, np.int32)
    labels = np.full((len(texts), target_length), -100, np.int32)
    for i, text in enumerate(texts):
        pair = text if isinstance(text, tuple) else corrupt(text, rng)
        for row, said in zip((ids[i], labels[i]), pair, strict=True):
            said = [*begin, *said][: len(row) - 1] + [end]
            row[: len(said)] = said
    return {"ids": ids, "labels": labels}


def batches(texts, corrupt, size, steps, seed, first=0, **how):
    """The batches of the steps `first` to `steps`; each depends on its number and the seed alone. how: as `batch`."""
    for step in range(first, steps):
        rng = streams.generator("denoising", seed, step)
        rows = rng.integers(0, len(texts), size)
        yield batch([texts[i] for i in rows], corrupt, rng, **how)
