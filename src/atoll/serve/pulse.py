"""Policy: whether an engine that owes answers and says nothing still works on them: it uses a processor if it does."""

from typing import Final

LOOK_S: Final = 1.0
"""How often one that is silent is looked at."""
LOOKS: Final = 10
"""So many looks in a row that find no work done: it is stopped, or stuck. Looks, not seconds: who was stopped together
with it has not looked meanwhile."""


class Pulse:
    """Of one engine."""

    def __init__(self) -> None:
        self._used_s, self._looks = -1.0, 0

    def heard(self) -> None:
        """It said something, or owes nothing."""
        self._looks = 0

    def lost(self, used_s: float) -> bool:
        """Another look: it has used so much processor time since it was started. True: it is given up."""
        self._looks = 1 if used_s > self._used_s else self._looks + 1
        self._used_s = used_s
        return self._looks > LOOKS
