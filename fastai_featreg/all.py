"What a notebook needs: `from fastai_featreg.all import *`. The machinery behind it stays in its modules."
from fastai_featreg.anatomy import Anatomy, get_anatomy
from fastai_featreg.parting import body_head, cut_after
from fastai_featreg.stages import Stage
from fastai_featreg.core import FeatureCallback, LossCallback, register_method
from fastai_featreg.taps import feature_maps, to_torch
from fastai_featreg.maps import (box_iou_at, box_masks, caam, caam_cam_distance, cam, cam_and_caam, CamCallback,
                                 centre_map, class_weights, ClassWeights, energy_inside, grad_cam, grad_cam_pp, map_boxes,
                                 mask_iou_at, max_box_acc, minmax, pointing_game, pooled_map, resize_maps)
from fastai_featreg.look import Cams, get_cams, show_cams
from fastai_featreg.localise import CamMetric, localisation
from fastai_featreg.teachers import open_teacher
from fastai_featreg.data import boxed_folder_dls, cifar_dls, digit_scenes, digits_dls, folder_dls, get_boxes, load_data, show_boxes
from fastai_featreg.files import open_image
from fastai_featreg.folders import read_layout
from fastai_featreg.nets import (resnet8, resnet20, resnet56, resnet110, resnet164, wrn16_2, wrn16_4, wrn20_4, wrn20_8,
                                 wrn28_2, wrn28_4, wrn28_10, resnext29_8x64d, densenet100_12, densenet_bc100_12,
                                 densenet_bc190_40, pyramidnet110_270, pyramidnet200_240, Truncated)
from fastai_featreg.compare import compare, plot_comparison, read_results, summarise, summary_table, verdicts
from fastai_featreg.methods import modules as _modules
from fastai_featreg import drop_effects as _effects, drop_functions as _functions, drop_layers as _layers

# Of a module with a method, and of the pages behind the drops, all that they export, but for what one asks the module
# itself for: parts of a machinery, and names that are too general for a user's notebook.
_by_module = {'AnswerCache', 'channel_scores', 'check_rates', 'check_same_shape', 'check_score', 'check_selectout',
              'default_score', 'eased', 'Ensemble', 'frozen_view', 'Guide', 'idle_text', 'InputTap',
              'inside_views', 'linear_curriculum', 'loss_on_views', 'mined_stages', 'n_right', 'normalisation',
              'open_teacher', 'over_ranks', 'renormaliser', 'RunningAccuracy', 'start_accuracy', 'Views',
              'where_text', 'wrong_classes'}
globals().update({_name: getattr(_module, _name)
                  for _module in (*_modules.values(), _functions, _layers, _effects)
                  for _name in _module.__all__ if _name not in _by_module})

__all__ = [name for name in globals() if not name.startswith('_')]
