"""The kinds of targets: the facts about each, said once, and tables of what is done with them elsewhere.

A data set declares the kind of each target in ``metainfo['targets'][NAME]['kind']``, a head (``TaskHead.kind``) the
kind that it learns, a metric (``StreamingMetric.kind``) the kind that it evaluates. Behaviour stays where it acts
(drawing, checking, resizing ...), as a :class:`KindTable`; :func:`gaps` lists the tables that lack a kind.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

VOID = 255
"""The class id of pixels without a class."""

IMAGE_ENDINGS = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff', '.npy')
"""Endings of files that an own data set reads as images."""

_MAP_ENDINGS = ('.png', '.npy', '.tif', '.tiff', '.bmp')

Axis = str | int
"""'H' and 'W' of the image, another letter for a size that differs from target to target, or the size itself."""


@dataclass(frozen=True)
class Kind:
    """The facts about a kind of target.

    Args:
        name: As data sets, heads and metrics declare it.
        array: Axes of a loaded target, dense ones (H, W) first; ``()`` is a single number.
        dtype: Type of the loaded target: 'int64' for ids, else 'float32'.
        tensor: Axes of the target in a ``MultiTaskDataSample``, channels first.
        prediction: The form of a prediction there, in words.
        void: Value that means "unknown here"; None where only a whole target can be missing.
        head: Name of the head that learns it, in the registry ``MODELS``.
        metric: Name of its metric, in the registry ``METRICS``.
        names: Entry of the declaration that lists its classes or numbers, which it must have: 'classes', 'names' or
            None.
        count: Argument of heads that says how many of these there are.
        options: The keys that a declaration may have beside its kind.
        files: Those of the options that are about the files of an own data set, so that ``metainfo`` is without them.
        required: Those of the options that an own data set must state.
        endings: Endings of the files that an own data set reads it from; () if it does not.
        legend: The meaning of a panel's colours; '' if a panel holds names or text.
        ranged: Whether the range of these colours differs from sample to sample, so that a panel needs a scale.
        like: Name of a kind of the same form whose entries the tables take where they have none for this one.
        directions: Whether pixels hold unit vectors (right, into the scene, up), whose first part a mirror negates.
    """

    name: str
    array: tuple[Axis, ...]
    dtype: str
    tensor: tuple[Axis, ...]
    prediction: str
    void: float | None
    head: str
    metric: str
    names: str | None = None
    count: str | None = None
    options: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    endings: tuple[str, ...] = ()
    legend: str = ''
    ranged: bool = False
    directions: bool = False
    like: str | None = None

    @property
    def meta(self) -> tuple[str, ...]:
        """The options that are part of ``metainfo``."""
        return tuple(option for option in self.options if option not in self.files)

    @property
    def dense(self) -> bool:
        """Whether it has a value for every pixel, so that it is resized, padded and mirrored with its image."""
        return self.array[:2] == ('H', 'W')

    @property
    def of_images(self) -> bool:
        """Whether it is one class of a whole image, which own data may name by text and list nowhere else."""
        return self.names == 'classes' and not self.dense

    @property
    def has_ids(self) -> bool:
        """Whether its values are ids of classes (a yes-or-no target has the two ids 0 and 1)."""
        return self.dtype.startswith('int')

    def __post_init__(self) -> None:
        if self.dtype not in ('int64', 'float32'):
            raise ValueError(f"kind {self.name!r}: dtype is {self.dtype!r}, expected 'int64' or 'float32'")
        if self.dense and self.tensor[-2:] != ('H', 'W'):
            raise ValueError(f'kind {self.name!r}: dense, but its tensor is {self.tensor}; (H, W) must come last')
        if self.dense and self.void is None:
            raise ValueError(f'kind {self.name!r}: dense, but without a void value, which padding needs')
        if not self.dense and len(self.tensor) != len(self.array):
            raise ValueError(f'kind {self.name!r}: axes {self.array} of the array, but {self.tensor} of the tensor')
        unknown = [
            option for option in (*self.files, *self.required, self.names) if option not in (*self.options, None)
        ]
        if unknown:
            raise ValueError(f'kind {self.name!r}: {unknown[0]!r} is not among its options')
        if self.like is not None:
            other = find_kind(self.like, f'kind {self.name!r}: like')
            for fact in ('array', 'dtype', 'tensor', 'void', 'names', 'directions'):
                own, there = getattr(self, fact), getattr(other, fact)
                if own != there and str(own) != str(there):  # NaN is not equal to itself
                    raise ValueError(
                        f'kind {self.name!r} cannot be like {self.like!r}, whose {fact} is {there!r} instead of {own!r}'
                    )


KINDS: dict[str, Kind] = {}
"""{name: kind}, in the order in which messages list them."""


def register_kind(kind: Kind) -> Kind:
    """Makes a kind known to data sets, heads and metrics.

    Raises:
        ValueError: There is another kind of this name.
    """
    if KINDS.setdefault(kind.name, kind) != kind:
        raise ValueError(f'there is a kind {kind.name!r} with other facts already; give yours another name')
    return kind


def find_kind(name: object, where: str) -> Kind:
    """The kind of this name.

    Raises:
        ValueError: There is none; the message begins with ``where``.
    """
    if not isinstance(name, str) or name not in KINDS:
        raise ValueError(f'{where}: kind is {name!r}, expected one of {", ".join(KINDS)}')
    return KINDS[name]


Entry = TypeVar('Entry')

TABLES: 'list[KindTable[Any]]' = []
"""The tables of all modules that have been imported."""


class KindTable(dict[str, Entry], Generic[Entry]):
    """One module's behaviour for each kind of target: {kind: entry}.

    A dict, but a kind that it lacks is a clear error, a kind that is ``like`` another has its entry unless it has an
    entry of its own, and :func:`gaps` looks at it.

    Args:
        place: Its full name, 'package.module.NAME'.
        entries: The entries by name of the kind.
        dense: True or False: it is about dense kinds, or about the others, only. None: about all.
    """

    def __init__(self, place: str, entries: Mapping[str, Entry], dense: bool | None = None) -> None:
        super().__init__(entries)
        self.place = place
        self.dense = dense
        TABLES.append(self)

    def register(self, kind: str, entry: Entry) -> None:
        """Adds the entry of a kind.

        Raises:
            ValueError: There is no such kind, the table is not about it, or it has another entry already.
        """
        facts = find_kind(kind, f'{self.place}.register')
        if not self.is_about(facts):
            raise ValueError(f'{self.place} is about {self._scope()} only, which {kind!r} is not')
        # Not ``in``, which also finds the entry of the kind that it is like.
        if self.setdefault(kind, entry) is not entry:
            raise ValueError(f'{self.place} has another entry for the kind {kind!r} already')

    def is_about(self, kind: Kind) -> bool:
        """Whether the table must have an entry for this kind."""
        return self.dense is None or self.dense == kind.dense

    def get(self, kind: str, default: Any = None) -> Any:
        """The entry of a kind, else ``default``."""
        return self[kind] if kind in self else default

    def __contains__(self, kind: object) -> bool:
        return super().__contains__(kind) or self._model_of(kind) is not None

    def __missing__(self, kind: str) -> Entry:
        model = self._model_of(kind)
        if model is not None:
            return self[model]
        if isinstance(kind, str) and kind in KINDS and not self.is_about(KINDS[kind]):
            raise ValueError(f'{self.place} is about {self._scope()} only, which {kind!r} is not')
        name = self.place.rpartition('.')[2]
        raise ValueError(
            f'{self.place} knows nothing of the kind {kind!r}, only of {", ".join(self)}; add it with '
            f'{name}.register({kind!r}, ...)'
        )

    def _model_of(self, kind: object) -> str | None:
        """The kind that this one is declared to be like, if the table has an entry for that."""
        like = KINDS[kind].like if isinstance(kind, str) and kind in KINDS else None
        return like if like is not None and like in self else None

    def _scope(self) -> str:
        return 'dense kinds' if self.dense else 'kinds without pixels'


def gaps(kinds: Iterable[str] | None = None) -> list[str]:
    """Lists the tables that lack an entry for these kinds (None: all): 'package.module.NAME: KIND' each.

    Only tables of modules that have been imported are looked at.
    """
    names = KINDS if kinds is None else kinds
    return [
        f'{table.place}: {name}'
        for table in TABLES
        for name in names
        if table.is_about(find_kind(name, 'gaps')) and name not in table
    ]


for _kind in (
    Kind(
        name='segmentation',
        array=('H', 'W'),
        dtype='int64',
        tensor=('H', 'W'),
        prediction='(H, W) int64 class ids',
        void=VOID,
        head='SegmentationHead',
        metric='SegmentationMetric',
        names='classes',
        count='num_classes',
        options=('classes', 'palette', 'ids', 'void'),
        files=('ids', 'void'),
        required=('classes',),
        endings=_MAP_ENDINGS,
    ),
    Kind(
        name='binary',
        array=('H', 'W'),
        dtype='int64',
        tensor=('H', 'W'),
        prediction='(H, W) float, probability of 1',
        void=VOID,
        head='BinaryHead',
        metric='SaliencyMetric',
        options=('thin', 'ids', 'void'),
        files=('ids', 'void'),
        required=('ids',),
        endings=_MAP_ENDINGS,
        legend='white is yes, black no, grey a probability, dark red void',
    ),
    Kind(
        name='depth',
        array=('H', 'W'),
        dtype='float32',
        tensor=(1, 'H', 'W'),
        prediction='(1, H, W) float, metres',
        void=0.0,
        head='DepthHead',
        metric='DepthMetric',
        options=('scale', 'inverse'),
        files=('scale',),
        endings=_MAP_ENDINGS,
        legend='depth in metres',
        ranged=True,
    ),
    Kind(
        name='normals',
        array=('H', 'W', 3),
        dtype='float32',
        tensor=(3, 'H', 'W'),
        prediction='(3, H, W) float, unit length',
        void=0.0,
        head='NormalHead',
        metric='NormalMetric',
        endings=IMAGE_ENDINGS,
        legend='red faces right, green up, blue the camera',
        directions=True,
    ),
    Kind(
        name='classification',
        array=(),
        dtype='int64',
        tensor=(),
        prediction='(K,) float scores',
        void=None,
        head='ClassificationHead',
        metric='ClassificationMetric',
        names='classes',
        count='num_classes',
        options=('classes',),
        endings=('.txt',),
    ),
    Kind(
        name='regression',
        array=('D',),
        dtype='float32',
        tensor=('D',),
        prediction='(D,) float',
        void=math.nan,
        head='RegressionHead',
        metric='RegressionMetric',
        names='names',
        count='num_values',
        options=('names',),
        endings=('.txt', '.npy'),
    ),
):
    register_kind(_kind)
