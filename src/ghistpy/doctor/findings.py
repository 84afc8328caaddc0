"""What a check reports."""

from __future__ import annotations

from dataclasses import dataclass

OK, NOTE, PROBLEM = "ok", "note", "problem"


@dataclass(frozen=True)
class Finding:
    """One line of the report: ``level`` ok, note or problem; what was found; what to do about it."""

    level: str
    topic: str
    text: str
    remedy: str = ""


def describe(findings: list[Finding]) -> str:
    """Findings as lines, problems last, each with its remedy."""
    marks = {OK: "  ok  ", NOTE: " note ", PROBLEM: "  !!  "}
    width = max((len(f.topic) for f in findings), default=0)
    order = sorted(findings, key=lambda f: f.level == PROBLEM)
    lines = []
    for f in order:
        lines.append(f"[{marks[f.level]}] {f.topic:<{width}}  {f.text}")
        if f.remedy:
            lines.append(f"{'':<{width + 10}}→ {f.remedy}")
    problems = sum(f.level == PROBLEM for f in findings)
    return "\n".join([*lines, "", f"{problems} problem{'s' if problems != 1 else ''}"])
