"""Curvature diagonals, pruning criteria and masks at initialization: the book's library."""

from .book.choices import check_parameters
from .curvature.derivatives import gradient, hessian_vector_product, synaptic_flow
from .curvature.diagonals import exact_diag, fisher_diag, ggn_diag
from .curvature.hutchinson import hessian_row_norm, hutchinson_diag
from .curvature.parameters import prunable
from .data import builtin, tiny_imagenet  # noqa: F401 (they register what they hold)
from .data.batch import Batch
from .data.dataset import Dataset
from .data.imagenet import ImageStream
from .data.loading import check_data, dataset_names, load_data
from .draws import random_stream
from .experiments.mask_run import run_masks
from .experiments.mask_spec import MaskSpec
from .experiments.records import MaskRecord, Record, Store, records_frame
from .experiments.run import run
from .experiments.shared import Shared
from .experiments.spec import RunSpec
from .models import build_model, model_names
from .pruning.criteria import CRITERIA, Criterion, criterion, criterion_label
from .pruning.files import load_mask, save_mask, to_torch_prune
from .pruning.inspection import effective_sparsity, flops_left
from .pruning.masks import (
    apply_mask,
    collapsed_layers,
    invert_scores,
    jaccard,
    layer_density,
    prune,
    rank_correlation,
    shared_fraction,
    shuffle_within_layers,
    sparsity_of,
)
from .pruning.profiles import profile
from .pruning.ranking import SparsityWarning, TiedScoresWarning, make_mask
from .pruning.scoring import score, score_many
from .training.device import resolve_device
from .training.loop import evaluate, train, warm_up

__version__ = "0.1.0"

__all__ = [
    "CRITERIA",
    "Batch",
    "Criterion",
    "Dataset",
    "ImageStream",
    "MaskRecord",
    "MaskSpec",
    "Record",
    "RunSpec",
    "Shared",
    "SparsityWarning",
    "Store",
    "TiedScoresWarning",
    "apply_mask",
    "build_model",
    "check_data",
    "check_parameters",
    "collapsed_layers",
    "criterion",
    "criterion_label",
    "dataset_names",
    "effective_sparsity",
    "evaluate",
    "exact_diag",
    "fisher_diag",
    "flops_left",
    "ggn_diag",
    "gradient",
    "hessian_row_norm",
    "hessian_vector_product",
    "hutchinson_diag",
    "invert_scores",
    "jaccard",
    "layer_density",
    "load_data",
    "load_mask",
    "make_mask",
    "model_names",
    "profile",
    "prunable",
    "prune",
    "random_stream",
    "rank_correlation",
    "records_frame",
    "resolve_device",
    "run",
    "run_masks",
    "save_mask",
    "score",
    "score_many",
    "shared_fraction",
    "shuffle_within_layers",
    "sparsity_of",
    "synaptic_flow",
    "to_torch_prune",
    "train",
    "warm_up",
]
