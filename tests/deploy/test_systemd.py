"""The units: systemd itself finds nothing to say against them where it is installed; keys, hardening and restarts are
what the page promises. Their command lines are parsed by test_commands.py."""

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deploy.commands import DEPLOY
from tests.deploy.places import program

UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
KNOWN = {
    "Unit": {"Description", "Wants", "After", "StartLimitIntervalSec"},
    "Install": {"WantedBy"},
    "Service": {
        *("Type", "ExecStart", "Environment", "EnvironmentFile", "LoadCredential", "StateDirectory", "DynamicUser"),
        *("Restart", "RestartSec", "SuccessExitStatus", "RestartPreventExitStatus", "KillSignal", "KillMode"),
        *("TimeoutStopSec", "NoNewPrivileges", "CapabilityBoundingSet", "ProtectSystem", "ProtectHome", "PrivateTmp"),
        *("PrivateDevices", "ProtectClock", "ProtectHostname", "ProtectKernelLogs", "ProtectKernelModules"),
        *("ProtectKernelTunables", "ProtectControlGroups", "ProtectProc", "RestrictAddressFamilies", "UMask"),
        *("RestrictNamespaces", "RestrictRealtime", "RestrictSUIDSGID", "LockPersonality"),
        *("SystemCallArchitectures", "SystemCallFilter"),
    },
}
HARDENING = {"DynamicUser": "yes", "NoNewPrivileges": "yes", "ProtectSystem": "strict", "ProtectHome": "yes"}


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string((DEPLOY / "systemd" / name).read_text())
    return parser


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_it_has_only_known_keys_and_is_hardened(path: Path) -> None:
    parser = unit(path.name)
    assert set(parser.sections()) == KNOWN.keys()
    for section, keys in KNOWN.items():
        assert set(parser[section]) <= keys
    service = parser["Service"]
    assert {key: service[key] for key in HARDENING} == HARDENING
    assert service["LoadCredential"] == "token:/etc/atoll/token"
    assert parser["Install"]["WantedBy"] == "multi-user.target"  # comes back after a reboot


def test_the_master_always_comes_back_in_time_and_a_finished_peer_does_not() -> None:
    assert unit("atoll-master.service")["Service"]["Restart"] == "always"
    assert int(unit("atoll-master.service")["Service"]["RestartSec"]) < 30
    peer = unit("atoll-peer.service")["Service"]
    assert (peer["Restart"], peer["RestartPreventExitStatus"], peer["SuccessExitStatus"]) == ("on-failure", "2", "130")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_systemd_has_nothing_to_say_against_it(path: Path, tmp_path: Path) -> None:
    for name in ("atoll", "peer.sh"):
        program(tmp_path / "bin", name, "#!/bin/sh\n")
    copy = tmp_path / path.name
    copy.write_text(path.read_text().replace("/opt/atoll/bin/", f"{tmp_path / 'bin'}/"))
    done = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
