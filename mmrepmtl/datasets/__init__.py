from mmrepmtl.datasets import transforms
from mmrepmtl.datasets.base import MultiTaskDataset
from mmrepmtl.datasets.cityscapes import CityscapesDataset
from mmrepmtl.datasets.csv import MultiTaskCSVDataset
from mmrepmtl.datasets.domain_sampler import DomainBatchSampler
from mmrepmtl.datasets.folder import MultiTaskFolderDataset
from mmrepmtl.datasets.folder_archive import FileSet, FolderArchiveDataset
from mmrepmtl.datasets.gta5 import GTA5Dataset
from mmrepmtl.datasets.multi_domain import MultiDomainDataset
from mmrepmtl.datasets.nyuv2 import NYUv2Dataset
from mmrepmtl.datasets.office import Office31Dataset, OfficeHomeDataset
from mmrepmtl.datasets.pascal_context import PASCALContextDataset
from mmrepmtl.datasets.samplers import EpochIndex, EpochInfiniteSampler, EpochSampler
from mmrepmtl.datasets.synth_rooms import SynthRoomsDataset

__all__ = [
    'CityscapesDataset',
    'DomainBatchSampler',
    'EpochIndex',
    'EpochInfiniteSampler',
    'EpochSampler',
    'FileSet',
    'FolderArchiveDataset',
    'GTA5Dataset',
    'MultiDomainDataset',
    'MultiTaskCSVDataset',
    'MultiTaskDataset',
    'MultiTaskFolderDataset',
    'NYUv2Dataset',
    'Office31Dataset',
    'OfficeHomeDataset',
    'PASCALContextDataset',
    'SynthRoomsDataset',
    'transforms',
]
