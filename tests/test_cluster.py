"A grid on a Ray cluster of two nodes, one of which is killed half way: nothing is lost, nothing is done twice."
import contextlib
import os
import threading
import time
from dataclasses import replace
from functools import partial

import pandas as pd
import psutil
import pytest
import torch
from safetensors.torch import load_file

from simam_ema_fastai.core.errors import UserError
from simam_ema_fastai.experiments.ablation import RunsFailed, ablate
from simam_ema_fastai.experiments.config import RunConfig, make_grid
from simam_ema_fastai.experiments.ray import on_ray, trials_on_ray
from simam_ema_fastai.experiments.runs import failures
from simam_ema_fastai.experiments.search import load_search
from simam_ema_fastai.experiments.tune import search_settings
from simam_ema_fastai.models.variants import get_variant
from simam_ema_fastai.training.recipe import Recipe

ray = pytest.importorskip('ray')


@pytest.fixture(scope='module')
def cluster(root):
    "Two nodes on this machine, each with a core for runs."
    from ray.cluster_utils import Cluster
    path = os.pathsep.join(filter(None, [str(root), os.environ.get('PYTHONPATH')]))
    os.environ |= dict(RAY_USAGE_STATS_ENABLED='0', PYTHONPATH=path)
    cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=1, include_dashboard=False))
    cluster.second = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_what_a_task_refuses_is_one_line(cluster, tmp_path):
    nowhere = dict(name='folder', path=str(tmp_path/'nowhere'), size=32)
    missing = make_grid(nowhere, ('baseline',), arch='resnet18', weights=None)
    with pytest.raises(UserError, match=r"^'.*nowhere' is no folder\.$"):
        ablate(missing, tmp_path/'runs', executor=on_ray)
    there = make_grid(dict(name='digits', n_train=64, n_valid=20), ('baseline',), arch='resnet18', weights=None)
    with pytest.raises(UserError, match='no node of the Ray cluster has 64 CPUs'):
        ablate(there, tmp_path/'runs', executor=partial(on_ray, cpus=64))
    assert not (tmp_path/'runs').exists()


def test_one_run_fails(cluster, tmp_path):
    "The other is finished; a run that could not be says why."
    recipe, data = Recipe(epochs=1, bs=32, strategy='uniform'), dict(name='digits', n_train=64, n_valid=20)
    configs = [RunConfig(get_variant(v, 'resnet18'), data, None, replace(recipe, lr=lr))
               for v, lr in (('baseline', 1e30), ('simam', 1e-3))]
    with pytest.raises(RunsFailed, match='^baseline-uniform-s1: .* of epoch 1') as e:
        ablate(configs, tmp_path, measured=False, executor=on_ray)
    assert e.value.status == 2 and list(failures(tmp_path)) == ['baseline-uniform-s1']
    assert (tmp_path/'simam-uniform-s1'/'metrics.json').exists()


def test_a_search(cluster, tmp_path):
    "Trials side by side are at the points at which they would be in turn; one that fails is a failed trial."
    data = dict(name='digits', n_train=64, n_valid=20)
    configs = make_grid(data, ('baseline', 'simam'), arch='resnet18', weights=None, recipe=Recipe(epochs=1, bs=16))
    space = ['lr=1e-3,1e30', 'bs=8,16']
    search_settings(configs, tmp_path, 2, space, executor=trials_on_ray)
    search, points = load_search(tmp_path), [dict(lr=1e-3, bs=16), dict(lr=1e30, bs=8)]
    for v in search.variants:
        assert [(t.settings, t.state) for t in search.of(v)] == [*zip(points, ('done', 'failed'))]


def test_a_node_is_killed(cluster, tmp_path):
    folder, epochs = tmp_path/'runs', 8
    data, recipe = dict(name='digits', n_train=128, n_valid=20), Recipe(epochs=epochs, bs=32, strategy='uniform')
    configs = make_grid(data, ('baseline', 'simam', 'se'), arch='resnet18', weights=None, recipe=recipe)
    def histories(): return {f.parent.name: pd.read_csv(f) for f in folder.glob('*/history.csv')}
    killed = {}

    def kill():
        raylet = cluster.second.all_processes['raylet'][0].process.pid
        def on_second():
            for name in histories():
                with contextlib.suppress(OSError, IndexError, psutil.Error):
                    process = psutil.Process(int((folder/name/'.lock').read_text().split()[1]))
                    if raylet in [p.pid for p in process.parents()]: return name, process
        while not (found := on_second()): time.sleep(.02)  # a run there has done an epoch
        name, process = found
        cluster.remove_node(cluster.second, allow_graceful=False)
        process.wait(20)
        killed.update(name=name, before=histories())

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    results = ablate(configs, folder, measured=False, executor=on_ray)
    thread.join(30)
    after, name = histories(), killed['name']
    assert 0 < len(killed['before'][name]) < epochs
    assert sorted(after) == sorted(c.name for c in configs)
    assert all(h.epoch.tolist() == list(range(epochs)) for h in after.values())
    for n, h in killed['before'].items():
        pd.testing.assert_frame_equal(after[n][:len(h)], h)  # went on from there: seconds and all
    assert not list(folder.rglob('.lock')) and not list(folder.rglob('checkpoint*'))

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try: undisturbed = ablate([c for c in configs if c.name == name], tmp_path/'undisturbed', measured=False)
    finally: torch.set_num_threads(threads)
    got = results[[c.name for c in configs].index(name)]
    assert all(got[k] == undisturbed[0][k] for k in ('n', 'loss', 'top1', 'top5'))
    a, b = (load_file(d/name/'model.safetensors') for d in (folder, tmp_path/'undisturbed'))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert {f.name for f in (folder/name).iterdir()} == {f.name for f in (tmp_path/'undisturbed'/name).iterdir()}
    again = {f: f.stat().st_mtime_ns for f in folder.glob('*/*')}
    assert ablate(configs, folder, measured=False, executor=on_ray) == results
    assert {f: f.stat().st_mtime_ns for f in again} == again
