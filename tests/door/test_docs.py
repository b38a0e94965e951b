"""The documentation, believed only where it runs: every command, program and settings file in it.

Each page has a folder of its own, with the examples in it; its blocks happen there in order, and what one
leaves behind the next one finds.

    ```console           lines with `$ ` (going on with `> `) are run by bash; the lines below each must
                         occur in what it says. `console exit=2` for a last command that fails. … is
                         anything; fractions, durations, sizes and dates may differ.
    ```json Task         an example of that message, or `json schema` of one: read as such.
    ```python, ```toml   run, or parsed; a first line `# my-app/app.py` writes that file, and the line
                         `# my-app/app.py, changed` puts the block's functions in place of the file's own.
"""

import ast
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from fleetfold import messages
from fleetfold.bundle import Bundle
from tests.images import write_cifar10, write_mnist

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PATIENCE = 300.0
"""Seconds after which a command is taken to hang."""
LONG = (
    "hub.md", "how-to.md", "tutorial.md", "privacy.md", "policies.md", "numbers.md", "tour.md",
    "dashboard.md",
)  # fmt: skip
"""Pages that take a while: they are tried with the fleets."""
NEEDS = {"privacy.md": "dp_accounting", "flower.md": "flwr", "flower-bridge.md": "flwr"}
"""What has to be installed for a page: its blocks run in the environment that has it (make test-flower)."""
by_page = pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[pytest.mark.fleet] if page.name in LONG else []) for page in PAGES],
    ids=lambda page: page.name,
)


class Block(NamedTuple):
    """A fenced block: where it begins, and its info string in two parts."""

    where: str
    language: str
    info: str
    text: str


class Place:
    """The folder of one page and the shell in it: directory and variables go on from line to line."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._state = folder, folder.parent / "state.sh"
        self._state.write_text("")
        (folder / ".venv").symlink_to(Path(sys.executable).parents[1])
        copy_examples(folder)
        write_mnist(folder / "mnist")
        write_cifar10(folder / "cifar-10-batches-py")
        kept = {k: v for k, v in os.environ.items() if not k.startswith("FLEETFOLD_") and k != "COLUMNS"}
        bin = Path(sys.executable).parent
        self._environment = {**kept, "PATH": f"{bin}:{kept['PATH']}", "NO_COLOR": "1"}
        self._left: list[int] = []

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """One command, and an end to whatever it started if it does not come back."""
        process = subprocess.Popen(
            words, cwd=self.folder, env=self._environment, start_new_session=True, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            said, _ = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 0)
            self._left.append(process.pid)  # something of it goes on in the background
        return subprocess.CompletedProcess(words, process.returncode, said)

    def close(self) -> None:
        """End what the page has left running: its own last word may not have been reached."""
        for group in self._left:
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGTERM)

    def shell(self, command: str) -> subprocess.CompletedProcess[str]:
        leave = f'code=$?; {{ declare -px; printf "cd %q\\n" "$PWD"; }} > "{self._state}"; exit $code'
        return self.run("bash", "-c", f'. "{self._state}"\n{command}\n{leave}')


def copy_examples(folder: Path) -> None:
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("__pycache__"))


def blocks(page: Path) -> Iterator[Block]:
    fence: re.Match[str] | None = None
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if fence is None:
            if fence := re.match(r"\s*(```+|~~~+)\s*(\S*)\s*(.*)", line):
                where, inside = f"{page.relative_to(ROOT)} line {number}", list[str]()
        elif line.strip() == fence[1]:
            yield Block(where, fence[2], fence[3], textwrap.dedent("\n".join(inside)))
            fence = None
        else:
            inside.append(line)
    assert fence is None, f"{where}: this block is never closed"


@by_page
def test_every_block_of_this_page_does_what_it_says(page: Path, tmp_path: Path) -> None:
    if needed := NEEDS.get(page.name):
        pytest.importorskip(needed)
    (tmp_path / "page").mkdir()
    with closing(Place(tmp_path / "page")) as place:
        for block in blocks(page):
            match block.language:
                case "console":
                    converse(block, place)
                case "python":
                    execute(block, place)
                case "toml":
                    settle(block, place)
                case "json":
                    read(block)
                case "text" | "mermaid":
                    pass
                case "":
                    said = f"{block.where}: commands are shown in ```console blocks, where they are tested"
                    assert not re.search(r"^\$ ", block.text, re.M), said
                case other:
                    pytest.fail(
                        f"{block.where}: a block in {other!r} is not tested; "
                        "use console, python, toml or json, or text for what does not run"
                    )


# Commands


def converse(block: Block, place: Place) -> None:
    dialogue = list(commands(block))
    wanted = re.fullmatch(r"(?:exit=(\d+))?", block.info)
    assert wanted, f"{block.where}: after `console` stands nothing, or exit=CODE; not {block.info!r}"
    for command, said in dialogue:
        if not rehearsed(block, command, place):
            continue
        result = place.shell(command)
        code = int(wanted[1] or 0) if (command, said) == dialogue[-1] else 0
        about = f"{block.where}: `{command}`"
        assert result.returncode == code, f"{about} left with {result.returncode}:\n{result.stdout}"
        unheard = missing(said, result.stdout)
        assert unheard is None, f"{about} does not say\n    {unheard}\nhere, it says\n{result.stdout}"


def commands(block: Block) -> Iterator[tuple[str, list[str]]]:
    """Each command of a dialogue, with the lines that it is shown to say."""
    found: list[tuple[str, list[str]]] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        elif found and not found[-1][1] and line.startswith("> "):
            found[-1] = (f"{found[-1][0]}\n{line[2:]}", [])
        elif line.strip(" …"):
            assert found, f"{block.where}: output before the first `$ ` line"
            found[-1][1].append(line)
    return iter(found)


INSTALLS = re.compile(
    r"(make|git clone|(sudo )?apt install|(\S+/)?pip3? install|python3? -m venv|source|\.) "
)


def rehearsed(block: Block, command: str, place: Place) -> bool:
    """Whether the command is to be run. One that installs is only checked against what there is."""
    if not INSTALLS.match(command):
        return True
    makefile, project = (ROOT / "Makefile").read_text(), tomllib.loads((ROOT / "pyproject.toml").read_text())
    for target in re.findall(r"\bmake ([\w-]+)", command):
        assert re.search(rf"^{target}:", makefile, re.M), f"{block.where}: make has no target {target!r}"
    for extras in re.findall(r"(?:fleetfold|\.)\[([\w,]+)\]", command):
        unknown = set(extras.split(",")) - set(project["project"]["optional-dependencies"])
        assert not unknown, f"{block.where}: the package has no extra {', '.join(unknown)}"
    if cloned := re.match(r"git clone \S*?([\w-]+)(?:\.git)?(?:$| )", command):
        (place.folder / cloned[1]).mkdir()
        copy_examples(place.folder / cloned[1])
        if command.endswith(f"&& cd {cloned[1]}"):
            place.shell(f"cd {cloned[1]}")
    return False


DATE = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
NUMBER = r"-?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?"
VARIES = re.compile(
    rf"(?P<any> *… *)|(?P<date>{DATE})"
    r"|(?P<number>-?\d[\d,]*\.\d+(?:e[+-]?\d+)?|-?\d[\d,]*(?= ?(?:ms|s|m|h|B|kB|MB|GB)\b)|(?<=seconds )\d+)"
)


def pattern(line: str) -> str:
    """What a shown line says of the real one, in which no two spaces follow each other."""
    found, done = "", 0
    line = " ".join(line.split())
    for part in VARIES.finditer(line):
        varies = {"any": ".*", "date": DATE, "number": NUMBER}[str(part.lastgroup)]
        found += re.escape(line[done : part.start()]) + varies
        done = part.end()
    return found + re.escape(line[done:])


def missing(shown: list[str], said: str) -> str | None:
    """The first line shown that does not occur in what was said, after those before it; None: all do."""
    rest = iter([" ".join(line.split()) for line in said.splitlines()])
    for line in shown:
        wanted = re.compile(pattern(line))
        if not any(wanted.fullmatch(real) for real in rest):
            return line
    return None


# Programs and settings


def execute(block: Block, place: Place) -> None:
    compile(block.text, block.where, "exec")
    path, changed = named(block, "py")
    if path is None:
        result = place.run(sys.executable, "-c", block.text)
    else:
        file = place.folder / path
        file.parent.mkdir(exist_ok=True)
        file.write_text(replaced(file.read_text(), block.text) if changed else block.text)
        run = "import runpy, sys; sys.path.insert(0, sys.argv[2]); runpy.run_path(sys.argv[1])"
        result = place.run(sys.executable, "-c", run, str(file), str(file.parent))
    assert result.returncode == 0, f"{block.where}: this program fails:\n{result.stdout}"


def settle(block: Block, place: Place) -> None:
    tomllib.loads(block.text)
    path, _ = named(block, "toml")
    if path is not None:
        (place.folder / path).write_text(block.text + "\n")


def read(block: Block) -> None:
    """An example of a message has no field that the message has not, and is read as one."""
    found = json.loads(block.text)
    assert isinstance(found, dict), f"{block.where}: a message is one JSON object"
    struct = getattr(messages, found["title"] if block.info == "schema" else block.info, Bundle)
    fields = {field.encode_name for field in msgspec.structs.fields(struct)}
    if block.info == "schema":
        assert found["properties"].keys() == fields, block.where
        return
    assert found.keys() <= fields, f"{block.where}: no field of {block.info}: {found.keys() - fields}"
    message = msgspec.convert(found, struct)
    assert struct.__name__ == block.info, f"{block.where}: after `json` stands a message's name, or schema"
    assert msgspec.json.decode(messages.encode(message), type=struct) == message


def named(block: Block, suffix: str) -> tuple[str | None, bool]:
    """The file that a block's first line names, and whether only part of it changes."""
    found = re.match(rf"# (\S+\.{suffix})(, changed)?$", block.text.partition("\n")[0])
    return (found[1], bool(found[2])) if found else (None, False)


def replaced(file: str, part: str) -> str:
    """The file with what `part` defines in place of what the file defined under the same names. What is
    new comes before the file's last statement."""
    own = {name: node for node in ast.parse(file).body for name in names(node)}
    last = ast.parse(file).body[-1]
    lines = file.splitlines()
    edits = []
    for node in ast.parse(part).body:
        text = part.splitlines()[begin(node) : node.end_lineno]
        old = next((own[name] for name in names(node) if name in own), None)
        edits.append((begin(old), old.end_lineno, text) if old else (begin(last), begin(last), text))
    for start, stop, text in sorted(edits, key=lambda edit: edit[:2], reverse=True):
        lines[start:stop] = text
    return "\n".join(lines) + "\n"


def names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [name.id for name in ast.walk(node.targets[0]) if isinstance(name, ast.Name)]
    return []


def begin(node: ast.stmt) -> int:
    """The index of its first line, a decorator's if it has one."""
    decorators = getattr(node, "decorator_list", [])
    return min([node.lineno, *(d.lineno for d in decorators)]) - 1


# The pages themselves


@by_page
def test_every_link_of_this_page_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        file, _, heading = target.partition("#")
        other = page.parent / file if file else page
        assert other.exists(), f"{page.name} links to {target}, which is not there"
        if heading:
            assert heading in anchors(other), f"{page.name} links to {target}: no such heading"


def anchors(page: Path) -> set[str]:
    """The headings of a page, as GitHub names them in links."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_named_on_the_index() -> None:
    index = (ROOT / "docs/index.md").read_text()
    for page in PAGES[1:]:
        assert page.name == "index.md" or f"({page.name})" in index, (
            f"docs/index.md does not name {page.name}"
        )


@pytest.mark.parametrize("name", ["reference", "protocol"])
def test_the_generated_parts_of_this_page_are_those_of_the_program(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs/_tools")
    text = (ROOT / f"docs/{name}.md").read_text()
    due = f"the program has changed: run python docs/_tools/{name}.py"
    assert importlib.import_module(name).renewed(text) == text, due


# The tests' own test


@pytest.mark.parametrize(
    ("shown", "said", "heard"),
    [
        (["folded 10 updates, 0.03 s"], "folded 10 updates, 12 s\n", True),
        (["folded 10 updates, 0.03 s"], "folded 9 updates, 0.03 s\n", False),
        (["a   b"], "x\na b\n", True),
        (["a", "b"], "b\na\n", False),
        (["a"], "ab\n", False),
        (["a …"], "a b\n", True),
        (["a …"], "a\n", True),
        (["at 2026-01-02 03:04:05"], "at 2030-11-12 13:14:15\n", True),
        (["7.6 kB up"], "391.4 kB up\n", True),
        (["7.6 kB up"], "7.6 MB up\n", False),
        (["rounds 10 · seconds 5"], "rounds 10 · seconds 88\n", True),
        (["rounds 10 · seconds 5"], "rounds 11 · seconds 5\n", False),
    ],
)
def test_a_shown_line_holds_the_program_to_its_words_and_counts_but_not_its_measurements(
    shown: list[str], said: str, heard: bool
) -> None:
    assert (missing(shown, said) is None) is heard


def test_a_changed_function_takes_the_place_of_its_namesake() -> None:
    file = "import x\nA, B = 1, 2\n\ndef f():\n    return 1\n\nlast = f()\n"
    part = "# app.py, changed\nA, B = 3, 4\ndef g():\n    return 2\nlast = g() + 1\n"
    found: dict[str, object] = {}
    exec(replaced(file, part).replace("import x", ""), found)
    assert (found["A"], found["B"], found["last"]) == (3, 4, 3)
