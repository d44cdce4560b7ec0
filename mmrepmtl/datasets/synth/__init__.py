"""Procedural rooms: what is in one (scene), how one is drawn up (layout) and how it is photographed (render)."""

from mmrepmtl.datasets.synth.layout import sample_room
from mmrepmtl.datasets.synth.render import RoomImage, render_room
from mmrepmtl.datasets.synth.scene import CLASSES, PALETTE, Camera, Light, Material, Panel, Part, Room, Rug

__all__ = [
    'CLASSES',
    'PALETTE',
    'Camera',
    'Light',
    'Material',
    'Panel',
    'Part',
    'Room',
    'RoomImage',
    'Rug',
    'render_room',
    'sample_room',
]
