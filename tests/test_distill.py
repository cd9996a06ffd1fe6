"A student that learns from trained networks besides the labels."
import json
import re
import shutil
import signal
import time

import pandas as pd
import pytest
import safetensors.torch
import torch


@pytest.fixture(scope='module')
def digits_args(digits_args): return [*digits_args, '--n-train', 128, '--epochs', 2]


@pytest.fixture(scope='module')
def teachers(simam_ema, digits_args, tmp_path_factory):
    "Two trained Hybrids, and the student they are for, trained alone."
    out = tmp_path_factory.mktemp('grid')/'runs'
    for args in (['--variants', 'hybrid', '--strategies', 'uniform'], ['--variants', 'baseline']):
        status, _, err = simam_ema('ablate', *digits_args, *args, '--seeds', '1,2', '--no-report', '--out', out)
        assert status == 0, err
    return out


@pytest.fixture
def student(simam_ema, digits_args):
    def train(out, teacher, *args):
        return simam_ema('train', *digits_args, '--variant', 'baseline', '--no-report', '--teacher', teacher, *args,
                         '--out', out)
    return train


def tensors(run): return safetensors.torch.load_file(run/'model.safetensors')


def equal(a, b): return all(torch.equal(t, b[k]) for k, t in a.items())


def test_students_stand_beside_their_teachers(simam_ema, digits_args, teachers, tmp_path):
    "One report of the baseline, the same distilled from a Hybrid of its seed, and the Hybrids."
    out = shutil.copytree(teachers, tmp_path/'runs')
    args = ['--variants', 'baseline', '--seeds', '1,2', '--teacher', f'{out}/hybrid-uniform-s{{seed}}',
            '--distill-weight', .5]
    status, printed, err = simam_ema('ablate', *digits_args, *args, '--out', out)
    assert status == 0 and 'baseline from hybrid' in printed and 'No verdict' not in printed, err or printed
    runs = [out/f'baseline-from-hybrid-uniform-s{seed}' for seed in (1, 2)]
    configs = [json.loads((r/'config.json').read_text()) for r in runs]
    assert [c['teachers'] for c in configs] == [[f'{out}/hybrid-uniform-s{seed}'] for seed in (1, 2)]
    assert len({c['teachers_digest'] for c in configs}) == 2 and configs[0]['recipe']['distill_weight'] == .5
    table = pd.read_csv(out/'report'/'differences.csv')
    assert {*zip(table.variant, table.reference)} == {('hybrid', 'baseline'), ('baseline from hybrid', 'baseline')}
    page = (out/'report'/'report.html').read_text()
    assert 'Each student against its teacher' in page and 'temperature 4.0 and weight 0.5' in page
    assert 'all seeds learned from the same teachers' not in page

    again = simam_ema('ablate', *digits_args, *args, '--out', out)
    assert again[0] == 0 and again[1].count('done before') == 2
    status, _, err = simam_ema('ablate', *digits_args, *args[:-1], .6, '--out', out)
    assert status == 2 and 'recipe.distill_weight 0.5 (now 0.6)' in err and err.count('\n') == 1
    args[args.index('--teacher') + 1] = out/'hybrid-uniform-s1'
    status, _, err = simam_ema('ablate', *digits_args, *args, '--out', out)
    assert status == 2 and 'baseline-from-hybrid-uniform-s2 holds a run with other teachers' in err, err


def test_the_labels_and_the_teacher_have_their_weights(student, teachers, tmp_path):
    "At weight 0 it is the baseline that was trained alone, bit for bit; at weight 1 labels do nothing."
    teacher = teachers/'hybrid-uniform-s1'
    assert student(tmp_path/'a', teacher, '--distill-weight', 0)[0] == 0
    run = tmp_path/'a'/'baseline-from-hybrid-uniform-s1'
    assert equal(tensors(run), tensors(teachers/'baseline-uniform-s1'))
    losses = []
    for name, args in dict(b=['--label-smoothing', .2], c=[]).items():  # what is done to labels does not matter
        assert student(tmp_path/name, teacher, '--distill-weight', 1, *args)[0] == 0
        losses.append(pd.read_csv(tmp_path/name/run.name/'history.csv').train_loss.tolist())
    assert losses[0] == losses[1] != pd.read_csv(run/'history.csv').train_loss.tolist()


def test_the_teacher_stays_behind(simam_ema, student, teachers, tmp_path):
    "An ensemble teaches; moved away afterwards, nothing that the student wrote misses it."
    both = shutil.copytree(teachers, tmp_path/'both')
    one, two = (both/f'hybrid-uniform-s{seed}' for seed in (1, 2))
    status, _, err = student(tmp_path/'out', f'{one},{two}')
    assert status == 0, err
    shutil.rmtree(both)
    run = tmp_path/'out'/'baseline-from-2-hybrid-uniform-s1'
    assert tensors(run).keys() == tensors(teachers/'baseline-uniform-s1').keys()
    sizes = [(r/'model.pkl').stat().st_size for r in (run, teachers/'baseline-uniform-s1')]
    assert abs(sizes[0] - sizes[1]) < 20_000
    status, printed, err = simam_ema('evaluate', run/'model.pkl', '--trust')
    assert status == 0 and '100 images: ' in printed, err
    assert simam_ema('export', run, '--bundle', tmp_path/'bundle')[0] == 0
    status, printed, err = simam_ema('report', tmp_path/'out', '--no-pictures')
    assert status == 0, err


def test_killed_it_ends_as_if_it_had_not_been(simam_ema, digits_args, student, teachers, tmp_path):
    args = ['--epochs', 5, '--mixup', .4, '--size', 48, '--start-size', 32, '--resize-epochs', 4]
    teacher = teachers/'hybrid-uniform-s1'  # of 32 pixels
    assert student(tmp_path/'whole', teacher, *args)[0] == 0
    p = simam_ema.start('train', *digits_args, '--variant', 'baseline', '--no-report', '--teacher', teacher, *args,
                        '--out', tmp_path/'killed')
    deadline = time.monotonic() + 300
    while not (found := list((tmp_path/'killed').glob('*/history.csv'))) or len(pd.read_csv(found[0])) < 2:
        assert p.poll() is None and time.monotonic() < deadline, p.communicate()
        time.sleep(.05)
    p.send_signal(signal.SIGKILL)
    p.communicate()
    moved = shutil.copytree(teacher, tmp_path/'moved')  # the same by content
    status, printed, err = student(tmp_path/'killed', moved, *args)
    assert status == 0 and 'going on after epoch' in printed, err
    whole, killed = (tmp_path/name/'baseline-from-hybrid-uniform-s1' for name in ('whole', 'killed'))
    assert equal(tensors(whole), tensors(killed))


def test_classes_in_another_order_are_put_right(student, teachers, tmp_path):
    "A teacher whose outputs are in another order teaches the same."
    from simam_ema_fastai.core.files import file_hash, read_json, write_json
    from simam_ema_fastai.runtime.manifest import manifest_digest
    turned = shutil.copytree(teachers/'hybrid-uniform-s1', tmp_path/'turned')
    about, state = read_json(turned/'model.json'), tensors(turned)
    about['classes'] = about['classes'][::-1]
    for k in ('fc.weight', 'fc.bias'): state[k] = state[k].flip(0)
    safetensors.torch.save_file(state, turned/'model.safetensors')
    about['files']['model.safetensors'] = 'sha256:' + file_hash(turned/'model.safetensors')
    write_json(turned/'model.json', about | dict(digest=manifest_digest(about)))
    losses = []
    for i, teacher in enumerate([turned, teachers/'hybrid-uniform-s1']):
        assert student(tmp_path/f'{i}', teacher, '--distill-weight', 1)[0] == 0
        losses.append(pd.read_csv(next((tmp_path/f'{i}').glob('*/history.csv'))).train_loss)
    assert losses[0].sub(losses[1]).abs().max() < 1e-4


def test_what_cannot_teach(simam_ema, digits_args, student, teachers, tmp_path):
    "Each in one line, and nothing is left on the disk."
    teacher, out = teachers/'hybrid-uniform-s1', tmp_path/'out'
    begun = tmp_path/'begun'
    begun.mkdir()
    shutil.copy(teacher/'config.json', begun)
    of_four = tmp_path/'four'
    assert simam_ema('train', *digits_args, '--variant', 'baseline', '--no-report', '--n-classes', 4, '--epochs', 1,
                     '--out', of_four)[0] == 0
    cases = [
        ([of_four/'baseline-uniform-s1'], 'has other classes, 4 for 10: it does not know'),
        ([begun], 'the run is not finished'),
        ([teachers], 'but runs: give one of them'),
        ([tmp_path/'nothing'], 'no exported learner at'),
        ([teacher/'model.pkl'], 'is a pickle, which can run any code'),
        ([teacher, '--distill-weight', 1.5], 'distill_weight 1.5: it has to be between 0 and 1'),
        ([teacher, '--distill-weight', 'nan'], 'distill_weight nan: it has to be between 0 and 1'),
        ([teacher, '--distill-temperature', 0], 'distill_temperature 0.0: it has to be above 0'),
        ([teacher, '--folds', 2, '--fold', 1], 'images that validate or test here: it would tell'),
        (['none', '--distill-weight', .5], 'there is no teacher'),
    ]
    for args, line in cases:
        status, _, err = student(out, *args)
        assert status == 2 and err.count('\n') == 1 and line in err, (args, err)
        assert not out.exists(), args
    status, printed, err = student(out, teacher/'model.pkl', '--trust', '--epochs', 1)
    assert status == 0 and re.search('opened the pickle .*, as trusted', printed), err
