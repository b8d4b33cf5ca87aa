"""These tests compare with PyTorch; without it (`pip install '.[parity]'`) they are not collected."""

import importlib.util

collect_ignore = [] if importlib.util.find_spec("torch") else ["live_test.py", "live_seq_test.py"]
