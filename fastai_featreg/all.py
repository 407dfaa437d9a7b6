"What a notebook needs. Functions of tensors, nets and machinery are imported from their modules."
# Written by tools/names.py
from fastai_featreg.anatomy import get_anatomy
from fastai_featreg.parting import body_head
from fastai_featreg.core import FeatureCallback, register_method
from fastai_featreg.fits import LossCallback
from fastai_featreg.taps import feature_maps, to_torch
from fastai_featreg.look import get_cams, show_cams
from fastai_featreg.over_epochs import RecordMaps, show_maps_over_epochs
from fastai_featreg.localise import CamMetric, localisation
from fastai_featreg.boxes import get_boxes, show_boxes
from fastai_featreg.data import boxed_folder_dls, cifar_dls, digits_dls, folder_dls, load_data
from fastai_featreg.files import open_image
from fastai_featreg.folders import read_layout
from fastai_featreg.archs import linear_head
from fastai_featreg.nets import Truncated
from fastai_featreg.noise import add_noise, changed_labels, clean_labels
from fastai_featreg.memorised import Memorised, tell_truth
from fastai_featreg.methods.drop_layers import find_drop_layers, show_drop_layers
from fastai_featreg.methods.drop_effects import show_drops
from fastai_featreg.methods.view_head import remove_views
from fastai_featreg.methods.fixed_mask import FixedMask
from fastai_featreg.comparison.compare import compare
from fastai_featreg.comparison.report import plot_comparison, plot_sweep
from fastai_featreg.comparison.sweep import sweep
from fastai_featreg.comparison.few import compare_sizes, plot_sizes
from fastai_featreg.comparison.curves import plot_errors
from fastai_featreg.comparison.noise_curves import plot_memorised
from fastai_featreg.comparison.rows import read_results
from fastai_featreg.comparison.protocols import find_protocol, protocols
from fastai_featreg.comparison.recipes import train_as
from fastai_featreg.comparison.augment import augmented
from fastai_featreg.methods.blocks import SE, CBAM, GC, SK
from fastai_featreg.methods.cam_loss import CAMLoss, NegativeCAM, show_cam_loss
from fastai_featreg.methods.center_loss import CenterLoss
from fastai_featreg.methods.cs_kd import CSKD
from fastai_featreg.methods.cutout import CutOut
from fastai_featreg.methods.depth import StochDepth, ShakeDrop
from fastai_featreg.methods.distill import KnowledgeDistillation, AttentionTransfer, CCM, CATKD
from fastai_featreg.methods.drop import FeatureDropout, SpatialDropout, DropBlock, SpatialScale, Selectout, \
    SelectScale
from fastai_featreg.methods.feature_mining import FeatureMining, show_mining, plot_activations
from fastai_featreg.methods.margins import LSoftmax, SMSoftmax
from fastai_featreg.methods.mixing import BatchMixUp, BatchCutMix, ManifoldMixup
from fastai_featreg.methods.multiview import MVFeaAug, get_views, show_views
from fastai_featreg.methods.self_distill import BYOT, EnsembleAccuracy, get_exits

__all__ = [name for name in globals() if not name.startswith('_')]
