"""Claims: one owner at a time, and none that holds a run for ever."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from sweeps import leases


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "PERIOD", 0.05)
    monkeypatch.setattr(leases, "_watched", {})


def elsewhere(folder: Path, number: int = 1, **changes: object) -> None:
    """As if the owner were a process of another node."""
    path = folder / f"claim-{number}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "place": "another node", **changes}))


def test_one_owner_until_it_is_released(tmp_path: Path) -> None:
    first = leases.claim(tmp_path)
    assert first is not None
    assert leases.claim(tmp_path) is None
    first.release()
    second = leases.claim(tmp_path)
    assert second is not None
    assert second.number == 2
    assert not list(tmp_path.glob(".*"))


def test_a_dead_process_of_this_machine_is_seen_at_once(tmp_path: Path) -> None:
    held = leases.claim(tmp_path)
    assert held is not None
    path = tmp_path / "claim-1.json"
    owner = json.loads(path.read_text())
    path.write_text(json.dumps({**owner, "started": owner["started"] - 99}))  # its number is in use again
    assert leases.claim(tmp_path) is not None


def test_an_owner_elsewhere_is_left_alone_while_it_beats(tmp_path: Path) -> None:
    held = leases.claim(tmp_path)
    assert held is not None
    elsewhere(tmp_path)
    end = time.monotonic() + 3 * leases.PERIOD * leases.MISSED
    while time.monotonic() < end:
        assert leases.claim(tmp_path) is None
        time.sleep(0.02)
    held._end.set()  # it dies
    assert leases.claim(tmp_path) is None  # silence must be watched first
    end = time.monotonic() + 10
    while (second := leases.claim(tmp_path)) is None:
        assert time.monotonic() < end
        time.sleep(0.02)
    assert second.number == 2


def test_an_owner_that_was_taken_for_dead_notices(tmp_path: Path) -> None:
    held = leases.claim(tmp_path)
    assert held is not None
    (tmp_path / "claim-2.json").write_text("{}")
    end = time.monotonic() + 10
    while not held.lost:
        assert time.monotonic() < end
        time.sleep(0.02)


def test_of_many_that_take_a_dead_owners_place_one_succeeds(tmp_path: Path) -> None:
    for number in range(1, 11):
        owner = leases.claim(tmp_path)
        if number == 1:
            assert owner is not None
        (tmp_path / f"claim-{number}.json").write_text(json.dumps({"place": leases._place(), "pid": 2**30}))
        barrier, taken = threading.Barrier(8), []

        def take(barrier: threading.Barrier = barrier, taken: list[object] = taken) -> None:
            barrier.wait()
            taken.append(leases.claim(tmp_path))

        threads = [threading.Thread(target=take) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(one is not None for one in taken) == 1
    assert not list(tmp_path.glob(".*"))


def test_what_a_killed_namesake_left_does_not_make_a_second_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes of containers often have the same names; one was killed before it had tidied up."""
    first = leases.claim(tmp_path)
    assert first is not None
    first.release()
    claim_file = tmp_path / "claim-1.json"
    before = claim_file.read_text()
    os.link(claim_file, tmp_path / f".claim.{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}.tmp")

    def meanwhile(folder: Path, number: int) -> bool:  # somebody else is faster
        (folder / "claim-2.json").write_text("{}")
        return True

    monkeypatch.setattr(leases, "is_over", meanwhile)
    assert leases.claim(tmp_path) is None
    assert claim_file.read_text() == before


def test_what_attempts_have_cost_adds_up(tmp_path: Path) -> None:
    first = leases.claim(tmp_path, devices=8)
    assert first is not None
    first._started -= 100
    first.release("stopped")
    second = leases.claim(tmp_path, devices=2)
    assert second is not None
    assert second.before == pytest.approx(800, rel=0.01)
    second._started -= 10
    second.release()
    beat = leases.read_beat(tmp_path, 2)
    assert beat is not None
    assert beat["device_seconds"] == pytest.approx(820, rel=0.01)
    assert beat["ended"] == "done"


def test_turns_are_taken_one_after_the_other_and_leave_few_files(tmp_path: Path) -> None:
    inside = most = 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(15):
            with leases.turn(tmp_path):
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert leases.last_claim([path.name for path in tmp_path.iterdir()]) == 45
    assert len(list(tmp_path.iterdir())) <= 2 * (leases._KEPT + 2)
