"""The budget of the property tests: few examples by default, more with VLMX_TEST_EXAMPLES=1000."""

import os

import hypothesis


def settings(share=1.0):
    """Return hypothesis settings for one property test.

    Args:
        share: fraction of the budget, below 1 for tests whose examples take long.
    """
    examples = max(int(share * int(os.environ.get("VLMX_TEST_EXAMPLES", 60))), 5)
    # Derandomized: the same examples in each run of the default budget, so that CI does not fail by chance.
    return hypothesis.settings(
        max_examples=examples,
        deadline=None,
        derandomize="VLMX_TEST_EXAMPLES" not in os.environ,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
