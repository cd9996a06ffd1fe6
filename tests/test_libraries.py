"Networks of timm and torchvision by name: the whole way of one, and what the command line says of a mistake."
import pytest
import torch
from fastai.vision.all import CategoryBlock, DataBlock, ImageBlock, Resize

import simam_ema_fastai.models.libraries as libraries
from simam_ema_fastai.core.errors import UserError
from simam_ema_fastai.deploy.explain import gate_maps, grad_cam
from simam_ema_fastai.deploy.load import export_bundle, load_exported
from simam_ema_fastai.deploy.onnx import to_onnx
from simam_ema_fastai.deploy.optimize import optimize
from simam_ema_fastai.experiments.config import make_grid
from simam_ema_fastai.models.create import create_model, trainable_modules
from simam_ema_fastai.models.insert import gate_modules
from simam_ema_fastai.models.libraries import find_arch
from simam_ema_fastai.training.freezing import attention_splitter
from simam_ema_fastai.training.learner import variant_learner


def noise(i):
    return torch.randint(0, 256, (64, 64, 3), generator=torch.Generator().manual_seed(i), dtype=torch.uint8).numpy()


def noise_dls(size):
    block = DataBlock((ImageBlock, CategoryBlock), get_x=noise, get_y=lambda i: i%2, item_tfms=Resize(size))
    return block.dataloaders([*range(8)], bs=2, num_workers=0, device='cpu')


@pytest.mark.parametrize('arch,variant,size', [
    ('timm:mobilenetv3_small_100', 'simam@spatial34+ema@residual4+se@stage4', 64),
    ('timm:densenet121', 'simam@spatial4+ema@stage', 64),  # whose blocks run whatever parts they have
    ('timm:vit_tiny_patch16_224', 'ema@residual4+se@stage3', 224)])
def test_the_whole_way(arch, variant, size, tmp_path):
    dls = noise_dls(size)
    learn = variant_learner(dls, variant, arch, None)
    gates, backbone = gate_modules(learn.model), attention_splitter(learn.model)[0]
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    learn.model.eval()(x).square().sum().backward()
    assert all(p.grad.any() for g in gates for p in g.parameters())  # none stands where it changes nothing
    learn.model.zero_grad()
    was = [p.detach().clone() for p in learn.model.parameters()]
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-4)
    assert any(not torch.equal(p, q) for p, q in zip(was, learn.model.parameters()))
    assert not {id(p) for g in gates for p in g.parameters()} & {id(p) for p in backbone}
    with torch.no_grad(): truth = learn.model.eval()(x)
    export_bundle(learn, tmp_path/'bundle')
    again = load_exported(tmp_path/'bundle')
    with torch.no_grad(): assert torch.equal(again.model.eval()(x), truth)
    if 'mobilenet' in arch: to_onnx(again, tmp_path/'model.onnx')  # raises if it answers differently
    assert optimize(again.model, x, compiled=False).max_delta_p < 1e-4
    heat = grad_cam(learn.model, x, [0, 1])
    assert heat.any() or 'vit' not in arch
    assert heat.shape[0] == 2 and min(heat.shape[1:]) >= 4 and len(gate_maps(learn.model, x)) >= 2


def test_a_file_of_the_network_works_offline_and_is_normalized_as_its_own_weights(tmp_path):
    torch.save(find_arch('timm:vit_tiny_patch16_224').build(1000).state_dict(), tmp_path/'vit.pth')
    model = create_model('ema@stage3', 3, 'timm:vit_tiny_patch16_224', tmp_path/'vit.pth')
    assert model.weights.mean == (.5, .5, .5)
    assert torch.equal(model.pos_embed, torch.load(tmp_path/'vit.pth', weights_only=True)['pos_embed'])


def test_a_look_at_a_network_leaves_the_random_numbers_alone():
    libraries._library_arch.cache_clear(), libraries._site_map.cache_clear()
    was = torch.get_rng_state()
    find_arch('timm:legacy_seresnet18'), libraries.stages_of('timm:legacy_seresnet18')
    libraries.check_size('timm:legacy_seresnet18', 64)
    assert torch.equal(torch.get_rng_state(), was)


def test_a_part_is_trained():
    model = create_model('ema@stage', 3, 'timm:regnety_004', None)
    parts = {n for n, m in model.named_modules() if m in trainable_modules(model, 'layer4')}
    assert {'s4', 'head'} <= parts and {'s1', 's3'}.isdisjoint(parts)


def test_the_size_is_the_networks_own_unless_given():
    def sizes(*variants, **data):
        return {c.data.get('size') for c in make_grid(dict(name='elpv', **data), variants, weights=None)}
    assert sizes('timm:mobilevit_xxs', 'timm:maxvit_nano_rw_256') == {256}
    assert sizes('timm:resnet50', 'timm:seresnet50', size=96) == {96}
    assert sizes('baseline') == {None}
    with pytest.raises(UserError, match='different sizes .*give one size for all'): sizes('timm:resnet50', 'baseline')


def test_another_version_is_said(tmp_path, capsys, monkeypatch):
    learn = variant_learner(noise_dls(32), 'ema@stage4', 'timm:mobilenetv3_small_100', None)
    export_bundle(learn, tmp_path/'bundle')
    monkeypatch.setattr('simam_ema_fastai.deploy.bundle._installed', lambda package: '9.9')
    load_exported(tmp_path/'bundle')
    assert 'timm 9.9 is installed: if it builds timm:mobilenetv3_small_100 differently' in capsys.readouterr().out


@pytest.mark.parametrize('args,said', [
    ('--arch timm:denset121 --weights none', 'Near it: timm:densenet121'),
    ('--arch timm:densenet121 --variant ema@residual --weights none', "has no site 'residual'. It has spatial"),
    ('--arch timm:swin_tiny_patch4_window7_224 --variant ema@stage --size 64 --weights none', 'use size 224'),
    ('--arch torchvision:inception_v3 --variant baseline --weights none', 'InceptionOutputs in training'),
    ('--arch timm:mixer_s16_224 --variant baseline', 'timm has no weights for timm:mixer_s16_224'),
    ('--arch timm:regnety_004 --variant ema@stage --size 64', "could not fetch timm's regnety_004.tv2_in1k")])
def test_a_mistake_costs_one_line(args, said, tmp_path, simam_ema, monkeypatch):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    status, out, err = simam_ema('train', *args.split(), '--data', 'digits', '--out', tmp_path/'run')
    assert status == 2 and len(err.splitlines()) == 1 and said in err, f'{status}\n{out}\n{err}'
    assert not (tmp_path/'run').exists()
