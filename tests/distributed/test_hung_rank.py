"""A rank that hangs in a run of the command line: the run ends within the bound and names that rank."""

import re

import pytest

from tests.tools.harness import ROOT, TINY, call

CONFIG = """
_base_ = [{base!r}]
custom_imports = dict(imports=['mmrepmtl', 'tests.distributed.hang_hook'], allow_failed_imports=False)
custom_hooks = [dict(type='ResumeHook'), dict(type='MetricsFileHook'), dict(type='HangHook', kind={kind!r})]
env_cfg = dict(dist_cfg=dict(timeout={timeout}))
"""
#: How the rank hangs: (port, what the report says of it, how it ends).
KINDS = {
    'wait': (
        29671,
        r'rank 1: last seen in .*, [\d.]+ s ago; hangs at .*before_train_iter',
        'exitcode  : 1',
    ),
    'stop': (
        29672,
        r'rank 1: last seen in .*, [\d.]+ s ago; does not answer, and was last at',
        'exitcode  : -9',
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_the_hung_rank_is_named_and_all_end(kind, tmp_path):
    port, says, ends = KINDS[kind]
    config = tmp_path / 'hangs.py'
    config.write_text(CONFIG.format(base=str(TINY), kind=kind, timeout=5))
    environment = dict(PORT=str(port))
    result = call('bash', ROOT / 'tools/dist_train.sh', config, 2, '--work-dir', tmp_path, check=False, env=environment)
    assert result.returncode != 0
    text = result.stderr
    # A busy machine looks later than after the 5 s.
    assert re.search(r'rank 1 did not arrive at training iteration 3: rank 0 has waited \d+\.\d s', text), text[-5000:]
    assert 'env_cfg.dist_cfg.timeout is 5 s. All processes end now.' in text
    assert re.search(says, text), text[-5000:]
    cause = text[text.index('Root Cause (first observed failure)') :]
    assert 'rank      : 1' in cause and ends in cause
    if kind == 'wait':
        assert 'rank 1 is missing at a collective; its main thread is at:' in text and 'hang_hook.py' in text
        assert 'rank 1 did not arrive' in cause  # in the launcher's own summary
    log = next(tmp_path.glob('2*/*.log')).read_text()
    assert 'rank 1 did not arrive at training iteration 3' in log
