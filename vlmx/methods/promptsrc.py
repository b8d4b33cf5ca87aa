"""PromptSRC (Khattak et al. 2023, arXiv 2307.06948): prompts in both towers that regulate themselves.

Section 3.2: (1) equations (3) to (6), the loss CE + KL(teacher || prompted) + lambda_1 |txt - teacher's| +
lambda_2 |img - teacher's|, the teacher being the frozen model; (2) equation (7), the prompts of all epochs are averaged
with Gaussian weights; (3) the teacher's text features are the mean of many templates'. Prompts and placement are those
of IVLP. B images, C classes, E feature size.
"""

import jax
import jax.numpy as jnp

from vlmx.combine import combine
from vlmx.method import cross_entropy, image_features, template_features
from vlmx.models.clip import normalize
from vlmx.modules import prompts
from vlmx.optim import gaussian_weights

TEMPLATES = tuple(  # sixty of the eighty that CLIP's authors wrote for ImageNet, in the order of PromptSRC's code
    """a photo of a {}.|a bad photo of a {}.|a photo of many {}.|a sculpture of a {}.|a photo of the hard to see {}.
a low resolution photo of the {}.|a rendering of a {}.|graffiti of a {}.|a bad photo of the {}.
a cropped photo of the {}.|a tattoo of a {}.|the embroidered {}.|a photo of a hard to see {}.|a bright photo of a {}.
a photo of a clean {}.|a photo of a dirty {}.|a dark photo of the {}.|a drawing of a {}.|a photo of my {}.
the plastic {}.|a photo of the cool {}.|a close-up photo of a {}.|a black and white photo of the {}.
a painting of the {}.|a painting of a {}.|a pixelated photo of the {}.|a sculpture of the {}.
a bright photo of the {}.|a cropped photo of a {}.|a plastic {}.|a photo of the dirty {}.
a jpeg corrupted photo of a {}.|a blurry photo of the {}.|a photo of the {}.|a good photo of the {}.
a rendering of the {}.|a {} in a video game.|a photo of one {}.|a doodle of a {}.|a close-up photo of the {}.
the origami {}.|the {} in a video game.|a sketch of a {}.|a doodle of the {}.|a origami {}.
a low resolution photo of a {}.|the toy {}.|a rendition of the {}.|a photo of the clean {}.|a photo of a large {}.
a rendition of a {}.|a photo of a nice {}.|a photo of a weird {}.|a blurry photo of a {}.|a cartoon {}.|art of a {}.
a sketch of the {}.|a embroidered {}.|a pixelated photo of a {}.|itap of the {}.""".replace("\n", "|").split("|")
)


def make(
    n_ctx_text=4,
    n_ctx_vision=4,
    depth_text=9,
    depth_vision=9,
    ctx_init="a photo of a",
    text_weight=25.0,
    image_weight=10.0,
    gpa_mean=15.0,
    gpa_std=1.0,
    teacher_templates=60,
):
    """Self-regulating prompts.

    Args: n_ctx_text to ctx_init: as in IVLP. text_weight, image_weight: lambda_1 and lambda_2. gpa_mean, gpa_std: of
    the Gaussian over the epochs, counted from 1. teacher_templates: so many of TEMPLATES make the teacher's text.
    """
    prompted = combine(prompts.in_both("promptsrc", n_ctx_text, n_ctx_vision, depth_text, depth_vision, ctx_init))

    def setup(model, task):
        teacher = template_features(model, task, TEMPLATES[:teacher_templates]).mean(axis=1)
        return {**prompted.setup(model, task), "teacher": teacher}

    def init(key, model, consts, support):
        train = prompted.init(key, model, consts, support)["train"]
        return {"train": train, "fixed": {"average": jax.tree.map(jnp.zeros_like, train)}}

    def apply(v, model, consts, batch, rng=None, train=False):
        out = prompted.apply(v, model, consts, batch, rng, train)
        if train:
            img, txt = image_features(model, batch), consts["teacher"]
            out |= {
                "teacher_image_features": normalize(img),
                "teacher_text_features": normalize(txt),
                "teacher_log_probs": jax.nn.log_softmax(model.logits(img, txt)),
            }
        return out

    def loss(out, batch):
        ce, metrics = cross_entropy(out, batch)

        def mean(x):  # over classes or features, and images by weight
            return (x.mean(-1) * batch["weight"]).sum() / jnp.maximum(batch["weight"].sum(), 1)

        teacher = out["teacher_log_probs"]
        kl = mean(jnp.exp(teacher) * (teacher - jax.nn.log_softmax(out["logits"])))
        image = image_weight * mean(jnp.abs(normalize(out["image_features"]) - out["teacher_image_features"]))
        text = text_weight * jnp.abs(normalize(out["text_features"]) - out["teacher_text_features"]).mean()
        terms = {"loss_ce": ce, "loss_text": text, "loss_image": image, "loss_logits": kl}
        return ce + text + image + kl, metrics | terms

    def after(v, step, total, per_epoch):
        """At the end of an epoch the prompts join the average; after the last one the average takes their place."""
        weights = jnp.asarray(gaussian_weights(total // per_epoch, gpa_mean, gpa_std), jnp.float32)
        weight = jnp.where((step + 1) % per_epoch == 0, weights[step // per_epoch], 0)
        average = jax.tree.map(lambda a, p: a + weight * p, v["fixed"]["average"], v["train"])
        train = jax.tree.map(lambda a, p: jnp.where(step + 1 == total, a, p), average, v["train"])
        return {"train": train, "fixed": {"average": average}}

    return prompted._replace(init=init, apply=apply, loss=loss, setup=setup, after=after)
