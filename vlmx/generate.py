"""Text from a dressed VLSeq: greedy search, sampling, beam search; programs of static shapes over a key-value cache.

A row begins with the start token; what follows the end token is padding. Beam search (the rules of transformers, which
the published numbers were made with): 2k candidates are kept per step; one that ends counts if it is among the first k;
a text's score is its sum of log-probabilities divided by length ** length_penalty, the start token counts in the
length, the end token does not; a search is over when k texts ended and no running one could still beat the worst of
them, or, with early_stopping, when k texts ended.

Shape letters: B inputs, K beams, R rows (B * K), S the longest text, V token ids.
"""

import functools

import jax
import jax.numpy as jnp

from vlmx.models.vlseq import grow
from vlmx.variant import Insert

NEVER = -jnp.inf


def generate(model, ids, vis=None, how=None, into=None, key=None, real=None):
    """Token ids `(B, how.max_length)` and, for beams, the texts' scores `(B,)` (else None).

    Args: ids `(B, T)`, vis `(B, N, D)`, real: as VLSeq.encode takes them. how: a vlseq.Generation; None: the
    checkpoint's own. into: the Insert of a variant (`variant.dressed` gives it with the model). key: for sampling.
    """
    into = into or Insert()
    return _generate(model, into[1:], ids, vis, real, key, into.tap, how or model.config.generation)


@functools.partial(jax.jit, static_argnums=(6, 7))
def _generate(model, arrays, ids, vis, real, key, tap, how):
    into = Insert(tap, *arrays)
    memory, seen = model.encode(ids, vis, into.prompt, tap, into.theta.get("encoder"), real=real)
    B, theta = len(ids), into.theta.get("decoder")
    begin = jnp.full(B, model.config.begin)
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
    search = _one if how.beams == 1 else _beams
    return search(model.config, how, begin, logits, cache, go_on, key)


def which(model, ids, vis, words, given=(), into=None, real=None):
    """Which of the token ids `words` is the likeliest `(B,)`, behind the start token and the tokens `given`; the first
    of equal ones. One decoder call; for tasks of two answers."""
    into = into or Insert()
    memory, seen = model.encode(ids, vis, into.prompt, into.tap, into.theta.get("encoder"), real=real)
    tokens = jnp.tile(jnp.array([model.config.begin, *given]), (len(ids), 1))
    cache = None if into.decoder_prompt is None else model.prefill(into.decoder_prompt, len(ids))
    logits = model.decode(tokens, memory, seen, into.tap, into.theta.get("decoder"), None, cache)
    return logits[:, -1, jnp.array(words)].argmax(-1)


def barred(c, how, logits, texts, n):
    """Logits `(R, V)` with those at minus infinity that may not follow texts `(R, S)` of length n."""
    size, whole = how.no_repeat_ngram, jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    if size:
        begin = jnp.arange(texts.shape[1] - size + 1)
        grams = texts[:, begin[:, None] + jnp.arange(size)]  # [R,.,size], all there are in a row
        last = jax.lax.dynamic_slice_in_dim(texts, n - size + 1, size - 1, axis=1)
        # those that are whole and begin as the text ends
        again = (grams[..., :-1] == last[:, None]).all(-1) & (begin + size <= n)
        rows = jnp.arange(len(texts))[:, None]
        logits = logits.at[rows, grams[..., -1]].min(jnp.where(again, NEVER, jnp.inf))
    if how.force_end:
        only = jnp.where(jnp.arange(logits.shape[-1]) == c.end, whole, NEVER)  # a log-probability of 0
        logits = jnp.where(n == how.max_length - 1, only, logits)
    return logits


def _one(c, how, begin, logits, cache, go_on, key):
    """Greedy search or sampling: one text per input."""
    B, S = len(begin), how.max_length
    texts = jnp.full((B, S), c.pad).at[:, 0].set(begin)

    def choose(texts, n, over, logits):
        logits = barred(c, how, logits, texts, n)
        if how.sample:
            token = jax.random.categorical(jax.random.fold_in(key, n), likeliest(logits / how.temperature, how))
        else:
            token = logits.argmax(-1)
        token = jnp.where(over, c.pad, token)
        return texts.at[:, n].set(token), n + 1, over | (token == c.end), token

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
        logits = jnp.where(logits < jax.lax.top_k(logits, how.top_k)[0][:, -1:], NEVER, logits)
    if how.top_p < 1:
        ordered = -jnp.sort(-logits, axis=-1)
        p = jax.nn.softmax(ordered, axis=-1)
        inside = jnp.cumsum(p, axis=-1) - p < how.top_p
        least = jnp.where(inside, ordered, jnp.inf).min(-1, keepdims=True)
        logits = jnp.where(logits < least, NEVER, logits)
    return logits


def _beams(c, how, begin, logits, cache, go_on, key):
    """Beam search. Running texts `(B, K, S)` with scores `(B, K)`; ended ones with theirs, divided by length."""
    B, K, S = len(begin), how.beams, how.max_length
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
        free = barred(c, how, logits, s["texts"].reshape(B * K, S), n)
        top, token = jax.lax.top_k(free, 2 * K)  # of each beam; of all its tokens only these can be among the first 2K
        top = (top - jax.nn.logsumexp(logits, axis=-1, keepdims=True)).reshape(B, K, 2 * K) + s["score"][..., None]
        score, place = jax.lax.top_k(top.reshape(B, -1), 2 * K)
        beam, token = place // (2 * K), jnp.take_along_axis(token.reshape(B, -1), place, axis=1)
        ends = token == c.end
        longer = jnp.take_along_axis(s["texts"], beam[..., None], axis=1).at[:, :, n].set(token)  # [B,2K,S]

        counts = ends & (jnp.arange(2 * K) < K)
        pool = jnp.concatenate([s["ended_score"], jnp.where(counts, score / length, NEVER)], axis=1)
        ended_score, best = jax.lax.top_k(pool, K)
        ended = jnp.take_along_axis(jnp.concatenate([s["ended"], longer], axis=1), best[..., None], axis=1)
        enough = (ended_score > NEVER).all(-1)
        over = enough if how.early_stopping else enough & (ended_score[:, -1] >= score[:, 0] / length)

        on = jnp.argsort(ends, axis=1, stable=True)[:, :K]  # the first K that go on
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
    rest = jnp.where(s["over"][:, None], NEVER, s["score"] / s["n"] ** how.length_penalty)
    pool = jnp.concatenate([s["ended_score"], rest], axis=1)
    best = pool.argmax(-1)
    texts = jnp.concatenate([s["ended"], s["texts"]], axis=1)
    return texts[jnp.arange(B), best], pool[jnp.arange(B), best]
