"""Named points at which a test can kill the process, to prove that a rerun loses nothing."""

import os
import signal


def failpoint(name: str) -> None:
    """Kill this process at once if STILLHOUSE_FAILPOINT names this point.

    `NAME` kills at the first pass, `NAME:3` at the third of this process. Without the variable: nothing.
    """
    wanted, _, count = os.environ.get("STILLHOUSE_FAILPOINT", "").partition(":")
    if wanted != name:
        return
    _passes[name] = _passes.get(name, 0) + 1
    if _passes[name] >= int(count or 1):
        os.kill(os.getpid(), signal.SIGKILL)


_passes: dict[str, int] = {}
