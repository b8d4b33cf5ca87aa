"""Our CLIP beside transformers' `CLIPModel` in PyTorch, on weights that transformers wrote."""

import argparse
import json
import subprocess
import sys
import warnings

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from golden_cases import OWN, assert_close
from safetensors.numpy import load_file

from vlmx.errors import UserError
from vlmx.models import convert, files
from vlmx.models.clip import Clip

BACKBONE = OWN / "clip" / "backbones" / "vit_a"


def stirred(model):
    """The model with noise on every weight: fresh ones have all biases zero, and a swap of two would not show."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    return model


def compare(theirs, folder, image_size, ids):
    """Asserts equal image features, text features and logits, to 1e-4 of the largest value."""
    config, params = convert.read(folder)
    ours = Clip(params, config)
    images = np.random.default_rng(0).standard_normal((2, image_size, image_size, 3), np.float32)
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    with torch.inference_mode():
        want = theirs.eval()(input_ids=torch.from_numpy(ids).long(), pixel_values=pixels)
        image = theirs.visual_projection(theirs.vision_model(pixel_values=pixels).pooler_output)
        text = theirs.text_projection(theirs.text_model(input_ids=torch.from_numpy(ids).long()).pooler_output)
    got_image, got_text = jax.jit(Clip.image)(ours, images), jax.jit(Clip.encode_text)(ours, ids)
    assert_close(got_image, image, 1e-4, "image features")
    assert_close(got_text, text, 1e-4, "text features")
    assert_close(ours.logits(got_image, got_text), want.logits_per_image, 1e-4, "logits")


def test_weights_shaped_like_vit_base_patch16_agree(tmp_path):
    torch.manual_seed(0)
    config = transformers.CLIPConfig(projection_dim=512, vision_config={"patch_size": 16})
    theirs = stirred(transformers.CLIPModel(config))
    theirs.save_pretrained(tmp_path)
    ids = np.zeros((3, 77), np.int32)
    ids[:, :6] = [49406, 320, 1125, 539, 320, 2368]
    ids[[0, 1, 2], [6, 20, 76]] = 49407
    compare(theirs, tmp_path, 224, ids)


@pytest.mark.parametrize("act, eos", [("gelu", 29), ("quick_gelu", 2)])
def test_other_activations_and_the_legacy_end_token_agree(tmp_path, act, eos):
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    sizes |= {"hidden_act": act, "layer_norm_eps": 1e-3}
    text = sizes | {"vocab_size": 30, "max_position_embeddings": 9, "eos_token_id": eos, "bos_token_id": 28}
    vision = sizes | {"image_size": 32, "patch_size": 8}
    config = transformers.CLIPConfig(projection_dim=24, text_config=text, vision_config=vision)
    theirs = stirred(transformers.CLIPModel(config))
    theirs.save_pretrained(tmp_path, max_shard_size="100KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    ids = np.array([[28, 5, 29, 0, 0, 0, 0, 0, 0], [28, 5, 2, 7, 3, 29, 29, 29, 29]], np.int32)
    compare(theirs, tmp_path, 32, ids)


def test_what_we_save_transformers_loads(tmp_path):
    config, params = convert.read(BACKBONE)
    convert.save_hf(tmp_path, config, params)
    theirs, info = transformers.CLIPModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    compare(theirs, BACKBONE, 32, np.array([[510, 7, 27, 511, *[0] * 16]], np.int32))
    pixels = transformers.CLIPImageProcessor.from_pretrained(tmp_path)
    assert pixels.crop_size["height"] == 32


def test_interpolated_positions_are_torchs_antialiased_bicubic():
    pos = np.random.default_rng(0).standard_normal((1 + 7 * 7, 5), np.float32)
    grid = torch.from_numpy(pos[1:].reshape(1, 7, 7, 5)).permute(0, 3, 1, 2)
    for size in (12, 4):
        want = torch.nn.functional.interpolate(grid, (size, size), mode="bicubic", antialias=True, align_corners=False)
        got = files.resize_grid(pos, size)[1:].reshape(size, size, 5)
        np.testing.assert_allclose(got, want[0].permute(1, 2, 0), atol=1e-5)


def test_pt_files(tmp_path):
    tensors = {k: torch.from_numpy(v) for k, v in load_file(BACKBONE.with_name("rn_a") / "model.safetensors").items()}
    want = convert.read(BACKBONE.with_name("rn_a"))[1]
    torch.save(tensors, tmp_path / "RN.pt")
    stated = {"act": "quick_gelu", "heads": (2, 1)}
    jax.tree.map(np.testing.assert_array_equal, convert.read(tmp_path / "RN.pt", **stated)[1], want)

    half = {f"module.{k}": v.bfloat16() if v.is_floating_point() else v for k, v in tensors.items()}
    torch.save({"epoch": 3, "state_dict": half}, tmp_path / "half.pt", _use_new_zipfile_serialization=False)
    rounded = jax.tree.map(lambda x: np.asarray(x).astype(ml_dtypes.bfloat16).astype(np.float32), want)
    jax.tree.map(np.testing.assert_array_equal, convert.read(tmp_path / "half.pt", **stated)[1], rounded)

    torch.save({"hook": print}, tmp_path / "code.pt")
    with pytest.raises(UserError, match="weights_only"):
        convert.read(tmp_path / "code.pt")
    torch.save([tensors["logit_scale"]], tmp_path / "list.pt")
    with pytest.raises(UserError, match="not a CLIP checkpoint"):
        convert.read(tmp_path / "list.pt")


def test_torch_files_in_shards(tmp_path):
    state = {k: torch.from_numpy(v.copy()) for k, v in load_file(BACKBONE / "model.safetensors").items()}
    names, where = sorted(state), {}
    for i, part in enumerate((names[::2], names[1::2]), 1):
        file = f"pytorch_model-0000{i}-of-00002.bin"
        torch.save({k: state[k] for k in part}, tmp_path / file)
        where |= dict.fromkeys(part, file)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    (tmp_path / "config.json").write_bytes((BACKBONE / "config.json").read_bytes())
    jax.tree.map(np.testing.assert_array_equal, convert.read(tmp_path)[1], convert.read(BACKBONE)[1])


def test_a_compiled_module_of_lightning(tmp_path):
    state = {
        f"model._orig_mod.{k}": torch.from_numpy(v.copy()) for k, v in load_file(BACKBONE / "model.safetensors").items()
    }
    torch.save({"state_dict": state, "pytorch-lightning_version": "2.1"}, tmp_path / "last.ckpt")
    (tmp_path / "config.json").write_bytes((BACKBONE / "config.json").read_bytes())
    read = convert.read(tmp_path / "last.ckpt")[1]
    jax.tree.map(np.testing.assert_array_equal, read, convert.read(BACKBONE)[1])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            {"net": {"w": torch.zeros(2)}, "epoch": 3},
            "no weights at its top or under state_dict, .*; it holds net, epoch",
        ),
        (
            {"w": torch.zeros(2), "args": argparse.Namespace()},
            "an object of argparse.Namespace, .* save its weights alone",
        ),
        ({"w": torch.zeros(2), "best": np.float64(3)}, "an object of numpy.*scalar, .* save its weights alone"),
    ],
)
def test_what_a_training_loop_saves_and_no_reader_can_take(tmp_path, content, reason):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(UserError, match=reason):
        convert.read(tmp_path)


@pytest.mark.parametrize("path", [("model",), ("model_state_dict",), ("model", "state_dict"), ("module",)])
def test_weights_inside_what_a_training_loop_saves(tmp_path, path):
    state = {k: torch.from_numpy(v.copy()) for k, v in load_file(BACKBONE / "model.safetensors").items()}
    state["logit_scale"] = state["logit_scale"].reshape(1)
    for key in reversed(path):
        state = {key: state, "epoch": 3, "rng": torch.zeros(2), "optimizer": {"state": {0: torch.zeros(3)}}}
    torch.save(state, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_bytes((BACKBONE / "config.json").read_bytes())
    jax.tree.map(np.testing.assert_array_equal, convert.read(tmp_path)[1], convert.read(BACKBONE)[1])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"logit_scale": torch.tensor(1.0).to(torch.float8_e4m3fn)}, "not floating-point: logit_scale"),
        ({"logit_scale": torch.tensor(1j)}, "not floating-point: logit_scale"),
        ({"logit_scale": torch.zeros(2, 2).to_sparse()}, "misshapen: logit_scale"),
        ({"logit_scale": torch.zeros((), device="meta")}, "not floating-point: logit_scale"),
        ({"visual_projection.weight": torch.zeros(1).expand(48, 64)}, "not floating-point: visual_projection"),
        ({1: torch.zeros(2)}, "expected names of tensors, got int 1"),
    ],
)
def test_tensors_that_are_no_plain_numbers_are_refused(tmp_path, change, reason):
    state = {k: torch.from_numpy(v.copy()) for k, v in load_file(BACKBONE / "model.safetensors").items()}
    torch.save(state | change, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_bytes((BACKBONE / "config.json").read_bytes())
    with pytest.raises(UserError, match=reason):
        convert.read(tmp_path)


def test_a_pickle_that_runs_code_is_refused_without_advice_to_run_it(tmp_path):
    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    for name, new in ("a.pt", True), ("b.pt", False):
        torch.save({"x": Evil()}, tmp_path / name, _use_new_zipfile_serialization=new)
        with pytest.raises(UserError, match="plain weights") as error:
            convert.read(tmp_path / name)
        assert "False" not in str(error.value) and not (tmp_path / "ran").exists()


def test_the_export_that_a_torchscript_archive_is_told_to_take_works(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is; OpenAI's archives stay what they are
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 3), torch.zeros(1, 2)), tmp_path / "ViT-B-32.pt")
    with pytest.raises(UserError, match="TorchScript") as error:
        convert.read(tmp_path / "ViT-B-32.pt")
    command = str(error.value).split("\n")[1].strip().replace("python ", f"{sys.executable} ", 1)
    subprocess.run(command, shell=True, check=True)
    assert load_file(tmp_path / "ViT-B-32.safetensors")["weight"].shape == (3, 2)
