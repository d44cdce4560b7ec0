"""Counts parameters and operations (FLOPs) of encoder, neck and heads, and of a training step of each method.

mmrepmtl analyse cost nyuv2/rep-mtl_resnet50-d8_deeplab_b8-200e_nyuv2-288x384
"""

import argparse
import copy
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from mmengine.config import Config, DictAction
from mmengine.registry import init_default_scope

from mmrepmtl.analysis.cost import Part, Passes, StepCost, count_passes, model_cost, step_costs
from mmrepmtl.analysis.cost_figure import cost_figure
from mmrepmtl.analysis.figures import check_figure_format, write_figure, write_numbers
from mmrepmtl.apis import available_methods, load_config
from mmrepmtl.cli.analyses.runs import add_out_argument
from mmrepmtl.deployment.export import input_size
from mmrepmtl.engine.methods import build_method
from mmrepmtl.registry import AGGREGATORS, MODELS, REGULARIZERS, WEIGHTINGS
from mmrepmtl.utils.folders import check_writable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    parser.add_argument('config', help='a config file, or the name of one of this package (FOLDER/NAME)')
    parser.add_argument(
        '--size', type=int, nargs=2, metavar=('H', 'W'), help='size of the network input, instead of the config'
    )
    parser.add_argument(
        '--methods', nargs='+', metavar='METHOD', help='methods whose training step is counted (default: all)'
    )
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='key=value pairs that override the config')
    add_out_argument(parser, 'cost.png')


def run(args: argparse.Namespace) -> None:
    """Runs the command."""
    check_figure_format(args.out)
    check_writable(Path(args.out).parent)
    cfg = load_config(args.config, cfg_options=args.cfg_options)
    init_default_scope(cfg.get('default_scope', 'mmrepmtl'))
    size = input_size(cfg, args.size)
    model = MODELS.build(without_weights(cfg))
    parts = model_cost(model, size, (cfg.get('optim_wrapper') or {}).get('shared', 'encoder'))
    costs = _costs(args, parts, getattr(model, 'encoder_forward', 'shared'), len(model.tasks))
    print_parts(parts, size)
    print_costs(costs)
    title = f'{Path(args.config).stem}, {size[0]} x {size[1]}'
    write_figure(cost_figure(parts, costs, title), args.out)
    numbers = dict(
        config=str(args.config),
        size=list(size),
        parts=[asdict(part) for part in parts],
        steps=[asdict(cost) for cost in costs],
    )
    print(f'cost: {args.out}, {write_numbers(args.out, numbers)}')


def without_weights(cfg: Config) -> dict:
    """The config of the model, which loads no weights: they change no count."""
    model = copy.deepcopy(cfg.model)
    encoder = model.get('encoder') or {}
    for key, without in (('pretrained', False), ('checkpoint', None)):
        if key in encoder:
            encoder[key] = without
    return model


def _costs(args: argparse.Namespace, parts: Sequence[Part], encoder_forward: str, num_tasks: int) -> list[StepCost]:
    """The counted costs of the methods; what cannot be counted is said and left out."""
    known = available_methods(args.config)
    methods = args.methods or known
    unknown = [method for method in methods if method not in known]
    if unknown:
        raise ValueError(f'cost: there is no method {unknown[0]!r}; there are {", ".join(known)}')
    passes: dict[str, Passes] = {}
    single = None
    for method in methods:
        cfg = load_config(args.config, method=method, cfg_options=args.cfg_options)
        if cfg.get('single_task'):
            single = method
            continue
        wrapper = cfg.optim_wrapper
        try:
            passes[method] = count_passes(
                build_method(wrapper.get('weighting'), WEIGHTINGS),
                build_method(wrapper.get('aggregator'), AGGREGATORS),
                [build_method(each, REGULARIZERS) for each in wrapper.get('regularizers') or ()],
                num_tasks,
                wrapper.get('accumulative_counts', 1),
                encoder_forward == 'per_task',
            )
        except ValueError as error:
            if 'is not known' not in str(error):
                raise
            print(f'{method} is left out: {error}')
    return step_costs(parts, passes, single, encoder_forward != 'shared')


def print_parts(parts: Sequence[Part], size: Sequence[int]) -> None:
    """Prints the parts, their sum, and what each is of it."""
    total = Part('all', sum(p.parameters for p in parts), sum(p.flops for p in parts), False)
    width = max(len(part.name) for part in (*parts, total))
    print(f'{"":{width}}  {"parameters":>12}  {"GFLOPs":>9}  {"share":>6}   one forward pass, {size[0]} x {size[1]}')
    for part in (*parts, total):
        share = 100 * part.flops / max(total.flops, 1)
        print(f'{part.name:{width}}  {part.parameters / 1e6:>10.3f} M  {part.flops / 1e9:9.3f}  {share:5.1f} %')


def print_costs(costs: Sequence[StepCost]) -> None:
    """Prints the training step of each group of methods."""
    if not costs:
        return
    print(f'\n{"GFLOPs":>9}  {"x ew":>5}  {"passes":16}  one training step, per image')
    for cost in costs:
        print(f'{cost.flops / 1e9:9.3f}  {cost.ratio:5.2f}  {cost.passes:16}  {", ".join(cost.methods)}')
