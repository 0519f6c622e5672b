"""What TensorBoard reads of a run: no step twice and none missing, whatever happened to the file."""

import pytest
from helpers.runs import scalars

from checkpoints.event_log import EventLog
from config.errors import TrainingFailed


def write(folder, steps, after: int | None = None) -> None:
    """As a process that goes on after a step."""
    log = EventLog(folder)
    if after is not None:
        log.forget(after)
    log.add_text("sample", "the film was", steps[0])
    for step in steps:
        log.add_scalar("training/loss", 1 / (1 + step), step)
    log.flush()
    log.close()


def test_a_run_that_goes_on_has_each_step_once(tmp_path):
    write(tmp_path, range(10))
    write(tmp_path, range(7, 12), after=6)
    write(tmp_path, range(9, 15), after=8)
    assert scalars(tmp_path) == [("training/loss", step, pytest.approx(1 / (1 + step))) for step in range(15)]


@pytest.mark.parametrize("n_bytes", [1, 5, 13, 30])
def test_half_an_event_is_cut_off(tmp_path, n_bytes):
    write(tmp_path, range(4))
    (file,) = tmp_path.glob("events*")
    file.write_bytes(file.read_bytes()[:-n_bytes])
    write(tmp_path, range(3, 5), after=3)
    assert [step for _, step, _ in scalars(tmp_path)] == [0, 1, 2, 3, 4]


def test_what_is_complete_stays_as_it_is(tmp_path):
    write(tmp_path, range(4))
    (file,) = tmp_path.glob("events*")
    before = file.read_bytes()
    EventLog(tmp_path).forget(3)
    assert file.read_bytes() == before


def test_a_run_that_begins_again_forgets_all(tmp_path):
    write(tmp_path, range(4))
    write(tmp_path, range(2), after=-1)
    assert [step for _, step, _ in scalars(tmp_path)] == [0, 1]


def test_a_file_that_cannot_be_written_ends_the_run_and_does_not_hang(tmp_path, limited_files):
    log = EventLog(tmp_path)
    with limited_files(2000), pytest.raises(TrainingFailed, match="events.out.tfevents cannot be written"):
        for step in range(1000):
            log.add_scalar("training/loss", 1.0, step)
    log.close()
