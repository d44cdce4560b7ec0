"""A web page that shows what a trained model predicts on a picture, and each task's saliency; served by Gradio."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from mmrepmtl.analysis.saliency_maps import SaliencySettings, mirrored_targets, saliency_maps
from mmrepmtl.apis.inferencer import MultiTaskInferencer
from mmrepmtl.apis.splits import loader_of
from mmrepmtl.datasets import SynthRoomsDataset
from mmrepmtl.datasets.pictures import read_bytes, read_header
from mmrepmtl.datasets.readers import read_picture_image
from mmrepmtl.demo.prediction_panels import CSS, Panel, input_panel, panel_size, prediction_panel, saliency_panels
from mmrepmtl.structures import MultiTaskDataSample
from mmrepmtl.utils.config_types import type_name
from mmrepmtl.visualization import write_picture
from mmrepmtl.visualization.draw import to_picture
from mmrepmtl.visualization.panels import fit

#: Larger pictures are refused, by the file's header: decoding them takes gigabytes.
MAX_PIXELS = 50_000_000
#: Larger files are refused.
MAX_FILE = '25mb'
#: Pictures are shrunk to it, since a page needs no more and a network without a size of its own takes what it gets.
MAX_SIDE = 1024
#: Number of visitors that may wait; each picture is worked on alone.
MAX_WAITING = 16

_EMBEDDED = 'SynthRoomsDataset'
_EXAMPLES = (1, 3, 12, 17, 22, 33, 42, 45)
_EXAMPLE_SIZE = (240, 320)


class Answer(NamedTuple):
    """Everything that the page shows for one picture.

    Attributes:
        note: The changes made to the picture, HTML.
        network_input: The picture as the network sees it.
        predictions: {task: panel}.
        saliency: {task: panel}; empty panels where there is none.
        ownership: Who owns each position of Z.
        missing: Why there is no saliency, or ''.
    """

    note: str
    network_input: Panel
    predictions: dict[str, Panel]
    saliency: dict[str, Panel]
    ownership: Panel
    missing: str = ''


class Demo:
    """Answers with the panels of a picture.

    The picture has no truth; as in ``tools/analysis_tools/show_saliency.py`` the saliency is that of the losses against
    the model's own prediction on the mirrored picture.

    Args:
        inferencer: With the model.
    """

    def __init__(self, inferencer: MultiTaskInferencer) -> None:
        self.inferencer = inferencer
        wrapper = inferencer.cfg.get('optim_wrapper') or {}
        # A MultiTaskModel's Z is what its encoder gives, unless the config says otherwise.
        self.settings = SaliencySettings.of(inferencer.cfg) if 'shared' in wrapper else SaliencySettings('encoder')
        self.metas = {task: inferencer.targets_meta[target] for task, target in inferencer.head_targets.items()}

    def __call__(self, path: str | Path, name: str) -> Answer:
        """Predicts on an uploaded file.

        Args:
            path: The file.
            name: The name that its owner gave it.

        Raises:
            ValueError: It is no picture, too large, or cannot be predicted on; names the file.
        """
        picture, original = read_upload(path, name)
        (result,) = self.inferencer(picture)
        if result.error is not None:
            raise ValueError(f'{name}: {result.error}')
        size = panel_size(*picture.shape[:2])
        predictions = {
            task: prediction_panel(value, self.metas[task], size) for task, value in result.predictions.items()
        }
        prepared = self.inferencer.pipeline(np.divide(picture, 255, dtype=np.float32), name)
        sample = MultiTaskDataSample(metainfo=dict(img_shape=prepared.content))
        seen = to_picture(prepared.inputs, sample)
        saliency = {task: Panel(None, '') for task in predictions}
        ownership, missing, grids = Panel(None, ''), '', []
        try:
            targets = mirrored_targets(self.inferencer.model, [prepared.inputs], self.inferencer.targets_meta)
            levels = saliency_maps(self.inferencer.model, [prepared.inputs], targets, self.settings)
        except ValueError as error:  # the predictions are worth seeing all the same
            missing = str(error)
        else:
            grids = [(level.magnitude_TBHW.shape[-2], level.magnitude_TBHW.shape[-1]) for level in levels]
            saliency, ownership = saliency_panels(levels, fit(picture, size, smooth=True), prepared.content)
        height, width = picture.shape[:2]
        note = f'{escape(name)}: {original[1]} x {original[0]} pixels'
        if (height, width) != original:
            note += f', shrunk to {width} x {height}'
        return Answer(note, input_panel(seen, size, grids), predictions, saliency, ownership, missing)


def read_upload(path: str | Path, name: str) -> tuple[np.ndarray, tuple[int, int]]:
    """Reads a file that someone gives us as a picture.

    Returns:
        (H, W, 3) uint8 RGB, no side above MAX_SIDE, and the (height, width) that the file has.

    Raises:
        ValueError: It is no picture, or has more than MAX_PIXELS pixels; names the file.
    """
    try:
        header = read_header(read_bytes(str(path), 'an image', MAX_PIXELS).data, name, 'an image', 2**62)
    except (OSError, ValueError) as error:
        raise ValueError(f'{name} cannot be read as an image, or is damaged; give a JPEG, PNG or WebP file') from error
    height, width = header.size
    if width * height > MAX_PIXELS:
        raise ValueError(f'{name}: {width} x {height} pixels; at most {MAX_PIXELS // 10**6} million are taken')
    try:
        picture = np.rint(255 * read_picture_image(str(path))).astype(np.uint8)
    except (OSError, ValueError, MemoryError, cv2.error) as error:
        raise ValueError(f'{name} cannot be read as an image, or is damaged; give a JPEG, PNG or WebP file') from error
    original = (picture.shape[0], picture.shape[1])
    scale = MAX_SIDE / max(original)
    if scale < 1:
        picture = fit(picture, tuple(max(round(side * scale), 1) for side in original), smooth=True)
    return picture, original


def render_examples(folder: str | Path) -> list[Path]:
    """Renders a few rooms of the embedded data set's test split into PNG files."""
    rooms = SynthRoomsDataset(size=_EXAMPLE_SIZE, num_samples=max(_EXAMPLES) + 1, split='test', lazy_init=True)
    paths = []
    for index in _EXAMPLES:
        paths.append(Path(folder) / f'room_{index:03d}.png')
        image = rooms.load_sample(dict(room=index))['img']
        write_picture(paths[-1], np.rint(255 * image).clip(0, 255).astype(np.uint8))
    return paths


def build_page(demo: Demo, examples: Sequence[Path]) -> Any:
    """The page: a place for the picture, examples to click, and two rows of panels, as ``gradio.Blocks``."""
    gr = _import_gradio()
    tasks = list(demo.metas)
    with gr.Blocks(title='mmrepmtl', analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(_heading(demo))
        with gr.Row():
            with gr.Column(scale=2):
                upload = gr.Image(
                    label='Picture', type='filepath', sources=['upload', 'clipboard'], height=300, elem_id='upload'
                )
            with gr.Column(scale=3):
                gr.Examples(
                    [[str(path)] for path in examples],
                    upload,
                    label='Examples: rendered rooms of the embedded data set',
                    cache_examples=False,
                    elem_id='examples',
                )
                note = gr.HTML(elem_id='note')
        gr.Markdown('## Predictions')
        with gr.Row(elem_classes='panels'):
            panels = [_panel(gr, 'input', "the network's input")]
            panels += [_panel(gr, f'prediction-{task}', task, demo.metas[task]['kind']) for task in tasks]
        gr.Markdown(f'## Saliency\n{_saliency_text(demo.settings)}')
        missing = gr.HTML(elem_id='missing')
        with gr.Row(elem_classes='panels'):
            panels.append(_panel(gr, 'ownership', 'ownership P', 'whose saliency it is'))
            panels += [_panel(gr, f'saliency-{task}', f'|s| of {task}') for task in tasks]
        outputs = [note, missing, *(component for panel in panels for component in panel)]

        def predict(upload: dict | None) -> list:
            return _values(gr, demo, upload, len(panels))

        # The outputs still show the picture before; they are cleared even if the new file is no picture.
        upload.change(
            lambda: [None] * len(outputs), None, outputs, queue=False, show_progress='hidden', api_visibility='private'
        ).then(
            # Without preprocessing, so that a file that is no picture gets our message and not that of a decoder.
            predict,
            upload,
            outputs,
            preprocess=False,
            show_progress_on=[note],
            concurrency_limit=1,
            api_visibility='private',
        ).failure(lambda: None, None, upload, queue=False, show_progress='hidden', api_visibility='private')
    return page.queue(max_size=MAX_WAITING)


def _panel(gr: Any, name: str, title: str, kind: str = '') -> tuple[Any, Any]:
    with gr.Column(elem_classes='column'):
        gr.HTML(f'<b>{escape(title)}</b> {escape(kind if kind != title else "")}')
        picture = gr.Image(
            show_label=False, interactive=False, format='png', buttons=['download', 'fullscreen'], elem_id=name
        )
        return picture, gr.HTML(elem_id=f'{name}-legend')


def _heading(demo: Demo) -> str:
    checkpoint = Path(demo.inferencer.checkpoint)
    kinds = ', '.join(f'{task} ({meta["kind"]})' for task, meta in demo.metas.items())
    loader = loader_of(demo.inferencer.cfg, 'train') or {}
    data = type_name((loader.get('dataset') or {}).get('type'))
    trained_on = ', which has seen rendered rooms only and is often wrong on photos' if data == _EMBEDDED else ''
    return (
        '# mmrepmtl: one network, all tasks at once\n'
        'Drop a picture, paste one, or click an example. One shared encoder and a small head for each task predict: '
        f'{kinds}. The model is `{checkpoint.parent.name}/{checkpoint.name}`{trained_on}. Pictures stay on the machine '
        'that serves this page.'
    )


def _saliency_text(settings: SaliencySettings) -> str:
    loss = 'log L' if settings.transform == 'log' else 'L'
    return (
        f"How much each position of the shared representation Z weighs in a task's loss L: |s|, the magnitude of the "
        f"channel mean of d {loss} / dZ; since the picture has no truth, L compares with the model's own prediction "
        'on the mirrored picture, so that bright is where the model disagrees with itself, not where it errs.'
    )


def _values(gr: Any, demo: Demo, upload: dict | None, panels: int) -> list:
    """The values of all outputs, in their order."""
    if upload is None:
        return [None] * (2 + 2 * panels)
    name = upload.get('orig_name') or 'the picture'
    try:
        answer = demo(upload['path'], name)
    except ValueError as error:
        raise gr.Error(escape(str(error)), print_exception=False) from error
    shown = [answer.network_input, *(answer.predictions[task] for task in demo.metas)]
    shown += [answer.ownership, *(answer.saliency[task] for task in demo.metas)]
    missing = f'No saliency: {escape(answer.missing)}' if answer.missing else ''
    return [answer.note, missing, *(value for panel in shown for value in panel)]


class _OwnOriginOnly:
    """ASGI middleware: forbids browsers to fetch anything for the page from another place than this server."""

    policy = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        async def send_with_policy(message: dict) -> None:
            if message['type'] == 'http.response.start':
                header = (b'content-security-policy', self.policy.encode())
                message = dict(message, headers=[*message.get('headers', []), header])
            await send(message)

        await self.app(scope, receive, send_with_policy)


def serve(inferencer: MultiTaskInferencer, host: str = '127.0.0.1', port: int = 7860) -> None:
    """Serves the page until it is interrupted; says in one line where it is.

    Nothing leaves the machine: no analytics, no share link, no fonts or scripts from elsewhere. Uploaded pictures lie
    in a temporary folder, which goes with the server.

    Args:
        inferencer: With the model.
        host: Address to listen on; the default is this machine only.
        port: Port to listen on.

    Raises:
        ValueError: Gradio is not installed, or host and port cannot be listened on.
    """
    with _private_folder() as folder:
        gr = _import_gradio()
        page = build_page(Demo(inferencer), render_examples(folder))
        try:
            _, url, _ = page.launch(
                server_name=host,
                server_port=port,
                share=False,
                inbrowser=False,
                quiet=True,
                prevent_thread_lock=True,
                theme=gr.themes.Default(font=['system-ui', 'sans-serif'], font_mono=['ui-monospace', 'monospace']),
                css=CSS,
                footer_links=[],
                run_history=False,
                enable_monitoring=False,
                ssr_mode=False,
                max_file_size=MAX_FILE,
                app_kwargs=dict(middleware=[_middleware()]),
            )
        except OSError as error:
            raise ValueError(f'port {port} is taken, or {host} is no address of this machine; give another') from error
        print(f'The demo is at {url} (Ctrl-C ends it)', flush=True)
        page.block_thread()


def _middleware() -> Any:
    from starlette.middleware import Middleware

    return Middleware(_OwnOriginOnly)


def _import_gradio() -> Any:
    # Read on import.
    os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'
    try:
        import gradio
    except ImportError as error:
        raise ValueError(
            f'the web demo needs gradio ({error}): run `make demo`, or pip install mmrepmtl[demo]'
        ) from error
    return gradio


@contextmanager
def _private_folder() -> Iterator[str]:
    """A temporary folder for examples and uploads, and no proxy between Gradio and its own server."""
    for variable in ('NO_PROXY', 'no_proxy'):
        os.environ[variable] = ','.join(filter(None, [os.environ.get(variable), '127.0.0.1', 'localhost']))
    with tempfile.TemporaryDirectory(prefix='mmrepmtl_demo_') as folder:
        os.environ['GRADIO_TEMP_DIR'] = folder
        yield folder
