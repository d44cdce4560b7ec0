default_scope = 'mmrepmtl'
custom_imports = dict(imports=['mmrepmtl'], allow_failed_imports=False)
default_hooks = dict(
    runtime_info=dict(type='RuntimeInfoHook'),
    timer=dict(type='IterTimerHook'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    logger=dict(type='LoggerHook', interval=10),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=2),
    # interval=N draws every N-th image of each validation and test on the visualizer's backends; 0 draws none.
    visualization=dict(type='MultiTaskVisualizationHook', interval=0),
)
custom_hooks = [
    dict(type='ResumeHook'),
    # BatchNorm statistics of the ranks are averaged before each validation and checkpoint.
    dict(type='SyncBuffersHook'),
    dict(type='MetricsFileHook'),
    # Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 leave a checkpoint.
    dict(type='InterruptHook'),
]
env_cfg = dict(
    cudnn_benchmark=False, mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0), dist_cfg=dict(backend='nccl')
)
visualizer = dict(type='MultiTaskVisualizer', vis_backends=[dict(type='LocalVisBackend')])
log_processor = dict(by_epoch=True, window_size=10)
log_level = 'INFO'
load_from = None
resume = False
randomness = dict(seed=0)
