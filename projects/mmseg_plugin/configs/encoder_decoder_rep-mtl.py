# encoder_decoder.py with another optim wrapper; nothing else changes.
_base_ = ['encoder_decoder.py']
custom_imports = dict(imports=['mmrepmtl', 'two_heads'])
optim_wrapper = dict(
    _delete_=True,
    type='MultiTaskOptimWrapper',
    optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=0.0005),
    shared='backbone.layer3',  # the last map that both heads depend on: aux reads it, decode through layer4
    tasks=dict(semseg='decode.', auxiliary='aux.'),  # task: prefix of its losses
    loss_transform='log',
    regularizers=[dict(type='RepMTL', target_ratio=0.05, through='representation', warmup_iters=100)],
)
custom_hooks = [dict(type='ResumeHook')]
