"""Curvature diagonals, pruning criteria and masks at initialization: the library behind the companion book."""

from . import datasets  # noqa: F401 (it registers what it holds)
from .batch import Batch
from .checkpoints import load_mask, save_mask
from .choices import check_parameters
from .criteria import CRITERIA, Criterion, criterion
from .curvature import exact_diag, fisher_diag, ggn_diag
from .data import Dataset, check_data, dataset_names, load_data
from .derivatives import gradient, hessian_vector_product, synaptic_flow
from .draws import random_stream
from .exports import to_torch_prune
from .hutchinson import hessian_row_norm, hutchinson_diag
from .inspection import effective_sparsity, flops_left
from .masks import (
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
from .models import build_model, model_names, prunable
from .ranking import SparsityWarning, TiedScoresWarning, make_mask
from .records import Record, Store, records_frame
from .runs import Shared, run
from .scoring import score, score_many
from .spec import RunSpec
from .streams import ImageStream
from .training import evaluate, train, warm_up

__version__ = "0.1.0"

__all__ = [
    "CRITERIA",
    "Batch",
    "Criterion",
    "Dataset",
    "ImageStream",
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
    "prunable",
    "prune",
    "random_stream",
    "rank_correlation",
    "records_frame",
    "run",
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
