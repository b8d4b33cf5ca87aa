"""The option `pytest --goldens DIR`, as an installed plugin; what is done with it is in tests/conftest.py.

pytest meets the options of a conftest too late: it would take DIR for a path of tests, and its root and settings from
there. Declaring the option here makes it known in time for conftest files, not for the choice of the root; so a command
line with a separate DIR is run once more as `--goldens=DIR`, which pytest always reads rightly.
"""

import pytest


def pytest_addoption(parser):
    """The option; tests/conftest.py says what it does."""
    parser.addoption("--goldens", action="append", default=[], metavar="DIR", help="more golden cases (repeatable)")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """`--goldens DIR` as `--goldens=DIR`: pytest would take DIR for a folder of tests before any conftest is read."""
    args, joined = iter(config.invocation_params.args), []
    for arg in args:
        value = next(args, None) if arg == "--goldens" else None
        joined.append(arg if value is None else f"--goldens={value}")
    if joined != list(config.invocation_params.args):
        return pytest.main(joined, config.invocation_params.plugins)
