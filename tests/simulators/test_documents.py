"""What the documents show is what the tests run."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import numpy as np
import pytest

from simfer.simulators.base import Simulator, simulate_checked

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLES = DOCS / "examples" / "external_programs"


def blocks(document: str, language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```", (DOCS / document).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


@pytest.mark.parametrize("language", ["yaml", "c", "text"])
def test_shown_programs_and_configurations_are_those_of_the_examples(language: str) -> None:
    texts = [path.read_text(encoding="utf-8") for path in EXAMPLES.iterdir() if path.is_file()]
    shown = blocks("external_programs.md", language)
    assert shown
    for block in shown:
        assert any(block in text for text in texts), block


@pytest.mark.parametrize("document", ["plugins.md", "external_programs.md", "equivariance.md"])
def test_shown_python_runs(document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shown.py").write_text("\n".join(blocks(document, "python")))
    names = runpy.run_path("shown.py")
    rng = np.random.default_rng(0)
    found = [value for value in names.values() if isinstance(value, Simulator) and not isinstance(value, type)]
    assert found
    for simulator in found:
        simulate_checked(simulator, simulator.prior.sample(3, rng), rng)


@pytest.mark.parametrize("document", ["plugins.md", "external_programs.md", "equivariance.md"])
def test_links_resolve(document: str) -> None:
    text = (DOCS / document).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert target.startswith("https://") or (DOCS / target).exists(), target
    for target in re.findall(r"`(tests/[\w./]+)`", text):
        assert (DOCS.parent / target).exists(), target
