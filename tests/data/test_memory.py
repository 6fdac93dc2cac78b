from __future__ import annotations

from pathlib import Path

from simfer.data.memory import memory_limit


def test_the_tightest_control_group_above_counts(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("0::/job/step\n")
    groups = tmp_path / "groups"
    (groups / "job" / "step").mkdir(parents=True)
    (groups / "job" / "memory.max").write_text("12345678\n")
    (groups / "job" / "step" / "memory.max").write_text("max\n")
    assert memory_limit(groups, own) == 12345678


def test_without_control_groups_it_is_the_machine(tmp_path: Path) -> None:
    assert memory_limit(tmp_path, tmp_path / "none") > 2**28
