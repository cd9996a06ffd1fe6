"The report in a browser: widths, color schemes, sorting, accessibility."
import contextlib
import os
import re
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
import requests

from simam_ema_fastai.report.watch import ReportServer, bind_localhost


@pytest.fixture(scope='session')
def page(simam_ema, digits_args, tmp_path_factory):
    out = tmp_path_factory.mktemp('page')/'runs'
    compared = ['--variants', 'baseline,hybrid', '--strategies', 'uniform,discriminative+freeze']
    status, _, err = simam_ema('ablate', *compared, '--out', out, *digits_args, '--epochs', 2)
    assert status == 0, err
    return out/'report'/'report.html'


def test_page_in_a_browser(page, look):
    assert look('page.mjs', page) == []


def test_the_check_finds_what_is_wrong(page, look, tmp_path):
    "An image without words, a wide element, an error and a request are each noticed."
    bad = tmp_path/'bad.html'
    broken = '<img src="http://127.0.0.1:9/x.png"><div style="width:2000px">wide</div><script>nowhere()</script>'
    bad.write_text(re.sub('</main>', f'{broken}</main>', page.read_text(encoding='utf-8')), encoding='utf-8')
    found = '\n'.join(look('page.mjs', bad))
    for what in ('axe image-alt', 'pixels wide', 'nowhere is not defined', 'fetches http://127.0.0.1'):
        assert what in found, found


def test_watching_what_is_done(page, simam_ema):
    "`watch` is there at once, shows the report that was written, and ends by Ctrl-C without a word."
    server = simam_ema.start('watch', page.parent.parent, '--port', 0)
    try:
        url = server.stdout.readline().split()[0]
        state = requests.get(f'{url}state').json()
        assert (state['state'], state['file'], len(state['runs'])) == ('done', str(page), 4)
        assert requests.get(f'{url}report').text == requests.get(f'{url}report.html').text == page.read_text('utf-8')
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 0 and server.stderr.read() == ''
    finally: server.kill()


def test_the_report_is_made_beside_the_page(page, tmp_path):
    "By a process of its own; what is missing from a folder is said in a line."
    runs = shutil.copytree(page.parent.parent, tmp_path/'runs')
    shutil.rmtree(runs/'report')
    with contextlib.closing(ReportServer(runs, bind_localhost(0)).report) as report:
        report.nice = 0
        def follow(until):
            report.follow(at_once=True)
            while not until(): time.sleep(.1)
        follow(lambda: report.fingerprint or report.error)
        assert not report.error and 'Does an attention module help on digits?' in report.page()
        last = report.page()
        next(runs.glob('*/config.json')).write_text('{')
        for f in runs.glob('*/predictions.csv'): f.write_text('')
        os.utime(runs/'grid.json')
        follow(lambda: report.error)
        assert len(report.error.splitlines()) == 1 and report.page() == last


@pytest.fixture
def watched(simam_ema, digits_args, tmp_path, request):
    "A comparison of so many epochs that is watched, and where."
    compared = ['--variants', 'baseline,hybrid', '--epochs', request.param, '--watch', '--port', 0]
    training = simam_ema.start('ablate', '--out', tmp_path/'runs', *digits_args, *compared)
    yield training, training.stdout.readline().removeprefix('watch: ').strip()
    training.kill()


@pytest.mark.parametrize('watched', [4], indirect=True)
def test_the_live_page_follows_a_training(watched, look):
    "There before it begins; without being loaded again it shows every epoch, the report, and the end, until Ctrl-C."
    training, url = watched
    seen = look('live.mjs', url, *os.environ.get('SHOTS', '').split())
    assert seen['wrong'] == [] and seen['notReloaded']
    runs = ['baseline-uniform-s1', 'hybrid-discriminative+freeze-s1']
    assert set(seen['orders']) <= {'', ' '.join(runs)} and [a for a in seen['active'] if a] == runs
    assert seen['titles'][-1] == 'Done – runs' and any(t.endswith('% – runs') for t in seen['titles'])
    assert seen['texts'][-1] == '2 of 2 runs are finished.' and seen['link'] == 200
    headings = set(seen['headings'])
    assert {'Training', 'Learning curves', 'All variants'} <= headings and 'Still to be done' not in headings
    assert training.poll() is None  # the page is there until Ctrl-C
    training.send_signal(signal.SIGINT)
    out, err = training.communicate(timeout=60)
    assert training.returncode == 0 and 'until Ctrl-C' in out and 'Traceback' not in err


@pytest.mark.parametrize('watched', [12], indirect=True)
@pytest.mark.parametrize('how', [signal.SIGINT, signal.SIGKILL])
def test_the_live_page_says_when_a_training_is_interrupted(watched, look, how):
    "And by what it goes on; also when nothing is left that could tell."
    training, url = watched
    def interrupt():
        while not list(Path(out).glob('*/history.csv')): time.sleep(.1)
        time.sleep(3)  # for the page to have asked
        training.send_signal(how)
    out = training.args[training.args.index('--out') + 1]
    threading.Thread(target=interrupt, daemon=True).start()
    seen = look('live.mjs', url, UNTIL='stopped,lost')
    assert seen['wrong'] == [] and seen['again'].startswith('simam_ema ablate --out')
    assert seen['texts'][-1].startswith('The training was interrupted') and seen['titles'][-1] == 'Stopped – runs'
    assert 'Traceback' not in training.communicate(timeout=60)[1]
