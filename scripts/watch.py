"Show the report of a run folder as it grows: `python scripts/watch.py --help`."
import sys

from simam_ema_fastai.cli import main

sys.exit(main(['watch', *sys.argv[1:]]))
