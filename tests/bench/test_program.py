"""What the training program costs the host besides its steps; `benchmarks/must_reach.py --only host` measures it."""

import dataclasses

from gnfast.bench.program import host_of, share_outside_updates
from gnfast.train.state import State
from tests.tiny_runs import tiny


def test_a_captured_iteration_leaves_the_host_next_to_nothing():
    found = host_of("gngan-cifar10-cnn", steps=300)
    # The bounds are those of must_reach: here the thread's own time, whatever else the machine does.
    assert 0 < found.iteration < 60
    assert found.launches == 0
    # And here the clock's, with other tests beside it.
    assert 0 < found.side_work < 0.1 * 3


def test_what_a_launch_outside_the_graph_would_be_is_counted(monkeypatch):
    update = State.update

    def reading(state):
        update(state)
        state.clock.add(1)

    monkeypatch.setattr(State, "update", reading)
    assert host_of("gngan-cifar10-cnn", steps=10).launches == 1


def test_the_share_outside_updates_is_what_updates_leave(tmp_path):
    config = tiny(tmp_path, steps=20, sample_every=1, n_samples=4)
    with_pictures = share_outside_updates("digits", config)
    without = share_outside_updates("digits", dataclasses.replace(config, sample_every=0, checkpoint_every=0))
    assert 0 < without < with_pictures < 1
