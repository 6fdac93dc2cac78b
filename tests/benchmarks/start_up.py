"""Seconds to start: `import simfer`, `simfer --help`, and what a user waits for before the first simulation.

python tests/benchmarks/start_up.py
"""

from __future__ import annotations

import subprocess
import sys
import time

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import simfer": ["-c", "import simfer"],
    "simfer --help": ["-m", "simfer.pipelines.cli", "--help"],
    "simfer list recipes": ["-m", "simfer.pipelines.cli", "list", "recipes"],
    "simfer schema": ["-m", "simfer.pipelines.cli", "schema"],
    "simfer.run (imports)": ["-c", "import simfer; simfer.run"],
}


def main() -> None:
    print("best of five, seconds")
    for name, command in COMMANDS.items():
        times = []
        for _ in range(5):
            started = time.perf_counter()
            subprocess.run([sys.executable, *command], check=True, capture_output=True)
            times.append(time.perf_counter() - started)
        print(f"{name:22} {min(times):6.2f}", flush=True)


if __name__ == "__main__":
    main()
