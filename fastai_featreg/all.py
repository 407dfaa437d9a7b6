"What a notebook needs: `from fastai_featreg.all import *`. The machinery behind it stays in its modules."
from fastai_featreg.anatomy import Anatomy, Stage, get_anatomy
from fastai_featreg.maps import (CamMetric, Cams, ClassWeights, box_iou_at, box_masks, caam, caam_cam_distance, cam, cam_and_caam, centre_map, class_weights,
                                 energy_inside, get_cams, grad_cam, grad_cam_pp, localisation, map_boxes, mask_iou_at, max_box_acc, minmax,
                                 pointing_game, pooled_map, resize_maps, show_cams)
from fastai_featreg.core import FeatureCallback, feature_maps, register_method
from fastai_featreg.feature_mining import (FeatureMining, FeatureMiningHead, activation_counts, box_mask, mined_pool, plot_activations,
                                           point_mask, show_mining)
from fastai_featreg.drop import (DropBlock, DropCallback, FeatureDropout, SelectDrop2d, SelectScale, SelectScale2d, Selectout, Selectout2d, SpatialDropout,
                                 SpatialScale, SpatialScale2d, find_drop_layers, drop_block, plot_dropped_errors, select_drop, select_scale, selectout, show_drop_layers,
                                 show_drops, spatial_dropout, spatial_scale, dropped_errors, top_channels)
from fastai_featreg.cam_loss import CAMLoss, CamCallback, NegativeCAM, cam_loss, negative_cam_loss, show_cam_loss
from fastai_featreg.data import (boxed_folder_dls, cifar_dls, digit_scenes, digits_dls, folder_dls, get_boxes, load_data, show_boxes)
from fastai_featreg.nets import (resnet20, resnet56, resnet110, resnet164, wrn16_4, wrn20_4, wrn20_8, wrn28_2,
                                 wrn28_4, wrn28_10, resnext29_8x64d, densenet100_12, pyramidnet110_270)
from fastai_featreg.compare import compare, plot_comparison, read_results, summarise, summary_table, verdicts

__all__ = ['Anatomy', 'Stage', 'get_anatomy', 'FeatureCallback', 'feature_maps', 'register_method', 'FeatureMining', 'FeatureMiningHead',
           'activation_counts', 'box_mask', 'mined_pool', 'plot_activations', 'point_mask', 'show_mining', 'DropBlock', 'DropCallback', 'FeatureDropout', 'SelectDrop2d', 'SelectScale', 'SelectScale2d',
           'Selectout', 'Selectout2d', 'SpatialDropout', 'SpatialScale', 'SpatialScale2d', 'find_drop_layers', 'drop_block', 'plot_dropped_errors', 'select_drop', 'select_scale',
           'selectout', 'show_drop_layers', 'show_drops', 'spatial_dropout', 'spatial_scale', 'dropped_errors', 'top_channels', 'CAMLoss', 'CamCallback', 'NegativeCAM',
           'cam_loss', 'negative_cam_loss', 'show_cam_loss', 'CamMetric', 'Cams', 'ClassWeights', 'box_iou_at', 'box_masks', 'caam', 'caam_cam_distance', 'cam',
           'cam_and_caam', 'centre_map', 'class_weights', 'energy_inside', 'get_cams', 'grad_cam', 'grad_cam_pp', 'localisation', 'map_boxes', 'mask_iou_at',
           'max_box_acc', 'minmax', 'pointing_game', 'pooled_map', 'resize_maps', 'show_cams', 'boxed_folder_dls', 'cifar_dls',
           'digit_scenes', 'digits_dls', 'folder_dls', 'get_boxes', 'load_data', 'show_boxes', 'compare', 'plot_comparison', 'read_results',
           'summarise', 'summary_table', 'verdicts', 'resnet20', 'resnet56', 'resnet110', 'resnet164', 'wrn16_4', 'wrn20_4',
           'wrn20_8', 'wrn28_2', 'wrn28_4', 'wrn28_10', 'resnext29_8x64d', 'densenet100_12', 'pyramidnet110_270']
