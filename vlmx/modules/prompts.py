"""Learned vectors among the tokens of a tower: where they stand, and in which layers they are replaced.

Placement is that of deep prompts (Jia et al. 2022, arXiv 2203.12119, equations (4) to (6)): the first J layers have
vectors of their own, those of a later layer replace what came out of the layer before; the layers from J on carry the
outputs on. In the image tower they stand behind the patches, without position and before ln_pre; in the text tower they
take the places 1..n, behind the start token.

B images, C classes, T tokens, D width of a tower, E feature size, L layers of a tower, J of them with n vectors each.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vlmx.combine import Part
from vlmx.method import check_room, class_texts
from vlmx.modules.adapters import uniform

STD = 0.02  # of vectors that start from noise


def noise(key, depth, n, tower):
    """The start `(J, n, D)` of vectors for the first `depth` layers of a tower, or for all if it has fewer."""
    return STD * jax.random.normal(key, (min(depth, tower.layers), n, tower.width))


def words_first(key, consts, depth, n, tower):
    """The same for the text tower, where the first layer's vectors start from the words that they replace."""
    vectors = noise(key, depth, n, tower)
    return vectors.at[0].set(consts["words"]) if "words" in consts else vectors


def class_prompts(model, task, n, words, most=4):
    """Consts of the prompts "<words> <class>." whose first n words are learned.

    Where there are fewer words than n, or n is greater than `most` (as in the released codes), n placeholders stand
    for the words, and there is nothing to start from.
    Returns "emb" `(C, T, D)`, "eot" `(C,)` and, where they are words, "words" `(n, D)`, the embeddings of the first n.
    """
    check_room("n_ctx", n, model)
    enough = n <= min(len(words.replace("_", " ").split()), most)
    ids, eot = class_texts(model, task, in_front_of_class(words if enough else " ".join(["a"] * n)))
    emb = model.tokens(ids)
    return {"emb": emb, "eot": eot, **({"words": emb[0, 1 : 1 + n].astype(jnp.float32)} if enough else {})}


def in_front_of_class(words):
    """The template "<words> <class>."."""
    return " ".join([*words.replace("_", " ").split(), "{}."])


def in_both(method, n_text, n_vision, depth_text, depth_vision, words, most=4):
    """The parts "text" and "vision" with n vectors in each of the first layers of both towers.

    A tower with 0 vectors, or with vectors in 0 layers, has no part; without vectors in the text tower its texts are
    "<words> <class>.". most: as of class_prompts.
    """
    parts = {}
    if n_text and depth_text:
        parts["text"] = in_text(n_text, depth_text, words, most)
    if n_vision and depth_vision:
        parts["vision"] = in_image(n_vision, depth_vision)._replace(template=lambda task: in_front_of_class(words))
    return parts


def in_text(n, depth, words, most=4):
    """The part with n vectors in each of the first `depth` layers of the text tower, behind the start token."""
    return Part(
        init=lambda key, model, consts: words_first(key, consts, depth, n, model.config.text),
        prompts=lambda model, task: class_prompts(model, task, n, words, most),
        enter=lambda p, emb: write(emb, p[0], 1),
        text=lambda p, model, key: (behind_start, by_layer(p, model.config.text.layers)),
    )


def in_image(n, depth):
    """The part with n vectors in each of the first `depth` layers of the image tower, behind the patches."""
    return Part(
        init=lambda key, model, consts: noise(key, depth, n, model.config.vision),
        image=lambda p, model, key: (behind_patches, by_layer(p, model.config.vision.layers)),
        taps=("tokens", "block"),
    )


def encode_text(model, consts, vectors):
    """Text features `(C, E)` of class prompts with the vectors `(J, n, D)` in the text tower."""
    theta = by_layer(vectors, model.config.text.layers)
    return model.text(write(consts["emb"], vectors[0], 1), consts["eot"], behind_start, theta)


def encode_image(model, images, vectors):
    """Image features `(B, E)` with the vectors `(J, n, D)` in the image tower."""
    return model.image(images, behind_patches, by_layer(vectors, model.config.vision.layers))


def by_layer(vectors, L):
    """Vectors `(J, n, D)` as the theta of a tower of L layers, a slice per layer."""
    layer = jnp.arange(L)
    own = (layer > 0) & (layer < len(vectors))  # those of layer 0 enter with the tokens
    return {"vectors": jnp.pad(vectors, ((0, L - len(vectors)), (0, 0), (0, 0))), "own": own}


def behind_patches(point, y, x, theta):
    """Tap of the image tower: vectors at the end of the sequence."""
    if point == "tokens":
        return write(y, theta["vectors"][0], y.shape[1])
    if point == "block":
        return jnp.where(theta["own"], write(y, theta["vectors"], y.shape[1] - len(theta["vectors"])), y)
    return y


def behind_start(point, y, x, theta):
    """Tap of the text tower: vectors in the places 1..n; in layer 0 they are there already."""
    return jnp.where(theta["own"], write(y, theta["vectors"], 1), y) if point == "block" else y


def write(x, vectors, at):
    """`x` `(B, T, D)` with vectors `(n, D)` or `(B, n, D)` in the places at..at+n-1; at = T appends them."""
    B, _, D = x.shape
    n = vectors.shape[-2]
    vectors = jnp.broadcast_to(vectors.astype(x.dtype), (B, n, D))
    return jnp.concatenate([x[:, :at], vectors, x[:, at + n :]], axis=1)


class Coupling(nn.Module):
    """A linear map per layer from text vectors `(J, n, D_text)` to image vectors `(J, n, width)`.

    The maps of the layers 1..J-1 start as copies of one, as in MaPLe's code.
    """

    width: int

    @nn.compact
    def __call__(self, text):
        J, _, D = text.shape
        layer = jnp.minimum(jnp.arange(J), 1)
        start = uniform(D)
        kernel = self.param("kernel", lambda key: start(key, (2, D, self.width))[layer])
        bias = self.param("bias", lambda key: start(key, (2, self.width))[layer])
        return jnp.einsum("JnD,JDE->JnE", text, kernel) + bias[:, None]


class Reparametrised(nn.Module):
    """Vectors `(P, width)` out of a table through a small network (Li & Liang 2021, arXiv 2101.00190, section 4.3).

    start: (kernel(fan_in), bias(fan_in), table), initialisers.
    """

    P: int
    width: int
    hidden: int
    start: tuple

    @nn.compact
    def __call__(self):
        def linear(name, width, x):
            start = {"kernel_init": self.start[0](x.shape[-1]), "bias_init": self.start[1](x.shape[-1])}
            return nn.Dense(width, name=name, **start)(x)

        table = self.param("table", self.start[2], (self.P, self.width))
        return linear("up", self.width, jnp.tanh(linear("down", self.hidden, table)))
