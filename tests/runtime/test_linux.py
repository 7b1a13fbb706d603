"""Children that die with their parent, by the kernel's hand."""

import os
import subprocess
import sys

import pytest

if sys.platform != "linux":
    pytest.skip("Linux only", allow_module_level=True)

from atoll.runtime import linux

CHILD = [sys.executable, "-S", "-E", "-c", "pass"]


def test_a_child_whose_parent_is_already_gone_does_not_start() -> None:
    """Between fork and the request for the signal, a parent's death goes unnoticed: the parent id tells."""
    with pytest.raises(subprocess.SubprocessError):
        subprocess.Popen(CHILD, preexec_fn=linux._die_with(os.getpid() + 1))


def test_a_forked_process_starts_children_of_its_own() -> None:
    code = """
import os, sys
from atoll.runtime.linux import popen

popen(sys.argv[1:]).wait()
pid = os.fork()
if not pid:
    os._exit(popen(sys.argv[1:]).wait())
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", code, *CHILD], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout == "0\n"
