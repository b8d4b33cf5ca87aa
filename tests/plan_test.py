"""Plans: what a compiled program is said to do, held to counts from the architecture; and the command."""

import functools
import json
import os

import jax
import jax.numpy as jnp
import pytest

from launch import plans
from vlmx import abstract, chips, fit, hlo, plan, shard, train, variant, vl_abstract
from vlmx.errors import UserError
from vlmx.models import zoo

NAMES = "coop,cocoop,vpt,ivlp,maple,promptsrc,apex,clip_adapter,taskres,tip_adapter_f,xmadapter,clip_lora,full"
FEW = ("coop", "vpt", "xmadapter", "clip_lora")  # every kind of step; VLMX_TEST_ALL=1: all of them


# -------------------------------------------------------------------- operations, and those counted by hand
@functools.cache
def steps():
    """The training steps of every method on ViT-B/16 and ImageNet's classes, on one CPU."""
    config = plan.configured(
        f"configs/imagenet.py:{NAMES},seeds=1,protocols=few_shot",
        ("--config.model.dtype=bfloat16", "--config.model.param_dtype=bfloat16"),
    )
    return {s.name: s for s in abstract.classify(config, jax.devices()[:1], 8) if s.kind == "train"}


@pytest.mark.parametrize("name", NAMES.split(",") if "VLMX_TEST_ALL" in os.environ else FEW)
def test_the_operations_of_a_methods_step_are_those_counted_by_hand(name):
    step = steps()[name]
    K, lowered = step.program()
    found = hlo.cost(lowered.compile().as_text())
    expected = plans.of_method(name, zoo.MODELS["ViT-B/16"].config, 8, plans.prompt_length(name))
    assert not found.unknown
    assert found.flops / K == pytest.approx(expected, rel=0.02)


# -------------------------------------------------------------------- the same of vision and language
VARIANTS = [(name, size) for name in variant.PUBLISHED for size in ("tiny_bart", "tiny_t5")]
FEW_VARIANTS = [("single_adapter", "tiny_bart"), ("single_lora", "tiny_bart"), ("single_prompt", "tiny_t5")]


@pytest.mark.parametrize("name, size", VARIANTS if "VLMX_TEST_ALL" in os.environ else FEW_VARIANTS)
def test_the_operations_of_a_variants_step_are_those_counted_by_hand(name, size):
    config = plan.configured(f"configs/scenes_vl.py:{name},backbone={size},smoke", ["--config.steps_per_call=1"])
    (step,) = (s for s in vl_abstract.steps(config, jax.devices()[:1]) if s.kind == "train")
    found = hlo.cost(step.program()[1].compile().as_text())
    assert not found.unknown
    c = vl_abstract.backbone(config, shard.make_mesh(None, jax.devices()[:1]), (16, 128))[0].config
    sizes = {"text": 20, "target": 6, "places": 16, "features": 128, "rank": 16, "length": 10, "hidden": 128}
    assert found.flops == pytest.approx(plans.of_variant(name, c, 16, **sizes), rel=0.02)


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


def test_a_loop_that_may_end_early_counts_as_long_as_it_can_last():
    def f(w, x):
        go_on = lambda s: (s[0] < 6) & ~(s[1] > 1e6).all()
        return jax.lax.while_loop(go_on, lambda s: (s[0] + 1, jnp.tanh(s[1] @ w)), (1, x))[1]

    shapes = abstract.of(jnp.float32, 16, 16), abstract.of(jnp.float32, 8, 16)
    found = hlo.cost(jax.jit(f).lower(*shapes).compile().as_text())
    assert found.flops == 5 * 2 * 8 * 16 * 16 and not found.unknown


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


# A slice that is copied into fast memory meanwhile, as libtpu dumps it and, by another name, as jax writes it; and a
# gather that another core does.
MEANWHILE = """
HloModule meanwhile

%slices (p.1: bf16[1000,128]) -> bf16[250,128] {
  %p.1 = bf16[1000,128]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %s.1 = bf16[250,128]{1,0:T(8,128)(2,1)S(1)} slice(%p.1), slice={[0:250], [0:128]}
}

%gathers (p.2: bf16[1000,128], i.2: s32[512]) -> bf16[512,128] {
  %p.2 = bf16[1000,128]{1,0:T(8,128)(2,1)} parameter(0)
  %i.2 = s32[512]{0:T(512)} parameter(1)
  ROOT %g.2 = bf16[512,128]{1,0:T(8,128)(2,1)} gather(%p.2, %i.2), slice_sizes={1,128}
}

ENTRY %main (a: bf16[1000,128], i: s32[512]) -> bf16[512,128] {
  %a = bf16[1000,128]{1,0:T(8,128)(2,1)} parameter(0)
  %i = s32[512]{0:T(512)} parameter(1)
  %s = ((bf16[1000,128]{1,0:T(8,128)(2,1)}), bf16[250,128]{1,0:T(8,128)(2,1)S(1)}, s32[]{:S(2)}) async-start(%a), calls=%slices
  %d = bf16[250,128]{1,0:T(8,128)(2,1)S(1)} async-done(%s)
  ROOT %c = bf16[512,128]{1,0:T(8,128)(2,1)} custom-call(%a, %i), custom_call_target="TODO", called_computations={%gathers}
}
"""  # noqa: E501


def test_what_is_done_meanwhile_counts_as_it_would_alone():
    found = hlo.cost(MEANWHILE)
    assert found.bytes == 2 * 250 * 128 + 2 * 2 * 512 * 128 and not found.unknown
    named = MEANWHILE.replace("async-start(%a), calls=%slices", "slice-start(%a), slice={[0:250], [0:128]}")
    assert hlo.cost(named.replace("async-done", "slice-done")) == found


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


def test_the_program_is_the_runs_own(here, tmp_path, monkeypatch):
    named, ran, lower = "configs/digits.py:taskres,seeds=2,shots=(1,2),protocols=few_shot", [], fit.lower
    fields = ["--config.recipe.taskres.epochs=3", "--config.recipe.taskres.epochs_by_shots=()"]

    def spy(*args):
        ran.append(lower(*args))
        return ran[-1]

    monkeypatch.setattr(fit, "lower", spy)
    config = plan.configured(named, fields)
    (step,) = (s for s in abstract.classify(config, jax.devices()) if s.kind == "train")  # of all shots and seeds
    train.run(config, tmp_path)
    (K, lowered), planned = ran[0], step.program()
    assert len(ran) == 2 and planned[0] == K == 3 and planned[1].as_text() == lowered.as_text()


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


def test_a_step_alone_is_the_one_among_all(here):
    config = plan.configured("configs/digits.py:taskres,clip_adapter,seeds=1,protocols=few_shot")
    trained = lambda *only: [s for s in abstract.classify(config, jax.devices(), 0, *only) if s.kind == "train"]
    (first, second), (alone,) = trained(), trained("clip_adapter")
    assert (first.name, second.name, alone.name) == ("taskres", "clip_adapter", "clip_adapter")
    assert alone.program()[1].as_text() == second.program()[1].as_text() and alone.notes == second.notes


def test_memory_is_the_compilers_own_account(here):
    config = plan.configured(CONFIG[1])
    (step,) = (s for s in abstract.classify(config, jax.devices(), 24) if s.kind == "train")
    found, m = plan.measure(step, chips.parse("cpu:8")), step.program()[1].compile().memory_analysis()
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
        (["--topology", "cpu:8", "--config", "configs/image_text.py:single_adapte"], "single_adapter"),
        (["--topology", "cpu:8", "--config", "configs/pretrain_clip.py"], "classification"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_words(here, given, said, capsys):
    assert plan.main(given) == 2 and said in capsys.readouterr().err


def planned(gib, most=2**20):
    """Batch -> a plan whose chips, of v5e, need `gib` (images of a chip); no more than `most` images are there."""
    asked = []

    def plan_of(batch):
        batch = min(batch, most)
        asked.append(batch)
        peak, limit = gib(batch / 8) * chips.GIB, chips.CHIPS["v5e"].usable
        return {"examples": batch, "peak": peak, "limit": limit, "fits": peak <= limit}

    return plan_of, asked


@pytest.mark.parametrize(
    "gib",
    [
        lambda n: 0.5 + n / 100,
        lambda n: 0.5 + n / 100 + (n / 1000) ** 2,  # no line
        lambda n: 0.5 + n / 100 + max(0, n - 16) / 20,
        lambda n: 3.0 + n,
        lambda n: 15.0 + n / 2,
    ],
)
def test_the_largest_batch_that_fits_is_found_in_a_few_compiles(gib):
    plan_of, asked = planned(gib)
    found = plan.largest(plan_of, 8)
    n = found["examples"] / 8
    assert found["fits"] and n == int(n) and not plan_of(8 * (int(n) + max(1, -(-int(n) // 12))))["fits"]
    assert len(asked) <= 8


def test_a_batch_fits_up_to_the_training_set_or_not_at_all():
    plan_of, asked = planned(lambda n: n / 100, most=400)
    assert plan.largest(plan_of, 8)["examples"] == 400 and len(asked) <= 4
    assert plan.largest(planned(lambda n: 16 + n)[0], 8) is None


def test_the_smallest_slice_that_fits():
    plan_of = lambda of: lambda one: {"topology": one.name, "fits": of / one.size <= 15}
    assert plan.smallest(plan_of(64), chips.parse("v5e-8"))["topology"] == "v5e:2x4"
    assert plan.smallest(plan_of(15 * 256 + 1), chips.parse("v5e-8")) is None


GIVES_UP = (
    ("XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm.", 0),
    ("E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO temporaries (20.50G) "
     "exceeds available HBM (15.75G). HLO module: jit_call.", 2**20),
)  # fmt: skip


@pytest.mark.parametrize("message, beside", GIVES_UP)
def test_what_does_not_fit_is_said_with_what_it_would_take(here, message, beside):
    class Refused:
        def compile():
            raise jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {message}")

    held = {"parameters": abstract.placed(abstract.of(jnp.float32, 2**18), shard.on(shard.make_mesh()))}
    found = plan.measure(abstract.Step("m", "train", lambda: (1, Refused), 1, 64, held, ()), chips.parse("v5e-8"))
    assert found["fits"] is False and found["peak"] == 20.5 * chips.GIB + beside
    assert sum(found["memory"].values()) == found["peak"] and found["memory"]["parameters"] == 2**20
    assert "20.50 of 15.75" in plan.table([found]) and "NO" in plan.table([found])


def test_a_program_that_cannot_be_read_has_its_memory_told_alone(here):
    class Unreadable:
        def __init__(self, program):
            self.memory_analysis, self._executable = program.memory_analysis, program._executable

        def as_text(self):
            raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure")

    compiled = Unreadable(jax.jit(lambda x: x @ x).lower(abstract.of(jnp.float32, 8, 8)).compile())
    lowered = type("Lowered", (), {"compile": lambda self: compiled})()
    found = plan.measure(abstract.Step("m", "train", lambda: (1, lowered), 1, 64, {}, ()), chips.parse("v5e-8"))
    assert found["peak"] >= 2 * 8 * 8 * 4 and found["fits"] and "flops" not in found
    assert "not counted: the operations" in plan.table([found])
