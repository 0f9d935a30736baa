"""README and docs tell the truth: every Python block runs, every command named exists.

The blocks of one page run in order and share one namespace, as a reader would type them. Only two kinds of code are
allowed to be shown as runnable, ``python`` and ``bash``, so that nothing escapes by calling itself something else.
"""

import re
import shlex
import sys
import textwrap
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[1]
ESCAPES = {"py", "python3", "pycon", "ipython", "ipython3", "sh", "shell", "console", "shell-session", "zsh"}
NESTING = re.compile(r"\{[\w-]+\}")  # a MyST directive: its body is again Markdown
SEPARATORS = {"&&", "||", ";", "|", "&"}


def pages() -> list[Path]:
    """Every page a reader meets: README, CONTRIBUTING and the docs, without what is vendored or built."""
    docs = [p for p in (ROOT / "docs").rglob("*.md") if not any(part.startswith("_") for part in p.parts)]
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(docs)]


@dataclass(frozen=True)
class Block:
    """One fenced block: its info string, its text, and the line of the page its text begins on."""

    page: Path
    line: int
    info: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT) if self.page.is_relative_to(ROOT) else self.page}:{self.line}"


def blocks(page: Path, text: str | None = None, first_line: int = 1) -> Iterator[Block]:
    """Yield the fenced blocks of a page, those inside directives too."""
    text = page.read_text(encoding="utf-8") if text is None else text
    for token in MarkdownIt().parse(text):
        if token.type == "fence" and token.map is not None:
            block = Block(page, first_line + token.map[0] + 1, token.info.strip(), token.content)
            yield block
            if NESTING.match(block.info):
                yield from blocks(page, block.text, block.line)


def inline_commands(page: Path) -> Iterator[Block]:
    """Yield the commands named in running text, as bash blocks; one with a PLACEHOLDER or an ellipsis is none."""
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        for code in (child.content for child in token.children or [] if child.type == "code_inline"):
            if re.fullmatch(r"(make|latentpg)( [\w./=-]+)+", code) and not re.search(r"\b[A-Z]+\b(?!=)", code):
                yield Block(page, token.map[0] + 1 if token.map else 1, "bash", code)


def run_python(page: Path, python: list[Block]) -> None:
    """Run blocks in one namespace; on an error, say at which line of the page and show the block."""
    module = ModuleType(f"document_{page.stem}")
    sys.modules[module.__name__] = module  # dataclasses look their module up to resolve annotations
    try:
        for block in python:
            source = "\n" * (block.line - 1) + block.text  # the traceback then counts the page's own lines
            try:
                exec(compile(source, str(page), "exec", dont_inherit=True), module.__dict__)
            except Exception as error:
                lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(page)]
                line = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else lines[-1]
                pytest.fail(
                    f"{page}:{line}: {type(error).__name__}: {error}\n\n{textwrap.indent(block.text, '    ')}\n"
                    + "".join(traceback.format_exception(error)),
                    pytrace=False,
                )
    finally:
        del sys.modules[module.__name__]


def commands(block: Block) -> Iterator[tuple[str, list[str]]]:
    """Yield ``(where, words)`` of each simple command in a bash block, without prompts, paths and assignments."""
    pending, begins = "", block.line
    for number, line in enumerate(block.text.splitlines(), block.line):
        begins = begins if pending else number
        if line.endswith("\\"):
            pending += line[:-1] + " "
            continue
        lexer = shlex.shlex((pending + line).strip().removeprefix("$ "), posix=True, punctuation_chars="|&;")
        pending = ""
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word not in SEPARATORS:
                words.append(word)
                continue
            while words and re.fullmatch(r"\w+=.*", words[0]):
                words.pop(0)
            if words:
                yield f"{block.page}:{begins}", [Path(words[0]).name, *words[1:]]
            words = []


def make_fault(arguments: list[str]) -> str | None:
    """Say what is wrong with the arguments of a ``make`` command, or None."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][\w-]*):(?!=)", makefile, re.MULTILINE))
    variables = set(re.findall(r"^(\w+) \?=", makefile, re.MULTILINE))
    for word in arguments:
        name, is_assignment, _ = word.partition("=")
        known = variables if is_assignment else targets
        if not word.startswith("-") and name not in known:
            return f"make has no {'variable' if is_assignment else 'target'} {name!r}; it has {sorted(known)}"
    return None


def latentpg_fault(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str | None:
    """Say what is wrong with the arguments of a ``latentpg`` command by its own ``--help``, or None."""
    from latentpg.cli import main
    from latentpg.errors import LatentPGError

    monkeypatch.setenv("COLUMNS", "240")  # narrow help would break long option names
    monkeypatch.setattr(sys, "argv", ["latentpg", *arguments, "--help"])
    code: object = 0
    try:
        code = main()
    except SystemExit as leave:
        code = leave.code
    except LatentPGError as error:
        code = error
    out, err = capsys.readouterr()
    if code not in (0, None):
        return f"latentpg {shlex.join(arguments)} --help exits with {code}:\n{err or out}"
    options = [word.partition("=")[0] for word in arguments if word.startswith("--")]
    unknown = [option for option in options if not re.search(re.escape(option) + r"(?![\w-])", out)]
    return f"no such option as {unknown} in the help of latentpg {shlex.join(arguments)}:\n{out}" if unknown else None


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.production
@pytest.mark.parametrize("page", pages(), ids=page_id)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_python(page, [block for block in blocks(page) if block.info == "python"])


@pytest.mark.production
@pytest.mark.parametrize("page", pages(), ids=page_id)
def test_commands_exist(page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    faults = []
    shown = [*(block for block in blocks(page) if block.info == "bash"), *inline_commands(page)]
    for where, (program, *arguments) in (command for block in shown for command in commands(block)):
        fault = None
        if program == "make":
            fault = make_fault(arguments)
        elif program == "latentpg":
            fault = latentpg_fault(arguments, monkeypatch, capsys)
        faults += [f"{where}: {fault}"] if fault else []
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("page", pages(), ids=page_id)
def test_no_block_escapes(page: Path) -> None:
    faults = []
    for block in blocks(page):
        language, *options = block.info.split() or [""]
        if language in ESCAPES:
            faults.append(f"{block.where}: say `python` or `bash`, so that the block is checked; it says `{language}`")
        if language in {"python", "bash"} and options:
            faults.append(f"{block.where}: a block is run or is not code; it says `{block.info}`")
        if re.match(r"\{(code|code-block|sourcecode|code-cell)\}", language):
            faults.append(f"{block.where}: use a plain fence, so that the block is checked; it says `{block.info}`")
        if language == "{eval-rst}" and re.search(r"\.\. (code|code-block|sourcecode)::", block.text):
            faults.append(f"{block.where}: use a plain fence outside of eval-rst, so that the block is checked")
    assert not faults, "\n".join(faults)


# The tests of these tests: a page with a fault must be found out, at its own line.

NESTED = """\
Text.

````{note}
```python
good = 1
```

```python
bad = good / 0
```
````
"""


def test_a_failing_block_is_named_by_its_line(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(NESTED, encoding="utf-8")
    with pytest.raises(pytest.fail.Exception, match=r"page\.md:9: ZeroDivisionError"):
        run_python(page, [block for block in blocks(page) if block.info == "python"])


def test_a_syntax_error_is_named_by_its_line(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 1\ny = (\n```\n", encoding="utf-8")
    with pytest.raises(pytest.fail.Exception, match=r"page\.md:3: SyntaxError"):
        run_python(page, list(blocks(page)))


def test_commands_are_split_as_a_shell_would() -> None:
    text = (
        "$ OMP_NUM_THREADS=1 .venv/bin/latentpg study \\\n    quickstart  # a comment\nmake test && make demo | tail\n"
    )
    assert list(commands(Block(Path("page.md"), 7, "bash", text))) == [
        ("page.md:7", ["latentpg", "study", "quickstart"]),
        ("page.md:9", ["make", "test"]),
        ("page.md:9", ["make", "demo"]),
        ("page.md:9", ["tail"]),
    ]


def test_commands_in_running_text_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "One.\n\nSay `make dmeo`, `make X=y demo`, `make TORCH_ARGS=…`, `latentpg study NAME` or `make`.\n", "utf-8"
    )
    assert [(block.line, block.text) for block in inline_commands(page)] == [(3, "make dmeo"), (3, "make X=y demo")]


def test_an_unknown_make_target_is_found_out() -> None:
    assert make_fault(["demo", "PYTHON=python3.11"]) is None
    assert "no target 'dmeo'" in str(make_fault(["dmeo"]))
    assert "no variable 'PYHTON'" in str(make_fault(["demo", "PYHTON=python3.11"]))


@pytest.mark.production
@pytest.mark.parametrize(
    "arguments", [["stduy", "quickstart"], ["study", "quikstart"], ["study", "quickstart", "--sed=1"]]
)
def test_an_unknown_command_is_found_out(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert latentpg_fault(arguments, monkeypatch, capsys) is not None
