"""The contestants of ``benchmark_step.py``: training steps of our methods, of mmengine and of torchjd's autojac."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
import torchjd.aggregation as jd
from mmengine.config import Config
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from torch import Tensor, nn
from torchjd.autojac import jac_to_grad, mtl_backward

from mmrepmtl.analysis.cost import count_passes
from mmrepmtl.engine import MultiTaskOptimWrapper
from mmrepmtl.engine.methods import build_method
from mmrepmtl.methods.aggregation import Aggregator
from mmrepmtl.methods.weighting import EqualWeighting
from mmrepmtl.models import MultiTaskModel
from mmrepmtl.registry import AGGREGATORS, MODELS, OPTIM_WRAPPERS, WEIGHTINGS
from mmrepmtl.structures import MultiTaskDataSample

METHODS_FOLDER = Path(__file__).resolve().parents[2] / 'configs' / '_base_' / 'methods'
PLAIN, REFERENCE, AUTOJAC = 'plain', 'ew', 'autojac:'
NUM_TASKS, NUM_CLASSES = 3, 13
EPOCH = 2  # steps, for methods that average over epochs
DTYPES = dict(fp32=None, bf16=torch.bfloat16, fp16=torch.float16)
DECODERS = dict(deeplab='DeepLabDecoder', conv='ConvDecoder')

#: torchjd's aggregator for ours, by class name, for T tasks; with our hyperparameters where it has the same.
PARTNERS: dict[str, Callable[[Aggregator, int], jd.Aggregator]] = dict(
    AlignedMTL=lambda ours, T: jd.AlignedMTL(scale_mode=ours.scale_mode),
    CAGrad=lambda ours, T: jd.CAGrad(c=ours.c),
    ConFIG=lambda ours, T: jd.ConFIG(),
    DualProj=lambda ours, T: jd.DualProj(),
    ExcessMTL=lambda ours, T: jd.ExcessMTL(robust_step_size=ours.eta),
    FairGrad=lambda ours, T: jd.FairGrad(alpha=ours.alpha),
    GradDrop=lambda ours, T: jd.GradDrop(leak=torch.full((T,), ours.leak) if ours.leak else None),
    GradVac=lambda ours, T: jd.GradVac(beta=ours.beta),
    IMTLG=lambda ours, T: jd.IMTLG(),
    MGDA=lambda ours, T: jd.MGDA(),
    NashMTL=lambda ours, T: jd.NashMTL(T, ours.max_norm or 0.0, ours.update_weights_every),
    PCGrad=lambda ours, T: jd.PCGrad(),
    UPGrad=lambda ours, T: jd.UPGrad(),
)


class NoPartner(Exception):
    """Why torchjd cannot make the step of a method whose aggregator it has."""


class AutocastOptimWrapper(OptimWrapper):
    """mmengine's plain wrapper under autocast without a scaler; its own AmpOptimWrapper needs an accelerator."""

    def __init__(self, optimizer: torch.optim.Optimizer, dtype: torch.dtype) -> None:
        super().__init__(optimizer)
        self.dtype = dtype

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Runs the forward pass in mixed precision."""
        with super().optim_context(model), torch.autocast(next(model.parameters()).device.type, self.dtype):
            yield


@dataclass
class Memory:
    """Bytes that the tensors of a contestant take (``benchmark_step.py`` says how they are measured).

    Attributes:
        peak: The most that a step holds beyond what was held before it.
        kept: What is held between steps beside the model and the optimizer's state.
    """

    peak: int
    kept: int

    @property
    def total(self) -> int:
        """All that the steps need beside the model and the optimizer's state."""
        return self.peak + self.kept


@dataclass
class Contestant:
    """Something that is timed once per round.

    Attributes:
        run: What is timed; None once it has been.
        optimizer: Whose state is no memory of the method; None for forward passes.
        counted: Factors of F_h and F_e in the counted cost; None for the forward passes themselves.
        note: What is special about its step.
        seconds: One time per round.
        memory: None until it is measured.
    """

    run: Callable[[], object] | None
    optimizer: torch.optim.Optimizer | None = None
    counted: tuple[int, int] | None = None
    note: str = ''
    seconds: list[float] = field(default_factory=list)
    memory: Memory | None = None


def build_model(model: str, heads: str, output_stride: int, device: str) -> MultiTaskModel:
    """Semantic segmentation, depth and normals on one encoder, with random weights."""
    torch.manual_seed(0)
    decoder = dict(type=DECODERS[heads])
    encoder = dict(type='TimmEncoder', name=model, output_stride=output_stride or None)
    tasks = dict(
        semseg=dict(type='SegmentationHead', num_classes=NUM_CLASSES, decoder=decoder),
        depth=dict(type='DepthHead', decoder=decoder),
        normal=dict(type='NormalHead', decoder=decoder),
    )
    return MODELS.build(dict(type='MultiTaskModel', encoder=encoder, heads=tasks)).to(device).train()


def make_batch(batch: int, size: Sequence[int], device: str) -> dict:
    """Random images with random labels, as a data loader gives them, on the device."""
    generator = torch.Generator().manual_seed(0)
    samples = []
    for _ in range(batch):
        sample = MultiTaskDataSample(metainfo=dict(img_shape=tuple(size)))
        sample.set_target('semseg', torch.randint(0, NUM_CLASSES, tuple(size), generator=generator))
        sample.set_target('depth', 1 + 4 * torch.rand(1, *size, generator=generator))
        sample.set_target('normal', nn.functional.normalize(torch.randn(3, *size, generator=generator), dim=0))
        samples.append(sample.to(device))
    return dict(inputs=list(torch.rand(batch, 3, *size, generator=generator).to(device)), data_samples=samples)


def overlays() -> list[str]:
    """The methods in configs/_base_/methods whose step is one of this model, by name."""
    names = sorted(file.stem for file in METHODS_FOLDER.glob('*.py'))
    return [name for name in names if not Config.fromfile(METHODS_FOLDER / f'{name}.py').get('single_task')]


def load_method(method: str) -> dict:
    """The settings of MultiTaskOptimWrapper in a method's file.

    Args:
        method: Name in configs/_base_/methods or path of such a file, either with ``@parameter`` or
            ``@representation`` behind it for the level of its aggregator. A method that averages over epochs gets
            epochs of :data:`EPOCH` steps.

    Raises:
        ValueError: There is no such method, its step is not one of this model, or it has no aggregator for a level.
    """
    name, _, level = method.partition('@')
    path = Path(name) if name.endswith('.py') else METHODS_FOLDER / f'{name}.py'
    if not path.is_file():
        raise ValueError(
            f'benchmark_step: no method {method!r}; there are {PLAIN}, {", ".join(overlays())}, or the path of a file '
            'like those'
        )
    config = Config.fromfile(path)
    if config.get('single_task'):
        raise ValueError(
            f'benchmark_step: {method!r} trains one model per task, so its step is another one; leave it out'
        )
    settings = copy.deepcopy(config.optim_wrapper.to_dict())
    if build_method(settings['weighting'], WEIGHTINGS).per_epoch:
        settings['weighting']['interval'] = EPOCH
    if level:
        if not settings.get('aggregator'):
            raise ValueError(f'benchmark_step: {method!r} asks for a level, and {name} has no aggregator')
        settings['aggregator']['level'] = level
    return settings


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that every contestant has for itself."""
    return torch.optim.Adam(model.parameters(), lr=1e-4, weight_decay=1e-5)


def plain_wrapper(model: nn.Module, precision: str) -> OptimWrapper:
    """mmengine's own optim wrapper.

    Raises:
        ValueError: For fp16 without a GPU.
    """
    optimizer = make_optimizer(model)
    if precision == 'fp16':
        if next(model.parameters()).device.type == 'cpu':
            raise ValueError("benchmark_step: 'plain' in fp16 is mmengine's AmpOptimWrapper, which needs a GPU")
        return AmpOptimWrapper(optimizer=optimizer, dtype='float16')
    dtype = DTYPES[precision]
    return OptimWrapper(optimizer) if dtype is None else AutocastOptimWrapper(optimizer, dtype)


def counted_cost(wrapper: OptimWrapper, num_tasks: int, num_batches: int = 1) -> tuple[int, int]:
    """Factors of F_h and F_e in the counted cost of a step of so many micro-batches (table in benchmark_step.py).

    Raises:
        ValueError: For a regulariser whose cost is not known.
    """
    if not isinstance(wrapper, MultiTaskOptimWrapper):
        return count_passes(None, None, (), num_tasks, num_batches)
    return count_passes(wrapper.weighting, wrapper.aggregator, wrapper.regularizers, num_tasks, num_batches)


def make_contestant(method: str, model: MultiTaskModel, data: dict, precision: str) -> Contestant:
    """The training step of mmengine's own wrapper (``'plain'``) or of a method, as :func:`load_method` reads it."""
    if method == PLAIN:
        wrapper, num_batches, notes = plain_wrapper(model, precision), 1, []
    else:
        settings = load_method(method)
        num_batches = settings.get('accumulative_counts', 1)
        wrapper = OPTIM_WRAPPERS.build(
            dict(settings, optimizer=make_optimizer(model), shared='encoder', precision=precision)
        )
        notes = [f'a step is {num_batches} micro-batches, each as large as the batch of ew'] * (num_batches > 1)
        notes += ['one more forward pass after the step'] * wrapper.weighting.second_look
        notes += [f'epochs of {EPOCH} steps'] * (settings['weighting'].get('interval') == EPOCH)

    def run() -> None:
        for _ in range(num_batches):
            model.train_step(data, wrapper)

    counted = counted_cost(wrapper, len(model.tasks), num_batches)
    return Contestant(run, wrapper.optimizer, counted, '; '.join(notes))


def partner_of(method: str, num_tasks: int) -> jd.Aggregator | None:
    """torchjd's aggregator for a method; None where it has none.

    Raises:
        NoPartner: torchjd has the aggregator but not the step, or not what its solver needs; says why.
    """
    if method == PLAIN:
        return None
    settings = load_method(method)
    ours = build_method(settings.get('aggregator'), AGGREGATORS)
    if type(ours).__name__ not in PARTNERS:
        return None
    weighting = build_method(settings['weighting'], WEIGHTINGS)
    if not isinstance(weighting, EqualWeighting) or settings.get('loss_transform') or settings.get('regularizers'):
        raise NoPartner('autojac has only the aggregator; losses are weighted, transformed or regularised here')
    if ours.level != 'parameter':
        raise NoPartner(f'autojac combines at the parameters; compare {method.partition("@")[0]}@parameter')
    try:
        return PARTNERS[type(ours).__name__](ours, num_tasks)
    except ImportError as error:
        raise NoPartner(str(error)) from None


class AutojacStep:
    """A training step of the same model by torchjd's ``mtl_backward``, its own aggregator and the usual Adam.

    Args:
        model: The model; its encoder makes the features.
        aggregator: torchjd's.
        data: The batch, as a data loader gives it.
        dtype: Of autocast, or None.
        lean: Rows of the Jacobian one by one instead of by vmap, and the Gramian without a copy of the Jacobian where
            the aggregator reads no more: torchjd's options for less memory, in place of its defaults.
    """

    def __init__(
        self, model: MultiTaskModel, aggregator: jd.Aggregator, data: dict, dtype: torch.dtype | None, lean: bool
    ) -> None:
        self.model, self.aggregator, self.data, self.dtype = model, aggregator, data, dtype
        self.optimizer = make_optimizer(model)
        self.shared = [p for p in model.encoder.parameters() if p.requires_grad]
        self.own = [list(head.parameters()) for head in model.heads.values()]
        self.chunk = 1 if lean else None
        by_gramian = lean and isinstance(aggregator, jd.GramianWeightedAggregator)
        self.options = dict(optimize_gramian_computation=True) if by_gramian else {}

    def __call__(self) -> None:
        features: list[Tensor] = []
        hook = self.model.encoder.register_forward_hook(lambda module, args, output: features.append(output))
        with _autocast(self.dtype, self.shared[0].device):
            batch = self.model.data_preprocessor(self.data, training=True)
            terms = self.model(**batch, mode='loss')
        hook.remove()
        losses = [
            sum(value for key, value in terms.items() if key.startswith(f'{task}.loss_')) for task in self.model.tasks
        ]
        mtl_backward(
            losses,
            features=features,
            tasks_params=self.own,
            shared_params=self.shared,
            parallel_chunk_size=self.chunk,
        )
        jac_to_grad(self.shared, self.aggregator, **self.options)
        self.optimizer.step()
        self.optimizer.zero_grad()


def make_autojac(method: str, model: MultiTaskModel, data: dict, precision: str, lean: bool) -> Contestant:
    """The step of a method by autojac, in fp32 or bf16; raises as :func:`partner_of`."""
    num_tasks = len(model.tasks)
    step = AutojacStep(model, partner_of(method, num_tasks).to(data['inputs'][0].device), data, DTYPES[precision], lean)
    return Contestant(step, step.optimizer, (3, 1 + 2 * num_tasks))


def forward_passes(model: MultiTaskModel, data: dict, precision: str) -> dict[str, Callable[[], object]]:
    """The forward passes of encoder and heads as in training (BatchNorm in training mode), without gradients."""
    inputs, samples = model.data_preprocessor(data, training=True).values()
    size = tuple(inputs.shape[-2:])
    autocast = partial(_autocast, DTYPES[precision], inputs.device)

    @torch.no_grad()
    def encoder() -> Tensor:
        with autocast():
            return model.encoder(inputs)

    features = encoder()

    @torch.no_grad()
    def heads() -> None:
        with autocast():
            for head in model.heads.values():
                head.loss_terms(head(features, size), samples)

    return dict(encoder=encoder, heads=heads)


def _autocast(dtype: torch.dtype | None, device: torch.device):
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)
