"""What GitHub runs: the commands of the Makefile, with few rights. Their syntax is checked by `make lint`."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

import pai_lib

ROOT = Path(__file__).parents[1]
WORKFLOWS = {
    path.stem: yaml.safe_load(path.read_text("utf-8")) for path in (ROOT / ".github/workflows").glob("*.yml")
}
each_workflow = pytest.mark.parametrize("name", WORKFLOWS)


def steps(name):
    return [step for job in WORKFLOWS[name]["jobs"].values() for step in job["steps"]]


def targets(text):
    return re.findall(r"^make ([\w-]+)", text, re.MULTILINE)


def test_there_are_three():
    assert sorted(WORKFLOWS) == ["book", "ci", "weekly"]


@each_workflow
def test_a_workflow_may_read_and_no_more_unless_a_job_says_so(name):
    assert WORKFLOWS[name]["permissions"] == {"contents": "read"}
    more = {job: each["permissions"] for job, each in WORKFLOWS[name]["jobs"].items() if "permissions" in each}
    pages = {"publish": {"pages": "write", "id-token": "write"}}
    assert more == {"book": pages, "ci": {"green": {}}, "weekly": {}}[name]
    for step in steps(name):
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


@each_workflow
def test_actions_are_githubs_own_pinned_to_the_commit_of_a_release(name):
    text = (ROOT / f".github/workflows/{name}.yml").read_text("utf-8")
    used = re.findall(r"uses: (.+)", text)
    assert len(used) == sum("uses" in step for step in steps(name))
    release = re.compile(r"actions/[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")
    assert all(release.fullmatch(each) for each in used), used


@each_workflow
def test_pytorch_comes_without_cuda(name):
    index = WORKFLOWS[name]["env"]["PIP_EXTRA_INDEX_URL"]
    assert index.endswith("/whl/cpu")
    assert f"`PIP_EXTRA_INDEX_URL={index} make book`" in (ROOT / "README.md").read_text("utf-8")


@each_workflow
def test_every_job_ends(name):
    assert all(0 < job["timeout-minutes"] <= 60 for job in WORKFLOWS[name]["jobs"].values())


def test_what_is_made_can_be_made():
    known = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for name in WORKFLOWS:
        made = targets("\n".join(step.get("run", "") for step in steps(name)))
        assert made, name
        assert set(made) <= known


def test_the_workflows_the_script_and_make_check_the_same():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    ((first, last),) = re.findall(r"^test-all: ([\w -]+?) +##.+\n\t\$\(MAKE\) (.+)", makefile, re.MULTILINE)
    everything = [*first.split(), last]  # the last one with variables
    (script,) = re.findall(r"^for target in (.+?);", (ROOT / ".ci" / "run").read_text("utf-8"), re.MULTILINE)
    assert shlex.split(script) == everything
    run = [step.get("run", "") for name in ("ci", "book") for step in steps(name)]
    assert f"make {last}" in run
    assert sorted(targets("\n".join(run))) == sorted(target.split()[0] for target in everything)


def test_the_oldest_python_that_is_tested_is_the_oldest_that_is_allowed():
    versions = WORKFLOWS["ci"]["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert f'requires-python = ">={versions[0]}"' in (ROOT / "pyproject.toml").read_text("utf-8")
    assert len(versions) == len(set(versions)) == 2


def test_the_changelog_begins_with_this_version():
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert re.search(r"^## \[(.+?)\] - ", text, re.MULTILINE)[1] == pai_lib.__version__
