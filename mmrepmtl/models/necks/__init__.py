from .fpn_neck import FPNNeck
from .global_pool_neck import GlobalPoolNeck
from .task_saliency_decoder import TaskSaliencyDecoder
from .to_map_neck import ToMapNeck

__all__ = ['FPNNeck', 'GlobalPoolNeck', 'TaskSaliencyDecoder', 'ToMapNeck']
