"""Rows on their way to the leader's folder: whatever is lost, repeated or late, the files become equal."""

import random
from pathlib import Path

import pytest

from loadtest.run import shipping as ship
from loadtest.run.messages import RowBatch
from loadtest.run.shipping import Receiver, Shipper


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "here").mkdir()
    return tmp_path / "here" / "requests-1.jsonl"


@pytest.fixture
def there(tmp_path: Path) -> Path:
    (tmp_path / "there").mkdir()
    return tmp_path / "there" / "requests-1.jsonl"


def lines(count: int) -> bytes:
    return b"".join(b'{"row": %d}\n' % number for number in range(count))


def ship_all(shipper: Shipper, receiver: Receiver) -> None:
    while batch := shipper.next_batch():
        shipper.take(receiver.take(batch))


def test_a_growing_file_arrives_whole(here: Path, there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ship, "BATCH_BYTES", 1000)
    shipper, receiver = Shipper(here), Receiver(there.parent)
    for count in (50, 500, 501):
        here.write_bytes(lines(count))
        ship_all(shipper, receiver)
        assert there.read_bytes() == lines(count)
        assert shipper.undelivered_bytes == 0


def test_batches_hold_whole_lines(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ship, "BATCH_BYTES", 1000)
    here.write_bytes(lines(500))
    batch = Shipper(here).next_batch()
    assert batch is not None
    assert batch.data.endswith(b"\n")
    assert len(batch.data) <= 1000


@pytest.mark.parametrize("seed", range(20))
def test_lost_repeated_and_late_messages_change_nothing(
    here: Path, there: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(ship, "BATCH_BYTES", 200)
    monkeypatch.setattr(ship, "RESEND_S", 0.0)
    rng = random.Random(seed)
    here.write_bytes(lines(300))
    shipper, receiver, late = Shipper(here), Receiver(there.parent), list[RowBatch]()
    for _ in range(5000):
        if not shipper.undelivered_bytes:
            break
        batch = shipper.next_batch()
        assert batch is not None
        late.append(batch)
        for one in rng.sample(late, k=min(len(late), rng.randrange(3))):
            receipt = receiver.take(one)
            if rng.random() < 0.5:
                shipper.take(receipt)
    assert there.read_bytes() == lines(300)


def test_nothing_is_sent_while_a_batch_is_on_its_way(here: Path) -> None:
    here.write_bytes(lines(3))
    shipper = Shipper(here)
    assert shipper.next_batch() is not None
    assert shipper.next_batch() is None


def test_a_full_disk_at_the_leader_keeps_the_rows_with_the_worker(here: Path, there: Path) -> None:
    here.write_bytes(lines(3))
    shipper, receiver = Shipper(here), Receiver(there.parent)
    there.mkdir()  # cannot be opened for writing, as on a full disk
    batch = shipper.next_batch()
    assert batch is not None
    shipper.take(receiver.take(batch))
    assert shipper.undelivered_bytes == len(lines(3))
    there.rmdir()
    ship_all(shipper, receiver)
    assert there.read_bytes() == lines(3)


@pytest.mark.parametrize("name", ["run.json", "../requests-1.jsonl", "requests-1.jsonl/x", "requests-.jsonl"])
def test_a_worker_writes_its_own_files_only(there: Path, name: str) -> None:
    with pytest.raises(ValueError, match="no file of a worker"):
        Receiver(there.parent).take(RowBatch(run_id="r", file=name, offset=0, data=b"x\n"))
