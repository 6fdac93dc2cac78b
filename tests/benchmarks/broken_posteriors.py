"""p-values of every check on posteriors broken on purpose, 2,000 pairs. Prints one table.

python tests/benchmarks/broken_posteriors.py
"""

from __future__ import annotations

import runpy
from pathlib import Path


def main() -> None:
    laws = runpy.run_path(str(Path(__file__).parents[1] / "diagnostics" / "test_checks.py"))
    checks, pairs = laws["CHECKS"], laws["pairs"]
    cases = {
        "exact": {},
        "sd × 0.7": {"sd": 0.7},
        "sd × 1.5": {"sd": 1.5},
        "shifted by 0.3 sd": {"shift": 0.3},
        "prior as posterior": {"prior": True},
    }
    print(f"{laws['PAIRS']:,} pairs, {laws['DRAWS']} draws, {laws['DIM']} parameters; p < 1e-3 fails")
    print(f"{'posterior':20}" + "".join(f"{name:>12}" for name in checks))
    for name, how in cases.items():
        calibration = pairs(**how)
        print(f"{name:20}" + "".join(f"{check(calibration).p_value:12.2g}" for check in checks.values()), flush=True)


if __name__ == "__main__":
    main()
