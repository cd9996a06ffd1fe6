"""The GPU kernels without a GPU, in Triton's interpreter, against float64: values, gradients, formats, operators.

test_triton.py starts this file in a process of its own: TRITON_INTERPRET has to be set before Triton is imported."""
import pytest
import torch
from torch import nn

import simam_ema_fastai.attention.agreement as agreement
import simam_ema_fastai.attention.functional as functional
import simam_ema_fastai.attention.triton_ema as triton_ema
from simam_ema_fastai.attention.agreement import output_and_grads, relative_error
from simam_ema_fastai.attention.functional import (
    _triton_takes,
    ema,
    ema_add_relu,
    ema_constants,
    kernel_path,
    simam,
    simam_bn_relu,
)
from simam_ema_fastai.attention.reference import blend, ema_collapsed, ema_published, simam_plain
from simam_ema_fastai.attention.triton_common import interpreted
from simam_ema_fastai.attention.triton_simam import _simam_blocks

assert interpreted, 'set TRITON_INTERPRET=1'
last, first = torch.channels_last, torch.contiguous_format


@pytest.fixture(autouse=True)
def seed(): torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_cpp(monkeypatch):
    "As on a machine without a compiler: what Triton does not take, plain PyTorch computes."
    monkeypatch.setattr(functional, 'cpp_takes', lambda x: False)


def random_ema(c, dtype=torch.float32):
    "Parameters of one EMA that float16 and bfloat16 hold exactly."
    p = torch.randn(c, c, 1, 1)/c**.5, torch.randn(c), torch.randn(c, c, 3, 3)/(3*c**.5), *torch.randn(3, c)
    return [t.bfloat16().half().to(dtype) for t in p]


def errors(a, b): return [relative_error(u, v) for u, v in zip(a, b, strict=True)]


def truth(f, tensors, g): return output_and_grads(f, [t.double() for t in tensors], g.double())


def slack(dtype):
    "The interpreter cuts bfloat16 off where a GPU rounds: twice the error."
    return 2.7 if dtype == torch.bfloat16 else 1.02


def published_sum(x, shortcut, *p): return (ema_published(x, *p) + shortcut).relu()


def mixed_simam(x, mix): return simam(x, mix=mix)


def plain_mixed_simam(x, mix): return blend(x, simam_plain(x), mix)


def mixed_sum(x, shortcut, mix, *p): return ema_add_relu(x, shortcut, *p, mix=mix)


def published_mixed_sum(x, shortcut, mix, *p): return (blend(x, ema_published(x, *p), mix) + shortcut).relu()


@pytest.mark.parametrize('shape', [(2, 3, 1, 1), (1, 3, 7, 5), (2, 40, 13, 9), (1, 2, 1, 6), (1, 2, 56, 56),
                                   (3, 5, 2, 2)])
@pytest.mark.parametrize('fmt', [first, last])
def test_simam(shape, fmt):
    x, g = torch.randn(shape).contiguous(memory_format=fmt), torch.randn(shape)
    ours = output_and_grads(simam, [x], g)
    assert max(errors(ours, truth(simam_plain, [x], g))) < 1e-6
    mixed = output_and_grads(mixed_simam, [x, torch.tensor(-.7)], g)
    assert max(errors(mixed, truth(plain_mixed_simam, [x, torch.tensor(-.7)], g))) < 2e-6
    if fmt == first or min(shape[1], shape[2]*shape[3]) > 1:
        assert all(t.stride() == torch.empty(shape, memory_format=fmt).stride() for t in ours)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_simam_half(dtype):
    x, g = (3*torch.randn(2, 3, 9, 8)).to(dtype), torch.randn(2, 3, 9, 8).to(dtype)
    reference = truth(simam_plain, [x], g)
    ours, plain = (errors(output_and_grads(f, [x], g), reference) for f in (simam, simam_plain))
    assert all(a <= slack(dtype)*b for a, b in zip(ours, plain))
    assert simam(300*x[:1]).isfinite().all()


@pytest.mark.parametrize('channels, fmt, size', [(2, first, (150, 130)), (1, first, (190, 181)), (3, last, (100, 90))])
def test_simam_chunked(channels, fmt, size):
    x, g = (100 + torch.randn(1, channels, *size)).contiguous(memory_format=fmt), torch.randn(1, channels, *size)
    forward, backward = (_simam_blocks(channels, size[0]*size[1], fmt == last, 4, held)[3] for held in (1, 2))
    assert backward and forward == (size != (150, 130))
    # a mean of 100 costs float32 two digits
    assert max(errors(output_and_grads(simam, [x], g), truth(simam_plain, [x], g))) < 1e-4
    mixed = [x, torch.tensor(.3)]
    assert max(errors(output_and_grads(mixed_simam, mixed, g), truth(plain_mixed_simam, mixed, g))) < 1e-4
    y = simam_bn_relu(x, torch.ones(channels), torch.zeros(channels))
    assert relative_error(y, simam_plain(x.double()).relu()) < 1e-4


@pytest.mark.parametrize('fmt', [first, last])
@pytest.mark.parametrize('relu', [True, False])
def test_simam_with_a_norm(fmt, relu):
    x, norm = torch.randn(2, 6, 5, 7).contiguous(memory_format=fmt), nn.BatchNorm2d(6).eval()
    for t in (norm.weight, norm.bias, norm.running_mean): nn.init.normal_(t)
    nn.init.uniform_(norm.running_var, .5, 2)
    scale = (norm.weight*(norm.running_var + norm.eps).rsqrt()).detach()
    shift = (norm.bias - norm.running_mean*scale).detach()
    with torch.no_grad(): expected = norm.double()(simam_plain(x.double()))
    y, mix = simam_bn_relu(x, scale, shift, relu=relu), torch.tensor(.3)
    half = blend(x.double(), simam_plain(x.double()), mix)*scale[:,None,None] + shift[:,None,None]
    assert max(errors([simam_bn_relu(x, scale, shift, relu=relu, mix=mix)], [half.relu() if relu else half])) < 1e-6
    assert max(errors([y], [expected.relu() if relu else expected])) < 1e-6 and y.stride() == x.stride()
    with_gradient = simam_bn_relu(x.clone().requires_grad_(), scale, shift, relu=relu)
    assert with_gradient.requires_grad and max(errors([with_gradient.detach()], [y.double()])) < 1e-6


ema_shapes = [(4, (2, 4, 7, 5)), (8, (1, 16, 4, 4)), (5, (1, 10, 3, 9)), (6, (1, 6, 2, 3)), (24, (1, 24, 5, 4)),
              (16, (1, 16, 13, 9)), (8, (1, 8, 1, 6)), (64, (1, 64, 7, 7)), (1, (1, 2, 4, 4))]


@pytest.mark.parametrize('c, shape', ema_shapes)
@pytest.mark.parametrize('fmt', [first, last])
def test_ema(c, shape, fmt):
    x, shortcut, g = (torch.randn(shape).contiguous(memory_format=fmt) for _ in range(3))
    p = random_ema(c)
    for f, published, tensors in ((ema, ema_published, [x, *p]), (ema_add_relu, published_sum, [x, shortcut, *p])):
        ours = output_and_grads(f, tensors, g)
        assert max(errors(ours, truth(published, tensors, g))) < 2e-5
        assert all(t.stride() == x.stride() for t in ours[:2])
    tensors = [x, shortcut, torch.tensor(-.7), *p]
    assert max(errors(output_and_grads(mixed_sum, tensors, g), truth(published_mixed_sum, tensors, g))) < 2e-5
    y = ema(x, *p, constants=ema_constants(*p))
    assert relative_error(y, ema_published(x.double(), *[t.double() for t in p])) < 1e-6


def test_ema_on_one_pixel():
    "The norm of a single pixel is 0 times 316: float32 keeps five digits, and what is exactly 0 in theory is small."
    x, p, g = torch.randn(2, 6, 1, 1), random_ema(6), torch.randn(2, 6, 1, 1)
    assert max(errors(output_and_grads(ema, [x, *p], g), truth(ema_published, [x, *p], g))) < 1e-3


def test_ema_of_stage_1():
    x, p, g = torch.randn(1, 8, 56, 56), random_ema(8), torch.randn(1, 8, 56, 56)
    assert max(errors(output_and_grads(ema, [x, *p], g), truth(ema_published, [x, *p], g))) < 2e-5


def test_ema_with_w3_before_the_kernel(monkeypatch):
    "As for c = 64 in large batches: window sums, one product, the main kernel; and the backward pass in two parts."
    monkeypatch.setattr(triton_ema, '_w3_inline', lambda c, groups: False)
    for c, shape in ((8, (2, 16, 4, 5)), (64, (1, 64, 7, 7))):
        x, g, p = torch.randn(shape), torch.randn(shape), random_ema(c)
        assert max(errors(output_and_grads(ema, [x, *p], g), truth(ema_published, [x, *p], g))) < 2e-5
        assert max(errors(output_and_grads(ema_add_relu, [x, g, *p], g), truth(published_sum, [x, g, *p], g))) < 2e-5
        mixed = [x, g, torch.tensor(.4), *p]
        assert max(errors(output_and_grads(mixed_sum, mixed, g), truth(published_mixed_sum, mixed, g))) < 2e-5


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_ema_half(dtype):
    "No worse than the published form in that precision, with parameters in 16 bits and in float32, as under autocast."
    x, g = (2*torch.randn(1, 16, 6, 7)).to(dtype), torch.randn(1, 16, 6, 7).to(dtype)
    for c in (8, 16):
        p = random_ema(c, dtype)
        reference = truth(ema_published, [x, *p], g)
        published = errors(output_and_grads(ema_published, [x, *p], g), reference)
        for params in (p, [t.float() for t in p]):
            ours = output_and_grads(ema, [x, *params], g)
            assert [t.dtype for t in ours] == [dtype, dtype, *(t.dtype for t in params)]
            assert all(a <= slack(dtype)*b for a, b in zip(errors(ours, reference), published))


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_a_weight_of_the_gate(dtype):
    "With γ = 0 the identity and with γ = 1 the gate, to the bit; γ's own gradient, in its own dtype, as exact as x's."
    x, shortcut, g = (torch.randn(2, 8, 5, 4).to(dtype) for _ in range(3))
    p = random_ema(4)
    for f in (simam, lambda x, mix=None: ema(x, *p, mix=mix)):
        assert torch.equal(f(x, mix=torch.tensor(0.)), x) and torch.equal(f(x, mix=torch.tensor(1.)), f(x))
    for mix in (torch.tensor(.3), torch.tensor(.3, dtype=dtype)):
        for ours, plain, tensors in ((mixed_simam, plain_mixed_simam, [x, mix]),
                                     (mixed_sum, published_mixed_sum, [x, shortcut, mix, *p])):
            got, want = output_and_grads(ours, tensors, g), truth(plain, tensors, g)
            assert [t.dtype for t in got[1:]] == [t.dtype for t in tensors]
            assert max(errors(got, want)) < {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]


def test_a_weight_of_a_frozen_gate():
    x, p, g, mix = torch.randn(1, 8, 4, 4), random_ema(4), torch.randn(1, 8, 4, 4), torch.tensor(.3, requires_grad=True)
    ema(x, *p, mix=mix).backward(g)
    want = truth(lambda x, mix: blend(x, ema_published(x, *[t.double() for t in p]), mix), [x, mix.detach()], g)[2]
    assert relative_error(mix.grad, want) < 1e-5


def test_frozen():
    x, p, g = torch.randn(1, 8, 4, 4), random_ema(4), torch.randn(1, 8, 4, 4)
    leaf = x.clone().requires_grad_()
    ema(leaf, *p).backward(g)
    assert relative_error(leaf.grad, truth(ema_published, [x, *p], g)[1]) < 2e-5
    assert all(t.grad is None for t in p)


def test_views_and_empty_batches():
    p, whole = random_ema(4), torch.randn(2, 8, 6, 6)
    views = [whole[1:, 2:6], whole[:1, ::2], whole[:1, :4, :, 1:4], whole[:1, :4, ::2, ::3],
             whole[:1, :4].transpose(2, 3), whole[:1, :4].expand(2, -1, -1, -1)]
    for x in views:
        g = torch.randn(x.shape)
        assert max(errors(output_and_grads(simam, [x], g), truth(simam_plain, [x], g))) < 1e-6
        assert max(errors(output_and_grads(ema, [x, *p], g), truth(ema_published, [x, *p], g))) < 2e-5
    x = torch.randn(1, 8, 5, 4)
    g = torch.randn(1, 4, 5, 8).permute(0, 3, 2, 1)  # shortcut and gradient of another layout than x
    ours = output_and_grads(ema_add_relu, [x, g, *p], g)
    assert max(errors(ours, truth(published_sum, [x, g, *p], g))) < 2e-5
    one, none = torch.ones(8), x[:0]
    for y in (simam(none), ema(none, *p), ema_add_relu(none, none, *p), simam_bn_relu(none, one, one)):
        assert y.shape == (0, 8, 5, 4)


def test_what_has_no_kernel():
    x, p = torch.randn(1, 8, 5, 4, dtype=torch.float64), [t.double() for t in random_ema(4)]
    assert torch.equal(simam(x), simam_plain(x)) and torch.equal(ema(x, *p), ema_collapsed(x, *p))
    large, p = torch.randn(1, 16, 64, 65), random_ema(16)
    assert torch.equal(ema(large, *p), ema_collapsed(large, *p))


def test_nan_stays():
    x = torch.randn(1, 4, 4, 4)
    x[0, 0, 1, 1] = float('nan')
    assert simam_bn_relu(x, torch.ones(4), torch.zeros(4))[0, 0].isnan().any()
    assert ema_add_relu(x, torch.zeros_like(x), *random_ema(4))[0, 0].isnan().any()


def test_operators():
    x, p, g = torch.randn(1, 8, 3, 4), random_ema(4), torch.randn(1, 8, 3, 4)
    def grad(ts): return [t.clone().requires_grad_() for t in ts]
    ops = torch.ops.simam_ema
    torch.library.opcheck(ops.simam, (*grad([x]), 1e-4))
    mix = torch.tensor(.3)
    torch.library.opcheck(ops.simam, (*grad([x]), 1e-4, *grad([mix])))
    torch.library.opcheck(ops.simam_backward, (x, g, 1e-4))
    torch.library.opcheck(ops.simam_backward, (x, g, 1e-4, mix))
    torch.library.opcheck(ops.simam_affine, (x, torch.randn(8), torch.randn(8), 1e-4, True))
    torch.library.opcheck(ops.ema, (x, None, *p, None, 1e-5, None, None, None, False, False))
    torch.library.opcheck(ops.ema, (*grad([x, g, *p]), None, 1e-5, None, None, None, True, True))
    torch.library.opcheck(ops.ema, (*grad([x, g, *p, mix]), 1e-5, None, None, None, True, True))
    y, gate, stats = ops.ema(x, None, *p, None, 1e-5, None, None, None, False, True)
    torch.library.opcheck(ops.ema_backward, (g, x, None, gate, stats, *p, None, False, True))
    torch.library.opcheck(ops.ema_backward, (g, x, None, gate, stats, *p, mix, False, True))


class Gates(nn.Module):
    def __init__(self):
        super().__init__()
        self.p, self.mix = nn.ParameterList(random_ema(4)), nn.Parameter(torch.tensor(.3))

    def forward(self, x):
        p = [self.p[i] for i in range(6)]  # torch 2.11 cannot trace `*self.p`
        return ema_add_relu(ema(simam(x, mix=self.mix), *p, mix=self.mix), x, *p)


def test_compile_and_export():
    m, x = Gates(), torch.randn(2, 8, 4, 5)
    expected, compiled = m(x), torch.compile(m, backend='aot_eager', fullgraph=True)
    expected.sum().backward()
    grads = [p.grad.clone() for p in m.parameters()]
    m.zero_grad()
    y = compiled(x)
    y.sum().backward()
    assert torch.allclose(y, expected) and all(torch.allclose(p.grad, g) for p, g in zip(m.parameters(), grads))
    with torch.no_grad():
        program = torch.export.export(m, (x,))
        assert torch.allclose(program.module()(x), expected)
    assert sum('simam_ema' in str(n.target) for n in program.graph.nodes) == 3


def test_autocast():
    m, x = Gates(), torch.randn(1, 8, 4, 4).bfloat16()
    with torch.autocast('cpu', torch.bfloat16): y = m(x)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in m.parameters())
    assert torch.equal(y, m(x))


def penalty(f, tensors, g):
    "The gradients of `f`, and those of a penalty on them; None where there is none."
    ts = [t.clone().requires_grad_() for t in tensors]
    grads = torch.autograd.grad(f(*ts), ts, g, create_graph=True)
    again = torch.autograd.grad(sum(t.float().square().sum() for t in grads), ts, allow_unused=True)
    return [*(t.detach() for t in grads), *again]


@pytest.mark.parametrize('name, shape, dtype', [
    ('simam', (2, 3, 4, 5), torch.float32), ('simam mixed', (2, 3, 4, 5), torch.float32),
    ('mixed', (1, 8, 4, 3), torch.float32), ('ema', (2, 8, 4, 3), torch.float32), ('sum', (1, 8, 4, 3), torch.float32),
    ('ema', (2, 8, 4, 3), torch.bfloat16)])
def test_second_derivative(name, shape, dtype):
    "The kernels have none: a gradient that is to be differentiated again is plain PyTorch's."
    x, shortcut, g = (torch.randn(shape).to(dtype) for _ in range(3))
    p = random_ema(4)
    ours, plain, tensors = {
        'simam': (simam, simam_plain, [x]), 'simam mixed': (mixed_simam, plain_mixed_simam, [x, torch.tensor(.3)]),
        'ema': (ema, ema_collapsed, [x, *p]),
        'mixed': (mixed_sum, lambda x, s, mix, *p: (blend(x, ema_collapsed(x, *p), mix) + s).relu(),
                  [x, shortcut, torch.tensor(.3), *p]),
        'sum': (ema_add_relu, lambda x, s, *p: (ema_collapsed(x, *p) + s).relu(), [x, shortcut, *p])}[name]
    for a, b in zip(penalty(ours, tensors, g), penalty(plain, tensors, g)):
        if a is None or b is None: assert all(t is None or not t.any() for t in (a, b))
        else: assert relative_error(a, b.double()) < (.02 if dtype == torch.bfloat16 else 1e-5)


def test_gradient_penalty_of_a_frozen_gate():
    x, p = torch.randn(1, 8, 4, 3, requires_grad=True), random_ema(4)
    dx, = torch.autograd.grad(ema(x, *p).sum(), x, create_graph=True)
    dx.square().sum().backward()
    assert x.grad.isfinite().all() and x.grad.abs().max() > 0
    only = random_ema(4)[0].requires_grad_()
    dw, = torch.autograd.grad(ema(x.detach(), only, *p[1:]).sum(), only, create_graph=True)
    assert torch.autograd.grad(dw.square().sum(), only)[0].abs().max() > 0


wrong = ('import torch; import simam_ema_fastai.attention.agreement as agreement; '
         'agreement.simam_plain = lambda x: 2*x; agreement._compare("{}", {})')


@pytest.mark.parametrize('child, says', [
    (wrong, 'RuntimeError: SimAM differs from plain PyTorch by'),
    ('import os; os.kill(os.getpid(), 11) # {} {}', 'the comparison ended with status -11'),
    ('import time; time.sleep(60) # {} {}', 'they were not done after 1 s'),
    ('raise SyntaxError("ptxas is too old") # {} {}', 'SyntaxError: ptxas is too old')])
def test_kernels_that_do_not_agree_are_not_used(child, says, monkeypatch, capfd, tmp_path):
    "Wrong, crashing, hanging, refused by the compiler: one line, plain PyTorch, and only this process remembers it."
    monkeypatch.setenv('SIMAM_EMA_HOME', str(tmp_path))
    monkeypatch.setattr(agreement, '_child', child)
    monkeypatch.setattr(agreement, '_checked', {})
    if 'sleep' in child: monkeypatch.setattr(agreement, '_timeout', 1)
    x, p = torch.randn(2, 8, 5, 4), random_ema(4)
    for _ in range(2):
        assert torch.equal(simam(x), simam_plain(x)) and torch.equal(ema(x, *p), ema_collapsed(x, *p))
    assert torch.equal(torch.compile(simam, backend='eager', fullgraph=True)(x), simam_plain(x))
    said = [line for line in capfd.readouterr().err.splitlines() if 'kernels of the gates' in line]
    expected = f'The kernels of the gates are not used in float32 on cpu, plain PyTorch is: {says}'
    assert len(said) == 2 and said[1].startswith(expected), said
    halves = dict.fromkeys([(torch.device('cpu'), d) for d in (torch.float16, torch.bfloat16)], '')
    monkeypatch.setattr(agreement, '_checked', halves | agreement._checked)
    path = kernel_path('cpu')
    assert path.startswith(f'float32: plain ({says}') and path.endswith('bfloat16: triton, float16: triton')
    assert not list(tmp_path.rglob('*.json'))


def test_agreement_is_remembered(monkeypatch, capfd, tmp_path):
    "Once for a version; where the cache cannot be written, once for a process."
    monkeypatch.setattr(agreement, '_child', 'pass # {} {}')
    x = torch.randn(1, 2, 4, 4)
    for home, times in ((tmp_path, 1), (tmp_path, 0), ('/dev/null/x', 1), ('/dev/null/x', 1)):
        monkeypatch.setenv('SIMAM_EMA_HOME', str(home))
        monkeypatch.setattr(agreement, '_checked', {})
        for _ in range(2): assert _triton_takes(x)
        assert capfd.readouterr().err.count('Comparing the kernels') == times
    monkeypatch.setenv('SIMAM_EMA_KERNELS', 'plain')
    assert kernel_path('cpu') == 'plain (SIMAM_EMA_KERNELS=plain)'
