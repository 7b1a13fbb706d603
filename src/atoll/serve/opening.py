"""Driver: which model a name means, and how many pages of keys and values fit into so much memory."""

from pathlib import Path

from atoll.errors import InvalidConfig, InvalidData
from atoll.model import store
from atoll.model.paged import PAGE_TOKENS, page_bytes
from atoll.model.transformer import TransformerConfig

RUNS = Path("runs")


def find(name: str) -> Path:
    """A model pulled, a GGUF file, a model folder, or a run ("runs/last") that trained one. InvalidData: neither."""
    held = dict(store.held(store.models_folder()))
    if name in held:
        return held[name]
    path = Path(name)
    for place in (path, path / "model", RUNS / name / "model"):
        if place.is_file() or (place / "config.json").is_file():
            return place
    if path.is_dir():
        raise InvalidData(f"{path}: is neither a model (no config.json) nor a run that has saved one (no model/)")
    there = f"; on this machine: {', '.join(sorted(held))}" if held else ""
    pull = f"; `atoll model pull {name}` fetches it" if name in store.PUBLISHED else ""
    raise InvalidData(f"there is no model {name!r} here{pull}{there}")


def pages_in(nbytes: int, config: TransformerConfig, batch: int) -> int:
    """The pages that fit; no more than `batch` sequences can use. InvalidConfig where one sequence doesn't fit."""
    size = page_bytes(config)
    most = batch * -(-config.context // PAGE_TOKENS)
    pages = min(nbytes // size, most)
    if pages < 1:
        raise InvalidConfig(f"--kv-memory {nbytes} bytes hold no page of this model, which takes {size}")
    return pages
