"The GPU kernels without a GPU: their logic in Triton's interpreter, their compilation for NVIDIA's chips, and the check that awaits a GPU."
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import simam_ema_fastai.attention.triton_kernels as fused

triton = pytest.importorskip('triton')


def run(*args, **env): return subprocess.run([sys.executable, *map(str, args)], capture_output=True, text=True, env=os.environ|env)


def test_in_the_interpreter():
    r = run('-m', 'pytest', '-q', '-x', '--noconftest', Path(__file__).with_name('interpreted.py'), TRITON_INTERPRET='1')
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
            if name in flags or (isinstance(value, int) and value == 1): signature[name], constants[name] = 'constexpr', value
            elif isinstance(value, float): signature[name] = 'fp32'
            else:
                signature[name] = types[value.dtype] if torch.is_tensor(value) else 'i32'
                if torch.is_tensor(value) or value % 16 == 0: aligned[i,] = [['tt.divisibility', 16]]
        made = triton.compile(ASTSource(self.kernel, signature, constants, aligned), target=GPUTarget('cuda', self.capability, 32), options={'num_warps': num_warps, 'enable_fp_fusion': enable_fp_fusion})
        assert len(made.asm['cubin']) > 1000 and made.metadata.shared <= 99*1024  # what a block may have on every chip from 8.0 on
        self.done.append(self.kernel.__name__)


@pytest.mark.parametrize('capability, dtype, fmt', [(90, torch.bfloat16, torch.channels_last), (80, torch.float32, torch.contiguous_format)])
def test_compiles_without_a_gpu(monkeypatch, tmp_path, capability, dtype, fmt):
    "The interpreter accepts what the compiler may not: both formats, with and without matrix units, inside and before the kernel."
    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))
    done = []
    for name in dir(fused):
        if isinstance(getattr(fused, name), triton.runtime.JITFunction) and name.startswith(('_simam_fwd', '_simam_bwd', '_ema_')):
            monkeypatch.setattr(fused, name, Compiler(getattr(fused, name), capability, done))
    monkeypatch.setattr(fused, '_has_kernel', lambda x: True)
    x = lambda c, hw: torch.zeros(2, c, hw, hw, dtype=dtype).contiguous(memory_format=fmt).requires_grad_()
    for t in (x(64, 14), x(16, 200)): fused.simam(t).sum().backward()
    fused.simam_bn_relu(x(64, 7).detach(), torch.zeros(64), torch.zeros(64))
    monkeypatch.setattr(fused, '_inline', lambda c, groups: c < 64)
    for c, hw in ((8, 14), (64, 7)):
        p = [torch.zeros(s, requires_grad=True) for s in ((c, c, 1, 1), c, (c, c, 3, 3), c, c, c)]
        fused.ema_add_relu(x(c, hw), x(c, hw), *p).sum().backward()
    assert set(done) == {'_simam_fwd', '_simam_bwd', '_simam_fwd_chunked', '_simam_bwd_chunked', '_ema_fwd', '_ema_bwd', '_ema_windows'}


def test_the_check_that_awaits_a_gpu(root, tmp_path):
    check = root/'scripts'/'gpu_check.py'
    if not torch.cuda.is_available():
        r = run(check, '--out', tmp_path)
        assert (r.returncode, r.stdout) == (2, '') and len(r.stderr.splitlines()) == 1 and not list(tmp_path.iterdir()), r.stderr
    r = run(check, '--out', tmp_path, '--rehearse')
    assert r.returncode == 0 and 'rehearsal' in r.stdout and (tmp_path/'parity.csv').exists(), r.stdout + r.stderr


@pytest.mark.parametrize('off', ["sys.modules['triton'] = None", "os.environ['SIMAM_EMA_FUSED'] = '0'", "os.environ['SIMAM_EMA_KERNELS'] = 'plain'"])
def test_without_triton(off):
    r = run('-c', f"import os, sys; {off}; import torch; import simam_ema_fastai.attention.triton_kernels as fused, simam_ema_fastai.attention.functional as kernels; x = torch.randn(1, 4, 3, 3);"
                  "assert fused.kernel_path('cpu').startswith('plain'); assert fused.triton is None and torch.equal(fused.simam(x), kernels.simam(x)); assert not {'fastai', 'fastcore', 'fvcore'} & set(sys.modules)")
    assert r.returncode == 0, r.stderr


def test_compiled_on_the_cpu():
    "No operator of ours hides a step from Inductor."
    c, x, seen = 4, torch.randn(2, 8, 7, 5), []

    def look(graph, example):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph
    p = [torch.randn(s) for s in ((c, c, 1, 1), c, (c, c, 3, 3), c, c, c)]
    f = lambda x: fused.ema_add_relu(fused.ema(fused.simam_bn_relu(fused.simam(x), p[1].repeat(2), p[1].repeat(2)), *p), x, *p)
    assert torch.allclose(torch.compile(f, backend=look, fullgraph=True)(x), f(x), atol=1e-5)
    assert len(seen) > 60 and not any(t.startswith('simam_ema.') for t in seen)
