"""Whether a machine can run the queue: every requirement installed, what the queue runs imports, weights fit, pictures decode."""
import json
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

work = Path(sys.argv[1])
pack = json.loads((work/'pack.json').read_text())

def unmet(name:str, seen:set) -> list[str]:
    "What `name` requires, and what that requires, that is missing here or of another version; but not what the pack leaves out."
    out = []
    for r in map(Requirement, requires(name) or ()):
        key = canonicalize_name(r.name)
        if key in seen or key in pack['left_out'] or r.marker and not r.marker.evaluate({'extra': ''}): continue
        seen.add(key)
        try: found = version(r.name)
        except PackageNotFoundError: out.append(f'{r} (for {name}): not installed'); continue
        if not r.specifier.contains(found, prereleases=True): out.append(f'{r} (for {name}): {found} is installed')
        out += unmet(r.name, seen)
    return out

def try_out() -> str: # What it found
    "Import what the queue runs, decode the data set, take one step on real pictures with the packed weights."
    import torch
    from fastai.losses import CrossEntropyLossFlat

    import simam_ema_fastai.attention.functional as functional  # noqa: F401
    import simam_ema_fastai.cli as cli
    import simam_ema_fastai.experiments.ablation as ablation  # noqa: F401
    import simam_ema_fastai.experiments.benchmark as benchmark
    from simam_ema_fastai.data.dls import get_dls
    from simam_ema_fastai.models.create import create_model
    dls = get_dls('tiny_imagenet', work/'home'/'tiny_imagenet', bs=8)
    x, y = dls.train.one_batch()
    loss = CrossEntropyLossFlat()(create_model('hybrid', dls.c, weights='npm').to(dls.device)(x), y)
    loss.backward()
    if not torch.isfinite(loss): sys.exit(f'setup: the loss of one step is {loss.item()}')
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU'
    return f'{gpu}, torch {torch.__version__}, Python {sys.version.split()[0]}; {len(dls.train_ds)} training and {len(dls.valid_ds)} validation images; one step of the Hybrid at {dls.size} pixels: loss {loss.item():.3f}'

for fault in unmet('simam_ema_fastai', set()): print(f'requirement not met: {fault}', flush=True)
print(try_out())
