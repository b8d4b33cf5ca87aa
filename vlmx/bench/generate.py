"""Beam search of an encoder-decoder with random weights, beside that of transformers with the same weights."""

import dataclasses
import tempfile
import time

import jax
import numpy as np

from vlmx import streams
from vlmx.bench import timing
from vlmx.generate import generate
from vlmx.models import convert_seq, vlseq, zoo
from vlmx.models.vlseq import Generation, VLSeq


def run(args):
    """Times beam search of `args.model` for a batch of random texts, as long as a question with 36 visual tokens."""
    config = dataclasses.replace(zoo.SEQ_MODELS[args.model].config, dtype=args.dtype, param_dtype=args.dtype)
    model = VLSeq(jax.jit(vlseq.init_params, static_argnums=0)(config, streams.start(0)), config)
    how = Generation(max_length=20, beams=5, early_stopping=True, no_repeat_ngram=3, force_end=True)
    ids = streams.generator("texts").integers(3, config.vocab, (args.batch, 56), np.int32)
    ids[:, -1] = config.end
    on_device = jax.device_put(ids)
    runs = {"vlmx": lambda: jax.block_until_ready(generate(model, on_device, how=how)[0])}
    start = time.perf_counter()
    ours = np.asarray(runs["vlmx"]())
    first = time.perf_counter() - start
    theirs = _pytorch_search(model, ids, how)
    if theirs is not None:
        runs["pytorch"] = theirs
        texts = np.asarray(theirs())
    timing.say(
        f"{args.model}, {how.beams} beams, {args.batch} texts of {ids.shape[1]} tokens, at most {how.max_length} new, "
        f"{args.dtype}"
    )
    medians = timing.alternating(runs, args.rounds, args.batch, "texts")
    print(f"vlmx's first call, which compiles: {first:.1f} s")
    if theirs is not None:
        texts = np.pad(texts, ((0, 0), (0, how.max_length - texts.shape[1])), constant_values=config.pad)
        differ = int((ours != texts).any(-1).sum())
        ratio = medians["pytorch"] / medians["vlmx"]
        print(f"vlmx is {ratio:.2f} times as fast as PyTorch; {differ} of {args.batch} texts differ")


def _pytorch_search(model, ids, how):
    """The beam search of transformers with the same weights and rules, as a function, or None without torch."""
    if (torch := timing.pytorch()) is None:
        return None
    import transformers

    transformers.utils.logging.disable_progress_bar()
    classes = {"bart": transformers.BartForConditionalGeneration, "t5": transformers.T5ForConditionalGeneration}
    with tempfile.TemporaryDirectory() as folder:
        convert_seq.save_hf(folder, model.config, model.params, dtype=model.config.param_dtype)
        theirs = classes[model.config.family].from_pretrained(folder).eval()
    theirs = theirs.to(timing.device(torch))
    inputs = torch.from_numpy(ids.astype(np.int64)).to(theirs.device)
    rules = transformers.GenerationConfig(
        max_length=how.max_length, num_beams=how.beams, early_stopping=how.early_stopping, do_sample=False,
        no_repeat_ngram_size=how.no_repeat_ngram, length_penalty=how.length_penalty,
        forced_eos_token_id=model.config.end, eos_token_id=model.config.end, pad_token_id=model.config.pad,
        decoder_start_token_id=model.config.begin,
    )  # fmt: skip

    def run():
        with torch.inference_mode():
            return theirs.generate(inputs, attention_mask=torch.ones_like(inputs), generation_config=rules).cpu()

    return run
