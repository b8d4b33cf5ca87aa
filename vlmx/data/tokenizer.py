"""Texts to token ids, with the tokenizer files of a checkpoint (read by transformers)."""

import html
import os
from pathlib import Path
from typing import Any, NamedTuple

import ftfy
import numpy as np

from vlmx.errors import UserError

# transformers advises installing torch; tokenizers need none.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

CLIP_TOKENIZER = "openai/clip-vit-base-patch32"  # every CLIP of OpenAI's, and most of OpenCLIP's, has this vocabulary


class Tokenizer(NamedTuple):
    """A transformers tokenizer and the number of positions its text tower has.

    `cleans`: repair texts first, as the tokenizers of OpenAI and OpenCLIP do and transformers' does not (see `clean`).
    """

    hf: Any
    context: int
    cleans: bool = False

    def __call__(self, texts, what=None, truncate=False):
        """Token ids `(n, context)` int32 of n texts: start token, text, end token, then zeros.

        Args:
          what: for each text, what an error should call it, such as 'class "oak tree", template "a photo of a {}."'.
          truncate: cut texts that are too long, keeping the end token last, instead of raising.

        Raises UserError naming each text that does not fit, its number of tokens and the limit.
        """
        rows = [clean(text) for text in texts] if self.cleans else list(texts)
        # A class name that spells a special token, such as "<|endoftext|>", is a text to OpenCLIP.
        options = {"split_special_tokens": True} if self.cleans else {}
        rows = self.hf(rows, padding=False, truncation=False, verbose=False, **options)["input_ids"]
        long = [(i, len(row)) for i, row in enumerate(rows) if len(row) > self.context]
        if long and not truncate:
            lines = [f"  {what[i] if what else repr(texts[i])}: {n} tokens" for i, n in long[:20]]
            lines += [f"  ... and {len(long) - 20} more"] if len(long) > 20 else []
            raise UserError(
                f"text too long for this model, which reads at most {self.context} tokens, start and end among them; "
                "shorten the class name or the template, or allow truncation:\n" + "\n".join(lines)
            )
        ids = np.zeros((len(rows), self.context), np.int32)
        for out, row in zip(ids, rows):
            row = row if len(row) <= self.context else row[: self.context - 1] + row[-1:]
            out[: len(row)] = row
        return ids


def clean(text):
    """A text as OpenAI's and OpenCLIP's tokenizers see it: encoding repaired (ftfy), HTML unescaped twice, white space
    squeezed, lower case."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()).lower()


def read(folder, clip=False):
    """The transformers tokenizer in `folder`; never runs code that lies there, never asks whether to.

    Args: clip: it is of a CLIP, whatever kind of model a config.json beside it is of, such as timm's.
    Raises UserError where transformers cannot read it.
    """
    from transformers import AutoTokenizer, CLIPConfig

    options = {"config": CLIPConfig()} if clip else {}  # else AutoTokenizer reads config.json, which need not be there
    try:
        hf = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **options)
        hf.get_vocab(), hf(["a"], verbose=False)["input_ids"][0]
        return hf
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # many kinds; the tokenizers library panics with a BaseException
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        config = folder / "tokenizer_config.json"
        asks = config.is_file() and b"auto_map" in config.read_bytes()
        code = " (its auto_map names code, which is not run)" if asks else ""
        raise UserError(f"{folder}: transformers cannot read the tokenizer there{code}: {reason}") from error


def load(folder, context, vocab):
    """The tokenizer whose files lie in `folder`, otherwise CLIP's own from the hub's cache on this machine.

    Texts are cleaned first where the folder is none of a Hugging Face CLIP: its `config.json` is absent, or
    `open_clip_config.json` lies beside it.

    Args: context, vocab: the text tower's numbers of positions and of token ids.
    Raises UserError where there are no tokenizer files, or they do not belong to a model with this vocabulary.
    """
    where = next((f for f in (Path(folder), _cached()) if f and _has_files(f)), None)
    if where is None:
        raise UserError(
            f"{folder}: no tokenizer files beside the weights; expected tokenizer.json, or vocab.json and merges.txt. "
            f"CLIP's own are those of {CLIP_TOKENIZER}: copy them there, or fetch them once with\n"
            f"  hf download {CLIP_TOKENIZER} tokenizer.json tokenizer_config.json vocab.json merges.txt"
        )
    hf = read(where, clip=True)
    ids = max(hf.get_vocab().values(), default=-1) + 1
    if ids > vocab:
        raise UserError(
            f"the tokenizer in {where} has {ids} token ids, this model has embeddings for {vocab}: not its own"
        )
    row = hf([""], verbose=False)["input_ids"][0]
    if len(row) != 2:
        raise UserError(f"the tokenizer in {where} puts {len(row)} ids around a text; CLIP's puts a start and an end")
    hugging_face = (Path(folder) / "config.json").is_file() and not (Path(folder) / "open_clip_config.json").is_file()
    return Tokenizer(hf, context, not hugging_face)


def _has_files(folder):
    # checked here, as transformers makes an empty vocabulary of a folder without them
    return (folder / "tokenizer.json").is_file() or all((folder / f).is_file() for f in ("vocab.json", "merges.txt"))


def _cached():
    """CLIP's own tokenizer in the hub's cache of this machine, or None."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(CLIP_TOKENIZER, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
