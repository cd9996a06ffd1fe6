"The GPU kernels without a GPU: run in Triton's interpreter, compiled for NVIDIA's chips; and the check that needs one."
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import simam_ema_fastai.attention.triton_ema as triton_ema
import simam_ema_fastai.attention.triton_simam as triton_simam
from simam_ema_fastai.attention.functional import ema, ema_add_relu, simam, simam_bn_relu

triton = pytest.importorskip('triton')
kernels = {triton_simam: ('_simam_fwd', '_simam_bwd', '_simam_fwd_chunked', '_simam_bwd_chunked'),
           triton_ema: ('ema_fwd', 'ema_bwd', 'ema_windows')}


def run(*args, **env):
    return subprocess.run([sys.executable, *map(str, args)], capture_output=True, text=True, env=os.environ|env)


def test_in_the_interpreter():
    tests = Path(__file__).with_name('interpreted.py')
    r = run('-m', 'pytest', '-q', '-x', '--noconftest', tests, TRITON_INTERPRET='1')
    assert r.returncode == 0, r.stdout + r.stderr


class Compiler:
    "Stands for a kernel: compiles it, for the arguments it is launched with, down to the machine code of a chip."
    def __init__(self, kernel, capability, done): self.kernel, self.capability, self.done = kernel, capability, done

    def __getitem__(self, grid): return self

    def __call__(self, *args, num_warps, enable_fp_fusion, **flags):
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource
        types = {torch.float32: '*fp32', torch.float16: '*fp16', torch.bfloat16: '*bf16'}
        signature, constants, aligned = {}, {}, {}
        for i, (name, value) in enumerate((dict(zip(self.kernel.arg_names, args))|flags).items()):
            if name in flags or (isinstance(value, int) and value == 1):
                signature[name], constants[name] = 'constexpr', value
            elif isinstance(value, float): signature[name] = 'fp32'
            else:
                signature[name] = types[value.dtype] if torch.is_tensor(value) else 'i32'
                if torch.is_tensor(value) or value % 16 == 0: aligned[i,] = [['tt.divisibility', 16]]
        source, target = ASTSource(self.kernel, signature, constants, aligned), GPUTarget('cuda', self.capability, 32)
        options = dict(num_warps=num_warps, enable_fp_fusion=enable_fp_fusion)
        made = triton.compile(source, target=target, options=options)
        assert len(made.asm['cubin']) > 1000
        assert made.metadata.shared <= 99*1024  # what a block may have on every chip from 8.0 on
        self.done.append(self.kernel.__name__)


@pytest.mark.parametrize('capability, dtype, fmt', [(90, torch.bfloat16, torch.channels_last),
                                                    (80, torch.float32, torch.contiguous_format)])
def test_compiles_without_a_gpu(monkeypatch, tmp_path, capability, dtype, fmt):
    "The interpreter accepts what the compiler may not: both formats, with and without matrix units, W3 in and before."
    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))
    done = []
    for module, names in kernels.items():
        for name in names: monkeypatch.setattr(module, name, Compiler(getattr(module, name), capability, done))
    def new(c, hw): return torch.zeros(2, c, hw, hw, dtype=dtype).contiguous(memory_format=fmt).requires_grad_()
    for mix in (None, torch.tensor(.3, requires_grad=True)):
        for x in (new(64, 14), new(16, 200)): simam(x, backend='triton', mix=mix).sum().backward()
    simam_bn_relu(new(64, 7).detach(), torch.zeros(64), torch.zeros(64), backend='triton')
    monkeypatch.setattr(triton_ema, '_w3_inline', lambda c, groups: c < 64)
    for c, hw in ((8, 14), (64, 7)):
        p = [torch.zeros(s, requires_grad=True) for s in ((c, c, 1, 1), c, (c, c, 3, 3), c, c, c)]
        for mix in (None, torch.tensor(.3, requires_grad=True)):
            ema_add_relu(new(c, hw), new(c, hw), *p, backend='triton', mix=mix).sum().backward()
    assert set(done) == {name for names in kernels.values() for name in names}


def test_the_check_that_needs_a_gpu(root, tmp_path):
    check = root/'scripts'/'gpu_check.py'
    if not torch.cuda.is_available():
        r = run(check, '--out', tmp_path)
        assert (r.returncode, r.stdout, len(r.stderr.splitlines())) == (2, '', 1), r.stderr
        assert not list(tmp_path.iterdir())
    r = run(check, '--out', tmp_path, '--rehearse')
    assert r.returncode == 0 and 'rehearsal' in r.stdout and (tmp_path/'parity.csv').exists(), r.stdout + r.stderr


plain_alone = '''
import torch
from simam_ema_fastai.attention.functional import kernel_path, simam
from simam_ema_fastai.attention.reference import simam_plain
from simam_ema_fastai.attention.triton_common import triton
x = torch.randn(1, 4, 3, 3)
assert kernel_path('cpu').startswith('plain') and triton is None and torch.equal(simam(x), simam_plain(x))
assert not {'fastai', 'fastcore', 'fvcore'} & set(sys.modules)
'''


@pytest.mark.parametrize('off', ["sys.modules['triton'] = None", "os.environ['SIMAM_EMA_FUSED'] = '0'",
                                 "os.environ['SIMAM_EMA_KERNELS'] = 'plain'"])
def test_without_triton(off, tmp_path):
    r = run('-c', f'import os, sys; {off}\n{plain_alone}', SIMAM_EMA_HOME=str(tmp_path))  # without C++ too
    assert r.returncode == 0, r.stderr


def test_compiled_on_the_cpu():
    "No operator of ours hides a step from Inductor."
    c, x, seen = 4, torch.randn(2, 8, 7, 5), []

    def look(graph, example):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph
    p = [torch.randn(s) for s in ((c, c, 1, 1), c, (c, c, 3, 3), c, c, c)]
    def f(x): return ema_add_relu(ema(simam_bn_relu(simam(x), p[1].repeat(2), p[1].repeat(2)), *p), x, *p)
    assert torch.allclose(torch.compile(f, backend=look, fullgraph=True)(x), f(x), atol=1e-5)
    assert len(seen) > 60 and not any(t.startswith('simam_ema.') for t in seen)
