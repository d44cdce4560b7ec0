from .colours import colour_depth, colour_normals, colour_segmentation, default_palette, depth_range
from .draw import prediction_grid, write_grid

__all__ = [
    'colour_depth', 'colour_normals', 'colour_segmentation', 'default_palette', 'depth_range', 'prediction_grid',
    'write_grid'
]
