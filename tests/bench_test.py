"""The bench runs where torch is not installed, and says what it measured."""

import sys

from vlmx.bench import __main__ as bench
from vlmx.models import zoo
from vlmx.models.clip import ClipConfig, Text, ViT


def test_image_encoder_without_torch(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    text = Text(8, 1, 1, 8, context=4, vocab=8, bos=6)
    tiny = ClipConfig(8, ViT(8, 1, 1, 8, image_size=32, patch=8), text)
    monkeypatch.setitem(zoo.MODELS, "tiny", zoo.Entry("nobody/tiny", tiny))
    arguments = "bench image_encoder --model tiny --batch 2 --image 16 --dtype bfloat16 --rounds 1"
    monkeypatch.setattr(sys, "argv", arguments.split())
    bench.main()
    missing, what, row = capsys.readouterr().out.strip().split("\n")
    assert missing == "torch is not installed: no comparison with PyTorch"
    assert what.startswith("tiny image encoder, batch 2, 16 px, bfloat16, on ")
    assert row.startswith("vlmx") and row.endswith("images/s")


def test_sweep_without_torch(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(sys, "argv", "bench sweep --data textures --seeds 1".split())
    bench.main()
    said = capsys.readouterr().out
    assert "Tip-Adapter-F on textures: 5 numbers of shots x 1 seeds" in said
    assert "5 trainings at once" in said and said.strip().endswith("torch is not installed: no comparison with PyTorch")
