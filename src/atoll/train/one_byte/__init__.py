"""Program: Just One Byte (Zelikman, Huang, Liang, Haber, Goodman, 2023, arXiv 2306.10015): fine-tuning by forward
passes, one byte per gradient on the wire.

| file | what |
|---|---|
| `settings.py` | what can be told |
| `code.py` | a number to one byte and back |
| `weights.py` | parameters that move along noise nobody stores, and come back to the bit |
| `rounds.py` | what all have said, round by round: the log, which is the checkpoint |
| `strategy.py` | the algorithm: perturb, look, perturb, look, say a byte, follow all bytes |
"""
