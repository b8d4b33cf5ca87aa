"""Timings beside PyTorch's, where it is installed (`pip install '.[bench]'`): `python -m vlmx.bench image_encoder`.

Both have the same weights and inputs; rounds alternate between the two, so that a change in the machine's load meets
both, and medians are printed.
"""

import argparse

from vlmx.bench import generate, image_encoder, sweep
from vlmx.errors import UserError
from vlmx.models import zoo


def main():
    """Reads the command line and runs one timing."""
    parser = argparse.ArgumentParser("python -m vlmx.bench", description=__doc__.split("\n")[0])
    what = parser.add_subparsers(required=True)

    def timing(module):
        one = what.add_parser(module.__name__.rpartition(".")[2], help=module.__doc__.split("\n")[0])
        one.set_defaults(run=module.run)
        return one

    for module, models, model, batch in (
        (image_encoder, zoo.MODELS, "ViT-B/16", 16),
        (generate, zoo.SEQ_MODELS, "bart-base", 64),
    ):
        one = timing(module)
        one.add_argument("--model", default=model, choices=models)
        one.add_argument("--batch", type=int, default=batch)
        one.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
        one.add_argument("--rounds", type=int, default=5)
        if module is image_encoder:
            one.add_argument("--image", type=int, default=224, help="image side in pixels")
            one.add_argument("--unroll", action="store_true", help="layers written out instead of scanned")
    one = timing(sweep)
    one.add_argument("--data", default="digits", choices=["digits", "textures", "objects"])
    one.add_argument("--seeds", type=int, default=20)
    args = parser.parse_args()
    try:
        args.run(args)
    except UserError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
