"""Text from a dressed VLSeq: greedy search, sampling, beam search; programs of static shapes over a key-value cache.

A row begins with the start token; what follows the end token is padding. Beam search, as in transformers: 2k candidates
are kept per step; one that ends counts if it is among the first k; a text's score is its sum of log-probabilities
divided by length ** length_penalty, the start token counts in the length, the end token does not; a search is over when
k texts ended and no running one could still beat the worst of them, or, with early_stopping, when k texts ended.
Versions of transformers differ in two points: a text that did not end has, in transformers 5, a length of one less; and
its best running text is, in transformers 4.2, the best candidate of the step, be it one that ends
(`Generation.published_beams`).

Shape letters: B inputs, K beams, R rows (B * K), S the longest text, V token ids.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from vlmx.errors import UserError
from vlmx.models.vlseq import grow
from vlmx.variant import Insert

NEVER = -jnp.inf


def generate(model, ids, vis=None, how=None, into=None, key=None, real=None):
    """Token ids `(B, how.max_length)` and, for beams, the texts' scores `(B,)` (else None).

    Args: ids `(B, T)`, vis `(B, N, D)`, real: as VLSeq.encode takes them. how: a vlseq.Generation; None: the
    checkpoint's own. into: the Insert of a variant (`variant.dressed` gives it with the model). key: for sampling.

    Raises UserError for a `how` that this model cannot follow.
    """
    into, how = into or Insert(), how or model.config.generation
    if how.max_length < 2:
        raise UserError(f"max_length is {how.max_length}; with the start token, a text has at least 2 tokens")
    prompts = 0 if into.decoder_prompt is None else len(into.decoder_prompt)
    model.config.check_length(how.max_length - 1 + prompts, f"max_length is {how.max_length}, so texts")
    if how.sample and how.beams > 1:
        raise UserError(
            "sampling with beams is not supported; set beams (num_beams) to 1, or sample (do_sample) to False"
        )
    if how.sample and key is None:
        raise UserError("sampling (sample, do_sample) needs a random key: give generate its argument `key`")
    return _generate(model, into[1:], ids, vis, real, key, into.tap, how)


@functools.partial(jax.jit, static_argnums=(6, 7))
def _generate(model, arrays, ids, vis, real, key, tap, how):
    into = Insert(tap, *arrays)
    memory, seen = model.encode(ids, vis, into.prompt, tap, into.theta.get("encoder"), real=real)
    B, theta = len(ids), into.theta.get("decoder")
    begin = jnp.full(B, model.config.begin if how.begin is None else how.begin)
    if into.decoder_prompt is None:
        cache = model.empty(B, how.max_length - 1)
    else:
        cache = grow(model.prefill(into.decoder_prompt, B), how.max_length - 1)

    def step(tokens, cache, memory=None):
        x, cache = model.step(model.tokens(tokens[:, None]), memory, seen, cache, tap, theta)
        return model.logits(x[:, 0]), cache

    logits, cache = step(begin, cache, memory)
    cross = {k: cache.pop(k) for k in ("cross_k", "cross_v")}  # does not change: no part of the loop's state

    def go_on(tokens, cache):
        logits, cache = step(tokens, cache | cross)
        return logits, {k: cache[k] for k in ("k", "v", "index")}

    cache["index"] = jnp.asarray(cache["index"], jnp.int32)
    how = dataclasses.replace(how, ends=how.ends or (model.config.end,))
    rules = functools.partial(apply_rules, how, ids)
    search = functools.partial(_one, key=key) if how.beams == 1 else _beams
    return search(model.config, how, begin, logits, cache, go_on, rules)


def which(model, ids, vis, words, given=(), into=None, real=None):
    """Which of the token ids `words` is the likeliest `(B,)`, behind the start token and the tokens `given`; the first
    of equal ones. One decoder call; for tasks of two answers."""
    into = into or Insert()
    memory, seen = model.encode(ids, vis, into.prompt, into.tap, into.theta.get("encoder"), real=real)
    tokens = jnp.tile(jnp.array([model.config.begin, *given]), (len(ids), 1))
    cache = None if into.decoder_prompt is None else model.prefill(into.decoder_prompt, len(ids))
    logits = model.decode(tokens, memory, seen, into.tap, into.theta.get("decoder"), None, cache)
    return logits[:, -1, jnp.array(words)].argmax(-1)


def apply_rules(how, ids, scores, texts, n):
    """Change the scores of the next tokens by the rules of `how`, in transformers' order.

    Args:
      ids: input texts `(B, T)`, with padding.
      scores: logits or log-probabilities `(R, V)`.
      texts: `(R, S)`, of which the first n tokens are written.

    Returns scores `(R, V)`, minus infinity for what may not follow.
    """
    R, V = scores.shape
    rows, source = jnp.arange(R)[:, None], jnp.repeat(ids, R // len(ids), axis=0)

    def penalize(scores, tokens, penalty):
        present = jnp.zeros((R, V), bool).at[rows, tokens].set(True, mode="drop")
        return jnp.where(present, jnp.where(scores < 0, scores * penalty, scores / penalty), scores)

    def forbid(scores, tokens, where=True):
        return scores.at[rows, jnp.asarray(tokens)].min(jnp.where(where, NEVER, jnp.inf), mode="drop")

    def force(scores, tokens, where):
        return jnp.where(where, jnp.full(V, NEVER).at[jnp.array(tokens)].set(0.0), scores)  # a log-probability of 0

    def last(size):
        return jax.lax.dynamic_slice_in_dim(texts, n - size, size, axis=1)

    def forbid_ngrams(scores, size, source, length):
        if not 0 < size <= min(source.shape[1], texts.shape[1]):
            return scores  # no n-gram is as long
        begin = jnp.arange(source.shape[1] - size + 1)
        grams = source[:, begin[:, None] + jnp.arange(size)]  # [R,.,size], all there are in a row
        # those that are whole and begin as the text ends
        again = (grams[..., :-1] == last(size - 1)[:, None]).all(-1) & (begin + size <= length) & (n >= size - 1)
        return forbid(scores, grams[..., -1], again)

    if how.encoder_repetition_penalty != 1:
        scores = penalize(scores, source, 1 / how.encoder_repetition_penalty)
    if how.repetition_penalty != 1:
        scores = penalize(scores, jnp.where(jnp.arange(texts.shape[1]) < n, texts, V), how.repetition_penalty)
    scores = forbid_ngrams(scores, how.no_repeat_ngram, texts, n)
    scores = forbid_ngrams(scores, how.encoder_no_repeat_ngram, source, source.shape[1])
    for size in sorted({len(word) for word in how.bad_words if len(word) <= texts.shape[1]}):
        words = jnp.array([word for word in how.bad_words if len(word) == size])
        complete = (last(size - 1)[:, None] == words[:, :-1]).all(-1) & (n >= size - 1)
        scores = forbid(scores, words[:, -1], complete)
    if how.min_length > 1:
        scores = forbid(scores, how.ends, n < how.min_length)
    if how.force_begin is not None:
        scores = force(scores, [how.force_begin], n == 1)
    if how.force_end:
        scores = force(scores, how.ends if how.force_end is True else how.force_end, n == how.max_length - 1)
    if how.suppress:
        scores = forbid(scores, how.suppress)
    if how.suppress_first:
        scores = forbid(scores, how.suppress_first, n == (1 if how.force_begin is None else 2))
    if how.sample:
        scores = likeliest(scores / how.temperature, how)
    return jax.nn.log_softmax(scores) if how.renormalize else scores


def _one(c, how, begin, logits, cache, go_on, rules, key):
    """Greedy search or sampling: one text per input."""
    B, S = len(begin), how.max_length
    texts = jnp.full((B, S), c.pad).at[:, 0].set(begin)

    def choose(texts, n, over, logits):
        scores = rules(logits, texts, n)
        token = jax.random.categorical(jax.random.fold_in(key, n), scores) if how.sample else scores.argmax(-1)
        token = jnp.where(over, c.pad, token)
        return texts.at[:, n].set(token), n + 1, over | jnp.isin(token, jnp.array(how.ends)), token

    def body(state):
        texts, n, over, logits, cache = state
        texts, n, over, token = choose(texts, n, over, logits)
        return texts, n, over, *go_on(token, cache)

    state = (texts, 1, jnp.zeros(B, bool), logits, cache)
    texts, n, over, logits, _ = jax.lax.while_loop(lambda s: (s[1] < S - 1) & ~s[2].all(), body, state)
    return choose(texts, n, over, logits)[0], None


def likeliest(logits, how):
    """Logits `(B, V)` with minus infinity outside the top_k likeliest tokens (0: all) and outside the smallest set of
    likeliest tokens whose probabilities reach top_p."""
    if how.top_k:
        top = jax.lax.top_k(logits, min(how.top_k, logits.shape[-1]))[0]
        logits = jnp.where(logits < top[:, -1:], NEVER, logits)
    if how.top_p < 1:
        ordered = -jnp.sort(-logits, axis=-1)
        p = jax.nn.softmax(ordered, axis=-1)
        inside = jnp.cumsum(p, axis=-1) - p < how.top_p
        least = jnp.where(inside, ordered, jnp.inf).min(-1, keepdims=True)
        logits = jnp.where(logits < least, NEVER, logits)
    return logits


def _beams(c, how, begin, logits, cache, go_on, rules):
    """Beam search. Running texts `(B, K, S)` with scores `(B, K)`; ended ones with theirs, divided by length."""
    B, K, S = len(begin), how.beams, how.max_length
    C = K * (1 + len(how.ends))  # so many candidates hold K that go on
    texts = jnp.full((B, K, S), c.pad).at[:, :, 0].set(begin[:, None])
    first = jnp.where(jnp.arange(K) == 0, 0.0, NEVER)  # all beams are the same text at first: one counts
    state = {
        "n": 1,
        "texts": texts,
        "score": jnp.broadcast_to(first, (B, K)),
        "ended": texts,
        "ended_score": jnp.full((B, K), NEVER),
        "over": jnp.zeros(B, bool),
    }

    def choose(s, logits):
        """The state one token later, and which row each running text goes on from, `(R,)`."""
        n, length = s["n"], s["n"] ** how.length_penalty
        free = rules(jax.nn.log_softmax(logits), s["texts"].reshape(B * K, S), n)
        top, token = jax.lax.top_k(free, min(C, free.shape[-1]))  # of each beam; only these can be among the first C
        top = top.reshape(B, K, -1) + s["score"][..., None]
        score, place = jax.lax.top_k(top.reshape(B, -1), C)
        beam, token = place // top.shape[-1], jnp.take_along_axis(token.reshape(B, -1), place, axis=1)
        ends = jnp.isin(token, jnp.array(how.ends))
        longer = jnp.take_along_axis(s["texts"], beam[..., None], axis=1).at[:, :, n].set(token)  # [B,C,S]
        on = jnp.argsort(ends, axis=1, stable=True)[:, :K]  # the first K that go on

        counts = ends & (jnp.arange(C) < K)
        pool = jnp.concatenate([s["ended_score"], jnp.where(counts, score / length, NEVER)], axis=1)
        ended_score, best = jax.lax.top_k(pool, K)
        ended = jnp.take_along_axis(jnp.concatenate([s["ended"], longer], axis=1), best[..., None], axis=1)
        over = (ended_score > NEVER).all(-1)
        if how.early_stopping is not True:
            hope = score[:, 0] if how.published_beams else jnp.take_along_axis(score, on, axis=1)[:, 0]
            never = how.early_stopping == "never" and how.length_penalty > 0  # then the longest text has most hope
            over &= ended_score[:, -1] >= hope / ((S - 1) ** how.length_penalty if never else length)

        new = {
            "texts": jnp.take_along_axis(longer, on[..., None], axis=1),
            "score": jnp.take_along_axis(score, on, axis=1),
            "ended": ended,
            "ended_score": ended_score,
            "over": over,
        }
        new = {k: jnp.where(s["over"].reshape(B, *[1] * (a.ndim - 1)), s[k], a) for k, a in new.items()}
        rows = (jnp.arange(B)[:, None] * K + jnp.take_along_axis(beam, on, axis=1)).reshape(-1)
        return {**new, "n": n + 1}, rows

    def body(state):
        s, logits, cache = state
        s, rows = choose(s, logits)
        cache = {k: a if k == "index" else jnp.take(a, rows, axis=1) for k, a in cache.items()}
        tokens = jax.lax.dynamic_index_in_dim(s["texts"], s["n"] - 1, axis=2, keepdims=False).reshape(-1)
        return s, *go_on(tokens, cache)

    logits = jnp.repeat(logits, K, axis=0)
    cache = {k: a if k == "index" else jnp.repeat(a, K, axis=1) for k, a in cache.items()}
    running = lambda state: (state[0]["n"] < S - 1) & ~state[0]["over"].all()
    s, logits, _ = jax.lax.while_loop(running, body, (state, logits, cache))
    s, _ = choose(s, logits)

    # texts that still run count as they are, where the search was not over
    length = s["n"] if how.published_beams else s["n"] - 1
    rest = jnp.where(s["over"][:, None], NEVER, s["score"] / length**how.length_penalty)
    pool = jnp.concatenate([s["ended_score"], rest], axis=1)
    best = pool.argmax(-1)
    texts = jnp.concatenate([s["ended"], s["texts"]], axis=1)
    return texts[jnp.arange(B), best], pool[jnp.arange(B), best]
