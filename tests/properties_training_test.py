"""Whatever a method's hyper-parameters are, they make a method or an error for people."""

import inspect

from hypothesis import given
from hypothesis import strategies as st
from properties import settings

from vlmx import method as methods
from vlmx.errors import UserError

NAMES = [name for name in methods.names() if name not in ("contrastive", "denoising", "full", "text_adapter")]
NUMBERS = st.one_of(st.integers(-3, 200), st.integers(), st.floats(), st.booleans())
TEXTS = st.one_of(st.text(max_size=8), st.sampled_from(["", "qkvo", "half-up", "top", "ensemble", "a photo of"]))
LISTS = st.lists(NUMBERS, max_size=3)
VALUES = st.one_of(NUMBERS, TEXTS, st.none(), LISTS, st.dictionaries(TEXTS, NUMBERS, max_size=2))


@settings()
@given(st.sampled_from(NAMES), st.data())
def test_hyper_parameters_make_a_method_or_an_error_for_people(name, data):
    build = methods.importlib.import_module(f"vlmx.methods.{name}").make
    known = list(inspect.signature(build).parameters)
    hyper = data.draw(st.dictionaries(st.sampled_from(known), VALUES | TEXTS, max_size=3))
    try:
        assert isinstance(methods.make(name, **hyper), methods.Method)
    except UserError as e:  # that names the method, or the part of it that has the hyper-parameter
        parts = {"adapters": "adapter", "apex": "ensemble."}
        assert name in str(e) or parts.get(name, "nothing to train") in str(e) or "nothing to train" in str(e)
