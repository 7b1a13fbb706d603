"""Driver: tables that others have measured and published; `published/README.md` says whose they are."""

import csv
import gzip
from importlib.resources import files


def table(name: str) -> list[list[str]]:
    """The rows of `published/NAME.csv.gz`, without its head."""
    packed = (files("atoll.reproduce.simulator") / "published" / f"{name}.csv.gz").read_bytes()
    return list(csv.reader(gzip.decompress(packed).decode().splitlines()))[1:]
