"""Checkpoints: formats, exactness, errors, memory, other image sizes; saving in Hugging Face's format."""

import dataclasses
import json
import re
import sys
import tracemalloc
import zipfile

import jax
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from golden_cases import assert_close
from golden_tools import load_case
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image
from safetensors.numpy import load_file, save_file

from vlmx.errors import UserError
from vlmx.models import convert, files
from vlmx.models.clip import STD, Clip, ClipConfig, Resize, ResNet, Text, ViT, param_shapes

TEXT = Text(64, 2, 1, 96, context=10, vocab=30, bos=28, eot=29)
CONFIG = ClipConfig(24, ViT(128, 3, 2, 80, image_size=32, patch=8), TEXT)
RESNET = ClipConfig(24, ResNet(64, 4, (1, 2, 1, 1), 2), dataclasses.replace(TEXT, mlp=256, eot=None))
OPENAI = dataclasses.replace(CONFIG, text=dataclasses.replace(TEXT, eot=None))


def random_params(config, seed=0):
    """Every leaf random and different, so that a swap of two of them shows."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: rng.standard_normal(s.shape, np.float32), param_shapes(config))


@pytest.fixture(scope="module")
def params():
    return random_params(CONFIG)


@pytest.fixture
def hf(tmp_path, params):
    """A Hugging Face directory of `params`."""
    convert.save_hf(tmp_path / "hf", CONFIG, params)
    return tmp_path / "hf"


def as_openai(tensors, text=""):
    """Hugging Face tensors under the names of OpenAI's release; written out here, apart from the code under test."""
    out = {}
    renames = [
        (r"vision_model\.encoder\.layers\.", "visual.transformer.resblocks."),
        (r"text_model\.encoder\.layers\.", f"{text}transformer.resblocks."),
        (r"layer_norm([12])", r"ln_\1"),
        (r"mlp\.fc1", "mlp.c_fc"),
        (r"mlp\.fc2", "mlp.c_proj"),
        (r"self_attn\.out_proj", "attn.out_proj"),
        (r"vision_model\.embeddings\.class_embedding", "visual.class_embedding"),
        (r"vision_model\.embeddings\.patch_embedding", "visual.conv1"),
        (r"vision_model\.embeddings\.position_embedding\.weight", "visual.positional_embedding"),
        (r"vision_model\.pre_layrnorm", "visual.ln_pre"),
        (r"vision_model\.post_layernorm", "visual.ln_post"),
        (r"text_model\.embeddings\.token_embedding", f"{text}token_embedding"),
        (r"text_model\.embeddings\.position_embedding\.weight", f"{text}positional_embedding"),
        (r"text_model\.final_layer_norm", f"{text}ln_final"),
    ]
    for key, value in tensors.items():
        if key in ("visual_projection.weight", "text_projection.weight"):
            out[{"v": "visual.proj", "t": f"{text}text_projection"}[key[0]]] = np.ascontiguousarray(value.T)
            continue
        for pattern, to in renames:
            key = re.sub(pattern, to, key)
        if match := re.fullmatch(r"(.*)self_attn\.q_proj\.(weight|bias)", key):
            source = next(k for k, v in tensors.items() if v is value)
            parts = [tensors[source.replace("q_proj", f"{n}_proj")] for n in "qkv"]
            out[f"{match[1]}attn.in_proj_{match[2]}"] = np.concatenate(parts)
        elif "self_attn." not in key:
            out[key] = value
    return out


def equal(got, want):
    got, want = flatten_dict(got, sep="/"), flatten_dict(want, sep="/")
    assert got.keys() == want.keys()
    for name in want:
        np.testing.assert_array_equal(np.asarray(got[name]), np.asarray(want[name]), err_msg=name)


def test_saved_in_hugging_face_format_and_read_again(hf, params):
    config, got = convert.read(hf)
    assert config == CONFIG
    equal(got, params)


def test_what_the_config_json_leaves_out_is_hugging_faces_default(hf):
    raw = json.loads((hf / "config.json").read_text())
    for key in ("hidden_act", "layer_norm_eps", "eos_token_id", "bos_token_id", "pad_token_id"):
        raw["text_config"].pop(key)
    del raw["vision_config"]["layer_norm_eps"]
    raw["vision_config"]["hidden_act"] = "gelu"
    raw["text_config"]["vocab_size"] = 49408
    (hf / "config.json").write_text(json.dumps(raw))
    tensors = load_file(hf / "model.safetensors")
    tensors["text_model.embeddings.token_embedding.weight"] = np.zeros((49408, 64), np.float16)
    save_file(tensors, hf / "model.safetensors")
    config, _ = convert.read(hf)
    assert (config.vision.act, config.text.act, config.text.eps) == ("gelu", "quick_gelu", 1e-5)
    assert (config.text.eot, config.text.bos, config.text.pad) == (49407, 49406, 1)


def test_legacy_end_of_text_id_means_the_highest_id(hf, params):
    raw = json.loads((hf / "config.json").read_text())
    raw["text_config"] |= {"eos_token_id": 2, "bos_token_id": 0}
    (hf / "config.json").write_text(json.dumps(raw))
    config, got = convert.read(hf)
    assert (config.text.eot, config.text.bos) == (None, 28)
    ids = np.array([[28, 29, 2, 2], [28, 2, 3, 29]])
    assert Clip(got, config).eot(ids).tolist() == [1, 3]
    assert Clip(params, CONFIG).eot(np.array([[28, 29, 29, 0]])).tolist() == [1]
    convert.save_hf(hf, config, got)
    assert convert.read(hf)[0].text.eot is None


@pytest.mark.parametrize("text", ["", "text."])
def test_openai_names_give_what_hugging_face_names_give(hf, params, tmp_path, text):
    tensors = as_openai(load_file(hf / "model.safetensors"), text)
    tensors |= {k: np.array(7) for k in ("input_resolution", "context_length", "vocab_size")}
    save_file(tensors, tmp_path / "ViT.safetensors")
    config, got = convert.read(tmp_path / "ViT.safetensors")
    assert config == OPENAI
    equal(got, params)


def open_clip(folder, hf, **model):
    folder.mkdir()
    tensors = as_openai(load_file(hf / "model.safetensors")) | {"attn_mask": np.zeros((10, 10), np.float32)}
    save_file(tensors, folder / "open_clip_model.safetensors")
    vision = {
        "image_size": 32,
        "layers": 3,
        "width": 128,
        "patch_size": 8,
        "head_width": 32,
        "norm_kwargs": {"eps": 1e-6},
    }
    text = {"context_length": 10, "vocab_size": 30, "width": 64, "heads": 4, "layers": 2}
    preprocess = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    raw = {"model_cfg": {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text} | model, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(raw))
    return folder


def test_open_clip_directory(hf, params, tmp_path):
    config, got = convert.read(open_clip(tmp_path / "oc", hf))
    equal(got, params)
    assert (config.vision.act, config.text.act, config.vision.eps, config.text.eps) == ("gelu", "gelu", 1e-6, 1e-5)
    assert (config.vision.heads, config.text.heads) == (4, 4)
    assert (config.mean, config.std) == ((0.5,) * 3, (0.25,) * 3)
    assert convert.read(open_clip(tmp_path / "quick", hf, quick_gelu=True))[0].vision.act == "quick_gelu"


def test_open_clip_of_another_architecture_or_without_its_config_is_refused(hf, tmp_path):
    with pytest.raises(UserError, match="not CLIP's own architecture: text_cfg.hf_model_name = 'roberta-base'"):
        convert.read(open_clip(tmp_path / "a", hf, text_cfg={"hf_model_name": "roberta-base"}))
    folder = open_clip(tmp_path / "b", hf)
    (folder / "open_clip_config.json").unlink()
    with pytest.raises(UserError, match="open_clip_config.json: missing.*activation"):
        convert.read(folder)


def test_shards(hf, params):
    tensors = load_file(hf / "model.safetensors")
    (hf / "model.safetensors").unlink()
    names, where = sorted(tensors), {}
    for i, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-0000{i}-of-00002.safetensors"
        save_file({k: tensors[k] for k in part}, hf / file)
        where |= dict.fromkeys(part, file)
    (hf / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    equal(convert.read(hf)[1], params)
    (hf / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="model-00002-of-00002.safetensors"):
        convert.read(hf)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_half_precision_files_and_storage(hf, params, dtype):
    tensors = {k: v.astype(dtype) for k, v in load_file(hf / "model.safetensors").items()}
    save_file(tensors, hf / "model.safetensors")
    equal(convert.read(hf)[1], jax.tree.map(lambda x: x.astype(dtype).astype(np.float32), params))
    config, got = convert.read(hf, param_dtype="bfloat16", dtype="bfloat16")
    assert (config.dtype, config.param_dtype) == ("bfloat16", "bfloat16")
    assert jax.tree.map(lambda x: x.dtype, got) == jax.tree.map(lambda s: s.dtype, param_shapes(config))


def test_every_wrong_tensor_is_listed_before_any_is_read(hf, monkeypatch):
    tensors = load_file(hf / "model.safetensors")
    del tensors["vision_model.post_layernorm.bias"], tensors["text_model.encoder.layers.1.mlp.fc1.weight"]
    tensors["vision_model.encoder.layers.0.self_attn.q_proj.weight"] = np.zeros((128, 64), np.float32)
    tensors["text_model.final_layer_norm.bias"] = np.zeros(64, np.int32)
    tensors["extra.lora_A"] = np.zeros((2, 3), np.float32)
    tensors["text_model.embeddings.position_ids"] = np.zeros((1, 10), np.int64)
    save_file(tensors, hf / "model.safetensors")
    monkeypatch.setattr(files, "read_slice", lambda *args: pytest.fail("read a tensor"))
    with pytest.raises(UserError) as error:
        convert.read(hf)
    assert [line.strip() for line in str(error.value).split("\n")[1:]] == [
        "unknown: extra.lora_A [2, 3]",
        "missing: text_model.encoder.layers.1.mlp.fc1.weight [96, 64]",
        "missing: vision_model.post_layernorm.bias [128]",
        "misshapen: vision_model.encoder.layers.0.self_attn.q_proj.weight [128, 64], expected [128, 128]",
        "not floating-point: text_model.final_layer_norm.bias",
    ]


def test_openai_file_without_the_tensors_that_tell_its_sizes(hf, tmp_path):
    tensors = as_openai(load_file(hf / "model.safetensors"))
    del tensors["visual.conv1.weight"], tensors["token_embedding.weight"]
    save_file(tensors, tmp_path / "ViT.safetensors")
    with pytest.raises(UserError, match=r"visual\.conv1\.weight.*token_embedding\.weight"):
        convert.read(tmp_path / "ViT.safetensors")


def test_unreadable_files_say_why(hf, tmp_path):
    with pytest.raises(UserError, match="no such file or directory"):
        convert.read(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no weights found; expected model.safetensors"):
        convert.read(tmp_path / "empty")
    save_file({"encoder.weight": np.zeros(2, np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="not a CLIP checkpoint.*encoder.weight"):
        convert.read(tmp_path / "other.safetensors")
    whole = (hf / "model.safetensors").read_bytes()
    (hf / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(UserError, match="not a readable safetensors file.*complete"):
        convert.read(hf)
    (hf / "model.safetensors").write_bytes(whole)
    (hf / "config.json").write_text('{"model_type": "siglip"}')
    with pytest.raises(UserError, match='"siglip"; only "clip"'):
        convert.read(hf)
    (hf / "config.json").write_text('{\n"model_type": \n')
    with pytest.raises(UserError, match="config.json: no valid json .* at line 3"):
        convert.read(hf)
    (hf / "config.json").unlink()
    with pytest.raises(UserError, match="config.json: no such file"):
        convert.read(hf)


def test_torchscript_archive_says_how_to_export_it(tmp_path):
    with zipfile.ZipFile(tmp_path / "ViT-B-32.pt", "w") as archive:
        archive.writestr("ViT-B-32/constants.pkl", b"")
    with pytest.raises(UserError, match=r"TorchScript(.|\n)*torch\.jit\.load"):
        convert.read(tmp_path / "ViT-B-32.pt")


def test_pt_file_where_torch_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "ViT.pt").write_bytes(b"anything")
    with pytest.raises(UserError, match=r"takes torch, which is not installed \(pip install torch\)"):
        convert.read(tmp_path / "ViT.pt")


def test_leaves_land_on_their_shardings_and_each_device_reads_only_its_part(hf, params, monkeypatch):
    mesh, read = Mesh(np.array(jax.devices()[:4]), "x"), []

    def place(path, shape):
        # The last axis of every kernel is split: rows of the file for transposed ones, inside q, k and v too.
        return NamedSharding(
            mesh, PartitionSpec(*[None] * (len(shape) - 1), "x") if path.endswith("kernel") else PartitionSpec()
        )

    original = files.read_slice

    def counted(*args):
        out = original(*args)
        read.append(out.nbytes)
        return out

    monkeypatch.setattr(files, "read_slice", counted)
    _, got = convert.read(hf, place=place)
    equal(got, params)
    kernel = got["vision"]["blocks"]["attn"]["q"]["kernel"]
    assert [s.data.shape for s in kernel.addressable_shards] == [(3, 128, 32)] * 4
    total = sum(x.nbytes for x in jax.tree.leaves(params))
    assert total <= sum(read) < 1.5 * total  # replicated leaves may be read once per device, split ones never are


def test_openai_attention_rows_are_split_by_sharding_too(hf, params, tmp_path):
    save_file(as_openai(load_file(hf / "model.safetensors")), tmp_path / "ViT.safetensors")
    mesh = Mesh(np.array(jax.devices()[:2]), "x")

    def place(path, shape):
        return NamedSharding(
            mesh, PartitionSpec(*[None] * (len(shape) - 1), "x") if "attn" in path else PartitionSpec()
        )

    equal(convert.read(tmp_path / "ViT.safetensors", act="quick_gelu", heads=(2, 1), place=place)[1], params)


def test_loading_holds_no_second_copy_in_host_memory(tmp_path):
    config = ClipConfig(64, ViT(128, 12, 2, 512, image_size=32, patch=8), TEXT)
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), param_shapes(config))
    convert.save_hf(tmp_path, config, zeros)
    largest = max(x.nbytes for x in jax.tree.leaves(zeros))
    assert sum(x.nbytes for x in jax.tree.leaves(zeros)) > 3 * largest
    convert.read(tmp_path)  # imports and caches are not what is measured
    tracemalloc.start()
    _, params = convert.read(tmp_path)
    now, peak = tracemalloc.get_traced_memory()  # what stays is what the device arrays took over as it is
    tracemalloc.stop()
    assert peak - now < 2 * largest
    assert len(jax.tree.leaves(params)) == len(jax.tree.leaves(zeros))


def test_position_embeddings_are_interpolated_bicubically_against_aliasing():
    pos = np.random.default_rng(0).standard_normal((1 + 7 * 7, 5), np.float32)
    for size in (7, 12, 4):
        got = files.resize_grid(pos, size)
        got_grid = got[1:].reshape(size, size, 5)
        planes = [
            Image.fromarray(pos[1:, d].reshape(7, 7)).resize((size, size), Image.Resampling.BICUBIC) for d in range(5)
        ]
        np.testing.assert_allclose(got_grid, np.stack(planes, -1), atol=2e-6)
        other = jax.image.resize(pos[1:].reshape(7, 7, 5), (size, size, 5), "bicubic")  # the same rule, another's code
        np.testing.assert_allclose(got_grid, other, atol=1e-5)
        np.testing.assert_array_equal(got[0], pos[0])


def test_other_image_sizes_and_contexts(hf, params):
    config, got = convert.read(hf, image_size=48, context=6)
    assert (config.vision.image_size, config.text.context) == (48, 6)
    want = files.resize_grid(params["vision"]["pos_embed"], 6)
    equal(
        got,
        params
        | {
            "vision": params["vision"] | {"pos_embed": want},
            "text": params["text"] | {"pos_embed": params["text"]["pos_embed"][:6]},
        },
    )
    assert jax.eval_shape(Clip(got, config).image, np.zeros((1, 48, 48, 3), np.float32)).shape == (1, 24)
    with pytest.raises(UserError, match="context=11: this checkpoint has positions for 1 to 10"):
        convert.read(hf, context=11)
    with pytest.raises(UserError, match="image_size=4: smaller than one patch"):
        convert.read(hf, image_size=4)


def as_openai_resnet(params):
    """Our ResNet CLIP's parameters under the names of OpenAI's release; written out apart from the code under test."""
    out = {}
    for path, x in flatten_dict(params["vision"], sep="/").items():
        path = (
            re.sub(r"layer(\d)/block(\d+)", r"layer\1.\2", path)
            .replace("stem/", "")
            .replace("down_conv", "downsample.0")
        )
        path = path.replace("down_bn", "downsample.1").replace("/scale", "/weight").replace("/kernel", "/weight")
        path = path.replace("/mean", "/running_mean").replace("/var", "/running_var").replace("/o/", "/c_proj/")
        path = re.sub(r"/([qkv])/", r"/\1_proj/", path).replace("pos_embed", "positional_embedding")
        if re.search(r"(conv\d|downsample\.0)$", path):
            path, x = f"{path}/weight", x.transpose(3, 2, 0, 1)
        elif path.endswith("_proj/weight"):
            x = x.T
        out["visual." + path.replace("/", ".")] = np.ascontiguousarray(x)
        if path.endswith("running_var"):
            out["visual." + path.replace("/", ".").replace("running_var", "num_batches_tracked")] = np.array(5)
    return out


def test_resnet_in_openai_names_and_at_another_size(tmp_path):
    params = random_params(RESNET)
    # The text tower's names are those of a ViT's CLIP.
    other = dataclasses.replace(RESNET, vision=CONFIG.vision)
    convert.save_hf(
        tmp_path / "text", other, random_params(other) | {"text": params["text"], "logit_scale": params["logit_scale"]}
    )
    text = as_openai(load_file(tmp_path / "text" / "model.safetensors"))
    tensors = {k: v for k, v in text.items() if not k.startswith("visual.")} | as_openai_resnet(params)
    tensors |= {k: np.array(7) for k in ("input_resolution", "context_length", "vocab_size")}
    save_file(tensors, tmp_path / "RN.safetensors")
    config, got = convert.read(tmp_path / "RN.safetensors")
    assert config == RESNET
    equal(got, params)
    config, got = convert.read(tmp_path / "RN.safetensors", image_size=96)
    assert got["vision"]["attnpool"]["pos_embed"].shape == (10, 128)
    assert jax.eval_shape(Clip(got, config).image, np.zeros((1, 96, 96, 3), np.float32)).shape == (1, 24)
    with pytest.raises(UserError, match="ResNet image tower has no Hugging Face format"):
        convert.save_hf(tmp_path / "rn", RESNET, params)


@pytest.mark.golden("clip/zero_shot", "clip/zero_shot_rn")
def test_golden_features_and_logits(golden):
    _, t, model = load_case(golden)
    image = jax.jit(Clip.image)(model, t["in/pixel_values"])
    text = np.stack([jax.jit(Clip.encode_text)(model, ids) for ids in t["in/tokens"]])
    assert_close(image, t["out/eval/image_features"], 2e-5, "image features")
    assert_close(text, t["out/eval/text_features_per_template"], 2e-5, "text features")
    assert_close(model.logits(image, t["out/eval/class_weights"]), t["out/eval/logits"], 2e-5, "logits")


def edit_json(path, **sections):
    """Change fields of a JSON file; a dict changes those of the object of that name."""
    raw = json.loads(path.read_text())
    for key, value in sections.items():
        raw[key] = raw.get(key, {}) | value if isinstance(value, dict) else value
    path.write_text(json.dumps(raw))


def state_dict(hf, path, **more):
    """The weights in OpenAI's naming, and nothing beside them."""
    save_file(as_openai(load_file(hf / "model.safetensors")) | more, path)
    return path


def test_a_state_dict_alone_is_refused_until_its_activation_and_heads_are_said(hf, params, tmp_path):
    file = state_dict(hf, tmp_path / "epoch_1.safetensors")
    for stated in ({}, {"act": "gelu"}, {"heads": 2}):
        with pytest.raises(UserError, match=r"epoch_1.*neither the activation(.|\n)*--config.model.heads=2,1"):
            convert.config_of(file, **stated)
    config, got = convert.read(file, act="gelu", heads=(4, 2))
    assert (config.vision.act, config.text.act, config.vision.heads, config.text.heads) == ("gelu", "gelu", 4, 2)
    equal(got, params)
    assert convert.config_of(file, act="quick_gelu", heads=(2,)).text.heads == 2
    for heads, reason in ((3, 1), "no multiple of its 3 heads"), ("2", "expected one number"):
        with pytest.raises(UserError, match=reason):
            convert.config_of(file, act="gelu", heads=heads)
    with pytest.raises(UserError, match="'relu' is not one of quick_gelu, gelu"):
        convert.config_of(file, act="relu", heads=2)


@pytest.mark.parametrize(
    ("arch", "heads", "act"),
    [("ViT-H-14", (16, 16), "gelu"), ("ViT-bigG-14-quickgelu", (16, 20), "quick_gelu"), ("ViT-B-32", (12, 8), "gelu")],
)
def test_a_name_in_openclip_tells_activation_and_heads(tmp_path, arch, heads, act, monkeypatch):
    width, layers, patch, _ = convert.ARCHS[arch.removesuffix("-quickgelu")]
    vision, text = (
        ViT(width, layers, 1, 64, image_size=2 * patch, patch=patch),
        dataclasses.replace(TEXT, width=64 * heads[1]),
    )
    shapes = {
        **{"visual.conv1.weight": (width, 3, patch, patch), "visual.proj": (width, 8)},
        **{"visual.positional_embedding": (5, width), "visual.transformer.resblocks.0.mlp.c_fc.weight": (64, width)},
        **{"token_embedding.weight": (30, text.width), "positional_embedding": (10, text.width)},
        "transformer.resblocks.0.mlp.c_fc.weight": (64, text.width),
        **{f"visual.transformer.resblocks.{i}.ln_1.weight": (width,) for i in range(layers)},
    }
    tensors = {name: files.Tensor(shape, True, None) for name, shape in shapes.items()}
    monkeypatch.setattr(files, "open_tensors", lambda names: dict(tensors))
    (tmp_path / "epoch_1.safetensors").touch()
    config = convert.config_of(tmp_path / "epoch_1.safetensors", arch=arch)
    assert (config.vision.heads, config.text.heads) == heads
    assert config.vision.act == config.text.act == act
    assert (config.vision.width, config.vision.patch) == (vision.width, vision.patch)
    for other, reason in ("ViT-L-14", "width, layers, patch"), ("ViT-B-33", "unknown name of an OpenCLIP model"):
        with pytest.raises(UserError, match=reason):
            convert.config_of(tmp_path / "epoch_1.safetensors", arch=other)
    with pytest.raises(UserError, match="give arch alone"):
        convert.config_of(tmp_path / "epoch_1.safetensors", arch=arch, heads=1)
    with pytest.raises(UserError, match=f"--config.model.arch={arch.removesuffix('-quickgelu')}"):
        convert.config_of(tmp_path / "epoch_1.safetensors")


def test_what_a_checkpoint_states_cannot_be_said_otherwise(hf, tmp_path):
    assert convert.config_of(hf, act=CONFIG.text.act, heads=(2, 1)) == CONFIG
    with pytest.raises(UserError, match="activation is quick_gelu, as the checkpoint states; act='gelu'"):
        convert.config_of(hf, act="gelu")
    with pytest.raises(UserError, match="heads are 2 in the image tower, 1 in the text tower"):
        convert.config_of(hf, heads=4)
    with pytest.raises(UserError, match="activation is gelu"):
        convert.config_of(open_clip(tmp_path / "oc", hf), act="quick_gelu")


def test_a_flat_open_clip_config_is_read_and_its_defaults_are_openclips(hf, params, tmp_path):
    folder = open_clip(tmp_path / "flat", hf)
    path = folder / "open_clip_config.json"
    raw = json.loads(path.read_text())
    flat = raw["model_cfg"] | {"quick_gelu": True, "mean": [0.1, 0.2, 0.3], "resize_mode": "squash"}
    path.write_text(json.dumps(flat))
    config, got = convert.read(folder)
    equal(got, params)
    assert (config.vision.act, config.vision.heads, config.vision.eps) == ("quick_gelu", 4, 1e-6)
    assert (config.mean, config.resize.mode) == ((0.1, 0.2, 0.3), "squash")
    path.write_text(json.dumps({"vision_cfg": {}, "text_cfg": {}}))
    config = convert.config_of(folder)
    assert (config.vision.act, config.vision.heads, config.text.heads, config.text.eps) == ("gelu", 2, 8, 1e-5)
    path.write_text(json.dumps({"name": "ViT-B-32"}))
    with pytest.raises(UserError, match="expected model_cfg, or vision_cfg and text_cfg"):
        convert.config_of(folder)


def test_open_clip_defaults_that_are_written_out_are_no_reason_to_refuse(hf, params, tmp_path):
    folder = open_clip(tmp_path / "a", hf, custom_text=False, init_logit_scale=2.6, multimodal_cfg=None)
    raw = json.loads((folder / "open_clip_config.json").read_text())
    raw["model_cfg"]["vision_cfg"] |= {
        **{"pool_type": "tok", "output_tokens": False, "attn_pooler_queries": 256, "attentional_pool": False},
        **{"ls_init_value": None, "patch_dropout": 0.5, "act_kwargs": None, "pos_embed_type": "learnable"},
        **{"timm_model_name": None, "timm_pool": "avg", "image_size": [32, 32], "qk_norm": False},
    }
    raw["model_cfg"]["text_cfg"] |= {
        **{"pool_type": "argmax", "proj_type": "linear", "eos_id": 2, "pad_id": 0, "hf_proj_type": "mlp"},
        **{"hf_tokenizer_name": None, "tokenizer_kwargs": {"clean": "lower"}, "embed_cls": False},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(raw))
    config, got = convert.read(folder)
    equal(got, params)
    assert config.text.eot is None
    edit_json(
        folder / "open_clip_config.json", model_cfg=raw["model_cfg"] | {"text_cfg": {"pool_type": "eos", "eos_id": 29}}
    )
    assert convert.config_of(folder).text.eot == 29


@pytest.mark.parametrize(
    ("part", "field", "value", "reason"),
    [
        ("vision_cfg", "pool_type", "avg", "vision_cfg.pool_type = 'avg'"),
        ("vision_cfg", "no_ln_pre", True, "vision_cfg.no_ln_pre = True"),
        ("vision_cfg", "act_kwargs", {"approximate": "tanh"}, "vision_cfg.act_kwargs"),
        ("vision_cfg", "width", 256, "vision_cfg.width is 256; the weights beside it have 128"),
        ("vision_cfg", "layers", 12, "vision_cfg.layers is 12; the weights beside it have 3"),
        ("vision_cfg", "head_width", 0, "vision_cfg.head_width is 0; expected a whole number"),
        ("vision_cfg", "norm_kwargs", {"eps": float("nan")}, "norm_kwargs.eps is nan"),
        ("text_cfg", "pool_type", "last", "text_cfg.pool_type = 'last'"),
        ("text_cfg", "no_causal_mask", True, "text_cfg.no_causal_mask = True"),
        ("text_cfg", "tokenizer_kwargs", {"clean": "canonicalize"}, "text_cfg.tokenizer_kwargs"),
        ("text_cfg", "vocab_size", 49408, "text_cfg.vocab_size is 49408; the weights beside it have 30"),
        ("text_cfg", "heads", "8", "text_cfg.heads is '8'; expected a whole number"),
        ("text_cfg", "mlp_ratio", 4.0, "text_cfg.mlp_ratio is 4.0; the weights beside it have 96"),
        ("model_cfg", "init_logit_bias", -10, "model_cfg.init_logit_bias = -10"),
        ("model_cfg", "text_cfg", [], "text_cfg is"),
    ],
)
def test_a_field_that_makes_it_another_model_is_refused_by_name(hf, tmp_path, part, field, value, reason):
    folder = open_clip(tmp_path / "a", hf)
    raw = json.loads((folder / "open_clip_config.json").read_text())
    (raw["model_cfg"] if part == "model_cfg" else raw["model_cfg"][part])[field] = value
    (folder / "open_clip_config.json").write_text(json.dumps(raw))
    with pytest.raises(UserError, match=reason):
        convert.config_of(folder)


def test_timms_own_file_beside_openclips_is_not_taken(hf, params, tmp_path):
    folder = open_clip(tmp_path / "timm", hf)
    save_file({"trunk.weight": np.zeros(3, np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"architecture": "vit_base_patch32_clip_224"}')
    equal(convert.read(folder)[1], params)
    (folder / "config.json").write_bytes((hf / "config.json").read_bytes())  # transformers' file beside OpenCLIP's
    assert files.weight_files(folder)[0] == [folder / "model.safetensors"]


def processor(hf, name="preprocessor_config.json", **fields):
    """An image processor with these fields; what it says becomes (config, its mean and std as floats)."""
    raw = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32}, "crop_size": 32} | fields
    raw = {"image_processor": raw} if name == "processor_config.json" else raw
    (hf / name).write_text(json.dumps(raw))
    return convert.config_of(hf)


def test_what_an_image_processor_states_is_obeyed(hf):
    assert processor(hf).resize == Resize()
    assert processor(hf, size=32).resize == processor(hf, size=None, crop_size=None).resize == Resize()
    assert processor(hf, size=[32, 32]).resize == Resize("squash")
    assert processor(hf, size={"shortest_edge": 36}, resample=2).resize == Resize(
        interpolation="bilinear", scale=36 / 32
    )
    assert processor(hf, size={"height": 32, "width": 32}, do_center_crop=False).resize == Resize("squash")
    assert processor(hf, do_normalize=False).std == (1.0,) * 3
    raw = processor(hf, do_rescale=False, image_mean=[127.5] * 3, image_std=[255.0] * 3)  # pixels from 0 to 255
    np.testing.assert_allclose([raw.mean, raw.std], [[0.5] * 3, [1.0] * 3])
    half = processor(hf, rescale_factor=2 / 255, image_mean=[1.0] * 3, image_std=[0.5] * 3)  # from 0 to 2
    np.testing.assert_allclose([half.mean, half.std], [[0.5] * 3, [0.25] * 3])
    siglip = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 32, "width": 32}, "crop_size": None}
    siglip |= {"do_center_crop": False, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3}
    assert processor(hf, **siglip).resize == Resize("squash")
    new = processor(hf, "processor_config.json", image_mean=[0.5] * 3, image_std=[0.25] * 3)  # this file prevails
    assert (new.mean, new.std) == ((0.5,) * 3, (0.25,) * 3)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("do_resize", False), ("do_center_crop", False), ("do_pad", True), ("size", {"longest_edge": 32})],
        *[("size", {"height": 32, "width": 40}), ("crop_size", 24), ("crop_size", {"height": 32}), ("resample", 9)],
        *[("image_mean", [0.5]), ("image_std", [0.5, 0.5, 0.0]), ("image_std", "0.5"), ("do_thumbnail", True)],
        *[("size", {"shortest_edge": 24}), ("rescale_factor", 0), ("image_mean", [float("nan")] * 3)],
        *[("image_processor_type", "ViTImageProcessor"), ("do_normalize", "yes"), ("size", -32)],
    ],
)
def test_what_an_image_processor_states_and_is_not_supported_is_refused_by_name(hf, field, value):
    with pytest.raises(UserError, match=f"preprocessor_config.json: .*({field}|ViTImageProcessor)"):
        processor(hf, **{field: value})


def test_open_clips_preprocessing_is_obeyed(hf, tmp_path):
    folder = open_clip(tmp_path / "a", hf)
    path = folder / "open_clip_config.json"
    edit_json(
        path, preprocess_cfg={"resize_mode": "longest", "fill_color": 128, "interpolation": "bilinear", "size": 24}
    )
    assert convert.config_of(folder).resize == Resize("longest", "bilinear", fill=128)
    edit_json(path, preprocess_cfg={"mean": 0.5, "std": None, "fill_color": [1, 2, 3]})
    config = convert.config_of(folder)
    assert (config.mean, config.std, config.resize.fill) == ((0.5,) * 3, STD, (1, 2, 3))
    for field, value in {
        "resize_mode": "fit",
        "interpolation": "area",
        "mode": "L",
        "std": 0,
        "mean": [0, 0],
        "pad": 4,
    }.items():
        edit_json(path, preprocess_cfg={"std": None, field: value})
        with pytest.raises(UserError, match=rf"preprocess_cfg: .*{field}"):
            convert.config_of(folder)
        raw = json.loads(path.read_text())
        del raw["preprocess_cfg"][field]
        path.write_text(json.dumps(raw))


def test_the_stated_preprocessing_is_saved_in_hugging_faces_format(hf, params, tmp_path):
    for resize in Resize("squash", "bilinear"), Resize(scale=1.25), Resize("squash"):
        config = dataclasses.replace(CONFIG, resize=resize, mean=(0.5,) * 3)
        convert.save_hf(tmp_path / "again", config, params)
        assert convert.config_of(tmp_path / "again") == config
    with pytest.raises(UserError, match="longest"):
        convert.save_hf(tmp_path / "again", dataclasses.replace(CONFIG, resize=Resize("longest")), params)


def test_numbers_in_lists_and_a_logit_scale_with_an_axis(hf, params):
    edit_json(
        hf / "config.json",
        vision_config={"image_size": [32, 32], "patch_size": [8]},
        text_config={"eos_token_id": [29]},
    )
    tensors = load_file(hf / "model.safetensors")
    tensors["logit_scale"] = tensors["logit_scale"].reshape(1)
    wrapped = {f"_orig_mod.module.state_dict.clip.{key}": value for key, value in tensors.items()}
    save_file(wrapped, hf / "model.safetensors")
    config, got = convert.read(hf)
    assert config == CONFIG
    equal(got, params)
    edit_json(hf / "config.json", vision_config={"image_size": [32, 40]})
    with pytest.raises(UserError, match=r"vision_config.image_size is \[32, 40\]"):
        convert.read(hf)


def test_older_config_files_with_text_config_dict(hf):
    edit_json(hf / "config.json", vision_config_dict=None, text_config={"hidden_size": 7})
    raw = json.loads((hf / "config.json").read_text())
    edit_json(hf / "config.json", text_config_dict=raw["text_config"] | {"hidden_size": 64})
    assert convert.config_of(hf) == CONFIG


@pytest.mark.parametrize(
    ("part", "field", "value", "reason"),
    [
        ("vision_config", "num_hidden_layers", 10**8, "is 100000000; expected a whole number|hold 3 layers"),
        ("vision_config", "num_hidden_layers", 2, "is 2; the weights beside it hold 3 layers"),
        ("vision_config", "hidden_size", "128", "hidden_size is '128'"),
        ("vision_config", "hidden_size", -128, "hidden_size is -128"),
        ("vision_config", "hidden_size", True, "hidden_size is True"),
        ("vision_config", "num_attention_heads", 7, "width 128 is no multiple of its 7 heads"),
        ("vision_config", "image_size", 10**6, "sizes of this model are beyond|125000 x 125000 positions"),
        ("vision_config", "image_size", 40, "make 5 x 5 positions and one more; the weights hold"),
        ("vision_config", "patch_size", 64, "fewer than those of one patch"),
        ("vision_config", "hidden_act", ["gelu"], "activation"),
        ("text_config", "layer_norm_eps", float("nan"), "layer_norm_eps is nan"),
        ("text_config", "eos_token_id", None, "eos_token_id is null"),
        ("text_config", "eos_token_id", [2, 3], "eos_token_id is"),
        ("text_config", "vocab_size", 10**12, "vocab_size is 1000000000000"),
    ],
)
def test_sizes_that_no_clip_has_are_refused_at_once(hf, part, field, value, reason):
    edit_json(hf / "config.json", **{part: {field: value}})
    with pytest.raises(UserError, match=reason):
        convert.config_of(hf)


def test_an_adapter_of_peft_is_called_one(hf, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    name = "base_model.model.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight"
    save_file({name: np.zeros((4, 64), np.float32)}, adapter / "adapter_model.safetensors")
    for path in adapter / "adapter_model.safetensors", adapter:
        with pytest.raises(UserError, match="adapter of the PEFT library"):
            convert.read(path)
        (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "openai/clip"}')
        with pytest.raises(UserError, match=r"adapter of the PEFT library \(LORA\) for the model 'openai/clip'"):
            convert.read(path)


@pytest.mark.parametrize(
    "content",
    [{}, {"weight_map": {}}, {"weight_map": [1]}, {"weight_map": {"a": 3}}]
    + [{"weight_map": {"a": name}} for name in ("../x.safetensors", "/etc/passwd", "x.bin", "")],
)
def test_an_index_names_safetensors_files_of_its_own_folder(hf, content):
    (hf / "model.safetensors").rename(hf.parent / "x.safetensors")
    (hf / "model.safetensors.index.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="index.json: expected"):
        convert.read(hf)


def test_weights_that_are_not_finite_or_stand_twice_are_refused(hf):
    tensors = load_file(hf / "model.safetensors")
    save_file(tensors | {"module.logit_scale": np.zeros((), np.float32)}, hf / "model.safetensors")
    with pytest.raises(UserError, match="two tensors of one name: logit_scale"):
        convert.read(hf)
    tensors["visual_projection.weight"][3, 4] = np.nan
    save_file(tensors, hf / "model.safetensors")
    with pytest.raises(UserError, match="not finite in visual_projection.weight"):
        convert.read(hf)


def test_a_logit_scale_that_is_no_logarithm_is_refused(hf):
    tensors = load_file(hf / "model.safetensors")
    save_file(tensors | {"logit_scale": np.array(100, np.float32)}, hf / "model.safetensors")
    with pytest.raises(UserError, match="logit_scale is 100; expected the logarithm"):
        convert.read(hf)


def test_a_format_that_is_not_read_is_named(tmp_path):
    (tmp_path / "siglip.npz").touch()
    for path in tmp_path, tmp_path / "siglip.npz":
        with pytest.raises(UserError, match="siglip.npz: not in a format"):
            convert.read(path)
