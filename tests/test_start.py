"Gates that start as the identity: the pretrained network to the bit, then trained, exported and reopened."
import pytest
import torch
from fastai.callback.core import Callback
from fastai.torch_core import set_seed

from simam_ema_fastai.data.dls import get_dls
from simam_ema_fastai.deploy.compare import compare_models
from simam_ema_fastai.deploy.load import as_classifier, export_bundle, load_exported
from simam_ema_fastai.deploy.onnx import to_onnx
from simam_ema_fastai.deploy.optimize import optimize
from simam_ema_fastai.models.cost import count_flops
from simam_ema_fastai.models.create import create_model
from simam_ema_fastai.models.insert import gate_modules
from simam_ema_fastai.models.variants import variants
from simam_ema_fastai.runtime.classifier import open_model
from simam_ema_fastai.training.freezing import attention_splitter
from simam_ema_fastai.training.learner import variant_learner
from simam_ema_fastai.training.recipe import Recipe

with_identity = [v for v in variants if v.endswith('_identity')]

@pytest.mark.parametrize('variant', with_identity)
def test_network_is_the_bare_one_before_training(variant):
    set_seed(0)
    bare = create_model('baseline', 5, arch='resnet18').eval()
    gated = create_model(variant, 5, arch='resnet18').eval()
    gated.load_state_dict(bare.state_dict(), strict=False)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad(): assert torch.equal(gated(x), bare(x))
    groups = attention_splitter(gated)
    last = {id(p) for p in groups[1]}
    assert all(id(g.start_gamma) in last for g in gate_modules(gated)) and len(gate_modules(gated)) >= 2
    published = create_model(variant.removesuffix('_identity'), 5, arch='resnet18')
    assert count_flops(gated, 64) == count_flops(published, 64)
    n_gates = len(gate_modules(gated))
    assert sum(p.numel() for p in gated.parameters()) == sum(p.numel() for p in published.parameters()) + n_gates

@pytest.fixture(scope='module')
def trained():
    "Hybrid with the identity start and a CBAM after it, trained for a moment on digits."
    set_seed(0)
    dls = get_dls('digits', size=32, bs=16, n_train=64, n_valid=32)
    spec = "simam(start='identity')@spatial34+ema(start='identity')@residual34+cbam(start='identity')@stage"
    recipe = Recipe(epochs=2, freeze_epochs=1, lr=.01, strategy='discriminative+freeze')
    learn = variant_learner(dls, spec, 'resnet18', weights=None, recipe=recipe)
    frozen = []
    class Watch(Callback):
        def after_epoch(self): frozen.append([g.start_gamma.item() for g in gate_modules(self.model)])
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(2, .01, cbs=Watch())
    return learn, frozen

def test_the_freeze_keeps_gamma_then_training_moves_it(trained):
    _, (first, last) = trained
    assert set(first) == {0.} and all(last), (first, last)

def test_every_export_gives_the_same_answers(trained, tmp_path):
    learn, _ = trained
    for i, g in enumerate(gate_modules(learn.model)): g.start_gamma.data.fill_(.3 + .1*i)  # far from 0 and from 1
    x, _ = learn.dls.valid.one_batch()
    with torch.no_grad(): expected = learn.model.eval()(x)
    export_bundle(learn, tmp_path/'model.pkl')
    again = load_exported(tmp_path/'model.pkl', trust=True)
    with torch.no_grad():
        assert torch.equal(again.model.eval()(x), expected)
        assert torch.allclose(optimize(learn.model, x, compiled=False)(x), expected, atol=1e-4)
    files = [*learn.dls.valid_ds.items]
    to_onnx(learn, tmp_path/'plain.onnx')
    to_onnx(learn, tmp_path/'whole.onnx', preprocess=True, images=files)
    forms = dict(PyTorch=as_classifier(learn), **{n: open_model(tmp_path/f'{n}.onnx') for n in ('plain', 'whole')})
    found = compare_models(forms, files, seconds=.1)
    assert found.same_answer.tolist() == [100.]*3 and (found.max_delta_p <= 1e-5).all(), found
