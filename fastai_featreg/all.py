"What a notebook needs: `from fastai_featreg.all import *`. The machinery behind it stays in its modules."
from fastai_featreg.anatomy import Anatomy, body_head, cut_after, get_anatomy, Stage
from fastai_featreg.fits import LossCallback
from fastai_featreg.core import FeatureCallback, register_method
from fastai_featreg.taps import feature_maps, to_torch
from fastai_featreg.maps import (box_iou_at, box_masks, caam, caam_cam_distance, cam, cam_and_caam, CamCallback,
                                 centre_map, class_weights, ClassWeights, energy_inside, grad_cam, grad_cam_pp, map_boxes,
                                 mask_iou_at, max_box_acc, minmax, pointing_game, pooled_map, resize_maps)
from fastai_featreg.look import Cams, get_cams, show_cams
from fastai_featreg.localise import CamMetric, localisation
from fastai_featreg.feature_mining import (activation_counts, box_mask, FeatureMining, FeatureMiningHead, mined_pool, plot_activations, point_mask,
                                           show_mining)
from fastai_featreg.drop import (drop_block, DropBlock, DropCallback, dropped_errors, DropPlan, FeatureDropout,
                                 find_drop_layers, plan_drops, plot_dropped_errors, select_drop, select_scale, SelectDrop2d,
                                 Selectout, selectout, Selectout2d, SelectScale, SelectScale2d, show_drop_layers,
                                 show_drops, spatial_dropout, spatial_scale, SpatialDropout, SpatialScale, SpatialScale2d,
                                 top_channels)
from fastai_featreg.cam_loss import cam_loss, CAMLoss, negative_cam_loss, NegativeCAM, show_cam_loss
from fastai_featreg.distill import (at_loss, AttentionTransfer, binary_kd_loss, cat_loss, CATKD, CCM, ccm_loss, dist_loss, dkd_loss, kd_loss,
                                    KnowledgeDistillation, standardise, standardised_kd_loss, TeacherCallback)
from fastai_featreg.teachers import open_teacher
from fastai_featreg.multiview import (ada_cam, anchors, find_views, get_views, install_views, local_pool, MultiViewHead, MVFeaAug, pooled_classifier, PrototypeClassifier,
                                      remove_views, show_views, view_boxes, view_weights)
from fastai_featreg.data import boxed_folder_dls, cifar_dls, digit_scenes, digits_dls, folder_dls, get_boxes, load_data, show_boxes
from fastai_featreg.files import open_image
from fastai_featreg.folders import read_layout
from fastai_featreg.nets import (resnet8, resnet20, resnet56, resnet110, resnet164, wrn16_2, wrn16_4, wrn20_4, wrn20_8,
                                 wrn28_2, wrn28_4, wrn28_10, resnext29_8x64d, densenet100_12, densenet_bc100_12,
                                 densenet_bc190_40, pyramidnet110_270, pyramidnet200_240, Truncated)
from fastai_featreg.compare import compare, plot_comparison, read_results, summarise, summary_table, verdicts

__all__ = [name for name in globals() if not name.startswith('_')]
