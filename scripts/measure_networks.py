"""Whether networks of timm and torchvision pass through everything: gates, training, bundle, ONNX, Grad-CAM.

    python scripts/measure_networks.py --out results/networks

Each network gets SimAM or EMA at every site that it has and is trained for one step on images of ELPV, without
pretrained weights. Then its bundle is opened again, and its ONNX form and its optimized form are compared with it on
validation images. Writes networks.csv, README.md and environment.json.
"""
import argparse
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from fastai.callback.core import CancelFitException
from fastai.learner import Callback
from torch import nn

from simam_ema_fastai.core.errors import UserError
from simam_ema_fastai.core.files import write_json, write_text
from simam_ema_fastai.data.dls import get_dls
from simam_ema_fastai.deploy.explain import grad_cam
from simam_ema_fastai.deploy.load import as_classifier, export_bundle, load_exported
from simam_ema_fastai.deploy.onnx import to_onnx
from simam_ema_fastai.deploy.optimize import optimize
from simam_ema_fastai.experiments.environment import environment
from simam_ema_fastai.models.cost import count_flops, count_params
from simam_ema_fastai.models.insert import gate_modules
from simam_ema_fastai.models.libraries import check_size, own_images, stages_of
from simam_ema_fastai.report.formats import to_markdown
from simam_ema_fastai.runtime.classifier import open_onnx
from simam_ema_fastai.training.learner import variant_learner

networks = [
    'timm:mobilenetv3_small_100', 'timm:densenet121', 'timm:convnext_atto', 'timm:regnety_004',
    'timm:tf_efficientnetv2_b0', 'timm:vgg11_bn', 'timm:swin_tiny_patch4_window7_224', 'timm:vit_tiny_patch16_224',
    'timm:mobilevit_xxs', 'timm:maxvit_nano_rw_256', 'timm:resnet26d', 'timm:seresnet50', 'timm:legacy_seresnet18',
    'torchvision:mobilenet_v2', 'torchvision:densenet121', 'timm:convnext_tiny']
gates = dict(spatial='simam', residual='ema', stage='ema')


class OneStep(Callback):
    "Stop after one step; count the parameters that it changes."
    def before_step(self):
        grads = [p.grad for p in self.model.parameters()]
        self.reached = f'{sum(g is not None and bool(g.any()) for g in grads)} of {len(grads)}'
    def after_batch(self):
        if self.training: raise CancelFitException


def size_for(arch:str) -> int:
    "64 pixels, or the network's own size where it does not take those."
    try: check_size(arch, 64)
    except UserError: return own_images(arch).get('size')
    return 64


def difference(a, b) -> float: return float(np.abs(np.asarray(a) - np.asarray(b)).max())


def check(arch:str, path:str|None) -> dict:
    "What became of one network: largest changes of a probability, and what it costs."
    size, there = size_for(arch), {s: stages for s, stages in stages_of(arch).items() if stages}
    variant = '+'.join(f"{gates[s]}@{s}{''.join(map(str, stages))}" for s, stages in there.items())
    dls = get_dls('elpv', path, size, bs=4, n_train=16, n_valid=8, device='cpu')
    learn = variant_learner(dls, variant, arch, None, cbs=OneStep())
    for m in learn.model.modules():  # timm starts the last norm of many branches at zero, which would hide them
        if isinstance(m, nn.BatchNorm2d) and not m.weight.any(): nn.init.ones_(m.weight)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    x = dls.valid.one_batch()[0].as_subclass(torch.Tensor)[:4]
    with torch.no_grad(): truth = learn.model.eval()(x).softmax(1)
    with tempfile.TemporaryDirectory() as d:
        export_bundle(learn, f'{d}/bundle')
        again = load_exported(f'{d}/bundle')
        with torch.no_grad(): reopened = again.model.eval()(x).softmax(1)
        pixels = np.random.default_rng(0).integers(0, 256, (4, size, size, 3), np.uint8)
        onnx = open_onnx(to_onnx(again, Path(d)/'model.onnx')).probabilities(pixels)
        onnx = difference(onnx, as_classifier(again).probabilities(pixels))
    fast = optimize(again.model, x, compiled=False)
    heat = grad_cam(learn.model, x, truth.argmax(1))
    sites = '; '.join(f"{s} {','.join(map(str, stages))}" for s, stages in there.items())
    return dict(network=arch, size=size, sites=sites, gates=len(gate_modules(learn.model)),
                parameters=count_params(learn.model), gflops=round(count_flops(learn.model, size)/1e9, 3),
                trained=learn.one_step.reached, reopened=difference(reopened, truth), onnx=onnx,
                optimized=fast.max_delta_p, grad_cam=f'{heat.shape[1]}×{heat.shape[2]}')


readme = """# Networks of timm and torchvision

{table}

Each network, without pretrained weights, with SimAM (`spatial`) and EMA (`residual`, `stage`) at every site and stage
that it has. `trained`: parameter tensors that the gradient of one step on ELPV's images reaches; norms that
timm starts at zero (the last of a branch) start at one here, so that every branch counts. `reopened`, `onnx`,
`optimized`: largest change of a probability between the trained network and its bundle opened again, its ONNX form and
its fused form. `grad_cam`: size of the map. Behind the last attention of a ViT no gate stands, since its patches no
longer reach the answer there.

Machine: {cpu}, {cores} cores; torch {torch}, torchvision {torchvision}, timm {timm}, commit {commit}

    {command}
"""

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('networks', nargs='*', default=networks)
    p.add_argument('--out', default='results/networks', type=Path)
    p.add_argument('--path', help='where the data are')
    a = p.parse_args()
    torch.set_num_threads(1)
    rows = []
    for arch in a.networks:
        rows.append(check(arch, a.path))
        print(rows[-1], flush=True)
        df, env = pd.DataFrame(rows), environment()
        write_text(a.out/'networks.csv', df.to_csv(index=False))
    changes = {k: df[k].map('{:.1e}'.format) for k in ('reopened', 'onnx', 'optimized')}
    env |= dict(command='python scripts/measure_networks.py' + ('' if a.networks == networks else ' …'))
    versions = {k: env['packages'][k] for k in ('torch', 'torchvision', 'timm')}
    write_json(a.out/'environment.json', env)
    table = to_markdown(df.assign(**changes, parameters=df.parameters.map('{:,}'.format)).astype(str))
    write_text(a.out/'README.md', readme.format(table=table, commit=(env['commit'] or 'unknown')[:12], **versions,
                                                **{k: env[k] for k in ('cpu', 'cores', 'command')}))
