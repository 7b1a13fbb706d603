"""Processes by name: what they say is heard to the last word, and who waits in vain is told why."""

import pytest

from atoll.errors import AtollError
from atoll.reproduce.crew import Crew, crew

SAY = "import json, sys; [print(json.dumps({'event': 'step', 'step': i}), flush=True) for i in range(3)]"


def test_all_is_heard_of_one_and_of_everybody() -> None:
    with crew() as found:
        for name in ("a", "b"):
            found.start(name, "-c", SAY)
        found.until_ended(seconds=30.0)
        assert [said["step"] for said in found.of("step", "a")] == [0, 1, 2]
        assert sorted(said["said_by"] for said in found.of("step")) == ["a"] * 3 + ["b"] * 3
        assert found.codes == {"a": 0, "b": 0}
        assert found.running() == []


def test_nobody_is_waited_for_who_has_ended() -> None:
    with crew() as found:
        found.start("a", "-c", f"{SAY}; sys.exit('out of luck')")
        with pytest.raises(AtollError, match=r"in vain for a fourth step: nobody is left; a: .*2.* out of luck"):
            found.until(lambda: len(found.of("step")) > 3, "a fourth step", 30.0)
        with pytest.raises(AtollError, match=r"a process failed; a: .*out of luck"):
            found.until_ended("a")


def test_a_wait_has_an_end_and_so_have_processes() -> None:
    with crew() as found:
        found.start("a", "-c", f"{SAY}; import time; time.sleep(600)")
        found.until(lambda: len(found.of("step")) == 3, "three steps", 30.0)
        with pytest.raises(AtollError, match=r"not in 0.1 s"):
            found.until(lambda: False, "what never comes", 0.1)
        found.kill("a")
        assert found.codes["a"] < 0
        found.start("a", "-c", SAY)
        found.until_ended("a", seconds=30.0)
        assert len(found.of("step", "a")) == 6


def test_what_still_runs_ends_with_the_crew() -> None:
    found: Crew
    with crew() as found:
        found.start("a", "-c", "import time; time.sleep(600)")
        processes = found.processes
    assert processes.alive() == []
