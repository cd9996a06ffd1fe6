"Compare variants: `python scripts/ablate.py --help`."
import sys

from simam_ema_fastai.cli import main

sys.exit(main(['ablate', *sys.argv[1:]]))
