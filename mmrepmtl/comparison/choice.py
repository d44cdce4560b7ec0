"""``--select-on val``: one value of each sweep, chosen on validation data before anything is tested."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mmrepmtl.apis.select_checkpoint import validates_on_test_set
from mmrepmtl.comparison.entries import Entry
from mmrepmtl.comparison.plan import Contestant, Options, load_contestant, load_entry
from mmrepmtl.comparison.results_file import Row
from mmrepmtl.datasets import NYUv2Dataset
from mmrepmtl.evaluation import delta_p_task
from mmrepmtl.evaluation.metric_table import counts_in_delta_p
from mmrepmtl.registry import DATASETS
from mmrepmtl.utils.config_types import is_type

BASELINE = 'ew'
"""Equal weighting: the values of a sweep are compared by their Delta p against it."""
PART_SUFFIX = '@val'
_PARTS = dict(train='train-part', val='val-part', test='val-part')


def sweeps_of(contestants: Sequence[Contestant]) -> dict[str, list[Contestant]]:
    """{entry as typed: its values} of the entries that have several.

    Raises:
        ValueError: There is none.
    """
    sweeps: dict[str, list[Contestant]] = {}
    for one in contestants:
        if one.entry.group:
            sweeps.setdefault(one.entry.group, []).append(one)
    if not sweeps:
        raise ValueError(
            '--select-on: no entry of --methods has several values to choose among; write them as NAME:key=0.1|0.3'
        )
    return sweeps


def find_baseline(contestants: Sequence[Contestant], config: str, options: Options) -> Contestant:
    """Equal weighting among the contestants, or beside them."""
    for one in contestants:
        if one.entry.label == BASELINE:
            return one
    return load_contestant(Entry(BASELINE, BASELINE, None, config), options)


def needs_parts(config: str, options: Options) -> bool:
    """Whether the config has no validation data of its own, so that parts of the training images take their place.

    Raises:
        ValueError: Its data set has no such parts.
    """
    cfg = load_entry(Entry('', None, None, config), options)
    if cfg.get('val_dataloader') and not validates_on_test_set(cfg):
        return False
    kind = ((cfg.get('train_dataloader') or {}).get('dataset') or {}).get('type')
    if not is_type(kind, DATASETS, NYUv2Dataset):
        raise ValueError(
            f'--select-on val: {config} has no validation data besides the test data, and its training data cannot be '
            'divided (only those of NYUv2Dataset can); set val_dataloader to other data'
        )
    return True


def on_parts(contestant: Contestant, options: Options) -> Contestant:
    """The contestant, trained on one part of the training images and measured on the other."""
    loaders = {name: part for name, part in _PARTS.items() if contestant.settings.get(f'{name}_dataloader')}
    parts = {f'{name}_dataloader.dataset.split': part for name, part in loaders.items()}
    entry = replace(contestant.entry, options={**contestant.entry.options, **parts})
    return load_contestant(entry, options, PART_SUFFIX)


def choose(values: Sequence[Contestant], seeds: Sequence[int], rows: Sequence[Row]) -> dict[str, Any]:
    """Chooses the value with the highest mean Delta p (tasks alike) against equal weighting of the same seeds.

    Args:
        values: The contestants of one sweep.
        seeds: The seeds.
        rows: Of these only the ones with ``split='val'`` are looked at. A metric that is 0 for the baseline in any seed
            counts for none.

    Returns:
        ``dict(chosen, scores, hashes)``: the label, {label: Delta p in percent of each seed, None where a metric is
        not finite}, and {label: hash of its config}.

    Raises:
        ValueError: A value or the baseline lacks a seed, the baseline has no metric above 0, or no value has a finite
            score.
    """
    measured: dict[tuple[str, int | None], dict[str, float]] = {}
    for row in rows:
        if row.split == 'val':
            measured.setdefault((row.label, row.seed), {})[row.metric] = row.value
    scores: dict[str, list[float | None]] = {}
    keys: list[str] | None = None
    for value in values:
        label = value.entry.label
        for name in (label, BASELINE):
            missing = [seed for seed in seeds if (name, seed) not in measured]
            if missing:
                raise ValueError(f'--select-on val: {name} has no validation numbers of seed {missing[0]}')
        keys = _common_keys([measured[BASELINE, seed] for seed in seeds]) if keys is None else keys
        scores[label] = [_score(measured[label, seed], measured[BASELINE, seed], keys) for seed in seeds]
    finite = {label: [score for score in own if score is not None] for label, own in scores.items()}
    means = {label: math.fsum(own) / len(own) for label, own in finite.items() if len(own) == len(seeds)}
    if not means:
        raise ValueError(f'--select-on val: no value of {", ".join(scores)} has finite metrics on the validation data')
    hashes = {value.entry.label: value.config_hash for value in values}
    return dict(chosen=max(means, key=lambda label: means[label]), scores=scores, hashes=hashes)


def _common_keys(baselines: Sequence[Mapping[str, float]]) -> list[str]:
    """The metrics that count: those that have a relative change in all seeds, which one from 0 has not."""
    keys = [
        key
        for key in baselines[0]
        if counts_in_delta_p(key) and all(0 < one.get(key, math.nan) < math.inf for one in baselines)
    ]
    if not keys:
        raise ValueError(f'--select-on val: no metric of {BASELINE} is above 0 in all seeds: none to choose by')
    return keys


def _score(metrics: Mapping[str, float], baseline: Mapping[str, float], keys: Sequence[str]) -> float | None:
    """Delta p in percent; None for a run that has failed on a task."""
    if not all(math.isfinite(metrics.get(key, math.nan)) for key in keys):
        return None
    return delta_p_task(metrics, baseline, keys=keys)


def describe(group: str, choice: Mapping[str, Any]) -> str:
    """The choice in a sentence."""
    told = ', '.join(
        f'{label} {round(math.fsum(own) / len(own), 2) + 0.0:+.2f} %' if None not in own else f'{label} not finite'
        for label, own in choice['scores'].items()
    )
    return f'{group}: {choice["chosen"]} is chosen on the validation data, by Delta p against {BASELINE}: {told}'
