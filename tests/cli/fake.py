"""Stands in for `atoll master` and `atoll join`: the same lines on stdout, no torch, every turn decided by the master.

`FAKE` in the environment is the plan, a JSON object: `steps`; and, as needed: `chaos` (after a third of the steps wait
until there are two peers, until one is gone, and until another has come; "late": it comes, and is not let in), `hold`
(after that step do nothing any more), `checkpoint` (that step), `acts` ({who: what}: see `act`).
"""

import json
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, TextIO

PLAN = json.loads(os.environ["FAKE"])
TOKENS, SENT, DDP = 100, 10, 200


def say(kind: str, **fields: Any) -> None:
    print(json.dumps({"event": kind, "at": time.time(), **fields}), flush=True)


class Master:
    def __init__(self) -> None:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.members: dict[str, tuple[socket.socket, TextIO]] = {}
        self.epoch = 0
        self.step = 0
        self.chaos_due = "chaos" in PLAN
        self.lost = False

    def run(self) -> None:
        if PLAN.get("acts", {}).get("master") == "refuse":
            sys.exit("this port is taken")
        say("listening", address=f"127.0.0.1:{self.server.getsockname()[1]}")
        need = self.admit()
        while len(self.members) < need:
            self.admit()
        self.enter()
        for self.step in range(1, PLAN["steps"] + 1):
            if PLAN.get("acts", {}).get("master") == "crash" and self.step == 2:
                sys.exit("out of votes")
            self.tell(do="step", step=self.step)
            self.drop(self.deaf())
            if self.step == PLAN.get("hold"):
                self.server.accept()
            if self.chaos_due and 3 * self.step >= PLAN["steps"]:
                self.chaos()
        self.tell(do="end", step=self.step)
        self.server.accept()

    def chaos(self) -> None:
        if not self.lost:  # the blow may have come within the step
            if len(self.members) < 2:
                self.admit()
                self.enter()
                return
            readable, _, _ = select.select([s for s, _ in self.members.values()], [], [])
            self.drop([name for name, (s, _) in self.members.items() if s in readable])
        self.chaos_due = False
        if PLAN["chaos"] == "late":
            self.stranger = self.server.accept()
        else:
            self.admit()
            self.enter()

    def admit(self) -> int:
        connection, _ = self.server.accept()
        lines = connection.makefile("rw", encoding="utf-8")
        hello = json.loads(lines.readline())
        self.members[hello["name"]] = connection, lines
        return int(hello["min_world"])

    def enter(self) -> None:
        self.epoch += 1
        self.tell(do="enter", revision=self.step)

    def deaf(self) -> list[str]:
        """Who doesn't answer."""
        found = []
        for name, (_, lines) in self.members.items():
            try:
                answered = lines.readline()
            except OSError:
                answered = ""
            if not answered:
                found.append(name)
        return found

    def drop(self, names: list[str]) -> None:
        for name in names:
            self.members.pop(name)
            self.epoch += 1
            self.lost = True
            self.tell(do="lost", who=name)

    def tell(self, **order: Any) -> None:
        for rank, (_, lines) in enumerate(self.members.values()):
            text = json.dumps({"world": len(self.members), "epoch": self.epoch, "rank": rank, **order})
            try:
                print(text, file=lines, flush=True)
            except OSError:
                pass  # gone: seen at the next reading


class Peer:
    def __init__(self, address: str, options: dict[str, str]) -> None:
        self.name, self.options = options["--name"], options
        host, port = address.split(":")
        self.lines = socket.create_connection((host, int(port))).makefile("rw", encoding="utf-8")
        self.taken = 0
        self.say("asked", min_world=int(options["--min-world"]))
        self.reply(name=self.name, min_world=int(options["--min-world"]))

    def run(self) -> None:
        joined = False
        if self.options.get("--resume"):
            self.say("resumed", step=0)
        for line in self.lines:
            order = json.loads(line)
            where = {key: order[key] for key in ("world", "rank", "epoch")}
            match order["do"]:
                case "enter":
                    if not joined:
                        self.say("joined", id=7, **where)
                        joined = True
                    revision = order["revision"]
                    self.say("synced", revision=revision, received=0, hash=f"state {revision}", **where)
                case "lost":
                    now = f"now epoch {where['epoch']}, world {where['world']}: retry"
                    self.say("lost", message=f"lost {order['who']} (connection lost); {now}", **where)
                case "step":
                    self.step(order["step"], where)
                case "end":
                    return self.end(order["step"], where)
        self.say("failed", error="MasterLost", message="the master is gone")
        sys.exit(1)

    def step(self, step: int, where: dict[str, int]) -> None:
        act = PLAN.get("acts", {}).get(self.name) if step == 2 else None
        if act == "fail":
            self.say("failed", error="SaveFailed", message="the disk is full")
            sys.exit(1)
        if act == "crash":
            print("some words before", "Segmentation fault of the mind", file=sys.stderr, sep="\n")
            os._exit(3)
        if act == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if act == "chatter":
            print("a library says hello")
        self.taken += 1
        state = {"revision": step, "hash": f"{'other' if act == 'differ' else 'state'} {step}"}
        counts = {"tokens": TOKENS, "sent": SENT * self.taken, "ddp": DDP * self.taken}
        if step == PLAN.get("checkpoint") and where["rank"] == 0:
            self.say("saved", path="checkpoint/step-000000002.safetensors", step=step)
        self.say("step", step=step, loss=5.0 / step, seconds=0.1, waited=0.0, **counts, **where, **state)
        self.reply(ok=step)

    def end(self, step: int, where: dict[str, int]) -> None:
        if where["rank"] == 0 and PLAN.get("acts", {}).get(self.name) != "forget":
            model = Path(self.options["--run-dir"]) / "model"
            model.mkdir(exist_ok=True)
            self.say("saved", path=str(model), step=step)
        self.say("done", step=step, hash=f"state {step}", sent=SENT * self.taken, ddp=DDP * self.taken)

    def say(self, kind: str, **fields: Any) -> None:
        say(kind, peer=self.name, **fields)

    def reply(self, **words: Any) -> None:
        print(json.dumps(words), file=self.lines, flush=True)


def options(words: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for word, following in zip(words, [*words[1:], "--"], strict=True):
        if word.startswith("--"):
            found[word] = "yes" if following.startswith("--") else following
    return found


if __name__ == "__main__":
    try:
        if sys.argv[1] == "master":
            Master().run()
        else:
            Peer(sys.argv[2], options(sys.argv[3:])).run()
    except KeyboardInterrupt:
        sys.exit(130)
