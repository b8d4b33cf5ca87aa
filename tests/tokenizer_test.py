"""Tokenizer and zoo: ids, errors that name class and template, truncation, where files come from, digests."""

import hashlib
import json
import shutil

import huggingface_hub
import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from golden_cases import OWN
from golden_tools import load_case, tokenizer, word_tokenizer
from transformers import CLIPTokenizerFast

from vlmx.data import seq_tokenizer
from vlmx.data import tokenizer as tokenizers_
from vlmx.data.tokenizer import Tokenizer
from vlmx.errors import UserError
from vlmx.models import convert, files, zoo
from vlmx.models.clip import ClipConfig, ResNet, Text, ViT, param_shapes

VOCAB = OWN / "clip" / "vocab.json"
CONFIG = ClipConfig(
    8, ViT(8, 1, 1, 8, image_size=16, patch=8), Text(8, 1, 1, 8, context=20, vocab=512, bos=510, eot=511)
)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty hub cache, offline."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def cached(hub, repository):
    """The folder of a repository's snapshot in the cache, as the hub's client lays it out."""
    top = hub / f"models--{repository.replace('/', '--')}"
    folder = top / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    (top / "refs").mkdir()
    (top / "refs" / "main").write_text("0" * 40)
    return folder


def save_model(folder):
    """A tiny random CLIP with the golden vocabulary's tokenizer."""
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: rng.standard_normal(s.shape, np.float32), param_shapes(CONFIG))
    word_tokenizer(VOCAB).save_pretrained(folder / "words")
    convert.save_hf(folder, CONFIG, params, tokenizer_dir=folder / "words")
    return params


@pytest.mark.golden("clip/zero_shot", "clip/zero_shot_rn")
def test_golden_token_ids(golden):
    case, t, model = load_case(golden)
    words, h = tokenizer(golden, model.config.text.context), case["hyperparameters"]
    for template, ids in zip(h["templates"], t["in/tokens"], strict=True):
        got = words([template.format(name.replace("_", " ")) for name in h["classes"]])
        assert got.dtype == np.int32
        np.testing.assert_array_equal(got, ids)


def test_too_long_texts_are_named_with_their_length_and_the_limit():
    words = Tokenizer(word_tokenizer(VOCAB), 6)
    what = ['class "cat", template "a {}"', 'class "oak tree", template "a photo of a {}."']
    with pytest.raises(UserError) as error:
        words(["a cat", "a photo of a oak tree."], what)
    assert "at most 6 tokens" in str(error.value)
    assert str(error.value).split("\n")[1:] == ['  class "oak tree", template "a photo of a {}.": 9 tokens']
    with pytest.raises(UserError, match="'a photo of a oak tree.': 9 tokens"):
        words(["a photo of a oak tree."])


def test_truncation_keeps_the_end_token_last():
    words = Tokenizer(word_tokenizer(VOCAB), 6)
    ids, whole = (
        words(["a cat", "a photo of a oak tree."], truncate=True),
        Tokenizer(words.hf, 9)(["a photo of a oak tree."]),
    )
    assert ids.shape == (2, 6)
    assert ids[1].tolist() == [*whole[0, :5].tolist(), 511]
    assert ids[0].tolist()[3:] == [511, 0, 0]


def test_the_directorys_own_tokenizer_is_used(tmp_path):
    save_model(tmp_path)
    words = tokenizers_.load(tmp_path, 20, 512)
    assert words(["a cat"])[0, :5].tolist() == [510, 7, 27, 511, 0]
    with pytest.raises(UserError, match="has 512 token ids, this model has embeddings for 300"):
        tokenizers_.load(tmp_path, 20, 300)


def bpe_files(folder):
    """CLIP's tokenizer class over a vocabulary of a few letters, in its two-file form, without any config."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = ["a</w>", "c", "a", "t</w>", "ca", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({x: i for i, x in enumerate(letters)}))
    (folder / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n")


def test_vocabulary_and_merges_without_any_config_are_clips_tokenizer(tmp_path):
    bpe_files(tmp_path)
    words = tokenizers_.load(tmp_path, 6, 8)
    assert isinstance(words.hf, CLIPTokenizerFast)
    assert words(["A  cat"]).tolist() == [[6, 0, 5, 7, 0, 0]]


@pytest.mark.parametrize("left_out", [(), ("tokenizer_config.json",)])
def test_a_timm_config_beside_openclips_files_does_not_call_for_timm(tmp_path, left_out):
    bpe_files(tmp_path)
    (tmp_path / "config.json").write_text('{"architecture": "resnet50_clip", "pretrained_cfg": {"tag": "openai"}}')
    (tmp_path / "open_clip_config.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer"}')
    for name in left_out:
        (tmp_path / name).unlink()
    words = tokenizers_.load(tmp_path, 8, 8)
    assert isinstance(words.hf, CLIPTokenizerFast) and words.cleans


def test_weights_without_tokenizer_files_take_clips_own_from_the_cache_or_say_what_is_missing(hub, tmp_path):
    with pytest.raises(UserError, match=r"expected tokenizer.json, or vocab.json and merges.txt(.|\n)*hf download"):
        tokenizers_.load(tmp_path, 6, 8)
    bpe_files(cached(hub, "openai/clip-vit-base-patch32"))
    assert tokenizers_.load(tmp_path, 6, 8)(["cat"]).tolist() == [[6, 5, 7, 0, 0, 0]]


def clip_vocabulary(folder):
    """CLIP's tokenizer over single bytes and a few words, so that every text has ids."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    folder.mkdir(parents=True, exist_ok=True)
    signs = list(bytes_to_unicode().values())
    names = [*signs, *(sign + "</w>" for sign in signs), "ca", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    (folder / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n")
    return len(names)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("ＡＢ ﬁne cats", "ab fine cats"),
        ("caf&eacute; &amp;amp; tea", "café & tea"),
        ("it’s “good”", 'it\'s "good"'),
        ("schÃ¶n", "schön"),
        ("x&nbsp;&amp;nbsp;y", "x y"),
        ("ΣΑΣ", "σας"),
        ("&lt;|endoftext|&gt;", "<| endoftext |>"),
    ],
)
def test_texts_are_repaired_as_openais_and_openclips_tokenizers_do(tmp_path, text, same):
    n = clip_vocabulary(tmp_path)
    plain = Tokenizer(tokenizers_.read(tmp_path, clip=True), 40)
    words = tokenizers_.load(tmp_path, 40, n)
    assert words([text]).tolist() == plain([same]).tolist()
    assert (words([text])[0] == n - 1).sum() == 1  # no end token in the middle, whatever the text
    assert plain([text]).tolist() != plain([same]).tolist()
    (tmp_path / "config.json").write_text("{}")  # transformers' tokenizer repairs nothing: nor do we for its models
    assert not tokenizers_.load(tmp_path, 40, n).cleans
    (tmp_path / "open_clip_config.json").write_text("{}")
    assert tokenizers_.load(tmp_path, 40, n).cleans


@pytest.mark.parametrize("family", ["clip", "t5"])
def test_code_in_a_model_folder_is_neither_run_nor_asked_for(tmp_path, family, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *args: pytest.fail("asked on the terminal"))
    n = clip_vocabulary(tmp_path)
    code = f"open({str(tmp_path / 'ran')!r}, 'w')\nfrom transformers import CLIPTokenizerFast as Tok\n"
    (tmp_path / "evil.py").write_text(code)
    auto = {"AutoTokenizer": [None, "evil.Tok"], "AutoConfig": "evil.Tok"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Tok", "auto_map": auto}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip", "auto_map": auto}))
    with pytest.raises(UserError, match="cannot read the tokenizer there .its auto_map names code, which is not run"):
        tokenizers_.load(tmp_path, 40, n) if family == "clip" else seq_tokenizer.load(tmp_path, n, 0)
    (tmp_path / "tokenizer_config.json").unlink()
    try:  # the class is guessed from config.json
        tokenizers_.load(tmp_path, 40, n) if family == "clip" else seq_tokenizer.load(tmp_path, n, 0)
    except UserError:
        pass
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", ["{}", "[]", "{", '{"model": {"type": "BPE"}}', "\0"])
def test_a_tokenizer_that_transformers_cannot_read_is_one_error(tmp_path, content):
    clip_vocabulary(tmp_path)
    (tmp_path / "tokenizer.json").write_text(content)
    for load in (tokenizers_.load, seq_tokenizer.load):
        with pytest.raises(UserError, match="transformers cannot read the tokenizer there"):
            load(tmp_path, 600, 600)


def test_a_tokenizer_without_start_and_end_is_not_clips(tmp_path):
    shutil.copytree(zoo.locate("tiny_t5"), tmp_path / "m")
    with pytest.raises(UserError, match="puts 1 ids around a text"):
        tokenizers_.load(tmp_path / "m", 40, 50_000)


def test_a_tokenizer_that_never_ends_as_the_model_reads_is_refused(tmp_path):
    save_model(tmp_path)
    clip_vocabulary(tmp_path / "other")
    for name in ("vocab.json", "merges.txt"):
        vocab = (tmp_path / "other" / name).read_text()
        (tmp_path / name).write_text(vocab)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).unlink(missing_ok=True)
    raw = json.loads((tmp_path / "vocab.json").read_text())
    kept = {key: i for i, (key, _) in enumerate(list(raw.items())[10:])}  # fewer ids than the model has
    (tmp_path / "vocab.json").write_text(json.dumps(kept))
    with pytest.raises(UserError, match="never ends a text with 511, as this model needs"):
        zoo.load(str(tmp_path))


def test_load_from_a_directory(tmp_path):
    params = save_model(tmp_path)
    loaded = zoo.load(str(tmp_path), context=10, image_size=32, param_dtype="bfloat16", dtype="bfloat16")
    assert loaded.digest == hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    assert loaded.tokenizer(["a cat"]).shape == (1, 10)
    c = loaded.model.config
    assert (c.vision.image_size, c.text.context, c.dtype, c.param_dtype) == (32, 10, "bfloat16", "bfloat16")
    assert loaded.model.params["vision"]["pos_embed"].shape == (17, 8)
    np.testing.assert_allclose(loaded.model.params["text"]["proj"], params["text"]["proj"], rtol=1e-2)


def test_hub_names_come_from_the_cache_and_otherwise_say_how_to_get_them(hub, tmp_path):
    for name, repository in (
        ("ViT-B/32", "openai/clip-vit-base-patch32"),
        ("someone/their-clip", "someone/their-clip"),
    ):
        with pytest.raises(UserError, match=f"no such file or directory(.|\\n)*hf download {repository}"):
            zoo.load(name)
        save_model(folder := cached(hub, repository))
        assert zoo.locate(name) == folder
        assert zoo.load(name).name == name
    save_model(folder := cached(hub, "timm/vit"))
    (folder / "model.safetensors").rename(folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text("{}")
    (folder / "config.json").write_text('{"architecture": "vit"}')
    (folder / "model.safetensors").write_bytes(b"timm's own")
    assert files.weight_files(zoo.fetch("timm/vit"))[0] == [folder / "open_clip_model.safetensors"]
    cached(hub, "someone/empty")
    with pytest.raises(UserError, match="not complete"):
        zoo.load("someone/empty")


def test_unknown_names_list_the_valid_ones():
    with pytest.raises(UserError, match="unknown model 'ViT-B16'. Did you mean 'ViT-B/16'"):
        zoo.load("ViT-B16")
    with pytest.raises(UserError, match="unknown model './nowhere/at/all'"):
        zoo.load("./nowhere/at/all")


def test_the_tables_sizes_are_consistent():
    """Parameter counts of the released models, batch statistics left out."""
    counts = {"ViT-B/32": 151_277_313, "ViT-B/16": 149_620_737, "ViT-L/14": 427_616_513, "RN50": 102_007_137}
    for name, count in counts.items():
        shapes = flatten_dict(param_shapes(zoo.MODELS[name].config))
        assert sum(s.size for path, s in shapes.items() if path[-1] not in ("mean", "var")) == count, name
    assert all(isinstance(e.config.vision, ResNet if name.startswith("RN") else ViT) for name, e in zoo.MODELS.items())
