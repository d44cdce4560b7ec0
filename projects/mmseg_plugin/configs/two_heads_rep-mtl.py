# two_heads.py with another optim wrapper; nothing else changes.
_base_ = ['two_heads.py']
custom_imports = dict(imports=['mmrepmtl', 'two_heads'])
optim_wrapper = dict(
    _delete_=True,
    type='MultiTaskOptimWrapper',
    optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=0.0005),
    shared='backbone.layer4',  # the only map that the heads read
    tasks=dict(semseg='decode.', depth='depth.'),  # task: prefix of its losses
    loss_transform='log',
    regularizers=[dict(type='RepMTL', target_ratio=0.05, through='representation', warmup_iters=100)],
)
custom_hooks = [dict(type='ResumeHook')]
