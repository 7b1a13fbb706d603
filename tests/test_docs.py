"""Runs every Python block of the README and the documentation: what a reader copies must work.

The blocks of one page are one program. One marked "```python no-run" is only compiled.
"""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *sorted(page.relative_to(ROOT).as_posix() for page in ROOT.glob("docs/**/*.md"))]
TIMEOUT_S = 60
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<info>python[^\n`]*)\n(?P<code>.*?)^(?P=indent)```[ ]*$", re.MULTILINE | re.DOTALL
)


def program_of(page: Path) -> str:
    """The page's runnable blocks, each on the lines where it stands in the page. SyntaxError names page and line."""
    text = page.read_text("utf-8")
    lines = [""] * (text.count("\n") + 1)
    for block in FENCE.finditer(text):
        code = textwrap.dedent(block["code"])
        first = text.count("\n", 0, block.start("code"))
        compile("\n" * first + code, str(page), "exec")
        if "no-run" not in block["info"].split():
            lines[first : first + code.count("\n")] = code.splitlines()
    return "\n".join(lines)


def run(page: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the page's program in `folder`. Its copy has the page's name and lines, so that a traceback points there."""
    program = folder / f"{page.name}.py"
    program.write_text(program_of(page), "utf-8")
    return subprocess.run([sys.executable, program], cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S)


@pytest.mark.parametrize("page", [page for page in PAGES if FENCE.search((ROOT / page).read_text("utf-8"))])
def test_the_blocks_of_a_page_run(page: str, tmp_path: Path) -> None:
    done = run(ROOT / page, tmp_path)
    assert done.returncode == 0, f"{page}\n{done.stdout}{done.stderr}"


def test_the_first_page_leads_to_all_others() -> None:
    pages = set(re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.MULTILINE)) - {"index.md"}
    linked = set(re.findall(r"\]\((\S+\.md)\)", (ROOT / "docs" / "index.md").read_text("utf-8")))
    assert len(pages) > 10
    assert linked == pages


def test_files_that_pages_show_are_there() -> None:
    """A formatter of Python that gets at such a line makes another one of it, which nobody expands."""
    lines = [line.strip() for page in PAGES for line in (ROOT / page).read_text("utf-8").splitlines()]
    marks = [line for line in lines if re.match("--8 ?<", line)]
    assert len(marks) > 5
    for mark in marks:
        found = re.fullmatch('--8<-- "(.+)"', mark)
        assert found, mark
        assert (ROOT / found[1]).is_file(), mark


def page_with(tmp_path: Path, text: str) -> Path:
    page = tmp_path / "page.md"
    page.write_text(textwrap.dedent(text), "utf-8")
    return page


def test_blocks_share_names_and_an_indented_block_counts(tmp_path: Path) -> None:
    page = page_with(
        tmp_path,
        """
        ```python
        x = 1
        ```
        !!! note
            ```python
            if x:
                print(x + 1)
            ```
        """,
    )
    assert run(page, tmp_path).stdout == "2\n"


def test_a_failing_block_is_reported_with_its_line_in_the_page(tmp_path: Path) -> None:
    page = page_with(tmp_path, "# Title\n\n```python\nx = 1\nassert x == 2\n```\n")
    done = run(page, tmp_path)
    assert done.returncode != 0
    assert "page.md.py" in done.stderr
    assert "line 5" in done.stderr


def test_a_block_marked_no_run_is_only_compiled(tmp_path: Path) -> None:
    assert program_of(page_with(tmp_path, "```python no-run\nraise SystemExit(1)\n```\n")).strip() == ""
    with pytest.raises(SyntaxError) as caught:
        program_of(page_with(tmp_path, "text\n```python no-run\nx = = 1\n```\n"))
    assert caught.value.lineno == 3


def test_other_blocks_are_left_alone(tmp_path: Path) -> None:
    text = "```console\n$ atoll train\n```\n```\nnot python\n```\n```toml\nx = 1\n```\n"
    assert program_of(page_with(tmp_path, text)).strip() == ""


def test_what_a_page_writes_stays_in_its_folder(tmp_path: Path) -> None:
    run(page_with(tmp_path, "```python\nopen('made', 'w').close()\n```\n"), tmp_path)
    assert (tmp_path / "made").exists()
