"""Policy: HOST:PORT as people write it."""

from atoll.errors import InvalidConfig

Address = tuple[str, int]


def parse_address(address: str) -> Address:
    """ "host:port" (or "[v6]:port") in two parts. InvalidConfig: it is neither."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 <= int(port) < 1 << 16:
        raise InvalidConfig(f"{address!r} is no address: write HOST:PORT")
    return host.strip("[]"), int(port)


def spelled(address: Address) -> str:
    """The reverse."""
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
