"""Small networks on features, and the start of linear layers in the methods' published code."""

import flax.linen as nn
import jax


def uniform(fan_in):
    """PyTorch's default start of a linear layer, weights and biases: U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    bound = fan_in**-0.5
    return lambda key, shape, dtype="float32": jax.random.uniform(key, shape, dtype, -bound, bound)


class Bottleneck(nn.Module):
    """Linear, ReLU, linear: `(..., D) -> (..., width)` through `hidden` units."""

    hidden: int
    width: int
    bias: bool = True

    @nn.compact
    def __call__(self, x):
        def linear(name, width, x):
            start = uniform(x.shape[-1])
            return nn.Dense(width, use_bias=self.bias, kernel_init=start, bias_init=start, name=name)(x)

        return linear("up", self.width, nn.relu(linear("down", self.hidden, x)))
