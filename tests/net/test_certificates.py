"""Certificates for a group without a CA of its own: whole, private, made once, and good for nothing else."""

import builtins
import os
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest

from atoll.errors import InvalidConfig
from atoll.net import certificates
from atoll.net.guard import Guard
from atoll.net.tls import Tls
from tests.net.certified import certified


def test_a_new_folder_has_three_files_and_only_the_owner_reads_the_key(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    made = certificates.make(tmp_path / "new" / "certs")
    assert sorted(path.name for path in (tmp_path / "new" / "certs").iterdir()) == ["ca.pem", "cert.pem", "key.pem"]
    if os.name != "nt":
        assert Path(made.key).stat().st_mode & 0o777 == 0o600
    assert Guard(None, made).tls == made


def test_the_key_of_the_ca_is_thrown_away() -> None:
    made = certified()
    assert [Path(path).read_text().count("PRIVATE KEY") for path in (made.ca, made.cert, made.key)] == [0, 0, 2]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with pytest.raises(ssl.SSLError):
        context.load_cert_chain(made.ca, made.key)


@pytest.mark.parametrize("name", ["ca.pem", "cert.pem", "key.pem"])
def test_what_is_there_is_never_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("precious")
    with pytest.raises(InvalidConfig, match=f"{name} exists"):
        certificates.make(tmp_path)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "precious")]


def test_without_the_library_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imports = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.split(".")[0] == "cryptography":
            raise ImportError(name)
        return imports(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InvalidConfig, match=r"pip install 'atoll\[tls\]'"):
        certificates.make(tmp_path / "certs")
    assert not (tmp_path / "certs").exists()


def test_others_find_nothing_wrong_with_them() -> None:
    made = certified()
    argv = ["openssl", "verify", "-x509_strict", "-purpose", "sslclient", "-CAfile", str(made.ca), str(made.cert)]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20)
    except FileNotFoundError:
        pytest.skip("no openssl here")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("broken", ["cert", "key", "ca"])
@pytest.mark.parametrize("how", ["missing", "garbage", "of another"])
def test_files_that_are_no_good_are_named_in_one_line(tmp_path: Path, broken: str, how: str) -> None:
    good, other = certified(), certified("another CA")
    file = tmp_path / "file.pem"
    if how == "garbage":
        file.write_text("garbage")
    elif how == "of another":
        if broken == "ca":
            pytest.skip("that is for the other side to find out")
        file = Path(getattr(other, broken))
    with pytest.raises(InvalidConfig, match="can't use the") as error:
        Guard(None, Tls(**{**vars(good), broken: file}))
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_key_with_a_password_is_refused_and_nobody_is_asked_for_it(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    from cryptography.hazmat.primitives import serialization as s

    good = certified()
    key = s.load_pem_private_key(Path(good.key).read_bytes(), None)
    closed = s.BestAvailableEncryption(b"a password")
    (tmp_path / "key.pem").write_bytes(key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, closed))
    with pytest.raises(InvalidConfig, match="can't use"):
        Guard(None, Tls(good.cert, tmp_path / "key.pem", good.ca))
