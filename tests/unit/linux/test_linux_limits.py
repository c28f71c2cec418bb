from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import os, resource, subprocess
from cradled.linux import limits

_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
limits.restore_files(child.pid)  # nothing was raised
assert resource.prlimit(child.pid, resource.RLIMIT_NOFILE) == (100, hard)
child.communicate()

limits.raise_files()
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
assert resource.prlimit(child.pid, resource.RLIMIT_NOFILE) == (hard, hard)
limits.restore_files(child.pid)
assert resource.prlimit(child.pid, resource.RLIMIT_NOFILE) == (100, hard)
child.communicate()
limits.restore_files(child.pid)  # has gone
print("done")
"""


def test_files_are_raised_for_oneself_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, timeout=30
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
