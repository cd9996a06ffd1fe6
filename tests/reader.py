"""Read images, each behind its length, from standard input, in a process of its own.

Each is answered with a line of JSON: what came of it, and by how many MiB memory had grown at most."""
import json
import struct
import sys

from simam_ema_fastai.core.errors import UserError
from simam_ema_fastai.runtime.images import read_image


def memory(what):
    "MiB of this process, as Linux names them."
    with open('/proc/self/status') as f: return next(int(l.split()[1])/1024 for l in f if l.startswith(what))


if __name__ == '__main__':
    base = memory('VmRSS')
    while head := sys.stdin.buffer.read(8):
        data = sys.stdin.buffer.read(*struct.unpack('<Q', head))
        with open('/proc/self/clear_refs', 'w') as f: f.write('5')  # the peak is measured from here
        try:
            im = read_image(data)
            answer = dict(size=im.size, mode=im.mode)
        except UserError as e: answer = dict(refused=str(e))
        im = None
        print(json.dumps(answer | dict(mib=memory('VmHWM') - base)), flush=True)
