"""Interface: a WAN lab: several hosts on one computer with slow links between them, for tests and benchmarks.

with open_lab(3, Shape(rate_bits_per_s=50e6, delay_s=0.02)) as lab:
    server = lab.start(0, [sys.executable, "server.py", lab.address(0)])
    lab.set(0, 1, Shape(rate_bits_per_s=5e6, delay_s=0.1, loss=0.01))
    lab.cut(2)
"""

from atoll.net.lab.api import Lab, Shape
from atoll.net.lab.opening import available, open_lab

__all__ = ["Lab", "Shape", "available", "open_lab"]
