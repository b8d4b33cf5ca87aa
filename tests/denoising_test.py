"""Pre-training of T5 and BART on the scenes' text: nothing is lost in what is taken out, and what is written can be
read, by transformers too."""

import functools
import itertools
import json
import shutil

import numpy as np
import pytest

from configs import pretrain_bart, pretrain_t5
from vlmx import pretrain_text
from vlmx.data import denoising
from vlmx.data.scene_reading import readings
from vlmx.models import convert_seq, zoo


@pytest.mark.parametrize("n", (1, 2, 3, 8, 40))
def test_span_corruption_takes_out_what_the_target_holds(n):
    text, counts = list(range(n)), []
    for seed in range(30):
        left, target = denoising.spans(text, np.random.default_rng(seed), sentinel=999, density=0.3, mean=2.0)
        assert target[0] == 999 and target[-1] == min(t for t in target if t > 900)  # closes the last span
        pieces = {}
        for token in target:
            if token > 900:
                pieces[token] = []
            else:
                pieces[min(pieces)].append(token)
        assert all(pieces[s] for s in list(pieces)[:-1]) and not pieces[target[-1]]
        assert [x for token in left for x in (pieces[token] if token > 900 else [token])] == text
        assert [t for t in left if t > 900] == [t for t in target[:-1] if t > 900]
        counts.append(sum(map(len, pieces.values())))
    assert set(counts) == {max(round(0.3 * n), 1)}
    assert n < 40 or len({tuple(denoising.spans(text, np.random.default_rng(s), 999)[0]) for s in range(30)}) > 20


def test_infilling_masks_spans_and_shuffles_sentences():
    text = [1, 2, 3, 4, 5, 9, 11, 12, 13, 14, 9, 21, 22, 9]
    orders, kept = set(), []
    for seed in range(60):
        left, target = denoising.infill(text, np.random.default_rng(seed), mask=99, end=9, density=0.3, mean=3.0)
        assert target == text
        said = [t for t in left if t not in (9, 99)]
        assert len(set(said)) == len(said) and set(said) <= set(text)
        firsts = list(dict.fromkeys(t // 10 for t in said))
        orders.add(tuple(firsts))
        for sentence in range(3):  # within a sentence the order stays
            own = [t for t in said if t // 10 == sentence]
            assert own == sorted(own)
        assert 99 in left
        kept.append(len([t for t in left if t != 99]) / len(text))
    assert len(orders) > 3 and 0.65 < np.mean(kept) < 0.85


def test_a_batch_depends_on_its_step_alone():
    corrupt = functools.partial(denoising.spans, sentinel=999)
    how = {"begin": (), "end": 1, "pad": 0, "length": 12, "target_length": 6}
    texts = [list(range(2, 2 + n)) for n in (4, 9, 20)]
    whole = list(denoising.batches(texts, corrupt, 5, 6, 0, **how))
    for a, b in zip(whole[3:], denoising.batches(texts, corrupt, 5, 6, 0, first=3, **how), strict=True):
        assert (a["ids"] == b["ids"]).all() and (a["labels"] == b["labels"]).all()
    pairs = next(denoising.batches([([7, 8], [9])], corrupt, 1, 1, 0, **how))  # are read as they are
    assert pairs["ids"][0, :4].tolist() == [7, 8, 1, 0] and pairs["labels"][0, :3].tolist() == [9, 1, -100]
    for b in whole:
        ends = (b["ids"] == 1).argmax(-1)
        assert (b["ids"][np.arange(5), ends] == 1).all()  # cut where too long, the end stays
        assert all((row[end + 1 :] == 0).all() for row, end in zip(b["ids"], ends))
        assert ((b["labels"] == 1).sum(-1) == 1).all()


@pytest.mark.parametrize("module", (pretrain_t5, pretrain_bart))
def test_pretraining_ends_in_a_directory_that_is_read_and_goes_on_where_it_was_cut(module, tmp_path, monkeypatch):
    config = module.get_config("smoke")
    made = pretrain_text.run(config, tmp_path / "whole")
    folder = tmp_path / "whole" / config.kind
    loaded = zoo.load_seq(folder)
    assert loaded.model.config.vocab == len(loaded.tokenizer.hf) and loaded.model.config.layers == (1, 1)
    text = "what colour is the small heart?"
    ids = loaded.tokenizer([text.upper(), "日本"], 40)
    assert loaded.tokenizer.texts(ids)[0] == text
    special = {"t5": ("<pad>", "</s>", "<unk>"), "bart": ("<s>", "<pad>", "</s>", "<unk>")}[config.kind]
    assert loaded.tokenizer.hf.convert_tokens_to_ids(special) == list(range(len(special)))
    last = {"t5": "<extra_id_0>", "bart": "<mask>"}[config.kind]
    assert loaded.tokenizer.hf.convert_tokens_to_ids([last]) == [loaded.model.config.vocab - 1]
    assert json.loads((folder / "pretrain.json").read_text()) == made
    assert made["command"].endswith(f"configs/{config.title}.py --workdir DIR") and set(made["held_out"])
    assert pretrain_text.run(config, tmp_path / "whole") == made  # finished: not trained again

    real, again = denoising.batches, tmp_path / "cut" / config.kind
    again.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):  # is kept
        shutil.copy(folder / name, again / name)

    def cut(*args, **how):
        yield from itertools.islice(real(*args, **how), 3)
        raise KeyboardInterrupt

    monkeypatch.setattr(denoising, "batches", cut)
    with pytest.raises(KeyboardInterrupt):
        pretrain_text.run(config, tmp_path / "cut")
    monkeypatch.setattr(denoising, "batches", real)
    pretrain_text.run(config, tmp_path / "cut")
    assert (folder / "tokenizer.json").read_bytes() == (again / "tokenizer.json").read_bytes()
    assert (folder / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()


@pytest.mark.parametrize("name", ("tiny_t5", "tiny_bart"))
def test_the_packaged_models_are_small_and_fill_in_what_is_missing(name):
    folder = zoo.locate(name)
    assert sum(f.stat().st_size for f in folder.iterdir()) < 8_000_000
    loaded, made = zoo.load_seq(name), json.loads((folder / "pretrain.json").read_text())
    config = {"tiny_t5": pretrain_t5, "tiny_bart": pretrain_bart}[name].get_config()
    assert made["config"] == json.loads(config.to_json_best_effort())
    shape = convert_seq.config_of(json.loads((folder / "config.json").read_text()))
    assert shape.width == config.width and shape.layers == (config.layers, config.layers)
    rows, pairs = (
        pretrain_text.told(loaded.tokenizer.hf, config.data, texts)[:64]
        for texts in (pretrain_text.passages("unseen", 160), readings("unseen", 100))
    )
    corrupt, how = pretrain_text.noise(config, loaded.tokenizer.hf)
    found = pretrain_text.filled(loaded.model, rows, corrupt, config, how)
    assert found["tokens"] == pytest.approx(made["held_out"]["tokens"], abs=8)
    found = pretrain_text.filled(loaded.model, pairs, corrupt, config, how)
    assert found["texts"] == pytest.approx(made["held_out"]["answers"], abs=12)
