"""What the check of a symmetry found, in words and numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Outcome = Literal["pass", "fail", "not tested"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One question about a symmetry.

    Attributes:
        name: Of the question.
        verdict: ``not tested`` where the simulator does not allow it.
        numbers: What was measured.
        finding: One sentence: what was seen.
        advice: One sentence: what to do.
    """

    name: str
    verdict: Outcome
    finding: str
    numbers: dict[str, float] = field(default_factory=dict)
    advice: str = "Nothing to do."


@dataclass(frozen=True, slots=True)
class SymmetryCheck:
    """All that was asked of a symmetry.

    Attributes:
        simulator: Its class.
        parameters: Those that carry the pose.
        rows: How many pairs were compared.
        findings: In the order asked.
    """

    simulator: str
    parameters: tuple[str, ...]
    rows: int
    findings: tuple[Finding, ...]

    def __getitem__(self, name: str) -> Finding:
        return next(finding for finding in self.findings if finding.name == name)

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the questions that failed."""
        return tuple(finding.name for finding in self.findings if finding.verdict == "fail")

    @property
    def passed(self) -> bool:
        """Whether nothing failed: posteriors are equivariant, up to the edges of the prior."""
        return not self.failed

    @property
    def simulations_symmetric(self) -> bool:
        """Whether nothing failed but the prior, which importance weights or a network that sees the proxy make up for."""
        return set(self.failed) <= {"prior"}

    @property
    def verdict(self) -> str:
        """One sentence."""
        moving = f"moving {', '.join(self.parameters)}"
        if self.passed:
            return f"{self.simulator} is symmetric under {moving}, and so is its posterior."
        if self.simulations_symmetric:
            return f"{self.simulator} is symmetric under {moving}, its posterior is not: the prior prefers some poses."
        return f"{self.simulator} is not symmetric under {moving}, as declared: {', '.join(self.failed)} failed."

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain numbers and words."""
        return {**asdict(self), "passed": self.passed, "verdict": self.verdict}

    def __str__(self) -> str:
        lines = [f"  {f.name}: {f.verdict}: {f.finding}" for f in self.findings]
        return "\n".join([self.verdict, *lines])
