# The regime of the paper on a CPU: an ImageNet encoder (17 MB, from the extra `weights`) and few images.
_base_ = ['./rep-mtl_resnet18-d16_conv_b8-20e_nyuv2-96x128.py']
model = dict(
    # These weights expect (x - 0.5) / 0.5.
    data_preprocessor=dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    encoder=dict(name='tf_efficientnet_lite0', pretrained='package', channels_last=True),
)
train_dataloader = dict(num_workers=0, persistent_workers=False)
val_dataloader = dict(num_workers=0, persistent_workers=False)
test_dataloader = val_dataloader
train_cfg = dict(val_interval=20)
