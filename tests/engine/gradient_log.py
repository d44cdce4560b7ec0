"""The log of TaskGradientsHook in a training of a few steps."""

from types import SimpleNamespace

from mmengine.logging import MessageHub

from tests.engine.toy import make_batch


def train(model, wrapper, hook, steps=3, batch=make_batch) -> list[dict[str, float]]:
    """The gradients in the message hub after each step."""
    hub = MessageHub.get_instance('task_gradients')
    hub.log_scalars.clear()
    runner = SimpleNamespace(model=model, optim_wrapper=wrapper, iter=0, message_hub=hub)
    hook.before_train(runner)
    found = []
    for step in range(steps):
        runner.iter = step
        hook.before_train_iter(runner, step)
        model.train_step(batch(8, step), wrapper)
        hook.after_train_iter(runner, step)
        prefix = 'train/task_gradients/'
        found.append({k.removeprefix(prefix): float(v.current()) for k, v in hub.log_scalars.items() if prefix in k})
    return found
