"""VL-T5 and VL-BART (Cho et al. 2021, arXiv 2102.02779): frozen parameters and pure functions on them.

Shape letters: B examples, R decoder rows, T tokens, M encoder positions (prompts, text, visual tokens), N visual
tokens, P prompts, D width, F width of visual features, V token ids, L layers.
"""

import dataclasses
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax import linen as nn

from vlmx import partition
from vlmx.errors import UserError
from vlmx.models.layers import no_tap
from vlmx.models.seq_layers import Stack, VisualEmbedding, added_start, pool


@dataclasses.dataclass(frozen=True)
class Visual:
    """What the encoder sees: `width` F of a feature, `tokens` of an image, to which grids with more cells are pooled.

    joint_norm: one norm behind the sum of features and boxes, in place of one on each.
    """

    width: int
    tokens: int = 36
    joint_norm: bool = False


@dataclasses.dataclass(frozen=True)
class Generation:
    """How to generate text (see vlmx/generate.py): what a task decides, then the rules that a checkpoint states.

    Names of transformers where they differ: beams num_beams, no_repeat_ngram no_repeat_ngram_size, force_begin
    forced_bos_token_id, force_end forced_eos_token_id, begin decoder_start_token_id, ends eos_token_id, bad_words
    bad_words_ids, suppress suppress_tokens, suppress_first begin_suppress_tokens, renormalize renormalize_logits.

    Args:
      max_length, min_length: count the start token.
      top_k: 0 keeps all tokens.
      early_stopping: False, True, or "never", for beam search.
      force_end: whether an end token comes last at the latest, or which tokens come there.
      begin, ends: the start token and the end tokens; None and (): those of the model.
      published_beams: beam search as in transformers 4.2, which the published numbers were made with; False: as in
        transformers 5, which is what a checkpoint means that says nothing of it.
    """

    max_length: int = 20
    beams: int = 1
    sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    length_penalty: float = 1.0
    early_stopping: bool | str = False
    no_repeat_ngram: int = 0
    force_end: bool | tuple[int, ...] = False
    force_begin: int | None = None
    min_length: int = 0
    repetition_penalty: float = 1.0
    encoder_repetition_penalty: float = 1.0
    encoder_no_repeat_ngram: int = 0
    bad_words: tuple[tuple[int, ...], ...] = ()
    suppress: tuple[int, ...] = ()
    suppress_first: tuple[int, ...] = ()
    renormalize: bool = False
    begin: int | None = None
    ends: tuple[int, ...] = ()
    published_beams: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeqConfig:
    """Everything static about a T5 or a BART (`family`).

    layers: of the encoder and of the decoder. heads, head_dim, mlp: of both, unless decoder_heads (of BART, whose
    head_dim is width / heads) or decoder_mlp says otherwise. vocab: token ids of the checkpoint; added: rows behind
    them that it does not hold. tied: the output projection is the word embedding; scale_logits: by width^-0.5 (T5
    v1.0). buckets, distance: of T5's relative positions; positions: learned ones of BART.
    """

    family: str
    width: int
    heads: int
    head_dim: int
    mlp: int
    layers: tuple[int, int]
    decoder_heads: int | None = None
    decoder_mlp: int | None = None
    vocab: int
    added: int = 0
    act: str
    gated: bool = False
    tied: bool = True
    scale_logits: bool = False
    scale_embedding: bool = False
    eps: float
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.1
    buckets: int = 32
    distance: int = 128
    positions: int = 0
    pad: int
    end: int
    begin: int
    visual: Visual | None = None
    generation: Generation = Generation()
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: bool = False
    unroll: bool = False

    @property
    def dtypes(self):
        """Arguments of the linear maps."""
        return {"dtype": jnp.dtype(self.dtype), "param_dtype": jnp.dtype(self.param_dtype)}

    def tower(self, decoder):
        """Return this config with the `heads`, `head_dim` and `mlp` of the encoder or of the decoder."""
        if not decoder:
            return self
        sizes = {"mlp": self.decoder_mlp or self.mlp}
        if self.decoder_heads is not None:
            sizes |= {"heads": self.decoder_heads, "head_dim": self.width // self.decoder_heads}
        return dataclasses.replace(self, **sizes)

    def check_length(self, places, texts):
        """Raise UserError where `texts` of `places` tokens are longer than BART's table of positions."""
        if self.family == "bart" and places > self.positions:
            raise UserError(f"{texts} of {places} tokens; this model has positions for {self.positions}: shorten them")

    def start(self, std):
        """The initialiser for pre-training: T5's own deviation, or BART's 0.02 for everything."""
        return nn.initializers.normal(std if self.family == "t5" else 0.02)


@flax.struct.dataclass
class VLSeq:
    """A frozen T5 or BART: `params`, a pytree, and functions that read it. Passed to jit as an argument, never donated.

    tap and theta as in models/layers.py; theta's leaves are stacked `[L, ...]`. rng: key of the dropout; None: none.
    """

    params: Any
    config: SeqConfig = flax.struct.field(pytree_node=False)

    def tokens(self, ids):
        """Word embeddings `(..., D)` of ids `(...)`."""
        table, c = self.params["token_embed"], self.config
        if not c.added:
            return table[ids].astype(c.dtype)
        old, new = table[jnp.minimum(ids, c.vocab - 1)], self.params["added"]["embed"][jnp.maximum(ids - c.vocab, 0)]
        return jnp.where((ids >= c.vocab)[..., None], new.astype(c.dtype), old.astype(c.dtype))

    def visual(self, features, boxes=None):
        """Visual tokens `(B, N, D)` of features `(B, n, F)`, or `(B, 2, n, F)` of pairs of images.

        Grids of n > N rows are pooled, both square numbers. boxes: `(..., n, 4)` as (x1, x2, y1, y2), of which the
        first rows stay; None: zeros, as for grids. Raises UserError where features do not fit the config.
        """
        c = self.config
        if c.visual is None:
            raise UserError("this model was loaded without a visual embedding; it can read text alone")
        (B, *pair, n, F), N = features.shape, c.visual.tokens
        pooled = n > N and math.isqrt(n) ** 2 == n and math.isqrt(N) ** 2 == N
        if F != c.visual.width or not (n == N or pooled):
            raise UserError(
                f"visual features of {n} rows of {F}; expected rows of {c.visual.width}, a square number of them and "
                f"at least {N}, also a square number; or exactly {N}, as config.model.visual_tokens says"
            )
        images = pair[0] if pair else 1
        boxes = jnp.zeros((B, images, N, 4)) if boxes is None else boxes.reshape(B, images, n, 4)[:, :, :N]
        features = features.reshape(B * images, n, F)
        features = (pool(features, N) if pooled else features).reshape(B, images * N, F)
        order = self.tokens(c.vocab + c.added - 1 - jnp.tile(jnp.arange(N), images))
        image = jnp.repeat(jnp.arange(images), N)
        params = {"params": self.params["visual"]}
        return VisualEmbedding(c).apply(params, features, boxes.reshape(B, images * N, 4), image, order)

    def encode(self, ids, vis=None, prompt=None, tap=no_tap, theta=None, rng=None, real=None):
        """States `(B, M, D)` of `[prompt, text, visual tokens]` and which of them are real, `(B, M)` bool.

        Args: ids `(B, T)`, padded. vis `(B, N, D)`, from `visual`; real `(B, images)` or `(B, N)` bool: which images,
        or which rows, there are, so that examples with fewer share a shape with others; None: all. prompt `(P, D)`, the
        same for all examples.
        """
        c, B = self.config, len(ids)
        c.check_length(ids.shape[1], "input texts")
        seen = [ids != c.pad]
        if prompt is not None:
            seen.insert(0, jnp.ones((B, len(prompt)), bool))
        if vis is not None:
            real = jnp.ones((B, 1), bool) if real is None else real
            seen.append(jnp.repeat(real, vis.shape[1] // real.shape[1], axis=1))
        seen = jnp.concatenate(seen, axis=1)
        stack, params = Stack(c, False, tap), {"params": self.params["encoder"]}
        states, _ = stack.apply(params, self.tokens(ids), theta, seen, prompt, vis, rngs=_rngs(rng))
        return states, seen

    def decode(self, ids, memory, seen, tap=no_tap, theta=None, rng=None, cache=None):
        """Logits `(B, T, V)` float32 of the tokens behind each of ids `(B, T)`, which begin with the start token.

        cache: of a decoder prompt, see `prefill`.
        """
        self.config.check_length(ids.shape[1] + (0 if cache is None else cache["k"].shape[3]), "answers")
        cache = None if cache is None else grow(cache, ids.shape[1])
        x, _ = self.step(self.tokens(ids), memory, seen, cache, tap, theta, rng)
        return self.logits(x)

    def step(self, emb, memory, seen, cache=None, tap=no_tap, theta=None, rng=None):
        """Decoder states `(R, T, D)` of token embeddings, and the cache with what these tokens add.

        cache: {"k", "v" `(L, R, N, S, H)`, "cross_k", "cross_v" `(L, B, N, M, H)`, "index": tokens in it}; the cross
        ones are computed where memory is given and read where it is None. memory and seen None: no cross-attention.
        """
        x, kept = self._decoder(emb, memory, seen, cache, tap, theta, rngs=_rngs(rng))
        return x, None if cache is None else {**cache, **kept, "index": cache["index"] + emb.shape[1]}

    def cross_attention(self, ids, memory, seen, tap=no_tap, theta=None, cache=None):
        """Weights `(L, B, N, T, M)` of each layer and head: from the states that predict the tokens behind ids
        `(B, T)` to the encoder's positions; arguments as of `decode`."""
        cache = None if cache is None else grow(cache, ids.shape[1])
        _, sown = self._decoder(self.tokens(ids), memory, seen, cache, tap, theta, mutable="intermediates")
        return sown["intermediates"]["blocks"]["cross"]["weights"][0]

    def _decoder(self, emb, memory, seen, cache, tap, theta, **how):
        stack, params = Stack(self.config, True, tap), {"params": self.params["decoder"]}
        index, layers = (0, None) if cache is None else (cache["index"], {k: cache[k] for k in cache if k != "index"})
        return stack.apply(params, emb, theta, seen, memory=memory, cache=layers, index=index, **how)

    def empty(self, rows, places):
        """A cache for `places` tokens of `rows` rows, with none in it."""
        c = self.config.tower(decoder=True)
        shape = (c.layers[1], rows, c.heads, places, c.head_dim)
        return {"k": jnp.zeros(shape, c.dtype), "v": jnp.zeros(shape, c.dtype), "index": 0}

    def prefill(self, prompt, rows):
        """The cache of `rows` rows that a decoder prompt `(P, D)` leaves: it runs through the decoder alone."""
        _, cache = self.step(prompt[None], None, None, self.empty(1, len(prompt)))
        return {k: a if k == "index" else jnp.repeat(a, rows, axis=1) for k, a in cache.items()}

    def logits(self, x):
        """Logits `(..., V)` float32 of decoder states `(..., D)`."""
        c, p = self.config, self.params
        x = x * c.width**-0.5 if c.scale_logits else x
        name = "token_embed" if c.tied else "head"

        def project(table):
            return jnp.einsum("...D,VD->...V", x, table.astype(x.dtype), preferred_element_type=jnp.float32)

        y = project(p[name])
        if "logits_bias" in p:
            y = y + p["logits_bias"][0]
        return jnp.concatenate([y, project(p["added"][name.removeprefix("token_")])], axis=-1) if c.added else y

    def shift(self, labels):
        """Decoder inputs `(B, T)` for labels `(B, T)`: the start token first; what is not learned, -100, as padding."""
        c = self.config
        first = jnp.full((len(labels), 1), c.begin, labels.dtype)
        return jnp.concatenate([first, jnp.where(labels < 0, c.pad, labels)[:, :-1]], axis=1)


def grow(cache, places):
    """A cache with room for `places` more tokens."""
    more = ((0, 0), (0, 0), (0, 0), (0, places), (0, 0))
    return {k: jnp.pad(a, more) if k in ("k", "v") else a for k, a in cache.items()}


def _rngs(rng):
    return None if rng is None else {"dropout": rng}


def init_params(config, key):
    """Random parameters for pre-training: a tree {"token_embed", "encoder", "decoder", ...} in config.param_dtype.

    "added" and "visual", where the config has them, start as what is added to a trained backbone does.
    """
    c, keys = config, iter(jax.random.split(key, 7))
    x, seen = jnp.zeros((1, 1, c.width)), jnp.ones((1, 1), bool)
    _, _, table = added_start(c.family)

    def rows(init, n):
        return init(next(keys), (n, c.width), c.dtypes["param_dtype"])

    params = {
        "token_embed": rows(c.start(1.0), c.vocab),
        "encoder": Stack(c, False).init(next(keys), x, None, seen)["params"],
        "decoder": Stack(c, True).init(next(keys), x, None, seen, memory=x)["params"],
    }
    if not c.tied:
        params["head"] = rows(c.start(c.width**-0.5), c.vocab)
    if c.family == "bart":
        params["logits_bias"] = jnp.zeros((1, c.vocab))
    if c.added:
        params["added"] = {name: rows(table, c.added) for name in (("embed",) if c.tied else ("embed", "head"))}
    if c.visual:
        shapes = (1, 1, c.visual.width), (1, 1, 4)
        arguments = (*map(jnp.zeros, shapes), jnp.zeros(1, jnp.int32), x[0])
        params["visual"] = VisualEmbedding(c).init(next(keys), *arguments)["params"]
    return params


def param_shapes(config):
    """The exact tree of `jax.ShapeDtypeStruct` of this config's parameters; allocates nothing."""
    return jax.eval_shape(lambda key: init_params(config, key), jax.random.key(0))


def count(params):
    """How many parameters a tree has; BART's bias of the logits is a constant and none of them."""
    return partition.count({name: tree for name, tree in params.items() if name != "logits_bias"})
