"""Driver: the flags by which a command is of a group: where the token is, and the certificates."""

from dataclasses import dataclass
from pathlib import Path

from atoll.errors import InvalidConfig
from atoll.net.guard import read_token
from atoll.net.tls import Tls

_TLS = ("tls_cert", "tls_key", "tls_ca")


@dataclass(frozen=True, kw_only=True)
class Guarded:
    """Of every command that runs or reaches a master."""

    token_file: Path | None = None
    """Only who has this token gets in. The same file for all of the group; at least 16 bytes, better 64."""
    tls_cert: Path | None = None
    """Encrypt all that leaves a machine: our certificate, PEM."""
    tls_key: Path | None = None
    """Its key, PEM, without a password."""
    tls_ca: Path | None = None
    """The group's own CA, PEM: whose certificates are taken, and no others."""

    def token(self) -> bytes | None:
        """What the file holds. InvalidConfig: nothing useful."""
        return None if self.token_file is None else read_token(self.token_file)

    def tls(self) -> Tls | None:
        """All three, or none. InvalidConfig."""
        match self.tls_cert, self.tls_key, self.tls_ca:
            case Path() as cert, Path() as key, Path() as ca:
                return Tls(cert, key, ca)
            case None, None, None:
                return None
        missing = [f"--{name.replace('_', '-')}" for name in _TLS if getattr(self, name) is None]
        raise InvalidConfig(
            f"TLS needs a certificate, its key and the CA: {' and '.join(missing)} missing; "
            "make all three with:  atoll master --make-cert DIR"
        )

    def flags(self) -> list[str]:
        """The same again, for a process that we start."""
        named = {name: getattr(self, name) for name in ("token_file", *_TLS)}
        return [word for name, path in named.items() if path for word in (f"--{name.replace('_', '-')}", str(path))]
