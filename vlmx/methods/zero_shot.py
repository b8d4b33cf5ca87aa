"""Zero-shot CLIP (Radford et al. 2021, arXiv 2103.00020, section 3.1.4): nothing is trained.

W_c = N(mean_t N(text(template_t(class_c)))) and logits = s * N(img) . W, with s = exp(logit_scale).
"""

from vlmx.errors import unknown
from vlmx.method import Method, image_features, template_features
from vlmx.models.clip import normalize


def make(templates="dataset"):
    """Zero-shot classification.

    Args: templates: "dataset", the data set's own; or "ensemble", the seven that CLIP's authors selected on ImageNet
    and, except on ImageNet, the data set's own.
    """
    if templates not in ("dataset", "ensemble"):
        raise unknown("value of zero_shot.templates", templates, ("dataset", "ensemble"))

    def setup(model, task):
        chosen = task.templates if templates == "dataset" else task.ensemble
        return {"weights": class_weights(model, task, chosen)}

    def apply(v, model, consts, batch, rng=None, train=False):
        return {"logits": model.logits(image_features(model, batch), consts["weights"])}

    return Method(apply=apply, setup=setup)


def class_weights(model, task, templates):
    """The zero-shot classifier `(C, E)`: unit features of each template, their mean, again of unit length."""
    per_template = normalize(template_features(model, task, templates))
    return normalize(per_template.mean(axis=1))
