"""The GPU kernels, run without a GPU by Triton's interpreter, against float64: values, gradients, formats, and their standing as PyTorch operators.
test_fused.py starts this file in a process of its own, since TRITON_INTERPRET has to be set before Triton is imported."""
import pytest
import torch
from torch import nn

import simam_ema_fastai.attention.functional as kernels
import simam_ema_fastai.attention.triton_kernels as fused

assert fused.interpreted, 'set TRITON_INTERPRET=1'
last, first = torch.channels_last, torch.contiguous_format


@pytest.fixture(autouse=True)
def seed(): torch.manual_seed(0)


def some_ema(c, dtype=torch.float32):
    "Parameters of one EMA that float16 and bfloat16 hold exactly."
    r = lambda *shape: torch.randn(*shape)
    return [p.bfloat16().half().to(dtype) for p in (r(c, c, 1, 1)/c**.5, r(c), r(c, c, 3, 3)/(3*c**.5), r(c), r(c), r(c))]


def results(f, tensors, g):
    "Output and gradients."
    tensors = [t.detach().requires_grad_() for t in tensors]
    y = f(*tensors)
    return [y.detach(), *torch.autograd.grad(y, tensors, g.to(y.dtype))]


def errors(a, b): return [((u.double() - v).norm()/v.norm().clamp(min=1e-3*v.numel()**.5)).item() for u, v in zip(a, b, strict=True)]


def truth(f, tensors, g): return results(f, [t.double() for t in tensors], g.double())


def slack(dtype): return 2.7 if dtype == torch.bfloat16 else 1.02  # the interpreter cuts bfloat16 off where a GPU rounds: twice the error


def plain_sum(x, shortcut, *p): return (kernels.ema_plain(x, *p) + shortcut).relu()


@pytest.mark.parametrize('shape', [(2, 3, 1, 1), (1, 3, 7, 5), (2, 40, 13, 9), (1, 2, 1, 6), (1, 2, 56, 56), (3, 5, 2, 2)])
@pytest.mark.parametrize('fmt', [first, last])
def test_simam(shape, fmt):
    x, g = torch.randn(shape).contiguous(memory_format=fmt), torch.randn(shape)
    ours = results(fused.simam, [x], g)
    assert max(errors(ours, truth(kernels.simam, [x], g))) < 1e-6
    assert all(t.stride() == torch.empty(shape, memory_format=fmt).stride() for t in ours if fmt == first or min(shape[1], shape[2]*shape[3]) > 1)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_simam_half(dtype):
    x, g = (3*torch.randn(2, 3, 9, 8)).to(dtype), torch.randn(2, 3, 9, 8).to(dtype)
    reference = truth(kernels.simam, [x], g)
    for ours, plain in zip(errors(results(fused.simam, [x], g), reference), errors(results(kernels.simam, [x], g), reference)): assert ours <= slack(dtype)*plain
    assert fused.simam(300*x[:1]).isfinite().all()


@pytest.mark.parametrize('channels, fmt, size', [(2, first, (150, 130)), (1, first, (190, 181)), (3, last, (100, 90))])
def test_simam_chunked(channels, fmt, size):
    x, g = (100 + torch.randn(1, channels, *size)).contiguous(memory_format=fmt), torch.randn(1, channels, *size)
    backward_only = size == (150, 130)
    assert fused._simam_blocks(channels, size[0]*size[1], fmt == last, 4, 1)[3] is not backward_only and fused._simam_blocks(channels, size[0]*size[1], fmt == last, 4, 2)[3]
    assert max(errors(results(fused.simam, [x], g), truth(kernels.simam, [x], g))) < 1e-4  # a mean of 100 costs float32 two digits
    assert max(errors([fused.simam_bn_relu(x, torch.ones(channels), torch.zeros(channels))], [kernels.simam(x.double()).relu()])) < 1e-4


@pytest.mark.parametrize('fmt', [first, last])
@pytest.mark.parametrize('relu', [True, False])
def test_simam_with_a_norm(fmt, relu):
    x, norm = torch.randn(2, 6, 5, 7).contiguous(memory_format=fmt), nn.BatchNorm2d(6).eval()
    for t in (norm.weight, norm.bias, norm.running_mean): nn.init.normal_(t)
    nn.init.uniform_(norm.running_var, .5, 2)
    scale = (norm.weight*(norm.running_var + norm.eps).rsqrt()).detach()
    shift = (norm.bias - norm.running_mean*scale).detach()
    with torch.no_grad(): expected = norm.double()(kernels.simam(x.double()))
    y = fused.simam_bn_relu(x, scale, shift, relu=relu)
    assert max(errors([y], [expected.relu() if relu else expected])) < 1e-6 and y.stride() == x.stride()
    with_gradient = fused.simam_bn_relu(x.clone().requires_grad_(), scale, shift, relu=relu)
    assert with_gradient.requires_grad and max(errors([with_gradient.detach()], [y.double()])) < 1e-6


ema_shapes = [(4, (2, 4, 7, 5)), (8, (1, 16, 4, 4)), (5, (1, 10, 3, 9)), (6, (1, 6, 2, 3)), (24, (1, 24, 5, 4)), (16, (1, 16, 13, 9)), (8, (1, 8, 1, 6)), (64, (1, 64, 7, 7)), (1, (1, 2, 4, 4))]


@pytest.mark.parametrize('c, shape', ema_shapes)
@pytest.mark.parametrize('fmt', [first, last])
def test_ema(c, shape, fmt):
    x, shortcut, g = (torch.randn(shape).contiguous(memory_format=fmt) for _ in range(3))
    p = some_ema(c)
    for ours, plain, tensors in ((fused.ema, kernels.ema_plain, [x, *p]), (fused.ema_add_relu, plain_sum, [x, shortcut, *p])):
        a = results(ours, tensors, g)
        assert max(errors(a, truth(plain, tensors, g))) < 2e-5
        assert all(t.stride() == x.stride() for t in a[:2])
    assert max(errors([fused.ema(x, *p, constants=fused.ema_constants(p[2], p[3], p[5]))], [kernels.ema_plain(x.double(), *[t.double() for t in p])])) < 1e-6


def test_ema_on_one_pixel():
    "The norm of a single pixel is zero times 316: float32 keeps five digits, and what is exactly zero in theory is small."
    x, p, g = torch.randn(2, 6, 1, 1), some_ema(6), torch.randn(2, 6, 1, 1)
    assert max(errors(results(fused.ema, [x, *p], g), truth(kernels.ema_plain, [x, *p], g))) < 1e-3


def test_ema_of_stage_1():
    x, p, g = torch.randn(1, 8, 56, 56), some_ema(8), torch.randn(1, 8, 56, 56)
    assert max(errors(results(fused.ema, [x, *p], g), truth(kernels.ema_plain, [x, *p], g))) < 2e-5


def test_ema_with_w3_before_the_kernel(monkeypatch):
    "As for c = 64 in large batches: window sums, one product, the main kernel; and the way back in two parts."
    monkeypatch.setattr(fused, '_inline', lambda c, groups: False)
    for c, shape in ((8, (2, 16, 4, 5)), (64, (1, 64, 7, 7))):
        x, g, p = torch.randn(shape), torch.randn(shape), some_ema(c)
        assert max(errors(results(fused.ema, [x, *p], g), truth(kernels.ema_plain, [x, *p], g))) < 2e-5
        assert max(errors(results(fused.ema_add_relu, [x, g, *p], g), truth(plain_sum, [x, g, *p], g))) < 2e-5


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_ema_half(dtype):
    "No worse than the published form in that precision, with its parameters in 16 bits as with float32 ones, as autocast hands them over."
    x, g = (2*torch.randn(1, 16, 6, 7)).to(dtype), torch.randn(1, 16, 6, 7).to(dtype)
    for c in (8, 16):
        p = some_ema(c, dtype)
        reference, plain = truth(kernels.ema_plain, [x, *p], g), results(kernels.ema_plain, [x, *p], g)
        for params in (p, [t.float() for t in p]):
            ours = results(fused.ema, [x, *params], g)
            assert [t.dtype for t in ours] == [dtype, dtype, *(t.dtype for t in params)]
            assert all(a <= slack(dtype)*b for a, b in zip(errors(ours, reference), errors(plain, reference)))


def test_frozen():
    x, p, g = torch.randn(1, 8, 4, 4), some_ema(4), torch.randn(1, 8, 4, 4)
    leaf = x.clone().requires_grad_()
    fused.ema(leaf, *p).backward(g)
    assert max(errors([leaf.grad], truth(kernels.ema_plain, [x, *p], g)[1:2])) < 2e-5 and all(t.grad is None for t in p)


def test_views_and_empty_batches():
    p, whole = some_ema(4), torch.randn(2, 8, 6, 6)
    views = [whole[1:, 2:6], whole[:1, ::2], whole[:1, :4, :, 1:4], whole[:1, :4, ::2, ::3], whole[:1, :4].transpose(2, 3), whole[:1, :4].expand(2, -1, -1, -1)]
    for x in views:
        g = torch.randn(x.shape)
        assert max(errors(results(fused.simam, [x], g), truth(kernels.simam, [x], g))) < 1e-6
        assert max(errors(results(fused.ema, [x, *p], g), truth(kernels.ema_plain, [x, *p], g))) < 2e-5
    x = torch.randn(1, 8, 5, 4)
    transposed = torch.randn(1, 4, 5, 8).permute(0, 3, 2, 1)  # a gradient of another layout than x
    assert max(errors(results(fused.ema_add_relu, [x, transposed, *p], transposed), truth(plain_sum, [x, transposed, *p], transposed))) < 2e-5
    for f in (fused.simam, lambda x: fused.ema(x, *p), lambda x: fused.ema_add_relu(x, x, *p), lambda x: fused.simam_bn_relu(x, torch.ones(8), torch.ones(8))):
        assert f(x[:0]).shape == (0, 8, 5, 4)


def test_what_has_no_kernel():
    x, p = torch.randn(1, 8, 5, 4, dtype=torch.float64), [t.double() for t in some_ema(4)]
    assert torch.equal(fused.simam(x), kernels.simam(x)) and torch.equal(fused.ema(x, *p), kernels.ema(x, *p))
    large = torch.randn(1, 16, 64, 65)
    assert torch.equal(fused.ema(large, *(q := some_ema(16))), kernels.ema(large, *q))


def test_nan_stays():
    x = torch.randn(1, 4, 4, 4)
    x[0, 0, 1, 1] = float('nan')
    for y in (fused.simam_bn_relu(x, torch.ones(4), torch.zeros(4)), fused.ema_add_relu(x, torch.zeros_like(x), *some_ema(4))): assert y[0, 0].isnan().any()


def test_operators():
    x, p, g = torch.randn(1, 8, 3, 4), some_ema(4), torch.randn(1, 8, 3, 4)
    grad = lambda ts: [t.clone().requires_grad_() for t in ts]
    ops = torch.ops.simam_ema
    torch.library.opcheck(ops.simam, (*grad([x]), 1e-4))
    torch.library.opcheck(ops.simam_backward, (x, g, 1e-4))
    torch.library.opcheck(ops.simam_affine, (x, torch.randn(8), torch.randn(8), 1e-4, True))
    torch.library.opcheck(ops.ema, (x, None, *p, 1e-5, None, None, None, False, False))
    torch.library.opcheck(ops.ema, (*grad([x, g, *p]), 1e-5, None, None, None, True, True))
    y, gate, stats = ops.ema(x, None, *p, 1e-5, None, None, None, False, True)
    torch.library.opcheck(ops.ema_backward, (g, x, None, gate, stats, *p, False, True))


class Gates(nn.Module):
    def __init__(self):
        super().__init__()
        self.p = nn.ParameterList(some_ema(4))

    def forward(self, x):
        p = [self.p[i] for i in range(6)]  # torch 2.11 cannot trace `*self.p`
        return fused.ema_add_relu(fused.ema(fused.simam(x), *p), x, *p)


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
    assert y.dtype == torch.bfloat16 and all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in m.parameters())
    assert torch.equal(y, m(x))


@pytest.mark.parametrize('name, shape, dtype', [('simam', (2, 3, 4, 5), torch.float32), ('ema', (2, 8, 4, 3), torch.float32), ('sum', (1, 8, 4, 3), torch.float32),
                                                ('ema', (2, 8, 4, 3), torch.bfloat16)])
def test_second_derivative(name, shape, dtype):
    "The kernels have none: a gradient that is to be differentiated again is the plain form's."
    x, shortcut, g = (torch.randn(shape).to(dtype) for _ in range(3))
    p = some_ema(4)
    ours, plain, tensors = {'simam': (fused.simam, kernels.simam, [x]), 'ema': (fused.ema, kernels.ema, [x, *p]),
                            'sum': (fused.ema_add_relu, lambda x, s, *p: (kernels.ema(x, *p) + s).relu(), [x, shortcut, *p])}[name]
    def penalty(f):
        ts = [t.clone().requires_grad_() for t in tensors]
        first = torch.autograd.grad(f(*ts), ts, g, create_graph=True)
        return [t.detach() for t in first], torch.autograd.grad(sum(t.float().square().sum() for t in first), ts, allow_unused=True)
    for a, b in zip(penalty(ours), penalty(plain)):
        assert all((u is None) == (v is None) or not (u if v is None else v).any() for u, v in zip(a, b))
        assert max(errors(*zip(*((u, v.double()) for u, v in zip(a, b) if u is not None and v is not None)))) < (.02 if dtype == torch.bfloat16 else 1e-5)


def test_gradient_penalty_of_a_frozen_gate():
    x, p = torch.randn(1, 8, 4, 3, requires_grad=True), some_ema(4)
    dx, = torch.autograd.grad(fused.ema(x, *p).sum(), x, create_graph=True)
    dx.square().sum().backward()
    assert x.grad.isfinite().all() and x.grad.abs().max() > 0
    only = some_ema(4)[0].requires_grad_()
    dw, = torch.autograd.grad(fused.ema(x.detach(), only, *p[1:]).sum(), only, create_graph=True)
    assert torch.autograd.grad(dw.square().sum(), only)[0].abs().max() > 0


@pytest.mark.parametrize('child, says', [
    ('import simam_ema_fastai.attention.triton_kernels as fused, simam_ema_fastai.attention.functional as kernels; import torch; kernels.simam = lambda x: 2*x; fused._compare("{}", {})', 'RuntimeError: SimAM differs from plain PyTorch by'),
    ('import os; os.kill(os.getpid(), 11) # {} {}', 'the comparison ended with status -11'),
    ('import time; time.sleep(60) # {} {}', 'they were not done after 1 s'),
    ('raise SyntaxError("ptxas is too old") # {} {}', 'SyntaxError: ptxas is too old')])
def test_kernels_that_do_not_agree_are_not_used(child, says, monkeypatch, capfd, tmp_path):
    "Wrong, crashing, hanging, refused by the compiler: one line, plain PyTorch, and nothing is remembered of it but in this process."
    monkeypatch.setenv('SIMAM_EMA_HOME', str(tmp_path))
    monkeypatch.setattr(fused, '_child', child)
    monkeypatch.setattr(fused, '_checked', {})
    if 'sleep' in child: monkeypatch.setattr(fused, '_seconds', 1)
    x, p = torch.randn(2, 8, 5, 4), some_ema(4)
    for _ in range(2):
        assert torch.equal(fused.simam(x), kernels.simam(x)) and torch.equal(fused.ema(x, *p), kernels.ema(x, *p))
    assert torch.equal(torch.compile(fused.simam, backend='eager', fullgraph=True)(x), kernels.simam(x))
    said = [line for line in capfd.readouterr().err.splitlines() if 'kernels of the gates' in line]
    assert len(said) == 2 and said[1].startswith(f'The kernels of the gates are not used in float32 on cpu, plain PyTorch is: {says}'), said
    monkeypatch.setattr(fused, '_checked', dict.fromkeys([(torch.device('cpu'), d) for d in (torch.float16, torch.bfloat16)], '') | fused._checked)
    assert fused.kernel_path('cpu').startswith(f'float32: plain ({says}') and fused.kernel_path('cpu').endswith('bfloat16: triton, float16: triton')
    assert not list(tmp_path.rglob('*.json'))


def test_agreement_is_remembered(monkeypatch, capfd, tmp_path):
    "Once for a version; where the cache cannot be written, once for a process."
    monkeypatch.setenv('SIMAM_EMA_HOME', str(tmp_path))
    monkeypatch.setattr(fused, '_child', 'pass # {} {}')
    x = torch.randn(1, 2, 4, 4)
    for home, times in ((tmp_path, 1), (tmp_path, 0), ('/dev/null/x', 1), ('/dev/null/x', 1)):
        monkeypatch.setenv('SIMAM_EMA_HOME', str(home))
        monkeypatch.setattr(fused, '_checked', {})
        for _ in range(2): assert fused._has_kernel(x)
        assert capfd.readouterr().err.count('Comparing the kernels') == times
    monkeypatch.setenv('SIMAM_EMA_KERNELS', 'plain')
    assert fused.kernel_path('cpu') == 'plain (SIMAM_EMA_KERNELS=plain)'
