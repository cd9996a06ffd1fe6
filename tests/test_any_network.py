"Gates that `add_gates` puts into stock fastai learners, and the training that knows of gates."
import pytest
import torch
from fastai.vision.all import (
    Callback,
    CategoryBlock,
    DataBlock,
    ImageBlock,
    MaskBlock,
    load_learner,
    unet_learner,
    vision_learner,
)
from torchvision.models import resnet18

from simam_ema_fastai.models.any_network import add_gates, remove_gates
from simam_ema_fastai.models.insert import gate_modules
from simam_ema_fastai.training.freezing import FreezeAttention, attention_splitter


def noise(i): return torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8).numpy()
def parity(i): return i%2
def blank_mask(i): return torch.full((64, 64), i%2, dtype=torch.uint8).numpy()


def gate_weights(model): return [p for gate in gate_modules(model) for p in gate.parameters()]


def make_learner(make, **kwargs):
    target, get_y = (CategoryBlock, parity) if make is vision_learner else (MaskBlock(['no', 'yes']), blank_mask)
    block = DataBlock((ImageBlock, target), get_x=noise, get_y=get_y)
    dls = block.dataloaders([*range(6)], bs=2, num_workers=0, device='cpu')
    return make(dls, resnet18, pretrained=False, n_out=2, **kwargs)


class Record(Callback):
    "What the gates' weights are after each epoch."
    def before_fit(self): self.seen = [self.flat()]
    def after_train(self): self.seen.append(self.flat())
    def flat(self): return torch.cat([p.detach().flatten() for p in gate_weights(self.model)])


def test_a_stock_learner_freezes_and_groups_the_gates():
    cbs = [FreezeAttention(1, of=2), Record()]
    learn = make_learner(vision_learner, splitter=attention_splitter, cbs=cbs)
    add_gates(learn.model, 'ema', at='0.6.*.bn2')
    learn.model.head_name = '1'
    with learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-2)
    fresh, frozen, trained = learn.record.seen
    assert torch.equal(fresh, frozen) and not torch.equal(frozen, trained)
    backbone, ours = ([id(p) for p in group] for group in attention_splitter(learn.model))
    assert {id(p) for p in gate_weights(learn.model)} < {*ours}
    assert [len(group) for group in learn.opt.param_lists] == [len(backbone), len(ours)]


@pytest.mark.parametrize('make', [vision_learner, unet_learner])
def test_fine_tune_trains_the_gates_and_an_export_answers_the_same(make, tmp_path):
    learn = make_learner(make, path=tmp_path)
    body, names = [p for p in learn.model.parameters()], [*learn.model.state_dict()]
    learn.freeze()  # as pretrained learners are: the optimizer is there, without gates
    groups = [len(group) for group in learn.opt.param_lists]
    add_gates(learn, 'ema', at='residual', stages=(1,4))
    assert len(gate_modules(learn.model)) == 4 and all(p.requires_grad for p in gate_weights(learn.model))
    assert not body[0].requires_grad and learn.opt.frozen_idx == len(groups) - 1
    assert {*gate_weights(learn.model)} < {*learn.opt.param_lists[-1]}

    record = Record()
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(1, 1e-2, freeze_epochs=1, cbs=record)
    fresh, tuned = record.seen  # of the last fit; the frozen one has another start
    assert not torch.equal(fresh, tuned)

    x, = learn.dls.test_dl([0]).one_batch()[:1]
    learn.export()
    again = load_learner(tmp_path/'export.pkl')
    with torch.no_grad():
        expected = learn.model.eval()(x)
        assert torch.equal(again.model.eval()(x), expected)
        remove_gates(learn)
        assert not torch.equal(learn.model(x), expected)
    assert [*learn.model.state_dict()] == names
    assert [len(group) for group in learn.opt.param_lists] == groups
    assert len(remove_gates(again)) == 4 and [*again.model.state_dict()] == names


def test_the_frozen_epoch_trains_the_gates():
    learn = make_learner(vision_learner, cbs=(record := Record()))
    learn.freeze()
    add_gates(learn, 'ema', at='stage', stages=[1])
    first = learn.model[0][0].weight.detach().clone()
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2)
    fresh, trained = record.seen
    assert not torch.equal(fresh, trained) and torch.equal(first, learn.model[0][0].weight)
