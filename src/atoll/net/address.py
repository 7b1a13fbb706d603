"""Policy: HOST:PORT as people write it."""

from atoll.errors import InvalidConfig

Address = tuple[str, int]


def parse_address(address: str) -> Address:
    """ "host:port" (or "[v6]:port") in two parts. InvalidConfig: it is neither."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not _can_be_asked_for(host) or not port.isdecimal() or len(port) > 5 or int(port) >= 1 << 16:
        raise InvalidConfig(f"{address!r} is no address: write HOST:PORT")
    return host, int(port)


def spelled(address: Address) -> str:
    """The reverse."""
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _can_be_asked_for(host: str) -> bool:
    """May a resolver be asked for it? Python's raises errors of its own for parts of a name that are empty or long."""
    try:
        return bool(host.encode("idna")) and "\0" not in host
    except UnicodeError:
        return False
