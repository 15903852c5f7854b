"""Build the wheel, install it into an empty folder, and use it from another working directory.

Dependencies come from the running environment; the installed copy must win over the checkout.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

PROBE = """
import json, pathlib, subprocess, sys
import mmrl, mmrl.generative, mmrl.vlm, mmrl.rewards, mmrl.data, mmrl.configs
target = pathlib.Path(sys.argv[1]).resolve()
assert pathlib.Path(mmrl.__file__).resolve().is_relative_to(target), mmrl.__file__
from mmrl.config import load
from mmrl.config.source import shipped
names = list(shipped())
assert "quickstart/generative" in names, names
for name in names:
    load(name)
from mmrl.report import html
print(f"{len(names)} shipped configs resolve from the wheel")
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        run = lambda *command, **options: subprocess.run(command, check=True, **options)  # noqa: E731
        run(
            sys.executable,
            "-m",
            "build",
            "--wheel",
            "--outdir",
            str(work / "dist"),
            str(ROOT),
            stdout=subprocess.DEVNULL,
        )
        wheel = next((work / "dist").glob("*.whl"))
        run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(work / "site"), str(wheel))
        elsewhere = work / "elsewhere"
        elsewhere.mkdir()
        environment = {**os.environ, "PYTHONPATH": str(work / "site")}
        run(sys.executable, "-c", PROBE, str(work / "site"), cwd=elsewhere, env=environment)
        run(
            sys.executable,
            "-m",
            "mmrl",
            "check",
            "quickstart/generative",
            cwd=elsewhere,
            env=environment,
            stdout=subprocess.DEVNULL,
        )
        run(sys.executable, "-m", "mmrl", "list", "reward", cwd=elsewhere, env=environment)
    print("wheel: ok")


if __name__ == "__main__":
    main()
