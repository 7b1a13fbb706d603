"""Policy: data stands still in an operation that all have voted for. Who keeps it?

In a ring most wait for somebody who waits himself. Who is waited for and waits for nobody sends nothing. Where all
wait, the first who went without is he who has the least, and the one he waits for keeps it. As long as somebody else
gets on, nobody is blamed. The word of one alone does not count against a member that has all it needs, nor a second
time against any: then it is the one that doesn't take what it gets.
"""

from collections.abc import Sequence, Set
from typing import Final

from atoll.group.messages import Stalled

BLAME_S: Final = 2.0
"""So long all have to say that no data comes, before somebody is blamed for it."""
SILENT: Final = "voted, but sent no data"
DEAF: Final = "said of one member after the other that it sends no data"


class Stalls:
    """Of one epoch; but who has accused whom is remembered."""

    def __init__(self) -> None:
        self._said: dict[int, Stalled] = {}
        self._since = 0.0
        self._accusers: set[int] = set()

    def note(self, who: int, said: Stalled, now: float) -> None:
        """This member waits for data in vain."""
        self._since = self._since if self._said else now
        self._said[who] = said

    def due(self, now: float) -> bool:
        """Has everybody had the time to say so?"""
        return bool(self._said) and now - self._since >= BLAME_S

    @property
    def accusers(self) -> list[int]:
        """Who has said so."""
        return list(self._said)

    @property
    def why(self) -> str:
        """As the first has said it."""
        return next((said.why for said in self._said.values()), "")

    def clear(self) -> None:
        """Another epoch, or they may say it again."""
        self._said.clear()

    def to_blame(self, ring: Sequence[int], done: Set[int]) -> dict[int, str] | None:
        """Members who must go, and why; none where nobody can tell. None: some get on, who are not waited for.
        `ring`: those with whom the accusers have operations; `done`: who of them has all the data it needs."""
        awaited = {i for said in self._said.values() for i in said.awaited}
        if any(i not in self._said and i not in done and i not in awaited for i in ring):
            return None
        silent = [i for i in ring if i in awaited and i not in self._said]
        if not silent:
            least = min(said.received for said in self._said.values())
            first = [said for said in self._said.values() if said.received == least]
            silent = [i for i in ring if i in first[0].awaited] if len(first) == 1 else []
        accusers = [i for i, said in self._said.items() if set(silent) & set(said.awaited)]
        if not silent or len(silent) > 1:
            return dict.fromkeys(silent, SILENT)
        if len(accusers) == 1 and len(ring) > 2:
            if accusers[0] in self._accusers or silent[0] in done:
                return {accusers[0]: DEAF}
            self._accusers.add(accusers[0])
        return {silent[0]: SILENT}
