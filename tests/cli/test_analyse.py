"""``mmrepmtl analyse``: its arguments, the models that it finds, and each analysis on a small run."""

import importlib
import json
import shutil
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from mmrepmtl.analysis.conflict import conflict
from mmrepmtl.apis import available_methods
from mmrepmtl.cli import analyse, compare
from mmrepmtl.cli.analyses.ablation import published_ablation
from mmrepmtl.cli.analyses.batches import parse_batches
from mmrepmtl.cli.analyses.runs import checkpoints_in_order, find_trained
from mmrepmtl.comparison.results_file import Row, read_results, write_results
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
    methods = ['ew', 'rep-mtl', 'rep-mtl-paper', 'pcgrad', 'stl']
    assert analyse.main(['cost', str(TINY), '--methods', *methods, '--out', str(out)]) == 0
    found, printed = numbers(out), capsys.readouterr().out
    assert is_picture(out) and found['size'] == [24, 32]
    assert [part['name'] for part in found['parts']] == ['encoder', 'semseg', 'depth', 'normal']
    assert {cost['passes']: cost['methods'] for cost in found['steps']} == {
        '3 F_h + 3 F_e': ['ew'],
        '6 F_h + 3 F_e': ['rep-mtl-paper'],
        '7 F_h + 3 F_e': ['rep-mtl'],
        '3 F_h + 7 F_e': ['pcgrad'],
        '3 F_h + 9 F_e': ['stl'],
    }
    assert 'one forward pass, 24 x 32' in printed and '6 F_h + 3 F_e' in printed
    with pytest.raises(SystemExit, match="there is no method 'rep'; there are"):
        analyse.main(['cost', str(TINY), '--methods', 'rep', '--out', str(out)])


def test_cost_leaves_out_no_method_of_the_package(tmp_path, capsys):
    assert analyse.main(['cost', str(TINY), '--out', str(tmp_path / 'cost.png')]) == 0
    assert 'is left out' not in capsys.readouterr().out
    counted = [method for cost in numbers(tmp_path / 'cost.png')['steps'] for method in cost['methods']]
    assert sorted(counted) == sorted(available_methods(str(TINY)))


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


PAPER = dict(type='RepMTL', lambda_tsr=0.9, lambda_csa=0.9)
HELD = dict(PAPER, target_ratio=0.05, through='representation')


def write_comparison(folder: Path, method: str = 'rep-mtl-paper', penalty: dict | None = None) -> None:
    """Five methods, of which one has values of lambda_csa too; without a penalty the plan has no settings."""
    rows = []
    for label, gain in (
        ('ew-log', 0),
        (f'{method}-tsr', 1),
        (f'{method}-csa', 2),
        (method, 3),
        (f'{method}:lambda_csa=0.5', 4),
        ('ew', -1),
    ):
        name, _, sweep = label.partition(':')
        sweep = dict([sweep.split('=')]) if sweep else {}
        sweep = {key: float(value) for key, value in sweep.items()}
        for seed in (0, 1):
            about = ('last', 'c', 'h', 'c', '{"device": "cpu", "threads": "1"}', 0.1, 1.0, 20.0 + 10 * gain, 'now')
            value = 50.0 + gain * (1 + seed)
            rows.append(Row(label, name, seed, 'test', 'a/mIoU', value, True, 'a', *about, json.dumps(sweep)))
    write_results(folder / 'results.csv', rows)
    settings = dict(train_cfg=dict(max_epochs=10), train_dataloader=dict(dataset=dict(type='NYUv2Dataset')))
    entries = {row.label: dict(settings=dict(settings)) for row in rows}
    for label, entry in entries.items():
        if penalty is not None and label.startswith(method):
            entry['settings']['optim_wrapper'] = dict(regularizers=[penalty])
    (folder / 'comparison.json').write_text(json.dumps(dict(config='nyuv2/small', entries=entries)))


def change_plan(folder: Path, change) -> None:
    file = folder / 'comparison.json'
    plan = json.loads(file.read_text())
    change(plan['entries'])
    file.write_text(json.dumps(plan))


def spy_on(monkeypatch, name: str) -> list:
    """The figures that an analysis makes."""
    module = importlib.import_module(f'mmrepmtl.cli.analyses.{name}')
    made, make = [], getattr(module, f'{name}_figure')
    monkeypatch.setattr(module, f'{name}_figure', lambda *args: made.append(make(*args)) or made[-1])
    return made


def test_ablation_draws_the_papers_method_of_a_comparison(tmp_path, capsys):
    write_comparison(tmp_path, penalty=PAPER)
    assert analyse.main(['ablation', str(tmp_path)]) == 0
    found = numbers(tmp_path / 'ablation.png')
    assert is_picture(tmp_path / 'ablation.png')
    assert found['entries']['TSR'] == 'rep-mtl-paper-tsr' and found['entries']['both'] == 'rep-mtl-paper'
    assert {score['name']: score['mean'] for score in found['scores']} == dict(none=0, TSR=3, CSA=6, both=9)
    assert found['penalties']['rep-mtl-paper']['target_ratio'] == 'none'
    printed = capsys.readouterr().out
    assert '  both  +9.00 ± 4.24 %, 2 seed(s)' in printed and 'target_ratio' not in printed


def test_the_papers_ablation_is_beside_ours_where_there_is_one(tmp_path, capsys):
    write_comparison(tmp_path, penalty=PAPER)
    # Ablation of the paper (0.23, 1.06, 1.70 against single tasks), less 0.06 of equal weighting of log losses.
    expected = dict(none=0.0, TSR=0.17, CSA=1.0, both=1.64)
    assert published_ablation(str(tmp_path), 'ew-log') == pytest.approx(expected)
    assert published_ablation(str(tmp_path), 'stl')['both'] == 1.7 and published_ablation(str(tmp_path), 'ew') == {}
    analyse.main(['ablation', str(tmp_path)])
    assert 'the paper: none +0.00, TSR +0.17, CSA +1.00, both +1.64' in capsys.readouterr().out
    assert numbers(tmp_path / 'ablation.png')['paper'] == pytest.approx(expected)
    change_plan(tmp_path, lambda entries: [entry['settings'].pop('train_dataloader') for entry in entries.values()])
    assert published_ablation(str(tmp_path), 'ew-log') == {}


def test_an_ablation_at_held_strength_says_so_and_is_not_beside_the_papers(tmp_path, capsys, monkeypatch):
    write_comparison(tmp_path, 'rep-mtl', HELD)
    made = spy_on(monkeypatch, 'ablation')
    assert analyse.main(['ablation', str(tmp_path), '--method', 'rep-mtl']) == 0
    printed = capsys.readouterr().out
    assert 'target_ratio=0.05 holds the strength' in printed and 'the paper: ' not in printed
    assert 'strength held, target_ratio 0.05' in made[0].axes[0].get_title()
    found = numbers(tmp_path / 'ablation.png')
    assert found['paper'] == {} and found['penalties']['rep-mtl-csa']['target_ratio'] == '0.05'


@pytest.mark.parametrize(
    'label, other', [('rep-mtl-paper', dict(through='representation')), ('rep-mtl-paper-csa', dict(target_ratio=0.05))]
)
def test_the_papers_ablation_is_not_beside_a_penalty_of_another_kind_or_an_unknown_one(tmp_path, capsys, label, other):
    write_comparison(tmp_path, penalty=PAPER)
    other = dict(regularizers=[dict(PAPER, **other)])
    change_plan(tmp_path, lambda entries: entries[label]['settings'].update(optim_wrapper=other))
    analyse.main(['ablation', str(tmp_path)])
    assert 'of fixed weights that reach the heads too' in capsys.readouterr().out
    change_plan(tmp_path, lambda entries: entries.pop(label))
    analyse.main(['ablation', str(tmp_path)])
    assert f'comparison.json has no settings of {label}: whether target_ratio holds' in capsys.readouterr().out
    assert numbers(tmp_path / 'ablation.png')['paper'] == {}


def test_sensitivity_draws_the_sweeps_of_a_comparison(tmp_path, monkeypatch, capsys):
    write_comparison(tmp_path, penalty=PAPER)
    made = spy_on(monkeypatch, 'sensitivity')
    assert analyse.main(['sensitivity', str(tmp_path), '--parameters', 'lambda_csa']) == 0
    found = numbers(tmp_path / 'sensitivity.png')
    assert [(point['value'], point['mean']) for point in found['sweeps']['lambda_csa']['rep-mtl-paper']] == [
        (0.5, 12.0)
    ]
    assert made[0].axes[0].get_xlabel() == found['titles']['lambda_csa'] == 'weight of CSA, lambda_csa'
    assert 'target_ratio' not in capsys.readouterr().out
    # A single value is no sweep unless it is asked for.
    with pytest.raises(SystemExit, match='has no sweep of rep-mtl-paper with results$'):
        analyse.main(['sensitivity', str(tmp_path)])


def test_a_lambda_of_a_penalty_at_held_strength_is_a_share(tmp_path, monkeypatch, capsys):
    write_comparison(tmp_path, 'rep-mtl', HELD)
    made = spy_on(monkeypatch, 'sensitivity')
    arguments = ['sensitivity', str(tmp_path), '--parameters', 'lambda_csa']
    assert analyse.main([*arguments, '--method', 'rep-mtl']) == 0
    title = 'share of CSA at target_ratio 0.05, lambda_csa'
    assert made[0].axes[0].get_xlabel() == numbers(tmp_path / 'sensitivity.png')['titles']['lambda_csa'] == title
    printed = capsys.readouterr().out
    assert f'{title}: Delta p against ew-log' in printed and '--method rep-mtl-paper sweeps a weight' in printed
    assert 'weight of CSA' not in printed
    change_plan(tmp_path, lambda entries: entries.pop('rep-mtl:lambda_csa=0.5'))
    analyse.main([*arguments, '--method', 'rep-mtl'])
    assert 'has no settings of rep-mtl:lambda_csa=0.5' in capsys.readouterr().out


def test_methods_that_have_a_sweep_are_named_where_the_asked_one_has_none(tmp_path):
    write_comparison(tmp_path, 'rep-mtl', HELD)
    rows = read_results(tmp_path / 'results.csv')
    more = [replace(row, label='rep-mtl:lambda_csa=1', sweep='{"lambda_csa": 1}') for row in rows if row.sweep != '{}']
    write_results(tmp_path / 'results.csv', [*rows, *more])
    with pytest.raises(SystemExit, match='no sweep of rep-mtl-paper with results; --method may be rep-mtl$'):
        analyse.main(['sensitivity', str(tmp_path)])


def test_time_draws_methods_and_leaves_out_values_of_sweeps(tmp_path, capsys):
    write_comparison(tmp_path)
    assert analyse.main(['time', str(tmp_path)]) == 0
    scores = numbers(tmp_path / 'time.png')['scores']
    assert [(score['name'], score['mean']) for score in scores] == [
        ('ew', 1.0),
        ('ew-log', 2.0),
        ('rep-mtl-paper-tsr', 3.0),
        ('rep-mtl-paper-csa', 4.0),
        ('rep-mtl-paper', 5.0),
    ]
    assert 'rep-mtl-paper          5.00   5.00 x ew  2 seed(s)  0.1 s per step' in capsys.readouterr().out
    assert numbers(tmp_path / 'time.png')['step_seconds']['ew'] == pytest.approx(0.1)
    label = 'rep-mtl-paper:lambda_csa=0.5'
    analyse.main(['time', str(tmp_path), '--methods', label, '--out', str(tmp_path / 'b.png')])
    assert [score['name'] for score in numbers(tmp_path / 'b.png')['scores']] == [label]


def test_the_comparison_that_is_run_is_printed(tmp_path, capsys):
    common = ['--config', 'synth_rooms/quickstart', '--seeds', '0', '5', '--print']
    analyse.main(['ablation', str(tmp_path), *common, '--', '--jobs', '2'])
    analyse.main(['sensitivity', str(tmp_path), '--parameters', 'lambda_tsr=0.1|0.9', 'batch_size=4|8', *common])
    first, second = capsys.readouterr().out.splitlines()
    assert first == (
        'mmrepmtl compare synth_rooms/quickstart --methods ew-log rep-mtl-paper-tsr rep-mtl-paper-csa rep-mtl-paper '
        f'--seeds 0 5 --work-dir {tmp_path} --jobs 2'
    )
    assert (
        "--methods ew-log 'rep-mtl-paper:lambda_tsr=0.1|0.9' 'rep-mtl-paper:train_dataloader.batch_size=4|8' "
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
    methods = len(available_methods(str(TINY)))
    counts = (
        (['ablation'], 4),
        (['ablation', '--method', 'rep-mtl'], 4),
        (['ablation', '--method', 'pcgrad+rep-mtl:temperature=3'], 4),
        (['sensitivity', '--parameters', *parameters], 9),
        (['time'], methods),
    )
    for command, count in counts:
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
