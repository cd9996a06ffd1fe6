"Gates that `add_gates` puts into a stock fastai learner, and the training that knows of gates."
import torch
from fastai.vision.all import Callback, CategoryBlock, DataBlock, ImageBlock, vision_learner
from torchvision.models import resnet18

from simam_ema_fastai.models.any_network import add_gates
from simam_ema_fastai.models.insert import gate_modules
from simam_ema_fastai.training.freezing import FreezeAttention, attention_splitter


def noise(i): return torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8).numpy()


def gate_weights(model): return [p for gate in gate_modules(model) for p in gate.parameters()]


class Record(Callback):
    "What the gates' weights are after each epoch."
    def before_fit(self): self.seen = [self.flat()]
    def after_train(self): self.seen.append(self.flat())
    def flat(self): return torch.cat([p.detach().flatten() for p in gate_weights(self.model)])


def test_a_stock_learner_freezes_and_groups_the_gates():
    block = DataBlock((ImageBlock, CategoryBlock), get_x=noise, get_y=lambda i: i%2)
    dls = block.dataloaders([*range(6)], bs=2, num_workers=0, device='cpu')
    cbs = [FreezeAttention(1, of=2), Record()]
    learn = vision_learner(dls, resnet18, pretrained=False, splitter=attention_splitter, cbs=cbs)
    add_gates(learn.model, 'ema', at='0.6.*.bn2')
    learn.model.head_name = '1'
    with learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-2)
    fresh, frozen, trained = learn.record.seen
    assert torch.equal(fresh, frozen) and not torch.equal(frozen, trained)
    backbone, ours = ([id(p) for p in group] for group in attention_splitter(learn.model))
    assert {id(p) for p in gate_weights(learn.model)} < {*ours}
    assert [len(group) for group in learn.opt.param_lists] == [len(backbone), len(ours)]
