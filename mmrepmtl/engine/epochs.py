"""Tells methods that average over epochs when an epoch ends; the optim wrapper itself knows iterations only."""

from mmengine.logging import MessageHub

from mmrepmtl.methods.weighting import Weighting


class EpochWatch:
    """Calls ``end_epoch`` of a weighting that declares ``per_epoch`` when mmengine's message hub has another epoch.

    Attributes:
        epoch: The epoch of the last forward pass; part of the checkpoint, so that a resumed run ends it too.
    """

    def __init__(self, weighting: Weighting, message_hub: MessageHub) -> None:
        self.weighting, self.message_hub = weighting, message_hub
        self.epoch: int | None = None

    def end_epoch_if_over(self) -> None:
        """Ends the epoch of the last forward pass if the next one is in another; called before each forward pass.

        Raises:
            ValueError: If the method needs epochs and the loop has none.
        """
        if not self.weighting.per_epoch:
            return
        info = self.message_hub.runtime_info
        if 'epoch' not in info or info.get('max_epochs', 0) == 1:
            raise ValueError(
                f'MultiTaskOptimWrapper: {type(self.weighting).__name__} averages over epochs, and this loop has '
                f'{"only one" if "epoch" in info else "none"}; give it interval=STEPS, the number of optimizer steps '
                'to average over'
            )
        epoch = int(info['epoch'])
        if self.epoch is not None and epoch != self.epoch:
            self.weighting.end_epoch()
        self.epoch = epoch
