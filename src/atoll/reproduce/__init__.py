"""Interface: one runnable demonstration per published system. `reproduce/systems.py` lists them all."""

from atoll.reproduce.systems import SYSTEMS, System, by_slug

__all__ = ["SYSTEMS", "System", "by_slug"]
