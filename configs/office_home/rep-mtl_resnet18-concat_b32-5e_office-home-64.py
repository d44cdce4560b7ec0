# Like the small one, but the encoder runs once on the samples of all tasks.
_base_ = ['./rep-mtl_resnet18-per-task_b32-5e_office-home-64.py']
model = dict(encoder_forward='concat')
