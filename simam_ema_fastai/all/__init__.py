"""What a fastai user imports: some thirty names, none of which hides one of fastai's. Written by hand.

A folder, so that both versions of nbdev, which export everything else, leave it alone."""
from ..attention.modules import BAM, CBAM, ECA, EMA, SE, SimAM, register_gate
from ..core.errors import UserError
from ..data.datasets import register_dataset
from ..data.dls import get_dls
from ..deploy.explain import explain_images, gate_maps
from ..deploy.load import export_bundle, load_exported
from ..deploy.onnx import to_onnx
from ..deploy.optimize import optimize
from ..deploy.predict import predict_images
from ..experiments.ablation import ablate
from ..experiments.config import RunConfig, make_grid
from ..experiments.results import load_runs
from ..models.any_network import add_gates, remove_gates
from ..models.backbones import register_arch
from ..models.cost import count_flops, count_params
from ..models.create import create_model
from ..models.insert import Placement
from ..models.weight_sources import load_weights, normalization_stats
from ..models.variants import Variant, get_variant
from ..report.page import report
from ..training.diagnosis import diagnose
from ..training.evaluate import evaluate_files
from ..training.learner import fit_recipe, variant_learner
from ..training.recipe import Recipe, recipes

__all__ = [
    'BAM', 'CBAM', 'ECA', 'EMA', 'SE', 'SimAM', 'register_gate', 'UserError', 'register_dataset', 'get_dls',
    'explain_images', 'gate_maps', 'export_bundle', 'load_exported', 'to_onnx', 'optimize', 'predict_images',
    'ablate', 'RunConfig', 'make_grid', 'load_runs', 'register_arch', 'count_flops', 'count_params', 'create_model',
    'Placement', 'load_weights', 'normalization_stats', 'Variant', 'get_variant', 'report', 'evaluate_files',
    'fit_recipe', 'variant_learner', 'Recipe', 'recipes', 'add_gates', 'remove_gates', 'diagnose',
]
