"""Become another Python, with its own packages and none of ours: PYTHON, then its arguments."""

import os
import sys

os.environ.pop("PYTHONPATH")
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
os.execv(sys.argv[1], sys.argv[1:])  # noqa: S606
