"""Policy: which parameters are exchanged together: whole blocks of a model, dealt to fragments.

After Streaming DiLoCo (Douillard et al. 2025, arXiv 2501.18512): `strided` gives block i to fragment i mod P,
`sequential` runs of neighbours. What comes before the blocks (embeddings) goes with the first fragment, what comes
after (norm, head) with the last.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Literal, Self

from torch import nn

from atoll.errors import InvalidConfig

Pattern = Literal["strided", "sequential"]


@dataclass(frozen=True)
class FragmentPlan:
    """Names of parameters, by fragment."""

    fragments: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, module: nn.Module, fragments: int = 1, pattern: Pattern = "strided") -> Self:
        """The blocks of `module` in so many fragments. InvalidConfig: it has fewer."""
        blocks = _blocks(module) if fragments > 1 else []
        most = max(1, len(blocks))
        if not 1 <= fragments <= most:
            raise InvalidConfig(f"fragments must be from 1 to {most}, whole blocks of the model, not {fragments}")
        dealt: list[list[str]] = [[] for _ in range(fragments)]
        place = 0
        for name, _ in module.named_parameters():
            block = next((i for i, prefix in enumerate(blocks) if name.startswith(prefix)), None)
            if block is not None:
                dealt[block % fragments if pattern == "strided" else block * fragments // len(blocks)].append(name)
                place = fragments - 1
            else:
                dealt[place].append(name)
        return cls(tuple(map(tuple, dealt)))

    def check(self, module: nn.Module) -> None:
        """InvalidConfig: some parameter of `module` is not in exactly one fragment, or a fragment has none."""
        known = {name: id(parameter) for name, parameter in module.named_parameters(remove_duplicate=False)}
        if strange := [name for names in self.fragments for name in names if name not in known]:
            raise InvalidConfig(f"fragments: the model has no parameter {strange[0]!r}")
        held = Counter(known[name] for names in self.fragments for name in names)
        for name, parameter in known.items():
            if held[parameter] != 1:
                times = f"in {held[parameter]} fragments" if held[parameter] else "in no fragment"
                raise InvalidConfig(f"fragments: {name} is {times}; each parameter belongs to exactly one")
        if not all(self.fragments):
            raise InvalidConfig(f"fragments: number {self.fragments.index(())} holds no parameter")


def _blocks(module: nn.Module) -> list[str]:
    """What names of parameters begin with, for each entry of the longest list in the model."""
    lists = [
        (name, found) for name, found in module.named_modules() if isinstance(found, nn.ModuleList | nn.Sequential)
    ]
    if not lists:
        return []
    name, longest = max(lists, key=lambda one: len(one[1]))
    root = f"{name}." if name else ""
    return [f"{root}{i}." for i, block in longest.named_children() if any(True for _ in block.parameters())]
