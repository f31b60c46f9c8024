"""README and docs say what is there, and each of their commands is run by a test."""

import ast
import re
import shlex
from collections.abc import Iterator

import pytest

import seedlings_spark
from seedlings_spark import cli, config, errors, schema
from tests import docs

# Blocks of these languages are pictures.
PICTURES = {"text"}
# The README's own two commands: all of `.ci/run` is the second; `test_jobs` runs the first on a few images.
TWO_COMMANDS = ("README.md", "Quick start")
# Options of the script, of Spark's and of other programs that pages name.
OTHERS = {"--master", "--conf", "--archives", "--detach", "--insecure", "--deploy-mode", "--properties-file"}
OTHERS |= {"--driver-memory", "--executor-memory", "--principal", "--keytab", "--packages", "--gpu"}
OTHERS |= {"--debug", "--log", "--config", "--help", "--build-arg"}


def run_by_tests() -> Iterator[tuple[str, str]]:
    """Page and heading of each block that a test asks for by `docs.command` or `docs.jobs`."""
    for file in (docs.ROOT / "tests").rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        if "docs." not in text:  # to parse all of them takes seconds
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("docs.command", "docs.jobs"):
                page, heading = (ast.unparse(argument).strip("'") for argument in node.args[:2])
                yield docs.README if page == "docs.README" else page, heading


def test_the_readme_is_short_and_has_the_two_commands() -> None:
    assert len(docs.text(docs.README).splitlines()) <= 150
    of_start = [block.content for block in docs.blocks(docs.README) if block.heading == TWO_COMMANDS[1]]
    assert of_start == ["./spark-submit.sh quickstart\n", "./spark-submit.sh test\n"]
    assert "./spark-submit.sh test " in (docs.ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_every_block_of_commands_is_run_by_a_test() -> None:
    written = {
        (block.page, block.heading)
        for page in docs.PAGES
        for block in docs.blocks(page)
        if block.language not in PICTURES
    }
    assert written - {TWO_COMMANDS} == set(run_by_tests())


@pytest.mark.parametrize("page", [*docs.PAGES, "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"])
def test_links_lead_to_what_is_there(page: str) -> None:
    folder = (docs.ROOT / page).parent
    for link in docs.links(page):
        path, _, anchor = link.partition("#")
        target = folder / path if path else docs.ROOT / page
        assert target.is_file(), link
        headings = (
            re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
        )
        slugs = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
        assert not anchor or anchor in slugs, link


@pytest.mark.parametrize("page", docs.PAGES)
def test_what_the_prose_calls_is_there(page: str) -> None:
    """Jobs and options in its code, of which a line may be cut short by `...`."""
    known = {
        config.flag_of(name) for options in config.JOBS.values() for name in options.__dataclass_fields__
    }
    known |= {f"--no-{flag.removeprefix('--')}" for flag in known} | OTHERS
    prose = re.sub(r"^```.*?^```$", "", docs.text(page), flags=re.DOTALL | re.MULTILINE)
    for code in re.findall(r"`([^`]+)`", prose):
        words = code.split()
        if words[0] == "./spark-submit.sh":
            assert any(word in {*config.JOBS, "test", "pack", "FILE.py", "JOB"} for word in words), code
        if not words[0].startswith(("pip", "zip", "python", ".venv", "hdfs", "kubectl", "gcloud")):
            assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known, code


def test_the_readmes_calls_of_the_jobs_are_right(capsys: pytest.CaptureFixture[str]) -> None:
    for page in docs.PAGES:
        for block in docs.blocks(page):
            for line in re.sub(r"\\\n", " ", block.content).splitlines() if block.language == "sh" else ():
                words = shlex.split(line, comments=True)
                job = next((number for number, word in enumerate(words) if word in config.JOBS), None)
                if job is not None:
                    assert cli.check(words[job:]) == 0, (line, capsys.readouterr().err)


def test_every_job_has_its_options_on_the_page() -> None:
    page = docs.text("docs/jobs.md")
    sections = re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    assert {
        name: re.findall(r"<!-- options of (\w+) -->", text) for name, text in sections if name in config.JOBS
    } == {job: [job] for job in config.JOBS}


def test_every_error_and_every_reason_of_a_reject_has_its_cure() -> None:
    page = docs.text("docs/troubleshooting.md")
    classes = [errors.SeedlingsError, *errors.SeedlingsError.__subclasses__()]
    cures = re.findall(r"^### (\w+) \(exit code (\d+)\)\n\n(?=\w)", page, re.MULTILINE)
    assert sorted(cures) == sorted((each.__name__, str(each.exit_code)) for each in classes)
    assert tuple(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == schema.REJECT_REASONS


def test_every_public_name_is_on_the_page_of_the_api() -> None:
    shown = re.findall(r"^::: seedlings_spark\.(\w+)$", docs.text("docs/api.md"), re.MULTILINE)
    assert sorted(shown) == sorted(seedlings_spark.__all__)
