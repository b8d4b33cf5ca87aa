"""Plans: what a compiled program is said to do, held to counts from the architecture; and the command."""

import functools
import json
import os

import jax
import jax.numpy as jnp
import pytest

from vlmx import abstract, chips, hlo, plan
from vlmx.errors import UserError
from vlmx.models import zoo

NAMES = "coop,cocoop,vpt,maple,promptsrc,apex,clip_adapter,taskres,tip_adapter_f,clip_lora,full"
FEW = ("coop", "vpt", "tip_adapter_f", "clip_lora")  # every kind of step; VLMX_TEST_ALL=1: all of them
B, C, E, SHOTS = 8, 1000, 512, 16  # images of a step, classes, feature size, images a class


# -------------------------------------------------------------------- operations by hand
def tower(n, T, D, L, train=False, weights=False):
    """FLOPs of n sequences of T tokens in L blocks of width D: four square maps and two of 4 D, scores and their sum.

    train: and backward to what goes in, where each linear map costs once more and attention, whose both sides depend on
    it, twice; weights: and to the weights, a linear map's third time.
    """
    linear, attention = 2 * n * T * 12 * D**2, 4 * n * T**2 * D
    return L * (linear * (1 + train + weights) + attention * (1 + 2 * train))


def vision(n, extra=0, train=False, weights=False):
    """The image tower of ViT-B/16: 196 patches of 16 x 16 x 3, the class token, `extra` prompts; the projection."""
    ends = 2 * n * 196 * 768 * 768 * (1 + weights) + 2 * n * 768 * E * (1 + train + weights)
    return tower(n, 197 + extra, 768, 12, train, weights) + ends


def text(n, T, train=False, weights=False):
    """Its text tower, 12 blocks of width 512; the projection."""
    return tower(n, T, 512, 12, train, weights) + 2 * n * 512 * E * (1 + train + weights)


def low_rank(n, T, D, r=2, maps=3, L=12):
    """Low-rank updates: into r and out of it, forward, and both factors' and the input's gradients."""
    return L * maps * 3 * 2 * n * T * 2 * D * r


def by_hand(name, T):
    """FLOPs of a step of B images among C classes with texts of T tokens."""
    logits = lambda times: 2 * B * C * E * times  # forward, and backward to one side or to both
    return {
        # 63 rows of 17 tokens that all texts begin with and 16 texts' others; the last row is filled up
        "coop": lambda: (
            tower(63, 17 + 16 * (T - 17), 512, 12, True) + 2 * 63 * 16 * 512 * E * 2 + vision(B) + logits(2)
        ),
        # every class in B texts of its own, computed again in the backward pass, and logits for each image apart
        "cocoop": lambda: text(B * C, T, True) + text(B * C, T) + vision(B) + logits(3),
        "vpt": lambda: vision(B, 8, True) + logits(2),
        "ivlp": lambda: vision(B, 2, True) + text(C, T, True) + logits(3),
        # 9 layers of 2 vectors go through maps of 512 x 768
        "maple": lambda: vision(B, 2, True) + text(C, T, True) + logits(3) + 9 * 2 * 2 * 512 * 768 * 3,
        # beside the prompted towers the frozen one, as the teacher, and its logits
        "promptsrc": lambda: vision(B, 4, True) + vision(B) + text(C, T, True) + logits(4),
        "apex": lambda: vision(B, 2, True) + text(C, T, True) + logits(3) + 3 * 2 * C * E**2,
        "clip_adapter": lambda: vision(B) + logits(2) + 2 * B * 2 * E * E // 4 * 3,
        "taskres": lambda: vision(B) + logits(2),
        # affinities with the keys, of which the images' side is frozen; their sum by class is a product with the labels
        "tip_adapter_f": lambda: vision(B) + logits(1) + 2 * B * SHOTS * C * E * 2 + 2 * B * SHOTS * C * C * 2,
        "clip_lora": lambda: (
            vision(B, 0, True) + text(C, T, True) + logits(3) + low_rank(B, 197, 768) + low_rank(C, T, 512)
        ),
        "full": lambda: vision(B, 0, True, True) + text(C, T, True, True) + logits(3),
    }[name]()


@functools.cache
def steps():
    """The training steps of every method on ViT-B/16 and ImageNet's classes, on one CPU."""
    config = plan.configured(
        f"configs/imagenet.py:{NAMES},seeds=1,protocols=few_shot",
        ("--config.model.dtype=bfloat16", "--config.model.param_dtype=bfloat16"),
    )
    return {s.name: s for s in abstract.classify(config, jax.devices()[:1], B) if s.kind == "train"}


def length(name):
    """Tokens of the longest prompt: the class name, its context, start, full stop and end."""
    config = zoo.MODELS["ViT-B/16"].config.text
    names = abstract.data_of(plan.configured("configs/imagenet.py:coop")).classnames
    words = abstract.Lengths(config.context, config.vocab)([n.replace("_", " ") for n in names])
    longest = int((words > 0).sum(1).max()) - 2
    return longest + (16 if name == "coop" else 4) + 3


@pytest.mark.parametrize("name", NAMES.split(",") if "VLMX_TEST_ALL" in os.environ else FEW)
def test_the_operations_of_a_methods_step_are_those_counted_by_hand(name):
    step = steps()[name]
    found = hlo.cost(step.lower(*step.arguments).compile().as_text())
    assert not found.unknown
    assert found.flops / step.steps == pytest.approx(by_hand(name, length(name)), rel=0.02)


# -------------------------------------------------------------------- loops
def looped(unroll, n=5):
    def f(w, x):
        body = lambda x, w: (jnp.tanh(x @ w), None)
        return jax.grad(lambda x: jax.lax.scan(body, x, w, unroll=unroll)[0].sum())(x)

    shapes = abstract.of(jnp.float32, n, 16, 16), abstract.of(jnp.float32, 8, 16)
    return jax.jit(f).lower(*shapes).compile()


def test_a_loops_body_counts_as_often_as_it_runs():
    scanned, written_out = looped(1), looped(5)
    assert "while" in scanned.as_text() and "while" not in written_out.as_text()
    both = [hlo.cost(program.as_text()) for program in (scanned, written_out)]
    assert both[0].flops == both[1].flops == 2 * 5 * 2 * 8 * 16 * 16
    assert not both[0].unknown
    assert scanned.cost_analysis()["flops"] < both[0].flops  # XLA's own count has the body once


def test_a_scanned_backbone_counts_as_the_one_written_out():
    costs = []
    for unroll in (False, True):
        from contract_test import backbone

        model = backbone("vit_deep", unroll=unroll)
        images = abstract.of(jnp.float32, 2, 24, 24, 3)
        score = jax.grad(lambda images, model: model.image(images).sum())
        costs.append(hlo.cost(jax.jit(score).lower(images, model).compile().as_text()))
    assert costs[0].flops == pytest.approx(costs[1].flops, rel=0.01)


# What TPUs' compiler writes: a loop whose limit stands in its condition, a batched product as a convolution with holes,
# an asynchronous copy into the chip's fast memory, a kernel that cannot be looked into.
TPU = """
HloModule tpu

%body (p.1: (s32[], bf16[32,12,205,64])) -> (s32[], bf16[32,12,205,64]) {
  %p.1 = (s32[]{:T(128)}, bf16[32,12,205,64]{3,2,1,0:T(8,128)(2,1)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  %q.1 = bf16[32,12,205,64]{3,2,1,0:T(8,128)(2,1)} get-tuple-element(%p.1), index=1
  %s.1 = f32[32,12,205,205]{3,2,1,0:T(8,128)S(1)} convolution(%q.1, %q.1), WINDOW, operand_precision={highest,highest}
  %r.1 = bf16[4,8]{1,0:T(8,128)(2,1)} all-reduce(%x.1), channel_id=1, GROUPS, to_apply=%add
  %x.1 = bf16[4,8]{1,0:T(8,128)(2,1)} custom-call(), custom_call_target="my_kernel"
  ROOT %t.1 = (s32[]{:T(128)}, bf16[32,12,205,64]{3,2,1,0:T(8,128)(2,1)}) tuple(%i.1, %q.1)
}

%condition (p.2: (s32[], bf16[32,12,205,64])) -> pred[] {
  %c.2 = s32[]{:T(128)} constant(12)
  %p.2 = (s32[]{:T(128)}, bf16[32,12,205,64]{3,2,1,0:T(8,128)(2,1)}) parameter(0)
  %i.2 = s32[]{:T(128)} get-tuple-element(%p.2), index=0
  ROOT %lt.2 = pred[]{:T(512)} compare(%i.2, %c.2), direction=LT
}

ENTRY %main (a: bf16[32,12,205,64]) -> bf16[32,12,205,64] {
  %a = bf16[32,12,205,64]{3,2,1,0:T(8,128)(2,1)} parameter(0)
  %z = s32[]{:T(128)} constant(0)
  %t = (s32[]{:T(128)}, bf16[32,12,205,64]{3,2,1,0:T(8,128)(2,1)}) tuple(%z, %a)
  %w = (s32[]{:T(128)}, bf16[32,12,205,64]{3,2,1,0:T(8,128)(2,1)}) while(%t), condition=%condition, body=%body
  ROOT %o = bf16[32,12,205,64]{3,2,1,0:T(8,128)(2,1)} get-tuple-element(%w), index=1
}
"""
TPU = TPU.replace("WINDOW", "window={size=32x12 stride=31x11 lhs_dilate=32x12}, dim_labels=01bf_01oi->01bf")
TPU = TPU.replace("GROUPS", "replica_groups=mesh['axis_0'=8] {'axis_0'}")


def test_what_the_compiler_for_tpus_writes_is_understood():
    found = hlo.cost(TPU)
    products = 12 * 2 * 32 * 12 * 205 * 205 * 64
    assert (found.flops, found.passes) == (products, 6 * products)
    assert found.collectives == {("all-reduce", 8): 12 * 2 * 32} and found.times == {("all-reduce", 8): 12}
    assert found.unknown == {"custom call my_kernel": 12}
    read = 32 * 12 * 208 * 128 * 2  # twice a step, in whole tiles; the scores stay in fast memory
    assert 12 * 2 * read <= found.bytes <= 12 * (2 * read + 5 * 8 * 128 * 2)


def test_a_loop_of_unknown_length_is_named():
    assert "length of the loop w" in hlo.cost(TPU.replace("direction=LT", "direction=NE")).unknown


# -------------------------------------------------------------------- chips and times
def test_topologies_have_two_names_and_the_number_of_their_chips():
    assert chips.parse("v5e-256") == chips.parse("v5e:16x16") and chips.parse("v5e-256").size == 256
    assert chips.parse("v5p-8").name == "v5p:2x2x1" and chips.parse("v4:2x2x2").size == 8
    assert chips.parse("cpu:8") == ("cpu:8", None, 8)
    for wrong, said in {"v5e:3x3": "16x16 .v5e-256", "v7-8": "Did you mean|Valid", "cpu:0": "Valid"}.items():
        with pytest.raises(UserError, match=said):
            chips.parse(wrong)


def test_times_are_what_the_published_peaks_allow():
    cost = hlo.Cost(1e12, 2e12, 819e9, {("all-reduce", 8): 1e9, ("all-gather", 4): 1e9})
    took = chips.times(cost, chips.parse("v5e-8"))
    assert took["compute"] == pytest.approx(2 / 197) and took["memory"] == pytest.approx(1)
    assert took["network"] == pytest.approx((2 * 7 / 8 + 3) / 200)


def test_without_libtpu_it_says_where_to_get_it(monkeypatch):
    monkeypatch.setattr(chips.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("XLA_FLAGS", "")
    with pytest.raises(UserError, match="pip install libtpu"):
        chips.prepare([chips.parse("v5e-8")])


# -------------------------------------------------------------------- the command
@pytest.fixture
def here(monkeypatch):
    """The plan runs in this process, whose devices are there already."""
    monkeypatch.setattr(chips, "prepare", lambda slices: None)


CONFIG = ("--config", "configs/digits.py:taskres,seeds=1,protocols=few_shot", "--config.recipe.taskres.batch=20")


def test_the_command_says_what_a_chip_holds_and_writes_it(here, tmp_path, capsys):
    given = [*CONFIG, "--topology", "cpu:8", "--workdir", str(tmp_path)]
    assert plan.main(given) == 0
    said = capsys.readouterr().out
    assert "taskres" in said and "batch 20 made 24, which the mesh divides" in said
    plans = {p["step"]: p for p in json.loads((tmp_path / "plan.json").read_text())["plans"]}
    assert {p["kind"] for p in plans.values()} == {"train", "test", "encode"}
    one = plans["taskres"]
    assert one["examples"] == 24 and one["steps_a_call"] * one["calls"] == 200 * 8  # epochs of 160 images
    assert sum(one["memory"].values()) == one["peak"] and min(one["memory"].values()) >= 0
    assert {c["kind"] for c in one["collectives"]} == {"all-reduce"}
    assert (tmp_path / "memory.svg").read_text().startswith("<svg") and "| taskres |" in (
        tmp_path / "plan.md"
    ).read_text()
    before = (tmp_path / "plan.json").read_text()
    assert plan.main(given) == 0 and (tmp_path / "plan.json").read_text() == before  # what is there stays


def test_a_chip_does_the_same_on_slices_of_equal_work(here):
    config = plan.configured(CONFIG[1])
    (two,), (four,) = (
        [s for s in abstract.classify(config, jax.devices()[:n], 8 * n) if s.kind == "train"] for n in (2, 4)
    )
    first, second = plan.measure(two, chips.parse("cpu:2")), plan.measure(four, chips.parse("cpu:4"))
    copied = plan.twin(four, chips.parse("cpu:4"), [first])
    same = ("flops", "bytes", "examples", "calls", "collectives", "chips")
    assert {k: copied[k] for k in same} == {k: second[k] for k in same}
    assert plan.twin(four, chips.parse("cpu:8"), [first]) is None


def test_memory_is_the_compilers_own_account(here):
    config = plan.configured(CONFIG[1])
    (step,) = (s for s in abstract.classify(config, jax.devices(), 24) if s.kind == "train")
    found, m = plan.measure(step, chips.parse("cpu:8")), step.lower(*step.arguments).compile().memory_analysis()
    account = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes + m.temp_size_in_bytes
    # what the compiler counts, and what lies there beside it: jax does not pass the towers to a step on stored features
    assert found["peak"] == account + m.generated_code_size_in_bytes + found["idle"]
    assert found["idle"] > 0.9 * found["memory"]["parameters"]
    model = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(step.held["parameters"]))
    assert found["memory"]["parameters"] == model  # a copy on each chip: the mesh cuts batches alone


@pytest.mark.parametrize(
    "given, said",
    [
        (["--topology", "cpu:8", "--config", "configs/digits.py:taskres", "--fit", "batch"], "is not known"),
        (["--topology", "cpu:8", "--config", "configs/digits.py:taskres", "--config.shoots=3"], "shots"),
        (["--topology", "cpu:8", "--variants", "single_adapte"], "single_adapter"),
        (["--topology", "cpu:8", "--config", "configs/pretrain_clip.py"], "classification"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_words(here, given, said, capsys):
    assert plan.main(given) == 2 and said in capsys.readouterr().err


def fake(kind, size):
    """Plans whose memory grows with the batch of a chip."""

    def steps(slice, batch):
        yield abstract.Step("m", kind, None, 1, batch or 64, 1, {"chips": slice.size}, ())

    def measure(step, slice):
        used = step.examples / slice.size * chips.GIB
        return {"examples": step.examples, "topology": slice.name, "fits": used <= slice.chip.hbm}

    return steps, measure


def test_the_largest_batch_and_the_smallest_slice_that_fit(monkeypatch):
    steps, measure = fake("train", 0)
    monkeypatch.setattr(plan, "measure", measure)
    assert plan.largest(steps, chips.parse("v5e-8"), "m")["examples"] == 8 * 16
    assert plan.smallest(steps, chips.parse("v5e-8"), 64, "m")["topology"] == "v5e:2x2"
    assert plan.smallest(steps, chips.parse("v5e-8"), 16 * 256 + 1, "m") is None


def test_what_does_not_fit_is_said_with_what_it_would_take(here, monkeypatch, capsys):
    def refuse():
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
            "Used 20.50G of 15.75G hbm. Exceeded hbm capacity by 4.75G."
        )

    step = abstract.Step("m", "train", refuse, 1, 64, 1, {}, ())
    found = plan.measure(step, chips.parse("v5e-8"))
    assert found["fits"] is False and found["peak"] == 20.5 * chips.GIB
    assert "20.50 of 16" in plan.table([found]) and "NO" in plan.table([found])
