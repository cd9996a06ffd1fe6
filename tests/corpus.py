"""Images as they come: of every kind, broken, and made to do harm.

`readable`, `largest` and `refused` map a file's name to its bytes."""
import io
import struct
import zlib

import numpy as np
from PIL import Image

noise = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
rgb, gray = Image.fromarray(noise), Image.fromarray(noise[..., 0])


def encoded(im, format, **kwargs):
    im.save(out := io.BytesIO(), format, **kwargs)
    return out.getvalue()


def chunk(kind, data=b''):
    return len(data).to_bytes(4, 'big') + kind + data + zlib.crc32(kind + data).to_bytes(4, 'big')


def zeros(n):
    "`n` zeros, deflated without having them in memory."
    z = zlib.compressobj(9)
    return b''.join([*(z.compress(bytes(1 << 20)) for _ in range(n >> 20)), z.flush()])


def png(w, h, data, *chunks, color=2, depth=8):
    header = chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, depth, color, 0, 0, 0))
    return b'\x89PNG\r\n\x1a\n' + header + b''.join(chunks) + chunk(b'IDAT', data) + chunk(b'IEND')


def with_chunk(kind, data):
    "A good PNG with one chunk more."
    good = encoded(rgb, 'PNG')
    return good[:33] + chunk(kind, data) + good[33:]


def jpeg_of_scans(n):
    data = encoded(Image.new('L', (2000, 2000), 128), 'JPEG', progressive=True)
    return data[:-2] + data[data.rindex(b'\xff\xda'):-2]*n + data[-2:]


def tiff_of_tile(w, h, tile):
    data, n = zeros(tile*tile), 10
    tags = [(256, w), (257, h), (258, 8), (259, 8), (262, 1), (277, 1), (322, tile), (323, tile),
            (324, 14 + 12*n), (325, len(data))]  # the data begin behind the tags
    entries = b''.join(struct.pack('<HHII', t, 4, 1, v) for t, v in tags)
    return struct.pack('<2sHIH', b'II', 42, 8, n) + entries + bytes(4) + data


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def resized(data, at, format, *size):
    "`data` whose header says another size."
    new = struct.pack(format, *size)
    return data[:at] + new + data[at+len(new):]


bomb = zeros(1 << 30)  # 1 GiB in 1 MB
frames = dict(save_all=True, append_images=[Image.new('RGB', rgb.size, c) for c in ('red', 'blue')])
clear = rgb.copy(); clear.putalpha(gray)
formats = dict(png='PNG', jpg='JPEG', bmp='BMP', gif='GIF', tif='TIFF', webp='WEBP', ppm='PPM', jp2='JPEG2000',
               avif='AVIF')
animated = dict(gif='GIF', webp='WEBP', png='PNG', tif='TIFF')

readable = {
    **{f'plain.{ext}': encoded(rgb, f) for ext, f in formats.items()},
    **{f'animated.{ext}': encoded(rgb, f, **frames) for ext, f in animated.items()},
    **{f'turned{o}.jpg': encoded(rgb, 'JPEG', exif=turned(o)) for o in range(1, 9)},
    'palette.png': encoded(rgb.convert('P'), 'PNG'),
    'palette_clear.png': encoded(rgb.convert('P'), 'PNG', transparency=3),
    'clear.png': encoded(clear, 'PNG'),
    'clear.webp': encoded(clear, 'WEBP'),
    'gray16.png': encoded(Image.fromarray(noise[..., 0].astype(np.uint16)*257), 'PNG'),
    'float.tif': encoded(Image.fromarray(noise[..., 0].astype(np.float32)/255), 'TIFF'),
    'bits.png': encoded(gray.convert('1'), 'PNG'),
    'bits.tif': encoded(gray.convert('1'), 'TIFF', compression='group4'),
    'cmyk.jpg': encoded(rgb.convert('CMYK'), 'JPEG'),
    'cmyk.tif': encoded(rgb.convert('CMYK'), 'TIFF'),
    'progressive.jpg': encoded(rgb, 'JPEG', progressive=True),
    'one.png': encoded(Image.new('RGB', (1, 1), 'red'), 'PNG'),
    'one.jpg': encoded(Image.new('L', (1, 1)), 'JPEG'),
    'a_png.jpg': encoded(rgb, 'PNG'),
    'a_jpeg.png': encoded(rgb, 'JPEG'),
    'long.png': encoded(Image.new('L', (1, 20000)), 'PNG'),
    'wide.png': encoded(Image.new('RGB', (20000, 2)), 'PNG'),
    'large.png': encoded(Image.new('L', (4000, 4000)), 'PNG', compress_level=1),
    'large_clear.png': encoded(Image.new('LA', (4000, 4000)), 'PNG', compress_level=1),
    'idat_bomb.png': png(24, 16, bomb),
    'broken_exif.jpg': encoded(rgb, 'JPEG', exif=b'Exif\0\0II*\0\x08\0\0\0\xff\xff'),
}
largest = {  # at the limit
    'rgba.png': encoded(Image.new('RGBA', (7000, 7000)), 'PNG', compress_level=1),
    'turned.tif': encoded(Image.new('RGBA', (7000, 7000)), 'TIFF', compression='tiff_deflate', exif=turned(6)),
    'clear.webp': encoded(Image.new('RGBA', (5000, 5000)), 'WEBP', lossless=True, method=0, exif=turned(6)),
    'gray.jp2': encoded(Image.new('RGB', (5000, 5000)), 'JPEG2000'),
}
refused = {
    'empty.png': b'', 'text.jpg': b'no image', 'zeros.png': bytes(1000), 'magic.png': b'\x89PNG\r\n\x1a\n',
    'html.gif': b'<html>', 'eps.png': encoded(rgb, 'EPS'),
    **{f'cut.{ext}': readable[f'plain.{ext}'][:len(readable[f'plain.{ext}'])//2]
       for ext in ('png', 'jpg', 'bmp', 'tif', 'webp', 'ppm', 'avif')},
    'huge.png': png(60_000, 60_000, zeros(1 << 20)),
    'huge_int.png': png(2**31-1, 2**31-1, zeros(1 << 20)),
    'nothing.png': png(0, 0, zeros(1 << 20)),
    'long_bomb.png': png(1, 2**31-1, bomb),
    'huge.bmp': resized(readable['plain.bmp'], 18, '<ii', 50_000, 50_000),
    'huge.gif': resized(readable['plain.gif'], 6, '<HH', 65_535, 65_535),
    'huge.ppm': b'P6 60000 60000 255\n' + bytes(100),
    'iccp_bomb.png': with_chunk(b'iCCP', b'x\0\0' + bomb),
    'ztxt_bomb.png': with_chunk(b'zTXt', b'x\0\0' + bomb),
    'itxt_bomb.png': with_chunk(b'iTXt', b'x\0\1\0\0\0' + bomb),
    'scans.jpg': jpeg_of_scans(2000),
    'tile.tif': tiff_of_tile(100, 100, 30_000),
}
