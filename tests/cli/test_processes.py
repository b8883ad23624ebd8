"""Processes of torchrun: what all of them meet is said once, what one meets is said with its rank."""

import signal
import threading

import pytest
from torch.distributed import HashStore

from gnfast.cli import main, processes
from gnfast.cli.processes import Processes


def together(*works):
    """Runs functions at the same time, and gives what each returned."""
    found = [None] * len(works)

    def keep(place, work):
        found[place] = work()

    threads = [threading.Thread(target=keep, args=pair) for pair in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.fixture
def ranks(monkeypatch):
    """Four processes of one torchrun, of which no file of errors is wanted."""
    monkeypatch.setattr(processes, "PATIENCE", 0.5)
    monkeypatch.setattr(processes, "PATIENCE_OF_LEFT", 1.0)
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    store = HashStore()
    return [Processes(rank, 4, store) for rank in range(4)]


def test_a_warning_is_said_once_and_others_too(ranks, capsys):
    together(*(lambda rank=rank: rank.warn("warning: same") for rank in ranks))
    ranks[2].warn("warning: other")
    assert capsys.readouterr().err.splitlines() == ["warning: same", "warning: other"]


def test_an_error_of_all_is_that_of_the_first_process(ranks, capsys):
    late = threading.Event()
    others = [lambda rank=rank: (rank.fail("gnfast: no"), late.set()) for rank in ranks[1:]]
    together(*others, lambda: (late.wait(0.1), ranks[0].fail("gnfast: no")))
    assert capsys.readouterr().err == "gnfast: no\n"


def test_an_error_of_one_is_said_with_its_rank_and_not_what_follows_from_it(ranks, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    left = [
        lambda rank=rank: rank.fail(f"gnfast: lost ({rank.rank})", was_left=True) for rank in ranks if rank.rank != 2
    ]
    together(*left, lambda: ranks[2].fail("gnfast: step 3: loss is nan"))
    line = "gnfast: rank 2 of 4: step 3: loss is nan"
    assert capsys.readouterr().err == f"{line}\n"
    # What torchrun ends with.
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    failure = ProcessFailure(2, 1, 2, str(tmp_path / "error.json"))
    assert f"traceback : {line}" in str(ChildFailedError("gnfast", {2: failure}))


def test_where_a_process_says_nothing_one_of_those_left_does(ranks, capsys):
    together(*(lambda rank=rank: rank.fail(f"gnfast: lost ({rank.rank})", was_left=True) for rank in ranks[:3]))
    assert capsys.readouterr().err == "gnfast: lost (0)\n"


def test_without_a_store_nothing_is_lost(capsys):
    term = signal.getsignal(signal.SIGTERM)
    try:
        Processes(1, 2).fail("gnfast: no")
    finally:
        signal.signal(signal.SIGTERM, term)
    Processes().fail("gnfast: no")
    assert capsys.readouterr().err == "gnfast: rank 1 of 2: no\ngnfast: no\n"


def test_where_torchrun_has_ended_before_them_nothing_is_lost(ranks, capsys, monkeypatch):
    def ended(*_):
        raise RuntimeError("connection reset by peer")

    for method in ("add", "check", "set"):
        monkeypatch.setattr(HashStore, method, ended)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    ranks[1].warn("warning: same")
    ranks[0].fail("gnfast: no")
    assert capsys.readouterr().err == "warning: same\ngnfast: no\n"


def test_commands_say_what_they_meet_as_one_of_several(ranks, capsys, monkeypatch):
    monkeypatch.setattr(processes, "here", lambda: ranks[1])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    words = ["train", "digits", "--k-sn=3"]
    assert main([*words, "--dry-run"]) == 0
    assert capsys.readouterr() == ("", "gnfast: --k-sn 3.0 has no effect without --spectral-norm\n")
    assert main([*words, "--steps=0"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("gnfast: rank 1 of 4: --steps: got 0")
    monkeypatch.setattr(processes, "here", lambda: ranks[0])
    assert main([*words, "--steps=0"]) == 2
    assert capsys.readouterr().err == ""
