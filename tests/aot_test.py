"""Programs compiled as far as a plan needs them: the same figures as of those compiled to their end."""

import importlib.util
import os

import jax
import jax.numpy as jnp
import pytest

from vlmx import abstract, aot, chips, hlo, shard
from vlmx.errors import UserError


@pytest.fixture(autouse=True)
def light(monkeypatch):
    monkeypatch.setattr(aot, "SLOW", ["vlmx.abstract", "vlmx.hlo"])  # all that is needed here


def lowered(devices):
    """A loop of products, a sum over all chips, a weight that is updated in place, an argument that is not used."""

    def step(w, x, unused):
        body = lambda x, w: (jax.nn.softmax(x @ w), None)
        return w - jax.grad(lambda w: jax.lax.scan(body, x, w)[0][:, 0].sum())(w), x.sum()

    mesh = shard.make_mesh({"data": len(devices)}, devices)
    w = abstract.placed(abstract.of(jnp.float32, 6, 256, 256), shard.on(mesh))
    x = abstract.placed(abstract.of(jnp.float32, 64 * len(devices), 256), shard.batch(mesh))
    return jax.jit(step, donate_argnums=0).lower(w, x, x)


def both(name):
    """(as early as possible, whole) for a slice."""
    slice = chips.parse(name)
    chips.prepare([slice])
    program = lowered(chips.devices(slice))
    return aot.early(program), aot.whole(program)


@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="there is no libtpu for this machine")
def test_a_program_is_the_same_before_its_machine_code_is_written():
    early, whole = aot.apart(both, "v5e:2x2")
    assert early.code is None and whole.code > 0  # libtpu still dumps what is read in its place
    assert early[1:3] == whole[1:3] and early.temporaries == pytest.approx(whole.temporaries, abs=2**14)
    assert early.kept == whole.kept == {0, 1}
    assert whole.arguments == 4 * (6 * 256 * 256 + 64 * 256) and whole.results < 2**12
    first, second = hlo.cost(early.text), hlo.cost(whole.text)
    assert first == second and first.flops == 6 * 3 * 2 * 64 * 256 * 256
    assert first.collectives.total() > 4 * 6 * 256 * 256


def test_another_compiler_is_waited_for():
    early, whole = (of(lowered(jax.devices()[:2])) for of in (aot.early, aot.whole))
    assert early[1:] == whole[1:] and hlo.cost(early.text) == hlo.cost(whole.text)


def fails(how):
    if how == "dies":
        os._exit(7)
    raise UserError("no such thing")


def test_what_goes_wrong_apart_is_told_here():
    with pytest.raises(UserError, match="no such thing"):
        aot.apart(fails, "says")
    with pytest.raises(UserError, match="exit status 7"):
        aot.apart(fails, "dies")


# A chip's main memory has no colour, or colour 0.
ASSIGNED = """BufferAssignment:
allocation 0: size 4096, page 0, thread-local:
allocation 1: size 1024, page 0, parameter 0, shape |f32[256]| at ShapeIndex {}, maybe-live-out:
 value: <1 a @0> (size=1024,offset=0): f32[256]{0:T(256)}
allocation 2: size 512, page 0, parameter 1, shape |f32[8]| at ShapeIndex {}:
allocation 3: size 64, page 0, constant:
allocation 4: size 128, page 0, maybe-live-out:
allocation 5: size 32, page 0, output shape is |(f32[256], f32[])|, maybe-live-out:
allocation 6: size 512, color 6, page 0, parameter 2, shape |s32[]| at ShapeIndex {}:
allocation 7: size 2048, page 0, preallocated-temp:
allocation 8: size 65536, color 1, page 0, preallocated-temp:
"""


def test_memory_is_read_from_where_arrays_were_placed():
    assert aot.placed(ASSIGNED) == (1024 + 512, 128 + 32, 2048)
