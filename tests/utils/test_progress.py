"""The screen of a person during a loop, on a terminal and elsewhere, by a clock that the test turns."""

import io

import pytest

from mmrepmtl.utils.progress import Progress, duration


class Screen(io.StringIO):
    """An output that is a terminal or not."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


def shown(terminal: bool, total: int, seconds: float, start: int = 0, **arguments) -> list[str]:
    """The output of a loop whose steps take ``seconds`` each; on a terminal the texts of its line in turn."""
    screen, now = Screen(terminal), [0.0]
    progress = Progress('training', total, start, stream=screen, clock=lambda: now[0], **arguments)
    for done in range(start + 1, (total or 4) + 1):
        now[0] += seconds
        progress.update(done, f'loss {done}')
    progress.close()
    text = screen.getvalue()
    assert text.endswith('\n')
    return text[:-1].split('\r')[1:] if terminal else text.splitlines()


def test_plain_lines_are_few_and_tell_the_time_left():
    lines = shown(False, 40, 3.0, lines=4)
    assert lines == [
        'training 10 of 40 (25 %), 1:30 min left, loss 10',
        'training 20 of 40 (50 %), 1:00 min left, loss 20',
        'training 30 of 40 (75 %), 30 s left, loss 30',
        'training 40 of 40 (100 %), took 2:00 min, loss 40',
    ]


def test_steps_of_an_earlier_process_took_no_time_of_this_one():
    lines = shown(False, 40, 3.0, start=20, lines=2)
    assert lines[0] == 'training 30 of 40 (75 %), 30 s left, loss 30'
    assert lines[-1] == 'training 40 of 40 (100 %), took 1:00 min, loss 40'


def test_the_last_step_is_shown_where_the_lines_do_not_divide_the_steps():
    assert [line.split(',')[0] for line in shown(False, 7, 1.0, lines=2)] == [
        'training 3 of 7 (42 %)',
        'training 6 of 7 (85 %)',
        'training 7 of 7 (100 %)',
    ]


def test_a_loop_of_unknown_length_tells_no_time_left():
    assert shown(False, 0, 1.0)[-1] == 'training 4, loss 4'


def test_a_bar_is_drawn_over_and_not_more_than_five_times_a_second(monkeypatch):
    monkeypatch.setenv('COLUMNS', '60')
    drawn = shown(True, 40, 0.05)
    assert len(drawn) == 11 and all(len(line) < 60 for line in drawn)  # the first, every fourth, the last
    assert drawn[0].startswith('[........................] training 1 of 40 (2 %), 2 s left')
    assert drawn[-1].startswith('[########################] training 40 of 40 (100 %)')
    # A shorter line covers all of the one before.
    assert all(len(after) >= len(before) for before, after in zip(drawn, drawn[1:], strict=False))


def test_a_step_without_a_number_is_one_more():
    screen = Screen(False)
    progress = Progress('test', 2, stream=screen)
    progress.step()
    progress.step('done')
    progress.close()
    assert [line.split(',')[0] for line in screen.getvalue().splitlines()] == [
        'test 1 of 2 (50 %)',
        'test 2 of 2 (100 %)',
    ]


@pytest.mark.parametrize(
    ('seconds', 'text'), [(0.2, '0 s'), (59.4, '59 s'), (59.6, '1:00 min'), (245, '4:05 min'), (9000, '2:30 h')]
)
def test_durations(seconds, text):
    assert duration(seconds) == text
