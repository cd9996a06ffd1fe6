"Classes and probabilities for images: `python scripts/predict.py --help`."
import sys

from simam_ema_fastai.cli import main

sys.exit(main(['predict', *sys.argv[1:]]))
