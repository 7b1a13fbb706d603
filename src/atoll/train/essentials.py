"""Program: what must be the same on all who train together, and what differs."""

import json
from collections.abc import Collection
from dataclasses import asdict
from typing import Any

from atoll.errors import InvalidConfig
from atoll.train.api import Task
from atoll.train.settings import TrainSettings


def of(settings: TrainSettings, task: Task) -> dict[str, Any]:
    """As what is compared, said and saved."""
    found = asdict(settings)
    del found["one_byte"]  # of which the strategy says what must be
    return {**found, "text": task.fingerprint}


def read(said: bytes | str) -> dict[str, Any]:
    """What another one says it trains."""
    try:
        theirs = json.loads(said)
    except (ValueError, RecursionError):
        theirs = None
    if not isinstance(theirs, dict):
        raise InvalidConfig("whoever trains there doesn't say what: all need the same atoll")
    return theirs


def difference(theirs: dict[str, Any], mine: dict[str, Any], own: Collection[str] = ()) -> str:
    """What differs, but for what is everybody's `own`, in words; empty: nothing."""
    theirs, mine = json.loads(json.dumps(theirs)), json.loads(json.dumps(mine))
    names = [name for name in sorted((theirs.keys() | mine.keys()) - set(own)) if theirs.get(name) != mine.get(name)]
    return ", ".join(f"{name} {theirs.get(name)} there, {mine.get(name)} here" for name in names)
