"""Hypercomplex linear maps (Zhang et al. 2021, arXiv 2102.08597), as Compacter (Karimi Mahabadi et al. 2021, arXiv
2106.04647) takes them for adapters: a kernel is a sum of n Kronecker products of small matrices."""

import flax.linen as nn
import jax.numpy as jnp

from vlmx.errors import UserError
from vlmx.modules.adapters import GLOROT

RULE = nn.initializers.normal(0.01)


def kronecker(rule, W):
    """`sum_i kron(rule_i, W_i)`: rule `(L or 1, n, n, n)` and W `(L, n, i/n, o/n)` give kernels `(L, i, o)`."""
    L, n, i, o = W.shape
    rule = jnp.broadcast_to(rule, (L, n, n, n))
    return jnp.einsum("Lnac,Lnio->Laico", rule, W, precision="highest").reshape(L, n * i, n * o)


class Kronecker(nn.Module):
    """Linear maps of L layers, kernels `(L, i, o)`; n divides i and o.

    rank: of the factors whose product each W_i is; None: W_i is stored.
    """

    layers: int
    i: int
    o: int
    n: int
    rank: int | None = None

    @nn.compact
    def __call__(self, rule=None):
        """rule: `(n, n, n)`, where one is shared; None: a rule for each layer, stored here."""
        if self.i % self.n or self.o % self.n:
            raise UserError(
                f"compacter: n={self.n} must divide the width and the bottleneck; a projection here is {self.i} to "
                f"{self.o}"
            )
        L, n, i, o = self.layers, self.n, self.i // self.n, self.o // self.n

        def matrices(name, *shape):  # each is Glorot's for its own two sides
            return self.param(name, lambda key, s: GLOROT(key, (L * n, *s[2:])).reshape(s), (L, n, *shape))

        rule = self.param("rule", RULE, (L, n, n, n)) if rule is None else rule[None]
        if self.rank is None:
            W = matrices("W", i, o)
        else:
            W = matrices("left", i, self.rank) @ matrices("right", self.rank, o)
        return {"kernel": kronecker(rule, W), "bias": self.param("b", nn.initializers.zeros, (L, self.o))}
