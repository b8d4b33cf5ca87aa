"""Methods with a cache: Tip-Adapter against its official implementation, XMAdapter's identities, retrieval itself."""

import importlib

import contract_test as contract
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from golden_cases import assert_close, load
from golden_tools import load_case, tokenizer

from vlmx import method as methods
from vlmx import optim, settings, shard, train
from vlmx.data import fewshot
from vlmx.errors import UserError
from vlmx.methods import tip_adapter
from vlmx.models import zoo
from vlmx.models.clip import normalize
from vlmx.modules import retrieval

FORWARD, GRADIENT = 2e-5, 1e-4


# -------------------------------------------------------------------- against the official implementation
@pytest.mark.golden("clip/tip_adapter")
def test_golden_tip_adapter(golden):
    case, t, model = load_case(golden)
    h, left = case["hyperparameters"], {n for n in t if not n.startswith("in/")}

    def held(got, name, tol=FORWARD):
        if name in t:
            left.remove(name)
            assert_close(got, t[name], tol, name)

    hyper = {"alpha": float(h["init_alpha"]), "beta": float(h["init_beta"]), "scale": 100.0}
    hyper |= {"search_scale": tuple(h["search_scale"]), "search_step": tuple(h["search_step"])}
    tip, tip_f = (methods.make(name, **hyper) for name in ("tip_adapter", "tip_adapter_f"))
    words = tokenizer(golden, model.config.text.context)
    task = methods.Task(tuple(h["classes"]), tuple(h["templates"]), (), words)
    consts = tip.setup(model, task)
    held(consts["weights"].T, "out/clip_weights")
    views = jnp.stack([model.image(jnp.asarray(x).transpose(0, 2, 3, 1)) for x in t["in/train_pixel_values"]])
    held(views, "out/train_image_features_raw")
    support = {"views": views, "features": views[0], "label": jnp.asarray(t["in/train_labels"])}
    v, v_f = (method.init(jax.random.key(0), model, consts, support) for method in (tip, tip_f))
    np.testing.assert_array_equal(v["fixed"]["keys"], v_f["train"]["keys"])
    held(v["fixed"]["keys"].T, "out/cache_keys")
    held(v["fixed"]["keys"], "param/cache_keys_t")
    held(jax.nn.one_hot(v["fixed"]["label"], len(task.classnames)), "out/cache_values")
    val, test = ({"features": t[f"in/{x}_features"], "label": t[f"in/{x}_labels"]} for x in ("val", "test"))

    def say(method, v, batch):
        return method.apply(v, model, consts, batch)["logits"]

    def percent(logits, batch):
        return 100 * (np.asarray(logits).argmax(-1) == batch["label"]).mean()

    def searched(method, v, prefix):
        """The searched tree, held to the case's `prefix`."""
        where, keys = v["fixed"]["label"], (v["fixed"] | v["train"])["keys"]
        betas, alphas = (retrieval.grid(*one) for one in zip(h["search_scale"], h["search_step"]))
        zero, affinity = 100 * val["features"] @ consts["weights"].T, val["features"] @ keys.T
        held(retrieval.search(zero, affinity, where, val["label"], alphas, betas)[2], f"{prefix}search_accuracy")
        if prefix == "out/":
            held(betas, "out/search_betas")
            held(alphas, "out/search_alphas")
        v = method.finalize(v, model, consts, val)
        held(jnp.stack([v["fixed"]["beta"], v["fixed"]["alpha"]]), f"{prefix}search_best")
        return v

    # ---- training-free
    nothing = {**v, "fixed": v["fixed"] | {"alpha": 0.0}}
    held(say(tip, nothing, val), "out/zero_shot_val_logits")
    held(say(tip, nothing, test), "out/zero_shot_test_logits")
    held(say(tip, v, val), "out/tip_val_logits_init")
    best = searched(tip, v, "out/")
    held(say(tip, best, test), "out/tip_test_logits_best")
    numbers = [percent(say(tip, x, b), b) for x, b in ((nothing, val), (v, val), (nothing, test), (best, test))]
    held(np.asarray(numbers), "out/accuracies")

    # ---- trained
    if "tipf" not in h:
        assert not left, f"nothing was compared with {sorted(left)}"
        return

    @jax.jit
    def step(keys, batch):
        def objective(keys):
            out = tip_f.apply({**v_f, "train": {"keys": keys}}, model, consts, batch, None, True)
            return tip_f.loss(out, batch)[0], out["logits"]

        return jax.value_and_grad(objective, has_aux=True)(keys)

    order, size, keys = t["in/tipf_batch_order"], h["tipf"]["batch"], v_f["train"]["keys"]
    parts = [order[i : i + size] for i in range(0, len(order), size)]
    batches = [{"features": views[0][i], "label": support["label"][i], "weight": jnp.ones(len(i))} for i in parts]
    (loss, logits), grad = step(keys, batches[0])
    held(logits, "out/train/logits")
    held(loss, "out/train/loss")
    held(grad, "grad/cache_keys_t", GRADIENT)

    def trained(tx, batches):
        now, state, kept, losses = keys, tx.init(keys), [], []
        for batch in batches:
            (loss, _), grad = step(now, batch)
            updates, state = tx.update(grad, state, now)
            now = optax.apply_updates(now, updates)
            kept.append(now)
            losses.append(loss)
        return jnp.stack(kept), jnp.stack(losses)

    kept, losses = trained(optax.sgd(0.002), [batches[0]] * len(t.get("sgd3/losses", range(3))))
    held(kept[-1], "sgd3/cache_keys_t")
    held(losses, "sgd3/losses")
    o, batches = h["tipf"], batches * h["tipf"]["epochs"]
    official = {"name": "adamw", "lr": o["lr"], "wd": o["weight_decay"], "eps": o["eps"]}
    tx, schedule = optim.make(official | {"schedule": {"name": "cosine"}}, len(parts), len(batches), keys)
    kept, losses = trained(tx, batches)
    held(kept, "opt/cache_keys_t")
    held(losses, "opt/losses")
    held(schedule(jnp.arange(len(batches))), "opt/learning_rates")
    ends = [{**v_f, "train": {"keys": keys}} for keys in kept[len(parts) - 1 :: len(parts)]]
    logits = [say(tip_f, end, test) for end in ends]
    held(jnp.stack(logits), "out/tipf_test_logits")
    accuracy = np.asarray([percent(x, test) for x in logits])
    held(accuracy, "out/tipf_test_accuracy")
    held(accuracy.argmax(), "out/tipf_best_epoch")
    best = searched(tip_f, ends[accuracy.argmax()], "out/tipf_")
    held(say(tip_f, best, test), "out/tipf_test_logits_best")
    assert not left, f"nothing was compared with {sorted(left)}"


@pytest.mark.golden("tip_adapter_settings*.json")
def test_golden_settings_and_grid_of_every_benchmark(golden):
    for row in load(golden)["datasets"]:
        name = {"fgvc": "fgvc_aircraft"}.get(row["dataset"], row["dataset"])
        c = importlib.import_module(f"configs.{name}").get_config("tip_adapter,tip_adapter_f,xmadapter")
        for method in ("tip_adapter", "tip_adapter_f", "xmadapter"):
            hyper = settings.hyper(c, method, "few_shot")
            assert (hyper["beta"], hyper["alpha"]) == (row["init_beta"], row["init_alpha"])
            assert hyper["search_scale"] == tuple(row["search_scale_beta_alpha"])
            assert hyper["search_step"] == tuple(row["search_step_beta_alpha"])
        assert (c.recipe.tip_adapter_f.epochs, c.recipe.tip_adapter_f.optimizer.lr) == (row["train_epoch"], row["lr"])
        betas, alphas = (retrieval.grid(*one) for one in zip(hyper["search_scale"], hyper["search_step"]))
        np.testing.assert_allclose(jnp.concatenate([betas[:3], betas[-1:]]), row["beta_first3_last"], rtol=1e-5)
        np.testing.assert_allclose(alphas, row["alpha_all"], rtol=1e-5)


# -------------------------------------------------------------------- retrieval
def cache(n=6, M=40, E=16, C=5, seed=0):
    """Unit features `(n, E)`, keys `(M, E)`, labels `(M,)`."""
    rng = np.random.default_rng(seed)
    f, keys = (normalize(jnp.asarray(rng.normal(size=(rows, E)), jnp.float32)) for rows in (n, M))
    return f, keys, jnp.arange(M) % C


def test_all_entries_among_the_nearest_are_the_exact_cache():
    f, keys, label = cache()
    affinity = retrieval.Keys(40).apply({"params": {"keys": keys}}, f)
    near = np.exp(-2.5 * (1 - np.asarray(f @ keys.T)))
    want = np.stack([near[:, np.asarray(label) == c].sum(1) for c in range(5)], 1)
    np.testing.assert_allclose(retrieval.read(affinity, label, 2.5, 5), want, rtol=1e-5)
    np.testing.assert_allclose(retrieval.read(*retrieval.nearest(affinity, label, 40), 2.5, 5), want, rtol=1e-5)
    say = lambda k: lambda keys: (retrieval.read(*retrieval.nearest(f @ keys.T, label, k), 2.5, 5) ** 2).sum()
    exact, some = (jax.grad(say(k))(keys) for k in (0, 40))
    np.testing.assert_allclose(some, exact, rtol=1e-4, atol=1e-5)
    few = retrieval.read(*retrieval.nearest(affinity, label, 3), 2.5, 5)
    three = np.where(near >= np.sort(near, axis=1)[:, -3:-2], near, 0)
    np.testing.assert_allclose(few, np.stack([three[:, np.asarray(label) == c].sum(1) for c in range(5)], 1), rtol=1e-5)


def test_recall_of_the_nearest_entries():
    f, keys, label = cache(n=64, M=4096, E=32)
    affinity, label = f @ keys.T, jnp.arange(4096)
    _, found = jax.jit(retrieval.nearest, static_argnums=2)(affinity, label, 32)
    want = np.argsort(-np.asarray(affinity), axis=1)[:, :32]
    recall = np.mean([len(np.intersect1d(a, b)) / 32 for a, b in zip(np.asarray(found), want)])
    assert recall >= 0.95


def test_the_search_takes_the_first_of_the_best_and_leaves_out_the_upper_end():
    zero, affinity = jnp.asarray([[0.0, 1.0], [1.0, 0.0]]), jnp.asarray([[1.0, 0.0], [0.0, 0.0]])
    alphas, betas = retrieval.grid(2.1, 4), retrieval.grid(3.1, 3)
    np.testing.assert_allclose(alphas, [0.1, 0.6, 1.1, 1.6], rtol=1e-6)
    alpha, beta, accuracy = retrieval.search(zero, affinity, jnp.arange(2), jnp.asarray([0, 0]), alphas, betas)
    # The first image turns right where alpha (1 - exp(-beta)) > 1: alpha 1.6 with beta 1.1, and more with 2.1.
    np.testing.assert_array_equal(accuracy, [[50, 50, 50, 50], [50, 50, 50, 100], [50, 50, 50, 100]])
    assert (round(float(alpha), 3), round(float(beta), 3)) == (1.6, 1.1)


@pytest.mark.parametrize("layout", ["seed tensor ...", "seed data ..."])
def test_keys_in_pieces_say_the_same(layout):
    """16,000 keys of width 512: each of 8 devices holds an eighth, and what is sent is less than any of the pieces."""
    axis, S, M, E, C, B = layout.split()[1], 1, 16000, 512, 10, 16
    mesh = shard.make_mesh({"data": 1, axis: 8})
    path = "train/keys"
    rules = shard.METHOD if axis == "tensor" else ((path, layout), *shard.METHOD)
    f, keys, label = cache(B, M, E, C)

    def say(keys, f):
        affinity = jax.vmap(lambda k: retrieval.Keys(M).apply({"params": {"keys": k}}, f))(keys)
        return jax.vmap(lambda a: retrieval.read(a, label, 5.5, C))(affinity)

    where = shard.sharding(mesh, path, (S, M, E), rules), shard.sharding(mesh, "batch/features", (B, E), shard.METHOD)
    assert where[0].shard_shape((S, M, E)) == (S, M // 8, E)
    call = jax.jit(say, in_shardings=where, out_shardings=shard.on(mesh))
    compiled = call.lower(keys[None], f).compile()
    found = contract.collectives(compiled.as_text())
    assert sum(size for _, size in found) < 4 * M * E // 8
    if axis == "tensor":
        assert {kind for kind, _ in found} == {"all-reduce"}
    np.testing.assert_allclose(compiled(*map(jax.device_put, (keys[None], f), where)), say(keys[None], f), rtol=2e-4)


# -------------------------------------------------------------------- XMAdapter
def made(name, moved=0.0, **hyper):
    """(method, model, consts, v, batch) on a small backbone; the tuned numbers are moved from their start."""
    hyper = {"text_cache": "templates"} | hyper if name == "xmadapter" else hyper
    method, model = methods.make(name, **hyper), contract.backbone("vit")
    consts = method.setup(model, contract.task())
    features, label = jnp.asarray(contract.encoded("vit")[0]), jnp.arange(contract.M) % 4
    v = method.init(jax.random.key(0), model, consts, {"features": features, "label": label})
    rng = np.random.default_rng(0)
    tuned = {k: a + moved * rng.normal(size=a.shape).astype("f4") for k, a in sorted(v["train"].items())}
    batch = {"features": features[::-1], "label": label[::-1], "index": jnp.arange(contract.M)[::-1]}
    return method, model, consts, {**v, "train": tuned}, batch | {"weight": jnp.ones(contract.M)}


def told(method, model, consts, v, batch, train=True):
    """(outputs, loss, gradients)."""

    def objective(tuned):
        out = method.apply({**v, "train": tuned}, model, consts, batch, None, train)
        return method.loss(out, batch)[0], out

    (loss, out), grad = jax.jit(jax.value_and_grad(objective, has_aux=True))(v["train"])
    return out, loss, grad


@pytest.mark.parametrize("adapt", ["no", "scalar"])
def test_the_image_cache_alone_without_hard_samples_is_tip_adapter_f(adapt):
    want = told(*made("tip_adapter_f", 0.05))
    got = told(*made("xmadapter", 0.05, gamma=1.0, lam=0.0, adapt_gamma=adapt))
    np.testing.assert_array_equal(got[0]["logits"], want[0]["logits"])
    np.testing.assert_allclose(got[1], want[1], rtol=1e-6)
    assert got[2].keys() == {"keys"}
    np.testing.assert_allclose(got[2]["keys"], want[2]["keys"], rtol=1e-5, atol=1e-7)
    found = [method.finalize(v, model, consts, batch)["fixed"] for method, model, consts, v, batch in
             (made("tip_adapter_f"), made("xmadapter", gamma=1.0))]  # fmt: skip
    assert (found[0]["alpha"], found[0]["beta"]) == (found[1]["alpha"], found[1]["beta"])


@pytest.mark.parametrize("name", ["tip_adapter", "tip_adapter_f", "xmadapter"])
def test_without_the_cache_it_is_zero_shot(name):
    method, model, consts, v, batch = made(name, 0.05, alpha=0.0)
    zero = methods.make("zero_shot")
    want = zero.apply(None, model, zero.setup(model, contract.task()), batch)["logits"]
    np.testing.assert_allclose(method.apply(v, model, consts, batch)["logits"], want, rtol=1e-5, atol=1e-5)


def test_what_xmadapter_says_beside_the_logits():
    method, model, consts, v, batch = made("xmadapter", 0.05)
    out = method.apply(v, model, consts, batch)
    share, label = jax.nn.sigmoid(v["train"]["gamma"]), v["fixed"]["label"]
    affinity = share * out["affinity_image"] + (1 - share) * out["affinity_text"]
    cache = retrieval.read(affinity, label, v["fixed"]["beta"], out["zero"].shape[1])
    np.testing.assert_allclose(out["logits"], out["zero"] + v["fixed"]["alpha"] * cache, rtol=1e-5, atol=1e-5)
    assert out["hard"].shape == batch["label"].shape
    method, model, consts, v, batch = made("xmadapter", 0.05, gamma=0.0)
    assert method.apply(v, model, consts, batch).keys() == {"logits", "zero", "affinity_text", "hard"}


def test_hard_samples_are_those_of_which_the_caches_disagree_and_weights_have_mean_one():
    method, model, consts, v, batch = made("xmadapter", 0.05, lam=3.0, hard_scale=20.0)
    batch["weight"] = jnp.asarray([1, 1, 1, 1, 1, 1, 0, 0], jnp.float32)
    out, loss, _ = told(method, model, consts, v, batch)
    hard, real = np.asarray(out["hard"]), np.asarray(batch["weight"])
    assert hard.min() >= 0 and hard.max() <= 1 and np.ptp(hard) > 0.01
    each = np.asarray(optax.softmax_cross_entropy_with_integer_labels(out["logits"], batch["label"]))
    weight = (1 + 3 * hard) / (1 + 3 * hard)[real > 0].mean()
    np.testing.assert_allclose((weight * real).sum() / real.sum(), 1, rtol=1e-6)
    np.testing.assert_allclose(loss, (weight * each * real).sum() / real.sum(), rtol=1e-5)
    alike = method.loss(out | {"hard": jnp.full(8, 0.7)}, batch)[0]
    np.testing.assert_allclose(alike, (each * real).sum() / real.sum(), rtol=1e-5)
    plain = told(*made("xmadapter", 0.05, lam=0.0)[:4], batch)[1]
    np.testing.assert_allclose(plain, (each * real).sum() / real.sum(), rtol=1e-5)
    assert np.abs(told(*made("xmadapter", 0.05, gamma=1.0)[:4], batch)[0]["hard"]).max() == 0  # one cache alone


def test_the_text_cache_alone_never_reads_the_image_cache():
    method, model, consts, v, batch = made("xmadapter", 0.05, gamma=0.0, train_keys=False)
    assert "keys" not in v["train"] and "keys" not in v["fixed"]
    assert np.isfinite(told(method, model, consts, v, batch)[0]["logits"]).all()


def test_at_the_start_the_text_cache_is_near_the_cosine_of_image_and_text():
    method, model, consts, v, batch = made("xmadapter", gamma=0.0, reduction=1, alpha=1.0, beta=1.0)
    np.testing.assert_array_equal(v["train"]["meta"], v["train"]["img2txt"])
    f, label = normalize(batch["features"]), v["fixed"]["label"]
    affinity = (f @ consts["weights"].T)[:, label]  # with D = E the map is a rotation, and nothing is lost
    want = model.logits(f, consts["weights"]) + retrieval.read(affinity, label, 1.0, 4)
    np.testing.assert_allclose(method.apply(v, model, consts, batch)["logits"], want, rtol=1e-4, atol=1e-4)


def test_a_share_for_each_class_equals_the_scalar_while_all_are_alike():
    one, many = (made("xmadapter", gamma=0.3, adapt_gamma=kind) for kind in ("scalar", "per_class"))
    fixed = made("xmadapter", gamma=0.3, adapt_gamma="no")
    assert many[3]["train"]["gamma"].shape == (4,) and "gamma" not in fixed[3]["train"]
    (a, _, grad), (b, _, grads), (c, _, _) = told(*one), told(*many), told(*fixed)
    np.testing.assert_allclose(a["logits"], b["logits"], rtol=1e-6)
    np.testing.assert_allclose(a["logits"], c["logits"], rtol=1e-5)
    np.testing.assert_allclose(grads["gamma"].sum(), grad["gamma"], rtol=1e-4)


def test_an_image_without_its_own_entry():
    plain, masked = made("xmadapter", 0.05), made("xmadapter", 0.05, mask_self=True)
    method, model, consts, v, batch = masked
    np.testing.assert_array_equal(told(*masked, train=False)[0]["logits"], told(*plain, train=False)[0]["logits"])
    got, want = told(*masked)[0]["logits"], told(*plain)[0]["logits"]
    rows, label = np.arange(8), np.asarray(batch["label"])
    others = np.ones((8, 4), bool)
    others[rows, label] = False
    np.testing.assert_allclose(got[others], want[others], rtol=1e-5)  # its entry speaks for its class alone
    assert (np.asarray(want - got)[rows, label] > 0.1).all()
    assert all(np.isfinite(g).all() for g in told(*masked)[2].values())


def test_learned_text_features_of_another_method_take_the_templates_place():
    method, model = methods.make("xmadapter"), contract.backbone("vit")
    assert method.prior == "coop" and methods.make("xmadapter", text_cache="templates").prior is None
    assert methods.make("xmadapter", gamma=1.0).prior is None  # there is no text cache
    consts = method.setup(model, contract.task())
    text = jnp.ones(consts["weights"].shape)
    support = {"features": jnp.asarray(contract.encoded("vit")[0]), "label": jnp.arange(8) % 4}
    v = method.init(jax.random.key(0), model, consts, support | {"prior": {"text_features": text}})
    np.testing.assert_array_equal(v["fixed"]["text"], text)


def digits(arg):
    c = importlib.import_module("configs.digits").get_config(f"{arg},seeds=2")
    c.protocols, c.shots, c.eval_batch = ("few_shot",), 2, 128
    for recipe in c.recipe.values():
        recipe.update({"epochs": 2, "batch": 8} if "batch" in recipe else {})
    return c


def test_a_run_trains_the_prior_first_once_and_says_what_was_not_searched(tmp_path, monkeypatch, capsys):
    """XMAdapter and then CoOp itself: CoOp is trained for the first and read back for the second."""
    real = train.task.load
    without = lambda dataset: dataset._replace(val=fewshot.take(dataset.val, np.arange(0)))
    monkeypatch.setattr(train.task, "load", lambda *args: without(real(*args)))
    results = train.run(digits("xmadapter,tip_adapter,coop,n_ctx=2"), tmp_path)
    xm, tip, its = results["runs"]
    assert "going on after step 4 of 4" in capsys.readouterr().out
    for run in (xm, tip):
        assert run["summary"]["accuracy"]["n"] == 2 and "without validation images" in run["notes"][0]
    assert (tip["trained_params"], its["trained_params"]) == (0, 2 * 128) and not its["notes"]
    load = lambda name, seed: safetensors.numpy.load_file(tmp_path / f"{name}-few_shot/seed_{seed}/tuned.safetensors")
    loaded, coop = zoo.load("tiny_clip"), methods.make("coop", n_ctx=2)
    classes = tuple(results["dataset"]["classnames"])
    consts = coop.setup(loaded.model, methods.Task(classes, (), (), loaded.tokenizer))
    one = {"features": jnp.ones((1, loaded.model.config.embed_dim))}
    for seed in (1, 2):
        v = {"train": {"ctx": load("coop", seed)["train/ctx"]}, "fixed": {}}
        want = coop.apply(v, loaded.model, consts, one)["text_features"]
        assert_close(load("xmadapter", seed)["fixed/text"], want, FORWARD)
        assert load("xmadapter", seed)["fixed/alpha"] == np.float32(1.17)


@pytest.mark.parametrize(
    ("name", "hyper", "said"),
    [
        ("tip_adapter", {"templates": "data"}, "value of tip_adapter.templates"),
        ("tip_adapter_f", {"templates": "data"}, "value of tip_adapter_f.templates"),
        ("xmadapter", {"adapt_gamma": "class"}, "value of xmadapter.adapt_gamma"),
        ("xmadapter", {"gamma": 1.5}, "a number, at least 0 and at most 1; got 1.5"),
    ],
)
def test_settings_that_do_not_exist_are_refused(name, hyper, said):
    with pytest.raises(UserError, match=said):
        methods.make(name, **hyper)


def test_without_validation_images_alpha_and_beta_stay():
    for name in ("tip_adapter", "tip_adapter_f", "xmadapter"):
        method, model, consts, v, _ = made(name)
        nothing = {"features": np.zeros((0, 24), np.float32), "label": np.zeros(0, np.int32)}
        kept = method.finalize(v, model, consts, nothing)["fixed"]
        assert (kept["alpha"], kept["beta"]) == (v["fixed"]["alpha"], v["fixed"]["beta"])
    assert tip_adapter.keys_of({"features": 2 * jnp.eye(3)}).max() == 1
