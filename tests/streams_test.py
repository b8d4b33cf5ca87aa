"""Streams of random numbers: none is another's, whatever the numbers behind its name."""

import itertools
import re
from pathlib import Path

import jax
import numpy as np

from vlmx import streams
from vlmx.data import denoising, pipeline, vl_batches

ROOT = Path(__file__).parent.parent
SMALL = range(4)  # of seeds, tasks, epochs, steps: where numbers that mean different things are alike
# Where generators and keys may be made: vlmx/streams.py; and what published protocols, or pictures, fix (see there).
HELD = {
    "streams.py": 3, "data/pipeline.py": 3, "data/scenes.py": 1,
    # only shapes are asked for
    "abstract.py": 1, "vl_abstract.py": 1, "vl_fit.py": 1, "variant.py": 1, "models/vlseq.py": 1, "models/clip.py": 1,
    "predict.py": 1,
}  # fmt: skip


def names():
    """{name: how many numbers it has} of all streams in the package."""
    found = {}
    for path in (ROOT / "vlmx").rglob("*.py"):
        for name, rest in re.findall(r'streams\.(?:generator|key)\("([^"]+)"((?:, [\w.]+)*)\)', path.read_text()):
            assert name not in found, f"two streams are called {name}"
            found[name] = rest.count(",")
    return found


def test_generators_and_keys_are_made_in_one_place():
    made = re.compile(r"default_rng\(|SeedSequence\(|PCG64\(|RandomState\(|random\.key\(|PRNGKey\(|wrap_key_data\(")
    counts = {}
    for path in (ROOT / "vlmx").rglob("*.py"):
        if n := len(made.findall(path.read_text())):
            counts[str(path.relative_to(ROOT / "vlmx"))] = n
    assert counts == HELD


def test_no_two_streams_begin_with_the_same_numbers():
    """Every stream of the package for small numbers, and those of the order of images and of their crops."""
    first = {}
    for name, n in names().items():
        for numbers in itertools.product(SMALL, repeat=n):
            first[name, numbers] = streams.generator(name, *numbers)
    for seed, epoch in itertools.product(SMALL, repeat=2):
        first["order", seed, epoch] = np.random.default_rng([pipeline.ORDER, seed, epoch])
        for row in SMALL:
            first["crop", seed, epoch, row] = np.random.default_rng([pipeline.AUGMENT, seed, epoch, row])
    begun = [tuple(rng.integers(0, 2**63, 2).tolist()) for rng in first.values()]
    assert len(set(begun)) == len(begun) > 200


def test_no_key_of_a_step_is_a_key_of_the_start():
    """Keys of the start are split, those of steps folded: of one key both would be the same."""
    data = lambda keys: [tuple(row) for row in np.asarray(jax.random.key_data(keys)).reshape(-1, 2).tolist()]
    keys = [name for name in names() if name.startswith("steps")]
    assert len(keys) == 3
    found = []
    for seed in SMALL:
        found += data(streams.start(seed)) + data(jax.random.split(streams.start(seed), 8))
        for name in keys:
            found += data(jax.vmap(jax.random.fold_in, (None, 0))(streams.key(name, seed), np.arange(8)))
        found += data(streams.key("added parts", seed)) + data(jax.random.split(streams.key("added parts", seed), 7))
    assert len(set(found)) == len(found)


def test_an_order_of_examples_is_not_the_order_of_a_step():
    """numpy takes [1, 2] and [1, 2, 0] for one key: what was drawn for task 2 in turn 0 was drawn in step 2 again."""
    a, b = (np.random.default_rng(numbers).permutation(50) for numbers in ([1, 2], [1, 2, 0]))
    np.testing.assert_array_equal(a, b)
    order = vl_batches._permutation(1, 2, 0, 50)
    assert (order != streams.generator("answers", 1, 2).permutation(50)).any()
    assert (order != vl_batches._permutation(1, 2, 1, 50)).any()


def test_held_out_texts_are_not_corrupted_as_those_of_a_step():
    corrupt = lambda ids, rng: ([int(i) for i in rng.integers(3, 100, 4)], ids)
    how = {"begin": (), "end": 1, "pad": 0, "length": 6, "target_length": 6}
    texts = [[5, 6, 7]] * 4
    (step,) = denoising.batches(texts, corrupt, 4, 1, seed=1, **how)
    rng = streams.generator("denoising", 1, 0)
    rng.integers(0, 4, 4)
    np.testing.assert_array_equal(step["ids"], denoising.batch(texts, corrupt, rng, **how)["ids"])
    held = denoising.batch(texts, corrupt, streams.generator("held-out texts", 1, 0), **how)
    assert (step["ids"] != held["ids"]).any()
