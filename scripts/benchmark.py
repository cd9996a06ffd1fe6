"Measure what variants cost: `python scripts/benchmark.py --help`."
import sys

from simam_ema_fastai.cli import main

sys.exit(main(['benchmark', *sys.argv[1:]]))
