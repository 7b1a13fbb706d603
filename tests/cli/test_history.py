"""What a run's events add up to."""

import json
from typing import Any

import pytest

from atoll.cli.history import History


class Run:
    """Tells a history what peers would say; each call is one second later."""

    def __init__(self, steps: int = 100) -> None:
        self.history = History(steps)
        self.now = 1000.0
        self.told: list[str] = []

    def say(self, kind: str, peer: str, **fields: Any) -> str | None:
        self.now += 1.0
        sentence = self.history.add({"event": kind, "peer": peer, "at": self.now, **fields})
        self.told += [sentence] if sentence else []
        return sentence

    def join(self, *peers: str, epoch: int = 1, revision: int = 0, received: int = 0) -> None:
        for rank, peer in enumerate(peers):
            where = {"world": len(peers), "rank": rank, "epoch": epoch}
            self.say("joined", peer, id=rank, **where)
            self.say("synced", peer, revision=revision, received=received, hash=f"h{revision}", **where)

    def step(self, peer: str, step: int, *, epoch: int = 1, loss: float | None = 1.0, **fields: Any) -> None:
        counts = {"tokens": 10, "seconds": 1.0, "waited": 0.0, "sent": 3 * step, "ddp": 60 * step}
        self.say(
            "step", peer, **{"step": step, "loss": loss, "world": 2, "rank": 0, "epoch": epoch, **counts, **fields}
        )


@pytest.fixture
def run() -> Run:
    return Run()


def test_the_summary_of_a_run_with_a_loss_and_a_newcomer(run: Run) -> None:
    run.join("a", "b")
    run.say("evaluated", "a", step=0, loss=5.5)
    run.step("a", 1, revision=1, hash="h1")
    run.step("b", 1, revision=1, hash="h1")
    run.say("killed", "b")
    run.say("lost", "a", message="lost b (connection lost); now epoch 2, world 1: retry", world=1, epoch=2)
    run.say("joined", "c", id=3, world=2, rank=1, epoch=3)
    run.say("synced", "c", revision=1, received=500, hash="h1", world=2, rank=1, epoch=3)
    run.step("a", 2, epoch=3)
    run.step("c", 2, epoch=3)
    run.say("evaluated", "a", step=2, loss=4.0)
    for peer in ("a", "c"):
        run.say("done", peer, step=2, hash="h2", sent=9, ddp=180)
    assert run.history.summary() == {
        "loss_before": 5.5,
        "loss_after": 4.0,
        "steps": 2,
        "tokens": 40,
        "bytes_sent": 9 + 3 + 9,
        "bytes_ddp": 180 + 60 + 180,
        "ratio": 20.0,
        "failures_survived": 1,
        "joins": 1,
        "hashes_compared": 3,  # at the start, after step 1, at the end; what c received nobody else told in that epoch
        "hashes_equal": True,
    }
    json.dumps(run.history.summary(), allow_nan=False)
    assert {name: peer.state for name, peer in run.history.peers.items()} == {"a": "done", "b": "killed", "c": "done"}
    assert run.history.marks() == {"b killed": 1, "c joined": 1}


def test_an_untold_run_has_a_summary_too(run: Run) -> None:
    summary = run.history.summary()
    assert (summary["steps"], summary["ratio"], summary["loss_before"], summary["hashes_equal"]) == (
        0,
        None,
        None,
        True,
    )
    assert run.history.loss_curve() == {}
    assert run.history.seconds_left() is None
    assert run.history.agreement() is None


@pytest.mark.parametrize(
    "event", [{}, {"event": "listening", "address": "a:1"}, {"event": "weather", "peer": "a"}, {"event": "step"}]
)
def test_what_is_unknown_is_passed_over(run: Run, event: dict[str, Any]) -> None:
    assert run.history.add(event) is None
    assert run.history.peers == {}


def test_unknown_fields_are_passed_over(run: Run) -> None:
    run.step("a", 1, colour="blue")
    assert run.history.step == 1


def test_the_loss_curve_is_the_mean_over_the_peers_that_took_the_step(run: Run) -> None:
    run.step("a", 2, loss=3.0)
    run.step("a", 1, loss=4.0)
    run.step("b", 1, loss=6.0)
    run.step("c", 1, loss=None)
    run.step("c", 3, loss=float("nan"))
    assert run.history.loss_curve() == {1: 5.0, 2: 3.0}
    assert list(run.history.loss_curve()) == [1, 2]


def test_speed_and_loss_of_a_peer_follow_its_last_steps(run: Run) -> None:
    for step in range(1, 101):  # one a second
        run.step("a", step, loss=9.0 if step <= 80 else 2.0)
    peer = run.history.peers["a"]
    assert peer.smoothed_loss == 2.0
    assert peer.tokens_per_s == pytest.approx(10.0)
    run.now += 10.0
    run.step("a", 101)
    assert peer.tokens_per_s == pytest.approx(20 * 10 / 30, rel=0.1)


def test_the_time_left_follows_the_pace(run: Run) -> None:
    run.say("resumed", "a", step=60)
    for step in (61, 62, 63):  # one a second
        run.step("a", step)
    assert run.history.seconds_left() == pytest.approx(37.0)
    run.step("a", 100)
    assert run.history.seconds_left() is None


def test_the_farthest_peer_tells_the_step(run: Run) -> None:
    run.step("a", 5)
    run.step("b", 3)
    assert run.history.step == 5


class TestStates:
    def test_different_states_at_one_revision_are_found(self, run: Run) -> None:
        for peer, digest in (("a", "h"), ("b", "h"), ("c", "other")):
            run.step(peer, 20, revision=20, hash=digest)
        run.step("a", 40, revision=40, hash="x")
        assert run.history.disagreements() == [20]
        assert run.history.summary()["hashes_equal"] is False

    def test_a_difference_at_the_end_is_found(self, run: Run) -> None:
        for peer, digest in (("a", "h"), ("b", "other")):
            run.say("done", peer, step=100, hash=digest, sent=0, ddp=0)
        assert run.history.disagreements() == [100]

    def test_after_a_loss_what_was_in_flight_is_settled_under_the_same_revision(self, run: Run) -> None:
        run.step("a", 20, revision=20, hash="in flight")
        run.say("synced", "a", revision=20, received=0, hash="settled", world=1, rank=0, epoch=2)
        assert run.history.disagreements() == []

    def test_the_newest_agreement_waits_for_a_second_peer(self, run: Run) -> None:
        for peer in ("a", "b"):
            run.step(peer, 20, revision=20, hash="h20")
        run.step("a", 40, revision=40, hash="h40")
        agreement = run.history.agreement()
        assert agreement is not None
        assert (agreement.revision, agreement.hash, agreement.peers) == (20, "h20", 2)


class TestLosses:
    def test_a_peer_that_went_is_survived_once_others_speak_of_a_later_epoch(self, run: Run) -> None:
        run.join("a", "b")
        run.say("failed", "b", message="the disk is full")
        assert not run.history.survived("b")
        run.step("a", 1, epoch=1)
        assert not run.history.survived("b")
        run.step("a", 2, epoch=2)
        assert run.history.survived("b")
        assert run.history.peers["b"].reason == "the disk is full"

    def test_who_leaves_a_server_and_comes_to_it_counts_as_the_server_says(self, run: Run) -> None:
        for world, who in enumerate("ab", start=1):
            run.say("came", "server", who=who, message=f"{who} joined", world=world, epoch=world)
        assert run.history.joins() == 0
        run.step("a", 1)
        run.say("went", "server", who="b", message="b", world=1, epoch=3)
        run.say("killed", "b")
        run.say("went", "server", who="a", message="a", world=0, epoch=4)
        assert run.history.failures_survived() == 1
        run.say("came", "server", who="a", message="a is back", world=1, epoch=5)
        assert run.history.joins() == 1

    def test_a_failure_nobody_survives_does_not_count(self, run: Run) -> None:
        run.join("a")
        run.say("failed", "a", message="no")
        assert run.history.failures_survived() == 0

    def test_one_that_never_got_in_is_no_loss(self, run: Run) -> None:
        run.say("started", "b", pid=7)
        run.say("failed", "b", message="no")
        run.join("a")
        run.step("a", 1)
        assert run.history.failures_survived() == 0

    def test_an_expelled_peer_that_joins_again_trains_on(self, run: Run) -> None:
        run.join("a", "b")
        run.step("a", 1)
        run.say("expelled", "b", message="the group went on without this peer")
        assert run.history.peers["b"].state == "lost"
        run.say("joined", "b", id=9, world=2, rank=1, epoch=3)
        run.step("a", 2, epoch=3)
        assert run.history.peers["b"].state == "training"
        assert (run.history.failures_survived(), run.history.joins()) == (1, 1)

    def test_those_there_at_the_start_are_no_late_joiners_however_their_words_arrive(self, run: Run) -> None:
        run.join("a")
        run.step("a", 1)
        run.join("b")
        assert run.history.joins() == 0

    def test_the_last_words_of_a_killed_peer_do_not_revive_it(self, run: Run) -> None:
        run.join("a", "b")
        run.say("killed", "b")
        run.step("b", 1)
        run.say("joined", "b", id=1, world=2, rank=1, epoch=1)
        run.say("failed", "b", message="too")
        assert run.history.peers["b"].state == "killed"
        assert run.history.peers["b"].step == 1

    def test_all_losses_are_told_once(self, run: Run) -> None:
        for peer in ("a", "b"):
            cause = "lost c (connection lost: reset), d (left)"
            run.say("lost", peer, message=f"{cause}; now epoch 2, world 3: retry", world=3, epoch=2)
        assert run.told == ["a: lost c (connection lost: reset), d (left); the group goes on with 3"]

    def test_a_group_that_shrinks_without_a_word_is_told_once(self, run: Run) -> None:
        run.join("a", "b", "c")
        run.told.clear()
        for rank, peer in enumerate(("a", "b")):
            run.say("synced", peer, revision=5, received=0, hash="h", world=2, rank=rank, epoch=2)
        assert run.told == ["the group goes on with 2"]

    def test_a_group_that_grows_is_no_loss(self, run: Run) -> None:
        run.join("a", "b")
        run.told.clear()
        for rank, peer in enumerate(("a", "b")):
            run.say("synced", peer, revision=5, received=0, hash="h", world=3, rank=rank, epoch=2)
        assert run.told == []


@pytest.mark.parametrize(
    ("kind", "fields", "sentence"),
    [
        ("joined", {"id": 1, "world": 4, "rank": 2, "epoch": 1}, "a joined: rank 2 of 4"),
        ("saved", {"path": "r/step-000000200.safetensors", "step": 200}, "checkpoint saved at step 200"),
        ("saved", {"path": "r/model", "step": 400}, "model saved: r/model"),
        ("killed", {}, "a was killed (SIGKILL) at step 0"),
        ("failed", {"message": "the disk is full"}, "a failed: the disk is full"),
        ("late", {}, "a came too late: the training was over"),
        ("resumed", {"step": 60}, "resumed from the checkpoint of step 60"),
        ("started", {"pid": 7}, None),
        ("done", {"step": 9, "hash": "h", "sent": 1, "ddp": 2}, None),
    ],
)
def test_what_is_worth_a_sentence(run: Run, kind: str, fields: dict[str, Any], sentence: str | None) -> None:
    assert run.say(kind, "a", **fields) == sentence


def test_a_checkpoint_is_remembered_and_a_model_is_none(run: Run) -> None:
    run.say("saved", "a", path="r/model", step=400)
    assert (run.history.checkpoint, run.history.model_saved) == (None, True)
    run.say("saved", "a", path="r/step-000000200.safetensors", step=200)
    assert run.history.checkpoint == 200


def test_a_refusal_is_told_once_of_all_who_report_it(run: Run) -> None:
    run.join("a", "b")
    for peer in ("a", "b"):
        run.say("refused", peer, step=4, who=1)
    run.say("refused", "a", step=8, who=0)
    refusals = [sentence for sentence in run.told if "no number" in sentence]
    assert [sentence.split(":")[0] for sentence in refusals] == ["step 4", "step 8"]
    assert "rank 1" in refusals[0]
    assert [run.history.peers[name].rank for name in "ab"] == [0, 1]
