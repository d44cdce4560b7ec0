"""Who is missing at a collective: two watches of one store, and stacks that are made up."""

import json
import os
import threading
import time

import pytest
import torch.distributed as dist

from mmrepmtl.engine import rank_watch
from mmrepmtl.engine.rank_watch import RankWatch, describe_hang, describe_stack


def frame_in(module: str, name: str = 'somewhere'):
    """A frame of a function of ``module``, and what keeps it alive."""
    scope = {'__name__': module}
    exec(f'def {name}():\n    yield', scope)
    running = scope[name]()
    next(running)
    return running.gi_frame, running


COLLECTIVE, _keep = frame_in('torch.distributed.distributed_c10d', 'all_reduce')
BACKWARD, _keep_too = frame_in('torch.autograd.graph', '_engine_run_backward')
LOADER, _keep_three = frame_in('own.data', 'read_for_good')


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(rank_watch, 'GRACE', 0.5)


def watch(frames, timeout=0.2):
    """A run of as many ranks as ``frames``; returns {rank: status}, their watches by rank, and the store."""
    store, ended, done = dist.HashStore(), {}, threading.Event()

    def end(rank):
        def note(status):
            ended[rank] = status
            if len(ended) == sum(frame is not None for frame in frames):
                done.set()

        return note

    watches = [
        RankWatch(dist.PrefixStore('watch', store), rank, len(frames), timeout, end(rank), lambda frame=frame: frame)
        for rank, frame in enumerate(frames)
    ]
    for rank, frame in enumerate(frames):
        watches[rank].at = f'training iteration {37 if frame in (COLLECTIVE, BACKWARD) else 36}'
        if frame is not None:  # else the process answers nothing
            watches[rank].start()
    return ended, done, watches, dist.PrefixStore('watch', store)


def verdict(store) -> dict:
    return json.loads(store.get('verdict'))


def test_the_rank_that_does_not_wait_is_named_on_all(capsys):
    ended, done, watches, store = watch([COLLECTIVE, LOADER, BACKWARD])
    assert done.wait(30) and ended == {0: 1, 1: 1, 2: 1}
    found = verdict(store)
    assert found['missing'] == [1]
    assert 'rank 1 did not arrive at training iteration 37: rank ' in found['text']
    assert 'env_cfg.dist_cfg.timeout is 0.2 s' in found['text']
    assert 'rank 1: last seen in training iteration 36, ' in found['text'] and 'read_for_good' in found['text']
    printed = capsys.readouterr().err
    assert (
        printed.count('did not arrive') >= 1 and 'rank 1 is missing at a collective; its main thread is at:' in printed
    )
    assert store.check(['ended/1']) and not store.check(['ended/0'])


def test_ranks_that_all_wait_for_something_else_are_told_apart_by_their_places():
    ended, done, watches, store = watch([COLLECTIVE, COLLECTIVE])
    assert done.wait(30)
    found = verdict(store)
    assert found['missing'] == [] and found['text'].startswith(
        'all ranks wait for each other, in different collectives'
    )


def test_a_rank_that_does_not_answer_is_missing_and_ended_where_it_is_a_sibling(monkeypatch):
    killed = []
    monkeypatch.setattr(rank_watch, '_kill', killed.append)
    ended, done, watches, store = watch([COLLECTIVE, None])
    state = dict(at='training iteration 36', age=1.0, time=time.time(), waits=True, place='?', pid=-1)
    state |= dict(host=rank_watch.socket.gethostname(), parent=os.getppid())
    store.set('state/1', json.dumps(state))
    assert done.wait(30)
    assert verdict(store)['missing'] == [1] and killed == [-1]
    assert 'rank 1: last seen in training iteration 36' in verdict(store)['text']
    assert 'does not answer, and was last at ?' in verdict(store)['text']


def test_a_process_of_another_launcher_is_left_alone(monkeypatch):
    killed = []
    monkeypatch.setattr(rank_watch, '_kill', killed.append)
    ended, done, watches, store = watch([COLLECTIVE, None])
    state = dict(
        at='x', age=1.0, time=time.time(), waits=True, place='?', pid=-1, host='elsewhere', parent=os.getppid()
    )
    store.set('state/1', json.dumps(state))
    assert done.wait(30)
    assert verdict(store)['missing'] == [1] and not killed


def test_a_rank_that_never_wrote_is_missing():
    ended, done, watches, store = watch([COLLECTIVE, None])
    assert done.wait(30)
    assert 'rank 1: never seen' in verdict(store)['text']


def looks(frames, ats=None, seconds=1.0, timeout=10.0, monkeypatch=None):
    """Whether a watch speaks that looks once a second at these frames in turn."""
    clock = iter(range(10_000))
    monkeypatch.setattr(rank_watch.time, 'monotonic', lambda: next(clock) * seconds)
    current, ended = {}, []
    spy = RankWatch(dist.HashStore(), 0, 1, timeout, ended.append, lambda: current['frame'])
    for i, frame in enumerate(frames):
        current['frame'] = frame
        spy.at = 'x' if ats is None else ats[i]
        if spy.check_once():
            return True
    return False


def test_computing_is_not_waiting(monkeypatch):
    assert not looks([LOADER] * 50, monkeypatch=monkeypatch)


def test_a_short_wait_at_the_end_of_a_long_computation_is_none(monkeypatch):
    assert not looks([LOADER] * 50 + [COLLECTIVE] * 2, monkeypatch=monkeypatch)


def test_many_waits_with_progress_between_them_are_none(monkeypatch):
    assert not looks([COLLECTIVE] * 50, ats=[f'iteration {i // 2}' for i in range(50)], monkeypatch=monkeypatch)
    assert not looks([COLLECTIVE, LOADER] * 25, monkeypatch=monkeypatch)


def test_one_wait_beyond_the_bound_is(monkeypatch):
    monkeypatch.setattr(rank_watch, 'GRACE', 0.0)
    assert looks([COLLECTIVE] * 50, monkeypatch=monkeypatch)


def test_a_stopped_watch_ends_its_thread():
    spy = RankWatch(dist.HashStore(), 0, 2, 1.0, lambda status: None, lambda: LOADER)
    spy.start()
    assert spy.alive
    spy.stop()
    assert not spy.alive


def test_a_store_that_is_gone_ends_the_watch_and_says_so(capsys):
    class Gone:
        def check(self, keys):
            raise RuntimeError('Connection reset')

    spy = RankWatch(Gone(), 1, 2, 1.0, lambda status: None, lambda: LOADER)
    spy.start()
    spy._thread.join(30)
    assert not spy.alive
    assert 'rank watch of rank 1: the store is gone, so it ends: Connection reset' in capsys.readouterr().err


def test_one_process_is_not_watched():
    rank_watch.start_watch(1.0)
    assert rank_watch._watch is None
    rank_watch.set_place('nowhere')
    rank_watch.stop_watch()


def test_a_report_of_many_ranks_stays_short():
    state = dict(at='x', age=1.0, time=time.time(), waits=True, place='here', answered=True)
    text = describe_hang([state] * 30, [29], 0, 5.0, 4.0)
    assert len(text.splitlines()) == 18 and text.splitlines()[1].startswith('  rank 29') and '14 more' in text


def test_a_place_names_the_innermost_calls_first():
    assert 'test_rank_watch.py' in describe_stack(rank_watch.sys._getframe()).split(' < ')[0]
    assert describe_stack(None) == 'an unknown place'
