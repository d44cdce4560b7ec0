"""Reads all data of a config before hours are spent on them; see :func:`check_dataset`."""

import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cv2
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch.utils.data import DataLoader, Dataset

from mmrepmtl.apis.splits import dataset_of, loader_of
from mmrepmtl.datasets import MultiTaskDataset
from mmrepmtl.datasets.conversion import ProgressLines
from mmrepmtl.inspection.config_check import check_links, check_loader
from mmrepmtl.inspection.sample_facts import SampleFacts, TargetFacts, inspect_sample
from mmrepmtl.registry import DATASETS
from mmrepmtl.structures import KINDS

SPLITS = ('train', 'val', 'test')
# Depth beyond this is hardly in metres.
FAR = 1000


def check_dataset(
    cfg: Config,
    splits: Sequence[str] = SPLITS,
    workers: int = 0,
    max_errors: int = 20,
    allow_partial: bool = False,
) -> list[str]:
    """Reads every sample of the data sets of a config and compares the config's parts with each other.

    Each sample is loaded from its files (not from a cache), checked, and sent through the pipeline. Prints a line for
    each defect as it is found, and a summary: counts, labels per target, sizes, frequencies of classes, ranges of
    values.

    Args:
        cfg: As :func:`mmrepmtl.apis.load_config` makes it.
        splits: Among 'train', 'val' and 'test'.
        workers: Processes that read; 0 is this one.
        max_errors: A data set is left after so many of its samples were found wrong.
        allow_partial: Whether another number of samples than the official one is no defect.

    Returns:
        The defects, one sentence each; none if all is well.
    """
    init_default_scope(cfg.get('default_scope', 'mmrepmtl'))
    found = _Findings()
    datasets: dict[str, Any] = {}
    read: dict[str, tuple[str, set[str]]] = {}
    for split in splits:
        loader = loader_of(cfg, split)
        if not loader:
            found.add([], [f'{split}: the config has no {split}_dataloader, so there is nothing to check'])
            continue
        dataset = _build(dataset_of(cfg, split, 'check'), split, found)
        if dataset is None:
            continue
        datasets[split] = dataset
        found.add(*check_loader(loader, dataset, split))
        same = next((other for other, (settings, _) in read.items() if settings == str(loader['dataset'])), None)
        if same is not None:
            print(f'{split}: the same data set as {same}')
            continue
        counts = list(_other_counts(split, dataset))
        found.add(*([], counts) if allow_partial else (counts, []))
        paths = _read(dataset, split, workers, max_errors, (cfg.get('randomness') or {}).get('seed') or 0, found)
        read[split] = (str(loader['dataset']), paths)
    found.add(*check_links(cfg, {split: _targets(dataset) for split, dataset in datasets.items()}))
    _check_overlap({split: paths for split, (_, paths) in read.items()}, found)
    print(f'{len(found.defects)} defects' if found.defects else 'no defects')
    return found.defects


class _Findings:
    """Defects and notes, printed when they are found."""

    def __init__(self) -> None:
        self.defects: list[str] = []

    def defect(self, sentence: str) -> None:
        self.defects.append(sentence)
        print(f'defect: {sentence}', flush=True)

    def add(self, defects: Sequence[str], notes: Sequence[str] = ()) -> None:
        for sentence in defects:
            self.defect(sentence)
        for sentence in notes:
            print(f'note: {sentence}', flush=True)


def _build(config: Mapping, split: str, found: _Findings) -> Any:
    try:
        dataset = DATASETS.build(config)
    except (ValueError, TypeError, KeyError, OSError, ImportError) as error:
        found.defect(f'{split}: {error}')
        return None
    for inner in walk(dataset):
        if isinstance(inner, MultiTaskDataset):
            # The check is of the files, not of their decoded copies.
            inner.cache = None
    if not len(dataset):
        found.defect(f'{split}: the data set has no samples')
        return None
    return dataset


def walk(dataset: Any) -> Iterator[Any]:
    """A data set and those inside it: of ``datasets`` (a list or a dict) or ``dataset``."""
    yield dataset
    inner = getattr(dataset, 'datasets', None) or ([dataset.dataset] if hasattr(dataset, 'dataset') else [])
    for child in inner.values() if isinstance(inner, Mapping) else inner:
        yield from walk(child)


def leaves(dataset: Any) -> list[Any]:
    """The data sets that load samples: a ``MultiTaskDataset`` is one, wrappers of others are looked into."""
    inner = [child for child in walk(dataset) if child is not dataset]
    if isinstance(dataset, MultiTaskDataset) or not inner:
        return [dataset]
    children = getattr(dataset, 'datasets', None) or [dataset.dataset]
    return [leaf for child in children for leaf in leaves(child)]


def _targets(dataset: Any) -> dict[str, Mapping]:
    declared = dict(getattr(dataset, 'metainfo', None) or {}).get('targets')
    return declared if declared is not None else dict(leaves(dataset)[0].metainfo.get('targets', {}))


class _Probe(Dataset[SampleFacts]):
    """Facts of the samples of data sets, one after the other."""

    def __init__(self, datasets: Sequence[Any], seed: int, training: bool) -> None:
        self.samples = [(dataset, index) for dataset in datasets for index in range(len(dataset))]
        self.seed, self.training = seed, training

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, number: int) -> SampleFacts:
        dataset, index = self.samples[number]
        return inspect_sample(dataset, index, self.seed, self.training)


def _identity(item: Any) -> Any:
    return item


def _start_worker(number: int) -> None:
    cv2.setNumThreads(0)


def _read(dataset: Any, split: str, workers: int, max_errors: int, seed: int, found: _Findings) -> set[str]:
    """Looks at all samples, prints the summary and returns the images' paths."""
    probe = _Probe(leaves(dataset), seed, training=split == 'train')
    loader = DataLoader(probe, batch_size=None, num_workers=workers, collate_fn=_identity, worker_init_fn=_start_worker)
    targets = {name: TargetFacts() for name in _targets(dataset)}
    sizes: Counter[str] = Counter()
    fed: Counter[str] = Counter()
    paths, wrong, constant = set(), 0, []
    report = ProgressLines()
    for done, facts in enumerate(loader, start=1):
        report(done, len(probe))
        paths.add(facts.path)
        sizes[facts.size] += 1
        fed[facts.fed] += 1
        constant += [facts.path] if facts.constant else []
        for name, part in facts.targets.items():
            targets[name].add(part)
        if facts.defect is not None:
            wrong += 1
            found.defect(f'{split}: {facts.defect}')
            if wrong == max_errors:
                print(f'note: {split}: left after {wrong} defects, {len(probe) - done} samples have not been looked at')
                break
    print(f'\n{split}: {type(dataset).__name__}, {len(dataset)} samples, {wrong} with defects')
    print(f'  stored as {_sizes(sizes)}; fed as {_sizes(fed)}')
    for name, meta in _targets(dataset).items():
        print(textwrap.indent(describe(name, meta, targets[name], done), '  '))
    for line in _notes(split, _targets(dataset), targets, constant):
        print(f'note: {line}')
    if not wrong:
        found.add(list(_unlabelled(split, targets)))
    return paths


def describe(name: str, meta: Mapping[str, Any], facts: TargetFacts, samples: int) -> str:
    """A few lines about one target of a data set."""
    kind = meta['kind']
    line = f'{name} ({kind}): {facts.samples} of {samples} samples labelled'
    if facts.total and KINDS[kind].array:
        unit = 'pixels' if KINDS[kind].dense else 'numbers'
        line += f', {100 * (1 - facts.valid / facts.total):.2f} % of their {unit} void'
    if kind == 'depth' and facts.valid:
        line += f', {facts.low[0]:.4g} to {facts.high[0]:.4g} {"" if meta.get("inverse") else "m"}'.rstrip()
    if kind == 'regression' and facts.valid:
        # Plus 0, since -0 is a strange number to read.
        rows = zip(meta['names'], facts.low + 0, facts.high + 0, strict=True)
        line += '\n' + _wrapped([f'{number} {low:.4g} to {high:.4g}' for number, low, high in rows])
    if KINDS[kind].has_ids and facts.valid:
        shares = [f'{n} {100 * facts.counts[i] / facts.valid:.2f} %' for i, n in enumerate(_classes(meta))]
        if not KINDS[kind].dense:
            shares = [f'{n} {facts.counts[i]}' for i, n in enumerate(_classes(meta))]
        line += '\n' + _wrapped(shares)
    return line


def _classes(meta: Mapping[str, Any]) -> Sequence[str]:
    return meta.get('classes') or ('no', 'yes')


def _wrapped(parts: Sequence[str]) -> str:
    # A name and its number stay on one line.
    text = ', '.join(part.replace(' ', '\0') for part in parts)
    return textwrap.fill(text, 116, initial_indent='  ', subsequent_indent='  ').replace('\0', ' ')


def _sizes(sizes: Counter) -> str:
    """'288x384', or how many there are and the smallest and largest."""
    known = {size: count for size, count in sizes.items() if size is not None}
    texts = [f'{h}x{w} ({count})' for (h, w), count in sorted(known.items(), key=lambda item: -item[1])]
    if len(texts) > 3:
        heights, widths = [size[0] for size in known], [size[1] for size in known]
        return f'{len(texts)} sizes, {min(heights)} to {max(heights)} high, {min(widths)} to {max(widths)} wide'
    return ', '.join(texts) or 'nothing'


def _notes(split: str, declared: Mapping, targets: Mapping[str, TargetFacts], constant: list[str]) -> Iterator[str]:
    if constant:
        yield f'{split}: {len(constant)} images are of one colour, the first is {constant[0]}'
    for name, facts in targets.items():
        meta = declared[name]
        if KINDS[meta['kind']].has_ids and facts.valid:
            absent = [str(n) for number, n in enumerate(_classes(meta)) if not facts.counts[number]]
            if absent:
                yield f'{split}: {len(absent)} classes of {name!r} do not occur: {", ".join(absent[:10])}'
        if meta['kind'] == 'depth' and not meta.get('inverse') and facts.high[0] > FAR:
            yield f'{split}: {name!r} goes up to {facts.high[0]:g}; is it in metres?'
        if split != 'train' and facts.samples and not facts.valid:
            yield f'{split}: no label of {name!r} is valid, so its metrics will be NaN'
        if split != 'train' and not facts.samples:
            yield f'{split}: no sample has the target {name!r}, so its metrics will be NaN'


def _unlabelled(split: str, targets: Mapping[str, TargetFacts]) -> Iterator[str]:
    if split == 'train':
        for name, facts in targets.items():
            if not facts.valid:
                yield (
                    f'train: {"no label" if facts.samples else "no sample"} of the target {name!r} '
                    + ('is valid' if facts.samples else 'is there')
                    + ', so its task would learn nothing'
                )


def _other_counts(split: str, dataset: Any) -> Iterator[str]:
    for inner in walk(dataset):
        count = official_count(inner)
        if count is not None and count != len(inner):
            domain = f' of {inner.domain!r}' if hasattr(inner, 'domain') else ''
            yield f'{split}: {type(inner).__name__}{domain} has {len(inner)} samples, officially there are {count}'


def official_count(dataset: Any) -> int | None:
    """How many samples the class of a data set says that its split has; None where it says nothing.

    ``OFFICIAL_COUNTS`` is {split: count}, or {domain: the same, or the counts of train, val and test}. A data set that
    was cut with ``indices`` has none.
    """
    counts = getattr(dataset, 'OFFICIAL_COUNTS', None)
    if counts is None or getattr(dataset, '_indices', None) is not None:
        return None
    counts = counts.get(getattr(dataset, 'domain', None), counts)
    counts = counts if isinstance(counts, Mapping) else dict(zip(SPLITS, counts, strict=True))
    count = counts.get(getattr(dataset, 'split', None))
    return count if isinstance(count, int) else None


def _check_overlap(paths: Mapping[str, set[str]], found: _Findings) -> None:
    for split in ('val', 'test'):
        shared = paths.get('train', set()) & paths.get(split, set())
        if shared:
            found.defect(f'{split}: {len(shared)} of its images are in the training data, such as {min(shared)}')
