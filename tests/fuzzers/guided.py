"""The process atheris runs in: python -m tests.fuzzers.guided NAME [flags of libFuzzer]."""

import sys

from tests.fuzzers.runner import in_this_process

in_this_process(sys.argv[1], sys.argv[2:])
