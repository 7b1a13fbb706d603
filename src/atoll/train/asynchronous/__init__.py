"""Interface: training without rounds: a server holds the parameters; each worker pulls, trains alone, and pushes how
far it came.

After Liu et al. 2024 (Asynchronous Local-SGD Training for Language Modeling, arXiv 2401.09135). `desk.py` decides,
`nesterov.py` is what a push does, `server.py` and `worker.py` speak with each other by `messages.py`.
"""
