"What gates do to a network, from the command line: before a training, after one, and in the report."
import json
import re

import pandas as pd
import pytest
from fastcore.test import test_close as assert_close

from simam_ema_fastai.cli import main
from simam_ema_fastai.experiments.gates import load_gates
from simam_ema_fastai.experiments.results import load_runs

small = ['--data', 'digits', '--size', '32', '--n-valid', '50', '--arch', 'resnet18', '--weights', 'none']


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    "Two starts of EMA and a baseline, trained for a moment on digits."
    out = tmp_path_factory.mktemp('runs')/'starts'
    variants = "baseline,ema@residual34,ema(start='identity')@residual34"
    training = ['--n-train', '64', '--bs', '16', '--epochs', '2', '--lr', '.01', '--strategies', 'uniform']
    assert main(['ablate', *small, *training, '--variants', variants, '--no-report', '--out', str(out)]) == 0
    return out


def test_a_run_tells_what_its_gates_did(runs):
    assert not list(runs.glob('baseline-*/gates.json'))
    gates, networks = load_gates(runs, load_runs(runs))
    start = gates[(gates.moment == 'start') & (gates['class'] == '')].groupby('variant')
    published, identity = 'ema@residual34', "ema(start='identity')@residual34"
    assert start.gain.mean()[published] < .7 and {*start.get_group(identity).gain} == {1.}
    logits = networks[networks.moment == 'start'].set_index('variant').logits
    assert logits[identity] == 0 < .1 < logits[published]
    end = gates[(gates.moment == 'end') & (gates.variant == identity) & (gates['class'] == '')]
    reach = networks.reach.iloc[0]
    assert (end.gamma.abs() > 0).all() and (end.gamma.abs() < 1.5*reach).all()


def test_what_is_missing_is_measured_afterwards(runs, capsys):
    noted = {f: json.loads(f.read_text()) for f in runs.glob('*/gates.json')}
    assert len(noted) == 2
    for f in noted: f.unlink()
    assert main(['diagnose', str(runs)]) == 0
    said = capsys.readouterr().out
    assert said.count(': diagnosed') == 2
    for f, before in noted.items():
        now = json.loads(f.read_text())
        for moment in ('start', 'end'):
            assert_close(now[moment]['logits'], before[moment]['logits'], eps=1e-4)
            for a, b in zip(now[moment]['gates'], before[moment]['gates'], strict=True):
                assert_close([a['gain'], a['weight']], [b['gain'], b['weight']], eps=1e-5)
                assert (a['gamma'], a['name']) == (b['gamma'], b['name'])
    assert main(['diagnose', str(runs)]) == 0
    assert ': diagnosed' not in capsys.readouterr().out


def test_sentences_say_what_the_tables_say(runs):
    assert main(['report', str(runs)]) == 0
    gates = pd.read_csv(runs/'report'/'gates.csv', keep_default_na=False, na_values={'gamma': ['']})
    logits = pd.read_csv(runs/'report'/'logits.csv')
    page = (runs/'report'/'report.html').read_text(encoding='utf-8')
    section = page[page.index('id="why"'):page.index('id="classes"')]
    whole = gates[gates['class'] == '']
    start = whole[(whole.variant == 'ema@residual34') & (whole.moment == 'start')].groupby('stage').gain.mean()
    stage, gain = re.search(r'EMA in stage (\d) \w+ the branch at the start \(gain ([\d.]+)\)', section).groups()
    assert f'{start[int(stage)]:.2f}' == gain == f'{start.min():.2f}'
    change = logits[(logits.variant == 'ema@residual34') & (logits.moment == 'start')].logits.item()
    assert f'the gates change the logits by {100*change:.0f}%' in section
    gamma = whole[whole.variant.str.contains('identity') & (whole.moment == 'end')].gamma
    reach = logits[logits.variant.str.contains('identity')].reach.iloc[0]
    said, bound = re.search(r'γ is (−?[\d.]+) on average .*?about ([\d.]+)', section).groups()
    assert (said.replace('−', '-'), bound.rstrip('.')) == (f'{gamma.mean():.2f}', f'{reach:.2f}')
    assert 'Before the first step the logits are those of the network without gates.' in section
    assert (runs/'report'/'figures'/'gains.svg').exists()


def test_a_variant_is_diagnosed_before_any_training(capsys):
    assert main(['diagnose', *small, '--variant', 'cbam@stage+simam@spatial34']) == 0
    said = capsys.readouterr().out
    assert re.search(r'layer1\.gate +CBAM +1 +0\.\d{3}', said)
    assert re.search(r'CBAM in stage \d cuts down the branch at the start', said) and 'SimAM in stage' in said


@pytest.mark.parametrize('args, says', [
    ([], 'diagnose what? Give a run folder, or a variant'),
    (['runs/some', '--variant', 'ema'], 'diagnose what?'),
    (['runs/some', '--size', '64'], 'runs know their own data'),
    (['nowhere'], "no finished run in 'nowhere'"),
    (['--variant', 'baseline', *small], "'baseline' has no gate to be diagnosed"),
    (['--variant', 'emma', *small], "unknown variant 'emma'. Did you mean"),
])
def test_what_cannot_be_diagnosed_is_said_in_one_line(args, says, capsys):
    assert main(['diagnose', *args]) == 2
    err = capsys.readouterr().err.strip()
    assert says in err and len(err.splitlines()) == 1
