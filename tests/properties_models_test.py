"""Model folders of any content: a model, or one UserError, in bounded time and memory."""

import json
import os
import shutil

import jax
import numpy as np
import pytest
from convert_test import CONFIG, as_openai, random_params
from hypothesis import example, given
from hypothesis import strategies as st
from properties import settings
from safetensors.numpy import load_file, save, save_file

from vlmx.data import seq_tokenizer, tokenizer, transforms
from vlmx.errors import UserError
from vlmx.models import convert, files, zoo
from vlmx.models.clip import ClipConfig

NUMBERS = st.sampled_from(
    [0, 1, -1, 2, 3, 8, 64, 2**31, 10**8, 10**30, 0.0, -0.5, 1e-5, 1e300, float("nan"), float("inf")]
)
WORDS = st.sampled_from(["", "64", "gelu", "clip", "tok", "../x", "/etc/passwd", "\ud800", "a" * 500])
LEAVES = st.none() | st.booleans() | NUMBERS | WORDS | st.integers() | st.text(max_size=5)
VALUES = st.recursive(LEAVES, lambda v: st.lists(v, max_size=4) | st.dictionaries(WORDS, v, max_size=3), max_leaves=8)


def model_or_error(folder):
    """The ClipConfig and the test transform of a folder, or None where it is refused with a UserError."""
    try:
        config, params = convert.read(folder)
    except UserError as error:
        assert 0 < len(str(error)) < 10_000
        return None
    assert isinstance(config, ClipConfig)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    image = transforms.decode(np.zeros((20, 50, 3), np.uint8))
    size = config.vision.image_size
    assert transforms.for_tower(config)(image).shape == (size, size, 3)
    return config


def set_at(tree, path, value):
    """A copy of nested dicts with `value` at the path; its last part may be new."""
    tree = dict(tree)
    tree[path[0]] = set_at(tree.get(path[0]) or {}, path[1:], value) if len(path) > 1 else value
    return tree


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf")
    convert.save_hf(folder, CONFIG, random_params(CONFIG))
    return folder


@pytest.fixture(scope="module")
def open_clip(tmp_path_factory, hugging_face):
    folder = tmp_path_factory.mktemp("open_clip")
    save_file(as_openai(load_file(hugging_face / "model.safetensors")), folder / "open_clip_model.safetensors")
    return folder


TOWER = ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "layer_norm_eps"]
VISION = ["image_size", "patch_size", "num_channels", *TOWER]
TEXT = ["vocab_size", "max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id", *TOWER]
HF_PATHS = [["model_type"], ["projection_dim"], ["text_config"], ["vision_config"], ["text_config_dict"]]
HF_PATHS += [["vision_config", key] for key in VISION] + [["text_config", key] for key in TEXT]


@settings()
@given(path=st.sampled_from(HF_PATHS), value=VALUES)
@example(path=["vision_config", "num_hidden_layers"], value=10**8)
@example(path=["vision_config", "image_size"], value=10**9)
@example(path=["text_config", "num_attention_heads"], value=0)
def test_any_value_in_config_json(hugging_face, path, value):
    file = hugging_face / "config.json"
    raw = file.read_text()
    try:
        file.write_text(json.dumps(set_at(json.loads(raw), path, value)))
        model_or_error(hugging_face)
    finally:
        file.write_text(raw)


PIXELS = [*("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_pad", "size", "crop_size", "resample")]
PIXELS += [
    *("rescale_factor", "image_mean", "image_std", "image_processor_type", "use_square_size", "fill", "pad_size")
]


@settings()
@given(values=st.dictionaries(st.sampled_from(PIXELS), VALUES, max_size=3), nested=st.booleans())
def test_any_value_in_an_image_processor(hugging_face, values, nested):
    raw = json.loads((hugging_face / "preprocessor_config.json").read_text()) | values
    try:
        (hugging_face / "processor_config.json").write_text(json.dumps({"image_processor": raw} if nested else raw))
        model_or_error(hugging_face)
    finally:
        (hugging_face / "processor_config.json").unlink()


MODEL = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 128, "patch_size": 8, "head_width": 64},
    "text_cfg": {"context_length": 10, "vocab_size": 30, "width": 64, "heads": 1, "layers": 2},
}
OPEN_CLIP_PATHS = [["embed_dim"], ["vision_cfg"], ["text_cfg"], ["quick_gelu"], ["custom_text"], ["mean"]]
OPEN_CLIP_PATHS += [["vision_cfg", key] for key in (*MODEL["vision_cfg"], "mlp_ratio", "norm_kwargs", "pool_type")]
OPEN_CLIP_PATHS += [["text_cfg", key] for key in (*MODEL["text_cfg"], "pool_type", "eos_id", "tokenizer_kwargs")]
PREPROCESS = st.sampled_from(["size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color"])


@settings()
@given(st.sampled_from(OPEN_CLIP_PATHS), VALUES, st.dictionaries(PREPROCESS, VALUES, max_size=2), st.booleans())
def test_any_value_in_open_clip_config(open_clip, path, value, pixels, flat):
    model = set_at(MODEL, path, value)
    raw = model | pixels if flat else {"model_cfg": model, "preprocess_cfg": pixels}
    (open_clip / "open_clip_config.json").write_text(json.dumps(raw))
    model_or_error(open_clip)


JSON_FILES = ["config.json", "preprocessor_config.json", "processor_config.json", "open_clip_config.json"]
JSON_FILES += ["model.safetensors.index.json", "adapter_config.json"]
BYTES = st.binary(max_size=40) | VALUES.map(lambda value: json.dumps(value).encode())


@settings()
@given(name=st.sampled_from(JSON_FILES), content=BYTES)
@example(name="config.json", content=b"[" * 100_000)
@example(name="config.json", content=b'{"model_type": ' + b"9" * 10_000 + b"}")
@example(name="config.json", content=b"\xff\xfe{")
@example(name="model.safetensors.index.json", content=b'{"weight_map": {"a": "../../x.safetensors"}}')
def test_any_bytes_as_a_json_file(hugging_face, tmp_path_factory, name, content):
    folder = tmp_path_factory.mktemp("json")
    for file in hugging_face.iterdir():
        os.link(file, folder / file.name)
    (folder / name).unlink(missing_ok=True)
    (folder / name).write_bytes(content)
    if name.endswith(".index.json"):
        (folder / "model.safetensors").rename(folder / "part.safetensors")
    model_or_error(folder)
    shutil.rmtree(folder)


@settings()
@given(data=st.data())
def test_any_damage_to_a_safetensors_file(hugging_face, tmp_path_factory, data):
    whole = (hugging_face / "model.safetensors").read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    kind = data.draw(st.sampled_from(["header", "length", "cut", "bytes", "entry"]))
    if kind == "entry":
        name = data.draw(st.sampled_from(sorted(header)))
        entry = st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["F32", "F64", "BF16", "F8_E4M3", "I64", "BOOL", "X"]),
                "shape": st.lists(NUMBERS, max_size=3),
                "data_offsets": st.lists(NUMBERS, min_size=2, max_size=2),
            }
        )
        header[name] = data.draw(entry | VALUES)
    text = data.draw(st.binary(max_size=30)) if kind == "header" else json.dumps(header).encode()
    size = data.draw(st.integers(0, 2**64 - 1)) if kind == "length" else len(text)
    content = size.to_bytes(8, "little") + text + whole[8 + length :]
    content = content[: data.draw(st.integers(0, len(content)))] if kind == "cut" else content
    content = data.draw(st.binary(max_size=100)) if kind == "bytes" else content
    folder = tmp_path_factory.mktemp("weights")
    shutil.copy(hugging_face / "config.json", folder)
    (folder / "model.safetensors").write_bytes(content)
    model_or_error(folder)
    shutil.rmtree(folder)


SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 7, 64, 192]), max_size=4).map(tuple)
OPENAI_NAMES = [*("visual.conv1.weight", "visual.proj", "visual.positional_embedding", "token_embedding.weight")]
OPENAI_NAMES += [
    *("positional_embedding", "logit_scale", "visual.layer1.0.conv1.weight", "visual.attnpool.c_proj.weight")
]
OPENAI_NAMES += [
    *("visual.attnpool.positional_embedding", "visual.transformer.resblocks.0.mlp.c_fc.weight", "text_projection")
]


@settings()
@given(
    st.dictionaries(st.sampled_from(OPENAI_NAMES), SHAPES, max_size=4), st.booleans(), st.sampled_from(["", "module."])
)
def test_any_shapes_in_a_state_dict(open_clip, tmp_path_factory, shapes, whole, prefix):
    tensors = load_file(open_clip / "open_clip_model.safetensors") if whole else {}
    tensors |= {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    file = tmp_path_factory.mktemp("shapes") / "epoch_1.safetensors"
    file.write_bytes(save({prefix + name: value for name, value in tensors.items()}))
    try:
        convert.read(file, act="gelu", heads=1)
    except UserError:
        pass
    file.unlink()


TOKENIZER_FILES = ["tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json"]


@settings(0.5)
@given(name=st.sampled_from(TOKENIZER_FILES), content=BYTES, of=st.sampled_from(["tiny_clip", "tiny_t5"]))
@example(name="tokenizer.json", content=b"{}", of="tiny_t5")
@example(name="merges.txt", content=b"garbage\n", of="tiny_clip")
def test_any_bytes_as_a_tokenizer_file(tmp_path_factory, name, content, of):
    folder = tmp_path_factory.mktemp("tokenizer")
    for file in TOKENIZER_FILES:
        if (zoo.locate(of) / file).is_file():
            shutil.copy(zoo.locate(of) / file, folder)
    (folder / name).write_bytes(content)
    try:
        words = tokenizer.load(folder, 32, 1536) if of == "tiny_clip" else seq_tokenizer.load(folder, 10**5, 0)
        assert words(["a cat"], 8).shape[0] == 1 if of == "tiny_t5" else words(["a cat"]).shape == (1, 32)
    except UserError as error:
        assert str(folder) in str(error)
    shutil.rmtree(folder)


@settings(0.5)
@given(VALUES, st.sampled_from(["state_dict", "model", "weights", "1"]), st.booleans())
def test_any_content_of_a_torch_file(tmp_path_factory, value, name, old):
    torch = pytest.importorskip("torch")
    file = tmp_path_factory.mktemp("torch") / "epoch_1.pt"
    torch.save({name: value, 1: torch.zeros(2)} if old else value, file, _use_new_zipfile_serialization=not old)
    with pytest.raises(UserError):
        convert.read(file)
    file.unlink()


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
@pytest.mark.parametrize("kind", ["fifo", "folder", "loop"])
def test_what_is_no_file_is_refused_at_once(hugging_face, tmp_path, name, kind):
    shutil.copytree(hugging_face, tmp_path / "m")
    path = tmp_path / "m" / name
    path.unlink()
    os.mkfifo(path) if kind == "fifo" else path.mkdir() if kind == "folder" else path.symlink_to(path)
    with pytest.raises(UserError):
        files.weight_files(path) if name == "model.safetensors" else convert.config_of(tmp_path / "m")
