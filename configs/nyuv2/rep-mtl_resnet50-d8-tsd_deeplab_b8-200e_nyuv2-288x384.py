# Not in the paper: its recipe with a mask of Z for each task before the heads. Z is still the encoder's output.
_base_ = ['rep-mtl_resnet50-d8_deeplab_b8-200e_nyuv2-288x384.py']
model = dict(neck=dict(type='TaskSaliencyDecoder'))
