from mmrepmtl.evaluation.average_hook import AverageMetricHook
from mmrepmtl.evaluation.classification_metric import ClassificationMetric
from mmrepmtl.evaluation.constant_baseline import comparison_table, evaluate_constants, fit_constants
from mmrepmtl.evaluation.delta_p import ARI, check_baseline, delta_m, delta_p, delta_p_metric, delta_p_task
from mmrepmtl.evaluation.depth_metric import DepthMetric
from mmrepmtl.evaluation.edge_metric import EdgeMetric
from mmrepmtl.evaluation.metric_table import METRIC_TABLE, MetricInfo, higher_is_better, is_better
from mmrepmtl.evaluation.normal_metric import NormalMetric
from mmrepmtl.evaluation.regression_metric import RegressionMetric
from mmrepmtl.evaluation.results import load_baseline, load_results, save_results
from mmrepmtl.evaluation.saliency_metric import SaliencyMetric
from mmrepmtl.evaluation.segmentation_metric import SegmentationMetric
from mmrepmtl.evaluation.streaming import StreamingMetric

__all__ = [
    'ARI',
    'AverageMetricHook',
    'ClassificationMetric',
    'DepthMetric',
    'EdgeMetric',
    'METRIC_TABLE',
    'MetricInfo',
    'NormalMetric',
    'RegressionMetric',
    'SaliencyMetric',
    'SegmentationMetric',
    'StreamingMetric',
    'check_baseline',
    'comparison_table',
    'delta_m',
    'delta_p',
    'delta_p_metric',
    'delta_p_task',
    'evaluate_constants',
    'fit_constants',
    'higher_is_better',
    'is_better',
    'load_baseline',
    'load_results',
    'save_results',
]
