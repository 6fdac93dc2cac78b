from __future__ import annotations

from pathlib import Path

import pytest

from simfer.data.files import fingerprint, new_folder, remove, sweep, write_json, write_text


def test_write_text_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    for text in ("first", "second"):
        write_text(tmp_path / "file", text)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("file", "second")]


def test_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "file", {"a": 1})
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "file", {"a": float("nan")})
    assert (tmp_path / "file").read_text() == '{\n  "a": 1\n}\n'
    assert len(list(tmp_path.iterdir())) == 1


def test_new_folder_appears_only_when_complete(tmp_path: Path) -> None:
    def fill(fail: bool) -> None:
        with new_folder(tmp_path / "folder") as folder:
            (folder / "inside").write_text("x")
            assert not (tmp_path / "folder").exists()
            if fail:
                raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fill(True)
    assert list(tmp_path.iterdir()) == []
    fill(False)
    assert [p.name for p in tmp_path.rglob("*")] == ["folder", "inside"]


def test_sweep_and_remove(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.partial").write_text("")
    (tmp_path / ".b.partial").mkdir()
    sweep(tmp_path)
    assert [p.name for p in tmp_path.rglob("*")] == ["deep"]
    remove(tmp_path / "deep")
    remove(tmp_path / "never there")
    assert list(tmp_path.iterdir()) == []


def test_fingerprint_ignores_the_order_of_keys_only() -> None:
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": [1, 2]}) != fingerprint({"a": [2, 1]})
