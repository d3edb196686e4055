"""Checks and measures everything on this machine's GPU, most important first; what has been found is never lost.

    python benchmarks/gpu --seconds 500 --out FOLDER

`scripts/gpu_check.sh` installs the package first. Each section is a process of its own: a crash, a spoilt CUDA context
or full memory ends one of them, not the others. After each, `report.json` and `report.txt` in the folder are whole. On
a machine without a GPU everything runs with tiny shapes, to see that it does.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from report import as_text

HERE = Path(__file__).parent

LEAST_SECONDS = 8
"""Below this a section is skipped: it takes as much to start."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the check.

    Attributes:
        name: of its module.
        title: for people.
        share: of the time, relative to the sections after it.
    """

    name: str
    title: str
    share: float


SECTIONS = (
    Section(name="gpu_tests", title="Tests marked gpu", share=22),
    Section(name="facts", title="Hardware", share=10),
    Section(name="host", title="Decode attention on the host", share=8),
    Section(name="decode", title="Decode on the device alone, random bfloat16 weights", share=28),
    Section(name="strategies", title="All strategies with little KV on the device, contexts of 500 tokens", share=32),
    Section(name="baseline", title="transformers on torch, the same shapes", share=10),
)


def environment(out: Path, *, tiny: bool) -> dict[str, str]:
    """Return the variables of the sections' processes; what the user has set stays."""
    if tiny:
        # Compiling takes most of a rehearsal.
        chosen = {"XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"}
    else:
        # Programs that several sections need are compiled once; the cache lives as long as the folder.
        chosen = {"JAX_COMPILATION_CACHE_DIR": str(out / "compiled"), "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.9"}
    # Profiles that are measured here are results of this run.
    return {"APEX_JAX_CACHE": str(out), **chosen, **os.environ}


def has_gpu() -> bool:
    """Whether JAX finds a GPU; asked in a process of its own, since the first use of one takes most of its memory."""
    script = "import jax; print(jax.devices()[0].platform)"
    asked = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    if asked.returncode:
        raise RuntimeError(f"JAX does not start: {asked.stderr.strip()}")
    return asked.stdout.split()[-1] != "cpu"


def run(section: Section, out: Path, seconds: float, *, tiny: bool) -> dict[str, Any]:
    """Run a section for at most so many seconds and return what it has found."""
    started, status = time.monotonic(), "completed"
    command = [sys.executable, str(HERE / f"{section.name}.py"), "--out", str(out), "--name", section.name]
    # It stops by itself a little earlier, and is ended where it hangs.
    command += ["--seconds", f"{0.9 * seconds:.1f}", *(["--tiny"] if tiny else [])]
    with (out / f"{section.name}.log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment(out, tiny=tiny), start_new_session=True
        )
        try:
            if process.wait(timeout=seconds):
                status = f"ended with status {process.returncode}: {_last_line(out / f'{section.name}.log')}"
        except subprocess.TimeoutExpired:
            status = f"ended after its {seconds:.0f} s"
        finally:
            # Its own processes too, which would hold the GPU's memory.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    path = out / f"{section.name}.json"
    found = json.loads(path.read_text()) if path.is_file() else {}
    return {"status": status, "seconds": round(time.monotonic() - started, 1), **found}


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "no output"


def write(results: dict[str, Any], out: Path, *, tiny: bool) -> str:
    """Write both files and return the last section's text."""
    (out / "report.json").write_text(json.dumps({"tiny": tiny, "sections": results}, indent=1))
    heading = ["REHEARSAL without a GPU, with tiny shapes: no number means anything"] if tiny else []
    texts = []
    for number, section in enumerate(SECTIONS, 1):
        result = results.get(section.name)
        if result is not None:
            head = f"({number}) {section.title}: {result['status']}, {result['seconds']:.0f} s"
            texts.append(f"{head}\n\n{as_text(result)}".rstrip())
    (out / "report.txt").write_text("\n\n".join([*heading, *texts]) + "\n")
    return texts[-1]


def main() -> int:
    """Run all sections; the exit status says whether all ended well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, required=True, help="time for all sections")
    parser.add_argument("--out", type=Path, required=True, help="folder for report.json, report.txt, logs and traces")
    args = parser.parse_args()
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    end, results, tiny = time.monotonic() + args.seconds, {}, not has_gpu()
    if tiny:
        print("JAX finds no GPU here: everything runs with tiny shapes, and no number means anything\n", flush=True)
    for number, section in enumerate(SECTIONS):
        (out / f"{section.name}.json").unlink(missing_ok=True)
        left = end - time.monotonic()
        seconds = left * section.share / sum(later.share for later in SECTIONS[number:])
        if seconds < LEAST_SECONDS:
            results[section.name] = {"status": f"skipped, {left:.0f} s are left", "seconds": 0.0}
        else:
            print(f"({number + 1}) {section.title}: has {seconds:.0f} of the {left:.0f} s that are left", flush=True)
            results[section.name] = run(section, out, seconds, tiny=tiny)
        print(f"{write(results, out, tiny=tiny)}\n", flush=True)
    print(f"written: {out / 'report.json'}, {out / 'report.txt'}")
    return int(any(result["status"] != "completed" for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
