"What the networks of a grid cost, through the command line: measured together afterwards, and shown as ratios."
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from simam_ema_fastai.core.files import read_json, write_json
from simam_ema_fastai.models.cost_table import load_costs


@pytest.fixture(scope='module')
def compare(simam_ema, digits_args):
    "Compare variants on digits, in a folder; what was printed."
    def compare(out, variants, *more, command='ablate'):
        switch = '--variants' if command == 'ablate' else '--variant'
        args = [*digits_args, '--bs', 16, '--epochs', 1, '--freeze-epochs', 0, switch, variants, '--out', out, *more]
        status, said, err = simam_ema(command, *args)
        assert status == 0, err
        return said
    return compare


@pytest.fixture(scope='module')
def grid(compare, tmp_path_factory):
    out = tmp_path_factory.mktemp('costs')/'runs'
    compare(out, 'baseline,simam')
    return out


@pytest.fixture
def copied(grid, tmp_path): return shutil.copytree(grid, tmp_path/'runs')


def kinds(costs, variant):
    rows = costs[costs.variant == variant]
    return sorted(zip(rows.task, rows.form, rows.bs == 1))


def test_ratios_of_all_networks(grid):
    "Exactly 1 for the baseline; every ratio within its interval; counts stay with the runs, which are not timed."
    costs = load_costs(grid)
    wanted = [('forward', 'eager', False), ('forward', 'eager', True), ('forward', 'optimized', False),
              ('forward', 'optimized', True), ('memory', 'eager', False), ('training', 'eager', False)]
    assert kinds(costs, 'baseline') == kinds(costs, 'simam') == wanted
    assert (costs[costs.variant == 'baseline'][['ratio', 'low', 'high']] == 1).all(axis=None)
    assert ((costs.low <= costs.ratio) & (costs.ratio <= costs.high)).all() and (costs.ratio > 0).all()
    timed = costs[costs.task != 'memory']
    assert (timed.ms > 0).all() and (timed.rounds.astype(float) >= 6).all() and (costs.error == '').all()
    assert costs[costs.task == 'memory'].mib.gt(0).all() and {*costs.reference} == {'baseline'}
    assert costs.machine.iloc[0] and costs.threads.ge(1).all() and {*costs.precision} == {'fp32'}
    counts = read_json(grid/'baseline-uniform-s1'/'efficiency.json')
    assert {*counts} == {'parameters', 'gflops', 'flops_convention', 'size'}


def test_the_report_shows_ratios_first(grid):
    page, text = ((grid/'report'/name).read_text(encoding='utf-8') for name in ('report.html', 'report.md'))
    for what in ('training step ×', 'latency ×', 'latency, optimized ×', 'memory of that step'):
        assert what in page and what in text, what
    assert page.index('Over baseline: 1.10 is a tenth more.') < page.index('Absolute, on ')
    assert 'training min' not in page + text and 'Training took' in page
    runs = pd.read_csv(grid/'report'/'results.csv').set_index('variant')
    assert 'tab:costs' in (grid/'report'/'tables.tex').read_text(encoding='utf-8')
    assert runs.training_ratio['baseline'] == runs.eager_ratio['baseline'] == 1


def test_an_added_network_takes_turns_with_the_reference(compare, copied):
    "What is known stays as it was, to the letter."
    before = load_costs(copied)
    said = compare(copied, 'baseline,simam,se')
    assert 'costs: 1 of 3 networks, in turns' in said
    after = load_costs(copied)
    pd.testing.assert_frame_equal(after[after.variant != 'se'], before)
    assert kinds(after, 'se') == kinds(before, 'baseline')
    assert 'costs: ' not in compare(copied, 'baseline,simam,se')
    pd.testing.assert_frame_equal(load_costs(copied), after)


def test_a_busy_machine_is_noticed(compare, copied):
    (copied/'costs.csv').unlink()
    others = [subprocess.Popen([sys.executable, '-c', 'while True: pass']) for _ in range(2)]
    try: said = compare(copied, 'baseline,simam')
    finally:
        for p in others: p.kill(); p.wait()
    line = next(line for line in said.splitlines() if line.startswith('The machine was busy while costs were measured'))
    assert load_costs(copied).others.gt(.1).all()
    page = (copied/'report'/'report.html').read_text(encoding='utf-8')
    assert page.count(line.split('. ')[0]) == 2  # among the cautions, and beside the figures


def test_folders_of_earlier_versions(simam_ema, copied):
    "Runs that were measured by themselves are reported as they were."
    (copied/'costs.csv').unlink()
    shutil.rmtree(copied/'report')
    for f in copied.glob('*/efficiency.json'):
        alone = dict(device='cpu', latency_ms=9.5, latency_p95_ms=10.5, images_per_s=300., memory_mib=12.)
        write_json(f, read_json(f) | alone)
    status, _, err = simam_ema('report', copied)
    assert status == 0, err
    text = (copied/'report'/'report.md').read_text(encoding='utf-8')
    assert 'latency ms (p95)' in text and '9.50 (10.50)' in text and '×' not in text.split('\n\n')[2]
    assert (copied/'report'/'figures'/'cost_latency_ms.svg').exists()


def test_one_network_is_measured_absolutely(compare, tmp_path, monkeypatch):
    monkeypatch.setenv('COLUMNS', '200')  # of the terminal: the table leaves out columns for which it has no room
    said = compare(tmp_path, 'hybrid', command='train')
    assert 'training step ms' in said and '×' not in said
    assert (load_costs(tmp_path).ratio == 1).all()
    page = (tmp_path/'report'/'report.html').read_text(encoding='utf-8')
    assert 'Absolute, on ' in page and 'is a tenth more' not in page


def test_without_a_report_nothing_is_measured(compare, simam_ema, copied, tmp_path):
    "And a damaged file is named."
    compare(tmp_path/'quick', 'baseline', '--no-report')
    assert not (tmp_path/'quick'/'costs.csv').exists()
    (copied/'costs.csv').write_text('variant\n')
    status, _, err = simam_ema('report', copied)
    assert status == 2 and 'costs.csv is damaged' in err and len(err.splitlines()) == 1
