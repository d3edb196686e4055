#!/usr/bin/env python3
"""Sends Ctrl-C to commands at many moments; says how long each takes to end, and whether it ends well.

    scripts/interrupt.py [MOMENTS [COMMAND ...]]      of each command, evenly over its course (default: 8)

Programs are compiled anew each time. A command ends well if it does within two seconds, with status 130 or done,
without a traceback, and leaves neither a process nor a file that was being written.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

ALLOWED_S = 2.0
APEX = str(Path(sys.executable).with_name("apex-jax"))
CACHE = Path(os.environ.get("APEX_JAX_CACHE", Path.home() / ".cache" / "apex_jax"))
SMALL = ("--device-kv-tokens", "512", "--host-kv-bytes", "8M")
COMMANDS = {
    "generate": ("hi", "--max-tokens", "20", "--trace", "trace.json", *SMALL),
    "profile": ("--again", *SMALL),
    "overlap": ("--device", "t4", "--model", "llama-3.2-1b", "--rounds", "1", "--seconds", "2"),
    "attention": ("--json",),
    "simulate": ("--input", "500", "--output", "300", "--requests", "4000"),
    "reproduce": ("--requests", "10"),
    "large": (
        "--file",
        "ids.jsonl",
        "--max-tokens",
        "4",
        "--model",
        "llama-3.2-1b",
        "--load-format",
        "dummy",
        "--max-model-len",
        "512",
    ),
    "demo": (),
}
STARTED = {"overlap": ("bench", "overlap"), "attention": ("bench", "attention"), "large": ("generate",)}


def struck(name: str, after: float | None) -> tuple[float, list[str]]:
    """Run a command, strike it after so many seconds unless None; return seconds from then on, and what is wrong."""
    with TemporaryDirectory() as folder:
        for model in CACHE.glob("*.gguf"):
            (Path(folder) / model.name).symlink_to(model)
        (Path(folder) / "ids.jsonl").write_text('{"prompt_token_ids": [5, 6, 7]}\n')
        started = STARTED.get(name, (name,))
        start = time.monotonic()
        with subprocess.Popen(
            [APEX, *started, *COMMANDS[name]],
            cwd=folder,
            env={**os.environ, "APEX_JAX_CACHE": folder},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            is_struck = False
            try:
                said, _ = process.communicate(timeout=after)
            except subprocess.TimeoutExpired:
                is_struck, start = True, time.monotonic()
                process.send_signal(signal.SIGINT)
                said, _ = process.communicate()
        seconds = time.monotonic() - start
        wrong = [] if process.returncode in (0, 130) else [f"status {process.returncode}"]
        wrong += [word for word in ("Traceback", "terminate called", "Fatal") if word in said]
        wrong += [str(left.name) for left in Path(folder).rglob("*.part")]
        if is_struck and seconds > ALLOWED_S:
            wrong.append("late")
        try:
            os.killpg(process.pid, signal.SIGKILL)
            wrong.append("left a process")
        except ProcessLookupError:
            pass
        return seconds, [*wrong, *(said.splitlines()[-3:] if wrong else [])]


def main() -> int:
    moments = int(sys.argv[1]) if len(sys.argv) > 1 else 8
    failures = 0
    for name in sys.argv[2:] or COMMANDS:
        whole, _ = struck(name, None)
        for moment in range(moments):
            after = whole * (moment + 0.5) / moments
            seconds, wrong = struck(name, after)
            failures += bool(wrong)
            print(
                f"{name:<10} at {after:6.2f} of {whole:6.2f} s: ended after {seconds:5.2f} s  {'; '.join(wrong)}",
                flush=True,
            )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
