"Every published system trains, by its own command, on real images."
import shutil

import pytest

import simam_ema_fastai.experiments.ablation as ablation
from simam_ema_fastai.core.files import read_json
from simam_ema_fastai.report.published import systems, train_command


@pytest.mark.parametrize('name', systems)
def test_trains_for_an_epoch(name, simam_ema, tmp_path, monkeypatch):
    "The gallery's quick command; what it spends on timing is tested elsewhere."
    monkeypatch.setattr(ablation, 'measure_costs', lambda *args: None)
    monkeypatch.chdir(tmp_path)
    status, out, err = simam_ema(*train_command(name, quick=True))
    few = all('training image' in line for line in err.splitlines())  # a quick run has few of them, and says so
    assert status == 0 and few, err
    run, = (tmp_path/'runs'/name).glob('*/metrics.json')
    assert read_json(run)['n'] == 10 and 'Top-1' in out
    config = read_json(run.with_name('config.json'))
    assert (config['variant'], config['recipe']['epochs']) == (systems[name].variant, 1)
    shutil.rmtree(tmp_path/'runs')  # gigabytes
