"Folders as people lay them out: recognized or refused in one line, and never learned as something else."
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from simam_ema_fastai.core.errors import UserError
from simam_ema_fastai.data.datasets import load_samples
from simam_ema_fastai.data.dls import get_dls
from simam_ema_fastai.training.evaluate import _short

rng = np.random.default_rng(0)


def images(*folders, n=10, suffix='.png'):
    for folder in folders:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for i in range(n): Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(Path(folder)/f'{i}{suffix}')


def read(path, **kwargs):
    "The samples of a folder, and what was said."
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        s = load_samples('folder', path, **kwargs)
    return s, [str(w.message) for w in said]


def below(root, names): return [root/n for n in names]


@pytest.mark.parametrize('train, valid', [
    ('train', 'validation'), ('images/train', 'images/val'), ('train2017', 'val2017'), ('TRAIN', 'VAL'),
    ('train', 'dev'), ('train', 'eval'), ('train', 'Validation Set'), ('TrainData', 'ValidData'),
    ('archive/dataset/train', 'archive/dataset/valid')])
def test_split_names(tmp_path, train, valid):
    images(*below(tmp_path/train, 'ab'), n=6)
    images(*below(tmp_path/valid, 'ab'), n=3)
    s, said = read(tmp_path)
    assert s.classes == ['a', 'b'] and (len(s.idxs(False)), len(s.idxs(True))) == (12, 6)
    assert valid in s.split and not said, said
    assert all((tmp_path/valid in f.parents) == v for f, v in zip(s.files, s.is_valid))


@pytest.mark.parametrize('train, test', [
    ('Training', 'Testing'), ('Train', 'Test'), ('training_set', 'test_set'), ('train_images', 'test_images'),
    ('seg_train/seg_train', 'seg_test/seg_test'), ('trn', 'tests')])
def test_a_test_folder_is_held_out(tmp_path, train, test):
    "A share of the training images validates; in a foreign folder that is evaluated whole, the test images do."
    images(*below(tmp_path/train, 'ab'), n=10)
    images(*below(tmp_path/test, 'ab'), n=3)
    s, said = read(tmp_path)
    assert not said and [s.parts.count(p) for p in ('training', 'validation', 'test')] == [16, 4, 6]
    assert all((tmp_path/test in f.parents) == (p == 'test') for f, p in zip(s.files, s.parts))
    s, _ = read(tmp_path, whole=True)
    assert len(s.idxs(True)) == 6 and test in s.split


def test_third_part(tmp_path):
    for part, n in (('train', 6), ('valid', 3), ('test', 4)): images(*below(tmp_path/part, 'ab'), n=n)
    (tmp_path/'README.roboflow.txt').touch()
    images(tmp_path/'__MACOSX'/'train')
    s, said = read(tmp_path)
    assert not said and [s.parts.count(p) for p in ('training', 'validation', 'test')] == [12, 6, 8]
    for options, says in ((dict(test_pct=.1), 'has test images of its own'), (dict(seed=1), 'a split of its own')):
        with pytest.raises(UserError, match=says): read(tmp_path, **options)
    (tmp_path/'test'/'b').rename(tmp_path/'test'/'c')
    with pytest.raises(UserError, match="test has the class 'c', which train has not"): read(tmp_path)
    unlabelled = tmp_path/'kaggle'
    images(*below(unlabelled/'train', 'ab')), images(unlabelled/'test')
    s, said = read(unlabelled)
    assert (len(s.files), len(s.idxs(True))) == (20, 4) and 'a share of it validates' in said[0]


@pytest.mark.parametrize('folders, says', [
    (['valid/a', 'valid/b', 'test/a', 'test/b'], "called like parts of a split"),
    (['train', 'test'], 'holds no class folders'),                                      # labels in a table beside it
    (['fold1/a', 'fold1/b', 'fold2/a', 'fold2/b'], "all of them hold 'a', 'b'"),
    (['apprentissage/a', 'apprentissage/b', 'essai/a', 'essai/b', 'essai/c'], "all of them hold 'a', 'b'"),
    (['cat/train', 'cat/test', 'dog/train', 'dog/test'], "all of them hold 'test', 'train'"),
    (['cat/train', 'cat/test', 'dog'], "cat holds 'test', 'train'"),
    (['train/a', 'train/b', 'c'], 'is called like a part of a split'),
    (['train/a', 'train/b', 'Training/a', 'valid/a', 'valid/b'], '2 folders for training'),
    (['train/a', 'train/b', 'val/a', 'valid/b'], '2 folders for validation'),
    (['train/a', 'train/b', 'valid/A', 'valid/b'], "has the class 'A', which train has not, only 'a'"),
    (['Crack', 'crack', 'fine'], "holds 'Crack', 'crack'"),
    (['images/train', 'images/val', 'labels/train', 'labels/val'], "all of them hold 'train', 'val'"),
    (['a'], 'holds 1 class folders'),
    (['set/a', 'set/b'], 'set holds 2: give that')])
def test_refused(tmp_path, simam_ema, folders, says):
    images(*(tmp_path/f for f in folders), n=4)
    with pytest.raises(UserError) as e: load_samples('folder', tmp_path)
    assert says in str(e.value) and len(str(e.value).splitlines()) == 1, e.value
    args = ['--data', 'folder', '--path', tmp_path, '--arch', 'resnet18', '--weights', 'none', '--variant', 'baseline']
    status, _, err = simam_ema('train', *args, '--out', tmp_path/'out')
    assert status == 2 and says in err and err.splitlines()[-1].startswith('simam_ema: ')
    assert not (tmp_path/'out'/'baseline-uniform-s1'/'config.json').exists()


def test_classes_called_like_parts(tmp_path):
    "`train` among vehicles and `valid` beside `invalid` are classes, and that is said; letters differ by case."
    for name, classes in (('v', ('bus', 'car', 'train')), ('q', ('invalid', 'valid')), ('letters', 'aA')):
        images(*below(tmp_path/name, classes))
    for name, classes in (('v', ['bus', 'car', 'train']), ('q', ['invalid', 'valid'])):
        s, said = read(tmp_path/name)
        assert s.classes == classes and 'is taken for a class' in said[0]
    assert read(tmp_path/'letters')[0].classes == ['A', 'a']


def test_what_lies_around(tmp_path):
    "Hidden folders, thumbnails, other files and images without a class: left out; what may be meant is said."
    images(*below(tmp_path, ('a', 'b', '.ipynb_checkpoints', 'a/.ipynb_checkpoints', 'b/@eaDir/0.png')))
    images(tmp_path/'a'/'more', n=2)
    for name in ('a/._0.png', 'a/Thumbs.db', 'b/.DS_Store', 'b/notes.txt', 'b/scan.dcm'):
        (tmp_path/name).write_bytes(b'x')
    images(tmp_path, n=3)
    s, said = read(tmp_path)
    assert (len(s.files), len(said)) == (22, 2)
    assert '3 images lie in' in said[0] and '1 files' in said[1] and "'.dcm'" in said[1], said


def test_links(tmp_path):
    "A loop is not followed; one file under two classes, or in both parts, is refused; under one class it counts once."
    images(*below(tmp_path/'d', 'ab'))
    for at in ('a/loop', 'b/up'): (tmp_path/'d'/at).symlink_to(tmp_path/'d'/at[0] if at[0] == 'a' else tmp_path/'d')
    s, said = read(tmp_path/'d')
    assert len(s.files) == 20 and not said
    (tmp_path/'d'/'a'/'again.png').symlink_to(tmp_path/'d'/'a'/'0.png')
    refused = pytest.raises(UserError, match='are one file, by a link')
    with refused if s.is_valid[0] != load_valid(tmp_path/'d') else warnings.catch_warnings(): read(tmp_path/'d')
    (tmp_path/'d'/'a'/'again.png').unlink()
    (tmp_path/'d'/'a'/'other').symlink_to(tmp_path/'d'/'b')
    with pytest.raises(UserError, match='under two classes'): read(tmp_path/'d')


def load_valid(path):
    "Whether a/again.png would validate."
    from simam_ema_fastai.data.splits import stratified_split
    names = [f'a/{i}.png' for i in range(10)] + ['a/again.png']
    return dict(zip(names, stratified_split(names, ['a']*11, .2)))['a/again.png']


def test_same_content(tmp_path):
    images(*below(tmp_path, 'ab'))
    (tmp_path/'b'/'0.png').write_bytes((tmp_path/'a'/'0.png').read_bytes())
    for i in range(1, 10): (tmp_path/'a'/f'{i}.png').write_bytes((tmp_path/'a'/'1.png').read_bytes())
    _, said = read(tmp_path)
    assert ['of another class' in w for w in said] == [True, False] and 'in training and in validation' in said[1], said


def test_few(tmp_path):
    images(*below(tmp_path, 'ab')), images(tmp_path/'c', n=1)
    few = r"1 with no validation image \('c'\); 1 with fewer than 5 training images \('c'\)"
    with pytest.warns(UserWarning, match=few): dls = get_dls('folder', tmp_path, size=32, bs=4)
    assert [f.parent.name for f in dls.train_ds.items].count('c') == 1
    for part, classes in (('train', 'abc'), ('valid', 'ab')): images(*below(tmp_path/'s'/part, classes))
    with pytest.warns(UserWarning, match=r"1 with no validation image \('c'\)"):
        get_dls('folder', tmp_path/'s', size=32, bs=4)


def test_names_that_are_no_text(tmp_path):
    images(*below(tmp_path, ('a', os.fsdecode(b'caf\xe9')))), images(tmp_path/'a', n=1, suffix=os.fsdecode(b'\xe9.png'))
    s, _ = read(tmp_path)
    assert s.classes == ['a', 'caf\\xe9'] and len(s.files) == 21 and s.digest()
    for loader in ('decoded', 'files'):
        assert len(get_dls('folder', tmp_path, size=32, bs=4, loader=loader).one_batch()) == 2
    assert '\n'.join(_short(s.files)).encode() and 'caf\\xe9/0.png' in _short(s.files)  # as predictions.csv has them


def test_numbers_and_options(tmp_path):
    images(*below(tmp_path, 'ab'))
    images(*below(tmp_path/'s'/'train', 'ab')), images(*below(tmp_path/'s'/'valid', 'ab'))
    for name, kwargs, says in [
        ('digits', dict(n_train=-5), 'n_train -5'),
        ('digits', dict(n_train=0), 'n_train 0'),
        ('digits', dict(n_valid=-1), 'n_valid -1'),
        ('digits', dict(n_classes=-1), 'n_classes -1'),
        ('digits', dict(n_classes=1), 'at least 2'),
        ('digits', dict(n_classes=11), 'digits has 10 classes'),
        ('digits', dict(n_train=1.5), 'n_train 1.5: a whole number'),
        ('folder', dict(valid_pct=-1), 'valid_pct -1'),
        ('folder', dict(valid_pct=0), 'valid_pct 0'),
        ('folder', dict(valid_pct=1), 'valid_pct 1'),
        ('folder', dict(valid_pct=20), 'valid_pct 20'),
        ('digits', dict(size=0), 'size 0'),
        ('digits', dict(size=-3), 'size -3'),
        ('digits', dict(min_scale=0), 'min_scale 0'),
        ('digits', dict(min_scale=1.2), 'min_scale 1.2'),
        ('digits', dict(bs=0), 'bs 0'),
        ('digits', dict(bs=-1), 'bs -1'),
        ('digits', dict(num_workers=-1), 'num_workers -1'),
        ('digits', dict(rand_augment=-1), 'rand_augment -1'),
        ('digits', dict(labels='cell'), "labels 'cell': digits has one labeling"),
        ('folder', dict(labels='cell'), 'folder has one labeling'),
        ('digits', dict(seed=3), 'seed 3: digits has a split of its own'),
        ('elpv', dict(valid_pct=.3), 'elpv has a split of its own'),
        ('digits', dict(on_device=True, loader='files'), 'on_device')]:
        with pytest.raises(UserError) as e: get_dls(name, **dict(path=tmp_path) if name == 'folder' else {}, **kwargs)
        assert says in str(e.value) and len(str(e.value).splitlines()) == 1, e.value
    with pytest.raises(UserError, match='has a split of its own'): get_dls('folder', tmp_path/'s', seed=1)
