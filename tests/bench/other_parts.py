"""Parts of `bench device` that end well, hang with a process of theirs, or die."""

import os
import subprocess
import sys
import time
from typing import Any


def ends(task: Any, record: Any) -> None:
    record("work", limit_s=task.limit_s, small=task.small)


def hangs(task: Any, record: Any) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    record("work", child=child.pid)
    time.sleep(600)


def dies(task: Any, record: Any) -> None:
    record("work")
    os.abort()
