"""Check and measure the GPU kernels of simam_ema_fastai.attention.triton_kernels: parity with float64, CUDA graphs, torch.compile, and the share of the copy bandwidth.

Exit status: 0 all well, 1 a kernel is wrong, 2 no GPU. `scripts/gpu_check.sh` runs it."""
# ruff: noqa: E402
import argparse
import json
import os
import sys
import time
from pathlib import Path

ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
ap.add_argument('--out', type=Path, default=Path('results/gpu_check'), help='folder of the results (default: %(default)s)')
ap.add_argument('--bs', type=int, default=64, help='batch size of the timings (default: %(default)s)')
ap.add_argument('--sizes', default='64,224', help='sides of the pictures whose feature maps are checked, separated by commas (default: %(default)s)')
ap.add_argument('--training', action='store_true', help='parity alone, and only of what a training on a GPU runs: bfloat16 in channels_last, several images')
ap.add_argument('--parity-only', action='store_true', help='no timings')
ap.add_argument('--rehearse', action='store_true', help="the parity part alone, in Triton's interpreter on the CPU and on tiny shapes: tries this script, says nothing of a GPU")
args = ap.parse_args()
if args.rehearse: os.environ['TRITON_INTERPRET'] = '1'
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pandas as pd
import torch
import torch._functorch.config

import simam_ema_fastai.attention.functional as kernels
import simam_ema_fastai.attention.triton_kernels as fused

fused._trusted = lambda device, dtype: True  # they are judged here, whatever the package would do with them

device = 'cpu' if args.rehearse else 'cuda'
formats = {'contiguous': torch.contiguous_format, 'channels_last': torch.channels_last}
float32, halves = torch.float32, (torch.bfloat16, torch.float16)
dtypes, batches = (float32, *halves), (1, 2, 9)  # 9·32 groups: from there on c = 64 multiplies W3 outside the kernel
if args.rehearse: batches = (1,)
if args.training: formats, dtypes, batches = {'channels_last': torch.channels_last}, (torch.bfloat16,), (9,)
short = lambda dtype: str(dtype).removeprefix('torch.')


def write(file, text):
    tmp = file.with_name(f'.{file.name}.tmp')
    tmp.write_text(text, encoding='utf-8')
    os.replace(tmp, file)


class Table:
    "Rows in a CSV file that is whole at any time."
    def __init__(self, name): self.file, self.rows = args.out/name, []

    def add(self, **row):
        self.rows.append(row)
        write(self.file, self.frame().to_csv(index=False))

    def frame(self): return pd.DataFrame(self.rows)


# What is checked. Every case is (ours, the published form, names of the tensors they take after x)

def plain_sum(x, shortcut, *p): return (kernels.ema_plain(x, *p) + shortcut).relu()
def plain_norm(x, scale, shift): return (kernels.simam_cpp(x)*scale[:,None,None] + shift[:,None,None]).relu().to(x.dtype)
def collapsed_sum(x, shortcut, *p): return (kernels.ema_cpp(x, *p) + shortcut).relu()


# Kernel: ours, published, collapsed (None: the published form is all there is), tensors of the size of x that have to move forward and backward.
# Forward: x in, y out (with the residual sum: the shortcut in). Backward: x and g in, dx out (and: y in, the shortcut's gradient out).
cases = {'simam': (fused.simam_cpp, kernels.simam_cpp, None, 2, 3), 'simam_bn_relu': (fused.simam_bn_relu, plain_norm, None, 2, None),
         'ema': (fused.ema_cpp, kernels.ema_plain, kernels.ema_cpp, 2, 3), 'ema_add_relu': (fused.ema_add_relu, plain_sum, collapsed_sum, 3, 5)}


def shapes():
    "(size of the input, stage, channels of SimAM, channels of EMA and of one of its groups, height and width) in a ResNet-50."
    if args.rehearse: return [(64, 3, 6, 16, 8, 4), (64, 4, 16, 64, 64, 2)]
    return [(size, stage, 32*2**stage, 128*2**stage, 4*2**stage, size//2**(stage+1)) for size in map(int, args.sizes.split(',')) for stage in (1, 2, 3, 4)]


def tensors(kernel, channels, c, hw, n, dtype, fmt):
    "Random inputs of a kernel; parameters are float32 numbers that 16 bits hold, as every dtype is to compute the same function."
    new = lambda: torch.randn(n, channels, hw, hw, device=device).to(dtype).contiguous(memory_format=fmt)
    param = lambda *shape, by=1.: (by*torch.randn(shape, device=device)).bfloat16().half().float()
    p = {'simam': [], 'simam_bn_relu': [param(channels), param(channels)]}.get(kernel)
    if p is None: p = [param(c, c, 1, 1, by=c**-.5), param(c), param(c, c, 3, 3, by=c**-.5/3), param(c), param(c), param(c)]
    return [new(), *([new()] if kernel == 'ema_add_relu' else []), *p], new()


def results(f, xs, g, backward):
    xs = [x.detach().requires_grad_(backward) for x in xs]
    y = f(*xs)
    return [y.detach(), *(torch.autograd.grad(y, xs, g.to(y.dtype)) if backward else [])]


def errors(a, b):
    "‖a − b‖/‖b‖ for every pair; infinite where `a` is not finite."
    floor = lambda v: v.norm().clamp(min=1e-3*v.numel()**.5)
    return [((u.double() - v).norm()/floor(v)).item() if u.isfinite().all() else float('inf') for u, v in zip(a, b, strict=True)]


def parity(table):
    # In 16 bits: no worse than the published form in that precision; to be trained with, no worse than twice that. Triton's interpreter cuts bfloat16 off where a GPU rounds: twice the error
    slack = lambda dtype: 2.7 if args.rehearse and dtype == torch.bfloat16 else 2 if args.training else 1.05
    for size, stage, c_simam, c_ema, c, hw in shapes():
        for kernel, (ours, plain, _, _, back) in cases.items():
            channels = c_simam if kernel.startswith('simam') else c_ema
            for n in batches:
                for fmt in formats:
                    for dtype in dtypes:
                        xs, g = tensors(kernel, channels, c, hw, n, dtype, formats[fmt])
                        cast = lambda to: [x.to(to) for x in xs]
                        judge = results(plain, cast(torch.float64), g.double(), back is not None)
                        out = results(ours, xs, g, back is not None)
                        e = errors(out, judge)
                        bound = [1e-5, *[1e-4]*(len(e)-1)] if dtype == float32 else [slack(dtype)*b + 1e-6 for b in errors(results(plain, cast(dtype), g, back is not None), judge)]
                        same_format = out[0].is_contiguous(memory_format=formats[fmt])
                        right = all(a <= b for a, b in zip(e, bound)) and same_format
                        table.add(kernel=kernel, size=size, stage=stage, n=n, format=fmt, dtype=short(dtype), right=right, error_output=e[0], error_gradients=max(e[1:], default=None),
                                  bound_output=bound[0], worst_over_bound=max(a/b for a, b in zip(e, bound)))
                        if not right: print(f'WRONG: {table.rows[-1]}', flush=True)
        print(f'parity at {size} pixels, stage {stage}: {sum(r["right"] for r in table.rows)} of {len(table.rows)} right so far', flush=True)


def systems(table):
    "CUDA graphs and torch.compile give what eager calls give, on inputs they have not seen."
    torch._dynamo.reset()
    for kernel, (ours, _, _, _, back) in cases.items():
        for dtype in [d for d in dtypes if d != torch.float16]:
            make = lambda: tensors(kernel, 512 if kernel.startswith('simam') else 2048, 64, 7, 16, dtype, torch.channels_last)
            (xs, g), (fresh, g2) = make(), make()
            expected = results(ours, fresh, g2, back is not None)
            def check(name, f):
                try:
                    worst = max(errors(f(), [t.double() for t in expected]))
                    error = ''
                except Exception as e: worst, error = float('inf'), f'{type(e).__name__}: {e}'.splitlines()[0]
                right = worst <= (1e-5 if dtype == float32 else 1e-2)
                table.add(kernel=kernel, size=224, stage=4, n=16, format='channels_last', dtype=short(dtype), right=right, error_output=worst, through=name, error=error)
                print(f'{kernel} through {name}, {short(dtype)}: {"right" if right else "WRONG " + error}', flush=True)
            def graph():
                stream = torch.cuda.Stream()
                stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(stream):
                    for _ in range(3): results(ours, xs, g, back is not None)
                torch.cuda.synchronize()
                recorded = torch.cuda.CUDAGraph()
                with torch.cuda.graph(recorded, stream=stream): out = results(ours, xs, g, back is not None)
                for a, b in zip([*xs, g], [*fresh, g2]): a.copy_(b)
                recorded.replay()
                torch.cuda.synchronize()
                return out
            if not args.training: check('a CUDA graph', graph)
            check('torch.compile', lambda: results(torch.compile(ours, fullgraph=True), fresh, g2, back is not None))


# What is measured

def seconds(calls, stream=None):
    "Median time of one of `calls`, which take different inputs so that the cache does not serve them: recorded in one CUDA graph, ten replays, each between two events."
    stream = stream or torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls[:3]: call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for call in calls: call()
    times = []
    for _ in range(12):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record(); graph.replay(); end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end)/1e3/len(calls))
    return sorted(times[2:])[5]


def copy_bandwidth():
    "Bytes read plus bytes written per second by a copy of 1 GiB."
    a, b = (torch.randn(2**28, device='cuda') for _ in range(2))
    return 2*a.numel()*4/seconds([lambda: b.copy_(a)]*5)


def measure(table, bandwidth):
    torch._functorch.config.donated_buffer = False  # the way back is taken more than once
    l2 = torch.cuda.get_device_properties(0).L2_cache_size
    for size, stage, c_simam, c_ema, c, hw in shapes():
        for kernel, (ours, plain, collapsed, forward, back) in cases.items():
            channels = c_simam if kernel.startswith('simam') else c_ema
            for fmt in formats:
                for dtype in (float32, torch.bfloat16):
                    one = args.bs*channels*hw*hw*dtype.itemsize
                    sets = min(max(-(-4*l2//one), 3), 32)
                    inputs = [tensors(kernel, channels, c, hw, args.bs, dtype, formats[fmt]) for _ in range(sets)]
                    forms = {'fused': ours, 'plain, eager': plain, 'plain, compiled': plain}
                    if collapsed: forms |= {'collapsed, eager': collapsed, 'collapsed, compiled': collapsed}
                    for form, f in forms.items():
                        torch._dynamo.reset()
                        if form.endswith('compiled'): f = torch.compile(f)
                        same = (lambda xs: xs) if form == 'fused' or 'ema' not in kernel else (lambda xs: [x.to(dtype) for x in xs])  # published: all in one precision
                        row = dict(kernel=kernel, size=size, stage=stage, n=args.bs, format=fmt, dtype=short(dtype), form=form)
                        for direction, moved in (('forward', forward), ('backward', back)):
                            if moved is None: continue
                            try:
                                stream = torch.cuda.Stream()  # autograd runs the way back on the stream of the way there
                                with torch.cuda.stream(stream):
                                    if direction == 'forward':
                                        def call(xs, g):
                                            with torch.no_grad(): f(*xs)
                                        calls = [lambda xs=same(xs), g=g: call(xs, g) for xs, g in inputs]
                                    else:
                                        made = [([x.detach().requires_grad_() for x in same(xs)], g) for xs, g in inputs]
                                        outs = [(f(*xs), xs, g) for xs, g in made]
                                        calls = [lambda y=y, xs=xs, g=g: torch.autograd.grad(y, xs, g, retain_graph=True) for y, xs, g in outs]
                                t = seconds(calls, stream)
                                table.add(**row, direction=direction, microseconds=1e6*t, floor_bytes=moved*one, share_of_copy=moved*one/t/bandwidth, error='')
                            except Exception as e:
                                torch.cuda.synchronize()
                                table.add(**row, direction=direction, microseconds=None, floor_bytes=moved*one, share_of_copy=None, error=f'{type(e).__name__}: {e}'.splitlines()[0])
                            calls = made = outs = None
                    print(f'{kernel}, {size} pixels, stage {stage}, {fmt}, {short(dtype)}: '
                          + '; '.join(f"{r['direction']} {r['share_of_copy']:.0%}" for r in table.rows if r['form'] == 'fused' and r['share_of_copy']
                                      and (r['kernel'], r['size'], r['stage'], r['format'], r['dtype']) == (kernel, size, stage, fmt, short(dtype))) + ' of copy bandwidth', flush=True)


def machine():
    gpu = torch.cuda.get_device_properties(0)
    try: driver = Path('/proc/driver/nvidia/version').read_text().splitlines()[0]
    except OSError: driver = None
    return dict(gpu=gpu.name, multiprocessors=gpu.multi_processor_count, l2_bytes=gpu.L2_cache_size, capability=list(torch.cuda.get_device_capability()), driver=driver,
                cuda=torch.version.cuda, torch=torch.__version__, triton=fused.triton.__version__, python=sys.version.split()[0],
                command=' '.join(['scripts/gpu_check.sh', *sys.argv[1:]]), started=time.strftime('%Y-%m-%d %H:%M:%S %Z'))


def main():
    if not args.rehearse and not torch.cuda.is_available(): print('gpu_check: there is no NVIDIA GPU here.', file=sys.stderr); return 2
    if fused.triton is None: print('gpu_check: Triton is not installed: pip install triton.', file=sys.stderr); return 2
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    checked = Table('parity.csv')
    if args.rehearse: print("a rehearsal in Triton's interpreter, on the CPU and tiny shapes: it says nothing of a GPU")
    else:
        info = machine()
        write(args.out/'machine.json', json.dumps(info, indent=2)+'\n')
        print(f"{info['gpu']}, torch {info['torch']}, triton {info['triton']}")
    parity(checked)
    if not args.rehearse: systems(checked)
    wrong = (~checked.frame().right.astype(bool)).sum()
    print(f'{len(checked.rows) - wrong} of {len(checked.rows)} checks passed: {checked.file}')
    if not (args.rehearse or args.parity_only or args.training):
        bandwidth = copy_bandwidth()
        write(args.out/'machine.json', json.dumps(info|dict(copy_bytes_per_second=bandwidth), indent=2)+'\n')
        print(f'copy: {bandwidth/1e12:.2f} TB/s read and written')
        timed = Table('timings.csv')
        measure(timed, bandwidth)
        keys = ['kernel', 'direction', 'size', 'stage', 'dtype', 'format']
        frame = timed.frame()
        with pd.option_context('display.width', 200, 'display.max_rows', None, 'display.max_columns', None):
            shares = frame[frame.form == 'fused'].set_index(keys).share_of_copy.rename('share of copy')
            print(frame.pivot(index=keys, columns='form', values='microseconds').join(shares).round(2).to_string())
    return int(wrong > 0)


sys.exit(main())
