"Write the report of a run folder: `python scripts/report.py --help`."
import sys

from simam_ema_fastai.cli import main

sys.exit(main(['report', *sys.argv[1:]]))
