from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmrepmtl.datasets import readers
from mmrepmtl.datasets.base import MultiTaskDataset
from mmrepmtl.registry import DATASETS


@DATASETS.register_module()
class MultiDomainDataset(MultiTaskDataset):
    """Tasks that have samples of their own: one data set per task, one after the other.

    A sample carries the one target of its domain's data set, renamed to the task; for all other tasks it is unlabelled.
    For training draw from it with :class:`DomainBatchSampler` and set ``encoder_forward`` of the model::

        dataset=dict(
            type='MultiDomainDataset',
            datasets=dict(
                amazon=dict(type='Office31Dataset', domain='amazon', split='train'),
                webcam=dict(type='Office31Dataset', domain='webcam', split='train')),
            pipeline=[dict(type='ResizeMultiTask', size=(224, 224)), dict(type='PackMultiTaskInputs')])

    Args:
        datasets: {task: config of its data set, or the data set}, in the order of the tasks. A ``pipeline`` there runs
            before the common one (to bring the domains to one size, say).
        targets: The tasks whose domains are loaded; None is all. The others' files are not looked at.
        data_root: Relative roots of the data sets start at this folder; it is also the folder of data sets without a
            root. None: relative ones start at the folder that the environment variable ``MMREPMTL_DATA`` names.
        pipeline: Common transforms or their configs.
        test_mode: None means that of the data sets.
        **kwargs: Those of ``MultiTaskDataset``: ``seed``, ``check``.

    Attributes:
        datasets: {task: data set}, those that are loaded.
        domains: {task: range of its indices}.

    Raises:
        ValueError: There is no domain, an unknown one is asked for, one has not exactly one target, or ``indices`` is
            given, which belongs to the domains' data sets.
    """

    METAINFO = dict(dataset_type='multi_domain')

    def __init__(
        self,
        datasets: Mapping[str, Mapping | MultiTaskDataset],
        targets: Sequence[str] | None = None,
        data_root: str | None = None,
        pipeline: Sequence = (),
        test_mode: bool | None = None,
        metainfo: Mapping | None = None,
        **kwargs: Any,
    ) -> None:
        if kwargs.get('indices') is not None:
            raise ValueError(
                'MultiDomainDataset: indices would cut the domains at random; give it to their own data sets'
            )
        wanted = _select(datasets, targets)
        self.datasets = {task: _build(datasets[task], data_root) for task in wanted}
        self._own_targets = {task: _only_target(task, dataset) for task, dataset in self.datasets.items()}
        if test_mode is None:
            test_mode = all(dataset.test_mode for dataset in self.datasets.values())
        declared = {task: self.datasets[task].targets[target] for task, target in self._own_targets.items()}
        super().__init__(
            data_root=data_root or '',
            pipeline=[self._run_own_pipeline, *pipeline],
            test_mode=test_mode,
            metainfo=dict(targets=declared) | dict(metainfo or {}),
            **kwargs,
        )

    @property
    def domains(self) -> dict[str, range]:
        """{task: range of its indices}, in the order of the tasks."""
        ranges, start = {}, 0
        for task, dataset in self.datasets.items():
            ranges[task] = range(start, start + len(dataset))
            start += len(dataset)
        return ranges

    def load_data_list(self) -> list[dict]:
        """One dict per sample: its domain and its index there."""
        return [dict(domain=task, index=i) for task, dataset in self.datasets.items() for i in range(len(dataset))]

    def load_sample(self, data_info: dict) -> dict:
        """The sample of the domain's data set, its target renamed to the task."""
        task = data_info['domain']
        dataset, target = self.datasets[task], self._own_targets[task]
        sample = dataset.load_sample(dataset.get_data_info(data_info['index']))

        def renamed(values: Mapping[str, Any]) -> dict[str, Any]:
            return {task: values[target]} if target in values else {}

        return sample | dict(gt=renamed(sample['gt']), gt_paths=renamed(sample.get('gt_paths', {})))

    def _run_own_pipeline(self, results: dict) -> dict:
        domain = self.get_data_info(results['sample_idx'])['domain']
        return self.datasets[domain].pipeline(results)


def _select(datasets: Mapping[str, Any], names: Sequence[str] | None) -> list[str]:
    if not datasets:
        raise ValueError('MultiDomainDataset: datasets is empty; give one data set per task')
    names = list(datasets) if names is None else [names] if isinstance(names, str) else list(names)
    unknown = [name for name in names if name not in datasets]
    if unknown or not names:
        raise ValueError(f'MultiDomainDataset: targets {unknown or names} are not among the domains {list(datasets)}')
    # In the order of the tasks, whatever the order they are asked for in.
    return [task for task in datasets if task in names]


def _build(config: Mapping | MultiTaskDataset, data_root: str | None) -> MultiTaskDataset:
    if not isinstance(config, Mapping):
        return config
    config = dict(config)
    own = config.get('data_root')
    if data_root is not None:
        config['data_root'] = str(Path(data_root).expanduser() / Path(own or '').expanduser())
    elif own is not None and not Path(own).expanduser().is_absolute():
        config['data_root'] = readers.resolve_root('MultiDomainDataset', None, own)
    return DATASETS.build(config)


def _only_target(task: str, dataset: MultiTaskDataset) -> str:
    if len(dataset.targets) != 1:
        raise ValueError(
            f'MultiDomainDataset: the domain {task!r} has the targets {list(dataset.targets)}, expected exactly one; '
            f'choose it with targets=[...] in the config of its {type(dataset).__name__}'
        )
    return next(iter(dataset.targets))
