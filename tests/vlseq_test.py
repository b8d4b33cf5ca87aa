"""VL-T5, VL-BART and their variants: what holds of them whatever the numbers. Backbones are tiny and random."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from golden_cases import load
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from vlmx import method as methods
from vlmx import multitask, partition, variant
from vlmx.errors import UserError
from vlmx.generate import apply_rules, generate, likeliest
from vlmx.models import clip, convert_seq, vlseq, zoo
from vlmx.models.clip import Clip, ClipConfig, Text, ViT
from vlmx.models.vlseq import Generation, SeqConfig, Visual, VLSeq, param_shapes

SIZES = {"width": 16, "heads": 2, "mlp": 24, "layers": (2, 3), "vocab": 40, "added": 6, "visual": Visual(5, 4)}
CONFIGS = {
    "t5": SeqConfig(
        family="t5", head_dim=6, act="relu", eps=1e-6, scale_logits=True, buckets=8, pad=0, end=1, begin=0, **SIZES
    ),
    "flan": SeqConfig(
        family="t5", head_dim=8, act="gelu_tanh", gated=True, tied=False, eps=1e-6, buckets=8, pad=0, end=1, begin=0,
        **SIZES,
    ),
    "bart": SeqConfig(family="bart", head_dim=8, act="gelu", eps=1e-5, positions=20, pad=1, end=2, begin=2, **SIZES),
    "uneven": SeqConfig(
        family="bart", head_dim=8, act="gelu", eps=1e-5, positions=20, pad=1, end=2, begin=2, decoder_heads=4,
        decoder_mlp=20, **SIZES,
    ),
}  # fmt: skip
TASKS = ("vqa", "nlvr", "caption")
SMALL = {  # hyper-parameters that fit these backbones
    "adapter": {"reduction": 4},
    "low_rank_adapter": {"reduction": 4},
    "compacter": {"reduction": 4},
    "hyperformer": {"reduction": 4, "embed": 6, "middle": 5, "q": 3},
    "lora": {"rank": 2, "alpha": 4.0},
    "prompt": {"length": 3, "hidden": 7},
    "adapter_prompt": {"reduction": 4, "length": 3, "hidden": 7},
    "full": {},
}


@functools.cache
def backbone(name, **changes):
    """A random backbone; filled with numpy, as its own initialisation is long to compile."""
    config, rng = dataclasses.replace(CONFIGS[name], **changes), np.random.default_rng(5)

    def fill(path, leaf):
        if path.endswith("scale"):
            return jnp.asarray(rng.uniform(0.8, 1.2, leaf.shape), leaf.dtype)
        return jnp.asarray(rng.normal(0, max(leaf.shape[-2:-1], default=16) ** -0.5, leaf.shape), leaf.dtype)

    shapes = param_shapes(config)
    leaves = [fill(path, leaf) for path, leaf in zip(partition.paths(shapes), jax.tree.leaves(shapes), strict=True)]
    return VLSeq(jax.tree.unflatten(jax.tree.structure(shapes), leaves), config)


def batch(task=0, pad=0):
    """Three examples of one image or, for task 1, of two; the same shapes for all."""
    rng = np.random.default_rng(task)
    ids = rng.integers(3, 40, (3, 6)).astype(np.int32)
    ids[0, 4:] = pad
    labels = rng.integers(3, 40, (3, 4)).astype(np.int32)
    labels[1, 2:] = -100
    features = rng.standard_normal((3, 2, 4, 5), np.float32)
    return {
        "task": jnp.asarray(task),
        "ids": jnp.asarray(ids),
        "labels": jnp.asarray(labels),
        "weight": multitask.token_weights(jnp.asarray(labels)),
        "features": jnp.asarray(features),
        "real": jnp.tile(jnp.array([True, task == 1]), (3, 1)),
    }


@jax.jit
def plain(model, b, rng=None):
    return variant.forward(model, variant.Insert(), b["ids"], model.visual(b["features"]), b["labels"], rng, b["real"])


@functools.partial(jax.jit, static_argnums=0)
def tuned(chosen, model, v, b):
    """Logits of a variant for the batch's task; compiled once for all of its checkpoints and tasks."""
    model, into = variant.dressed(chosen, model, variant.pick(v["train"], b["task"]), v["fixed"])
    return variant.forward(model, into, b["ids"], model.visual(b["features"]), b["labels"], None, b["real"])


@functools.cache
def start(name, family):
    """(variant, v) of that file's small setting, `v` moved away from its start so that every part matters."""
    chosen = variant.make(name, **SMALL[name])
    v = jax.jit(lambda key, m: variant.start(chosen, key, m, len(TASKS)))(jax.random.key(0), backbone(family))
    return chosen, v


def moved(v, seed=0):
    rng = np.random.default_rng(seed)
    train = jax.tree.map(lambda a: a + jnp.asarray(rng.normal(0, 0.1, a.shape), a.dtype), v["train"])
    return {**v, "train": train}


# -------------------------------------------------------------------- counts at the published sizes
@pytest.mark.golden("param_counts*.json")
def test_golden_parameter_counts(golden):
    for name, kinds in ((k, v) for k, v in load(golden).items() if k in zoo.SEQ_MODELS):
        config = zoo.SEQ_MODELS[name].config
        assert vlseq.count(param_shapes(config)) == kinds.pop("plain_backbone_total")
        config = dataclasses.replace(config, added=zoo.ADDED[config.family])
        for kind, visual in (("image", Visual(2048, 36)), ("video", Visual(512, 64))):
            c = dataclasses.replace(config, visual=visual)
            model = VLSeq(param_shapes(c), c)
            for method, want in kinds[kind].items():
                # the reference has no LoRA for T5: there its flags train the biases
                lora = {"maps": ""} if name == "t5-base" and "lora" in method else {}
                counts = [want["trainable"], want["total"]]
                if norms := want.get("trainable_if_layer_norms_were_unfrozen"):
                    trained, total, _ = variant.summary(variant.make(method, trains=(variant.VISUAL,)), model, 4)
                    assert [trained, total] == counts, (name, kind, method)
                    counts[0] = norms
                trained, total, text = variant.summary(variant.make(method, **lora), model, 4)
                assert [trained, total] == counts, (name, kind, method)
                assert f"trained: {trained:,} of {total:,} ({want['percent']:.1f}"[:-3] in text


# -------------------------------------------------------------------- the backbone
@pytest.mark.parametrize("family", ("flan", "bart"))
def test_rows_that_are_added_behave_as_rows_of_one_table(family):
    model, b = backbone(family), batch(pad=CONFIGS[family].pad)
    c = dataclasses.replace(model.config, vocab=46, added=0)
    p = {k: v for k, v in model.params.items() if k != "added"}
    p["token_embed"] = jnp.concatenate([p["token_embed"], model.params["added"]["embed"]])
    if not c.tied:
        p["head"] = jnp.concatenate([p["head"], model.params["added"]["head"]])
    if "logits_bias" in p:
        p["logits_bias"] = jnp.pad(p["logits_bias"], ((0, 0), (0, 6)))
    b["ids"] = b["ids"].at[2, 3].set(44)
    np.testing.assert_allclose(plain(VLSeq(p, c), b), plain(model, b), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ("flan", "bart"))
def test_bfloat16_is_close(family):
    b, want = batch(pad=CONFIGS[family].pad), plain(backbone(family), batch(pad=CONFIGS[family].pad))
    half = backbone(family, dtype="bfloat16", param_dtype="bfloat16")
    got = plain(half, b)
    assert got.dtype == jnp.float32
    assert np.abs(got - want).max() < 0.06 * np.abs(want).max()
    # the part of T5 that is too large for bfloat16
    kernel = half.params["decoder"]["blocks"]["mlp"]["proj"]["kernel"]
    assert kernel.dtype == (jnp.bfloat16 if family == "bart" else jnp.float32)
    assert half.params["encoder"]["blocks"]["mlp"]["fc"]["kernel"].dtype == jnp.bfloat16


def test_layers_unrolled_and_recomputed():
    b, want = batch(pad=1), plain(backbone("bart"), batch(pad=1))
    np.testing.assert_allclose(plain(backbone("bart", unroll=True, remat=True), b), want, rtol=0, atol=1e-5)


def test_dropout_is_keyed():
    model, b = backbone("bart"), batch(pad=1)
    one, again, other = (plain(model, b, jax.random.key(k)) for k in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 0.1 and np.abs(one - plain(model, b)).max() > 0.1
    still = backbone("bart", dropout=0.0, attention_dropout=0.0, activation_dropout=0.0)
    np.testing.assert_allclose(plain(still, b, jax.random.key(1)), plain(model, b), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", CONFIGS)
def test_rows_that_fill_up_change_nothing(family):
    """Of three regions, and of the same three with two rows of zeros that are masked, the logits are the same."""
    rng, b = np.random.default_rng(0), batch(pad=CONFIGS[family].pad)
    features, boxes = rng.standard_normal((3, 1, 3, 5), np.float32), rng.uniform(0, 1, (3, 1, 3, 4)).astype(np.float32)
    logits = []
    for rows in (3, 5):
        model = backbone(family, visual=dataclasses.replace(CONFIGS[family].visual, tokens=rows))
        fill = ((0, 0), (0, 0), (0, rows - 3), (0, 0))
        vis = model.visual(np.pad(features, fill), np.pad(boxes, fill))
        real = np.tile(np.arange(rows) < 3, (3, 1))
        logits.append(variant.forward(model, variant.Insert(), b["ids"], vis, b["labels"], None, real))
    np.testing.assert_allclose(*logits, rtol=0, atol=1e-5)
    vis = model.visual(np.pad(features, fill))
    other = variant.forward(model, variant.Insert(), b["ids"], vis, b["labels"], None, real)
    assert np.abs(other - logits[1]).max() > 1e-3  # boxes count


def test_features_that_do_not_fit_are_refused():
    model = backbone("t5")
    for shape in ((1, 4, 6), (1, 5, 5), (1, 1, 5)):
        with pytest.raises(UserError, match="expected rows of 5, a square number of them and at least 4"):
            model.visual(jnp.zeros(shape))
    blind = VLSeq(model.params, dataclasses.replace(model.config, visual=None))
    with pytest.raises(UserError, match="without a visual embedding"):
        blind.visual(jnp.zeros((1, 4, 5)))


# -------------------------------------------------------------------- files
@pytest.mark.parametrize("family", ("flan", "bart", "uneven"))
def test_saved_in_hugging_face_format_and_read_again(family, tmp_path):
    model = backbone(family)
    convert_seq.save_hf(tmp_path, model.config, model.params)
    config, params = convert_seq.read(tmp_path)
    assert config == dataclasses.replace(model.config, added=0, visual=None)
    got, want = flatten_dict(params, sep="/"), flatten_dict(model.params, sep="/")
    assert got.keys() == {name for name in want if not name.startswith(("added", "visual"))}
    for name in got:
        np.testing.assert_array_equal(got[name], want[name], name)

    options = {"visual": Visual(5, 4), "added": 6}
    config, params = convert_seq.read(tmp_path, **options, seed=1)
    assert config == model.config
    _, other = convert_seq.read(tmp_path, **options, seed=2)
    assert np.abs(params["visual"]["feature"]["kernel"] - other["visual"]["feature"]["kernel"]).max() > 0
    assert np.abs(params["added"]["embed"]).mean() > 0


def test_what_is_no_t5_and_no_bart_is_refused(tmp_path):
    model = backbone("bart")
    convert_seq.save_hf(tmp_path, model.config, model.params)
    raw = json.loads((tmp_path / "config.json").read_text())
    wrong = {"model_type": ("mbart", '"t5" and "bart"'), "normalize_before": (True, "normalize_before is True")}
    wrong |= {"decoder_attention_heads": (3, "has to divide d_model"), "activation_function": ("silu", "silu")}
    for key, (value, said) in wrong.items():
        with pytest.raises(UserError, match=said):
            convert_seq.config_of(raw | {key: value})
    (tmp_path / "config.json").write_text(json.dumps(raw | {"encoder_layers": 1}))
    with pytest.raises(UserError, match=r"unknown: model.encoder.layers.1"):
        convert_seq.read(tmp_path)


def test_copies_of_the_word_embedding(tmp_path):
    from safetensors.numpy import load_file, save_file

    model = backbone("bart")
    convert_seq.save_hf(tmp_path, model.config, model.params)
    tensors = load_file(tmp_path / "model.safetensors")
    words = tensors["model.shared.weight"]
    save_file(tensors | {"lm_head.weight": words.copy()}, tmp_path / "model.safetensors")
    assert convert_seq.read(tmp_path)[0].tied
    save_file(tensors | {"lm_head.weight": words + 1}, tmp_path / "model.safetensors")
    config, params = convert_seq.read(tmp_path)
    assert not config.tied
    np.testing.assert_array_equal(params["head"], words + 1)
    save_file(tensors | {"model.encoder.embed_tokens.weight": words + 1}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="model.encoder.embed_tokens.weight is not model.shared.weight"):
        convert_seq.read(tmp_path)


@pytest.mark.parametrize("stated, message", [
    ({"encoder_layers": 10**8}, "encoder_layers is 100000000; expected a whole number from 1 to 1000"),
    ({"d_model": -16}, "d_model is -16"), ({"decoder_attention_heads": "4"}, "decoder_attention_heads is '4'"),
    ({"vocab_size": None}, "vocab_size is null"), ({"encoder_ffn_dim": 2.5}, "encoder_ffn_dim is 2.5"),
    ({"num_attention_heads": 4}, "encoder_attention_heads is 2, num_attention_heads 4"), ({"dropout": 2}, "is 2"),
    ({"eos_token_id": 40}, "eos_token_id is 40"), ({"scale_embedding": "no"}, "expected true or false"),
])  # fmt: skip
def test_sizes_that_are_none(stated, message):
    raw = convert_seq._raw(CONFIGS["bart"])
    with pytest.raises(UserError, match=f"config.json: .*{message}"):
        convert_seq.config_of(raw | stated)


def test_names_without_their_prefix_and_other_names_of_the_word_embedding(tmp_path):
    from safetensors.numpy import load_file, save_file

    model = backbone("bart")
    convert_seq.save_hf(tmp_path, model.config, model.params)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["final_logits_bias"]
    tensors = {k.removeprefix("model."): v for k, v in tensors.items()}
    tensors["encoder.embed_tokens.weight"] = tensors.pop("shared.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    _, params = convert_seq.read(tmp_path)
    np.testing.assert_array_equal(params["token_embed"], model.params["token_embed"])
    assert not params["logits_bias"].any()


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_a_model_inside_a_module_of_lightning(family, tmp_path):
    from safetensors.numpy import load_file, save_file

    model = backbone(family)
    convert_seq.save_hf(tmp_path, model.config, model.params)
    plain = convert_seq.read(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({f"model._orig_mod.{k}": v for k, v in tensors.items()}, tmp_path / "model.safetensors")
    config, params = convert_seq.read(tmp_path)
    assert config == plain[0]
    jax.tree.map(np.testing.assert_array_equal, params, plain[1])


def test_a_generation_config_that_cannot_be_read_is_not_passed_over(tmp_path):
    model = backbone("t5")
    convert_seq.save_hf(tmp_path, model.config, model.params)
    (tmp_path / "generation_config.json").symlink_to("nowhere")
    with pytest.raises(UserError, match="generation_config.json: a link that leads nowhere"):
        convert_seq.read(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    (tmp_path / "generation_config.json").mkdir()
    with pytest.raises(UserError, match="generation_config.json: a folder, not a file"):
        convert_seq.read(tmp_path)


def word_level(folder, words):
    """Writes a tokenizer of words, which ends texts with </s>, into a folder."""
    vocab = {"<pad>": 0, "</s>": 1, "<unk>": 2, **{w: i + 3 for i, w in enumerate(words)}}
    raw = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=raw, **names).save_pretrained(folder)


def test_a_directory_with_its_tokenizer(tmp_path):
    model = backbone("t5")
    convert_seq.save_hf(tmp_path, model.config, model.params)
    with pytest.raises(UserError, match="expected tokenizer.json"):
        zoo.load_seq(tmp_path)
    word_level(tmp_path, ["red", "circle", "what", "is"])
    loaded = zoo.load_seq(tmp_path, visual=Visual(5, 4))
    assert loaded.model.config == dataclasses.replace(model.config, added=72)
    assert loaded.digest == zoo.digest([tmp_path / "model.safetensors"])
    words = loaded.tokenizer
    ids = words(["what is red", "circle", "is is is is is is"], 5)
    assert ids.tolist() == [[5, 6, 3, 1, 0], [4, 1, 0, 0, 0], [6, 6, 6, 6, 1]]
    assert words.labels(["circle"], 3).tolist() == [[4, 1, -100]]
    assert words.texts([[0, 4, 1, 0], [0, 5, 6, 1]]) == ["circle", "what is"]
    word_level(tmp_path, [f"w{i}" for i in range(40)])
    with pytest.raises(UserError, match="ids up to 42, this model embeds 40"):
        zoo.load_seq(tmp_path)


# -------------------------------------------------------------------- generation
def rules(path, **stated):
    """The Generation of a folder's generation_config.json with these rules, and the tokens of the tiny T5."""
    stated = {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0} | stated
    (path / "generation_config.json").write_text(json.dumps(stated))
    return convert_seq.read(path)[0].generation


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("t5")
    convert_seq.save_hf(path, CONFIGS["t5"], backbone("t5").params)
    return path


def test_the_rules_of_a_generation_config(folder):
    """Names, defaults and precedence of transformers 5."""
    new = Generation(published_beams=False, max_length=21)
    assert rules(folder) == new
    for stated, ours in [
        ({"max_length": 10}, {"max_length": 10}),
        ({"max_length": 10, "max_new_tokens": 30}, {"max_length": 31}),
        ({"min_length": 10, "min_new_tokens": 3}, {"min_length": 4}),
        ({"early_stopping": "never", "length_penalty": 0.0}, {"early_stopping": "never", "length_penalty": 0.0}),
        ({"early_stopping": True, "length_penalty": -1}, {"early_stopping": True, "length_penalty": -1.0}),
        ({"forced_bos_token_id": 5, "forced_eos_token_id": 1}, {"force_begin": 5, "force_end": True}),
        ({"forced_eos_token_id": [4, 5]}, {"force_end": (4, 5)}),
        ({"decoder_start_token_id": None, "bos_token_id": 7}, {"begin": 7}),
        ({"decoder_start_token_id": 3, "bos_token_id": 7}, {"begin": 3}),
        ({"eos_token_id": [1, 9]}, {"ends": (1, 9)}),
        ({"eos_token_id": [9, 1], "forced_eos_token_id": [9, 1]}, {"ends": (9, 1), "force_end": True}),
        ({"bad_words_ids": [[1], [5], [5, 6]]}, {"bad_words": ((5,), (5, 6))}),
        ({"suppress_tokens": [3, 99], "begin_suppress_tokens": [4]}, {"suppress": (3, 99), "suppress_first": (4,)}),
        ({"do_sample": True, "temperature": 0.5}, {"sample": True, "temperature": 0.5, "top_k": 50}),
        ({"do_sample": False, "top_p": 0.5, "typical_p": 0.2, "temperature": 0.0}, {"top_p": 0.5, "temperature": 0.0}),
        ({"num_beams": 4, "repetition_penalty": 2, "renormalize_logits": True},
         {"beams": 4, "repetition_penalty": 2.0, "renormalize": True}),
        ({"typical_p": 1.0, "num_beam_groups": 1, "stop_strings": None, "use_cache": True, "x_own": [{}]}, {}),
    ]:  # fmt: skip
        assert rules(folder, **stated) == dataclasses.replace(new, **ours), stated


def test_rules_of_a_config_without_a_generation_config(folder):
    raw = json.loads((folder / "config.json").read_text())
    assert convert_seq.config_of(raw) == dataclasses.replace(CONFIGS["t5"], added=0, visual=None)
    of = lambda **stated: convert_seq.config_of(raw | stated)
    assert of(min_length=3, decoder_start_token_id=5).generation == Generation(min_length=3)
    assert of(decoder_start_token_id=None, bos_token_id=6).begin == 6
    assert of(decoder_start_token_id=None).begin == 0  # T5 begins with padding
    assert of(force_bos_token_to_be_generated=True, bos_token_id=6).generation.force_begin == 6
    bart = convert_seq.config_of({"model_type": "bart", "max_position_embeddings": 9})
    assert bart.generation.max_length == 9 and bart.begin == 2


def test_rules_that_config_states_do_not_count_beside_a_generation_config(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | {"num_beams": 7, "stop_strings": ["x"]}))
    assert rules(tmp_path, min_length=2) == Generation(max_length=21, min_length=2, published_beams=False)
    (tmp_path / "generation_config.json").unlink()
    with pytest.raises(UserError, match=r"config.json: not supported: stop_strings=\['x'\]"):
        convert_seq.read(tmp_path)


@pytest.mark.parametrize("stated, message", [
    ({"stop_strings": ["."]}, "not supported: stop_strings"), ({"num_beam_groups": 2}, "num_beam_groups=2"),
    ({"do_sample": True, "typical_p": 0.2}, "typical_p=0.2"), ({"do_sample": True, "num_beams": 2}, "num_beams=2"),
    ({"do_sample": True, "temperature": 0}, "temperature is 0"), ({"num_beams": 10**9}, "num_beams is 1000000000"),
    ({"num_beams": "4"}, "num_beams is '4'"), ({"max_length": 1}, "max_length is 1"), ({"max_length": 2.5}, "2.5"),
    ({"max_length": 10**12}, "max_length is 1000000000000"), ({"early_stopping": "always"}, "early_stopping"),
    ({"length_penalty": float("nan")}, "length_penalty is nan"), ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size"), ({"forced_bos_token_id": 40}, "to 39"),
    ({"decoder_start_token_id": -1}, "decoder_start_token_id is -1"), ({"bad_words_ids": [5]}, "bad_words_ids"),
    ({"bad_words_ids": [[]]}, "none of them empty"), ({"suppress_tokens": [-1]}, "suppress_tokens"),
    ({"decoder_start_token_id": None}, "decoder_start_token_id missing"), ({"eos_token_id": None}, "eos_token_id m"),
    ({"forced_eos_token_id": 1, "suppress_tokens": [1]}, "both name 1"), ({"do_sample": 1}, "expected true or false"),
])  # fmt: skip
def test_rules_that_are_refused(folder, stated, message):
    with pytest.raises(UserError, match=message) as error:
        rules(folder, **stated)
    assert "generation_config.json" in str(error.value)


@pytest.mark.parametrize("penalty, published", [(0.0, False), (2.0, False), (1.0, True)])
def test_beams_that_hold_all_texts_find_the_best_one(penalty, published):
    """Beside all texts of five token ids, four behind the start: divided by their lengths, which versions count so."""
    model, ids = backbone("t5", vocab=5, added=0, visual=None), jnp.array([[3, 4, 1], [2, 2, 1], [4, 3, 0]])
    texts = np.stack(np.meshgrid(*[range(5)] * 4, indexing="ij"), -1).reshape(-1, 4)
    texts = np.pad(texts, ((0, 0), (1, 0)))  # the start token, which is 0
    end = np.where((texts == 1).any(1), (texts == 1).argmax(1), 4)  # where a text's last token stands
    ended = (texts == 1).any(1)
    length = np.where(ended, end, 5 if published else 4)
    how = Generation(5, beams=64, early_stopping="never", length_penalty=penalty, published_beams=published)
    found, scores = generate(model, ids, how=how)
    for row in range(len(ids)):
        memory, seen = model.encode(ids[row : row + 1])
        many = lambda a: jnp.repeat(a, len(texts), axis=0)
        steps = jax.nn.log_softmax(model.decode(jnp.asarray(texts), many(memory), many(seen)))[:, :-1]
        each = np.take_along_axis(np.asarray(steps), texts[:, 1:, None], axis=2)[..., 0]
        total = np.where(np.arange(1, 5) <= end[:, None], each, 0).sum(1) / length**penalty
        best = total.argmax()
        assert scores[row] == pytest.approx(total[best], abs=1e-4)
        assert found[row, : end[best] + 1].tolist() == texts[best, : end[best] + 1].tolist()
        assert not found[row, end[best] + 1 :].any()


def test_what_cannot_be_generated_is_refused():
    model, ids = backbone("bart"), jnp.array([[4, 5, 2]])
    for how, message in [
        (Generation(1), "max_length is 1"), (Generation(22), "texts of 21 tokens; this model has positions for 20"),
        (Generation(5, sample=True, beams=2), "not supported"), (Generation(5, sample=True), "random key"),
    ]:  # fmt: skip
        with pytest.raises(UserError, match=message):
            generate(model, ids, how=how)
    with pytest.raises(UserError, match="input texts of 21 tokens"):
        model.encode(jnp.ones((1, 21), int))
    with pytest.raises(UserError, match="answers of 21 tokens"):
        model.decode(jnp.ones((1, 21), int), *model.encode(ids))


def test_the_start_and_the_ends_of_the_rules():
    model, ids = backbone("t5"), jnp.array([[4, 5, 1], [6, 7, 1]])
    plain_texts = np.asarray(generate(model, ids, how=Generation(6, min_length=6))[0])
    end = int(plain_texts[0, 2])
    texts = np.asarray(generate(model, ids, how=Generation(6, begin=0, ends=(end,), suppress=(1,)))[0])
    first = plain_texts[0].tolist().index(end)
    assert texts[0].tolist() == [*plain_texts[0, : first + 1], *[0] * (5 - first)]
    assert np.asarray(generate(model, ids, how=Generation(3, begin=9))[0])[:, 0].tolist() == [9, 9]


def applied(scores, texts, n, ids=((20, 21),), **how):
    """What generate.apply_rules makes of scores, texts and inputs: lists of rows."""
    how = Generation(9, **({"ends": (1,)} | how))
    arrays = [jnp.array(a) for a in (ids, scores, texts)]
    return np.asarray(apply_rules(how, *arrays, n)).tolist()


def test_rules_one_by_one():
    """By hand, from the formulas of transformers' processors. Six tokens; texts begin with 0, the end token is 1."""
    no, row = -np.inf, [1.0, 2.0, -3.0, 4.0, 0.5, 0.0]
    text = [[0, 3, 4, 3, 0, 0]]
    assert applied([row], text, 4) == [row]
    assert applied([row], text, 4, repetition_penalty=2.0) == [[0.5, 2.0, -3.0, 2.0, 0.25, 0.0]]
    assert applied([row], text, 1, repetition_penalty=2.0)[0] == [0.5, *row[1:]]  # the start token counts
    assert applied([row], text, 4, [[2, 1]], encoder_repetition_penalty=2.0)[0][1:3] == [4.0, -1.5]
    assert applied([row], text, 4, no_repeat_ngram=2)[0] == [1.0, 2.0, -3.0, 4.0, no, 0.0]
    assert applied([row], text, 4, no_repeat_ngram=1)[0] == [no, 2.0, -3.0, no, no, 0.0]
    assert applied([row], text, 4, no_repeat_ngram=9)[0] == row
    assert applied([row], text, 4, [[3, 5, 3, 2]], encoder_no_repeat_ngram=2)[0] == [1.0, 2.0, no, 4.0, 0.5, no]
    assert applied([row], text, 4, bad_words=((2,), (4, 3, 5), (3, 3, 0)))[0] == [1.0, 2.0, no, 4.0, 0.5, no]
    assert applied([row], text, 4, min_length=5)[0][1] == no and applied([row], text, 4, min_length=4)[0][1] == 2
    assert applied([row], text, 1, force_begin=5)[0] == [no] * 5 + [0] and applied([row], text, 2, force_begin=5) == [
        row
    ]
    assert applied([row], text, 8, force_end=True)[0] == [no, 0, no, no, no, no]
    assert applied([row], text, 8, force_end=(4,), min_length=9)[0] == [no] * 4 + [0, no]
    assert applied([row], text, 4, suppress=(3, 99))[0] == [1.0, 2.0, -3.0, no, 0.5, 0.0]
    first = [applied([row], text, n, suppress_first=(3,), **b)[0][3] for b in ({}, {"force_begin": 3}) for n in (1, 2)]
    assert first == [no, 4.0, 0.0, no]  # behind a token that is forced
    total = np.log(np.exp(row).sum())
    np.testing.assert_allclose(applied([row], text, 4, renormalize=True)[0], np.array(row) - total, rtol=1e-6)
    two = applied([row, row], [text[0], [0, 5, 5, 5, 0, 0]], 4, ids=[[2]], no_repeat_ngram=1)  # beams of one input
    assert two[1] == [no, 2.0, -3.0, 4.0, 0.5, no]


def test_sampling():
    model, b = backbone("t5"), batch()
    vis = model.visual(b["features"])
    draw = lambda seed, **how: generate(
        model, b["ids"], vis, Generation(6, sample=True, **how), key=jax.random.key(seed)
    )[0]
    greedy, _ = generate(model, b["ids"], vis, Generation(6))
    np.testing.assert_array_equal(draw(0, top_k=1), greedy)
    np.testing.assert_array_equal(draw(0, top_p=1e-6), greedy)
    np.testing.assert_array_equal(draw(0), draw(0))
    assert (draw(0) != draw(1)).any()
    logits = jnp.log(jnp.array([[0.1, 0.5, 0.15, 0.25]]))
    assert jnp.isfinite(likeliest(logits, Generation(top_k=3))).tolist() == [[False, True, True, True]]
    assert jnp.isfinite(likeliest(logits, Generation(top_p=0.7))).tolist() == [[False, True, False, True]]


# -------------------------------------------------------------------- variants
@pytest.mark.parametrize(
    "name, family", [("hyperformer", "t5"), ("adapter_prompt", "bart"), ("lora", "t5"), ("full", "bart")]
)
def test_variant(name, family, tmp_path):
    model, pad = backbone(family), CONFIGS[family].pad
    chosen, v = start(name, family)
    ahead = moved(v)

    # a step trains what the task has and what all have, and nothing else; every task goes through the same program
    step = jax.jit(multitask.make_step(chosen, lambda n: 0.01))
    state = {**ahead, "opt": multitask.moments(ahead["train"], len(TASKS)), "step": jnp.zeros((), jnp.int32)}
    for task in (1, 0):
        before = state
        state, metrics = step(state, model, batch(task, pad), jax.random.key(task))
        assert np.isfinite(metrics["loss"]) and metrics["task"] == task
        for part in ("shared", "backbone"):
            old, new = before["train"][part], state["train"][part]
            same = jax.tree.map(lambda x, y: bool((x == y).all()), old, new)
            assert not any(jax.tree.leaves(same)), [
                k for k, at in zip(partition.paths(same), jax.tree.leaves(same)) if at
            ]
        for old, new in zip(*(jax.tree.leaves(s["train"]["own"]) for s in (before, state))):
            changed = [(old[t] != new[t]).any() for t in range(len(TASKS))]
            assert changed == [t == task for t in range(len(TASKS))]
        jax.tree.map(np.testing.assert_array_equal, before["fixed"], state["fixed"])
    assert step._cache_size() == 1

    # what is exported is what was tuned
    variant.save(tmp_path, ahead, "abc", TASKS, {"variant": name})
    again, note = variant.load(tmp_path, variant.shapes(chosen, model, len(TASKS)), "abc")
    assert note == {"backbone": "abc", "tasks": list(TASKS), "variant": name}
    assert jax.tree.structure(again) == jax.tree.structure(ahead)
    jax.tree.map(np.testing.assert_array_equal, again, ahead)
    with pytest.raises(UserError, match="SHA-256 abc; the one loaded has def"):
        variant.load(tmp_path, variant.shapes(chosen, model, len(TASKS)), "def")


def test_a_skipped_step_leaves_parameters_and_moments_alone_and_counts_go_on():
    model, pad = backbone("bart"), CONFIGS["bart"].pad
    chosen, v = start("adapter_prompt", "bart")
    step = jax.jit(multitask.make_step(chosen, lambda n: 0.01, skip=True))
    state = {**v, "opt": multitask.moments(v["train"], len(TASKS)), "step": jnp.zeros((), jnp.int32)}
    state, _ = step(state, model, batch(1, pad), jax.random.key(0))
    b = batch(1, pad)
    after, metrics = step(state, model, b | {"weight": b["weight"] * jnp.nan}, jax.random.key(1))
    assert metrics["bad"] > 0 and after["step"] == 2
    for old, new in zip(*(jax.tree.leaves({k: s[k] for k in ("train", "opt")}) for s in (state, after)), strict=True):
        if jnp.issubdtype(old.dtype, jnp.inexact):
            np.testing.assert_array_equal(old, new)
    for part in ("own", "shared", "backbone"):
        t = [np.atleast_1d(s["opt"][part]["t"])[-1 if part != "own" else 1] for s in (state, after)]
        assert t == [1, 2]


def test_one_backbone_serves_many_checkpoints():
    chosen = variant.make("multiple_adapters", reduction=4)
    model, b = backbone("bart"), batch(pad=1)
    v = jax.jit(lambda key, m: variant.start(chosen, key, m, 3))(jax.random.key(0), model)
    n = tuned._cache_size()
    outs = [tuned(chosen, model, moved(v, seed), b | {"task": jnp.asarray(t)}) for seed in (1, 2) for t in (0, 2)]
    assert all(np.abs(x - y).max() > 1e-3 for i, x in enumerate(outs) for y in outs[:i])
    assert tuned._cache_size() == n + 1


@pytest.mark.parametrize("family", ("t5", "bart"))
def test_merged_lora_is_a_plain_model(family):
    model, b = backbone(family), batch(1, CONFIGS[family].pad)
    chosen, v = start("lora", family)
    fresh = tuned(chosen, model, v, b)
    np.testing.assert_allclose(fresh, plain(model, b), rtol=0, atol=1e-6)  # B is zero at first
    want = tuned(chosen, model, moved(v), b)
    np.testing.assert_allclose(plain(variant.merged(chosen, model, moved(v), 1), b), want, rtol=0, atol=2e-5)
    chosen, v = start("adapter", family)
    with pytest.raises(UserError, match="cannot be merged"):
        variant.merged(chosen, model, v, 0)


def test_adapters_that_add_nothing_and_halves_that_are_equal():
    model, b = backbone("bart"), batch(pad=1)
    single, v = start("adapter", "bart")
    still = jax.tree_util.tree_map_with_path(lambda path, a: 0 * a if "_up" in str(path) else a, v["train"]["shared"])
    nothing = {**v, "train": {**v["train"], "shared": still}}
    np.testing.assert_allclose(tuned(single, model, nothing, b), plain(model, b), rtol=0, atol=1e-6)

    ahead = moved(v)
    want = tuned(single, model, ahead, b)
    half = variant.make("half_shared", reduction=4)
    flat = flatten_dict(ahead["train"]["shared"])
    own = {k: jnp.stack([a] * 3) if "_down" in k[1] else None for k, a in flat.items()}
    common = {k: None if "_down" in k[1] else a for k, a in flat.items()}
    equal = {**ahead["train"], "own": unflatten_dict(own), "shared": unflatten_dict(common)}
    np.testing.assert_allclose(tuned(half, model, {**ahead, "train": equal}, b), want, rtol=0, atol=1e-6)


def test_names_and_settings_that_do_not_exist():
    with pytest.raises(UserError, match="single_adapter"):
        variant.make("singel_adapter")
    with pytest.raises(UserError, match="Did you mean 'reduction'"):
        variant.make("adapter", reductoin=4)
    with pytest.raises(UserError, match="share_down"):
        variant.make("adapter", tasks="some")
    with pytest.raises(UserError, match="n=3 must divide the width and the bottleneck; a projection here is 16 to 4"):
        variant.make("compacter", n=3, reduction=4).init(jax.random.key(0), backbone("t5"))
    assert {file for file, _ in variant.PUBLISHED.values()} | {"low_rank_adapter"} == set(variant.files())
    for name in variant.PUBLISHED:
        variant.make(name)


@pytest.mark.parametrize("source, near", [("compacter", 0.15), ("hyperformer", 0.5)])
def test_the_same_sources_serve_clip(source, near):
    towers = ViT(16, 2, 2, 24, image_size=8, patch=4), Text(24, 3, 2, 24, context=6, vocab=20, bos=18, eot=19)
    config = ClipConfig(8, *towers)
    rng = np.random.default_rng(0)
    shapes = clip.param_shapes(config)
    model = Clip(jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.2, s.shape), s.dtype), shapes), config)
    method = methods.make("adapters", source=source, options=SMALL[source])
    images = jnp.asarray(rng.standard_normal((2, 8, 8, 3), np.float32))
    ids = jnp.array([[18, 3, 4, 19, 0, 0], [18, 5, 19, 0, 0, 0]])
    consts = {"emb": model.tokens(ids), "eot": model.eot(ids)}
    assert method.parts and method.taps == ("attn", "mlp")

    @jax.jit
    def outputs(key, model):
        v = method.init(key, model, consts, {})
        ahead = jax.tree.map(lambda a: a + 0.3, v)
        plain = {"image_features": model.image(images), "text_features": model.text(*consts.values())}
        return [plain, *(method.apply(t, model, consts, {"image": images}) for t in (v, ahead))]

    plain, fresh, ahead = outputs(jax.random.key(0), model)
    for name in plain:
        assert np.abs(fresh[name] - plain[name]).max() < near * np.abs(plain[name]).max()
        assert np.abs(ahead[name] - fresh[name]).max() > 0.02 * np.abs(plain[name]).max()
