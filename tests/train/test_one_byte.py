"""The strategy one-byte: as plain NumPy has it, and among peers that come and go, in virtual time."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from atoll.errors import Expelled, InvalidConfig, InvalidData, Mismatch
from atoll.group.local import LocalGroup
from atoll.rng import normal
from atoll.train.loop import Trainer
from atoll.train.one_byte.code import ByteCode
from atoll.train.one_byte.rounds import NAME, read
from atoll.train.one_byte.settings import OneByteSettings
from atoll.train.one_byte.strategy import OneByte, _note
from atoll.train.settings import TrainSettings
from tests.train.tiny import STEP_S, Peer, Run, check_agreement, group_of, tiny


def settings(steps: int = 12, **changes: Any) -> TrainSettings:
    return tiny(strategy="one-byte", steps=steps, one_byte=OneByteSettings(**{"lr": 1e-3, "hash_every": 4, **changes}))


def strategy_of(peer: Peer) -> OneByte:
    found = peer.trainer.strategy
    assert isinstance(found, OneByte)
    return found


def check_finished(peers: list[Peer]) -> None:
    """All took all rounds and ended with the same parameters and the same log."""
    for peer in peers:
        assert peer.error is None, peer.error
        assert peer.done, f"{peer.process.name} did not finish: {peer.log[-1]}"
        assert peer.last("done")["step"] == peer.trainer.settings.steps
        assert peer.last("done")["hash"] == peers[0].last("done")["hash"]
        assert strategy_of(peer).rounds == strategy_of(peers[0]).rounds
        assert strategy_of(peer)._owed == []
    check_agreement(peers)


# -- the algorithm -----------------------------------------------------------------------------------------------------


class Quadratic:
    """A bowl: loss = |target - x|**2 / 2 for each row of the batch, averaged."""

    def __init__(self, d: int = 20, **changes: Any) -> None:
        self.x = torch.zeros(d)
        self.strategy = OneByte({"x": self.x}, self.loss, self.x.zero_, OneByteSettings(**changes), seed=5)
        self.strategy.enter(LocalGroup())

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        return ((batch - self.x) ** 2).sum(1).mean() / 2


def reference(target: np.ndarray, rounds: int, lr: float, epsilon: float, samples: int) -> np.ndarray:
    """The sheet in plain NumPy, on whole vectors in float64, for one peer; the grid is one that begins at zero."""
    grid = 2.0 ** (np.floor(np.log2(8 * epsilon)) + 1 - 22)
    code, x = ByteCode(), np.zeros(target.shape[1])

    def step(noise: np.ndarray, size: float) -> np.ndarray:
        return np.rint(noise * np.float32(size / grid)).astype(np.float64) * grid

    def loss(at: np.ndarray, rows: np.ndarray) -> float:
        return float(((torch.from_numpy(rows) - torch.from_numpy(at.astype(np.float32))) ** 2).sum(1).mean() / 2)

    for t in range(rounds):
        moves = np.zeros_like(x)
        for k, rows in enumerate(np.array_split(target, samples)):
            z = normal((5, "one-byte", t, 0, k), x.size)
            g = (loss(x + step(z, epsilon), rows) - loss(x - step(z, epsilon), rows)) / (2 * epsilon)
            spoken = code.decode(code.encode([g], np.random.default_rng(0)))[0]
            moves += step(z, -lr / np.sqrt(samples) * spoken)
        x = x + moves
        while np.abs(x).max() > 2**23 * grid:
            grid *= 2
            x = np.rint(x / grid) * grid
    return x.astype(np.float32)


@pytest.mark.parametrize("samples", [1, 3])
def test_it_is_what_plain_numpy_makes_of_the_sheet(samples: int) -> None:
    bowl = Quadratic(lr=1e-2, samples=samples)
    target = np.random.default_rng(0).normal(0, 1, (samples, 20)).astype(np.float32)
    for _ in range(30):
        bowl.strategy.step(torch.from_numpy(target))
    np.testing.assert_array_equal(bowl.x.numpy(), reference(target, 30, 1e-2, 1e-3, samples))


def test_it_descends() -> None:
    bowl = Quadratic(lr=2e-2)
    target = torch.ones(1, 20)
    before = float(bowl.loss(target))
    for _ in range(300):
        bowl.strategy.step(target)
    assert float(bowl.loss(target)) < 0.05 * before


def test_the_mean_of_gradients_along_noise_is_the_gradient() -> None:
    bowl, n = Quadratic(), 2000
    target = torch.linspace(-1, 1, 20)[None]
    found = np.zeros(20)
    for t in range(n):
        _, (along,) = bowl.strategy.estimate([target], t, 0)
        found -= along * normal((5, "one-byte", t, 0, 0), 20)
    bowl.strategy.weights.perturb(bowl.strategy._owed)
    truth = target[0].numpy()
    assert found @ truth / np.linalg.norm(found) / np.linalg.norm(truth) > 0.99
    assert not bowl.x.any()


def test_no_gradient_is_ever_made() -> None:
    run = group_of(1, settings()).run()
    check_finished(run.peers)
    assert all(not p.requires_grad and p.grad is None for p in run.peers[0].trainer.model.parameters())


def test_a_loss_that_is_no_number_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    bowl = Quadratic(lr=1e-2)
    bowl.strategy.step(torch.full((1, 20), float("nan")))
    assert bowl.strategy.rounds[0].said == b"\0"
    assert not bowl.x.any()
    assert "no number at round 0" in caplog.text


def test_an_error_leaves_the_parameters_as_they_were() -> None:
    bowl = Quadratic(lr=1e-2)
    bowl.strategy.step(torch.ones(1, 20))
    before = bowl.strategy.weights.digest()

    def broken(batch: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt

    bowl.strategy.loss = broken
    with pytest.raises(KeyboardInterrupt):
        bowl.strategy.step(torch.ones(1, 20))
    assert bowl.strategy.weights.digest() == before


def test_a_liar_moves_nobody_far_where_gradients_are_clipped() -> None:
    bowl = Quadratic(lr=1.0, clip=5.0, samples=4)
    from atoll.train.one_byte.rounds import Round

    said = ByteCode().encode([1.0, -1.0, 1.0, 1e9], np.random.default_rng(0))
    sizes = [abs(move.size) * 2 for move in bowl.strategy._moves(0, Round(1, said))]
    assert sizes == pytest.approx([1.0, 1.0, 1.0, 5.0])


def test_only_what_is_chosen_is_trained() -> None:
    run = group_of(1, settings(trainable="*norm*, lm_head.*")).run()
    strategy = strategy_of(run.peers[0])
    assert strategy.weights.tensors
    assert all("norm" in name for name in strategy.weights.tensors)


def test_signs_do_as_well() -> None:
    bowl = Quadratic(lr=2e-2, noise="signs")
    for _ in range(300):
        bowl.strategy.step(torch.ones(1, 20))
    assert float(bowl.loss(torch.ones(1, 20))) < 0.5


# -- among peers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [1, 2])
def test_all_hold_the_same_bits_and_send_a_byte_per_gradient(samples: int) -> None:
    run = group_of(3, settings(samples=samples)).run()
    check_finished(run.peers)
    hashes = run.peers[0].hashes()
    assert len(set(hashes.values())) == len(hashes) == 12
    assert all(peer.hashes() == hashes for peer in run.peers)
    digests = 2 * 16  # before rounds 4 and 8
    assert [p.last("done")["sent"] for p in run.peers] == [12 * samples + digests] * 3
    assert all(len(each.said) == 3 * samples for each in strategy_of(run.peers[0]).rounds)


def test_peers_look_at_different_texts() -> None:
    run = group_of(2, settings()).run()
    losses = [[e["loss"] for e in peer.events("step")] for peer in run.peers]
    assert losses[0] != losses[1]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("catch_up", ["replay", "fetch"])
@pytest.mark.parametrize("seed", range(12))
def test_a_run_outlives_a_crash_and_grows_by_newcomers(seed: int, catch_up: str) -> None:
    dice = np.random.default_rng(seed)
    run = group_of(4, settings(steps=40), seed=seed, jitter=2.0, tie_break=seed)
    run.at(dice.uniform(0.02, 0.15), run.peers[seed % 4].process.crash)
    late = settings(steps=40, catch_up=catch_up)
    newcomers = [run.start(delay_s=dice.uniform(0.05, 0.2), settings=late) for _ in range(2)]
    run.run()
    survivors = [p for p in run.peers if not p.process.dead]
    check_finished(survivors)
    tensors = sum(t.numel() * 4 for t in strategy_of(survivors[0]).weights.tensors.values())
    for newcomer in newcomers:
        entered = newcomer.events("synced")[0]
        assert entered["revision"] > 0
        assert (entered["received"] >= tensors) == (catch_up == "fetch")


def test_who_slept_too_long_comes_back_and_replays_what_it_missed() -> None:
    run = group_of(3, settings(steps=100, catch_up="replay"))
    run.at(0.1, run.peers[1].process.freeze)
    run.at(3.7, run.peers[1].process.thaw)
    run.run()
    check_finished(run.peers)
    assert len(run.peers[1].events("expelled")) == 1
    assert run.peers[1].events("synced")[-1]["received"] < 100


def test_no_window_of_text_is_used_twice() -> None:
    run = group_of(3, settings(steps=40))
    run.start(delay_s=0.05)
    used: list[int] = []
    for peer in run.peers:

        def recorded(*args: Any, indices: Any = peer.trainer.shards.indices) -> Any:
            used.extend(windows := indices(*args).tolist())
            return np.array(windows)

        peer.trainer.shards.indices = recorded  # type: ignore[method-assign]
    run.at(0.12, run.peers[0].process.crash)
    run.run()
    check_finished(run.peers[1:])
    again = len(used) - len(set(used))
    assert again <= 4 * 2  # of the round that the crash undid


def corrupted_at(run: Run, peer: Peer, seconds: float) -> None:
    def corrupt() -> None:
        next(iter(strategy_of(peer).weights.tensors.values())).view(-1)[3] += 0.25

    run.at(seconds, corrupt)


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("which", [0, 1])
def test_corrupted_parameters_are_found_and_mended(world: int, which: int, caplog: pytest.LogCaptureFixture) -> None:
    """Of three the others are right; of two each looks it up in the log."""
    run = group_of(world, settings(steps=20))
    corrupted_at(run, run.peers[which], 5.5 * STEP_S)
    run.run()
    check = [p.hashes()[20] for p in run.peers]
    assert len(set(check)) == 1
    assert [p.error for p in run.peers] == [None] * world
    assert "parameters" in caplog.text
    wrong = [r for r in range(1, 21) if len({p.hashes()[r] for p in run.peers}) > 1]
    assert wrong
    assert max(wrong) <= 9  # the next comparison is before round 8
    replayed = Trainer(run.settings, run.text, lambda event, **about: None)
    replayed.strategy._read = strategy_of(run.peers[0]).rounds
    replayed.strategy.replay()
    assert replayed.strategy.weights.digest() == strategy_of(run.peers[0]).weights.digest()


def test_who_has_another_base_is_refused_with_both_hashes() -> None:
    run = group_of(2, settings(steps=40))
    other = run.start(delay_s=0.05)
    strategy_of(other).base = "0" * 32
    run.run()
    assert isinstance(other.error, InvalidConfig)
    assert f"base {strategy_of(run.peers[0]).base} there, {'0' * 32} here" in str(other.error)
    check_finished(run.peers[:2])


@pytest.mark.parametrize("said", [b"", b"no note", msgspec.msgpack.encode([1, 1, 1 << 50, b""])])
def test_a_peer_that_does_not_say_how_long_its_log_is_is_named(said: bytes) -> None:
    with pytest.raises(Mismatch, match="what a peer says of its log can't be read"):
        _note(said)


def test_who_has_other_settings_is_refused() -> None:
    run = group_of(2, settings(steps=40))
    other = run.start(delay_s=0.05, settings=settings(steps=40, lr=0.5))
    run.run()
    assert isinstance(other.error, InvalidConfig)
    assert "something else: one_byte.lr 0.001 there, 0.5 here; join" in str(other.error)


# -- the log -----------------------------------------------------------------------------------------------------------


def test_base_and_log_are_the_whole_state(tmp_path: Any) -> None:
    run = Run(settings(steps=30))
    for i in range(3):
        run.start(min_world=3, folder=tmp_path / str(i))
    run.at(0.1, run.peers[2].process.crash)
    run.run()
    check_finished(run.peers[:2])
    about, rounds = read(tmp_path / "0" / "checkpoint")
    assert rounds == strategy_of(run.peers[0]).rounds
    head = (tmp_path / "0" / "checkpoint" / NAME).stat().st_size - sum(12 + len(each.said) for each in rounds)
    assert head < 2000
    assert about["base"] == strategy_of(run.peers[0]).base
    again = Run(run.settings).start(folder=tmp_path / "0", resume=True)
    again.process.world.run()
    assert again.last("done")["hash"] == run.peers[0].last("done")["hash"]
    assert again.events("step") == []


def test_a_resumed_run_is_the_straight_run_bit_for_bit(tmp_path: Any) -> None:
    straight = group_of(2, settings(steps=24)).run()
    first = Run(replace(settings(steps=24), save_every=10))
    for i in range(2):
        first.start(min_world=2, folder=tmp_path / str(i))
    first.at(14.5 * STEP_S, lambda: [p.process.crash() for p in first.peers])
    first.run()
    assert len(read(tmp_path / "0" / "checkpoint")[1]) == 10
    second = Run(replace(settings(steps=24), save_every=10))
    for i in range(2):
        second.start(min_world=2, folder=tmp_path / str(i), resume=i == 0)
    second.run()
    check_finished(second.peers)
    # save_every is part of what both must agree on, so it is in no hash but that of when to save
    assert strategy_of(second.peers[0]).rounds == strategy_of(straight.peers[0]).rounds
    assert strategy_of(second.peers[0]).weights.digest() == strategy_of(straight.peers[0]).weights.digest()


def test_when_the_first_is_lost_the_next_goes_on_with_the_log(tmp_path: Any) -> None:
    run = Run(replace(settings(steps=40), save_every=8))
    for i in range(3):
        run.start(min_world=3, folder=tmp_path / str(i))
    run.at(0.2, run.peers[0].process.crash)
    run.run()
    check_finished(run.peers[1:])
    assert read(tmp_path / "1" / "checkpoint")[1] == strategy_of(run.peers[1]).rounds
    assert not (tmp_path / "2").exists()


def test_two_that_resume_from_different_logs_agree_on_the_longer(tmp_path: Any) -> None:
    for name, world, rounds in (("short", 1, 8), ("long", 2, 16)):
        before = Run(replace(settings(steps=40), save_every=8))
        for i in range(world):
            before.start(min_world=world, folder=tmp_path / f"{name}-{i}", also=_stopping_at(rounds))
        before.run()
    run = Run(replace(settings(steps=40), save_every=8))
    for name in ("short-0", "long-0"):
        run.start(min_world=2, folder=tmp_path / name, resume=True)
    run.run()
    check_finished(run.peers)
    assert [p.events("resumed")[0]["step"] for p in run.peers] == [8, 16]
    assert [p.events("synced")[0]["revision"] for p in run.peers] == [16, 16]


def _stopping_at(rounds: int) -> Any:
    def also(event: str, **about: Any) -> None:
        if event == "step" and about["step"] == rounds + 1:
            raise InvalidData("stop here")

    return also


@pytest.mark.parametrize("damage", ["flipped", "cut", "another run"])
def test_a_log_that_can_not_be_gone_on_from_is_refused_in_one_line(damage: str, tmp_path: Any) -> None:
    Run(settings()).start(folder=tmp_path).process.world.run()
    path = tmp_path / "checkpoint" / NAME
    whole = bytearray(path.read_bytes())
    if damage == "flipped":
        whole[-40] ^= 1
    elif damage == "cut":
        whole = whole[:100]
    path.write_bytes(whole)
    peer = Run(settings(lr=0.5 if damage == "another run" else 1e-3)).start(folder=tmp_path, resume=True)
    peer.process.world.run()
    assert isinstance(peer.error, InvalidData | InvalidConfig)
    assert len(str(peer.error).splitlines()) == 1
    assert ("same flags" if damage == "another run" else "take another copy") in str(peer.error)


# -- what can be told --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lr": 0.0}, "--one-byte.lr must be above 0"),
        ({"lr": float("nan")}, "--one-byte.lr must be above 0"),
        ({"epsilon": -1.0}, "--one-byte.epsilon must be above 0"),
        ({"reference": float("inf")}, "--one-byte.reference must be above 0 and finite"),
        ({"link_mbit": 0.0}, "--one-byte.link-mbit must be above 0"),
        ({"samples": 0}, "--one-byte.samples must be from 1 to 1024"),
        ({"samples": 2000}, "--one-byte.samples must be from 1 to 1024"),
        ({"clip": -1.0}, "--one-byte.clip must be at least 0"),
        ({"hash_every": 0}, "--one-byte.hash-every must be at least 1"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name_and_range(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        tiny(strategy="one-byte", one_byte=OneByteSettings(**changes))
    assert words in str(caught.value)


def test_a_batch_that_can_not_be_shared_is_refused() -> None:
    with pytest.raises(InvalidConfig, match=r"--batch 2 can't be shared by --one-byte\.samples 3"):
        settings(samples=3)


@pytest.mark.parametrize("what", [{"task": "docstrings"}, {"model": replace(tiny().model, name="smollm2")}])
def test_tasks_and_published_models_are_for_this_strategy(what: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfig, match="is for --strategy one-byte, not ddp"):
        tiny(strategy="ddp", **what)


def test_a_pattern_that_names_nothing_is_refused() -> None:
    with pytest.raises(InvalidConfig, match=r"--one-byte.trainable 'head\.\*' names no parameter; there are: model\."):
        Trainer(settings(trainable="head.*"), Run(tiny()).text, lambda event, **about: None)


# -- whatever happens --------------------------------------------------------------------------------------------------


def churned(seed: int, folder: Any) -> Run:
    """Peers that crash, sleep and arrive at random moments; seeds as in `tests/train/churn.py`."""
    dice = np.random.default_rng(seed)
    told = replace(
        settings(steps=int(dice.integers(10, 40)), samples=int(dice.integers(1, 3)), hash_every=5),
        save_every=int(dice.choice([0, 4, 7])),
    )
    latency_s = float(dice.choice([50e-6, 5e-3]))
    run = Run(told, seed, latency_s=latency_s, jitter=float(dice.choice([0, 1, 5])))
    n, lasts_s = int(dice.integers(2, 5)), (0.012 + 4 * latency_s) * told.steps
    for i in range(n):
        run.start(delay_s=dice.random() * 1e-3, min_world=n, folder=folder / str(i))
    for i in range(int(dice.integers(0, 4))):
        ways = [replace(told, one_byte=replace(told.one_byte, catch_up=way)) for way in ("auto", "replay", "fetch")]
        late = ways[int(dice.integers(0, 3))]
        run.start(delay_s=dice.random() * lasts_s, folder=folder / f"late-{i}", settings=late)
    for peer in dice.permutation(np.array(run.peers, object))[: int(dice.integers(0, n))]:
        at = 0.05 + 50 * latency_s + dice.random() * lasts_s  # once all that wait for each other have begun
        if dice.random() < 0.6:
            run.at(at, peer.process.crash)
        else:
            run.at(at, peer.process.freeze)
            run.at(at + float(dice.choice([0.001, 0.05, 3.5, 4.0])), peer.process.thaw)
    return run.run()


@pytest.mark.sampled(2)
@pytest.mark.parametrize("seed", range(102))
def test_a_run_survives_what_its_seed_brings(seed: int, tmp_path: Any) -> None:
    run = churned(seed, tmp_path / str(seed))
    check_agreement(run.peers)
    ends: dict[int, set[tuple[str, int]]] = {}
    for peer in run.peers:
        if peer.process.dead or (isinstance(peer.error, Expelled) and not peer.events("joined")):
            continue
        assert peer.error is None, f"seed {seed}: {peer.error!r}"
        assert peer.done, f"seed {seed}: {peer.log[-1]}"
        rounds = strategy_of(peer).rounds
        assert len(rounds) == run.settings.steps
        end = peer.last("done")["hash"], hash(tuple(rounds))
        ends.setdefault(peer.last("synced")["epoch"], set()).add(end)
        if peer.events("saved") and peer.last("saved")["step"] == run.settings.steps:
            name = Path(peer.last("saved")["path"]).parent.name
            assert read(tmp_path / str(seed) / name / "checkpoint")[1] == rounds
    assert all(len(end) == 1 for end in ends.values()), f"seed {seed}: final states differ: {ends}"
    assert ends
