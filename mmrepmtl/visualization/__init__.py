from .colours import (
    colour_binary,
    colour_depth,
    colour_normals,
    colour_segmentation,
    default_palette,
    depth_range,
)
from .draw import prediction_grid, write_grid, write_picture
from .errors import make_error
from .sheet import task_sheet
from .visualizer import MultiTaskVisualizationHook, MultiTaskVisualizer

__all__ = [
    'MultiTaskVisualizationHook',
    'MultiTaskVisualizer',
    'colour_binary',
    'colour_depth',
    'colour_normals',
    'colour_segmentation',
    'default_palette',
    'depth_range',
    'make_error',
    'prediction_grid',
    'task_sheet',
    'write_grid',
    'write_picture',
]
