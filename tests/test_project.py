"""The files around the code say the same thing: README, continuous integration, constraints, citation, docs."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ghistpy import _keys

ROOT = Path(__file__).parents[1]
VENV_LINE = r"^python3 -m venv \.venv && \.venv/bin/pip install -c constraints\.txt .*$"


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in pinned), (
        "versions only: no URL, no +cpu"
    )
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in pinned)}


def test_readme_has_one_line_to_run_and_one_to_test():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = re.findall(VENV_LINE, readme, flags=re.MULTILINE)
    assert [line.rsplit("&& ", 1)[1] for line in lines] == [".venv/bin/ghistpy demo", ".venv/bin/pytest"]


def test_ci_runs_the_line_of_the_readme():
    """The very pattern with which .ci/run looks for its command must find exactly one line."""
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    pattern = re.search(r"grep -E '([^']+)' README\.md", script).group(1)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(re.findall(pattern, readme, flags=re.MULTILINE)) == 1
    assert "pytest" not in re.sub(r"#.*|grep.*|.*echo.*", "", script), "a second definition of the test command"


@pytest.mark.parametrize("present", [(), ("data",), ("golden",)])
def test_ci_fails_without_the_real_data(tmp_path, present):
    for name in present:
        (tmp_path / name).mkdir()
    done = subprocess.run(
        [ROOT / ".ci" / "run"],
        env={**os.environ, "GHISTPY_DATA_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert "is missing" in done.stderr
    assert "GHISTPY_DATA_DIR" in done.stderr
    assert "venv" not in done.stdout


def test_constraints_cover_and_satisfy_the_dependencies(project, constraints):
    extras = project["optional-dependencies"]
    for line in project["dependencies"] + extras["test"] + extras["docs"]:
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        assert name in constraints, f"{name} has no tested version"
        assert requirement.specifier.contains(constraints[name]), f"{name} {constraints[name]} is outside {line}"


def test_all_is_every_optional_extra(project):
    extras = project["optional-dependencies"]
    (everything,) = extras["all"]
    assert Requirement(everything).extras == set(extras) - {"all", "docs", "test"}


def test_versions_agree(project):
    version = project["version"]
    assert re.search(rf"^version: {re.escape(version)}$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.M)
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_key_is_documented():
    page = (ROOT / "docs" / "keys.md").read_text(encoding="utf-8")
    values = {value for name, value in vars(_keys).items() if name.isupper() and isinstance(value, str)}
    assert sorted(value for value in values if f"`{value}`" not in page and f'"{value}"' not in page) == []
