"""Policy: what a master may say to a peer just now. A peer takes its words on trust; whoever carries them asks here
first, so that a master that is broken, or none of ours, costs one clear error.
"""

from atoll.group.api import Series, unvoted_parts
from atoll.group.messages import (
    Commence,
    Establish,
    Expel,
    Over,
    Probe,
    Refuse,
    Retold,
    ToPeer,
    Verdict,
    View,
    Welcome,
)
from atoll.group.peer import Peer, Running


def wrong_with(peer: Peer, message: ToPeer) -> str:
    """What no master of ours would say now; empty: it is well."""
    match message:
        case Welcome():
            return "welcomed this peer twice" if peer.id else ""
        case Expel() | Refuse() | Over():
            return ""
        case _ if not peer.id:
            return f"said {type(message).__name__} before a welcome"
        case Establish():
            return _wrong_ring(peer, message)
        case View():
            forming = peer.forming
            if forming is None or (message.epoch, message.ring) != (forming.epoch, tuple(s.id for s in forming.ring)):
                return f"said that epoch {message.epoch} stands, which nobody was to establish"
        case Probe():
            forming = peer.forming
            others = {seat.id for seat in forming.ring} - {peer.id} if forming else set()
            if forming and message.epoch == forming.epoch and message.to not in others:
                return f"had a link to {message.to} measured, which is no other member"
        case Commence():
            return _wrong_beginning(peer, message)
        case Verdict():
            return _wrong_verdict(peer, message)
        case Retold():
            return _wrong_verdict(peer, message.kept.verdict) if peer.asked(message.kept) else ""
    return ""


def _wrong_ring(peer: Peer, message: Establish) -> str:
    ids = [seat.id for seat in message.ring]
    if peer.id not in ids or len(set(ids)) < len(ids):
        return f"established a ring of {ids}, where this is peer {peer.id}"
    newest = max([0, *(view.epoch for view in peer.views), *([peer.forming.epoch] if peer.forming else [])])
    return "" if message.epoch > newest else f"established epoch {message.epoch} after {newest}"


def _under_way(peer: Peer, message: Commence | Verdict) -> Running | None:
    running = peer.running.get(Series(message.scope, message.tag))
    return None if peer.forming else running


def _wrong_beginning(peer: Peer, message: Commence) -> str:
    running = _under_way(peer, message)
    if running is None or running.run is not None or running.ticket.eager or not running.ticket.moves_data:
        return f"commenced what nobody waits for under tag {message.tag}"
    known = any(other.run == (message.seq, 0) for other in peer.running.values())
    if message.seq <= 0 or unvoted_parts(message.seq, 0) is not None or known:
        return f"gave an operation the number {message.seq}, which isn't free"
    return ""


def _wrong_verdict(peer: Peer, message: Verdict) -> str:
    running = _under_way(peer, message)
    if running is None:
        return f"decided what nobody asked under tag {message.tag}"
    if message.error:
        return ""
    ticket = running.ticket
    world = len(ticket.members or peer.views[-1].ring)
    if len(message.payloads) != (1 if ticket.kind == "sync" else world):
        return f"decided for {world} peers with {len(message.payloads)} payloads"
    moves = ticket.moves_data and world > 1 and (ticket.kind != "sync" or running.run is not None)
    return "decided before the data had moved" if moves and not running.reported else ""
