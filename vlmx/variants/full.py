"""Full fine-tuning, the upper reference: every weight of the language model and the visual embedding."""

from vlmx.variant import Variant


def make():
    """Fine-tuning of everything but BART's constant bias of the logits."""
    return Variant(trains=(r"(?!logits_bias$).*",))
