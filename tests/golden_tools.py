"""What golden cases of CLIP need: their backbone as our Clip, and the word-level tokenizer behind their token ids."""

import functools
import json
from pathlib import Path

from golden_cases import beside, load
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from vlmx.data.tokenizer import Tokenizer as Words
from vlmx.models import convert
from vlmx.models.clip import Clip


@functools.cache
def backbone(folder):
    """The Clip of a golden backbone's folder; read once per process."""
    config, params = convert.read(folder)
    return Clip(params, config)


def load_case(folder):
    """A golden case's folder -> (case.json as a dict, tensors as a dict of numpy arrays, its backbone or None).

    `in/pixel_values` arrives NHWC, as our models take images.
    """
    case, tensors = load(Path(folder))
    if "in/pixel_values" in tensors:
        tensors["in/pixel_values"] = tensors["in/pixel_values"].transpose(0, 2, 3, 1)
    model = backbone(beside(Path(folder), case["backbone"]["folder"])) if "backbone" in case else None
    return case, tensors, model


def word_tokenizer(vocab_json):
    """A transformers tokenizer with the rule and the words of goldens/clip/vocab.json."""
    raw = json.loads(Path(vocab_json).read_text())
    vocab = {"<pad>": raw["padding"], **raw["words"], "<start>": raw["start"], "<end>": raw["end"]}
    words = Tokenizer(models.WordLevel(vocab))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\p{L}\p{N}]+|[^\s\p{L}\p{N}]"), "removed", invert=True)
    ends = [("<start>", raw["start"]), ("<end>", raw["end"])]
    words.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<start>", eos_token="<end>", pad_token="<pad>")


def tokenizer(folder, context):
    """Our Tokenizer over the vocabulary that lies beside a golden case."""
    return Words(word_tokenizer(beside(Path(folder), "vocab.json")), context)
