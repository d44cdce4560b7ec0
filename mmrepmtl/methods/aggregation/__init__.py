from .aligned_mtl import AlignedMTL
from .base import Aggregator, GramianAggregator, gramian
from .cagrad import CAGrad
from .conflict_free import ConFIG
from .db_mtl import DBMTL
from .dualproj import DualProj
from .excess_mtl import ExcessMTL
from .fairgrad import FairGrad
from .graddrop import GradDrop
from .gradnorm import GradNorm
from .gradvac import GradVac
from .imtl_g import IMTLG
from .metabalance import MetaBalance
from .mgda import MGDA
from .moco import MoCo
from .mtadam import MTAdam
from .nash_mtl import NashMTL
from .pcgrad import PCGrad
from .sdmgrad import SDMGrad
from .torchjd import TorchJD
from .upgrad import UPGrad

__all__ = [
    'Aggregator',
    'AlignedMTL',
    'CAGrad',
    'ConFIG',
    'DBMTL',
    'DualProj',
    'ExcessMTL',
    'FairGrad',
    'GradDrop',
    'GradNorm',
    'GradVac',
    'GramianAggregator',
    'IMTLG',
    'MGDA',
    'MTAdam',
    'MetaBalance',
    'MoCo',
    'NashMTL',
    'PCGrad',
    'SDMGrad',
    'TorchJD',
    'UPGrad',
    'gramian',
]
