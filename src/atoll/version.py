"""Interface: the version of this atoll, said first on every connection."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("atoll")
except PackageNotFoundError:  # run from a folder that was never installed
    VERSION = "0"
