"The service: its OpenAPI, bytes that are not images, the page in a browser, the command and its end."
import base64
import io
import json
import os
import re
import signal
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import requests
import schemathesis
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from schemathesis.specs.openapi.checks import positive_data_acceptance
from sklearn.datasets import load_sample_image

from simam_ema_fastai.data.dls import get_dls
from simam_ema_fastai.deploy.app import create_app
from simam_ema_fastai.deploy.explain import gate_maps
from simam_ema_fastai.deploy.load import export_bundle
from simam_ema_fastai.deploy.protocol import Limits
from simam_ema_fastai.deploy.serve import running
from simam_ema_fastai.models.create import create_model
from simam_ema_fastai.runtime.classifier import Classifier, normalize, open_model
from simam_ema_fastai.training.learner import variant_learner
from simam_ema_fastai.training.recipe import Recipe

token = 'a token for these tests'


def encoded(im, kind='PNG', **kwargs):
    buffer = io.BytesIO()
    im.save(buffer, kind, **kwargs)
    return buffer.getvalue()


@pytest.fixture(scope='session')
def model():
    "A network with both gates and initial weights."
    transforms = dict(resize=[36, 36], crop=[32, 32], mean=[.5]*3, std=[.25]*3)
    torch.manual_seed(0)
    network = create_model('hybrid', 10, 'resnet18').eval()
    @torch.no_grad()
    def run(batch): return network(torch.from_numpy(normalize(batch, transforms))).numpy()
    about = dict(classes=[f'class {i}' for i in range(10)], transforms=transforms)
    return Classifier(about, run, 'initial weights', network)


@pytest.fixture(scope='session')
def url(model):
    with running(create_app(model, limits=Limits(body=2**20, pixels=10**6, seconds=20))) as url: yield url


@pytest.fixture(scope='session')
def photo(): return Image.fromarray(load_sample_image('china.jpg')).resize((160, 107))


def square(side, gray): return encoded(Image.new('L', (side, side), gray))


bodies = st.builds(square, st.integers(1, 40), st.integers(0, 255)) | st.binary(max_size=200)
for kind in ('image/png', 'image/jpeg', 'application/octet-stream'): schemathesis.openapi.media_type(kind, bodies)
examples = int(os.environ.get('SIMAM_EMA_EXAMPLES', 0))  # more than the usual, for a long search
search = dict(deadline=None, database=None, derandomize=True)


@schemathesis.serializer('image/png', 'image/jpeg')
def as_it_is(context, value): return value


@pytest.mark.parametrize('mode', list(schemathesis.GenerationMode))
def test_the_service_keeps_its_openapi(url, mode):
    "What is declared, and nothing else, comes back: for requests that fit the schema, and for those that do not."
    operations = [o.ok() for o in schemathesis.openapi.from_url(f'{url}/openapi.json').get_all_operations()]
    for operation in operations:
        if mode.is_negative and operation.path != '/predict': continue  # the others take nothing that could be wrong
        n = examples or (10 if mode.is_positive else 30)
        @settings(max_examples=n, suppress_health_check=list(HealthCheck), **search)
        @given(operation.as_strategy(generation_mode=mode))
        def check(case): case.call_and_validate(excluded_checks=[positive_data_acceptance])  # a binary may be no image
        check()
    assert len(operations) == 5


def test_gate_maps_are_the_networks_own(url, model, photo):
    data = encoded(photo)
    (result,) = requests.post(f'{url}/predict?maps=true', files={'files': data}).json()['results']
    x = torch.from_numpy(normalize(model.prepare(data)[None], model.about['transforms']))
    want = {k: (m.min().item(), m.max().item()) for k,m in gate_maps(model.network, x).items()}
    got = {m['gate']: (m['low'], m['high']) for m in result['maps']}
    assert got == {k: pytest.approx(v, abs=1e-6) for k,v in want.items()} and len(want) == 2
    for m in result['maps']:
        png = base64.b64decode(m['png'].partition(',')[2])
        assert Image.open(io.BytesIO(png)).size == (224, 224)


def chunk(kind, data): return len(data).to_bytes(4, 'big') + kind + data + zlib.crc32(kind + data).to_bytes(4, 'big')


def png(w, h, data, depth=8, color=2):
    header = w.to_bytes(4, 'big') + h.to_bytes(4, 'big') + bytes([depth, color, 0, 0, 0])
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', data) + chunk(b'IEND', b'')


def zeros(n):
    "`n` zero bytes, as zlib packs them: a thousand in one."
    packer = zlib.compressobj(9)
    packed = [packer.compress(bytes(2**20)) for _ in range(n >> 20)]
    return b''.join([*packed, packer.compress(bytes(n % 2**20)), packer.flush()])


@pytest.fixture(scope='session')
def files(photo):
    "A photograph in every format and mode that is read, and files made to do harm."
    exif = Image.Exif(); exif[0x0112] = 6
    frames = dict(save_all=True, append_images=[photo.rotate(90), photo.rotate(180)])
    gray16 = Image.fromarray(np.asarray(photo.convert('L')).astype(np.uint16)*257)
    floats = Image.fromarray(np.asarray(photo.convert('F'))/np.float32(255))
    good = [encoded(photo, kind) for kind in ('JPEG', 'PNG', 'BMP', 'PPM')]
    good += [encoded(photo.convert(mode)) for mode in ('P', 'RGBA', '1')]
    good += [encoded(photo, 'JPEG', exif=exif, progressive=True), encoded(photo.convert('CMYK'), 'JPEG')]
    good += [encoded(gray16), encoded(gray16, 'TIFF'), encoded(floats, 'TIFF')]
    good.append(encoded(photo, 'TIFF', compression='tiff_lzw'))
    good += [encoded(photo, 'GIF', **frames), encoded(photo, 'WEBP', **frames)]
    harm = [b'', b'GIF89a', b'GIF89a' + b'\xff'*7, b'II*\0\x08\0\0\0' + b'\xff'*400]
    harm.append(b'\xff\xd8' + b'\xff\xe1\xff\xff'*2000)
    harm += [png(60_000, 60_000, zeros(99)), png(999, 999, zeros(2**28)), png(1000, 1000, zeros(8_001_000), 16, 6),
             png(2**31 - 1, 1, b'')]
    harm += [b'%!PS-Adobe-3.0 EPSF-3.0\n(%pipe%id) (r) file', b'file:///etc/passwd', b'http://127.0.0.1:9/',
             b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>']
    harm.append(encoded(photo.convert('F'), 'TIFF'))  # floats above 1: which of them is white?
    return good, harm


def memory(what):
    "In MiB."
    return int(re.search(rf'{what}:\s+(\d+)', Path('/proc/self/status').read_text())[1])/1024


@pytest.mark.skipif(not Path('/proc/self/clear_refs').exists(), reason='reads the peak of memory from /proc')
@pytest.mark.filterwarnings('ignore::UserWarning:PIL')
def test_no_bytes_do_harm(url, files):
    "Whatever is sent is answered or refused by name within seconds, below 1 GiB, and the next image is answered."
    good, harm = files
    def send(data):
        start = time.monotonic()
        r = requests.post(f'{url}/predict', data=data or b'\0', headers={'Content-Type': 'image/png'})
        assert r.status_code in (200, 422) and time.monotonic() - start < 20, (r.status_code, data[:40])
        if r.status_code == 422:
            error = r.json()['error']
            assert error.startswith('image ') and len(error.splitlines()) == 1, error
        return r.status_code

    Path('/proc/self/clear_refs').write_text('5')  # the highest mark begins again here
    before = memory('VmRSS')
    assert [send(f) for f in good] == [200]*len(good)
    refused = [send(f) for f in harm]
    assert refused.count(422) >= len(harm) - 2  # Pillow may stop reading an image that goes on behind its end

    change = st.tuples(st.floats(0, .999), st.binary(min_size=1, max_size=6))
    @settings(max_examples=examples or 200, **search)
    @given(st.sampled_from(good), st.floats(0, 1), st.lists(change, max_size=4))
    def mutated(data, kept, changes):
        data = bytearray(data[:max(1, int(kept*len(data)))])
        for where, new in changes:
            start = int(where*len(data))
            data[start:start + len(new)] = new
        send(bytes(data))
    mutated()
    assert send(good[0]) == 200
    assert memory('VmHWM') - before < 1024


def test_the_page_in_a_browser(model, photo, look, tmp_path):
    "Also: twenty images at once, of which none is dropped, and classes whose names are markup."
    small, large, broken, many = (tmp_path/n for n in ('small.png', 'photo.jpg', 'broken.png', 'many'))
    photo.resize((32, 32)).save(small); photo.save(large); broken.write_bytes(b'no image'); many.mkdir()
    for i in range(20): Image.new('L', (32, 32), i*12).save(many/f'{i:02}.png')
    classes = [f'<img src=x onerror=alert({i})> Maß {i}' for i in range(10)]
    marked = Classifier(model.about | dict(classes=classes), model._run, model.source, model.network)
    label = marked.classify([small], 1)[0][0][0]
    env = dict(IMAGE=small, PHOTO=large, NO_IMAGE=broken, MANY=many, TOKEN=token, LABEL=label)
    with running(create_app(marked, token=token)) as url:
        assert look('service.mjs', url, *os.environ.get('SHOTS', '').split(), **env) == []


def test_the_command_serves_and_stops(simam_ema, photo, tmp_path):
    "It says where it listens, asks for the token, logs what it refuses, and on SIGTERM answers what it has taken in."
    dls = get_dls('digits', n_train=64, n_valid=32)
    learn = variant_learner(dls, 'hybrid', arch='resnet18', weights=None, recipe=Recipe())
    exported, secret = export_bundle(learn, tmp_path/'model'), tmp_path/'token'
    secret.write_text(token)
    limits = ['--max-mb', 1, '--max-images', 2]
    service = simam_ema.start('serve', exported, '--port', 0, '--token-file', secret, *limits)
    try:
        while 'http://' not in (line := service.stdout.readline()): assert line, service.stderr.read()
        url = re.search(r'http://127\.0\.0\.1:\d+', line)[0]
        data, kind, known = encoded(photo), {'Content-Type': 'image/png'}, {'Authorization': f'Bearer {token}'}
        def ask(data=data, who=known): return requests.post(f'{url}/predict', data=data, headers=kind | who)
        assert (ask(who={}).status_code, ask(bytes(2**20 + 1)).status_code) == (401, 413)
        want = open_model(exported).classify([data], 5)[0]
        got = [(c['label'], c['prob']) for c in ask().json()['results'][0]['classes']]
        assert [l for l,_ in got] == [l for l,_ in want]
        assert np.allclose([p for _,p in got], [p for _,p in want], atol=1e-5)

        answers, done = [], threading.Event()
        def client():
            while not done.is_set():
                try: answers.append(ask().status_code)
                except requests.ConnectionError: return
        clients = [threading.Thread(target=client) for _ in range(8)]
        for c in clients: c.start()
        while len(answers) < 20: time.sleep(.02)
        service.send_signal(signal.SIGTERM)
        status = service.wait(60)
        done.set()
        for c in clients: c.join()
    finally: service.kill()
    lines = [json.loads(l) for l in service.stderr.read().splitlines() if l.startswith('{')]
    refused = [(l['status'], l['path']) for l in lines if l['event'] == 'request']
    assert refused == [(401, '/predict'), (413, '/predict')]
    assert status == 0 and set(answers) == {200} and token not in str(lines)
    assert lines[-1]['event'] == 'stopped'
    assert lines[-1]['taken'] == lines[-1]['answered'] == len(answers) + 3
