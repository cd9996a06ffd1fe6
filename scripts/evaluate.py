"Evaluate an exported learner: `python scripts/evaluate.py --help`."
import sys

from simam_ema_fastai.cli import main

sys.exit(main(['evaluate', *sys.argv[1:]]))
