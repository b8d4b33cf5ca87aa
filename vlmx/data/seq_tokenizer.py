"""Texts to token ids and back for encoder-decoders, with the tokenizer files of a checkpoint (read by transformers)."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vlmx.data import tokenizer
from vlmx.errors import UserError

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it advises installing torch; tokenizers need none


class Words(NamedTuple):
    """A transformers tokenizer and the id of padding."""

    hf: Any
    pad: int

    def __call__(self, texts, length):
        """Token ids `(n, length)` int32 of n texts, with the tokenizer's own start and end; padded, or cut at the end
        of the text (the end token stays)."""
        rows = self.hf(list(texts), max_length=length, truncation=True, verbose=False)["input_ids"]
        ids = np.full((len(rows), length), self.pad, np.int32)
        for out, row in zip(ids, rows):
            out[: len(row)] = row
        return ids

    def labels(self, texts, length):
        """The same for targets: -100, which is not learned, in place of padding."""
        ids = self(texts, length)
        return np.where(ids == self.pad, -100, ids)

    def texts(self, ids):
        """The texts of generated ids `(n, T)`, without special tokens -> list of str."""
        return [text.strip() for text in self.hf.batch_decode(np.asarray(ids), skip_special_tokens=True)]


def load(folder, vocab, pad):
    """The Words whose files lie in `folder`. Raises UserError where there are none, or not those of this model."""
    folder = Path(folder)
    if not ((folder / "tokenizer.json").is_file() or all((folder / f).is_file() for f in ("vocab.json", "merges.txt"))):
        pieces = "; spiece.model alone is not read" if (folder / "spiece.model").is_file() else ""
        raise UserError(
            f"{folder}: no tokenizer beside the weights; expected tokenizer.json, or vocab.json and merges.txt{pieces}"
            ". AutoTokenizer.from_pretrained(NAME).save_pretrained(FOLDER) of transformers writes it"
        )
    hf = tokenizer.read(folder)
    highest = max(hf.get_vocab().values(), default=-1)
    if highest >= vocab:
        raise UserError(f"the tokenizer in {folder} has ids up to {highest}, this model embeds {vocab}: not its own")
    return Words(hf, pad)
