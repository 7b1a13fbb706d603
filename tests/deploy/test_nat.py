"""What docs/deploy.md says about NAT: who can't be dialled is told so and the others go on. A forwarded port that is
advertised works: `tests/group/test_addresses.py`."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import atoll
from atoll.group.wiring.asking import StatusClient
from atoll.net.lab import open_lab
from tests.deploy.places import free_port, running, tiny, until, with_atoll
from tests.net.lab.hosts import need

UNREACHED = "the group went on without this peer: "


def test_of_three_the_one_that_nobody_reaches_is_told_and_the_others_go_on() -> None:
    """As with a private address that means another computer to the others. Not by shared memory: that needs none."""
    ends: dict[int, object] = {}

    def peer(number: int, **options: str) -> None:
        try:
            with atoll.join(master.address, min_world=3, shared_memory=False, **options) as group:
                ends[number] = group.world
                group.barrier()
        except atoll.AtollError as error:
            ends[number] = error

    with atoll.Master() as master:
        hidden = {"advertise": f"127.0.0.1:{free_port()}"}
        threads = [threading.Thread(target=peer, args=(i,), kwargs=hidden if i == 1 else {}) for i in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert ends[0] == ends[2] == 2
    assert isinstance(ends[1], atoll.errors.Expelled)
    assert UNREACHED in str(ends[1])
    assert str(ends[1]).endswith("can't reach it")


@pytest.mark.slow
def test_behind_a_router_that_drops_atoll_join_tries_again_and_then_says_why(tmp_path: Path) -> None:
    config, logs = tiny(tmp_path, steps=1_000_000), [tmp_path / name for name in ("inside", "outside", "master")]
    env, nobody = with_atoll(tmp_path / "bin"), "10.77.0.200:48149"
    with open_lab(2, back_end=need("tun")) as lab:
        address = f"{lab.address(0)}:48148"

        def on(host: int, *words: str) -> list[str]:
            name = f"atoll-lab-{os.getpid()}-"
            spaces = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout.split()
            (space,) = [space for space in spaces if space.startswith(name) and space.endswith(f"-{host}")]
            return ["ip", "netns", "exec", space, sys.executable, "-m", "atoll", *words]

        join = ["join", address, "--config", str(config), "--name"]
        with (
            running(on(0, "master", "--listen", address, "--insecure", "--no-measure"), logs[2], env=env),
            running(on(0, *join, "good"), logs[0], env=env, cwd=tmp_path),
        ):
            until(lambda: " step " in logs[0].read_text(), "it trains alone", logs[0])
            with running(on(1, *join, "hidden", "--advertise", nobody), logs[1], env=env, cwd=tmp_path) as hidden:
                assert hidden.wait(100) == 1, logs[1].read_text()
            assert f"{UNREACHED}good can't reach it" in logs[1].read_text()
            ask = on(0, "status", address, "--json")
            status = json.loads(subprocess.run(ask, env=env, capture_output=True, text=True, check=True).stdout)
    assert [member["name"] for member in status["members"]] == ["good"]
    assert {loss["name"]: loss["reason"] for loss in status["losses"]}["hidden"] == "good can't reach it"


def test_listening_everywhere_is_no_address_to_dial() -> None:
    with (
        atoll.Master() as master,
        pytest.raises(atoll.errors.Refused, match=r"'0\.0\.0\.0', port \d+, is not an address others could dial"),
    ):
        atoll.join(master.address, listen="0.0.0.0:0")


def test_one_that_is_alone_needs_to_be_reached_by_nobody() -> None:
    with atoll.Master() as master, atoll.join(master.address, advertise=f"127.0.0.1:{free_port()}") as group:
        assert group.world == 1
        client = StatusClient(master.address)
        assert len(client.ask().members) == 1
        client.close()
