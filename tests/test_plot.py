"""A plot is a picture in a file that shows its series, names and marks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from atoll.errors import AtollError, InvalidData, SaveFailed
from atoll.plot import lines

SERIES = {"DDP": ([0, 1, 2], [3.0, 2.0, 1.0]), "DiLoCo": ([0, 2], [3.0, 1.5])}
LABELS = {"title": "Loss", "xlabel": "step", "ylabel": "nats"}


def test_a_png_is_saved(tmp_path: Path) -> None:
    lines(tmp_path / "loss.png", SERIES, **LABELS)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_it_shows_series_names_and_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure_module = pytest.importorskip("matplotlib.figure")
    drawn = []
    monkeypatch.setattr(figure_module.Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    lines(tmp_path / "x.png", SERIES, **LABELS, marks={"killed": 1.5})
    (axes,) = drawn[0].axes
    one, other, mark = axes.get_lines()
    assert (list(one.get_xdata()), list(one.get_ydata())) == ([0, 1, 2], [3, 2, 1])
    assert (list(other.get_xdata()), list(other.get_ydata())) == ([0, 2], [3, 1.5])
    assert list(mark.get_xdata()) == [1.5, 1.5]
    assert mark.get_linestyle() == "--"
    assert [text.get_text() for text in axes.texts] == ["killed"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["DDP", "DiLoCo"]
    assert (axes.get_title(loc="left"), axes.get_xlabel(), axes.get_ylabel()) == ("Loss", "step", "nats")


def test_it_needs_no_screen_and_leaves_no_global_state(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from atoll.plot import lines\n"
        "assert 'matplotlib' not in sys.modules\n"
        "lines(Path(sys.argv[1]), {'a': ([0, 1], [0, 1])}, title='', xlabel='', ylabel='')\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "x.png")], check=True, env=os.environ | {"MPLBACKEND": "TkAgg"}
    )


def test_without_matplotlib_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(AtollError, match=r"pip install 'atoll\[plot\]'"):
        lines(tmp_path / "x.png", SERIES, **LABELS)


def test_series_of_unequal_length_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match="'a' has 2 xs and 1 ys"):
        lines(tmp_path / "x.png", {"a": ([0, 1], [0])}, **LABELS)


def test_a_folder_that_is_not_there_is_reported(tmp_path: Path) -> None:
    with pytest.raises(SaveFailed, match="absent"):
        lines(tmp_path / "absent" / "x.png", SERIES, **LABELS)
