"""Full fine-tuning, the upper reference: every weight of both towers is tuned on the zero-shot model's own logits.

Frozen stay the factor of the cosines and, in a ResNet, the statistics of batch normalisation. C classes, T tokens.
"""

from vlmx.method import Method, class_texts

TRAINS = (r"vision/(?!.*/(mean|var)$).*", r"text/.*")


def make():
    """Fine-tuning of both towers, with the first of the data set's own templates."""

    def setup(model, task):
        ids, eot = class_texts(model, task, task.templates[0])
        return {"ids": ids, "eot": eot}

    def apply(v, model, consts, batch, rng=None, train=False):
        img = model.image(batch["image"])
        txt = model.text(model.tokens(consts["ids"]), consts["eot"])  # the embeddings of tokens are tuned too
        return {"logits": model.logits(img, txt), "image_features": img, "text_features": txt}

    return Method(apply=apply, setup=setup, needs="pixels", trains=TRAINS)
