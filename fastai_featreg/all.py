"What a notebook needs: `from fastai_featreg.all import *`. The machinery behind it stays in its modules."
from fastai_featreg.anatomy import Anatomy, Stage, get_anatomy
from fastai_featreg.core import FeatureCallback, feature_maps, register_method
from fastai_featreg.feature_mining import (FeatureMining, FeatureMiningHead, activation_counts, box_mask, mined_pool, plot_activations,
                                           point_mask, show_mining)
from fastai_featreg.data import (boxed_folder_dls, cifar_dls, digit_scenes, digits_dls, folder_dls, get_boxes, load_data, show_boxes)
from fastai_featreg.compare import compare, plot_comparison, read_results, summarise, summary_table, verdicts

__all__ = ['Anatomy', 'Stage', 'get_anatomy', 'FeatureCallback', 'feature_maps', 'register_method', 'FeatureMining', 'FeatureMiningHead',
           'activation_counts', 'box_mask', 'mined_pool', 'plot_activations', 'point_mask', 'show_mining', 'boxed_folder_dls', 'cifar_dls',
           'digit_scenes', 'digits_dls', 'folder_dls', 'get_boxes', 'load_data', 'show_boxes', 'compare', 'plot_comparison', 'read_results',
           'summarise', 'summary_table', 'verdicts']
