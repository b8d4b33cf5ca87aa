"""Streams of random numbers: each has a name of its own, so that no two of a run are the same numbers.

A seed alone, or a list of numbers, is no name: numpy's SeedSequence takes [1, 2] and [1, 2, 0] for the same, and a key
of jax folded with 3 is the fourth of those that it is split into.

Held by published protocols, and therefore not from here: the few-shot draws (data/fewshot.py), the order of tasks
(multitask.py), the order of images and their crops (data/pipeline.py), and the pictures of the embedded world.
"""

import hashlib

import numpy as np


def words(name, numbers, count):
    """`count` words of 32 bits that stand for a name and its numbers."""
    text = "/".join([name, *(str(int(number)) for number in numbers)])
    return np.frombuffer(hashlib.sha256(text.encode()).digest(), "<u4")[:count]


def generator(name, *numbers):
    """The numpy Generator of a stream. Args: name: of the stream. numbers: such as a seed and a step; whole."""
    return np.random.default_rng(words(name, numbers, 8))


def key(name, *numbers):
    """The jax key of a stream, args as `generator`'s. Keys that are made of it belong to this stream."""
    import jax  # not above: processes that draw pictures need none

    return jax.random.wrap_key_data(words(name, numbers, 2), impl="threefry2x32")


def start(seed):
    """The jax key from which what a training with this seed tunes is drawn; nothing else is drawn from it."""
    import jax

    return jax.random.key(seed)
