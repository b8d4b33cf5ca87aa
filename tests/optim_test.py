"""Optimisers and schedules against the official PyTorch trajectories."""

import re

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
from golden_cases import assert_close, load

from vlmx import optim
from vlmx.errors import UserError


def rates(schedule, steps):
    padded = np.zeros(-(-len(steps) // 512) * 512, np.int64)  # one shape, so one compilation, for most
    padded[: len(steps)] = steps
    return np.asarray(jax.vmap(schedule)(padded))[: len(steps)]


def trajectory(tx, start, grads):
    def step(carry, g):
        params, state = carry
        updates, state = tx.update(g, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    return jax.jit(lambda p, g: jax.lax.scan(step, (p, tx.init(p)), g)[1])(start, grads)


def dassl_options(h):
    """Dassl's configuration keys (any case) -> ours."""
    h = {k.lower(): v for k, v in h.items()}
    kind, warmup = h.get("warmup_type", "linear"), max(h.get("warmup_epoch", 0), 0)
    plan = dict(name="dassl", warmup=warmup, kind=kind, recount=h.get("warmup_recount", True))
    plan["first"] = h.get("warmup_cons_lr" if kind == "constant" else "warmup_min_lr", 1e-5)
    size = h.get("stepsize", [-1])
    if h.get("lr_scheduler", "cosine") == "single_step":
        plan.update(every=size[-1] if size[-1] > 0 else h["max_epoch"])
    elif h.get("lr_scheduler", "cosine") == "multi_step":
        plan.update(at=size)
    return plan | ({"gamma": h["gamma"]} if "gamma" in h else {})


@pytest.mark.golden("clip/optim")
def test_golden_official_configurations(golden):
    """Rates and three-steps-per-epoch trajectories of the methods' configurations, through `make`."""
    case, tensors = load(golden)
    common = {k: v for k, v in case["hyperparameters"].items() if not isinstance(v, dict)}
    for name, h in case["hyperparameters"].items():
        h = common | {k.lower(): v for k, v in h.items()} if isinstance(h, dict) else {}
        if "name" in h:  # in Dassl's words
            h["optimizer"] = h["name"]
        if "optimizer" not in h:  # a method that is not built yet describes its own otherwise
            continue
        t = {k.split("/", 1)[1]: v for k, v in tensors.items() if k.startswith(name + "/")}
        config = {"name": h["optimizer"].lower(), "lr": h["lr"], "wd": h["weight_decay"]}
        if "schedule" in h:
            end, total = re.search(r"cosine per step to (\S+) over (\d+) steps", h["schedule"]).groups()
            per_epoch, total = 1, int(total)
            config |= {"eps": h["eps"], "b1": h["betas"][0], "b2": h["betas"][1]}
            config["schedule"] = {"name": "cosine", "end": float(end)}
        else:
            per_epoch = h["steps_per_epoch"]
            total = per_epoch * h["max_epoch"]
            config["schedule"] = dassl_options(h)
        tx, schedule = optim.make(config, per_epoch, total, t["param0"])
        every = total // len(t["learning_rates"])  # of each step, or of each epoch
        assert_close(rates(schedule, np.arange(0, total, every)), t["learning_rates"], 2e-6, f"{name}: learning rates")
        every = len(t["grads"]) // len(t["params"])
        params = trajectory(tx, t["param0"], t["grads"])[every - 1 :: every]
        assert_close(params, t["params"], 2e-5, f"{name}: parameters")


@pytest.mark.golden("optimizers*.json")
def test_golden_optimizers(golden):
    table = load(golden)
    for case in table["cases"]:
        s = dict(case["settings"])
        assert not s.pop("dampening", 0) and not s.pop("nesterov", False) and not s.pop("amsgrad", False)
        b1, b2 = s.pop("betas", (None, None))
        rule = optim.OPTIMISERS[case["name"].split()[0].lower()]
        rule = rule(wd=s.pop("weight_decay", 0.0), **({"b1": b1, "b2": b2} if b1 else {}), **s)
        for dtype, tol in (np.float64, 1e-12), (np.float32, 2e-6):
            with jax.enable_x64(dtype is np.float64):
                tx = optax.chain(rule, optax.scale_by_learning_rate(jnp.asarray(case["lr"]).__getitem__))
                got = trajectory(tx, np.asarray(table["initial_params"], dtype), np.asarray(table["grads"], dtype))
            assert got.dtype == dtype
            assert_close(got, case["params_after_each_step_float64"], tol, f"{case['name']}, {dtype.__name__}")


@pytest.mark.golden("schedules*.json")
def test_golden_schedules(golden):
    """Every official configuration, Dassl's generic cases, the per-step ones and PromptSRC's weights."""
    table = load(golden)
    cases = []
    for c in table.get("epoch_schedules", ()):
        cases.append((c["config"], c["base_lr"], c["max_epoch"], dassl_options(c), range(len(c["lr"])), c["lr"]))
    for c in table.get("dassl_generic_cases", ()):
        o = c["OPTIM"]
        cases.append((c["name"], o["LR"], o["MAX_EPOCH"], dassl_options(o), range(len(c["lr"])), c["lr"]))
    for c in table.get("per_step_schedules", {}).get("cases", ()):
        cases.append((c["name"], c["lr0"], c["T_max"], {"name": "cosine", "end": c["eta_min"]}, c["step"], c["lr"]))
    for name, lr, total, plan, steps, want in cases:
        per_epoch = 7 if plan["name"] == "dassl" else 1
        schedule = optim.make({"name": "sgd", "lr": lr, "schedule": plan}, per_epoch, total * per_epoch, {})[1]
        first, last = np.asarray(steps) * per_epoch, np.asarray(steps) * per_epoch + per_epoch - 1
        with jax.enable_x64(True):
            np.testing.assert_allclose(rates(schedule, last), want, rtol=1e-12, atol=1e-12 * lr, err_msg=name)
        np.testing.assert_allclose(rates(schedule, first), want, rtol=2e-5, atol=1e-9 * lr, err_msg=name)
    for c in table.get("promptsrc_gaussian_weights", {}).get("cases", ()):
        got = optim.gaussian_weights(c["max_epoch"], c["GPA_MEAN"], c["GPA_STD"])
        np.testing.assert_allclose(got, c["weights"], rtol=1e-12, err_msg=c["setting"])


PARAMS = {"head": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "prompt": jnp.ones(3)}
ONES = jax.tree.map(jnp.ones_like, PARAMS)


def one_step(config, grads=ONES):
    tx, _ = optim.make(config, 1, 10, PARAMS)
    return jax.tree.map(lambda u: round(float(u.ravel()[0]), 6), tx.update(grads, tx.init(PARAMS), PARAMS)[0])


def test_groups_have_their_own_rate_and_options_and_false_stands_still():
    groups = [(".*bias", {"lr": 2.0, "wd": 0.5}), ("prompt", False), (".*", {})]
    config = ml_collections.ConfigDict({"name": "sgd", "lr": 0.1, "wd": 0.0, "groups": groups})
    assert one_step(config) == {"head": {"kernel": -0.1, "bias": -0.3}, "prompt": 0.0}


def test_clip_is_the_norm_of_all_groups_together():
    config = {"name": "sgd", "lr": 1.0, "wd": 0.0, "clip": 1.0, "groups": [("prompt", {"lr": 3.0}), (".*", {})]}
    assert one_step(config) == {"head": {"kernel": -round(1 / 3, 6), "bias": -round(1 / 3, 6)}, "prompt": -1.0}


def test_the_state_counts_the_given_parameters_only():
    tx, _ = optim.make({"name": "sgd", "lr": 0.1}, 1, 10, PARAMS)
    assert sum(x.size for x in jax.tree.leaves(tx.init(PARAMS))) == 9 + 1  # a buffer each, and the step


@pytest.mark.parametrize("config, said", [
    ({"name": "adamm", "lr": 1}, "unknown optimiser 'adamm'. Did you mean 'adamw'|'adam'"),
    ({"name": "sgd", "lr": 1, "momentun": 0.9}, "unknown option of optimiser sgd 'momentun'. Did you mean 'momentum'"),
    ({"name": "sgd", "lr": 1, "schedule": {"name": "cosin"}}, "unknown schedule 'cosin'. Did you mean 'cosine'"),
    ({"name": "sgd", "lr": 1, "schedule": {"name": "dassl", "warm": 1}}, "option of schedule dassl 'warm'.*'warmup'"),
    ({"name": "sgd", "lr": 1, "schedule": {"name": "dassl", "kind": "lin"}}, "kind of warm-up 'lin'.*'linear'"),
    ({"name": "sgd", "lr": 1, "schedule": {"name": "cosine", "warmup": 10}}, "leaves nothing of the 10 steps"),
    ({"name": "sgd", "lr": 1, "groups": [(".*", {"decay": 0})]}, "option of a group of optimiser sgd 'decay'"),
    ({"name": "sgd", "lr": 1, "groups": [("promt", {}), (".*", {})]}, "'promt' decides no parameter"),
    ({"name": "sgd"}, "lacks lr"),
])  # fmt: skip
def test_wrong_configs_are_named_with_what_is_valid(config, said):
    with pytest.raises(UserError, match=said):
        optim.make(config, 1, 10, PARAMS)


def test_warm_up_rises_to_the_rate_and_the_cosine_ends_where_it_should():
    config = {"name": "adamw", "lr": 1.0, "schedule": {"name": "cosine", "warmup": "40 percent", "end": 0.1}}
    got = rates(optim.make(config, 1, 10, {})[1], [0, 1, 3, 4, 7, 10, 12])
    np.testing.assert_allclose(got, [0.25, 0.5, 1, 1, 0.55, 0.1, 0.1], rtol=1e-6)


@pytest.mark.parametrize("duration, steps", [
    ("20 epochs", 140), ("1 epoch", 7), ("500 steps", 500), (9, 9), ("64 examples", 2), ("10 percent", 40), ("0.5%", 2)
])  # fmt: skip
def test_durations(duration, steps):
    assert optim.steps(duration, 7, batch=32, total=400) == steps


@pytest.mark.parametrize("duration", ["20 eons", "epochs", "", "-3 steps", None, "10 percent", "64 examples"])
def test_a_wrong_duration_is_an_error(duration):
    with pytest.raises(UserError, match="expected a number of steps, epochs, examples or percent"):
        optim.steps(duration, 7)
