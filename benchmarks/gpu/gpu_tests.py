"""Runs the tests marked gpu and reports each as soon as it has ended."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from report import open_report

ROOT = Path(__file__).parents[2]
FILES = ("tests/engine/test_gpu.py", "tests/engine/test_device_attention.py")
ENDED = re.compile(r"^(tests/\S+?)::(.+) (PASSED|FAILED|ERROR|SKIPPED)")


def main() -> int:
    """Return pytest's status."""
    report, args = open_report()
    table = report.table("tests", "test", "outcome")
    # -P: the installed package, not the folder of the same name here, which lacks its parts from the other folders.
    # Warnings of other people's plugins on that machine are no failures of this package.
    command = [sys.executable, "-P", "-m", "pytest", "-vv", "-m", "gpu", "-W", "default", "-p", "no:cacheprovider"]
    if args.tiny:
        command += ["-k", "float32 and device_only or in_rounds and 2"]
    process = subprocess.Popen(
        [*command, *FILES], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        found = ENDED.match(line)
        if found:
            table.add(found[2], found[3].lower())
        elif line.startswith(("FAILED ", "ERROR ")):
            report.fail(line.strip()[:300])
    return process.wait()


if __name__ == "__main__":
    sys.exit(main())
