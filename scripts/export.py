"Write a trained model for other runtimes: `python scripts/export.py --help`."
import sys

from simam_ema_fastai.cli import main

sys.exit(main(['export', *sys.argv[1:]]))
