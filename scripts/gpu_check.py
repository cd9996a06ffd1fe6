"""Check the kernels of `simam_ema_fastai.attention` on an NVIDIA GPU, and time them: python scripts/gpu_check.py

Parity with float64, forward and backward, also through CUDA graphs and torch.compile; then the share of the copy
bandwidth that each kernel reaches. Exit status: 0 all well, 1 a kernel is wrong, 2 there is no GPU."""
# ruff: noqa: E402  # the interpreter has to be chosen before triton is imported
import argparse
import os
import sys
from functools import partial
from itertools import product
from pathlib import Path

ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
ap.add_argument('--out', type=Path, default=Path('results/gpu_check'), help='folder of the results (%(default)s)')
ap.add_argument('--parts', default='parity,timing', help='what to do (%(default)s)')
ap.add_argument('--kernels', default='simam,simam_bn_relu,ema,ema_add_relu', help='which kernels (%(default)s)')
ap.add_argument('--sizes', default='64,224', help='image sizes whose feature maps in a ResNet-50 to take (%(default)s)')
ap.add_argument('--rehearse', action='store_true', help="parity of tiny shapes in Triton's interpreter, on the CPU")
args = ap.parse_args()
if args.rehearse: os.environ['TRITON_INTERPRET'], args.parts, args.sizes = '1', 'parity', '64'

import pandas as pd
import torch
import torch._functorch.config

import simam_ema_fastai.attention.functional as functional
from simam_ema_fastai.attention.reference import ema_published, simam_plain
from simam_ema_fastai.attention.triton_common import triton

functional.kernels_agree = lambda device, dtype: True  # they are judged here, whatever the package would do with them
device, stages = ('cpu', (3, 4)) if args.rehearse else ('cuda', (1, 2, 3, 4))

def plain_bn_relu(x, scale, shift): return (simam_plain(x)*scale[:,None,None] + shift[:,None,None]).relu().to(x.dtype)
def plain_add_relu(x, shortcut, *p): return (ema_published(x, *p) + shortcut).relu()
# Kernel: ours, the published form, and how many tensors of the size of x have to move forward (x in, y out; with the
# residual sum: the shortcut in) and backward (x and g in, dx out; and: y in, the shortcut's gradient out)
cases = {'simam': (functional.simam, simam_plain, 2, 3),
         'simam_bn_relu': (functional.simam_bn_relu, plain_bn_relu, 2, None),
         'ema': (functional.ema, ema_published, 2, 3), 'ema_add_relu': (functional.ema_add_relu, plain_add_relu, 3, 5)}

def settings():
    "What to take of a ResNet-50: a row, its `cases`, and a shape: channels, those of an EMA group, side of the map."
    sizes, dtypes = map(int, args.sizes.split(',')), (torch.float32, torch.bfloat16)
    for size, s, kernel, dtype in product(sizes, stages, args.kernels.split(','), dtypes):
        channels, c, side = 32*2**s*(1 if 'simam' in kernel else 4), 4*2**s, size//2**(s + 1)
        if args.rehearse: channels, side = 2*c, 4
        yield dict(size=size, stage=s, kernel=kernel, dtype=dtype), cases[kernel], (channels, c, side)

def tensors(kernel, shape, n, dtype):
    "Random inputs of a kernel in channels_last, and a gradient; the parameters are numbers that every dtype holds."
    channels, c, side = shape
    def new(): return torch.randn(n, channels, side, side, device=device).to(dtype, memory_format=torch.channels_last)
    def param(*size, by=1.): return (by*torch.randn(size, device=device)).bfloat16().half().float()
    if 'simam' in kernel: p = [param(channels), param(channels)] if 'bn' in kernel else []
    else: p = [param(c, c, 1, 1, by=c**-.5), param(c), param(c, c, 3, 3, by=c**-.5/3), *map(param, (c, c, c))]
    return [new(), *([new()] if kernel == 'ema_add_relu' else []), *p], new()

def results(f, xs, g, backward):
    "The output, and the gradients of the inputs where there is a backward."
    y = f(*(xs := [x.detach().requires_grad_(backward) for x in xs]))
    return [y.detach(), *(torch.autograd.grad(y, xs, g.to(y.dtype)) if backward else [])]

def recorded(calls, stream):
    "A CUDA graph of `calls`, and what the last of them gives."
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream): [calls[0]() for _ in range(3)]
    torch.cuda.synchronize()
    with torch.cuda.graph(graph := torch.cuda.CUDAGraph(), stream=stream): out = [call() for call in calls][-1]
    return graph, out

def replayed(f, xs, g, backward):
    "Results of a CUDA graph that was recorded with other inputs."
    others = [t.flip(0).clone(memory_format=torch.preserve_format) for t in (*xs, g)]
    graph, out = recorded([lambda: results(f, others[:-1], others[-1], backward)], torch.cuda.Stream())
    for a, b in zip(others, [*xs, g]): a.copy_(b)
    graph.replay(); torch.cuda.synchronize()
    return out

def errors(a, b):
    "‖a − b‖/‖b‖ for every pair; infinite where `a` is not finite."
    return [((u.double() - v).norm()/v.norm().clamp(min=1e-3*v.numel()**.5)).item() if u.isfinite().all()
            else float('inf') for u, v in zip(a, b)]

def parity():
    "In bfloat16 a kernel may err twice as much as the published form (Triton's interpreter, which truncates, more)."
    for row, (ours, published, _, back), shape in settings():
        kernel, dtype, backward = row['kernel'], row['dtype'], back is not None
        for n in (1,) if args.rehearse else (2, 9):  # from 9·32 groups on, c = 64 multiplies W3 outside the kernel
            xs, g = tensors(kernel, shape, n, dtype)
            exact = results(published, [x.double() for x in xs], g.double(), backward)
            same = results(published, [x.to(dtype) for x in xs], g, backward)
            bound = [(2.7 if args.rehearse else 2)*e + 1e-6 for e in errors(same, exact)]
            if dtype == torch.float32: bound = [1e-5] + [1e-4]*(len(exact) - 1)
            ways = dict(eager=(results, ours))
            if row['stage'] == 4 and n == 9:
                ways['a CUDA graph'] = replayed, ours
                ways['torch.compile'] = results, torch.compile(ours, fullgraph=True)
            for through, (call, f) in ways.items():
                try: out, error = call(f, xs, g, backward), ''
                except Exception as e: out, error = [x*float('nan') for x in exact], f'{type(e).__name__}: {e}'[:300]
                over = max(e/b for e, b in zip(errors(out, exact), bound))
                right = over <= 1 and out[0].is_contiguous(memory_format=torch.channels_last)
                yield row | dict(n=n, through=through, right=right, over_bound=over, error=error)

def seconds(calls, stream):
    "Median time of one of `calls`, whose inputs differ so that no cache serves them: ten replays of one CUDA graph."
    (graph, _), times = recorded(calls, stream), []
    for _ in range(12):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record(); graph.replay(); end.record(); torch.cuda.synchronize()
        times.append(start.elapsed_time(end)/1e3/len(calls))
    return sorted(times[2:])[5]

def prepared(f, inputs, backward, stream):
    "Calls to be timed; autograd runs the backward on the stream of the forward."
    if not backward: return [torch.no_grad()(partial(f, *xs)) for xs, _ in inputs]
    with torch.cuda.stream(stream):
        inputs = [([x.detach().requires_grad_() for x in xs], g) for xs, g in inputs]
        return [partial(torch.autograd.grad, f(*xs), xs, g, retain_graph=True) for xs, g in inputs]

def timing(batch=64):
    "Time of each kernel and of its published form, and the bytes that have to move, at the speed of a copy, over it."
    torch._functorch.config.donated_buffer = False  # the backward is taken more than once
    big, copy = torch.randn(2, 2**28, device='cuda')
    bandwidth = 2*big.nbytes/seconds([lambda: copy.copy_(big)]*5, torch.cuda.Stream())
    for row, (ours, published, *moved), shape in settings():
        kernel, dtype, nbytes = row['kernel'], row['dtype'], batch*shape[0]*shape[2]**2*row['dtype'].itemsize
        n = min(max(-(-4*torch.cuda.get_device_properties(0).L2_cache_size//nbytes), 3), 32)
        inputs = [tensors(kernel, shape, batch, dtype) for _ in range(n)]
        same = [([x.to(dtype) for x in xs], g) for xs, g in inputs]  # the published form: all in one precision
        forms = dict(fused=(ours, inputs), published=(published, same))
        for (form, (f, given)), (way, times) in product(forms.items(), zip(('forward', 'backward'), moved)):
            if times is None: continue
            t = seconds(prepared(f, given, way == 'backward', stream := torch.cuda.Stream()), stream)
            yield row | dict(n=batch, form=form, direction=way, us=1e6*t, share_of_copy=times*nbytes/t/bandwidth)

def main():
    if not (args.rehearse or torch.cuda.is_available()) or triton is None:
        return print('gpu_check: it takes an NVIDIA GPU, and Triton (pip install triton).', file=sys.stderr) or 2
    args.out.mkdir(parents=True, exist_ok=True); torch.manual_seed(0)
    gpu, right = 'a rehearsal, on a CPU' if args.rehearse else torch.cuda.get_device_name(), True
    print(gpu, 'torch', torch.__version__, 'triton', triton.__version__)
    for part in args.parts.split(','):
        rows = []
        for row in dict(parity=parity, timing=timing)[part]():
            rows.append(row | dict(dtype=str(row['dtype']).removeprefix('torch.'), gpu=gpu))
            pd.DataFrame(rows).to_csv(args.out/f'{part}.csv', index=False)  # whole after every row
            print(part, *rows[-1].values(), flush=True)
            right &= row.get('right', True)
    return int(not right)

sys.exit(main())
