"""``mmrepmtl analyse``: its arguments, the models that it finds, and each analysis on a small run."""

import json
import shutil
import sys
from argparse import Namespace
from pathlib import Path

import pytest
from PIL import Image

from mmrepmtl.analysis.conflict import conflict
from mmrepmtl.cli import analyse, compare
from mmrepmtl.cli.analyses.ablation import published_ablation
from mmrepmtl.cli.analyses.batches import parse_batches
from mmrepmtl.cli.analyses.runs import checkpoints_in_order, find_trained
from mmrepmtl.comparison.results_file import Row, write_results
from tests.tools.harness import TINY


def numbers(file: Path) -> dict:
    return json.loads(file.with_suffix('.json').read_text())


def is_picture(file: Path) -> bool:
    with Image.open(file) as picture:
        return picture.size[0] > 300 and len(picture.convert('L').getcolors(256)) > 10


def find(*runs, config=None, **options):
    args = Namespace(runs=[str(run) for run in runs], config=config, trust_checkpoint=False)
    return find_trained(args, **options)


# ---- arguments ----


def test_batches_are_cut_from_indices_and_ranges():
    assert parse_batches(['val:0-4,9', 'train:3'], 4) == [('val', [0, 1, 2, 3]), ('val', [4, 9]), ('train', [3])]
    for wrong in ('val', 'val:', 'val:1-', 'other:1', 'val:1;2'):
        with pytest.raises(ValueError, match='a batch is written SPLIT:INDICES'):
            parse_batches([wrong], 4)
    with pytest.raises(ValueError, match='--batch-size must be at least 1'):
        parse_batches(['val:1'], 0)


def test_models_are_found_by_folder_checkpoint_label_and_comparison(trained, tmp_path):
    (found,) = find(trained)
    assert (found.label, found.checkpoint) == (trained.name, trained / 'epoch_1.pth')
    (found,) = find(f'mine={trained / "epoch_1.pth"}')
    assert found.label == 'mine' and found.config.optim_wrapper.shared == 'encoder'
    for label, seed in (('rep-mtl:lambda_tsr=0.1', 0), ('ew', 10), ('ew', 9)):
        shutil.copytree(trained, tmp_path / 'runs' / label / f'seed_{seed}')
    (tmp_path / 'runs' / 'failed' / 'seed_0').mkdir(parents=True)
    found = find(tmp_path)
    assert [(run.label, run.checkpoint.parent.name) for run in found] == [
        ('ew', 'seed_9'),
        ('ew', 'seed_10'),
        ('rep-mtl:lambda_tsr=0.1', 'seed_0'),
    ]
    shutil.copytree(trained, tmp_path / 'runs' / 'stl' / 'seed_0' / 'depth')
    assert len(find(tmp_path)) == 3
    assert [run.label for run in find(tmp_path, single=True)][3:] == ['stl:depth']
    # A '=' in a path that is there is no label.
    assert find(tmp_path / 'runs' / 'rep-mtl:lambda_tsr=0.1' / 'seed_0')[0].label == 'seed_0'


def test_models_that_are_not_there_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='no work directory or checkpoint .*nothing'):
        find(tmp_path / 'nothing')
    (tmp_path / 'runs').mkdir()
    with pytest.raises(ValueError, match='this comparison has no run with a checkpoint yet'):
        find(tmp_path)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(FileNotFoundError, match='no checkpoint epoch_'):
        find(tmp_path / 'empty', every=True)


def test_checkpoints_are_in_the_order_of_training(tmp_path):
    for name in ('epoch_10.pth', 'epoch_9.pth', 'iter_5.pth', 'epoch_best.pth'):
        (tmp_path / name).touch()
    assert [path.name for path in checkpoints_in_order(tmp_path)] == ['epoch_9.pth', 'epoch_10.pth']


def test_nothing_may_follow_dashes_where_no_comparison_is_run(capsys):
    with pytest.raises(SystemExit):
        analyse.main(['cost', 'synth_rooms/quickstart', '--', '--jobs', '2'])
    assert 'cost runs no comparison, so nothing may follow --' in capsys.readouterr().err


# ---- each analysis ----


def test_spectrum_says_what_to_install_before_it_loads_a_model(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'weightwatcher', None)
    with pytest.raises(SystemExit, match='spectrum needs the package weightwatcher'):
        analyse.main(['spectrum', str(tmp_path / 'not there'), '--out', str(tmp_path / 'a.png')])


def test_spectrum_draws_a_trained_run(trained, tmp_path, capsys):
    pytest.importorskip('weightwatcher', reason='weightwatcher (extra `analysis`) is not installed')
    out = tmp_path / 'spectrum.png'
    assert analyse.main(['spectrum', f'a={trained}', f'a={trained}', '--out', str(out)]) == 0
    found = numbers(out)
    assert is_picture(out) and [run['label'] for run in found['runs']] == ['a', 'a']
    own = [layer['alpha'] for layer in found['runs'][0]['layers'] if layer['group'] == 'encoder']
    assert found['means']['a']['encoder'] == dict(mean=pytest.approx(sum(own) / len(own)), std=0.0, runs=2)
    assert f'{found["means"]["a"]["encoder"]["mean"]:.2f} ± 0.00' in capsys.readouterr().out


def test_cost_counts_a_config_at_its_size(tmp_path, capsys):
    out = tmp_path / 'cost.png'
    assert analyse.main(['cost', str(TINY), '--methods', 'ew', 'rep-mtl', 'pcgrad', 'stl', '--out', str(out)]) == 0
    found, printed = numbers(out), capsys.readouterr().out
    assert is_picture(out) and found['size'] == [24, 32]
    assert [part['name'] for part in found['parts']] == ['encoder', 'semseg', 'depth', 'normal']
    assert {cost['passes']: cost['methods'] for cost in found['steps']} == {
        '3 F_h + 3 F_e': ['ew'],
        '6 F_h + 3 F_e': ['rep-mtl'],
        '3 F_h + 7 F_e': ['pcgrad'],
        '3 F_h + 9 F_e': ['stl'],
    }
    assert 'one forward pass, 24 x 32' in printed and '6 F_h + 3 F_e' in printed
    with pytest.raises(SystemExit, match="there is no method 'rep'; there are"):
        analyse.main(['cost', str(TINY), '--methods', 'rep', '--out', str(out)])


def test_cost_leaves_out_what_it_cannot_count(tmp_path, capsys):
    config = tmp_path / 'config.py'
    config.write_text(f"_base_ = '{TINY}'\n")
    methods = tmp_path / '_base_' / 'methods'
    methods.mkdir(parents=True)
    ours = "_base_ = 'mmrepmtl::_base_/methods/ew.py'\n"
    (methods / 'ew.py').write_text(ours)
    (methods / 'rare.py').write_text(f"{ours}optim_wrapper = dict(regularizers=[dict(type='RepMTL', interval=5)])")
    assert analyse.main(['cost', str(config), '--out', str(tmp_path / 'cost.png')]) == 0
    assert 'rare is left out: the cost of RepMTL' in capsys.readouterr().out
    assert [cost['methods'] for cost in numbers(tmp_path / 'cost.png')['steps']] == [['ew']]


def test_conflict_measures_the_batches_of_a_split(trained, tmp_path, capsys):
    out = tmp_path / 'conflict.png'
    arguments = ['conflict', f'a={trained}', '--batches', 'val:0-4', '--batch-size', '2', '--device', 'cpu']
    assert analyse.main([*arguments, '--out', str(out)]) == 0
    (found,) = numbers(out)['models']
    assert is_picture(out) and (found['label'], found['batches'], found['samples']) == ('a', 3, 5)
    assert found['cosine_z'][0][0] == pytest.approx(1) and abs(found['cosine_z'][0][1]) < 1
    assert 'semseg / depth: at Z' in capsys.readouterr().out
    again = tmp_path / 'train.png'
    in_training = [*arguments, '--train-mode', '--course', '--out', str(again)]
    with pytest.raises(SystemExit, match='BatchNorm has no statistics of a batch of 1 in training mode'):
        analyse.main(in_training)
    assert analyse.main([*in_training, '--batch-size', '5']) == 0
    assert numbers(again)['models'][0]['cosine_z'] != found['cosine_z'] and is_picture(again)
    with pytest.raises(SystemExit, match="the split 'val' has 7 images"):
        analyse.main(['conflict', str(trained), '--batches', 'val:6-7', '--out', str(out)])


def test_conflict_reads_the_images_that_were_asked_for(trained, tmp_path, monkeypatch):
    seen = []

    def spy(model, batches, *rest):
        seen.extend(sample.metainfo['sample_idx'] for _, samples in batches for sample in samples)
        return conflict(model, batches, *rest)

    monkeypatch.setattr('mmrepmtl.cli.analyses.conflict.conflict', spy)
    analyse.main(['conflict', str(trained), '--batches', 'val:5,1', '--out', str(tmp_path / 'a.png')])
    assert seen == [5, 1]


# ---- comparisons ----


def write_comparison(folder: Path) -> None:
    rows = []
    for label, gain in (
        ('ew-log', 0),
        ('rep-mtl:lambda_csa=0', 1),
        ('rep-mtl:lambda_tsr=0', 2),
        ('rep-mtl', 3),
        ('ew', -1),
    ):
        method, _, sweep = label.partition(':')
        sweep = dict([sweep.split('=')]) if sweep else {}
        sweep = {key: float(value) for key, value in sweep.items()}
        for seed in (0, 1):
            about = ('last', 'c', 'h', 'c', '{"device": "cpu", "threads": "1"}', 0.1, 1.0, 20.0 + 10 * gain, 'now')
            rows.append(
                Row(
                    label,
                    method,
                    seed,
                    'test',
                    'a/mIoU',
                    50.0 + gain * (1 + seed),
                    True,
                    'a',
                    *about,
                    json.dumps(sweep),
                )
            )
    write_results(folder / 'results.csv', rows)
    entries = {row.label: dict(settings=dict(train_cfg=dict(max_epochs=10))) for row in rows}
    (folder / 'comparison.json').write_text(json.dumps(dict(config='nyuv2/small', entries=entries)))


def test_ablation_draws_a_comparison(tmp_path, capsys):
    write_comparison(tmp_path)
    assert analyse.main(['ablation', str(tmp_path)]) == 0
    found = numbers(tmp_path / 'ablation.png')
    assert is_picture(tmp_path / 'ablation.png')
    assert {score['name']: score['mean'] for score in found['scores']} == dict(none=0, TSR=3, CSA=6, both=9)
    assert '  both  +9.00 ± 4.24 %, 2 seed(s)' in capsys.readouterr().out


def test_the_papers_ablation_is_beside_ours_where_there_is_one(tmp_path, capsys):
    write_comparison(tmp_path)
    assert published_ablation(str(tmp_path), 'ew-log') == {}
    plan = json.loads((tmp_path / 'comparison.json').read_text())
    plan['entries']['ew']['settings']['train_dataloader'] = dict(dataset=dict(type='NYUv2Dataset'))
    (tmp_path / 'comparison.json').write_text(json.dumps(plan))
    # Ablation of the paper (0.23, 1.06, 1.70 against single tasks), less 0.06 of equal weighting of log losses.
    expected = dict(none=0.0, TSR=0.17, CSA=1.0, both=1.64)
    assert published_ablation(str(tmp_path), 'ew-log') == pytest.approx(expected)
    assert published_ablation(str(tmp_path), 'stl')['both'] == 1.7 and published_ablation(str(tmp_path), 'ew') == {}
    analyse.main(['ablation', str(tmp_path)])
    assert 'the paper: none +0.00, TSR +0.17, CSA +1.00, both +1.64' in capsys.readouterr().out
    assert numbers(tmp_path / 'ablation.png')['paper'] == pytest.approx(expected)


def test_sensitivity_draws_the_sweeps_of_a_comparison(tmp_path):
    write_comparison(tmp_path)
    assert analyse.main(['sensitivity', str(tmp_path), '--parameters', 'lambda_csa']) == 0
    found = numbers(tmp_path / 'sensitivity.png')['sweeps']
    assert [(point['value'], point['mean']) for point in found['lambda_csa']['rep-mtl']] == [(0.0, 3.0)]
    # A single value is no sweep unless it is asked for.
    with pytest.raises(SystemExit, match='has no sweep of rep-mtl with results'):
        analyse.main(['sensitivity', str(tmp_path)])


def test_time_draws_methods_and_leaves_out_values_of_sweeps(tmp_path, capsys):
    write_comparison(tmp_path)
    assert analyse.main(['time', str(tmp_path)]) == 0
    scores = numbers(tmp_path / 'time.png')['scores']
    assert [(score['name'], score['mean']) for score in scores] == [('ew', 1.0), ('ew-log', 2.0), ('rep-mtl', 5.0)]
    assert 'rep-mtl      5.00   5.00 x ew  2 seed(s)  0.1 s per step' in capsys.readouterr().out
    assert numbers(tmp_path / 'time.png')['step_seconds']['ew'] == pytest.approx(0.1)
    analyse.main(['time', str(tmp_path), '--methods', 'rep-mtl:lambda_csa=0', '--out', str(tmp_path / 'b.png')])
    assert [score['name'] for score in numbers(tmp_path / 'b.png')['scores']] == ['rep-mtl:lambda_csa=0']


def test_the_comparison_that_is_run_is_printed(tmp_path, capsys):
    common = ['--config', 'synth_rooms/quickstart', '--seeds', '0', '5', '--print']
    analyse.main(['ablation', str(tmp_path), *common, '--', '--jobs', '2'])
    analyse.main(['sensitivity', str(tmp_path), '--parameters', 'lambda_tsr=0.1|0.9', 'batch_size=4|8', *common])
    first, second = capsys.readouterr().out.splitlines()
    assert first == (
        'mmrepmtl compare synth_rooms/quickstart --methods ew-log rep-mtl:lambda_csa=0 rep-mtl:lambda_tsr=0 rep-mtl '
        f'--seeds 0 5 --work-dir {tmp_path} --jobs 2'
    )
    assert (
        "--methods ew-log 'rep-mtl:lambda_tsr=0.1|0.9' 'rep-mtl:train_dataloader.batch_size=4|8' "
        "'ew-log:train_dataloader.batch_size=4|8' --seeds" in second
    )


def test_the_comparison_is_run_first_and_its_status_is_kept(tmp_path, monkeypatch):
    given = []

    def run(argv, prog):
        given.append(argv)
        write_comparison(tmp_path)
        return 1

    monkeypatch.setattr(compare, 'main', run)
    status = analyse.main(['ablation', str(tmp_path), '--config', 'synth_rooms/quickstart', '--seeds', '2'])
    assert status == 1 and (tmp_path / 'ablation.png').is_file()
    assert given[0][0] == 'synth_rooms/quickstart' and given[0][-4:] == ['--seeds', '2', '--work-dir', str(tmp_path)]


def test_every_entry_that_is_composed_is_one_that_compare_takes(tmp_path, capsys):
    """The real command plans them; it refuses a method or a key that is not there."""
    parameters = ['lambda_tsr=0.1', 'lambda_csa=0.1', 'temperature=3', 'interval=2', 'lr=1e-4', 'batch_size=2']
    for command, count in ((['ablation'], 4), (['sensitivity', '--parameters', *parameters], 9), (['time'], 35)):
        arguments = [command[0], str(tmp_path / 'new'), *command[1:], '--config', str(TINY), '--seeds', '1']
        assert analyse.main([*arguments, '--', '--dry-run']) == 0
        assert f'{count} runs: {count} missing' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['ablation', 'DIR'], 'results.csv is not there; run the comparison: add --config CONFIG'),
        (['ablation', 'DIR', '--print'], '--print and what follows -- are about the comparison to run'),
        (['sensitivity', 'DIR', '--config', 'c'], '--config runs sweeps; say which: --parameters lambda_tsr'),
        (['sensitivity', 'DIR', '--parameters', 'floor'], "'floor' has no values; write floor=V|V"),
        (['time', 'DIR', '--out', 'a.txt'], 'does not end like a picture'),
    ],
)
def test_arguments_that_cannot_be_are_one_line(tmp_path, arguments, message):
    with pytest.raises(SystemExit, match=message.replace('|', r'\|')):
        analyse.main([str(tmp_path) if argument == 'DIR' else argument for argument in arguments])
